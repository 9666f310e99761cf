"""``gatokit train`` that the system kills at a moment: ``python killed_train.py MOMENT COUNT ARGUMENTS…``.

The process gets SIGKILL when the function of that moment is called for the COUNT-th time.
"""

import os
import signal
import sys
from typing import Any


def main() -> int:
    from gatokit.cli.main import main as gatokit
    from gatokit.loader.windows import Windows
    from gatokit.trainer.checkpoint import Checkpoints
    from gatokit.trainer.metrics import HeldOut
    from gatokit.trainer.step import Trainer

    moment, count, *words = sys.argv[1:]
    place: tuple[type, str] = {
        "compiling": (Trainer, "step"),
        "drawing": (Windows, "batch"),
        "saving": (Checkpoints, "save"),
        "saved": (Checkpoints, "_finalized"),
        "evaluating": (HeldOut, "_padded"),
    }[moment]
    whole, calls = getattr(*place), 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(count):
            if moment == "saving":
                whole(*arguments, **named)
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments, **named)

    setattr(*place, counted)
    return gatokit(["train", *words])


if __name__ == "__main__":
    sys.exit(main())
