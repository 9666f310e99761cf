"""The network once more, from its definitions: NumPy, float64, a loop for every sum over positions; and its windows."""

import numpy as np

from gatokit.loader.batch import NO_TOKEN, Batch
from gatokit.schemas.run import ModelConfig
from gatokit.schemas.tokens import NO_POSITION, TokenKind

TINY = {"layers": 2, "width": 32, "heads": 2, "head_size": 8, "hidden": 48}
RELATIVE = ModelConfig(**TINY, stochastic_depth=0)
ROTARY = ModelConfig(**TINY | {"width": 64}, positions="rotary", stochastic_depth=0)
"""Of these widths the patch blocks have strides 4 and 2."""
VOCABULARY = 33_025

T, P, D, C, S = TokenKind.TEXT, TokenKind.IMAGE, TokenKind.DISCRETE, TokenKind.CONTINUOUS, TokenKind.SEPARATOR
DA, CA = TokenKind.DISCRETE_ACTION, TokenKind.CONTINUOUS_ACTION
N = NO_POSITION
# (kind, id, position, hidden, private)
HIDDEN_EPISODE = [
    (P, 0, 0, 0, 0), (P, 0, 1, 0, 0), (D, 7, 2, 0, 0), (C, 32_100, 3, 0, 0), (S, 33_024, N, 0, 0),
    (DA, 5, N, 0, 1), (DA, 6, N, 0, 1), (DA, 0, N, 1, 0),
    (P, 0, 0, 0, 0), (P, 0, 1, 0, 0), (D, 7, 2, 0, 0), (C, 32_900, 3, 0, 0), (S, 33_024, N, 0, 0),
    (DA, 2, N, 0, 2), (DA, 2, N, 0, 2), (DA, 0, N, 1, 0),
    (P, 0, 0, 0, 0), (P, 0, 1, 0, 0),
]  # fmt: skip
DOCUMENT = [(P, 0, N, 0, 0), (P, 0, N, 0, 0), (T, 5, N, 0, 0), (T, 31_999, N, 0, 0), (P, 0, N, 0, 0), (T, 9, N, 0, 0)]
EPISODE = [
    (CA, 32_512, N, 0, 0), (T, 5, 0, 0, 0), (T, 17, 1, 0, 0), (C, 33_023, 2, 0, 0), (S, 33_024, N, 0, 0),
    (CA, 32_000, N, 0, 0), (CA, 32_512, N, 0, 0), (T, 5, 0, 0, 0), (T, 3, 1, 0, 0), (C, 32_511, 7, 0, 0),
]  # fmt: skip
ROWS = [HIDDEN_EPISODE, DOCUMENT, EPISODE, DOCUMENT[2:4]]
"""Two groups of two rows; the second has no patches."""
LENGTH = 18
SLOTS = 10


def batch_of(rows: list[list[tuple[int, ...]]], length: int = LENGTH, *, groups: int = 2, slots: int = SLOTS) -> Batch:
    """Windows of the given tokens, with random pixels and places in their images."""
    random = np.random.default_rng(7)
    count = len(rows)
    fields = np.zeros((5, count, length), np.int64)
    for row, tokens in enumerate(rows):
        if tokens:
            fields[:, row, : len(tokens)] = np.array(tokens).T
    kinds, tokens, positions, hidden, private = fields
    patch_token = np.full((groups, slots), NO_TOKEN, np.int32)
    for group, part in enumerate(np.split(kinds == TokenKind.IMAGE, groups)):
        places = np.flatnonzero(part)
        patch_token[group, : len(places)] = places
    used = (patch_token != NO_TOKEN)[..., None, None, None]
    return Batch(
        tokens=tokens.astype(np.uint16),
        kinds=kinds.astype(np.uint8),
        positions=positions.astype(np.uint16),
        hidden=hidden.astype(bool),
        private=private.astype(np.uint16),
        targets=np.zeros((count, length), np.uint16),
        target_kinds=np.zeros((count, length), np.uint8),
        first_action=np.zeros((count, length), bool),
        dataset=np.zeros(count, np.int32),
        redrawn=np.full(count, -1, np.int32),
        unusable=np.zeros(count, np.int32),
        patches=(random.integers(0, 256, (groups, slots, 16, 16, 3)) * used).astype(np.uint8),
        patch_token=patch_token,
        patch_row=random.integers(0, 128, (groups, slots)).astype(np.uint8),
        patch_column=random.integers(0, 128, (groups, slots)).astype(np.uint8),
    )


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, norm):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * norm["scale"] + norm["bias"]


def group_norm(image, norm):
    """32 groups of consecutive channels, over the whole picture."""
    out = np.empty_like(image)
    for channels in np.split(np.arange(image.shape[2]), 32):
        part = image[:, :, channels]
        out[:, :, channels] = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
    return out * norm["scale"] + norm["bias"]


def convolve(image, kernel, stride):
    side = image.shape[0]
    padded = np.zeros((side + 2, side + 2, image.shape[2]))
    padded[1:-1, 1:-1] = image
    out = np.zeros((side // stride, side // stride, kernel.shape[3]))
    for row in range(side // stride):
        for column in range(side // stride):
            window = padded[row * stride : row * stride + 3, column * stride : column * stride + 3]
            out[row, column] = np.tensordot(window, kernel, 3)
    return out


def average(image, side):
    cells = [np.split(rows, side, axis=1) for rows in np.split(image, side, axis=0)]
    return np.array([[cell.mean((0, 1)) for cell in row] for row in cells])


def patch_vector(p, pixels, row, column, stride):
    x = (pixels / 255 * 2 - 1) / np.sqrt(16)
    x = x @ p["stem"] + p["stem_bias"]
    y = convolve(gelu(group_norm(x, p["norm_1"])), p["convolution_1"], stride)
    y = convolve(gelu(group_norm(y, p["norm_2"])), p["convolution_2"], 1)
    x = average(x, 16 // stride) + y
    cells = average(x, 4) @ p["reduce"]
    width = p["row"].shape[1]
    return cells.reshape(-1) @ p["out"] + np.sqrt(width) * (p["row"][row] + p["column"][column])


def embed(p, batch, config):
    rows, length = batch.kinds.shape
    tables, x = p["embedding"], np.zeros((*batch.kinds.shape, config.width))
    for b in range(rows):
        for t in range(length):
            kind, position = batch.kinds[b, t], batch.positions[b, t]
            if kind == 0:
                continue
            if batch.hidden[b, t]:
                x[b, t] += tables["hidden_action"]
            elif kind != TokenKind.IMAGE:
                x[b, t] += tables["token"][batch.tokens[b, t]]
            if kind in (TokenKind.DISCRETE_ACTION, TokenKind.CONTINUOUS_ACTION):
                x[b, t] += tables["action_position"]
            elif position != NO_POSITION:
                x[b, t] += tables["observation_position"][position]
    x *= np.sqrt(config.width)
    groups, slots = batch.patch_token.shape
    for g in range(groups):
        for slot in range(slots):
            place = batch.patch_token[g, slot]
            if place >= 0:
                b, t = g * rows // groups + place // length, place % length
                index = (g, slot)
                x[b, t] += patch_vector(
                    p["patches"], batch.patches[index], batch.patch_row[index], batch.patch_column[index],
                    config.patch_stride,
                )  # fmt: skip
    return x


def sees(batch, b, query, key, hide):
    private = batch.private[b]
    return key <= query and (not hide or private[key] == 0 or private[key] == private[query])


def sinusoid(distance, width):
    frequencies = [10_000.0 ** (-2 * i / width) for i in range(width // 2)]
    return np.array([np.sin(distance * f) for f in frequencies] + [np.cos(distance * f) for f in frequencies])


def turn(vector, position):
    """Rotary: element i and element i + K/2 as a complex number, turned."""
    half = len(vector) // 2
    angle = position * 10_000.0 ** (-2 * np.arange(half) / len(vector))
    turned = (vector[:half] + 1j * vector[half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag])


def attention(p, x, batch, b, config, hide):
    length, size = len(x), config.head_size
    added = np.zeros_like(x)
    for head in range(config.heads):
        q, k, v = (x @ p[name][:, head] for name in ("query", "key", "value"))
        for i in range(length):
            keys = [j for j in range(length) if sees(batch, b, i, j, hide)]
            if config.positions == "relative":
                u, w = p["content_bias"][head], p["position_bias"][head]
                r = {j: sinusoid(i - j, config.width) @ p["relative"][:, head] for j in keys}
                scores = np.array([(q[i] + u) @ k[j] + (q[i] + w) @ r[j] for j in keys]) / np.sqrt(size)
            else:
                scores = np.array([turn(q[i], i) @ turn(k[j], j) for j in keys]) / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            taken = weights / weights.sum() @ v[keys]
            added[i] += taken @ p["out"][head]
    return added


def hidden(p, batch, config, *, hide):
    """The final hidden states (B, L, D), float64."""
    x = embed(p, batch, config)
    for n in range(config.layers):
        layer = {name: {key: value[n] for key, value in part.items()} for name, part in p["layers"].items()}
        for b in range(len(x)):
            normed = np.array([layer_norm(vector, layer["attention_norm"]) for vector in x[b]])
            x[b] += attention(layer["attention"], normed, batch, b, config, hide)
            for t in range(len(x[b])):
                normed = layer_norm(x[b, t], layer["feed_forward_norm"])
                gate, value = normed @ layer["feed_forward"]["in"][:, 0], normed @ layer["feed_forward"]["in"][:, 1]
                x[b, t] += (gelu(gate) * value) @ layer["feed_forward"]["out"]
    return np.array([[layer_norm(vector, p["norm"]) for vector in row] for row in x])
