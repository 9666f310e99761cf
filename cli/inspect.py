"""``gatokit inspect``: what a finished build or scan holds, one episode or document, other rules, what changed, a
report."""

import argparse
import difflib
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from gatokit.cli.console import Output
from gatokit.schemas.errors import ConfigError

if TYPE_CHECKING:
    from gatokit.inspection import DatasetReader, Directory, EpisodeRow
    from gatokit.inspection.preview import Rule

_MOST_COMPARED = 20_000
"""Ids that are compared with an unknown one, so that a suggestion takes no longer than the answer."""


EXAMPLE = (
    "gatokit inspect built --task door-open-v3\n  gatokit inspect built --at 0.9\n"
    "  gatokit inspect built --keep '{best: 100}'\n  gatokit inspect before --against built\n"
    "  gatokit inspect built --at 0.8 --against 0.9\n"
    "  gatokit inspect built --episode 'door-open-v3/door.tfrecord-00000#0' --steps 10:20\n"
    "  gatokit inspect built --dataset captions\n"
    "  gatokit inspect built --document '00000.tar#000000012' --images pictures\n"
    "  gatokit inspect built --html report.html --card README.md\n  gatokit inspect built --serve"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("directory", metavar="DIR", help="finished build or scan")
    parser.add_argument("--dataset", metavar="D", help="this dataset alone, in detail")
    parser.add_argument("--task", metavar="T", help="fields, returns and episodes of one task")
    parser.add_argument(
        "--episode",
        "--document",
        dest="episode",
        metavar="ID",
        help="decode this episode step by step, or this document part by part",
    )
    parser.add_argument(
        "--steps",
        type=steps_range,
        metavar="A:B",
        help="with --episode: steps A to B - 1 (default: the first 5; all with --json)",
    )
    parser.add_argument("--full", action="store_true", help="with --document: texts and parts whole, not shortened")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="OUT",
        help="with --document: write its pictures into files of OUT; with --episode those of the steps shown",
    )
    parser.add_argument("--at", type=float, metavar="F", help="what keep: {min_return: F} would keep, without a build")
    parser.add_argument("--keep", metavar="RULE", help="what another keep rule of a config would keep, without a build")
    parser.add_argument(
        "--against",
        metavar="B",
        help="what changed from DIR to the finished directory B; or to another rule for DIR, a fraction or a keep rule",
    )
    parser.add_argument("--step", type=int, metavar="K", help="DIR is a run's: the records behind its step K, from 1")
    parser.add_argument(
        "--run",
        dest="of_run",
        metavar="R",
        help="with --step: DIR is a build, R a run or run config; with --html: show what R draws from DIR",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report: one page that opens offline")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write a dataset card as Markdown")
    parser.add_argument("--serve", action="store_true", help="explore in a browser: a server on this machine alone")
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="with --serve: its port, 0 for any that is free (default: 5006)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the one view that the arguments ask for."""
    from gatokit.cli.report import write_report
    from gatokit.cli.rules import read_keep
    from gatokit.cli.serve import serve_explorer
    from gatokit.cli.training_step import show_step
    from gatokit.cli.views import show_at, show_directory, show_task
    from gatokit.inspection import open_directory

    asked = [option for option in ("at", "keep", "against") if getattr(arguments, option) is not None]
    if asked and arguments.episode is not None:
        raise ConfigError(f"--{asked[0]} and --episode answer different questions: give one of them")
    if arguments.at is not None and arguments.keep is not None:
        raise ConfigError("--at and --keep are two rules: give one of them, or the second as --against")
    if arguments.episode is None:
        if arguments.steps is not None:
            raise ConfigError("--steps belongs to --episode: give the episode whose steps to show")
        if arguments.full or arguments.images is not None:
            option = "--full" if arguments.full else "--images"
            raise ConfigError(f"{option} belongs to --document: give the document to show")
    output = Output(arguments.json)
    if arguments.serve:
        _check_alone("serve", arguments, "html", "card", "of_run")
        directory = open_directory(arguments.directory)
        serve_explorer(output, directory, chosen_datasets(directory, arguments.dataset, None), arguments.port)
        return 0
    if arguments.port is not None:
        raise ConfigError("--port belongs to --serve: give --serve as well")
    files = [option for option in ("html", "card") if getattr(arguments, option) is not None]
    if files:
        _check_alone(files[0], arguments)
        directory = open_directory(arguments.directory)
        datasets = chosen_datasets(directory, arguments.dataset, None)
        write_report(output, directory, datasets, arguments.html, arguments.card, arguments.of_run)
        return 0
    if arguments.step is not None:
        if arguments.episode is not None or asked:
            raise ConfigError("--step answers another question than --episode and --at: give one of them")
        show_step(output, arguments.directory, arguments.of_run, arguments.step, arguments.dataset, arguments.task)
        return 0
    if arguments.of_run is not None:
        raise ConfigError("--run belongs to --step or --html: give the step to show, or a file for the report")
    rule = arguments.at if arguments.keep is None else read_keep(arguments.keep, "--keep")
    directory = open_directory(arguments.directory)
    if arguments.against is not None:
        _show_against(output, directory, rule, arguments)
        return 0
    datasets = chosen_datasets(directory, arguments.dataset, arguments.task)
    if rule is not None:
        show_at(output, datasets, arguments.task, rule)
    elif arguments.episode is not None:
        _show_one(output, *find_episode(datasets, arguments.episode, arguments.task), arguments)
    elif arguments.task is not None:
        show_task(output, datasets, arguments.task)
    else:
        show_directory(output, directory, datasets, arguments.dataset is not None)
    return 0


def _check_alone(option: str, arguments: argparse.Namespace, *others: str) -> None:
    """ConfigError where another view is asked for beside the explorer or the files of a report."""
    for other in ("task", "episode", "at", "keep", "against", "step", *others):
        if getattr(arguments, other) is not None:
            name = "run" if other == "of_run" else other
            raise ConfigError(f"--{option} and --{name} are two views: give one of them")
    if arguments.of_run is not None and arguments.html is None:
        raise ConfigError("--run belongs to --step or --html: give the step to show, or a file for the report")


def _show_against(output: Output, left: "Directory", rule: "Rule | None", arguments: argparse.Namespace) -> None:
    """What changed from a directory, as it stands or by a rule, to another directory or by another rule."""
    from gatokit.cli.against import show_changes
    from gatokit.cli.rules import read_rule, shown
    from gatokit.inspection import open_directory
    from gatokit.inspection.compare.directories import against, against_rules

    name, task, detailed = arguments.dataset, arguments.task, arguments.dataset is not None
    if task is not None:
        raise ConfigError("--task: --against compares whole datasets; give --dataset, or leave --task out")
    if not Path(arguments.against).is_dir():
        try:
            other = read_rule(arguments.against, "--against")
        except ConfigError as error:
            if arguments.against.lstrip().startswith("{"):
                raise
            raise ConfigError(f"--against {arguments.against}: no directory, no fraction and no keep rule") from error
        datasets = [item for item in chosen_datasets(left, name, None) if not item.holds_documents]
        if not datasets:
            raise ConfigError(f"--against {arguments.against}: documents have no rules; give a directory")
        was = f"{left.path} as it is" if rule is None else shown(rule)
        show_changes(output, against_rules(datasets, rule, other), was, shown(other), detailed)
        return
    if rule is not None:
        raise ConfigError(f"--against {arguments.against}: --at and --keep are of one directory; leave them out")
    right = open_directory(arguments.against)
    if name is not None and name not in right.datasets:
        chosen_datasets(left, name, None)
    changes = against(left, right, None if name is None else [name])
    show_changes(output, changes, str(left.path), str(right.path), detailed)


def _show_one(output: Output, dataset: "DatasetReader", row: "EpisodeRow", arguments: argparse.Namespace) -> None:
    """One episode or document."""
    from gatokit.cli.document import show_document
    from gatokit.cli.steps import show_episode

    if not dataset.holds_documents:
        if arguments.full:
            raise ConfigError(f"--full: {row.episode_id} is an episode; --steps A:B shows more of it")
        show_episode(output, dataset, row, arguments.steps, arguments.images)
        return
    if arguments.steps is not None:
        raise ConfigError(f"--steps: {row.episode_id} is a document, which has no steps; --full shows all of it")
    show_document(output, dataset, row, arguments.full, arguments.images)


def steps_range(text: str) -> tuple[int, int | None]:
    """``A:B``, ``A:`` or ``:B`` as (first, end), end None for all that follow."""
    match = re.fullmatch(r"(\d*):(\d*)", text)
    first, end = (int(match[1] or 0), int(match[2]) if match[2] else None) if match else (0, 0)
    if match is None or (end is not None and end <= first):
        raise argparse.ArgumentTypeError(f"{text!r} is no range of steps; give A:B with A below B, such as 10:20")
    return first, end


def chosen_datasets(directory: "Directory", dataset: str | None, task: str | None) -> "list[DatasetReader]":
    """The datasets that have the named task, of those that the arguments leave; ConfigError where none is left."""
    datasets = list(directory.datasets.values())
    if dataset is not None:
        if dataset not in directory.datasets:
            raise ConfigError(f"--dataset {dataset}: {directory.path} has {_instead(dataset, directory.datasets)}")
        datasets = [directory.datasets[dataset]]
    if task is not None:
        documents = next((item.name for item in datasets if item.holds_documents and item.name == task), None)
        datasets = [item for item in datasets if not item.holds_documents]
        names = dict.fromkeys(name for item in datasets for name in item.task_names)
        if task not in names and documents is not None:
            raise ConfigError(f"--task {task}: it holds documents, which have no tasks; give --dataset {task}")
        if task not in names:
            raise ConfigError(f"--task {task}: {dataset or directory.path} has {_instead(task, names)}")
        datasets = [item for item in datasets if task in item.task_names]
    return datasets


def find_episode(datasets: "list[DatasetReader]", id_: str, task: str | None) -> "tuple[DatasetReader, EpisodeRow]":
    """The episode or document of an id and the dataset that has it; ConfigError where none or several have."""
    kinds = {dataset.holds_documents for dataset in datasets}
    what = "document" if kinds == {True} else "episode" if kinds == {False} else "episode or document"
    option = "--document" if kinds == {True} else "--episode"
    found = [(dataset, row) for dataset in datasets if (row := dataset.row(id_)) and task in (None, row.task)]
    if len(found) > 1:
        names = ", ".join(dataset.name for dataset, _ in found)
        article = "a" if what == "document" else "an"
        raise ConfigError(f"{option} {id_}: {names} each have {article} {what} of this id; name one with --dataset")
    if not found:
        import pyarrow.compute as pc

        where = None if task is None else pc.field("task") == task
        ids = (
            known
            for dataset in datasets
            for known in dataset.index(["episode_id"], where)["episode_id"].slice(0, _MOST_COMPARED).to_pylist()
        )
        names = ", ".join(dataset.name for dataset in datasets)
        raise ConfigError(f"{option} {id_}: {names} has {_instead(id_, islice(ids, _MOST_COMPARED), cutoff=0.4)}")
    return found[0]


def _instead(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=cutoff)
    if not near and len(names) <= 12:
        return f"no such name, only {', '.join(names)}"
    return "no such name" + (f"; did you mean {' or '.join(near)}?" if near else "")
