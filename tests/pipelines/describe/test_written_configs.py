"""Configs that describe writes for the layouts of public robot sets: each builds as it is, and decodes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import robot_sets
import tensorflow_datasets as tfds

from gatokit.inspection import open_directory
from gatokit.pipelines.describe.config_text import config_text
from gatokit.pipelines.describe.proposal import propose
from gatokit.pipelines.describe.source import describe
from gatokit.pipelines.run import build

QUICK = ("droid", "language_table", "mt_opt_rlds", "taco_play")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in robot_sets.LAYOUTS]
EPISODES = 9


@pytest.mark.parametrize("name", NAMES)
def test_a_written_config_builds_as_it_is(
    name: str, tmp_path: Path, write_tfds: Callable[..., Path], exact_vocabulary: Path
):
    layout = robot_sets.LAYOUTS[name]
    counts = {split: EPISODES if split == "train" else 3 for split in layout.splits}
    data = write_tfds(
        tmp_path / name,
        layout.steps,
        {split: robot_sets.episodes(name, split, count) for split, count in counts.items()},
        metadata=layout.metadata,
    )
    found = describe(name, base=tmp_path)
    assert (found.seen, found.is_all) == (EPISODES, True)
    proposal = propose(found, name, name)
    assert proposal.complaints == ()
    text = config_text(found, proposal, str(exact_vocabulary), "config.yaml")
    for path in [field.path for field in proposal.fields]:
        assert path in text
    (tmp_path / "config.yaml").write_text(text)
    build(tmp_path / "config.yaml", tmp_path / "built")

    built = open_directory(tmp_path / "built").datasets[name]
    rewarded = "reward" in layout.steps or "success" in str(layout.metadata)
    rows = {(Path(row.source_file).name, row.source_position): row for row in built.episodes()}
    builder = tfds.builder_from_directory(data)
    for split, count in counts.items():
        recorded = tfds.as_numpy(builder.as_dataset(split))
        planted = robot_sets.planted(name, split, count)
        for number, (episode, (instruction, success)) in enumerate(zip(recorded, planted, strict=True)):
            row = rows[f"recorded-{split}.tfrecord-{number // 2:05d}", number % 2]
            assert row.kept == (success or not rewarded)
            if not row.kept:
                continue
            if len(counts) > 1:
                assert row.split == ("train" if split == "train" else "held_out")
            steps = list(episode["steps"])
            values = built.episode(row).decode()
            path = layout.instruction
            path = path if path.startswith("observation/") else f"observation/{path}"
            assert values[path] == [instruction] * len(steps)
            for action, tokens in values.items():
                if action.split("/")[0] == "action":
                    _check_last(action, tokens, steps)


def _check_last(path: str, decoded: np.ndarray, steps: list) -> None:
    """The last recorded action is there, within a bin of its range."""
    value = steps[-1]["action"] if path == "action" else steps[-1]["action"][path.removeprefix("action/")]
    assert len(decoded) == len(steps)
    assert np.abs(decoded[-1].astype(float) - value).max() <= 2 / 1024
