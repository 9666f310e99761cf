"""``gatokit inspect``: shows what a finished build or scan holds, one task, episode or document of it, what other rules
would keep, what changed, and the records behind a training step; writes a report; serves the explorer."""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gatokit.cli.console import Output, needs
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.words import byte_size, did_you_mean

if TYPE_CHECKING:
    from gatokit.inspection import DatasetReader, Directory, EpisodeRow
    from gatokit.inspection.preview import Rule
    from gatokit.inspection.report import Shares
    from gatokit.schemas.config_episodes import Keep
    from gatokit.schemas.run import RunConfig
    from gatokit.schemas.run_directory import RunFile

DEFAULT_PORT = 5006

EXAMPLE = """gatokit inspect built --task door-open-v3
  gatokit inspect built --at 0.9
  gatokit inspect built --keep '{best: 100}'
  gatokit inspect before --against built
  gatokit inspect built --at 0.8 --against 0.9
  gatokit inspect built --episode 'door-open-v3/door.tfrecord-00000#0' --steps 10:20
  gatokit inspect built --dataset captions
  gatokit inspect built --document '00000.tar#000000012' --images images
  gatokit inspect built --html report.html --card README.md
  gatokit inspect built --serve"""

_EXCLUSIVE = {
    "serve": "task episode at keep against step html card run",
    "html": "task episode at keep against step",
    "card": "task episode at keep against step",
    "step": "episode at keep against",
    "episode": "at keep against",
    "at": "keep",
}
"""Options, and those that cannot be given with them."""
_NEEDED = {"steps": "episode", "full": "document", "images": "document", "port": "serve", "run": "step html"}
"""Options, and those of which they need one."""
_MOST_COMPARED = 20_000
"""Ids that are compared with an unknown one, so that a suggestion takes no longer than the answer."""
_COUNTED_WINDOWS = 1_000
"""Windows of a run that are counted for a report, at least: whole batches."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    option = parser.add_argument
    option("directory", metavar="DIR", help="finished build or scan")
    option("--dataset", metavar="D", help="this dataset alone, in detail")
    option("--task", metavar="T", help="fields, returns and episodes of one task")
    option("--episode", "--document", metavar="ID", help="decode this episode by steps, or this document by parts")
    option(
        "--steps", type=_steps_range, metavar="A:B", help="with --episode: steps A to B-1 (default: first 5; JSON: all)"
    )
    option("--full", action="store_true", help="with --document: all texts and parts, not shortened")
    option(
        "--images", type=Path, metavar="OUT", help="write images of --document, or of the steps of --episode, into OUT"
    )
    option("--at", type=float, metavar="F", help="what keep: {min_return: F} would keep, without a build")
    option("--keep", metavar="RULE", help="what another keep rule of a config would keep, without a build")
    option("--against", metavar="B", help="what changed from DIR to directory B, or to rule B: a fraction or keep rule")
    option("--step", type=int, metavar="K", help="DIR is a run's: the records behind its step K, from 1")
    option(
        "--run", metavar="R", help="with --step: DIR is a build, R a run or config; with --html: what R draws from DIR"
    )
    option("--html", type=Path, metavar="FILE", help="write a report: one page that opens offline")
    option("--card", type=Path, metavar="FILE", help="write a dataset card as Markdown")
    option("--serve", action="store_true", help="explore in a browser: a server on this machine alone")
    option("--port", type=int, metavar="N", help=f"with --serve: its port, 0 for a free one (default: {DEFAULT_PORT})")


def _steps_range(text: str) -> tuple[int, int | None]:
    """Reads ``A:B``, ``A:`` or ``:B`` as (first, end); end is None for all that follow."""
    match = re.fullmatch(r"(\d*):(\d*)", text)
    first, end = (int(match[1] or 0), int(match[2]) if match[2] else None) if match else (0, 0)
    if end is not None and end <= first:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of steps; give A:B with A below B, such as 10:20")
    return first, end


def run(arguments: argparse.Namespace) -> int:
    """Shows the one view that the arguments ask for."""
    from gatokit.inspection import open_directory
    from gatokit.inspection.tables.overview import show_directory
    from gatokit.inspection.tables.tasks import show_rule, show_task

    _check_options(arguments)
    output = Output(arguments.json)
    if arguments.step is not None:
        _show_training_step(output, arguments)
        return 0
    rule = arguments.at if arguments.keep is None else _read_keep(arguments.keep, "--keep")
    directory = open_directory(arguments.directory)
    if arguments.against is not None:
        _show_changes(output, directory, rule, arguments)
        return 0
    datasets = _find_datasets(directory, arguments.dataset, arguments.task)
    if arguments.serve:
        _serve(output, directory, datasets, arguments.port)
    elif arguments.html is not None or arguments.card is not None:
        _write_report(output, directory, datasets, arguments)
    elif rule is not None:
        show_rule(output, datasets, arguments.task, rule)
    elif arguments.episode is not None:
        _show_episode(output, datasets, arguments)
    elif arguments.task is not None:
        show_task(output, datasets, arguments.task)
    else:
        show_directory(output, directory, datasets, arguments.dataset is not None)
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Raises ConfigError if two options exclude each other, or one is given without another that it needs."""
    given = {name for name, value in vars(arguments).items() if value is not None and value is not False}
    if "episode" in given:
        given.add("document")
    for option, others in _EXCLUSIVE.items():
        for other in others.split():
            if {option, other} <= given:
                raise ConfigError(f"--{option} and --{other} exclude each other: give one of them")
    for option, others in _NEEDED.items():
        if option in given and given.isdisjoint(others.split()):
            needed = " or ".join(f"--{other}" for other in others.split())
            raise ConfigError(f"--{option} belongs to {needed}: give {needed} as well")


# --- datasets, tasks, episodes and rules by the words of the command line --------------------------------------


def _find_datasets(directory: "Directory", dataset: str | None, task: str | None) -> "list[DatasetReader]":
    """The datasets that the arguments name: all, one, or those with a task. Raises ConfigError if there is none."""
    datasets = list(directory.datasets.values())
    if dataset is not None:
        if dataset not in directory.datasets:
            raise ConfigError(f"--dataset {dataset}: {directory.path} has {_no_such_name(dataset, directory.datasets)}")
        datasets = [directory.datasets[dataset]]
    if task is None:
        return datasets
    episodes = [item for item in datasets if not item.holds_documents]
    found = [item for item in episodes if task in item.task_names]
    if not found and any(item.name == task for item in datasets if item.holds_documents):
        raise ConfigError(f"--task {task}: it holds documents, which have no tasks; give --dataset {task}")
    if not found:
        names = dict.fromkeys(name for item in episodes for name in item.task_names)
        raise ConfigError(f"--task {task}: {dataset or directory.path} has {_no_such_name(task, names)}")
    return found


def _find_episode(
    datasets: "Sequence[DatasetReader]", id_: str, task: str | None
) -> "tuple[DatasetReader, EpisodeRow]":
    """The episode or document of an id and the dataset that has it. Raises ConfigError if none or several have it."""
    import pyarrow.compute as pc

    found = [(dataset, row) for dataset in datasets if (row := dataset.row(id_)) and task in (None, row.task)]
    if len(found) == 1:
        return found[0]
    option = "--document" if all(dataset.holds_documents for dataset in datasets) else "--episode"
    if found:
        names = ", ".join(dataset.name for dataset, _ in found)
        raise ConfigError(f"{option} {id_}: {names} each have this id; name one with --dataset")
    where = None if task is None else pc.field("task") == task
    ids: list[str] = []
    for dataset in datasets:
        ids += dataset.index(["episode_id"], where)["episode_id"].slice(0, _MOST_COMPARED - len(ids)).to_pylist()
    names = ", ".join(dataset.name for dataset in datasets)
    raise ConfigError(f"{option} {id_}: {names} has {_no_such_name(id_, ids, cutoff=0.4)}")


def _no_such_name(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    names = list(known)
    question = did_you_mean(name, names, most=3, cutoff=cutoff)
    if question:
        return f"no such name; {question}"
    return f"no such name, only {', '.join(names)}" if len(names) <= 12 else "no such name"


def _read_keep(text: str, option: str) -> "Keep":
    """Reads a keep rule, YAML or JSON such as ``{best: 100}``. Raises ConfigError, which names ``option``."""
    from gatokit.schemas.config import parse_mapping, validated
    from gatokit.schemas.config_episodes import Keep

    content = parse_mapping(text, option, "keys of a config's keep, such as '{best: 100}'")
    return validated(Keep, content, option)


def _read_rule(text: str) -> "Rule":
    """Reads the fraction or keep rule that ``--against`` names. Raises ConfigError if it is neither."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return _read_keep(text, "--against")
    except ConfigError as error:
        if text.lstrip().startswith("{"):
            raise
        raise ConfigError(f"--against {text}: no directory, no fraction and no keep rule") from error


# --- the views --------------------------------------------------------------------------------------------------


def _show_episode(output: Output, datasets: "Sequence[DatasetReader]", arguments: argparse.Namespace) -> None:
    """Shows one episode or document."""
    from gatokit.inspection.tables.episode import show_document, show_episode

    dataset, row = _find_episode(datasets, arguments.episode, arguments.task)
    if dataset.holds_documents:
        if arguments.steps is not None:
            raise ConfigError(f"--steps: {row.episode_id} is a document, which has no steps; --full shows all of it")
        show_document(output, dataset, row, arguments.full, arguments.images)
    else:
        if arguments.full:
            raise ConfigError(f"--full: {row.episode_id} is an episode; --steps A:B shows more of it")
        show_episode(output, dataset, row, arguments.steps, arguments.images)


def _show_changes(output: Output, left: "Directory", rule: "Rule | None", arguments: argparse.Namespace) -> None:
    """Shows what changed from a directory, as it is or by a rule, to another directory or by another rule."""
    from gatokit.inspection import open_directory
    from gatokit.inspection.compare import compare, compare_rules
    from gatokit.inspection.preview import rule_text
    from gatokit.inspection.tables.changes import show_changes

    name, other, detailed = arguments.dataset, arguments.against, arguments.dataset is not None
    if arguments.task is not None:
        raise ConfigError("--task: --against compares whole datasets; give --dataset, or leave --task out")
    if Path(other).is_dir():
        if rule is not None:
            raise ConfigError(f"--against {other}: --at and --keep are of one directory; leave them out")
        right = open_directory(other)
        if name is not None and name not in right.datasets:
            _find_datasets(left, name, None)
        changes = compare(left, right, None if name is None else [name])
        show_changes(output, changes, str(left.path), str(right.path), detailed)
    else:
        other_rule = _read_rule(other)
        datasets = [item for item in _find_datasets(left, name, None) if not item.holds_documents]
        if not datasets:
            raise ConfigError(f"--against {other}: documents have no rules; give a directory")
        before = f"{left.path} as it is" if rule is None else rule_text(rule)
        show_changes(output, compare_rules(datasets, rule, other_rule), before, rule_text(other_rule), detailed)


def _serve(output: Output, directory: "Directory", datasets: "Sequence[DatasetReader]", port: int | None) -> None:
    """Serves the explorer until Ctrl-C or SIGTERM. Raises ConfigError if Panel is missing or the port is taken."""
    with needs("serve"):
        from gatokit.inspection.explorer.server import serve

    def ready(address: str) -> None:
        output.say(
            f"{directory.path} is at this address, on this machine alone; Ctrl-C stops it.",
            address,
            "Whoever has the address sees what you see; it ends with the server.",
        )
        output.result({"address": address})

    serve(directory, datasets, DEFAULT_PORT if port is None else port, ready)


def _write_report(
    output: Output, directory: "Directory", datasets: "Sequence[DatasetReader]", arguments: argparse.Namespace
) -> None:
    """Writes the report and the card that are asked for, each complete or not at all.

    Raises ConfigError if a file cannot be written or is one that somebody wrote or edited, the packages of the report
    are missing, or the run cannot draw from the directory.
    """
    from gatokit.inspection.card import card, markdown
    from gatokit.storage.files import write_atomically
    from gatokit.storage.ownership import check_output, check_page, marked

    files: dict[str, Path] = {name: path for name in ("card", "html") if (path := getattr(arguments, name)) is not None}
    for name, path in files.items():
        # An index takes long to read, so paths are checked first.
        if path.is_dir() and not path.is_symlink():
            raise ConfigError(f"--{name} {path}: that is a directory; give a file")
        check_output(path)
        if not path.parent.is_dir():
            raise ConfigError(f"--{name} {path}: there is no directory {path.parent}; make it, or give another file")
    texts = {}
    if "card" in files:
        texts["card"] = markdown(card(directory, datasets))
    if "html" in files:
        from gatokit.inspection.report import library, page, report

        with needs("report"):
            script = library()
        shares = None if arguments.run is None else _shares(directory, arguments.run)
        with output.progress() as progress:
            texts["html"] = page(report(directory, datasets, shares, progress), script)
    pages = {name: marked(text) for name, text in texts.items()}
    for name, path in files.items():
        check_page(f"--{name}", path, pages[name])
    for name, path in files.items():
        try:
            write_atomically(path, pages[name])
        except OSError as error:
            raise ConfigError(f"--{name} {path}: cannot be written: {error.strerror}") from None
        output.say(f"wrote {path}, {byte_size(path.stat().st_size)}")
    output.result({name: str(path) for name, path in files.items()})


# --- what a run draws ---------------------------------------------------------------------------------------------


def _read_run(path: str) -> "tuple[RunConfig, RunFile | None]":
    """The config of ``--run``, and its ``run.json`` if ``path`` is a run's directory and not a config or a preset."""
    from gatokit.schemas.run import read_run_config
    from gatokit.storage.run_directory import read_run

    if not Path(path).is_dir():
        return read_run_config(path), None
    found = read_run(Path(path))
    if found is None:
        raise ConfigError(f"--run {path}: it holds no run.json; give a run config, a preset or the directory of a run")
    return found.config, found


def _shares(directory: "Directory", run: str) -> "dict[str, Shares]":
    """Each dataset's share of the weights of a run, or run config, and of the first windows that it draws."""
    from collections import Counter

    with needs("train"):
        from gatokit.inspection.report import Shares
        from gatokit.loader.mixture import open_mixture
        from gatokit.loader.windows import Windows

        config, found = _read_run(run)
    mixture = open_mixture([str(directory.path)] if found is None else found.data, config.input.weights)
    windows = Windows(mixture, config)
    steps = range(-(-_COUNTED_WINDOWS // config.batch))
    counts = Counter(window.dataset for step in steps for window in windows.trace(step, range(config.batch)))
    weights = zip(mixture.names, mixture.weights.tolist(), strict=True)
    return {name: Shares(asked=weight, drawn=counts[name] / counts.total()) for name, weight in weights}


def _show_training_step(output: Output, arguments: argparse.Namespace) -> None:
    """Shows the windows of a step, from 1 as metrics count them: of the run in DIR, or of the build in DIR from which
    the config or run ``--run`` draws. With ``--dataset`` and ``--task`` it shows only their rows.

    Raises ConfigError if DIR is no run and ``--run`` is not given, or if the data are not those of the run.
    """
    with needs("train"):
        from gatokit.loader.mixture import open_mixture
        from gatokit.loader.provenance import COLUMNS, table_rows
        from gatokit.loader.windows import Windows
        from gatokit.schemas.run_directory import RUN_VERSION
        from gatokit.storage.run_directory import read_run

    directory, step = arguments.directory, arguments.step
    if step < 1:
        raise ConfigError(f"--step {step}: the first step of a run is 1")
    if arguments.run is not None:
        config, _ = _read_run(arguments.run)
        mixture = open_mixture([directory], config.input.weights)
    else:
        found = read_run(Path(directory))
        if found is None:
            raise ConfigError(
                f"--step: {directory} holds no run.json; give the directory of a run, or a build with --run CONFIG"
            )
        config = found.config
        if found.version < RUN_VERSION:
            raise ConfigError(f"--step: an earlier version drew the windows of {directory} by other rules")
        mixture = open_mixture(found.data, config.input.weights)
        if mixture.data_digest != found.data_digest:
            data = ", ".join(found.data)
            raise ConfigError(
                f"{directory} was trained on other data than {data} now hold: its steps are gone with them"
            )
    windows = Windows(mixture, config)
    shown = [
        window
        for window in windows.trace(step - 1, range(config.batch))
        if arguments.dataset in (None, window.dataset) and arguments.task in (None, window.task)
    ]
    title = f"step {step}: windows of {config.context} tokens, patch slots {windows.patch_slots}"
    output.table(title, COLUMNS, table_rows(shown))
    output.result({"step": step, "patch_slots": windows.patch_slots, "rows": [window.to_json() for window in shown]})
