"""What the demo shows beside the losses."""

from pathlib import Path

import numpy as np
import pytest
from runs import config, write_config

from gatokit.cli.demo import unigram_entropies
from gatokit.loader.mixture import open_mixture
from gatokit.loader.windows import Windows
from gatokit.schemas.tokens import TokenKind


def test_entropy_is_that_of_counted_targets(mixed: Path, tmp_path: Path) -> None:
    run = config(tmp_path)
    windows = Windows(open_mixture([str(mixed)], run.input.weights), run)
    counts: dict[str, dict[int, int]] = {}
    for step in range(3):
        batch = windows.batch(step, range(run.batch))
        for kind, target in zip(batch.target_kinds.ravel().tolist(), batch.targets.ravel().tolist(), strict=True):
            if kind:
                of_kind = counts.setdefault(TokenKind(kind).name.lower(), {})
                of_kind[target] = of_kind.get(target, 0) + 1
    expected = {}
    for name, of_kind in counts.items():
        total = sum(of_kind.values())
        expected[name] = sum(-count / total * np.log(count / total) for count in of_kind.values())
    assert set(expected) == {"text", "discrete_action", "continuous_action"}
    assert unigram_entropies(write_config(tmp_path), str(mixed), 3) == pytest.approx(expected)
