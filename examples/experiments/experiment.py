"""The steps that the experiments share: record, build, train, evaluate. A step with a finished result is skipped."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gatokit.cli.console import Output
from gatokit.environments.record import Job, record_tasks

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = ROOT / "demo" / "vocabulary.model"
"""Made by `make demo`; it tokenizes the missions."""
FIELDS = {
    "babyai": "fields: {observation/grid: {as: discrete}, action: {num: 7}}",
    "atari": "fields: {action: {num: 3}}",
}


def record(jobs: Sequence[Job], out: Path) -> None:
    """Records the tasks that are not recorded yet below ``out``."""
    with Output(as_json=False).progress() as progress:
        for item in record_tasks(jobs, out, 2, progress):
            means = ", ".join(f"{agent} {value:.1f}" for agent, value in item.mean_return.items())
            print(f"{item.env_id}: {item.episodes} episodes, {item.steps} steps; {means}", flush=True)


def build(sources: dict[str, str], recorded: Path, out: Path, keep: str = "{min_return: 0.8}") -> Path:
    """Builds datasets, given by name as globs below ``recorded``. ``keep`` is that of the config. Returns ``out``."""
    if not VOCABULARY.exists():
        sys.exit(f"{VOCABULARY} is missing: run `make demo` first, which makes it")
    lines = [f"vocabulary: {VOCABULARY}", "datasets:"]
    for name, source in sources.items():
        lines += [
            f"  - name: {name}",
            "    kind: episodes",
            f"    source: {recorded.resolve() / source}",
            "    agent: {metadata: agent_id}",
            "    order: {metadata: episode_index}",
            f"    keep: {keep}",
        ]
        lines += [f"    {FIELDS[name]}"] if name in FIELDS else []
    config = out.with_suffix(".yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("\n".join(lines) + "\n")
    gatokit("build", str(config), "--out", str(out), "--workers", "2")
    return out


def train(config: str, data: Path, out: Path) -> Path:
    """Trains with a run config (YAML) on a build, from the newest checkpoint if there is one. Returns ``out``."""
    path = out.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config)
    gatokit("train", str(path), "--data", str(data), "--out", str(out))
    return out


def evaluate(run: Path, tasks: Sequence[str], out: Path, *options: str) -> dict[str, Any]:
    """The scores of a run on tasks, as ``gatokit evaluate --json`` prints them."""
    names = [word for task in tasks for word in ("--env", task)]
    found = gatokit("evaluate", "--checkpoint", str(run), *names, "--out", str(out), *options, "--json")
    return dict(json.loads(found))


def gatokit(*words: str) -> str:
    """Shows and runs a command; returns its output if it has ``--json``. Ends the experiment if the command fails."""
    print(f"$ gatokit {' '.join(words)}", flush=True)
    command = shutil.which("gatokit", path=str(Path(sys.executable).parent)) or "gatokit"
    captured = subprocess.PIPE if "--json" in words else None
    done = subprocess.run([command, *words], stdout=captured, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def draw_curves(path: Path, horizontal: str, vertical: str, curves: dict[str, dict[str, list[float]]]) -> None:
    """Draws curves by name: at each point of the horizontal axis the mean of its values, and each value as a dot."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        places = list(values)
        (line,) = axes.plot(places, [sum(of) / len(of) for of in values.values()], marker="o", label=name)
        for place, of in values.items():
            axes.plot([place] * len(of), of, ".", color=line.get_color(), alpha=0.5)
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    print(f"drawn in {path}")
