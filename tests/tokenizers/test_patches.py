import numpy as np
import pytest

from gatokit.tokenizers.patches import (
    evaluation_positions,
    image,
    patch_grid,
    patches,
    position_intervals,
    scale,
    unscale,
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


def test_an_image_is_its_patches():
    assert np.array_equal(image(patches(RGB), patch_grid(64, 80)), RGB)
    with pytest.raises(ValueError, match="4 x 4 patches have shape"):
        image(patches(RGB), (4, 4))


@pytest.mark.parametrize("shape", [(64, 81, 3), (65, 80, 3), (0, 16, 3), (64, 80), (64, 80, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError):
        patches(np.zeros(shape, np.uint8))


def test_pixels_are_scaled_to_a_quarter():
    pixels = np.arange(256, dtype=np.uint8)
    inputs = scale(pixels)
    assert inputs.dtype == np.float32
    assert inputs[[0, 255]].tolist() == [-0.25, 0.25]
    assert np.abs(inputs - (pixels.astype(np.float64) / 127.5 - 1) / 4).max() < 1e-7
    assert np.array_equal(unscale(inputs), pixels)


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
