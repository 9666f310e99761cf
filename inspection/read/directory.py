"""Opens a finished build or scan."""

import functools
from dataclasses import dataclass
from pathlib import Path

from gatokit.inspection.read.dataset import DatasetReader
from gatokit.schemas.errors import DataError
from gatokit.schemas.manifest import Manifest, local_directory
from gatokit.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class Directory:
    """A finished directory: its manifest, and a reader of every dataset by name, in the manifest's order.

    Nothing is held open between calls.
    """

    path: Path
    manifest: Manifest

    @functools.cached_property
    def datasets(self) -> dict[str, DatasetReader]:
        """The datasets by name."""
        configs = {config["name"]: config for config in self.manifest.config["datasets"]}
        return {
            totals.name: DatasetReader(self.path, self.manifest, totals, configs[totals.name], lambda: self.text)
            for totals in self.manifest.datasets
        }

    @functools.cached_property
    def text(self) -> TextTokenizer:
        """The text tokenizer that the build's tokens were made with. Raises DataError in a scan, which has none."""
        if self.manifest.vocabulary is None:
            raise DataError(f"{self.path} is a scan and holds no vocabulary")
        text = TextTokenizer.load(self.path / self.manifest.vocabulary.file)
        if text.digest != self.manifest.vocabulary.blake2b:
            raise DataError(
                f"{self.path / self.manifest.vocabulary.file} is not the model that the tokens were made with"
            )
        return text


def open_directory(path: str | Path) -> Directory:
    """Opens a finished build or scan and reads its manifest, nothing more.

    Raises ConfigError if there is no such directory; DataError if it is not complete, was edited or is of a newer
    version.
    """
    path = local_directory(path)
    return Directory(path, Manifest.read(path))
