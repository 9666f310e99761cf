"""Text that a policy writes, against full passes over documents as the training input makes them."""

from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
import playing
import pytest

from gatokit.policy.generate import generate
from gatokit.policy.spans import Span, make_batch
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import DocumentRules, ImageRule
from gatokit.schemas.policy import PolicyDataset
from gatokit.schemas.tokens import TokenSequence
from gatokit.tokenizers.document import DocumentTokenizer, prepare
from gatokit.tokenizers.image_codec import encode
from gatokit.trainer import model

RULES = DocumentRules(pictures=ImageRule(max_patches=6), end_of_document=True)
IMAGE = encode(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))


@pytest.fixture
def make(tmp_path, vocabulary):
    def policy(**options):
        made = playing.policy(tmp_path, vocabulary, context=200, **options)
        captions = PolicyDataset(kind="image_text", specs={}, tasks={}, documents=RULES)
        datasets = made.file.datasets | {"captions": captions}
        return replace(made, file=made.file.model_copy(update={"datasets": datasets}))

    return policy


@pytest.mark.parametrize("positions", ["relative", pytest.param("rotary", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("text", "image"), [("go to", None), ("", IMAGE), ("a red ball", IMAGE)])
def test_pieces_are_the_likeliest_of_a_training_window(make, text, image, positions):
    policy = make(positions=positions)
    parts = [prepare(image, RULES.pictures)] if image else []
    parts += [text] if text else []
    (given,) = DocumentTokenizer(policy.text, False).encode([parts])
    ids, kinds, begins = given.tokens, given.kinds, given.step_begin
    expected: list[int] = []
    while len(expected) < 5:
        span = Span.of(TokenSequence(ids, kinds, np.full(len(ids), 65_535, np.uint16), begins, given.images))
        # One shape for all lengths, so that each operation is compiled once; causal attention sees no padding behind.
        batch = make_batch([span], 32, 6)
        states = model.forward(policy.params, batch, policy.config.model, dtype=jnp.float32)
        scores = np.asarray(model.logits(policy.params, states, policy.file.tokenizer.vocabulary_size))[0, len(ids) - 1]
        likeliest = int(scores[: policy.text.pieces].argmax())
        if likeliest == policy.text.end_id:
            break
        expected.append(likeliest)
        ids, kinds = np.append(ids, np.uint16(likeliest)), np.append(kinds, np.uint8(1))
    assert expected
    before = policy.text.encode(text) if text else np.zeros(0, np.uint16)
    whole = policy.text.decode(np.append(before, expected).astype(np.uint16))
    assert whole == text + generate(policy, text, image, tokens=5, rule="greedy")


def test_samples_follow_their_seed(make):
    policy = make()
    write = partial(generate, policy, "go to the", None)
    assert write(tokens=8, seed=1) == write(tokens=8, seed=1)
    assert write(tokens=8, seed=1) != write(tokens=8, seed=2)


def test_what_cannot_be_continued_is_named(make, tmp_path, vocabulary):
    policy = make()
    with pytest.raises(ConfigError, match="give a text or an image to continue"):
        generate(policy, "", None)
    with pytest.raises(ConfigError, match=r"the image cannot be used \(bad_image\): the file is"):
        generate(policy, "", b"no image")
    with pytest.raises(ConfigError, match="prose is no dataset of images with text; there are captions"):
        generate(policy, "", IMAGE, dataset="prose")
    with pytest.raises(ConfigError, match="was trained on no images with text"):
        generate(playing.policy(tmp_path, vocabulary, context=20), "", IMAGE)
