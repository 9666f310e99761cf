"""Vocabularies trained in this process on given texts."""

from collections.abc import Iterable
from pathlib import Path

from gatokit.pipelines.vocabulary import Normalization, sentences, train_model
from gatokit.schemas.tokens import TEXT_IDS
from gatokit.tokenizers.text import TextTokenizer


def train_vocabulary(
    texts: Iterable[str], path: Path, pieces: int = TEXT_IDS, *, normalization: Normalization = "nfkc"
) -> int:
    """Trains a model on all sentences of the texts and writes it to ``path``. Returns its number of pieces."""
    model = train_model((sentence for text in texts for sentence in sentences(text)), pieces, normalization)
    path.write_bytes(model)
    return TextTokenizer(model).pieces
