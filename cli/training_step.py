"""``gatokit inspect --step``: the records behind one step of a training run."""

from pathlib import Path
from typing import Any

from gatokit.cli.console import Output
from gatokit.loader.mixture import open_mixture
from gatokit.loader.provenance import Provenance, Segment
from gatokit.loader.windows import Windows
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.run import RunConfig, read_run_config
from gatokit.trainer.run_directory import RunFile, read_run

_COLUMNS = ("row", "dataset", "task", "episode or document", "shard", "records", "tokens", "prompt from", "targets")


def show_step(
    output: Output, directory: str, run: str | None, step: int, dataset: str | None, task: str | None
) -> None:
    """The windows of a step (from 1, as metrics count them): of the run in ``directory``, or of a build that is drawn
    from by the config or run ``run``.

    Only the rows of ``dataset`` and ``task``, where these are given. ConfigError where ``directory`` is no run and
    ``run`` is not given, or the data are not those of the run.
    """
    if step < 1:
        raise ConfigError(f"--step {step}: the first step of a run is 1")
    config, data, found = _run_of(directory, run)
    mixture = open_mixture(data, config.input.weights)
    if found is not None and run is None and mixture.data_digest != found.data_digest:
        raise ConfigError(
            f"{directory} was trained on other data than {', '.join(data)} now hold: its steps are gone with them"
        )
    windows = Windows(mixture, config)
    samples = windows.trace(step - 1, range(config.batch))
    samples = [item for item in samples if dataset in (None, item.dataset) and task in (None, item.task)]
    title = f"step {step}: windows of {config.context} tokens, patch slots {windows.patch_slots}"
    output.table(title, _COLUMNS, [line for sample in samples for line in _lines(sample)])
    output.result({"step": step, "patch_slots": windows.patch_slots, "rows": [item.to_json() for item in samples]})


def _run_of(directory: str, run: str | None) -> tuple[RunConfig, list[str], RunFile | None]:
    """The config of a run and its directories of data, and the file that says so."""
    if run is None:
        found = read_run(Path(directory))
        if found is None:
            raise ConfigError(
                f"--step: {directory} holds no run.json; give the directory of a run, or a build with --run CONFIG"
            )
        return found.config, found.data, found
    found = read_run(Path(run)) if Path(run).is_dir() else None
    if found is None and Path(run).is_dir():
        raise ConfigError(f"--run {run}: it holds no run.json; give a run config, a preset or the directory of a run")
    return read_run_config(run) if found is None else found.config, [directory], found


def _lines(sample: Provenance) -> list[list[Any]]:
    """One line for each episode or document of a window; what counts for the window stands in the first."""
    prompt = "" if sample.prompt is None else f"{sample.prompt.owner} {_tokens(sample.prompt)}"
    first: list[Any] = [sample.row, sample.dataset, sample.task or ""]
    found = []
    for segment in sample.segments:
        records = f"{segment.first_record}"
        if segment.last_record > segment.first_record:
            records += f"–{segment.last_record}"
        place = [segment.owner, Path(segment.shard).name, records, _tokens(segment)]
        found.append([*first, *place, prompt, sample.targets])
        first, prompt = [sample.row, "", ""], ""
    for line in found[1:]:
        line[-1] = None
    return found


def _tokens(segment: Segment) -> str:
    return f"{segment.begin}–{segment.end}"
