"""``gatokit inspect``: what a finished build or scan holds, one episode or document, what other rules would keep, what
changed, the records behind a training step, a report, the explorer."""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gatokit.cli.console import Output, needs
from gatokit.schemas.errors import ConfigError

if TYPE_CHECKING:
    from gatokit.inspection import DatasetReader, Directory, EpisodeRow
    from gatokit.inspection.preview import Rule
    from gatokit.inspection.report import Shares
    from gatokit.schemas.config import Keep
    from gatokit.trainer.run_directory import RunFile

DEFAULT_PORT = 5006
_MOST_COMPARED = 20_000
"""Ids that are compared with an unknown one, so that a suggestion takes no longer than the answer."""
_COUNTED_WINDOWS = 1_000
"""Windows of a run that are counted for a report, at least: whole batches."""


EXAMPLE = (
    "gatokit inspect built --task door-open-v3\n  gatokit inspect built --at 0.9\n"
    "  gatokit inspect built --keep '{best: 100}'\n  gatokit inspect before --against built\n"
    "  gatokit inspect built --at 0.8 --against 0.9\n"
    "  gatokit inspect built --episode 'door-open-v3/door.tfrecord-00000#0' --steps 10:20\n"
    "  gatokit inspect built --dataset captions\n"
    "  gatokit inspect built --document '00000.tar#000000012' --images images\n"
    "  gatokit inspect built --html report.html --card README.md\n  gatokit inspect built --serve"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    option = parser.add_argument
    option("directory", metavar="DIR", help="finished build or scan")
    option("--dataset", metavar="D", help="this dataset alone, in detail")
    option("--task", metavar="T", help="fields, returns and episodes of one task")
    option(
        "--episode",
        "--document",
        dest="episode",
        metavar="ID",
        help="decode this episode step by step, or this document part by part",
    )
    option(
        "--steps",
        type=steps_range,
        metavar="A:B",
        help="with --episode: steps A to B - 1 (default: the first 5; all with --json)",
    )
    option("--full", action="store_true", help="with --document: all texts and parts, not shortened")
    option(
        "--images",
        type=Path,
        metavar="OUT",
        help="with --document: write its images into files of OUT; with --episode those of the steps shown",
    )
    option("--at", type=float, metavar="F", help="what keep: {min_return: F} would keep, without a build")
    option("--keep", metavar="RULE", help="what another keep rule of a config would keep, without a build")
    option(
        "--against",
        metavar="B",
        help="what changed from DIR to the finished directory B; or to another rule for DIR, a fraction or a keep rule",
    )
    option("--step", type=int, metavar="K", help="DIR is a run's: the records behind its step K, from 1")
    option(
        "--run",
        dest="of_run",
        metavar="R",
        help="with --step: DIR is a build, R a run or run config; with --html: show what R draws from DIR",
    )
    option("--html", type=Path, metavar="FILE", help="write a report: one page that opens offline")
    option("--card", type=Path, metavar="FILE", help="write a dataset card as Markdown")
    option("--serve", action="store_true", help="explore in a browser: a server on this machine alone")
    option(
        "--port",
        type=int,
        metavar="N",
        help=f"with --serve: its port, 0 for any that is free (default: {DEFAULT_PORT})",
    )


def steps_range(text: str) -> tuple[int, int | None]:
    """``A:B``, ``A:`` or ``:B`` as (first, end); end is None for all that follow."""
    match = re.fullmatch(r"(\d*):(\d*)", text)
    first, end = (int(match[1] or 0), int(match[2]) if match[2] else None) if match else (0, 0)
    if match is None or (end is not None and end <= first):
        raise argparse.ArgumentTypeError(f"{text!r} is no range of steps; give A:B with A below B, such as 10:20")
    return first, end


def run(arguments: argparse.Namespace) -> int:
    """Prints the one view that the arguments ask for."""
    from gatokit.inspection import open_directory
    from gatokit.inspection.tables.overview import show_directory
    from gatokit.inspection.tables.tasks import show_rule, show_task

    rules = _check_options(arguments)
    output = Output(arguments.json)
    if arguments.step is not None:
        if arguments.episode is not None or rules:
            raise ConfigError("--step answers another question than --episode and --at: give one of them")
        _show_training_step(output, arguments)
        return 0
    if arguments.of_run is not None and arguments.html is None:
        raise ConfigError("--run belongs to --step or --html: give the step to show, or a file for the report")
    rule = arguments.at if arguments.keep is None else read_keep(arguments.keep, "--keep")
    directory = open_directory(arguments.directory)
    if arguments.against is not None:
        _show_against(output, directory, rule, arguments)
        return 0
    datasets = chosen_datasets(directory, arguments.dataset, arguments.task)
    if arguments.serve:
        _serve(output, directory, datasets, arguments.port)
    elif arguments.html is not None or arguments.card is not None:
        _write_report(output, directory, datasets, arguments)
    elif rule is not None:
        show_rule(output, datasets, arguments.task, rule)
    elif arguments.episode is not None:
        _show_one(output, *find_episode(datasets, arguments.episode, arguments.task), arguments)
    elif arguments.task is not None:
        show_task(output, datasets, arguments.task)
    else:
        show_directory(output, directory, datasets, arguments.dataset is not None)
    return 0


def _check_options(arguments: argparse.Namespace) -> list[str]:
    """Raises ConfigError if options contradict each other; returns those that name a rule or another directory."""
    rules = [option for option in ("at", "keep", "against") if getattr(arguments, option) is not None]
    if rules and arguments.episode is not None:
        raise ConfigError(f"--{rules[0]} and --episode answer different questions: give one of them")
    if arguments.at is not None and arguments.keep is not None:
        raise ConfigError("--at and --keep are two rules: give one of them, or the second as --against")
    if arguments.episode is None:
        if arguments.steps is not None:
            raise ConfigError("--steps belongs to --episode: give the episode whose steps to show")
        if arguments.full or arguments.images is not None:
            option = "--full" if arguments.full else "--images"
            raise ConfigError(f"{option} belongs to --document: give the document to show")
    if arguments.port is not None and not arguments.serve:
        raise ConfigError("--port belongs to --serve: give --serve as well")
    views = ["task", "episode", "at", "keep", "against", "step"]
    alone = next((option for option in ("html", "card") if getattr(arguments, option) is not None), None)
    if arguments.serve:
        alone, views = "serve", [*views, "html", "card", "of_run"]
    for view in views if alone is not None else ():
        if getattr(arguments, view) is not None:
            name = "run" if view == "of_run" else view
            raise ConfigError(f"--{alone} and --{name} are two views: give one of them")
    return rules


def _show_against(output: Output, left: "Directory", rule: "Rule | None", arguments: argparse.Namespace) -> None:
    """Shows what changed from a directory, as it is or by a rule, to another directory or by another rule."""
    from gatokit.inspection import open_directory
    from gatokit.inspection.compare import compare, compare_rules
    from gatokit.inspection.preview import rule_text
    from gatokit.inspection.tables.changes import show_changes

    name, detailed = arguments.dataset, arguments.dataset is not None
    if arguments.task is not None:
        raise ConfigError("--task: --against compares whole datasets; give --dataset, or leave --task out")
    if not Path(arguments.against).is_dir():
        other = _other_rule(arguments.against)
        datasets = [item for item in chosen_datasets(left, name, None) if not item.holds_documents]
        if not datasets:
            raise ConfigError(f"--against {arguments.against}: documents have no rules; give a directory")
        before = f"{left.path} as it is" if rule is None else rule_text(rule)
        show_changes(output, compare_rules(datasets, rule, other), before, rule_text(other), detailed)
        return
    if rule is not None:
        raise ConfigError(f"--against {arguments.against}: --at and --keep are of one directory; leave them out")
    right = open_directory(arguments.against)
    if name is not None and name not in right.datasets:
        chosen_datasets(left, name, None)
    changes = compare(left, right, None if name is None else [name])
    show_changes(output, changes, str(left.path), str(right.path), detailed)


def read_keep(text: str, option: str) -> "Keep":
    """The keep rule of ``text``, YAML or JSON such as ``{best: 100}``. Raises ConfigError, which begins with
    ``option``, if it is none."""
    import yaml

    from gatokit.schemas.config import Keep, validated

    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{option}: is no YAML: {str(error).splitlines()[0]}; quote it as '{{best: 100}}'") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{option}: {text!r} is no rule; give one as a config has it, such as '{{best: 100}}'")
    return validated(Keep, content, option)


def _other_rule(text: str) -> "Rule":
    """The fraction or keep rule that ``--against`` names."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return read_keep(text, "--against")
    except ConfigError as error:
        if text.lstrip().startswith("{"):
            raise
        raise ConfigError(f"--against {text}: no directory, no fraction and no keep rule") from error


def chosen_datasets(directory: "Directory", dataset: str | None, task: str | None) -> "list[DatasetReader]":
    """The datasets that the arguments name: all, one, or those with a task. Raises ConfigError if there is none."""
    datasets = list(directory.datasets.values())
    if dataset is not None:
        if dataset not in directory.datasets:
            raise ConfigError(f"--dataset {dataset}: {directory.path} has {_instead(dataset, directory.datasets)}")
        datasets = [directory.datasets[dataset]]
    if task is None:
        return datasets
    episodes = [item for item in datasets if not item.holds_documents]
    names = dict.fromkeys(name for item in episodes for name in item.task_names)
    if task not in names:
        if any(item.name == task for item in datasets if item.holds_documents):
            raise ConfigError(f"--task {task}: it holds documents, which have no tasks; give --dataset {task}")
        raise ConfigError(f"--task {task}: {dataset or directory.path} has {_instead(task, names)}")
    return [item for item in episodes if task in item.task_names]


def find_episode(datasets: "Sequence[DatasetReader]", id_: str, task: str | None) -> "tuple[DatasetReader, EpisodeRow]":
    """The episode or document of an id and the dataset that has it. Raises ConfigError if none or several have it."""
    import pyarrow.compute as pc

    kinds = {dataset.holds_documents for dataset in datasets}
    noun = "document" if kinds == {True} else "episode" if kinds == {False} else "episode or document"
    option = "--document" if kinds == {True} else "--episode"
    found = [(dataset, row) for dataset in datasets if (row := dataset.row(id_)) and task in (None, row.task)]
    if len(found) > 1:
        names = ", ".join(dataset.name for dataset, _ in found)
        article = "a" if noun == "document" else "an"
        raise ConfigError(f"{option} {id_}: {names} each have {article} {noun} of this id; name one with --dataset")
    if not found:
        where = None if task is None else pc.field("task") == task
        ids: list[str] = []
        for dataset in datasets:
            ids += dataset.index(["episode_id"], where)["episode_id"].slice(0, _MOST_COMPARED - len(ids)).to_pylist()
        names = ", ".join(dataset.name for dataset in datasets)
        raise ConfigError(f"{option} {id_}: {names} has {_instead(id_, ids, cutoff=0.4)}")
    return found[0]


def _instead(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    import difflib

    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=cutoff)
    if not near and len(names) <= 12:
        return f"no such name, only {', '.join(names)}"
    return "no such name" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _show_one(output: Output, dataset: "DatasetReader", row: "EpisodeRow", arguments: argparse.Namespace) -> None:
    """Shows one episode or document."""
    from gatokit.inspection.tables.episode import show_document, show_episode

    if not dataset.holds_documents:
        if arguments.full:
            raise ConfigError(f"--full: {row.episode_id} is an episode; --steps A:B shows more of it")
        show_episode(output, dataset, row, arguments.steps, arguments.images)
        return
    if arguments.steps is not None:
        raise ConfigError(f"--steps: {row.episode_id} is a document, which has no steps; --full shows all of it")
    show_document(output, dataset, row, arguments.full, arguments.images)


def _serve(output: Output, directory: "Directory", datasets: "Sequence[DatasetReader]", port: int | None) -> None:
    """Serves the explorer until Ctrl-C or SIGTERM. Raises ConfigError if Panel is missing or the port is taken."""
    with needs("serve"):
        from gatokit.inspection.explorer.server import serve

    def ready(address: str) -> None:
        output.say(f"{directory.path} is at {address} on this machine alone; Ctrl-C stops it")
        output.result({"address": address})

    serve(directory, datasets, DEFAULT_PORT if port is None else port, ready)


def _write_report(
    output: Output, directory: "Directory", datasets: "Sequence[DatasetReader]", arguments: argparse.Namespace
) -> None:
    """Writes the report and the card that are asked for, each complete or not at all.

    Raises ConfigError if a file cannot be written, the packages of the report are missing, or the run cannot draw from
    the directory.
    """
    from gatokit.inspection.card import card, markdown
    from gatokit.schemas.words import byte_size

    files: dict[str, Path | None] = {"card": arguments.card, "html": arguments.html}
    for name, path in files.items():
        # Before an index is read.
        if path is not None and path.is_dir():
            raise ConfigError(f"--{name} {path}: that is a directory; give a file")
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"--{name} {path}: there is no directory {path.parent}; make it, or give another file")
    if arguments.card is not None:
        _write(arguments.card, markdown(card(directory, datasets)), "--card")
    if arguments.html is not None:
        from gatokit.inspection.report import library, page, report

        with needs("report"):
            script = library()
        shares = None if arguments.of_run is None else _shares(directory, arguments.of_run)
        with output.progress() as progress:
            content = report(directory, datasets, shares, progress)
        _write(arguments.html, page(content, script), "--html")
    written = {name: path for name, path in files.items() if path is not None}
    for path in written.values():
        output.say(f"wrote {path}, {byte_size(path.stat().st_size)}")
    output.result({name: str(path) for name, path in written.items()})


def _write(path: Path, text: str, option: str) -> None:
    from gatokit.storage.files import write_atomically

    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be written: {error.strerror}") from None


def _run_of(directory: str) -> "RunFile | None":
    """The run in ``--run``; None if that is no directory, but a config or a preset."""
    from gatokit.trainer.run_directory import read_run

    if not Path(directory).is_dir():
        return None
    found = read_run(Path(directory))
    if found is None:
        raise ConfigError(
            f"--run {directory}: it holds no run.json; give a run config, a preset or the directory of a run"
        )
    return found


def _shares(directory: "Directory", run: str) -> "dict[str, Shares]":
    """By dataset its share of the weights of a run, or run config, and of the first windows that it draws."""
    from collections import Counter

    with needs("train"):
        from gatokit.inspection.report import Shares
        from gatokit.loader.mixture import open_mixture
        from gatokit.loader.windows import Windows
        from gatokit.schemas.run import read_run_config

        found = _run_of(run)
    config = read_run_config(run) if found is None else found.config
    mixture = open_mixture([str(directory.path)] if found is None else found.data, config.input.weights)
    windows = Windows(mixture, config)
    steps = range(-(-_COUNTED_WINDOWS // config.batch))
    counts = Counter(sample.dataset for step in steps for sample in windows.trace(step, range(config.batch)))
    weights = zip(mixture.names, mixture.weights.tolist(), strict=True)
    return {name: Shares(asked=weight, drawn=counts[name] / counts.total()) for name, weight in weights}


def _show_training_step(output: Output, arguments: argparse.Namespace) -> None:
    """Shows the windows of a step, from 1 as metrics count them: of the run in DIR, or of the build in DIR from which
    the config or run ``--run`` draws. With ``--dataset`` and ``--task`` only their rows.

    Raises ConfigError if DIR is no run and ``--run`` is not given, or if the data are not those of the run.
    """
    with needs("train"):
        from gatokit.loader.mixture import open_mixture
        from gatokit.loader.provenance import COLUMNS, table_rows
        from gatokit.loader.windows import Windows
        from gatokit.schemas.run import read_run_config
        from gatokit.trainer.run_directory import read_run

    directory, step = arguments.directory, arguments.step
    if step < 1:
        raise ConfigError(f"--step {step}: the first step of a run is 1")
    if arguments.of_run is not None:
        found, data = _run_of(arguments.of_run), [directory]
        config = read_run_config(arguments.of_run) if found is None else found.config
        mixture = open_mixture(data, config.input.weights)
    else:
        found = read_run(Path(directory))
        if found is None:
            raise ConfigError(
                f"--step: {directory} holds no run.json; give the directory of a run, or a build with --run CONFIG"
            )
        config, data = found.config, found.data
        mixture = open_mixture(data, config.input.weights)
        if mixture.data_digest != found.data_digest:
            raise ConfigError(
                f"{directory} was trained on other data than {', '.join(data)} now hold: its steps are gone with them"
            )
    windows = Windows(mixture, config)
    samples = [
        item
        for item in windows.trace(step - 1, range(config.batch))
        if arguments.dataset in (None, item.dataset) and arguments.task in (None, item.task)
    ]
    output.table(
        f"step {step}: windows of {config.context} tokens, patch slots {windows.patch_slots}",
        COLUMNS,
        table_rows(samples),
    )
    output.result({"step": step, "patch_slots": windows.patch_slots, "rows": [item.to_json() for item in samples]})
