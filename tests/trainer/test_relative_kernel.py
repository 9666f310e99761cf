"""The kernels, interpreted, against relative attention written with a gather, in float64."""

import json
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from gatokit.trainer.relative_kernel import Kernel, attend

COMPILED = """
import json, re
from math import prod
from gatokit.cli.train import tpu_slice
import jax, jax.numpy as jnp
from gatokit.trainer.relative_kernel import attend

def total(*arrays):
    return attend(*arrays, target="tpu").astype(jnp.float32).sum()

for topology in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
    device = tpu_slice(topology)[1][0]
    place = jax.sharding.SingleDeviceSharding(device)
    whole, distances = (8, 1024, 16, 128), (1024, 16, 128)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape in (*[whole] * 4, distances)]
    private = jax.ShapeDtypeStruct((8, 1024), jnp.int32, sharding=place)
    compiled = jax.jit(jax.grad(total, (0, 1, 2, 3, 4))).lower(*arrays, private).compile()
    # Results, and operands by their layouts: (bf16[8,…]{…}, …) custom-call(…), operand_layout_constraints={bf16[…}, …
    shape = re.compile(r"(bf16|f32|s32)\\[([0-9,]+)\\]")
    calls = [line for line in compiled.as_text().splitlines() if "tpu_custom_call" in line]
    kernels = [shape.findall(line.partition("backend_config")[0]) for line in calls]
    accessed = [sum((2 + 2 * (kind != "bf16")) * prod(map(int, n.split(","))) for kind, n in each) for each in kernels]
    largest = max(prod(map(int, size.split(","))) for _, size in shape.findall(compiled.as_text()))
    print(json.dumps([topology, largest, accessed]))
"""


def inputs(length: int, dtype: object = np.float32, *, rows: int = 2, heads: int = 2, size: int = 8) -> list[jax.Array]:
    """Content, keys, values, position, distances, and what pulls at the result."""
    random = np.random.default_rng(length)
    whole, distances = (rows, length, heads, size), (length, heads, size)
    return [jnp.asarray(random.normal(size=shape), dtype) for shape in (*[whole] * 4, distances, whole)]


def private_numbers(length: int, kind: str) -> np.ndarray | None:
    """Packed documents in the first row, hidden actions in the second."""
    if kind == "all":
        return None
    numbers = np.random.default_rng(3).integers(0, 3, (2, length))
    numbers[0] = 1 + np.arange(length) * 3 // length
    return numbers


def expected(arrays: list[jax.Array], private: np.ndarray | None, *, relative: bool) -> list[np.ndarray]:
    """The result and the gradients in float64, by XLA, with a key of each distance taken by its number."""
    with jax.enable_x64(True):
        *given, pull = (jnp.asarray(np.asarray(array, np.float64)) for array in arrays)
        length, size = given[0].shape[1], given[0].shape[3]
        distance = np.arange(length)[:, None] - np.arange(length)
        visible = (distance >= 0)[None]
        if private is not None:
            visible = visible & ((private[:, None] == 0) | (private[:, None] == private[:, :, None]))

        def total(content, keys, values, position, distances):
            scores = jnp.einsum("bthk,bshk->bhts", content, keys)
            if relative:
                of_distance = distances[::-1][np.maximum(distance, 0)]
                scores += jnp.einsum("bthk,tshk->bhts", position, of_distance)
            weights = jax.nn.softmax(jnp.where(visible[:, None], scores / size**0.5, -jnp.inf), axis=-1)
            found = jnp.einsum("bhts,bshk->bthk", weights, values)
            return (found * pull).sum(), found

        gradients, found = jax.grad(total, (0, 1, 2, 3, 4), has_aux=True)(*given)
        return [np.asarray(array) for array in (found, *gradients)]


def found(arrays: list[jax.Array], private: np.ndarray | None, *, relative: bool, target: str, side: int) -> list:
    def total(content, keys, values, position, distances):
        pair = (position, distances) if relative else (None, None)
        numbers = None if private is None else jnp.asarray(private)
        result = attend(content, keys, values, *pair, numbers, target=target, side=side, interpret=True)
        return (result.astype(jnp.float32) * arrays[5].astype(jnp.float32)).sum(), result

    gradients, result = jax.jit(jax.grad(total, (0, 1, 2, 3, 4), has_aux=True))(*arrays[:5])
    return [np.asarray(array, np.float64) for array in (result, *gradients)]


@pytest.mark.parametrize("target", ["tpu", "gpu"])
def test_the_skew_moves_each_row_by_its_number_and_back(target: str) -> None:
    kernel, tile = Kernel(target, 8, True), np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    moved = jax.jit(kernel.skew)(tile)
    np.testing.assert_array_equal(moved, np.stack([np.roll(row, i + 1) for i, row in enumerate(tile)]))
    np.testing.assert_array_equal(jax.jit(partial(kernel.skew, undo=True))(moved), tile)


@pytest.mark.parametrize("target", ["tpu", "gpu"])
@pytest.mark.parametrize(
    ("length", "side", "kind", "relative"),
    [
        (11, 4, "numbers", True),
        (11, 4, "numbers", False),
        pytest.param(16, 4, "all", True, marks=pytest.mark.slow),
        pytest.param(3, 4, "numbers", True, marks=pytest.mark.slow),
        pytest.param(40, 8, "numbers", True, marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients(target: str, length: int, side: int, kind: str, relative: bool) -> None:
    arrays, private = inputs(length), private_numbers(length, kind)
    for one, other in zip(
        found(arrays, private, relative=relative, target=target, side=side),
        expected(arrays, private, relative=relative),
        strict=True,
    ):
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


@pytest.mark.parametrize("target", ["tpu", "gpu"])
def test_bfloat16_keeps_to_its_rounding(target: str) -> None:
    arrays, private = inputs(11, jnp.bfloat16), private_numbers(11, "numbers")
    for one, other in zip(
        found(arrays, private, relative=True, target=target, side=4),
        expected(arrays, private, relative=True),
        strict=True,
    ):
        assert np.abs(one - other).max() <= 2.0**-7 * np.abs(other).max()


@pytest.mark.tpu
def test_it_compiles_for_tpus_without_an_array_of_scores() -> None:
    """A layer of 1.2b, 8 x 1,024 tokens, forward and backward; in a process of its own, since libtpu reads its
    environment once."""
    run = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert [topology for topology, *_ in found] == ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"]
    for _, largest, accessed in found:
        assert largest == 8 * 1024 * 16 * 128 < 8 * 16 * 1024 * 1024
        assert len(accessed) == 2, found
        assert 4e8 < sum(accessed) < 6e8


def test_it_lowers_for_gpus() -> None:
    """The compiler of a GPU's kernels, Triton, takes all four; whether they run there, no CPU can say."""
    arrays = [jax.ShapeDtypeStruct((2, 100, 2, 16), jnp.bfloat16)] * 4
    given = *arrays, jax.ShapeDtypeStruct((100, 2, 16), jnp.bfloat16), jax.ShapeDtypeStruct((2, 100), jnp.int32)

    def total(*arrays: jax.Array) -> jax.Array:
        return attend(*arrays, target="gpu").astype(jnp.float32).sum()

    gpu = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=gpu)
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = jax.jit(jax.grad(total, (0, 1, 2, 3, 4))).trace(*given).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("gpu$xla.gpu.triton") == 4
