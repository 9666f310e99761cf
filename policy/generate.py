"""Text that a policy writes: it continues a text, or says what an image shows (Gato, section 2.1 and figure 7)."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gatokit.policy.decode import write
from gatokit.policy.policy import Policy
from gatokit.policy.spans import Span
from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.schemas.manifest import ImageRule
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.document import DocumentTokenizer, prepare


def generate(
    policy: Policy,
    text: str,
    image: bytes | None,
    *,
    dataset: str | None = None,
    tokens: int = 64,
    rule: Literal["sample", "greedy"] = "sample",
    temperature: float = 0.9,
    seed: int = 0,
) -> str:
    """The continuation of ``text``, or of an image and then ``text``, as in a document of ``dataset``.

    The image (the bytes of an image file) is prepared as the build of that dataset did it; without ``dataset``, the
    first one that has images. The continuation has at most ``tokens`` pieces, and ends earlier with the piece that ends
    a document. The default temperature is the paper's for captions. Raises ConfigError if there is nothing to continue,
    if the image cannot be used, or if the policy knows no text, no such dataset or no images.
    """
    if policy.text is None:
        raise ConfigError(f"{policy.path} was trained on data without text and writes none; give another policy")
    parts: list[str | EncodedImage] = []
    if image is not None:
        try:
            parts.append(prepare(image, _image_rule(policy, dataset)))
        except RejectedError as error:
            raise ConfigError(f"the image cannot be used ({error.reason}): {error.detail}") from None
    if text:
        parts.append(text)
    if not parts:
        raise ConfigError("give a text or an image to continue")
    (sequence,) = DocumentTokenizer(policy.text, end_of_document=False).encode([parts])
    if isinstance(sequence, RejectedError):
        raise ConfigError(f"the text is {sequence.reason}: {sequence.detail}")

    state, cache = policy.read(Span.of(sequence))
    assert state is not None
    written: list[int] = []
    key = jax.random.key(seed)
    while len(written) < tokens:
        ids, state, cache = write(
            policy.params,
            state,
            cache,
            jax.random.fold_in(key, len(written)),
            jnp.float32(temperature),
            rule=rule,
            pieces=policy.text.pieces,
            **policy.model,
        )
        if int(ids[0]) == policy.text.end_id:
            break
        written.append(int(ids[0]))
    # Pieces lose their spaces at the beginning of a text, so both are decoded together.
    given = policy.text.encode(text) if text else sequence.tokens[:0]
    together = np.concatenate([given, np.array(written, np.uint16)])
    return policy.text.decode(together).removeprefix(policy.text.decode(given))


def _image_rule(policy: Policy, dataset: str | None) -> ImageRule:
    """The rule of the named dataset, or of the first one with images."""
    rules = {
        name: described.documents.pictures
        for name, described in policy.file.datasets.items()
        if described.documents is not None and described.documents.pictures is not None
    }
    if not rules:
        raise ConfigError(f"{policy.path} was trained on no images with text")
    if dataset is not None and dataset not in rules:
        raise ConfigError(f"{dataset} is no dataset of images with text; there are {', '.join(rules)}")
    return rules[dataset or next(iter(rules))]
