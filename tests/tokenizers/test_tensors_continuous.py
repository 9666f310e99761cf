import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.tokenizers.tensors import (
    ActionRange,
    compand,
    count_outside,
    decode_action,
    decode_observation,
    encode_action,
    encode_observation,
    expand,
)

GOLDEN = [  # value, id as an observation, id as an action
    (-1000.0, 32000, 32000),
    (-256.0, 32000, 32000),
    (-1.0, 32279, 32000),
    (-0.5, 32313, 32256),
    (-1e-30, 32512, 32512),
    (0.0, 32512, 32512),
    (0.001, 32516, 32512),
    (0.01, 32546, 32517),
    (0.1, 32632, 32563),
    (0.5, 32710, 32768),
    (1.0, 32744, 33023),
    (10.0, 32860, 33023),
    (256.0, 33023, 33023),
    (1000.0, 33023, 33023),
]
ROUNDING = 1e-12  # of float64: -1e-18 + 1 is 1, so that value falls into the bin above zero
UNIT = ActionRange.of(None, 1)


def observation_ids(values, dtype=np.float32):
    array = np.asarray(values, dtype)
    array = array[:, None] if array.ndim == 1 else array
    out = np.zeros((len(array), array.shape[1] + 2), np.uint16)
    encode_observation(array, out[:, 1:-1], path="observation/x")
    assert not out[:, [0, -1]].any()
    return out[:, 1:-1]


def action_ids(values, pairs=None, dtype=np.float32):
    array = np.asarray(values, dtype).reshape(len(values), -1)
    out = np.zeros((len(array), array.shape[1] + 2), np.uint16)
    encode_action(array, out[:, 1:-1], scale=ActionRange.of(pairs, array.shape[1], path="action"), path="action")
    assert not out[:, [0, -1]].any()
    return out[:, 1:-1]


def reference_bin(value: float) -> int:
    return min(1023, math.floor((min(1.0, max(-1.0, value)) + 1.0) * 512.0))


def reference_observation(value: float) -> int:
    companded = math.copysign(math.log(abs(value) * 100.0 + 1.0) / math.log(256.0 * 100.0 + 1.0), value)
    return 32000 + reference_bin(companded)


def reference_action(value: float) -> int:
    return 32000 + reference_bin(value)


def neighbours(values, ulps=3):
    """The float32 nearest to each value and ``ulps`` more on either side."""
    found = [np.asarray(values, np.float64).astype(np.float32)]
    for direction in (np.float32(-np.inf), np.float32(np.inf)):
        at = found[0]
        for _ in range(ulps):
            at = np.nextafter(at, direction)
            found.append(at)
    return np.concatenate(found)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_golden_table(dtype):
    values = [value for value, _, _ in GOLDEN]
    assert observation_ids(values, dtype).ravel().tolist() == [observation for _, observation, _ in GOLDEN]
    assert action_ids(values, dtype=dtype).ravel().tolist() == [action for _, _, action in GOLDEN]


def test_every_neighbour_of_every_edge_as_in_float64():
    bounds = np.arange(1, 1024) / 512 - 1
    for values in (neighbours(expand(bounds)), neighbours(np.float32([0.0, 256.0, -256.0, 1.0, -1.0]), ulps=50)):
        expected = [reference_observation(float(value)) for value in values]
        assert observation_ids(values).ravel().tolist() == expected
    values = neighbours(bounds)
    assert action_ids(values).ravel().tolist() == [reference_action(float(value)) for value in values]
    values = neighbours(3.0 * bounds - 1.0)
    expected = [reference_action((float(value) + 1.0) / 3.0) for value in values]
    assert action_ids(values, ((-4.0, 2.0),)).ravel().tolist() == expected


def test_a_sample_of_all_float32_as_in_float64():
    values = np.arange(0, 2**32, 1499, dtype=np.uint64).astype(np.uint32).view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], neighbours([0.0], ulps=200)])
    expected = np.minimum(np.floor((np.clip(compand(values), -1, 1) + 1) * 512), 1023) + 32000
    assert np.array_equal(observation_ids(values).ravel(), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64, np.bool_])
def test_other_dtypes(dtype):
    values = np.array([0, 1, 1, 0], dtype) if dtype == np.bool_ else np.array([0, 1, 7, 100], dtype)
    assert observation_ids(values, dtype).ravel().tolist() == [reference_observation(float(value)) for value in values]
    assert action_ids(values, dtype=dtype).ravel().tolist() == [reference_action(float(value)) for value in values]


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.sampled_from([np.float32, np.float64])
)
def test_observations_round_trip_within_half_a_bin(values, dtype):
    with np.errstate(over="ignore"):
        stored = np.clip(np.array(values, dtype), np.finfo(dtype).min, np.finfo(dtype).max)
    decoded = decode_observation(observation_ids(stored, dtype))
    clipped = compand(np.clip(stored, -256, 256))
    assert np.abs(compand(decoded).ravel() - clipped).max() <= 1 / 1024 + ROUNDING


@given(st.lists(st.floats(-3, 3, width=32), min_size=1))
def test_actions_round_trip_within_half_a_bin(values):
    decoded = decode_action(action_ids(values), scale=UNIT)
    assert np.abs(decoded.ravel() - np.clip(values, -1, 1)).max() <= 1 / 1024 + ROUNDING


@given(st.lists(st.tuples(st.floats(-2, 2, width=32), st.floats(0, 10, width=32)), min_size=1))
def test_actions_come_back_in_their_own_units(values):
    pairs = ((-2.0, 2.0), (0.0, 10.0))
    decoded = decode_action(action_ids(values, pairs), scale=ActionRange.of(pairs, 2))
    assert (np.abs(decoded - np.array(values)) <= np.array([2.0, 5.0]) / 1024 + ROUNDING).all()


def test_a_centred_decode_of_zero():
    assert decode_action(np.array([[32512]], np.uint16), scale=UNIT).tolist() == [[1 / 1024]]
    assert decode_observation(np.array([[32512]], np.uint16))[0, 0] == pytest.approx((25601 ** (1 / 1024) - 1) / 100)


def test_one_range_for_each_component():
    assert action_ids([[1.0, 5.0], [2.0, 10.0]], ((-2.0, 2.0), (0.0, 10.0))).tolist() == [
        [32768, 32512],
        [33023, 33023],
    ]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (((0.0, 1.0), (0.0, 1.0)), "field action has 3 components and 2 ranges"),
        (((1.0, 1.0),), "must be finite with low < high"),
        (((0.0, math.inf),), "must be finite with low < high"),
    ],
)
def test_ranges_that_do_not_fit(pairs, message):
    with pytest.raises(ConfigError, match=message):
        ActionRange.of(pairs, 3, path="action")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("value", "name"), [(math.nan, "NaN"), (-math.nan, "NaN"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_what_is_not_finite_is_named(dtype, value, name):
    values = np.zeros((20_000, 3), dtype)
    values[12, 1] = values[19_999, 2] = value
    for encode, path in ((observation_ids, "observation/x"), (action_ids, "action")):
        with pytest.raises(RejectedError) as error:
            encode(values, dtype=dtype)
        assert (error.value.reason, error.value.detail) == ("not_finite", f"field {path} is {name} at step 12")


def test_arrays_larger_than_a_block_and_not_contiguous():
    values = np.random.default_rng(0).normal(size=(3000, 80)).astype(np.float32)[::2, ::-2]
    expected = np.concatenate([observation_ids(row[None].copy()) for row in values])
    assert np.array_equal(observation_ids(values), expected)
    assert observation_ids(np.zeros((0, 4), np.float32)).shape == (0, 4)
    assert observation_ids(np.zeros((3, 0), np.float32)).shape == (3, 0)


def test_byte_order_does_not_matter():
    assert observation_ids(np.array([0.1, -1.0]), ">f4").ravel().tolist() == [32632, 32279]


@pytest.mark.parametrize("wrong", [31999, 33024])
def test_an_id_of_no_bin_is_refused(wrong):
    for decode in (
        lambda ids: decode_observation(ids, path="x"),
        lambda ids: decode_action(ids, scale=UNIT, path="x"),
    ):
        with pytest.raises(ValueError, match=f"field x has id {wrong}"):
            decode(np.array([[32000, wrong]], np.uint16))


def test_values_outside_their_range_are_counted():
    one = np.float32(1)
    values = np.array([0.0, 1.0, np.nextafter(one, np.float32(2)), 1.001, -1.5, 7.0], np.float32)
    assert count_outside(values, None) == 3
    assert count_outside(values, ((-2.0, 2.0),)) == 1
    assert count_outside(values.reshape(3, 2), ((-1.0, 1.0), (-2.0, 8.0))) == 1
    assert count_outside(np.array([np.float32(0.1)]), ((-0.1, 0.1),)) == 0
    assert count_outside(np.zeros((0, 3)), None) == 0
