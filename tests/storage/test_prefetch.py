"""Reading ahead of what is asked for."""

import threading
from pathlib import Path

import pytest

from gatokit.storage import files as module
from gatokit.storage.files import prefetch

LOCAL, REMOTE = Path("/folder"), Path("gs://bucket/folder")


@pytest.mark.parametrize("folder", [LOCAL, REMOTE])
def test_everything_comes_in_order(folder: Path):
    for count in (0, 1, 2, 100):
        paths = [folder / str(number) for number in range(count)]
        assert list(prefetch(paths, lambda path: path.name, len)) == [str(number) for number in range(count)]


def read_all(folder: Path, size: int, count: int = 64) -> tuple[int, set[str]]:
    """The most reads that were behind nobody's request, and the threads that made them."""
    begun, threads = [], set()
    lock = threading.Lock()

    def read(path: Path) -> int:
        with lock:
            begun.append(path)
            threads.add(threading.current_thread().name)
        return size

    most = 0
    for taken, _ in enumerate(
        prefetch([folder / str(number) for number in range(count)], read, lambda found: found), 1
    ):
        most = max(most, len(begun) - taken)
    assert len(begun) == count
    return most, threads


def test_on_a_disk_one_is_read_at_a_time():
    assert read_all(LOCAL, 1) == (0, {threading.current_thread().name})


def test_in_a_bucket_several_are_and_fewer_of_large_ones():
    most, threads = read_all(REMOTE, 1)
    assert most <= module.CONNECTIONS
    assert len(threads - {threading.current_thread().name}) >= 1
    assert read_all(REMOTE, module._PREFETCHED_BYTES)[0] <= 1


def test_several_reads_wait_at_once():
    together = threading.Barrier(module.CONNECTIONS)

    def read(path: Path) -> int:
        if path.name != "0":
            together.wait(timeout=60)
        return 1

    count = 1 + 2 * module.CONNECTIONS
    assert sum(prefetch([REMOTE / str(number) for number in range(count)], read, int)) == count


@pytest.mark.parametrize("folder", [LOCAL, REMOTE])
def test_an_error_comes_where_its_file_would(folder: Path):
    def read(path: Path) -> str:
        if path.name == "5":
            raise OSError("gone")
        return path.name

    found = prefetch([folder / str(number) for number in range(50)], read, len)
    assert [next(found) for _ in range(5)] == list("01234")
    with pytest.raises(OSError, match="gone"):
        next(found)
