"""Where a stored episode or document is, in any format."""

from typing import NamedTuple


class ByteRange(NamedTuple):
    """The bytes of a stored episode or document, and the checksum that identifies them.

    ``position`` is the ordinal in the file. ``offset`` is where the bytes begin: 0 in formats that are read by ordinal,
    the row group in Parquet. ``length`` also counts the images of a document that are files of their own. ``crc`` is
    the CRC-32C of the content as stored. ``payload`` is what else a format of documents needs to read this one.
    """

    position: int
    offset: int
    length: int
    crc: int
    payload: str | None = None
