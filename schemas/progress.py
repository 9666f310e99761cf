"""How long work tells the caller how far it is."""

from typing import Protocol


class Progress(Protocol):
    """What a caller gives who wants to know how far the work is."""

    def __call__(
        self, stage: str, done: int, total: int, /, *, rows: int = 0, size: int = 0, total_size: int = 0
    ) -> None:
        """A stage has done so many pieces of its work, of so many.

        A stage that knows them says also the rows that it made since it began, and of how many bytes of the source the
        pieces are that are done, and all of them.
        """


def no_progress(stage: str, done: int, total: int, /, *, rows: int = 0, size: int = 0, total_size: int = 0) -> None:
    """The ``Progress`` of a caller who does not want to know."""
