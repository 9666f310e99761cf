"""The table of parameters: counts, initial values, and dimensions that mesh axes divide."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gatokit.schemas.run import SIZES, ModelConfig
from gatokit.trainer import model

SMALL = ModelConfig(layers=2, width=64, heads=2, head_size=8, hidden=64)


@pytest.mark.parametrize(
    ("size", "expected", "published"),
    [
        ("tiny", 5_101_952, None),
        ("79m", 78_366_976, 79e6),
        ("364m", 364_312_576, 364e6),
        ("1.2b", 1_177_932_288, 1.18e9),
    ],
)
def test_counts(size, expected, published):
    found = model.count(model.parameter_table(ModelConfig(size=size), 33_025))
    assert found == expected
    assert published is None or abs(found / published - 1) < 0.015


def test_what_an_option_adds():
    def of(vocabulary=33_025, **options):
        return model.count(model.parameter_table(ModelConfig(size="79m", **options), vocabulary))

    assert of() - of(positions="rotary") == 8 * (768 * 768 + 2 * 768)
    assert of(34_049) - of() == 1024 * 768


def test_patch_block_is_below_a_million():
    table = model.parameter_table(ModelConfig(size="364m"), 33_025)["patches"]
    assert model.count({name: part for name, part in table.items() if name not in ("row", "column")}) == 862_720


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_axes_divide_what_they_name(size, positions):
    table = model.parameter_table(ModelConfig(size=size, positions=positions), 33_025)
    for parameter in jax.tree.leaves(table):
        assert len(parameter.spec) <= len(parameter.shape)
        for axis, dimension in zip(parameter.spec, parameter.shape, strict=False):
            assert dimension % {None: 1, "fsdp": 128, "tensor": 4}[axis] == 0
    large = [parameter for parameter in jax.tree.leaves(table) if np.prod(parameter.shape) > 512 * 2048]
    assert all("fsdp" in parameter.spec for parameter in large)


def test_specs_and_decay():
    table = model.parameter_table(SMALL, 300)
    assert table["embedding"]["token"].spec == PartitionSpec("tensor", "fsdp")
    assert table["layers"]["feed_forward"]["in"].spec == PartitionSpec(None, "fsdp", None, "tensor")
    leaves = jax.tree_util.tree_leaves_with_path(table)
    assert {"/".join(key.key for key in path) for path, parameter in leaves if parameter.std == 0} == {
        "layers/attention/content_bias",
        "layers/attention/position_bias",
        *(f"layers/{name}/{part}" for name in ("attention_norm", "feed_forward_norm") for part in ("scale", "bias")),
        *(f"patches/{name}/{part}" for name in ("norm_1", "norm_2") for part in ("scale", "bias")),
        "patches/stem_bias",
        "norm/scale",
        "norm/bias",
    }


def test_initial_values_follow_from_seed_and_path():
    table = model.parameter_table(SMALL, 300)
    query, key = (table["layers"]["attention"][name] for name in ("query", "key"))
    together = jax.jit(lambda: model.initialize({"attention": {"query": query, "key": key}}, 3))()["attention"]
    alone = model.initialize({"attention": {"key": key}}, 3)["attention"]
    np.testing.assert_array_equal(alone["key"], together["key"])
    assert (np.asarray(together["query"]) != together["key"]).all()
    other = model.initialize({"attention": {"key": key}}, 4)["attention"]
    assert (np.asarray(other["key"]) != alone["key"]).all()


def test_initial_values():
    table = model.parameter_table(SMALL, 300)
    found = model.initialize({"token": table["embedding"]["token"], "norm": table["norm"]}, 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    token = np.asarray(found["token"])
    assert token.shape == (512, 64)
    assert (token[300:] == 0).all()
    assert token[:300].std() == pytest.approx(0.125, rel=0.02)
    np.testing.assert_array_equal(found["norm"]["scale"], np.ones(64))
    np.testing.assert_array_equal(found["norm"]["bias"], np.zeros(64))


def test_a_seed_of_32_bits():
    table = {"a": model.Parameter((2,), std=1.0)}
    largest = np.asarray(model.initialize(table, 2**32 - 1)["a"])
    assert np.isfinite(largest).all()
    assert (largest != np.asarray(model.initialize(table, 0)["a"])).all()


@pytest.mark.parametrize("seed", [1, 6])
def test_no_draw_is_infinite(seed: int) -> None:
    """Of four million draws some are the outermost that 32 bits give."""
    table = {"embedding": {"token": model.Parameter((33_280, 128), std=1.0)}}
    values = np.asarray(model.initialize(table, seed)["embedding"]["token"])
    assert 5 < np.abs(values).max() < 5.4
    assert abs(values.std() - 1) < 1e-3
