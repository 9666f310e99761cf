"""Batches of windows: byte for byte those of the slow way, whatever is asked for when."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slow_windows import SlowWindows

from gatokit.loader import sampler
from gatokit.loader.batch import Batch
from gatokit.loader.mixture import open_mixture
from gatokit.loader.patches import SlotShares
from gatokit.loader.windows import Windows
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.run import RunConfig
from gatokit.schemas.tokens import TokenKind


def run_config(context: int = 64, batch: int = 16, seed: int = 0, **input: Any) -> RunConfig:
    return RunConfig.model_validate({"model": "tiny", "context": context, "batch": batch, "seed": seed, "input": input})


def assert_same(batch: Batch, slow: dict[str, Any]) -> None:
    for name in ("kinds", "tokens", "positions", "target_kinds", "targets", "private", "hidden", "first_action"):
        found, expected = getattr(batch, name), slow[name]
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected), (name, np.argwhere(found != expected)[:5].tolist())
    assert np.array_equal(batch.dataset, slow["dataset"])
    assert np.array_equal(batch.redrawn, slow["redrawn"])
    for group, patches in enumerate(slow["patches"]):
        count = len(patches)
        assert batch.patch_token[group, :count].tolist() == sorted(patches)
        assert np.all(batch.patch_token[group, count:] == -1)
        assert not batch.patches[group, count:].any()
        for slot, token in enumerate(batch.patch_token[group, :count].tolist()):
            pixels, row, column = patches[token]
            assert np.array_equal(batch.patches[group, slot], pixels)
            assert (batch.patch_row[group, slot], batch.patch_column[group, slot]) == (row, column)


@pytest.mark.parametrize(
    ("context", "input", "slow"),
    [
        (64, {}, {}),
        (64, {"align": "step", "pack": False}, {"align": "step", "pack": False}),
        (37, {"hide_actions": 0.5, "prompt": {"share": 0.8}}, {"hide": 0.5, "prompt_share": 0.8}),
        (
            50,
            {"align": "step", "hide_actions": 1, "prompt": {"share": 1, "tokens": 20}},
            {"align": "step", "hide": 1.0, "prompt_share": 1.0, "prompt_tokens": 20},
        ),
        (
            200,
            {"align": "step", "prompt": {"share": 0.9}, "patch_group_rows": 4},
            {"align": "step", "prompt_share": 0.9, "end_share": 0.0, "group_rows": 4},
        ),
        (40, {"pack": False}, {"pack": False}),
        (
            300,
            {"prompt": {"share": 0.9}, "hide_actions": 0.7},
            {"prompt_share": 0.9, "end_share": 1.0, "hide": 0.7},
        ),
        (
            40,
            {"align": "step", "prompt": {"share": 1, "tokens": 7}},
            {"align": "step", "prompt_share": 1.0, "prompt_tokens": 7},
        ),
    ],
)
def test_batches_are_those_of_the_slow_way(
    mixed: Path, context: int, input: dict[str, Any], slow: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "PROMPT_END_SHARE", slow.get("end_share", sampler.PROMPT_END_SHARE))
    windows = Windows(open_mixture([mixed]), run_config(context, 96, 5, **input))
    expected = SlowWindows(mixed, context=context, seed=5, **slow)
    for step in (0, 2):
        assert_same(windows.batch(step, range(96)), expected.batch(range(96 * step, 96 * step + 96)))


def test_held_out_windows_take_the_mean_place_of_a_patch(mixed: Path) -> None:
    windows = Windows(open_mixture([mixed]), run_config(64, 96, 3), split="held_out", training=False)
    expected = SlowWindows(mixed, context=64, seed=3, split="held_out", training=False)
    # Without records of a dataset its share goes to the others.
    expected.weights = [
        weight if tasks or records else 0
        for weight, tasks, records in zip(expected.weights, expected.tasks, expected.records, strict=True)
    ]
    assert_same(windows.batch(1, range(96)), expected.batch(range(96, 192)))


@pytest.mark.parametrize("slots", [24, 40])
def test_a_group_whose_patches_are_too_many_draws_its_last_row_with_any_again(mixed: Path, slots: int) -> None:
    windows = Windows(open_mixture([mixed]), run_config(40, 400, 1, patch_slots=slots))
    batch = windows.batch(0, range(400))
    assert windows.patch_slots == slots
    assert_same(batch, SlowWindows(mixed, context=40, seed=1, slots=slots).batch(range(400)))
    assert np.count_nonzero(batch.redrawn >= 0) > (10 if slots == 24 else 0)
    assert (batch.patch_token >= 0).sum(axis=1).max() <= slots
    assert [sample.redraws > 0 for sample in windows.trace(0, range(400))] == (batch.redrawn >= 0).tolist()


def test_too_few_patch_slots_are_refused(mixed: Path) -> None:
    mixture = open_mixture([mixed], {"arm": 1})
    with pytest.raises(ConfigError, match=r"input.patch_slots: 8 are too few .* raise it"):
        Windows(mixture, run_config(64, patch_slots=8)).batch(0, range(16))


def test_the_default_slots_leave_every_dataset_its_windows(mixed: Path) -> None:
    mixture = open_mixture([mixed])
    windows = Windows(mixture, run_config(64, 8000))
    assert windows.patch_slots % 8 == 0
    assert 64 <= windows.patch_slots < 8 * 64
    batch = windows.batch(0, range(8000))
    expected = windows.redrawn()
    for number, name in enumerate(mixture.names):
        drawn = np.count_nonzero((batch.redrawn == number) | ((batch.dataset == number) & (batch.redrawn < 0)))
        share = np.count_nonzero(batch.redrawn == number) / drawn
        assert share < 0.02
        assert abs(share - expected.get(name, 0)) < 0.01
    assert max(expected.values()) <= 0.005
    # The seed of a run changes no shape.
    assert {Windows(mixture, run_config(64, seed=seed)).patch_slots for seed in range(5)} == {windows.patch_slots}
    assert Windows(mixture, run_config(64), dataset="books").patch_slots == 8


def test_a_rare_dataset_of_pictures_keeps_its_weight(mixed: Path) -> None:
    windows = Windows(open_mixture([mixed], {"captions": 0.02, "grid": 0.98}), run_config(64, 20_000))
    batch = windows.batch(0, range(20_000))
    assert abs(np.count_nonzero(batch.dataset == 1) - 400) <= 4


def test_slots_are_the_quantile_of_the_patches_up_to_a_row() -> None:
    # Two rows in a hundred have 30 or 50 patches. In a group of eight they are never two.
    shares = SlotShares([np.zeros(0, int), np.array([30, 50])], np.array([0.98, 1.0]), 8)
    assert shares.slots(0) == 56
    assert shares.redrawn(56) == {}
    assert 0.4 < shares.redrawn(40)[1] < 0.6
    assert shares.slots(64) == 64
    assert SlotShares([np.zeros(0, int)], np.array([1.0]), 8).slots(64) == 8
    # All rows have 10: the fifth does not fit into 40 slots.
    assert SlotShares([np.array([10])], np.array([1.0]), 8).slots(16) == 80
    assert SlotShares([np.array([10])], np.array([1.0]), 8).redrawn(40) == {0: 0.5}


def test_any_rows_of_any_step_in_any_order_are_the_same_bytes(mixed: Path) -> None:
    config = run_config(64, 48, hide_actions=0.4)
    mixture = open_mixture([mixed])
    whole = [Windows(mixture, config).batch(step, range(48)) for step in range(4)]
    again: Windows = pickle.loads(pickle.dumps(Windows(mixture, config)))
    for step, begin, end in [(3, 40, 48), (0, 0, 8), (3, 0, 24), (1, 16, 48), (0, 0, 8)]:
        part = again.batch(step, range(begin, end))
        for name, found, of_all in zip(Batch._fields, part, whole[step], strict=True):
            expected = of_all[begin // 8 : end // 8] if name.startswith("patch") else of_all[begin:end]
            assert found.tobytes() == expected.tobytes(), name
    other = Windows(mixture, config.model_copy(update={"seed": 1})).batch(0, range(48))
    assert other.tokens.tobytes() != whole[0].tokens.tobytes()


def test_rows_that_divide_a_patch_group_are_refused(mixed: Path) -> None:
    windows = Windows(open_mixture([mixed]), run_config())
    with pytest.raises(ValueError, match="no whole groups of 8 rows"):
        windows.batch(0, range(4, 16))


def test_only_texts_and_actions_are_predicted(mixed: Path) -> None:
    batch = Windows(open_mixture([mixed]), run_config(64, 800)).batch(0, range(800))
    kinds = {TokenKind(kind) for kind in np.unique(batch.target_kinds) if kind}
    assert kinds == {TokenKind.TEXT, TokenKind.DISCRETE_ACTION, TokenKind.CONTINUOUS_ACTION}
    assert not batch.targets[batch.target_kinds == 0].any()
    # Missions are texts that an agent observes.
    arm = batch.dataset == 0
    assert {int(kind) for kind in np.unique(batch.target_kinds[arm])} == {
        0,
        TokenKind.TEXT,
        TokenKind.CONTINUOUS_ACTION,
    }


def test_hidden_actions_are_seen_by_their_own_step_alone(mixed: Path) -> None:
    """What attention lets through: no later step sees an action, and each component sees those before it."""
    batch = Windows(open_mixture([mixed], {"grid": 1}), run_config(64, 16, hide_actions=1)).batch(0, range(16))
    for row in range(16):
        actions = np.flatnonzero(batch.kinds[row] >= TokenKind.DISCRETE_ACTION)
        steps = np.cumsum(np.diff(actions, prepend=-2) > 1)
        for query in range(64):
            for key, step in zip(actions.tolist(), steps.tolist(), strict=True):
                private = batch.private[row, key]
                sees = key <= query and private in (0, batch.private[row, query])
                if sees and not batch.hidden[row, key]:
                    assert step == steps[actions.searchsorted(query)]
        assert not batch.tokens[row][batch.hidden[row]].any()


def test_no_patch_takes_position_128(mixed: Path) -> None:
    for training in (True, False):
        windows = Windows(open_mixture([mixed], {"arm": 1, "captions": 1}), run_config(64, 400), training=training)
        batch = windows.batch(0, range(400))
        taken = batch.patch_token >= 0
        assert batch.patch_row[taken].max() < 128
        assert batch.patch_column[taken].max() < 128
        if not training:
            # Two rows and three columns: 0, 64, 128 and 0, 43, 85, 128; gallery pictures have one row, or one column.
            assert set(batch.patch_row[taken].tolist()) == {16, 32, 48, 64, 80, 96, 112}
            assert set(batch.patch_column[taken].tolist()) == {22, 64, 106}


@pytest.mark.parametrize(("context", "weights", "need"), [(35, None, 36), (20, {"grid": 1, "arm": 1}, 36)])
def test_a_context_of_less_than_two_steps_is_refused(
    mixed: Path, context: int, weights: dict[str, float] | None, need: int
) -> None:
    with pytest.raises(
        ConfigError, match=rf"context: {context} tokens hold less than two steps of arm.*at least {need}"
    ):
        Windows(open_mixture([mixed], weights), run_config(context))


def test_windows_aligned_to_steps_need_room_for_one(mixed: Path) -> None:
    arm = open_mixture([mixed], {"arm": 1})
    windows = Windows(arm, run_config(18, align="step", prompt={"share": 0}))
    # A mission in words makes some steps longer than the mean.
    counts = np.count_nonzero(windows.batch(0, range(8)).first_action, axis=1).tolist()
    assert counts == [2, 2, 2, 0, 1, 2, 0, 2], counts
    with pytest.raises(ConfigError, match=r"context: 17 tokens hold less than one step of arm.*at least 18"):
        Windows(arm, run_config(17, align="step"))


def test_another_dataset_than_those_of_the_run_is_refused(mixed: Path) -> None:
    mixture = open_mixture([mixed], {"books": 1})
    with pytest.raises(ConfigError, match="captions is no dataset of this run; there are books"):
        Windows(mixture, run_config(), dataset="captions")


def test_five_questions_of_different_documents_make_a_window(mixed: Path) -> None:
    mixture = open_mixture([mixed], {"questions": 1})
    held_out = Windows(mixture, run_config(400, 200, pack=False), split="held_out").trace(0, range(200))
    assert all(len({segment.owner for segment in sample.segments}) == 5 for sample in held_out)
    owners = [segment.owner for sample in held_out for segment in sample.segments]
    counts = [owners.count(owner) for owner in sorted(set(owners))]
    # Eight documents, each in five eighths of the windows.
    assert len(counts) == 8
    assert all(abs(count - 125) < 28 for count in counts)
    # Three are all that is kept for training.
    training = Windows(mixture, run_config(400, pack=False)).trace(0, range(16))
    assert all(len({segment.owner for segment in sample.segments}) == 3 for sample in training)
    # Packed, a window has as many such groups as fit; tokens of a group see each other.
    packed = Windows(mixture, run_config(400, 200)).batch(0, range(200))
    groups = packed.private.max(axis=1)
    assert set(groups.tolist()) == {5}


def test_windows_of_more_shards_than_may_be_open_are_whole_too(mixed: Path) -> None:
    mixture = open_mixture([mixed])
    for sample in Windows(mixture, run_config(64, 64, open_shards=3)).trace(1, range(64)):
        assert sample.tokens == sum(
            segment.end - segment.begin for segment in (*sample.segments, *filter(None, [sample.prompt]))
        )
