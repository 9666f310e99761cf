"""The relative shift, the choice of a backend, and the backends against each other as far as a CPU goes."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gatokit.trainer import attention
from gatokit.trainer.attention import attend, choose

PLAIN = {
    "platform": "cpu",
    "length": 256,
    "head_size": 64,
    "dtype": "bfloat16",
    "relative": False,
    "restricted": False,
}
V5E = "TPU v5 lite"


def chosen(backend, changes):
    """The backend for queries and keys as in ``PLAIN``, but for ``changes``."""
    case = PLAIN | changes
    queries = jax.ShapeDtypeStruct((2, case["length"], 4, case["head_size"]), case["dtype"])
    return choose(backend, case["platform"], queries, relative=case["relative"], restricted=case["restricted"])


def test_shift_literally():
    """Distances 2, 1, 0 in columns; two queries at the last two of three keys."""
    by_distance = np.array([[12, 11, 10], [22, 21, 20]])
    found = np.asarray(attention.shift(jnp.asarray(by_distance)))
    assert found[0, :2].tolist() == [11, 10]
    assert found[1].tolist() == [22, 21, 20]


@pytest.mark.parametrize(("queries", "memory"), [(1, 0), (1, 4), (5, 0), (4, 3), (3, 4)])
def test_shift_moves_each_score_to_its_key(queries, memory):
    keys = queries + memory
    by_distance = np.random.default_rng(0).normal(size=(2, queries, keys)).astype(np.float32)
    found = np.asarray(attention.shift(by_distance))
    for query in range(queries):
        for key in range(memory + query + 1):
            distance = memory + query - key
            np.testing.assert_array_equal(found[:, query, key], by_distance[:, query, keys - 1 - distance])


@pytest.mark.parametrize(
    ("backend", "changes", "expected"),
    [
        ("auto", {}, "xla"),
        ("auto", {"platform": "gpu"}, "cudnn"),
        ("auto", {"platform": "gpu", "dtype": "float32"}, "xla"),
        ("auto", {"platform": "gpu", "relative": True}, "xla"),
        ("auto", {"platform": "gpu", "restricted": True}, "xla"),
        ("auto", {"platform": V5E}, "splash"),
        ("auto", {"platform": "TPU v3"}, "xla"),
        ("auto", {"platform": V5E, "length": 200}, "xla"),
        ("auto", {"platform": V5E, "restricted": True}, "kernel"),
        ("auto", {"platform": V5E, "relative": True}, "kernel"),
        ("auto", {"platform": V5E, "relative": True, "length": 4097}, "xla"),
        ("auto", {"platform": "TPU v4", "relative": True}, "xla"),
        ("auto", {"relative": True}, "xla"),
        ("kernel", {"platform": "gpu", "restricted": True, "length": 4097}, "kernel"),
        ("xla", {"platform": "gpu"}, "xla"),
        ("cudnn", {"platform": "gpu", "relative": True, "restricted": True}, "cudnn"),
        ("splash", {"platform": "TPU v6 lite"}, "splash"),
    ],
)
def test_choice(backend, changes, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen(backend, changes) == expected


@pytest.mark.parametrize(
    ("backend", "changes", "reason"),
    [
        ("cudnn", {}, "it needs a GPU, and this is cpu"),
        ("cudnn", {"platform": "gpu", "dtype": "float32"}, "it needs precision bfloat16, not float32"),
        ("cudnn", {"platform": "gpu", "head_size": 20}, "it needs heads of a multiple of 8 up to 128, not 20"),
        ("cudnn", {"platform": "gpu", "length": 255, "relative": True}, "it needs an even context"),
        ("splash", {"platform": "TPU v3"}, "it needs a TPU of generation 4 or later, and this is TPU v3"),
        ("splash", {"platform": V5E, "relative": True}, "it needs rotary positions"),
        ("splash", {"platform": V5E, "restricted": True}, "it cannot hide actions or pack documents"),
        ("splash", {"platform": V5E, "length": 96}, "it needs a context of a multiple of 128, not 96"),
        ("kernel", {}, "it needs a GPU or a TPU of generation 5 or later, not cpu"),
        ("kernel", {"platform": "gpu", "head_size": 20}, "it needs heads of 16, 32, 64 or 128, not 20"),
        ("kernel", {"platform": "gpu", "dtype": "float32"}, "it needs precision bfloat16 on GPUs, not float32"),
        ("kernel", {"platform": V5E, "length": 5000}, "it needs a context up to 4096 on TPUs, not 5000"),
    ],
)
def test_a_backend_that_cannot_be_had_is_replaced_with_one_warning(backend, changes, reason):
    attention._warn.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [chosen(backend, changes) for _ in range(2)] == ["xla", "xla"]
    assert [str(item.message).startswith(f"attention {backend} is replaced by xla: {reason}") for item in caught] == [
        True
    ]


def arrays(*shapes, dtype=np.float32):
    random = np.random.default_rng(1)
    return [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]


def test_rotations_show_distances_only():
    queries, keys = arrays((1, 4, 2, 8), (1, 4, 2, 8))

    def scores(first):
        places = jnp.arange(first, first + 4)
        return np.einsum("bthk,bshk->bhts", attention.rotate(queries, places), attention.rotate(keys, places))

    np.testing.assert_allclose(scores(0), scores(1000), atol=1e-3)
    np.testing.assert_array_equal(attention.rotate(queries, jnp.arange(4))[:, 0], queries[:, 0])


def test_splash_agrees_with_xla():
    """The TPU's kernel, interpreted."""
    queries, keys, values, pull = arrays(*[(1, 128, 1, 8)] * 4)

    def both(function):
        return jax.jit(jax.value_and_grad(lambda *a: (function(*a) * pull).sum(), (0, 1, 2)))(queries, keys, values)

    found = both(partial(attention._splash, interpret=True))
    expected = both(lambda q, k, v: attend(q, k, v, backend="xla"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_cudnn_agrees_with_xla(positions, restricted):
    """Values, dQ, dK, dV, and with relative positions the gradients that come through the bias."""
    rows, length, heads, size = 4, 256, 4, 64
    *inputs, pull = arrays(*[(rows, length, heads, size)] * 4, dtype=jnp.bfloat16)
    if positions == "relative":
        inputs += arrays((rows, length, heads, size), (length, heads, size), dtype=jnp.bfloat16)
    private = np.random.default_rng(2).integers(0, 3, (rows, length))

    def both(backend):
        def total(queries, keys, values, of_positions=None, distances=None):
            numbers = jnp.asarray(private) if restricted else None
            found = attend(queries, keys, values, of_positions, distances, numbers, backend)
            return (found * pull).sum(dtype=jnp.float32)

        gradients = jax.jit(jax.grad(total, tuple(range(len(inputs)))))(*inputs)
        return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(gradients)]

    for found, expected in zip(both("cudnn"), both("xla"), strict=True):
        assert np.abs(found - expected).mean() < 0.02 * np.abs(expected).mean()
