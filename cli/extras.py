"""Packages that only some commands need."""

from collections.abc import Iterator
from contextlib import contextmanager

from gatokit.schemas.errors import ConfigError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports: ConfigError where a package of ``extra`` is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("gatokit"):
            raise
        raise ConfigError(f"{error.name} is not installed: pip install 'gatokit[{extra}]'") from None
