"""Whose a file is: nothing is overwritten or removed unless this program made it and can show that, and nothing is
written through a link.

A command shows it by the file that it writes first into a folder, by names in a manifest, or by a mark at the end of a
file. A folder that the user names may itself be a link.
"""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from gatokit.schemas.errors import ConfigError, MalformedError
from gatokit.schemas.manifest import digest

_MARK = re.compile(rb"<!-- written by gatokit ([0-9a-f]{16}) -->\n\Z")
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(status: os.stat_result) -> str | None:
    """What a file is in words, None if it is a regular one."""
    return None if stat.S_ISREG(status.st_mode) else _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")


def check_output(path: str | Path) -> None:
    """Raises MalformedError if a local ``path`` is there and is a link or anything else than a regular file."""
    if os.path.lexists(path) and (kind := kind_of(os.lstat(path))) is not None:
        raise MalformedError(f"{path} is {kind}, and a file is to be there; remove it or choose another place")


def check_folder(path: str | Path) -> None:
    """Raises MalformedError if a local ``path`` is there and is a link or anything else than a directory."""
    if os.path.lexists(path) and not stat.S_ISDIR((status := os.lstat(path)).st_mode):
        kind = kind_of(status) or "a file"
        raise MalformedError(f"{path} is {kind}, and a directory is to be there; remove it or choose another place")


def check_folders(root: Path, path: Path) -> None:
    """``check_folder`` of all folders below ``root`` on the way to the folder ``path``."""
    for count in range(1, len(path.relative_to(root).parts) + 1):
        check_folder(root.joinpath(*path.relative_to(root).parts[:count]))


def check_own(folder: Path, marker: str, written: Iterable[str], others: Iterable[str] = ()) -> None:
    """Checks a folder in which a command goes on with what it has ``written``: it is the command's if it holds the file
    ``marker``, which is written first.

    Raises ConfigError if there is no ``marker`` and one of these names, or of the ``others``, is taken; MalformedError
    if one of the names is a link.
    """
    there = [name for name in written if os.path.lexists(folder / name)]
    check_output(folder / marker)
    if not os.path.lexists(folder / marker):
        there += [name for name in others if os.path.lexists(folder / name)]
        if there:
            raise ConfigError(
                f"--out {folder}: holds {there[0]} and no {marker}, so that it may be somebody's own; choose another "
                "directory"
            )
    for name in there:
        (check_folder if os.path.isdir(folder / name) else check_output)(folder / name)


def marked(text: str) -> bytes:
    """A page of HTML or Markdown, with a comment at its end by which ``check_page`` knows it again."""
    data = text.encode()
    return data + f"<!-- written by gatokit {digest(data, 8)} -->\n".encode()


def check_page(option: str, path: Path, new: bytes) -> None:
    """Raises ConfigError if the file that ``option`` names is there and is no page as ``marked`` gave it: somebody
    wrote it or edited it. Its own are also one that holds what ``new`` holds, a page of ``marked``, and a page of HTML
    of an earlier version, which has no mark and begins as ``new`` does before its title."""
    check_output(path)
    if not path.exists():
        return
    data, (head, title, _) = path.read_bytes(), new.partition(b"<title>")
    mark = _MARK.search(data)
    is_own = mark is not None and mark[1].decode() == digest(data[: mark.start()], 8)
    is_earlier = title and mark is None and data.startswith(head + title) and data.endswith(b"</html>\n")
    if not is_own and not is_earlier and data != _MARK.sub(b"", new):
        raise ConfigError(
            f"{option} {path}: is there, and gatokit did not write it as it is; remove it or give another file"
        )
