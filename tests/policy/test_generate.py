"""Text that a policy writes, against full passes over documents as the training input makes them."""

from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
import playing
import pytest

from gatokit.policy.generate import Writing, generate
from gatokit.policy.history import Span, batch_of, shown_pictures
from gatokit.schemas.document import Document, DocumentRules, ImageRule
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.policy import PolicyDataset
from gatokit.tokenizers.document import DocumentTokenizer
from gatokit.tokenizers.document_images import prepare
from gatokit.tokenizers.image_codec import encode
from gatokit.trainer import model

RULES = DocumentRules(pictures=ImageRule(max_patches=6), end_of_document=True)
PICTURE = encode(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))


@pytest.fixture
def make(tmp_path, vocabulary):
    def policy(**options):
        made = playing.policy(tmp_path, vocabulary, context=200, **options)
        captions = PolicyDataset(kind="image_text", specs={}, tasks={}, documents=RULES)
        datasets = made.file.datasets | {"captions": captions}
        return replace(made, file=made.file.model_copy(update={"datasets": datasets}))

    return policy


@pytest.mark.parametrize("positions", ["relative", pytest.param("rotary", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("text", "picture"), [("go to", None), ("", PICTURE), ("a red ball", PICTURE)])
def test_pieces_are_the_likeliest_of_a_training_window(make, text, picture, positions):
    policy = make(positions=positions)
    parts = [prepare(picture, RULES.pictures)] if picture else []
    parts += [text] if text else []
    (given,) = DocumentTokenizer(policy.text, False).encode([Document("", parts)])
    pictures = shown_pictures([(placed.token, placed.image) for placed in given.images])
    ids, kinds = given.tokens, given.kinds
    expected: list[int] = []
    while len(expected) < 5:
        span = Span.of(ids, kinds, np.full(len(ids), 65_535, np.uint16), pictures)
        # One shape for all lengths, so that each operation is compiled once; causal attention sees no padding behind.
        batch = batch_of([span], 32, 6)
        states = model.forward(policy.params, batch, policy.config.model, dtype=jnp.float32)
        scores = np.asarray(model.logits(policy.params, states, policy.ids.vocabulary_size))[0, len(ids) - 1]
        likeliest = int(scores[: policy.text.pieces].argmax())
        if likeliest == policy.text.end_id:
            break
        expected.append(likeliest)
        ids, kinds = np.append(ids, np.uint16(likeliest)), np.append(kinds, np.uint8(1))
    assert expected
    before = policy.text.encode(text) if text else np.zeros(0, np.uint16)
    whole = policy.text.decode(np.append(before, expected).astype(np.uint16))
    assert whole == text + generate(policy, text, picture, Writing(tokens=5, rule="greedy"))


def test_samples_follow_their_seed(make):
    policy = make()
    write = partial(generate, policy, "go to the", None)
    assert write(Writing(tokens=8, seed=1)) == write(Writing(tokens=8, seed=1))
    assert write(Writing(tokens=8, seed=1)) != write(Writing(tokens=8, seed=2))


def test_what_cannot_be_continued_is_named(make, tmp_path, vocabulary):
    policy = make()
    with pytest.raises(ConfigError, match="give a text or a picture to go on from"):
        generate(policy, "", None, Writing())
    with pytest.raises(ConfigError, match=r"the picture cannot be used \(bad_image\): the file is"):
        generate(policy, "", b"no picture", Writing())
    with pytest.raises(ConfigError, match="prose is no dataset of pictures with text; there are captions"):
        generate(policy, "", PICTURE, Writing(), dataset="prose")
    with pytest.raises(ConfigError, match="was trained on no pictures with text"):
        generate(playing.policy(tmp_path, vocabulary, context=20), "", PICTURE, Writing())
