"""Being asked to stop: the first SIGTERM or SIGINT is remembered, the second ends the process at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Asked:
    """Whether, and by which signal, this process was asked to stop."""

    def __init__(self) -> None:
        self.by: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.by is not None


@contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Remembers a SIGTERM or SIGINT while the block runs; to be entered in the main thread."""
    asked = Asked()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def remember(number: int, frame: FrameType | None) -> None:
        asked.by = signal.Signals(number)
        # The system's own handler also ends a process that is deep in a compilation, where Python sees no signal.
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    for number in before:
        signal.signal(number, remember)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
