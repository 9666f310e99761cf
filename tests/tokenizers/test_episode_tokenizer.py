"""Whole episodes against literals, and against a plain tokenizer that works on one step and one value at a time."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.schemas.manifest import EpisodeSpec, FieldSpec, ImageSpec, TokenizerSettings
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import EncodedImage, PlacedImage, TokenSequence
from gatokit.tokenizers.episode import EpisodeTokenizer

NONE = 65535
SETTINGS = TokenizerSettings.of(0)
TEXT, IMAGE, DISCRETE, CONTINUOUS, SEPARATOR, DISCRETE_ACTION, CONTINUOUS_ACTION = range(1, 8)


def field(path, kind, shape=(), dtype=None, **options):
    defaults = {"continuous": "float32", "discrete": "int64", "text": "str", "image": "uint8"}
    return FieldSpec(path=path, kind=kind, shape=shape, dtype=dtype or defaults[kind], **options)


def image_field(path, height, width):
    return field(path, "image", (height, width, 3), image=ImageSpec(height=height, width=width))


def episode(steps, **values):
    keyed = {path.replace("__", "/"): value for path, value in values.items()}
    return keyed, steps


# --- literals ---------------------------------------------------------------------------------------------------


def test_a_complete_episode():
    spec = EpisodeSpec.ordered(
        [
            field("action", "continuous", (2,), range=((-2.0, 2.0),)),
            field("observation/state", "continuous", (2, 1)),
            field("observation/camera", "image", (16, 32, 3), image=ImageSpec(height=16, width=32)),
            field("observation/open", "discrete", dtype="bool"),
        ]
    )
    images = [EncodedImage(b"first", 16, 32), EncodedImage(b"second", 16, 32)]
    given_episode = episode(
        2,
        observation__state=np.float32([[[0.0], [1.0]], [[0.1], [-1.0]]]),
        observation__camera=images,
        observation__open=np.array([True, False]),
        action=np.float32([[2.0, 0.0], [0.2, -7.0]]),
    )
    tokenizer = EpisodeTokenizer(spec, SETTINGS)
    found = tokenizer.encode(*given_episode)
    assert found.tokens.dtype == np.uint16
    assert found.tokens.tolist() == [
        *[65535, 65535, 1, 32512, 32744, 33024, 33023, 32512],
        *[65535, 65535, 0, 32632, 32279, 33024, 32563, 32000],
    ]
    assert found.kinds.dtype == np.uint8
    assert found.kinds.tolist() == [2, 2, 3, 4, 4, 5, 7, 7] * 2
    assert found.positions.dtype == np.uint16
    assert found.positions.tolist() == [0, 1, 2, 3, 4, NONE, NONE, NONE] * 2
    assert found.step_begin.dtype == np.uint32
    assert found.step_begin.tolist() == [0, 8]
    assert found.images == [PlacedImage(0, images[0]), PlacedImage(8, images[1])]

    values = tokenizer.decode(found)
    assert list(values) == ["observation/camera", "observation/open", "observation/state", "action"]
    assert values["observation/camera"] == images
    assert values["observation/open"].dtype == np.bool_
    assert values["observation/open"].tolist() == [True, False]
    assert values["observation/state"].shape == (2, 2, 1)
    assert values["observation/state"].dtype == np.float64
    assert values["action"] == pytest.approx(np.array([[2 - 1 / 512, 1 / 512], [0.2, -2 + 1 / 512]]), abs=1 / 512)

    moved = EpisodeTokenizer(spec, TokenizerSettings.of(33024)).encode(*given_episode)
    assert moved.tokens.tolist() == [
        *[65535, 65535, 33025, 32512, 32744, 34048, 33023, 32512],
        *[65535, 65535, 33024, 32632, 32279, 34048, 32563, 32000],
    ]
    assert np.array_equal(moved.kinds, found.kinds)


def test_text_that_varies(text):
    spec = EpisodeSpec.ordered([field("action", "discrete"), field("observation/mission", "text")])
    missions = ["go to the red ball", "", "open the door"]
    found = EpisodeTokenizer(spec, SETTINGS, text).encode(
        *episode(3, observation__mission=missions, action=np.array([6, 0, 3]))
    )
    first, _, last = (text.encode(mission).tolist() for mission in missions)
    assert found.tokens.tolist() == [*first, 33024, 6, 33024, 0, *last, 33024, 3]
    assert found.kinds.tolist() == [1] * len(first) + [5, 6, 5, 6] + [1] * len(last) + [5, 6]
    assert found.step_begin.tolist() == [0, len(first) + 2, len(first) + 4]
    assert found.positions.tolist() == [
        *[*range(len(first)), NONE, NONE],
        *[NONE, NONE],
        *[*range(len(last)), NONE, NONE],
    ]


def test_keys_are_compared_component_by_component():
    spec = EpisodeSpec.ordered(
        [field(f"observation/{path}", "discrete") for path in ("b", "a-b", "a/c", "a/b", "B", "ä", "a.b/a")]
        + [field("action/z", "discrete"), field("action/y", "continuous")]
    )
    order = ["B", "a/b", "a/c", "a-b", "a.b/a", "b", "ä"]
    assert [one.path for one in spec.fields] == [*(f"observation/{path}" for path in order), "action/y", "action/z"]
    values = {f"observation/{path}": np.array([number]) for number, path in enumerate(order)}
    found = EpisodeTokenizer(spec, SETTINGS).encode(
        *episode(1, **values, action__y=np.float32([1]), action__z=np.array([9]))
    )
    assert found.tokens.tolist() == [*range(7), 33024, 33023, 9]


def test_text_fields_side_by_side_keep_their_border(text):
    spec = EpisodeSpec.ordered(
        [field(f"observation/{name}", "text") for name in "abd"]
        + [field("observation/c", "discrete"), field("action", "discrete")]
    )
    values = {"a": ["red", ""], "b": ["ball", "box"], "d": ["", "go up"]}
    tokenizer = EpisodeTokenizer(spec, SETTINGS, text)
    encoded = tokenizer.encode(
        *episode(
            2,
            observation__c=np.array([5, 6]),
            action=np.array([1, 2]),
            **{f"observation/{name}": texts for name, texts in values.items()},
        )
    )
    assert encoded.text_tokens.tolist() == [
        [len(text.encode(values[name][step])) for name in "abd"] for step in range(2)
    ]
    decoded = tokenizer.decode(encoded)
    assert {name: decoded[f"observation/{name}"] for name in "abd"} == values
    assert decoded["observation/c"].tolist() == [5, 6]
    with pytest.raises(ValueError, match="tokens of the 3 text fields of 2 steps are not counted"):
        tokenizer.decode(replace(encoded, text_tokens=None))


# --- an independent tokenizer, one step and one value at a time --------------------------------------------------


def plain_tokenize(fields, values, steps, text, discrete_offset):
    """Nested dictionaries walked by sorted key, math.log, appends."""
    tree: dict = {"observation": {}, "action": {}}
    for one in fields:
        node, keys = tree, one.path.split("/")
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = one

    def leaves(node):
        if isinstance(node, FieldSpec):
            return [node]
        return [leaf for key in sorted(node) for leaf in leaves(node[key])]

    tokens, kinds, positions, begins, images = [], [], [], [], []

    def bin_of(value):
        return min(1023, math.floor((min(1.0, max(-1.0, value)) + 1) * 512))

    def emit(one, value, step_tokens):
        if one.kind == "text":
            step_tokens += [(int(token), TEXT) for token in text.encode(value)]
        elif one.kind == "image":
            images.append((len(tokens) + len(step_tokens), value))
            step_tokens += [(65535, IMAGE)] * (value.height * value.width // 256)
        else:
            for index, number in enumerate(np.asarray(value).ravel(order="C").tolist()):
                if one.kind == "discrete":
                    step_tokens.append((int(number) + discrete_offset, DISCRETE_ACTION if one.is_action else DISCRETE))
                elif one.is_action:
                    pairs = one.range or ((-1.0, 1.0),)
                    low, high = pairs[index] if len(pairs) > 1 else pairs[0]
                    scaled = (number - (low + high) / 2) / ((high - low) / 2)
                    step_tokens.append((32000 + bin_of(scaled), CONTINUOUS_ACTION))
                else:
                    companded = math.log(abs(number) * 100 + 1) / math.log(256 * 100 + 1)
                    step_tokens.append((32000 + bin_of(math.copysign(companded, number)), CONTINUOUS))

    for step in range(steps):
        begins.append(len(tokens))
        step_tokens: list = []
        for one in leaves(tree["observation"]):
            emit(one, values[one.path][step], step_tokens)
        observed = len(step_tokens)
        step_tokens.append((34048 if discrete_offset else 33024, SEPARATOR))
        for one in leaves(tree["action"]):
            emit(one, values[one.path][step], step_tokens)
        tokens += [token for token, _ in step_tokens]
        kinds += [kind for _, kind in step_tokens]
        positions += [place if place < observed else NONE for place in range(len(step_tokens))]
    return tokens, kinds, positions, begins, images


NAMES = ["a", "a-b", "A", "b", "b.c", "z", "é"]
MISSIONS = ["", "go to the red ball", "open the door", "open the box", "pick up the key ☂"]


@st.composite
def fields_strategy(draw):
    fields = []
    bare = draw(st.integers(0, 5)) == 0
    count = 1 if bare else draw(st.integers(0, 5))
    paths = draw(
        st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2), min_size=count, max_size=count).filter(
            lambda paths: not any(a == b[: len(a)] for a, b in itertools.permutations(paths, 2))
        )
    )
    for path in [[]] if bare else paths:
        kind = draw(st.sampled_from(["text", "image", "discrete", "continuous", "continuous"]))
        fields.append(draw(field_strategy("/".join(["observation", *path]), kind)))
    for name in draw(st.sampled_from([[""], ["/x"], ["/gripper", "/arm/left", "/arm-right"]])):
        fields.append(draw(field_strategy("action" + name, draw(st.sampled_from(["discrete", "continuous"])))))
    return fields


@st.composite
def field_strategy(draw, path, kind):
    if kind == "text":
        return field(path, "text")
    if kind == "image":
        return image_field(path, draw(st.sampled_from([16, 32])), draw(st.sampled_from([16, 48])))
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    if kind == "discrete":
        dtype = draw(st.sampled_from(["bool", "uint8", "int32", "int64"]))
        return field(path, "discrete", shape, dtype, num=None if dtype == "bool" else draw(st.sampled_from([None, 7])))
    components = math.prod(shape)
    choices = [None, ((-1.0, 1.0),), ((0.0, 3.0),), tuple((-1.0 - n, 0.5 + n) for n in range(components))]
    chosen = draw(st.sampled_from(choices)) if path.startswith("action") else None
    return field(path, "continuous", shape, draw(st.sampled_from(["float16", "float32", "float64"])), range=chosen)


def random_values(one, steps, rng, text_style):
    if one.kind == "text":
        if text_style == "constant":
            return [MISSIONS[1]] * steps
        return [MISSIONS[number] for number in rng.integers(0, len(MISSIONS), steps)]
    if one.kind == "image":
        return [EncodedImage(rng.bytes(4), one.image.height, one.image.width) for _ in range(steps)]
    shape = (steps, *one.shape)
    if one.dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if one.kind == "discrete":
        return rng.integers(0, one.num or (256 if one.dtype == "uint8" else 1024), shape).astype(one.dtype)
    return (rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4, shape)).astype(one.dtype)


@settings(max_examples=250)
@given(
    fields_strategy(),
    st.integers(1, 9),
    st.integers(0, 2**32),
    st.sampled_from([0, 33024]),
    st.sampled_from(["constant", "varying"]),
)
def test_any_episode_as_the_plain_tokenizer_and_back(text, fields, steps, seed, offset, text_style):
    rng = np.random.default_rng(seed)
    values = {one.path: random_values(one, steps, rng, text_style) for one in fields}
    given_episode = episode(steps, **values)
    spec = EpisodeSpec.ordered([fields[index] for index in rng.permutation(len(fields))])
    tokenizer = EpisodeTokenizer(spec, TokenizerSettings.of(offset), text)
    found = tokenizer.encode(*given_episode)
    tokens, kinds, positions, begins, images = plain_tokenize(fields, *given_episode, text, offset)
    assert found.tokens.tolist() == tokens
    assert found.kinds.tolist() == kinds
    assert found.positions.tolist() == positions
    assert found.step_begin.tolist() == begins
    assert [(placed.token, placed.image) for placed in found.images] == images
    dtypes = [found.tokens.dtype, found.kinds.dtype, found.positions.dtype, found.step_begin.dtype]
    assert dtypes == [np.uint16, np.uint8, np.uint16, np.uint32]

    check_decoded(tokenizer.decode(found), spec, values, text)
    first = steps // 2
    chunk = {path: value[first:] for path, value in values.items()}
    check_decoded(tokenizer.decode(cut(found, first)), spec, chunk, text)


def cut(sequence: TokenSequence, first: int) -> TokenSequence:
    """The steps from ``first`` on, through a record's bytes."""
    begin = int(sequence.step_begin[first])
    part = TokenSequence(
        sequence.tokens[begin:],
        sequence.kinds[begin:],
        sequence.positions[begin:],
        sequence.step_begin[first:] - sequence.step_begin[first],
        [PlacedImage(placed.token - begin, placed.image) for placed in sequence.images if placed.token >= begin],
        None if sequence.text_tokens is None else sequence.text_tokens[first:],
    )
    steps = len(part.step_begin)
    record = Record("e", 0, 1, first, "s", part, np.zeros(steps), None, np.zeros(steps, np.uint8))
    return Record.from_bytes(record.to_bytes()).sequence


def check_decoded(decoded, spec, values, text):
    assert list(decoded) == [one.path for one in spec.fields]
    for one in spec.fields:
        found, expected = decoded[one.path], values[one.path]
        if one.kind == "text":
            assert found == [text.decode(text.encode(value)) for value in expected]
            continue
        if one.kind == "image":
            assert found == expected
            continue
        assert found.shape == expected.shape
        if one.kind == "discrete":
            assert found.dtype == (np.bool_ if one.dtype == "bool" else np.int64)
            assert np.array_equal(found, expected)
        elif one.is_action:
            low, high = np.array(one.range or ((-1.0, 1.0),)).T
            low, high = (np.broadcast_to(end, math.prod(one.shape)).reshape(one.shape) for end in (low, high))
            within = np.clip(expected.astype(np.float64), low, high)
            assert (np.abs(found - within) <= (high - low) / 2048 + 1e-12).all()
        else:
            difference = companded(found) - np.clip(companded(expected.astype(np.float64)), -1, 1)
            assert np.abs(difference).max(initial=0) <= 1 / 1024 + 1e-12


def companded(values):
    return np.copysign(np.log(np.abs(values) * 100 + 1) / math.log(25601), values)


def test_long_episodes_beyond_the_prepared_layout():
    spec = EpisodeSpec.ordered([field("observation", "continuous", (39,)), field("action", "continuous", (4,))])
    tokenizer = EpisodeTokenizer(spec, SETTINGS)
    for steps in (1, 1489, 1490, 5000):
        found = tokenizer.encode(
            *episode(steps, observation=np.zeros((steps, 39), np.float32), action=np.zeros((steps, 4), np.float32))
        )
        assert found.tokens.tolist() == ([32512] * 39 + [33024] + [32512] * 4) * steps
        assert found.positions.tolist() == ([*range(39)] + [NONE] * 5) * steps
        assert found.step_begin.tolist() == list(range(0, steps * 44, 44))
        assert len(tokenizer.decode(found)["observation"]) == steps


def test_an_episode_without_steps_is_an_empty_sequence(text):
    spec = EpisodeSpec.ordered(
        [field("observation/mission", "text"), image_field("observation/view", 16, 16), field("action", "continuous")]
    )
    found = EpisodeTokenizer(spec, SETTINGS, text).encode(
        *episode(0, observation__mission=[], observation__view=[], action=np.zeros(0, np.float32))
    )
    assert [len(found.tokens), len(found.kinds), len(found.positions), len(found.step_begin)] == [0, 0, 0, 0]


# --- errors -----------------------------------------------------------------------------------------------------

SPEC = EpisodeSpec.ordered(
    [
        field("observation/state", "continuous", (3,)),
        field("observation/door", "discrete", (2,), num=7),
        field("observation/mission", "text"),
        image_field("observation/view", 16, 32),
        field("action/arm", "continuous", (2,)),
        field("action/grip", "discrete", dtype="bool"),
    ]
)


def good_values(steps=4):
    return {
        "observation/state": np.linspace(-1, 1, steps * 3, dtype=np.float32).reshape(steps, 3),
        "observation/door": np.arange(steps * 2).reshape(steps, 2) % 7,
        "observation/mission": [MISSIONS[1 + step % 2] for step in range(steps)],
        "observation/view": [EncodedImage(bytes([step]), 16, 32) for step in range(steps)],
        "action/arm": np.zeros((steps, 2), np.float32),
        "action/grip": np.ones(steps, np.bool_),
    }


def at(values, index, value):
    changed = values.copy()
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("path", "change", "reason", "detail"),
    [
        ("observation/state", lambda v: v[:3], "wrong_shape", "has shape (3, 3), not (4, 3)"),
        ("observation/state", lambda v: v[:, :2], "wrong_shape", "has shape (4, 2), not (4, 3)"),
        ("observation/state", lambda v: v.tolist(), "wrong_shape", "is a list, not an array"),
        ("observation/state", lambda v: v.astype(complex), "wrong_shape", "is continuous and has dtype complex128"),
        ("observation/door", lambda v: v.astype(np.float32), "wrong_shape", "is discrete and has dtype float32"),
        ("observation/mission", lambda v: v[:3], "wrong_shape", "has 3 values for 4 steps"),
        ("observation/mission", lambda v: [*v[:3], b"up"], "wrong_shape", "is text and holds something else"),
        ("observation/view", lambda v: np.zeros((4, 16, 32, 3)), "wrong_shape", "is a ndarray, not a list of images"),
        ("observation/view", lambda v: v[:3], "wrong_shape", "has 3 values for 4 steps"),
        (
            "observation/view",
            lambda v: [*v[:2], EncodedImage(b"", 32, 32), v[3]],
            "wrong_shape",
            "has an image of 32 x 32 pixels at step 2, not 16 x 32",
        ),
        ("observation/state", lambda v: at(v, (2, 1), np.nan), "not_finite", "is NaN at step 2"),
        ("action/arm", lambda v: at(v, (3, 0), -np.inf), "not_finite", "is -inf at step 3"),
        ("observation/door", lambda v: at(v, (1, 1), 7), "out_of_range", "is 7 at step 1, outside 0 to 6"),
        ("observation/mission", lambda v: [*v[:3], "\ud800"], "not_utf8", "holds lone surrogates at step 3"),
    ],
)
def test_a_field_that_is_wrong_is_named(text, path, change, reason, detail):
    values = good_values()
    EpisodeTokenizer(SPEC, SETTINGS, text).encode(*episode(4, **values))
    with pytest.raises(RejectedError) as error:
        EpisodeTokenizer(SPEC, SETTINGS, text).encode(*episode(4, **values | {path: change(values[path])}))
    assert (error.value.reason, error.value.detail) == (reason, f"field {path} {detail}")


@pytest.mark.parametrize("path", good_values())
def test_a_field_that_is_absent_is_named(text, path):
    values = good_values()
    del values[path]
    with pytest.raises(RejectedError) as error:
        EpisodeTokenizer(SPEC, SETTINGS, text).encode(*episode(4, **values))
    assert (error.value.reason, error.value.detail) == ("missing_field", f"field {path} is absent")


def test_a_step_longer_than_positions_can_count_is_rejected(text):
    def tokenize(width, texts):
        spec = EpisodeSpec.ordered(
            [field("observation/x", "discrete", (width,)), field("observation/y", "text"), field("action", "discrete")]
        )
        steps = len(texts)
        return EpisodeTokenizer(spec, SETTINGS, text).encode(
            *episode(
                steps,
                observation__x=np.zeros((steps, width), np.uint8),
                observation__y=texts,
                action=np.zeros(steps, np.uint8),
            )
        )

    assert tokenize(65_534, [""]).positions[-3:].tolist() == [65_533, NONE, NONE]
    longer = 65_530 + len(text.encode(MISSIONS[1]))
    for width, texts, step, tokens in [(65_535, [""], 0, 65_535), (65_530, ["", MISSIONS[1]], 1, longer)]:
        with pytest.raises(RejectedError) as error:
            tokenize(width, texts)
        assert error.value.reason == "step_too_long"
        assert error.value.detail == f"step {step} has {tokens} observation tokens, more than 65534"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([field("observation", "discrete")], "the spec has no action field"),
        ([field("action", "text")], "field action is text: an action is discrete or continuous"),
        ([field("action", "continuous", (3,), range=((0, 1),) * 2)], "field action has 3 components and 2 ranges"),
        ([field("action", "discrete", num=0)], "field action has num 0"),
        ([field("action", "discrete"), field("observation", "text", (2,))], "field observation is text of shape"),
        ([field("action", "discrete"), field("observation", "image", (16, 16, 3))], "has no image size"),
        ([field("action", "discrete"), image_field("observation", 16, 40)], "16 x 40 pixels: both must be multiples"),
        ([field("action", "discrete"), field("observation/m", "text")], "field observation/m is text: a vocabulary"),
    ],
)
def test_a_spec_that_cannot_be_tokenized(fields, message):
    with pytest.raises(ConfigError, match=message):
        EpisodeTokenizer(EpisodeSpec.ordered(fields), SETTINGS)


def test_a_spec_out_of_order_is_refused():
    with pytest.raises(ConfigError, match="not in key order"):
        EpisodeTokenizer(EpisodeSpec(fields=(field("action", "discrete"), field("observation", "discrete"))), SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, tokens=s.tokens[:-1]), "have .* kinds"),
        (
            lambda s: replace(s, tokens=s.tokens[1:], kinds=s.kinds[1:], positions=s.positions[1:]),
            "the kinds of the sequence",
        ),
        (lambda s: replace(s, step_begin=s.step_begin[:-1]), "the kinds of|the positions of"),
        (lambda s: replace(s, step_begin=s.step_begin + 1), "do not begin"),
        (lambda s: replace(s, step_begin=s.step_begin[:0]), "do not begin"),
        (lambda s: replace(s, kinds=at(s.kinds, -1, TEXT)), "the kinds of the sequence"),
        (lambda s: replace(s, kinds=at(s.kinds, -1, SEPARATOR)), "the kinds of the sequence"),
        (lambda s: replace(s, positions=at(s.positions, 3, 9)), "the positions of the sequence"),
        (lambda s: replace(s, tokens=at(s.tokens, s.kinds == SEPARATOR, 7)), "another id than 33024"),
        (lambda s: replace(s, tokens=at(s.tokens, s.kinds == IMAGE, 7)), "another id than 65535"),
        (lambda s: replace(s, tokens=at(s.tokens, s.kinds == CONTINUOUS, 7)), "field observation/state has id 7"),
        (lambda s: replace(s, tokens=at(s.tokens, s.kinds == DISCRETE, 7)), "field observation/door has id 7"),
        (lambda s: replace(s, tokens=at(s.tokens, s.kinds == DISCRETE_ACTION, 2)), "field action/grip has id 2"),
        (lambda s: replace(s, tokens=at(s.tokens, s.kinds == TEXT, 31_999)), "text id 31999 is outside"),
        (lambda s: replace(s, images=s.images[1:]), "images are not at the tokens"),
        (lambda s: replace(s, images=[PlacedImage(p.token + 1, p.image) for p in s.images]), "images are not at"),
        (
            lambda s: replace(s, images=[PlacedImage(p.token, EncodedImage(b"", 32, 16)) for p in s.images]),
            "field observation/view has an image of 32 x 16 pixels at step 0",
        ),
    ],
)
def test_a_sequence_of_another_spec_does_not_decode(text, change, message):
    tokenizer = EpisodeTokenizer(SPEC, SETTINGS, text)
    sequence = tokenizer.encode(*episode(4, **good_values()))
    tokenizer.decode(sequence)
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(change(sequence))


def test_shared_layouts_cannot_be_written_to():
    spec = EpisodeSpec.ordered([field("observation", "discrete"), field("action", "discrete")])
    found = EpisodeTokenizer(spec, SETTINGS).encode(*episode(2, observation=np.arange(2), action=np.arange(2)))
    for array in (found.kinds, found.positions, found.step_begin):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
