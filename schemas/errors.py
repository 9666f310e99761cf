"""The two ways in which a command fails that are the user's to mend."""

import sys


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


class DataError(GatokitError):
    """The data failed a check (exit status 1)."""

    code = "data"


class RejectedError(GatokitError):
    """One episode or document cannot become tokens; the build drops it as a row with ``reason`` and ``detail``.

    ``reason`` is a key of ``schemas.index.BAD_REASONS``; ``detail`` names the field and the value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}", code=reason)
        self.reason = reason
        self.detail = detail


def missing_package(package: str, extra: str) -> ConfigError:
    """The error for a package that is not installed and that ``gatokit[extra]`` brings."""
    return ConfigError(f"{package} is not installed", way_out=install_hint(extra), code="missing_package")


def install_hint(extra: str) -> str:
    """How to install an extra. Gatokit is on no package index, so it is installed from a checkout."""
    if extra == "envlogger" and sys.version_info >= (3, 12):
        return "EnvLogger 1.2 has wheels for Python 3.11 alone: run this in Python 3.11"
    return f"run in a checkout of gatokit: pip install '.[{extra}]'"
