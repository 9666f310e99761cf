"""Tokens by name and steps of opened episodes, against the stored records and the decoded values."""

import numpy as np
import pytest

from gatokit.inspection import open_directory
from gatokit.inspection.explorer.episode import step_data
from gatokit.inspection.read.values import SEPARATOR, DecodedDocument, DecodedEpisode, data_url
from gatokit.loader.batch import find_targets
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import IMAGE_ID, NO_POSITION, TokenKind


def stored(dataset, row) -> list[Record]:
    [(_, records)] = dataset.records([row])
    return records


def kept_rows(directory, name):
    return list(directory.datasets[name].rows(kept=True))


@pytest.mark.parametrize("name", ["arm", "grid"])
def test_every_token_of_an_episode_is_that_of_its_record(small, name):
    directory = open_directory(small.built)
    dataset = directory.datasets[name]
    for row in kept_rows(directory, name)[:4]:
        tokens = DecodedEpisode(dataset.episode(row), directory.text)
        found = tokens.named(range(len(tokens)))
        assert [token.at for token in found] == list(range(row.tokens))
        at = 0
        records = stored(dataset, row)
        assert len(records) > 1 or name == "grid"
        for number, record in enumerate(records):
            sequence = record.sequence
            own = found[at : at + len(sequence.tokens)]
            assert {token.record for token in own} == {number}
            assert [token.id for token in own] == sequence.tokens.tolist()
            assert [token.kind for token in own] == sequence.kinds.tolist()
            positions = [None if place == NO_POSITION else place for place in sequence.positions.tolist()]
            assert [token.position for token in own] == positions
            steps = np.searchsorted(sequence.step_begin, np.arange(len(own)), side="right") - 1
            assert [token.step for token in own] == (steps + record.first_step).tolist()
            assert tokens.of_record(at) == range(at, at + len(own)) == tokens.of_record(at + len(own) - 1)
            at += len(own)


def test_values_are_those_that_are_decoded(small):
    directory = open_directory(small.built)
    dataset = directory.datasets["arm"]
    row = kept_rows(directory, "arm")[0]
    episode = dataset.episode(row)
    values = episode.decode()
    tokens = DecodedEpisode(episode, directory.text)
    for step in range(episode.steps):
        found = tokens.named(tokens.of_step(step))
        assert {token.step for token in found} == {step}
        image, found = found[:6], found[6:]
        assert [(token.field, token.value) for token in image] == [
            ("image", f"patch {patch_row}, {column}") for patch_row in range(2) for column in range(3)
        ]
        texts = [token for token in found if token.kind == TokenKind.TEXT]
        assert {token.field for token in texts} == {"mission"}
        assert "".join(token.value for token in texts).strip() == values["observation/mission"][step]
        numbers = found[len(texts) :]
        assert [token.field for token in numbers] == ["state 0", "state 1", "state 2", "", "action 0", "action 1"]
        assert numbers[3].value == SEPARATOR
        expected = [*values["observation/state"][step], *values["action"][step]]
        assert [float(token.value) for token in [*numbers[:3], *numbers[4:]]] == pytest.approx(expected, rel=1e-5)


def test_nested_and_bare_fields_have_names(small):
    directory = open_directory(small.built)
    row = kept_rows(directory, "grid")[0]
    played = DecodedEpisode(directory.datasets["grid"].episode(row), directory.text)
    names = [token.field for token in played.named(played.of_step(7))]
    observation = [f"observation {at}" for at in range(5)]
    assert names == [*observation, "", "force 0", "force 1", "force 2", "force 3", "move"]


@pytest.mark.parametrize("name", ["arm", "grid"])
def test_targets_are_those_that_the_trainer_finds(small, name):
    directory = open_directory(small.built)
    episode = directory.datasets[name].episode(kept_rows(directory, name)[0])
    tokens = DecodedEpisode(episode, directory.text)
    ids, kinds = (array[None] for array in (episode.sequence.tokens, episode.sequence.kinds))
    none = np.zeros(1, np.int64)
    found = find_targets(ids, kinds, none, none.astype(bool), none.astype(bool))
    # A window begins with a token that nothing predicts.
    marked = [token.is_target for token in tokens.named(range(1, len(tokens)))]
    assert marked == (found.target_kinds[0] > 0).tolist()
    assert any(marked)
    assert not all(marked)


@pytest.mark.parametrize("name", ["notes", "captions", "pages", "questions"])
def test_every_token_of_a_document_is_that_of_its_record(corpora, name):
    directory = open_directory(corpora.built)
    dataset = directory.datasets[name]
    for row in kept_rows(directory, name):
        document = dataset.document(row)
        tokens = DecodedDocument(document, directory.text)
        found = tokens.named(range(len(tokens)))
        ids = [id_ for record in document.records for id_ in record.sequence.tokens.tolist()]
        numbers = [number for number, record in enumerate(document.records) for _ in record.sequence.tokens]
        assert [token.id for token in found] == ids
        assert [token.record for token in found] == numbers
        assert all(token.is_target == (token.kind == TokenKind.TEXT) == (token.id != IMAGE_ID) for token in found)
        assert {(token.step, token.position) for token in found} == {(None, None)}
        pictures = [(token.field, token.value) for token in found if token.kind == TokenKind.IMAGE]
        assert pictures == [
            (f"image {number}", f"patch {patch_row}, {column}")
            for number, image in enumerate(document.images)
            for patch_row in range(image.height // 16)
            for column in range(image.width // 16)
        ]
        texts = [part for part in document.parts if isinstance(part, str)]
        written = "".join(token.value for token in found if token.kind == TokenKind.TEXT)
        # The tests' vocabulary begins every text with a space.
        assert written.removesuffix("</s>").split() == " ".join(texts).split()


def test_a_piece_without_text_has_a_name(small):
    text = open_directory(small.built).text
    assert text.piece(text.end_id) == "</s>"
    bytes_ = [text.piece(int(id_)) for id_ in text.encode("\u2603")]
    assert bytes_[-3:] == ["<0xE2>", "<0x98>", "<0x83>"]
    assert "".join(text.piece(int(id_)) for id_ in text.encode("to the end")) == " to the end"


def test_steps_are_those_that_are_decoded(small):
    directory = open_directory(small.built)
    dataset = directory.datasets["arm"]
    for row in kept_rows(directory, "arm")[:3]:
        played = DecodedEpisode(dataset.episode(row), directory.text)
        so_far = 0.0
        for step in played.episode.decoded_steps():
            drawn = step_data(played, step.step)
            texts = {value["field"]: value["text"] for value in drawn["values"]}
            so_far += step.reward
            assert (drawn["step"], float(texts["reward"])) == (step.step, pytest.approx(step.reward, rel=1e-5))
            assert float(texts["return so far"]) == pytest.approx(so_far, rel=1e-5)
            assert [(image["name"], image["url"]) for image in drawn["images"]] == [
                ("image", data_url(step.observation["image"].data, "png"))
            ]
            assert texts["observation/mission"] == step.observation["mission"]
            assert [float(word) for word in texts["observation/state"].split()] == pytest.approx(
                step.observation["state"], rel=1e-5
            )
            assert [float(word) for word in texts["action/action"].split()] == pytest.approx(step.action, rel=1e-5)
            flags = texts["flags"].split(", ")
            assert ("first" in flags) == (step.step == 0)
            assert ("last" in flags) == (step.step == row.steps - 1)
        assert so_far == pytest.approx(row.episode_return)


def test_lines_over_the_steps_end_where_the_episode_ends(small):
    directory = open_directory(small.built)
    row = kept_rows(directory, "grid")[0]
    played = DecodedEpisode(directory.datasets["grid"].episode(row), directory.text)
    reward, so_far = played.rewards(1000)
    assert reward.steps.tolist() == list(range(row.steps))
    assert so_far.values[-1] == pytest.approx(row.episode_return)
    lines = played.actions(1000)
    assert [line.name for line in lines] == ["force 0", "force 1", "force 2", "force 3", "move"]
    force = played.episode.decode()["action/force"].reshape(row.steps, 4)
    assert lines[1].values.tolist() == force[:, 1].tolist()
    assert played.rewards(2)[1].steps.tolist() == [0, row.steps - 1]
