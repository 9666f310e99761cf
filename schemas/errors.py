"""The two ways in which a command fails that are the user's to mend."""


class GatokitError(Exception):
    """An error whose message is written for the user: the file, the field, the value and the way out."""

    exit_status = 1


class ConfigError(GatokitError):
    """The arguments or the config are wrong (exit status 2)."""

    exit_status = 2


class DataError(GatokitError):
    """The data failed a check (exit status 1)."""

    exit_status = 1


class RejectedError(GatokitError):
    """One episode or document cannot become tokens; the build drops it as a row with ``reason`` and ``detail``.

    ``reason`` is a key of ``schemas.index.BAD_REASONS``; ``detail`` names the field and the value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
