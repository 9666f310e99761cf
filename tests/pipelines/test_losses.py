"""Budgets of what is lost between a source and its shards."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds

from gatokit.pipelines.losses import LeftOut, SourceLosses
from gatokit.pipelines.run import build
from gatokit.schemas.config import BuildConfig
from gatokit.schemas.errors import DataError


def test_values_that_are_clipped_or_saturated(
    tmp_path: Path, vocabulary: Path, write_tfds: Callable[..., Path]
) -> None:
    steps = {
        "observation": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        "action": tfds.features.Tensor(shape=(1,), dtype=np.float32),
        "reward": tfds.features.Scalar(dtype=np.float32),
        **{flag: tfds.features.Scalar(dtype=np.bool_) for flag in ("is_first", "is_last", "is_terminal")},
    }

    def step(number: int, last: int) -> dict[str, Any]:
        flags = {"is_first": number == 0, "is_last": number == last, "is_terminal": number == last}
        observation = np.array([1000.0 if number == 3 else 0.5, 1.0], np.float32)
        action = np.array([0.0 if number == last else 7.0 if number == 5 else 0.25], np.float32)
        return {"observation": observation, "action": action, "reward": 1.0 * (number < last), **flags}

    episodes = [{"steps": [step(number, 10) for number in range(11)]} for _ in range(4)]
    write_tfds(tmp_path / "data" / "t", steps, episodes)
    rule = "fields: {action: {as: continuous, range: [-1, 1], clip: true}}"
    config = tmp_path / "c.yaml"
    config.write_text(
        f"vocabulary: {vocabulary}\ndatasets:\n"
        f"  - {{name: d, kind: episodes, source: data/*, keep: {{all: true}}, {rule}}}\n"
    )
    result = build(config, tmp_path / "out")
    expected = [
        ("values of action clipped", "outside_range", 4, 40, "t"),
        ("values of observation saturated", "saturated", 4, 80, "t"),
    ]
    keys = ("what", "reason", "count", "of", "first")
    assert [tuple(row[key] for key in keys) for row in result.left_out] == expected
    entries = result.manifest.datasets[0].left_out
    assert [tuple(getattr(entry, key) for key in keys) for entry in entries] == expected
    assert result.manifest.datasets[0].losses[0] == "values of action clipped: 4 of 40 (outside_range, first t)"


def test_counts_of_several_shards_are_merged() -> None:
    first, second = LeftOut(), LeftOut()
    first.totals["pictures left out"] = 10
    first.add("pictures left out", "bad_image", 2, "a#1")
    first.add("pictures left out", "missing_image", 0, "a#2")
    second.totals["pictures left out"] = 5
    second.add("pictures left out", "bad_image", 1, "b#1")
    second.add("pictures left out", "missing_image", 4, "b#2")
    merged = LeftOut()
    for part in (first, second):
        merged.merge(LeftOut.from_json(json.loads(json.dumps(part.to_json()))))
    assert [entry.sentence for entry in merged.entries()] == [
        "pictures left out: 3 of 15 (bad_image, first a#1)",
        "pictures left out: 4 of 15 (missing_image, first b#2)",
    ]
    assert (LeftOut().is_used, merged.is_used) == (False, True)


@dataclass(frozen=True)
class Source:
    name: str
    size: int


def test_bytes_of_a_source_that_are_lost() -> None:
    files = [Source("a", 100), Source("b", 50), Source("c", 50), Source("d", 800)]
    losses = SourceLosses(files)
    assert losses.entry() is None
    columns = {
        "file": [0, 0, 1, 2, 3],
        "reason": ["corrupt_length", "corrupt_length", "ends_early", "corrupt_record", None],
        "detail": ["one", "two", "three", "four", None],
        "lost_bytes": [30, 90, 0, 0, 0],
    }
    losses.add(pa.table(columns))
    entry = losses.entry()
    assert entry is not None
    # A file loses no more than it has, and one that ends early all of it.
    assert entry.model_dump() == {
        "files": 4,
        "damaged": 1,
        "ends_early": 1,
        "bytes": 1000,
        "lost_bytes": 150,
        "examples": ["a: one", "b: three"],
    }
    assert entry.sentence == "1 of 4 files ends early and 1 is damaged, 15 % of the bytes (first a: one)"
    losses.check_budget(allowing(max_lost_bytes=0.15), "demo")
    for share in (0.0, 0.149):
        with pytest.raises(DataError, match=r"^demo: 1 of 4 files ends early and 1 is damaged, 15 % of the bytes"):
            losses.check_budget(allowing(max_lost_bytes=share), "demo")


def allowing(**budgets: float) -> BuildConfig:
    return BuildConfig.model_validate({**budgets, "datasets": [{"name": "demo", "kind": "text", "source": "*.txt"}]})
