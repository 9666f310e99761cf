"""What the benchmarks share: two sides in processes of their own that take turns, and their ratio.

A benchmark has a table of sides: functions that take a config and a warm-up config's place, and return a function
that does the work once and returns (units, seconds).
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Once = Callable[[], tuple[int, float]]
Sides = dict[str, Callable[[Path], Once]]


class Side:
    """A process that imports, warms up on a small config, and then works once whenever it is told to."""

    def __init__(self, name: str, config: Path, warm: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--side", name, str(config), str(warm)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.start_seconds = self._answer()["start_seconds"]

    def once(self) -> dict[str, Any]:
        """``units``, ``seconds`` and ``peak_bytes`` of one more run."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def run_side(sides: Sides, name: str, config: Path, warm: Path) -> None:
    """The other end of ``Side``."""
    begin = time.perf_counter()
    sides[name](warm)()
    answer: dict[str, Any] = {"start_seconds": time.perf_counter() - begin}
    once = sides[name](config)
    print(json.dumps(answer), flush=True)
    for _ in sys.stdin:
        units, seconds = once()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"units": units, "seconds": seconds, "peak_bytes": peak}), flush=True)


def compare(ours: str, usual: str, config: Path, warm: Path, repeats: int) -> dict[str, Any]:
    """Median rates of both sides taking turns, and the median of their ratios."""
    sides = [Side(ours, config, warm), Side(usual, config, warm)]
    runs = [[side.once() for side in sides] for _ in range(repeats)]
    for side in sides:
        side.stop()
    rates = [[run[side]["units"] / run[side]["seconds"] for run in runs] for side in (0, 1)]
    return {
        "units": runs[0][0]["units"],
        "rate": statistics.median(rates[0]),
        "rates": [min(rates[0]), max(rates[0])],
        "usual": statistics.median(rates[1]),
        "usual_rates": [min(rates[1]), max(rates[1])],
        "ratio": statistics.median(one / other for one, other in zip(*rates, strict=True)),
        "start_seconds": sides[0].start_seconds,
        "usual_start_seconds": sides[1].start_seconds,
    }


def memory(side: str, configs: dict[str, Path], warm: Path) -> dict[str, Any]:
    """Peak resident bytes of one run over each config, each in a process of its own."""
    peaks = {}
    for name, config in configs.items():
        process = Side(side, config, warm)
        peaks[name] = process.once()["peak_bytes"]
        process.stop()
    return peaks


def show_memory(peaks: dict[str, Any], what: str) -> None:
    """A line for each peak, and the ratio of the first to the last."""
    for name, peak in peaks.items():
        print(f"memory          {name} of {what}: peak {peak / 2**20:,.0f} MiB", flush=True)
    values = list(peaks.values())
    print(f"memory          ratio {values[0] / values[-1]:.3f}", flush=True)


def show(name: str, row: dict[str, Any], unit: str) -> None:
    """One line of the table."""
    print(
        f"{name:15} {row['units'] / 1e6:7.1f} M {unit}: {row['rate'] / 1e6:7.3f} M/s "
        f"({row['rates'][0] / 1e6:.3f} to {row['rates'][1] / 1e6:.3f}); the usual way {row['usual'] / 1e3:,.1f} k/s; "
        f"ratio {row['ratio']:,.0f}; import and warm-up {row['start_seconds']:.1f} s, "
        f"usual {row['usual_start_seconds']:.1f} s",
        flush=True,
    )


def machine() -> dict[str, Any]:
    """Where this ran."""
    information = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in information.splitlines() if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
