"""What a policy reads and chooses, against full passes over windows as the training input makes them."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import playing
import pytest
from playing import ARM, ROOM

from gatokit.loader.batch import find_targets
from gatokit.policy.decode import pick
from gatokit.policy.policy import Decoding, load_policy
from gatokit.policy.spans import Patches, Span, make_batch
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.manifest import VOCABULARY, EpisodeSpec, FieldSpec
from gatokit.schemas.tokens import CONTINUOUS_OFFSET, TokenKind
from gatokit.tokenizers.episode import EpisodeTokenizer
from gatokit.trainer import model

LONGEST, MOST_PATCHES = 192, 32
"""Tokens and patches of the windows that tests look at."""
TASKS = pytest.mark.parametrize(("task", "spec"), [("arm", ARM), ("room", ROOM)], ids=["arm", "room"])


@pytest.fixture
def make(tmp_path, vocabulary):
    return partial(playing.policy, tmp_path, vocabulary)


def play(policy, task, decoding, seeds, steps, *, spec=None, beside=None):
    """Actions of ``steps`` steps, list of arrays, for one row a seed; row r sees observations r * 100 + step."""
    found = policy.find(f"rooms/{task}")
    player = policy.player(found, spec or found.spec, len(seeds) + (beside or 0), decoding)
    for row, seed in enumerate([*seeds, *range(900, 900 + (beside or 0))]):
        player.begin(row, seed)
    actions = []
    for step in range(steps):
        taken = player.act({row: playing.observation(found.spec, row * 100 + step) for row in range(player.rows)})
        actions.append([taken[row] for row in range(len(seeds))])
    return [[step[row] for step in actions] for row in range(len(seeds))]


def full_pass(policy, spec, demonstrated, observations, actions, hide):
    """Logits (L, V) of a demonstration's and an episode's tokens as one training window."""
    tokenizer = EpisodeTokenizer(spec, policy.file.tokenizer, policy.text)
    sequences = [tokenizer.encode(*playing.episode(spec, observations, actions))]
    if demonstrated:
        sequences.insert(0, tokenizer.encode(*playing.demonstration(spec, demonstrated)))
    ids = np.concatenate([sequence.tokens for sequence in sequences])
    kinds = np.concatenate([sequence.kinds for sequence in sequences])
    positions = np.concatenate([sequence.positions for sequence in sequences])
    prompt = len(sequences[0].tokens) if demonstrated else 0
    patches = Patches.of(
        [
            placed._replace(token=begin + placed.token)
            for begin, sequence in zip([0, prompt], sequences, strict=False)
            for placed in sequence.images
        ]
    )
    one_more = partial(np.append, values=0)
    found = find_targets(
        one_more(ids)[None].astype(np.uint16),
        one_more(kinds)[None].astype(np.uint8),
        np.array([prompt]),
        np.array([False]),
        np.array([hide]),
    )
    span = Span(ids, kinds, positions, found.hidden[0], found.private[0], patches)
    # One shape for all tests, so that each operation is compiled once; causal attention sees no padding behind.
    batch = make_batch([span], LONGEST, MOST_PATCHES)
    states = model.forward(policy.params, batch, policy.config.model, dtype=jnp.float32, hide=hide)
    logits = np.asarray(model.logits(policy.params, states, policy.file.tokenizer.vocabulary_size))
    return logits[0, : span.size], kinds, ids


@TASKS
@pytest.mark.parametrize("hide", [False, True], ids=["seen", "hidden"])
@pytest.mark.parametrize("memory", ["memory", "window"])
@pytest.mark.parametrize("offset", [0, pytest.param(33_024, marks=pytest.mark.slow)])
def test_actions_are_the_likeliest_of_a_training_window(make, task, spec, hide, memory, offset):
    """Observations, prompt, separator, hidden and private tokens, positions and patches, all at once."""
    policy = make(context=256, hide=0.5 if hide else 0.0, offset=offset)
    demonstrated = 2
    first_steps = EpisodeTokenizer(spec, policy.file.tokenizer, policy.text).encode(
        *playing.demonstration(spec, demonstrated)
    )
    prompt = len(first_steps.tokens)
    decoding = Decoding(rule="greedy", memory=memory, prompt_tokens=prompt + 1)
    (actions,) = play(policy, task, decoding, [3], 4)
    observations = [playing.observation(spec, step) for step in range(4)]
    logits, kinds, ids = full_pass(policy, spec, demonstrated, observations, actions, hide)
    lowest, number = (CONTINUOUS_OFFSET, 1024) if spec is ARM else (offset, 200)
    acted = np.flatnonzero(np.isin(kinds, (TokenKind.CONTINUOUS_ACTION, TokenKind.DISCRETE_ACTION)))
    acted = acted[acted >= prompt]
    assert len(acted) == 4 * (3 if spec is ARM else 1)
    expected = logits[acted - 1, lowest : lowest + number].argmax(1) + lowest
    np.testing.assert_array_equal(ids[acted], expected)
    assert len(set(expected.tolist())) > 1


@TASKS
@pytest.mark.parametrize("positions", ["relative", pytest.param("rotary", marks=pytest.mark.slow)])
def test_memory_and_window_agree_while_the_history_fits(make, task, spec, positions):
    policy = make(context=256, hide=1.0, positions=positions)
    found = [
        play(policy, task, Decoding(rule="sample", memory=memory, prompt_tokens=40), [1, 2], 6)
        for memory in ("memory", "window")
    ]
    np.testing.assert_array_equal(found[0], found[1])


def test_a_window_holds_the_newest_whole_steps(make):
    """Three steps of seven tokens fit into 24 with the fourth's observation and all but its last action token."""
    policy = make(context=27)
    none = Decoding(rule="greedy", memory="window", prompt_tokens=0)
    (actions,) = play(policy, "arm", none, [0], 6)
    observations = [playing.observation(ARM, step) for step in range(6)]
    logits, _, ids = full_pass(policy, ARM, 0, observations[2:], actions[2:], hide=False)
    acted = np.arange(3 * 7 + 4, 3 * 7 + 7)
    np.testing.assert_array_equal(ids[acted], logits[acted - 1, 32_000:33_024].argmax(1) + 32_000)


@TASKS
def test_a_row_does_not_depend_on_those_beside_it(make, task, spec):
    policy = make(context=64)
    decoding = Decoding(rule="sample")
    together = play(policy, task, decoding, [5, 6, 7], 5, beside=1)
    alone = play(policy, task, decoding, [5], 5)
    np.testing.assert_array_equal(together[0], alone[0])
    assert not np.array_equal(play(policy, task, decoding, [8], 5), alone)


def test_rows_begin_again_and_wait(make):
    """A row that is begun again has forgotten; one without an observation stays where it is."""
    policy = make(context=64)
    task = policy.find("arm")
    player = policy.player(task, ARM, 2, Decoding(rule="sample"))
    seen = [playing.observation(ARM, step) for step in range(4)]
    for row in (0, 1):
        player.begin(row, 11)
    first = [player.act({0: item})[0] for item in seen]
    late = [player.act({1: item})[1] for item in seen]
    np.testing.assert_array_equal(first, late)
    player.begin(0, 11)
    np.testing.assert_array_equal([player.act({0: item})[0] for item in seen], first)


def test_choices():
    logits = jnp.log(jnp.array([[0.3, 0.19, 0.02, 0.49], [0.1, 0.6, 0.3, 0.0]]))
    keys = jax.random.split(jax.random.key(0), 2)
    warm = jnp.float32(1)
    assert pick(logits, keys, warm, "greedy", jnp.array(True)).tolist() == [3, 1]
    assert pick(logits, keys, warm, "median", jnp.array(True)).tolist() == [2, 1]
    sampled = pick(logits, keys, warm, "sample", jnp.array(False)).tolist()
    assert pick(logits, keys, warm, "median", jnp.array(False)).tolist() == sampled
    # At a low temperature nearly everything is on the largest.
    assert pick(logits, keys, jnp.float32(0.01), "median", jnp.array(True)).tolist() == [3, 1]
    many = jax.random.split(jax.random.key(1), 4000)
    drawn = np.asarray(pick(jnp.tile(logits[:1], (4000, 1)), many, warm, "sample", jnp.array(True)))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, [0.3, 0.19, 0.02, 0.49], atol=0.03)


def test_actions_are_in_the_units_of_the_data_and_within_their_range(make):
    policy = make(context=64)
    (actions,) = play(policy, "arm", Decoding(rule="sample"), [0], 20)
    assert np.stack(actions).dtype == np.float32
    assert np.stack(actions).shape == (20, 3)
    assert 1 < np.abs(actions).max() <= 2
    (chosen,) = play(policy, "room", Decoding(rule="sample"), [0], 20)
    assert set(np.stack(chosen).tolist()) <= set(range(200))
    assert len(set(np.stack(chosen).tolist())) > 1


def test_without_a_mask_other_ids_become_the_nearest(make):
    policy = make(context=64)
    player = policy.player(policy.find("arm"), ARM, 1, Decoding(rule="sample", mask=False))
    player.begin(0, 0)
    actions = [player.act({0: playing.observation(ARM, step)})[0] for step in range(20)]
    # Random weights spread over 33,025 ids, nearly all of them text.
    assert player.invalid > 40
    np.testing.assert_allclose(np.min(actions), -2 + 2 / 1024)


def test_the_prompt_is_the_first_whole_steps(make):
    policy = make(context=40)
    task = policy.find("rooms/arm")
    lengths = {
        tokens: policy.player(task, ARM, 1, Decoding(prompt_tokens=tokens)).prompt_tokens for tokens in (0, 6, 7, 20)
    }
    assert lengths == {0: 0, 6: 0, 7: 7, 20: 14}
    assert policy.player(task, ARM, 1).prompt_tokens == 14  # half of the context is 20
    assert policy.player(task, ARM, 1, Decoding(prompt_tokens=1024)).prompt_tokens == 42


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"action": {"range": ((-1.0, 1.0),)}}, r"action has range \[\(-2.0, 2.0\).* in the data and \[\(-1.0, 1.0\)"),
        ({"action": {"shape": (2,)}}, r"action has shape \(3,\) in the data and \(2,\) in the environment"),
        ({"observation/hand": {"path": "observation/arm"}}, "the data has the field observation/hand, and the envir"),
        ({"observation/hand": {"kind": "continuous"}}, "observation/hand has kind discrete in the data and continuous"),
    ],
)
def test_another_environment_is_refused(make, fields, words):
    policy = make(context=64)
    other = [FieldSpec(**item.model_dump() | fields.get(item.path, {})) for item in ARM.fields]
    with pytest.raises(ConfigError, match=words):
        policy.player(policy.find("rooms/arm"), EpisodeSpec.ordered(other), 1)


def test_one_range_for_all_components_is_the_same_as_one_each(make):
    policy = make(context=64)
    each = [
        FieldSpec(**item.model_dump() | ({"range": ((-2.0, 2.0),) * 3} if item.is_action else {}))
        for item in ARM.fields
    ]
    assert policy.player(policy.find("rooms/arm"), EpisodeSpec.ordered(each), 1).rows == 1


def test_what_is_missing_is_named(make, tmp_path, vocabulary):
    policy = make(context=64)
    with pytest.raises(ConfigError, match=r"was not trained on rooms/leg; it was on rooms/arm, rooms/room"):
        policy.find("rooms/leg")
    assert policy.find("arms/arm").name == "arm"  # an environment's family need not be the dataset's name
    (tmp_path / "prompts.arrayrecord").unlink()
    with pytest.raises(DataError, match=r"prompts.arrayrecord is missing, which holds the demonstrations"):
        policy.player(policy.find("arm"), ARM, 1)
    assert policy.player(policy.find("arm"), ARM, 1, Decoding(prompt_tokens=0)).prompt_tokens == 0
    rooms = policy.file.datasets["rooms"].model_copy(update={"specs": {ARM.id: ARM}})
    lacking = replace(policy, file=policy.file.model_copy(update={"datasets": {"rooms": rooms}}))
    with pytest.raises(DataError, match=rf"policy.json has no spec {ROOM.id} of the task rooms/room"):
        lacking.find("arm")
    with pytest.raises(ConfigError, match="there is no nowhere"):
        load_policy(tmp_path.relative_to(tmp_path) / "nowhere")
    with pytest.raises(DataError, match="holds no checkpoint: give a run's directory or one of its checkpoints"):
        load_policy(tmp_path)
    assert VOCABULARY == "vocabulary.model"


def test_what_cannot_be_read_is_named(make):
    policy = make(context=10)
    player = policy.player(policy.find("arm"), ARM, 1)
    with pytest.raises(RuntimeError, match="row 0 was not begun"):
        player.act({0: playing.observation(ARM, 0)})
    player.begin(0, 0)
    with pytest.raises(DataError, match="rooms/arm: an observation's field observation/position is NaN at step 0"):
        player.act({0: playing.observation(ARM, 0) | {"position": np.array([np.nan, 0], np.float32)}})
    player = policy.player(policy.find("room"), ROOM, 1)
    player.begin(0, 0)
    with pytest.raises(DataError, match=r"a time step has .* tokens, more than the policy's context of 10"):
        player.act({0: playing.observation(ROOM, 0) | {"mission": "go to the room " * 9}})


@pytest.mark.parametrize(("name", "value"), [("temperature", 0), ("temperature", float("nan")), ("prompt_tokens", -1)])
def test_decoding_is_checked(name, value):
    with pytest.raises(ConfigError, match=f"not {value}"):
        Decoding(**{name: value})
