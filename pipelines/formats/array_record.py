"""ArrayRecord files, read by ordinal: damage loses one record, or all of them if the end of the file is damaged."""

import contextlib
from collections.abc import Callable, Iterator

import google_crc32c

from gatokit.pipelines.formats.records import ByteRange, RecordFile, Stored, too_large
from gatokit.schemas.index import ENDS_EARLY
from gatokit.storage import array_record
from gatokit.storage import files as storage


class ArrayRecordFile(RecordFile):
    """An ArrayRecord file."""

    def read_all(self, max_bytes: int) -> Iterator[Stored[bytes]]:
        """See ``RecordFile``."""
        # The library's own reader of gs:// waits for ever if it reaches no server.
        with array_record.open_in_order(self.path) as file:
            records = file.records
            # A file without a declared number of records should have at least one.
            begin, end = self.positions or (0, 1 if self.declared is None else self.declared)
            for position in range(begin, min(end, records) if self.positions else records):
                try:
                    data = file.read(position, position + 1)[0]
                except array_record.ArrayRecordError as error:
                    detail = error.reason.replace(str(file.path), self.name)[:200]
                    yield Stored(ByteRange(position, 0, 0, 0), None, "corrupt_record", detail)
                    continue
                byte_range = ByteRange(position, 0, len(data), google_crc32c.value(data))
                yield too_large(byte_range, max_bytes) if len(data) > max_bytes else Stored(byte_range, data)
        if records < end:
            first = max(begin, records)
            detail = f"the file holds {records} of the {end} {self.noun} that its dataset states"
            # Without its end, or one that is sound, nothing of the file can be read.
            size = storage.size(self.path)
            reason, lost_bytes = ("corrupt_length", size) if size and not records else (ENDS_EARLY, 0)
            yield Stored(ByteRange(first, 0, 0, 0), None, reason, detail, end - first, lost_bytes)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[ByteRange], bytes | None]]:
        """See ``RecordFile``."""
        with storage.local_copy(self.path) as path, array_record.ArrayRecordFile(path) as file:

            def read(byte_range: ByteRange) -> bytes | None:
                try:
                    data = file.read(byte_range.position, byte_range.position + 1)[0]
                except array_record.ArrayRecordError:
                    return None
                is_same = len(data) == byte_range.length and google_crc32c.value(data) == byte_range.crc
                return data if is_same else None

            yield read
