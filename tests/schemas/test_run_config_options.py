"""Options that the run config no longer has: a config that names one is told what to write; old runs still open."""

import re
from pathlib import Path
from typing import Any

import pytest

from gatokit.cli.main import main
from gatokit.schemas.config import validated
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.run import RunConfig, read_run_config

OLD: dict[str, Any] = {
    "model": {
        "size": "tiny", "layers": 4, "width": 128, "heads": 4, "head_size": 32, "hidden": 512, "patch_channels": 32,
        "patch_stride": 2, "observation_positions": 512, "action_position": True,
    },
    "steps": 20_000,
    "input": {"prompt": {"share": 0.25, "end_share": 0.5, "loss": True}, "threads": 3, "prefetch": 9},
    "optimizer": {"warmup_from": 1e-7},
    "checkpoint": {"keep_every": 4, "keep_best": False},
}  # fmt: skip


def test_an_old_run_opens_if_its_dropped_options_had_the_fixed_values() -> None:
    assert validated(RunConfig, OLD, "run.json") == RunConfig(model="tiny", steps=20_000)
    assert OLD["model"]["patch_stride"] == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model": {"size": "79m", "patch_stride": 2}},
            "run.json: model.patch_stride is no longer an option: remove it",
        ),
        ({"input": {"prompt": {"loss": False}}}, "run.json: input.prompt.loss is no longer an option: remove it"),
    ],
)
def test_an_old_run_with_other_values_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as found:
        validated(RunConfig, {"model": "tiny", "steps": 20_000} | changes, "run.json")
    assert str(found.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {size: tiny, patch_channels: 32}", "model.patch_channels is no longer an option: remove it; channels"),
        ("model: {size: tiny, patch_stride: 2}", "model.patch_stride is no longer an option: remove it; channels and"),
        ("model: {size: tiny, observation_positions: 9}", "model.observation_positions is no longer an option: remove"),
        ("model: {size: tiny, action_position: true}", "model.action_position is no longer an option: remove it; act"),
        ("model: tiny\ninput: {prompt: {end_share: 1}}", "input.prompt.end_share is no longer an option: remove it"),
        ("model: tiny\ninput: {prompt: {loss: true}}", "input.prompt.loss is no longer an option: remove it"),
        ("model: tiny\ninput: {threads: 8}", "input.threads is no longer an option: set input.workers instead"),
        ("model: tiny\ninput: {prefetch: 8}", "input.prefetch is no longer an option: remove it"),
        ("model: tiny\noptimizer: {warmup_from: 0}", "optimizer.warmup_from is no longer an option: remove it"),
        ("model: tiny\ncheckpoint: {keep_every: 8}", "checkpoint.keep_every is no longer an option: raise checkpoint."),
        ("model: tiny\ncheckpoint: {keep_best: true}", "checkpoint.keep_best is no longer an option: remove it"),
    ],
)
def test_a_config_that_names_one_is_told_what_to_write(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert main(["train", str(path), "--data", "built", "--out", "run"]) == 2
    assert f"{path}: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("batch: 512", 8),
        ("batch: 12", 4),
        ("batch: 512\nmesh: {data: 32, fsdp: 4}", 4),
        ("batch: 512\nmicrobatches: 256", 2),
        ("batch: 512\ninput: {patch_group_rows: 16}", 16),
    ],
)
def test_the_rows_of_a_patch_group_follow_from_batch_and_mesh(text: str, rows: int, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model: tiny\n{text}\n")
    assert read_run_config(path).patch_group_rows == rows


def test_values_on_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: tiny\nbatch: 32\noptimizer: {clip: 0.5}\n")
    words = [
        "batch=16",
        "optimizer.learning_rate=3e-4",
        "model.layers=2",
        "input.prompt.share=0",
        "input.skip=[[1, 2]]",
    ]
    found = read_run_config(path, words)
    assert (found.batch, found.optimizer.clip, found.optimizer.learning_rate) == (16, 0.5, 3e-4)
    assert (found.model.size, found.model.layers, found.model.width) == ("tiny", 2, 128)
    assert (found.input.prompt.share, found.input.skip) == (0, ((1, 2),))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.learning_rat=1", "optimizer.learning_rat: unknown key; did you mean 'learning_rate'?"),
        ("batch", "'batch' is no KEY=VALUE, such as optimizer.learning_rate=3e-4"),
        (".batch=1", "'.batch=1' is no KEY=VALUE"),
        ("batch.size=1", "batch.size=1: batch is 32 in the config, which has no keys"),
        ("batch=many", "with batch=many: batch: must be a whole number"),
        ("batch=[1", "batch=[1, line 1: this is not valid YAML"),
        ("input.skip=[[3, 4], [4, 6]]", "skip must be ranges [begin, end) that ascend and do not meet"),
    ],
)
def test_a_wrong_value_on_the_command_line_is_named(tmp_path: Path, word: str, said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: tiny\nbatch: 32\n")
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_run_config(path, [word])
