"""What ``gatokit inspect --html`` and ``--card`` write: a report to look at, and a dataset card as Markdown."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gatokit.cli.console import Output, needs, size
from gatokit.cli.files import write_whole
from gatokit.inspection import DatasetReader, Directory
from gatokit.inspection.card import card, markdown
from gatokit.inspection.report import Shares
from gatokit.schemas.errors import ConfigError

_DRAWN = 1_000
"""Windows of a run that are counted, at least: whole batches."""


def write_report(
    output: Output,
    directory: Directory,
    datasets: Sequence[DatasetReader],
    html: Path | None,
    card_file: Path | None,
    run: str | None,
) -> None:
    """Writes the files that are asked for, each whole or not at all, over what stands there.

    ``run`` is a run or run config whose mixture the report shows beside the weights. ConfigError where a file cannot
    be written, the packages of the report are missing, or the run cannot draw from the directory.
    """
    for option, path in (("--html", html), ("--card", card_file)):
        if path is not None:
            _check_place(path, option)
    written = {}
    if card_file is not None:
        text = markdown(card(directory, datasets))
        written["card"] = _write(card_file, text, "--card")
    if html is not None:
        from gatokit.inspection.report import library, page, report

        with needs("report"):
            script = library()
        drawn = None if run is None else _drawn(directory, run)
        with output.progress() as progress:
            found = report(directory, datasets, drawn, progress)
        written["html"] = _write(html, page(found, script), "--html")
    for path in written.values():
        output.say(f"wrote {path}, {size(path.stat().st_size)}")
    output.result({name: str(path) for name, path in written.items()})


def _drawn(directory: Directory, run: str) -> dict[str, Shares]:
    """By dataset its share of the weights of a run, or run config, and of the first windows that it draws."""
    with needs("train"):
        from gatokit.loader.mixture import open_mixture
        from gatokit.loader.windows import Windows
        from gatokit.schemas.run import read_run_config
        from gatokit.trainer.run_directory import read_run

    found = read_run(Path(run)) if Path(run).is_dir() else None
    if found is None and Path(run).is_dir():
        raise ConfigError(f"--run {run}: it holds no run.json; give a run config, a preset or the directory of a run")
    config = read_run_config(run) if found is None else found.config
    mixture = open_mixture([str(directory.path)] if found is None else found.data, config.input.weights)
    windows = Windows(mixture, config)
    steps = range(-(-_DRAWN // config.batch))
    counts = Counter(sample.dataset for step in steps for sample in windows.trace(step, range(config.batch)))
    weights = zip(mixture.names, mixture.weights.tolist(), strict=True)
    return {name: Shares(asked=weight, drawn=counts[name] / counts.total()) for name, weight in weights}


def _check_place(path: Path, option: str) -> None:
    """ConfigError, before an index is read for it, where a file cannot stand."""
    if path.is_dir():
        raise ConfigError(f"{option} {path}: that is a directory; give a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no directory {path.parent}; make it, or give another file")


def _write(path: Path, text: str, option: str) -> Path:
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be written: {error.strerror}") from None
    return path
