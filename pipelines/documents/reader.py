"""What every source format of documents offers: files, and in them stored documents.

A document is a text, a picture with its caption, a picture with a question and its answer, or a page. A format is
a module with a subclass of ``CorpusFile`` that scans and reads its files; ``corpora.py`` says which format reads
what. A scan reads everything once, so that all that a source can do wrong is a row with a reason before a build
begins; only the pictures themselves are first decoded by the build.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

import xxhash
from pydantic import BaseModel, ConfigDict

from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError

Part = str | bytes
"""A text, or an encoded picture as it is stored."""


class FoundDocument(NamedTuple):
    """A document as a scan finds it, or what was wrong with it.

    ``key`` names it in its file: its position, or the format's own key, unique in the file. ``content`` is a
    16-byte digest of its parts (``content_digest``), None for a rejected one. ``group`` names documents that are held
    out together because they share a picture (None: on its own). ``lost`` documents of the source stand behind a
    rejected row. ``detail`` may also note what a document that stays has lost (a skipped picture).
    """

    place: ByteRange
    key: str
    content: bytes | None
    group: str | None = None
    reason: str | None = None
    detail: str | None = None
    lost: int = 1


class CorpusFile(BaseModel, ABC):
    """A file of a corpus: ``path`` opens it, ``name`` is its path below the source, ``size`` its bytes.

    Subclasses add what the config says (the field that holds the text, the folder of the pictures). They are written
    to JSON and back on their way to a worker.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    name: str
    size: int

    divides: ClassVar[bool] = True
    """Whether documents in the middle of the file can be read without reading what is before them."""
    folder: ClassVar[bool] = False
    """Whether documents also read files that the JSON in ``path`` names, which ``size`` does not count."""

    def identity(self) -> dict[str, Any]:
        """Everything but where the file and its pictures lie on this machine."""
        return self.model_dump(mode="json", exclude={"path", "image_dir", "annotations"})

    @abstractmethod
    def scan(self, max_bytes: int) -> Iterator[FoundDocument]:
        """Every document in file order, in memory that does not grow with the file; what is damaged, empty or above
        ``max_bytes`` comes as a rejection. DataError only where the file is not of this format at all."""

    @abstractmethod
    def read(self, places: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """The parts of the documents at ``places`` (ascending, found by ``scan`` and not rejected), in their order.

        Neighbouring texts are one part. DataError (``changed``) where the file no longer holds what the scan found.
        """


_KIND = {str: b"s", bytes: b"b"}


def content_digest(parts: Iterable[Part]) -> bytes:
    """16 bytes that are equal for equal parts alone, as long as nobody forges two that agree (XXH3)."""
    content = xxhash.xxh3_128()
    update = content.update
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        # Its kind and length come first, so that no two lists of parts are the same bytes.
        update(_KIND[part.__class__] + len(data).to_bytes(8, "little"))
        update(data)
    return content.digest()


def changed(file: CorpusFile, place: ByteRange) -> DataError:
    """The error of a file that no longer holds what a scan found at ``place``."""
    return DataError(f"{file.name}: document {place.position} changed between scan and build. Run the build again")
