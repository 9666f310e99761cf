"""Opens the shard files of a dataset."""

from pathlib import Path

from gatokit.schemas.errors import DataError
from gatokit.storage.array_record import ArrayRecordFile


def open_shard(path: Path) -> ArrayRecordFile:
    """An open shard file. Raises DataError if the file is missing or is no complete ArrayRecord file."""
    if not path.is_file():
        raise DataError(f"{path} is missing")
    shard = ArrayRecordFile(path)
    if not shard.is_whole:
        shard.close()
        raise DataError(f"{path} is no complete ArrayRecord file")
    return shard
