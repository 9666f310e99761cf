import numpy as np
import pytest

from gatokit.tokenizers.patches import (
    evaluation_positions,
    patches,
    position_intervals,
)

RGB = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def test_patches_are_in_raster_order():
    found = patches(RGB)
    assert found.shape == (20, 16, 16, 3)
    assert found.dtype == np.uint8
    for row in range(4):
        for column in range(5):
            expected = RGB[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
            assert np.array_equal(found[row * 5 + column], expected)


@pytest.mark.parametrize("shape", [(64, 81, 3), (65, 80, 3), (0, 16, 3), (64, 80), (64, 80, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError):
        patches(np.zeros(shape, np.uint8))


def test_positions_of_the_paper_s_worked_image():
    assert position_intervals(4).tolist() == [[0, 32], [32, 64], [64, 96], [96, 128]]
    assert position_intervals(5).tolist() == [[0, 26], [26, 51], [51, 77], [77, 102], [102, 128]]
    assert evaluation_positions(4)[1] == 48
    assert evaluation_positions(5)[2] == 64


@pytest.mark.parametrize("count", [1, 2, 3, 14, 127, 128, 129, 300])
def test_an_evaluation_position_is_always_in_the_table(count):
    positions = evaluation_positions(count)
    assert positions.min() >= 0
    assert positions.max() <= 127
    assert (np.diff(positions) >= 0).all()
