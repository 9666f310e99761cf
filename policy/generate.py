"""Text that a policy writes: it continues a prompt, or says what a picture shows (Gato, section 2.1 and figure 7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gatokit.policy.decode import write
from gatokit.policy.history import Span, shown_pictures
from gatokit.policy.policy import Policy
from gatokit.schemas.document import Document, DocumentRules
from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.schemas.tokens import EncodedImage, TokenSequence
from gatokit.tokenizers.document import DocumentTokenizer
from gatokit.tokenizers.document_images import prepare


@dataclass(frozen=True)
class Writing:
    """How text is written."""

    tokens: int = 64
    """At most so many pieces; the piece that ends a document ends it before."""
    rule: Literal["sample", "greedy"] = "sample"
    temperature: float = 0.9
    """The paper's for captions."""
    seed: int = 0


def generate(policy: Policy, text: str, picture: bytes | None, writing: Writing, dataset: str | None = None) -> str:
    """What follows ``text``, or the picture and then ``text``, as a document of ``dataset`` would go on.

    The picture (the bytes of an image file) is prepared as that dataset's build did it; without ``dataset`` the first
    one that has pictures. ConfigError where there is nothing to go on from, no such dataset or no picture in it;
    DataError where a damaged file is given.
    """
    parts: list[str | EncodedImage] = []
    if picture is not None:
        parts.append(_prepared(policy, picture, dataset))
    if text:
        parts.append(text)
    if not parts:
        raise ConfigError("give a text or a picture to go on from")
    (sequence,) = DocumentTokenizer(policy.text, end_of_document=False).encode([Document("prompt", parts)])
    if isinstance(sequence, RejectedError):
        raise ConfigError(f"the text is {sequence.reason}: {sequence.detail}")
    given = sequence.tokens[len(sequence.tokens) - len(policy.text.encode(text)) :] if text else sequence.tokens[:0]
    written = _write(policy, sequence, writing)
    # Pieces lose their spaces at the beginning of a text, so both are decoded together.
    whole = policy.text.decode(np.concatenate([given, np.array(written, np.uint16)]))
    return whole.removeprefix(policy.text.decode(given))


def _write(policy: Policy, sequence: TokenSequence, writing: Writing) -> list[int]:
    """The ids behind a sequence, without the end piece."""
    config, parameters = policy.config.model, policy.params
    fixed = {"config": config, "dtype": policy.dtype, "distances": policy.distances}
    pictures = shown_pictures([(placed.token, placed.image) for placed in sequence.images])
    span = Span.of(sequence.tokens, sequence.kinds, sequence.positions, pictures)
    state, cache = policy.read(span)
    assert state is not None
    written: list[int] = []
    key = jax.random.key(writing.seed)
    while len(written) < writing.tokens:
        ids, state, cache = write(
            parameters,
            state,
            cache,
            jax.random.fold_in(key, len(written)),
            jnp.float32(writing.temperature),
            rule=writing.rule,
            pieces=policy.text.pieces,
            **fixed,
        )
        if int(ids[0]) == policy.text.end_id:
            break
        written.append(int(ids[0]))
    return written


def _prepared(policy: Policy, picture: bytes, dataset: str | None) -> EncodedImage:
    rules = _rules(policy, dataset)
    assert rules.pictures is not None
    try:
        return prepare(picture, rules.pictures)
    except RejectedError as error:
        raise ConfigError(f"the picture cannot be used ({error.reason}): {error.detail}") from None


def _rules(policy: Policy, dataset: str | None) -> DocumentRules:
    """Of the named dataset, or of the first one with pictures."""
    found = {
        name: described.documents
        for name, described in policy.file.datasets.items()
        if described.documents is not None and described.documents.pictures is not None
    }
    known: Sequence[str] = list(found)
    if not known:
        raise ConfigError(f"{policy.path} was trained on no pictures with text")
    if dataset is not None and dataset not in found:
        raise ConfigError(f"{dataset} is no dataset of pictures with text; there are {', '.join(known)}")
    rules = found[dataset or known[0]]
    assert rules is not None
    return rules
