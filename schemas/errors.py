"""The two ways in which a command fails that are the user's to mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_DETAIL = 500


class GatokitError(Exception):
    """An error whose message is written for the user: the file, the field, the value and the way out.

    The way out follows the last semicolon of the message, or is given apart as ``way_out``. ``code`` is a short name
    of the error for programs.
    """

    exit_status = 1
    code = "error"

    def __init__(self, message: str, *, way_out: str | None = None, code: str | None = None) -> None:
        super().__init__(f"{message}; {way_out}" if way_out else message)
        problem, found = message, way_out
        if way_out is None and "; " in message:
            problem, _, found = message.rpartition("; ")
        self.problem, self.way_out = problem, found
        self.code = code or self.code


class ConfigError(GatokitError):
    """The arguments or the config are wrong (exit status 2)."""

    exit_status = 2
    code = "config"
    parts: "tuple[ConfigError, ...]" = ()
    """If it says several things (``ConfigErrors``): each of them."""


class ConfigErrors:
    """Collects what is wrong with a config, so that the user sees all of it at once."""

    def __init__(self) -> None:
        self._errors: dict[str, ConfigError] = {}

    @contextmanager
    def collect(self, subject: str) -> Iterator[None]:
        """Keeps a ConfigError that the block raises; of several about one subject the first."""
        try:
            yield
        except ConfigError as error:
            self._errors.setdefault(subject, error)

    def check(self) -> None:
        """Raises ConfigError if there was any: the error itself, or one with a line for each."""
        errors = [part for error in self._errors.values() for part in error.parts or (error,)]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            text = "\n  ".join([f"{len(errors)} things are wrong:", *map(str, errors)])
            error = ConfigError(text)
            error.problem, error.way_out, error.parts = text, None, tuple(errors)  # each has its own way out
            raise error


class DataError(GatokitError):
    """The data failed a check (exit status 1)."""

    code = "data"


class MalformedError(DataError):
    """A file does not have the form that it must have (exit status 2): it is a link or a FIFO, names a file outside of
    its folder, or holds JSON or a table of another form."""

    exit_status = 2
    code = "malformed"


class RejectedError(GatokitError):
    """One episode or document cannot become tokens; the build drops it as a row with ``reason`` and ``detail``.

    ``reason`` is a key of ``schemas.index.BAD_REASONS``; ``detail`` names the field and the value, in at most
    ``LONGEST_DETAIL`` characters.
    """

    def __init__(self, reason: str, detail: str) -> None:
        if len(detail) > LONGEST_DETAIL:
            detail = f"{detail[: LONGEST_DETAIL - 1]}…"
        super().__init__(f"{reason}: {detail}", code=reason)
        self.reason = reason
        self.detail = detail


_NEWEST_PYTHON = {"envlogger": (3, 11), "dm_control": (3, 12)}
"""The last Python for which a package can be installed."""


def missing_package(module: str, extra: str) -> ConfigError:
    """The error for a module that is not installed and that ``gatokit[extra]`` brings."""
    package = module.partition(".")[0]
    return ConfigError(f"{package} is not installed", way_out=install_hint(extra, package), code="missing_package")


def install_hint(extra: str, package: str | None = None) -> str:
    """How to install an extra, or ``package`` of it: from a checkout, for gatokit is on no package index."""
    newest = _NEWEST_PYTHON.get(package or extra)
    if newest is not None and sys.version_info[:2] > newest:
        python = f"Python {newest[0]}.{newest[1]}"
        return f"it cannot be had above {python}: run this in {python}"
    return f"run in a checkout of gatokit: pip install '.[{extra}]'"


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the error's type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
