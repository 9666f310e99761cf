"""Arrays that grow by blocks."""

import numpy as np
import pytest

from gatokit.pipelines import dataset
from gatokit.pipelines.dataset import GrowingArray


@pytest.mark.parametrize("shape", [(), (2,)])
def test_rows_come_back_in_order_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch, shape):
    monkeypatch.setattr(dataset, "_BLOCK_ROWS", 7)
    values = np.random.default_rng(0).integers(0, 1 << 40, (100, *shape))
    for cuts in ([], [50], [7, 14], [1, 2, 3, 30, 30, 99], list(range(100))):
        column = GrowingArray(np.int64, *shape)
        for part in np.split(values, cuts):
            column.add(part)
        joined = column.joined()
        assert (joined.dtype, joined.shape) == (np.int64, values.shape)
        assert np.array_equal(joined, values)
    assert GrowingArray(np.uint64, 2).joined().shape == (0, 2)
