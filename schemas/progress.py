"""How long work tells the caller how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how many pieces of its work are done, and how many there are."""


def no_progress(stage: str, done: int, total: int) -> None:
    """The ``Progress`` of a caller who does not want to know."""
