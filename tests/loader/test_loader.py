"""Batches made ahead are those of the windows, in order, from any step on."""

from pathlib import Path

import numpy as np
import pytest
from test_windows import run_config

from gatokit.loader.batch import Batch
from gatokit.loader.loader import batches_ahead
from gatokit.loader.mixture import open_mixture
from gatokit.loader.windows import Windows
from gatokit.schemas.errors import DataError


def equal(one: Batch, other: Batch) -> bool:
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("input", [{}, {"workers": 2}])
def test_batches_come_in_order_from_the_first_step_asked_for(mixed: Path, input: dict[str, int]) -> None:
    config = run_config(64, 32, **input)
    windows = Windows(open_mixture([mixed], {"arm": 1, "books": 1}), config)
    with batches_ahead(windows, 3, 10, range(8, 24), config.input.workers) as ready:
        found = list(ready)
    expected = [windows.batch(step, range(8, 24)) for step in range(3, 10)]
    assert len(found) == 7
    assert all(map(equal, found, expected))


def test_a_run_that_stops_early_leaves_nothing_behind(mixed: Path) -> None:
    config = run_config(64, 32)
    windows = Windows(open_mixture([mixed], {"grid": 1}), config)
    with batches_ahead(windows, 0, 1_000_000, range(32), config.input.workers) as ready:
        assert equal(next(ready), windows.batch(0, range(32)))
    with pytest.raises(StopIteration):
        next(ready)


def test_an_error_comes_where_its_batch_is_asked_for(mixed: Path) -> None:
    config = run_config(64, 32)
    windows = Windows(open_mixture([mixed], {"grid": 1}), config)
    good = windows.batch

    def fails(step: int, rows: range) -> Batch:
        if step == 3:
            raise DataError("the shard is damaged")
        return good(step, rows)

    windows.batch = fails  # type: ignore[method-assign]
    with batches_ahead(windows, 0, 5, range(32), config.input.workers) as ready:
        assert [next(ready).tokens.shape for _ in range(3)] == [(32, 64)] * 3
        with pytest.raises(DataError, match="the shard is damaged"):
            next(ready)
