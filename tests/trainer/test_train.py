"""Whole runs at a tiny size: what they write, what stops them, and what another one may begin with."""

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from runs import CONFIG, Silent, config, lines

from gatokit.cli.main import main
from gatokit.loader import sampler
from gatokit.loader import windows as windows_module
from gatokit.loader.mixture import open_mixture
from gatokit.loader.records import OpenShards, Shard
from gatokit.loader.sampler import sample_numbers
from gatokit.loader.windows import Windows
from gatokit.policy.policy import load_policy
from gatokit.schemas.errors import ConfigError, DataError, MalformedError
from gatokit.schemas.record import Record
from gatokit.schemas.run_directory import flatten
from gatokit.storage.folder import read_policy
from gatokit.storage.lock import hold
from gatokit.storage.run_directory import read_run
from gatokit.trainer import model
from gatokit.trainer.export import abstract, export, load_weights
from gatokit.trainer.mesh import make_mesh, place
from gatokit.trainer.metrics import NormLimit
from gatokit.trainer.step import Trainer
from gatokit.trainer.train import train


@pytest.fixture(scope="module")
def trained(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of seven steps. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    found = train(config(folder, steps=7, log_every=2), [str(mixed)], folder / "run", Silent())
    assert found.step == 7
    assert found.line["step"] == 7
    assert found.line["held_out"]["loss"] > 0
    return folder / "run"


def test_what_a_run_leaves(trained: Path, mixed: Path) -> None:
    assert {item.name for item in trained.iterdir()} == {
        "checkpoints", "loss.png", "metrics.jsonl", "policy", "run.json", "tensorboard"
    }  # fmt: skip
    assert [item.name for item in sorted((trained / "checkpoints").iterdir())] == ["5", "7"]
    run = read_run(trained)
    assert run is not None
    assert (run.data, run.config.input.patch_slots) == ([str(mixed)], 8)
    found = lines(trained)
    assert [line["step"] for line in found] == [2, 4, 6, 7, 7]
    assert set(found[0]) == {
        "step", "loss", "gradient_norm", "datasets", "kinds", "action_loss", "first_action_loss", "redraws",
        "learning_rate",
    }  # fmt: skip
    assert set(found[0]["datasets"]) == {"grid", "books"}
    assert set(found[0]["kinds"]) == {"text", "discrete_action", "continuous_action"}
    assert set(found[-1]["held_out"]) == {
        "loss",
        "text_perplexity",
        "kinds",
        "action_loss",
        "first_action_loss",
        "datasets",
    }


def test_a_policy_can_be_made_of_the_checkpoint_alone(trained: Path, mixed: Path) -> None:
    folder = trained / "checkpoints" / "7" / "policy"
    policy = read_policy(folder)
    assert policy.config.context == 48
    assert policy.tokenizer.separator == 33024
    assert (folder / "vocabulary.model").read_bytes() == (mixed / "vocabulary.model").read_bytes()
    assert set(policy.datasets) == {"grid", "books"}
    assert policy.datasets["books"].documents is not None
    [grid] = policy.datasets["grid"].tasks.values()
    assert [field.path for field in policy.datasets["grid"].specs[grid.spec].observation] == ["observation"]
    shards = OpenShards([Shard(str(folder / "prompts.arrayrecord"), grid.prompt.records, 0)], 1)
    found = [Record.from_bytes(data) for data in shards.read_bytes(0, 0, grid.prompt.records)]
    assert {record.owner for record in found} == {grid.prompt.episode_id}
    assert [record.chunk for record in found] == list(range(found[0].chunks))


def test_a_finished_run_has_nothing_to_do(trained: Path, mixed: Path) -> None:
    report, before = Silent(), lines(trained)
    found = train(config(trained.parent, steps=7, log_every=2), [str(mixed)], trained, report)
    assert "step 7 is done already; nothing to do" in report.lines
    assert (found.line["step"], lines(trained)) == (7, before)


def test_weights_go_out_and_in_bit_for_bit(trained: Path, mixed: Path, tmp_path: Path) -> None:
    wanted = abstract(model.parameter_table(config(tmp_path).model, 33025))
    direct = flatten(load_weights(trained, wanted))
    assert export(trained, tmp_path / "weights") == model.count(model.parameter_table(config(tmp_path).model, 33025))
    assert {item.name for item in (tmp_path / "weights").iterdir()} == {
        "config.json", "model.safetensors", "policy.json", "prompts.arrayrecord", "vocabulary.model"
    }  # fmt: skip
    assert json.loads((tmp_path / "weights" / "config.json").read_text())["step"] == 7
    exported = flatten(load_weights(tmp_path / "weights", wanted))
    assert direct.keys() == exported.keys()
    for name, array in direct.items():
        np.testing.assert_array_equal(array, exported[name])
    with pytest.raises(ConfigError, match="weights is there already: give another --out, or remove it"):
        export(trained, tmp_path / "weights")
    # A run that begins with them has its own schedule, and with a learning rate of next to nothing stays with them.
    still = {"learning_rate": 1e-30, "final_learning_rate": 1e-30, "warmup_steps": 0, "schedule": "constant"}
    for source in (tmp_path / "weights", trained / "checkpoints" / "7"):
        out = tmp_path / f"from-{source.name}"
        report = Silent()
        train(config(tmp_path, init_from=str(source), optimizer=still), [str(mixed)], out, report, steps=2)
        assert f"begins with the weights of {source}" in report.lines
        found = flatten(load_weights(out, wanted))
        jax.tree.map(np.testing.assert_array_equal, found, dict(direct))
        export(out, tmp_path / f"out-{source.name}")
        said = (tmp_path / f"out-{source.name}" / "policy.json").read_text()
        assert json.loads(said)["config"]["init_from"] == source.name
        for item in (tmp_path / f"out-{source.name}").iterdir():
            assert str(tmp_path).encode() not in item.read_bytes()


def test_weights_of_another_model_are_refused_by_the_array(trained: Path, mixed: Path, tmp_path: Path) -> None:
    model = CONFIG["model"] | {"hidden": 64}
    said = r"/7 does not fit the config's model: layers.feed_forward.in is \(1, 16, 2, 16\), not \(1, 16, 2, 32\)"
    with pytest.raises(DataError, match=said):
        train(config(tmp_path, model=model, init_from=str(trained)), [str(mixed)], tmp_path / "run", Silent())
    with pytest.raises(ConfigError, match="init_from: there is no nowhere"):
        train(config(tmp_path, init_from="nowhere"), [str(mixed)], tmp_path / "other", Silent())


def test_one_batch_is_learned_by_heart(mixed: Path, tmp_path: Path) -> None:
    fast = {"learning_rate": 2e-2, "schedule": "constant", "warmup_steps": 5}
    still = CONFIG["model"] | {"stochastic_depth": 0}
    settings = config(tmp_path, model=still, optimizer=fast, batch=2)
    mixture = open_mixture([str(mixed)], settings.input.weights)
    windows = Windows(mixture, settings)
    mesh = make_mesh(settings.mesh, jax.devices())
    trainer = Trainer(settings, mixture.tokenizer.vocabulary_size, len(mixture.names), windows.patch_slots, mesh)
    batch, state, losses = place(windows.batch(0, range(2)), mesh), trainer.init(), []
    for _ in range(60):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[0] > 2
    assert losses[-1] < 0.1
    assert int(state.step) == 60


def test_a_loss_that_is_no_number_ends_the_run_with_its_records(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    wild = {"learning_rate": 1e30, "final_learning_rate": 1e30, "warmup_steps": 5, "clip": None}
    changed = config(tmp_path, optimizer=wild, checkpoint={"every": 1}, most_skipped=2)
    report = Silent()
    with pytest.raises(DataError) as found:
        train(changed, [str(mixed)], out, report, steps=9)
    said = str(found.value)
    step = int(re.findall(r"\d+", said)[0])
    assert re.match(rf"step {step}: its loss is .*: the run stops after 2 skipped steps in a row", said)
    assert f"and the last checkpoint is step {step - 1}" in said
    assert [line.split(":")[0] for line in report.lines if "skipped" in line] == [
        f"step {step - 1} is skipped",
        f"step {step} is skipped",
    ]
    listed = json.loads((out / f"skipped-{step}.json").read_text())
    assert len(listed) == 4
    assert f"The 4 windows of its batch ({listed[0]['dataset']} {listed[0]['owner']}, " in said


def test_a_skipped_step_is_trained_through_and_counted(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trainer.step

    def step(self: Trainer, state: Any, batch: Any, most_norm: float) -> Any:
        return whole(self, state, batch, -1.0 if int(state.step) == 2 else most_norm)

    monkeypatch.setattr(Trainer, "step", step)
    report = Silent()
    found = train(config(tmp_path, steps=6), [str(mixed)], tmp_path / "run", report)
    assert found.step == 6
    logged = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert [line.get("skipped_steps", 0) for line in logged] == [0, 0, 1, 0, 0, 0]
    assert logged[2]["loss"] is None
    assert [line for line in report.lines if line.startswith("step 3 is skipped: its loss is ")]


def test_the_limit_of_a_norm_is_that_of_the_steps_up_to_two_before() -> None:
    limit = NormLimit(3.0, {})
    for step in range(1, 51):
        assert limit.of(step) == math.inf
        limit.add(step, 2.0, taken=True)
    assert limit.of(51) == pytest.approx(6.0)
    limit.add(51, 2.0, taken=True)
    limit.add(52, 1e9, taken=False)
    limit.add(53, 4.0, taken=True)
    assert limit.of(54) == pytest.approx(6.0)
    assert NormLimit(3.0, json.loads(json.dumps(limit.means))).of(55) == pytest.approx(3 * (0.98 * 2 + 0.02 * 4))
    assert NormLimit(None, limit.means).of(55) == math.inf


def test_one_run_at_a_time_writes_a_directory(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with hold(out), pytest.raises(DataError, match="run is in use by another gatokit; wait for it"):
        train(config(tmp_path), [str(mixed)], out, Silent(), steps=2)
    assert train(config(tmp_path), [str(mixed)], out, Silent(), steps=2).step == 2


def test_a_directory_without_a_checkpoint_takes_another_config(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    class Stopped(Silent):
        def progress(self, step: int, last: int, line: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path, steps=4, context=40), [str(mixed)], out, Stopped())
    assert read_run(out).config.context == 40  # type: ignore[union-attr]
    assert train(config(tmp_path, steps=4, context=48), [str(mixed)], out, Silent()).step == 4
    assert read_policy(out / "policy").config.context == 48
    with pytest.raises(ConfigError, match="run whose context is 48, and the config says 40"):
        train(config(tmp_path, steps=6, context=40), [str(mixed)], out, Silent())


def test_more_steps_leave_the_learning_rate_and_resume_from_takes_another_config(mixed: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "run", Silent()
    train(config(tmp_path, steps=4), [str(mixed)], out, report)
    train(config(tmp_path, steps=6), [str(mixed)], out, report)
    assert [line for line in report.lines if line.startswith("the learning rate stays as it is after step 4; ")]
    rates = [line["learning_rate"] for line in lines(out) if "loss" in line]
    assert rates[-1] == pytest.approx(1e-3)
    faster = CONFIG["optimizer"] | {"final_learning_rate": 2e-3}
    changed = config(tmp_path, steps=8, optimizer=faster, resume_from=str(out), batch=8)
    other, report = tmp_path / "other", Silent()
    assert train(changed, [str(mixed)], other, report).step == 8
    assert f"goes on from step 6 of {out}" in report.lines
    assert {"batch was 4, is 8", "optimizer.final_learning_rate was 0.001, is 0.002"} <= set(report.lines)
    assert [line["step"] for line in lines(other) if "loss" in line] == [7, 8]
    with pytest.raises(ConfigError, match=r"resume_from: .*nothing holds no run\.json"):
        train(config(tmp_path, resume_from=str(tmp_path / "nothing")), [str(mixed)], tmp_path / "third", Silent())


def test_samples_are_left_out_unless_they_were_drawn(mixed: Path, tmp_path: Path) -> None:
    assert sample_numbers(np.arange(6), [(2, 4), (5, 9)]).tolist() == [0, 1, 4, 9, 10, 11]
    out = tmp_path / "run"
    train(config(tmp_path), [str(mixed)], out, Silent(), steps=2)
    skips = CONFIG["input"] | {"skip": [[8, 12]]}
    train(config(tmp_path, input=skips), [str(mixed)], out, Silent(), steps=3)
    skipped = Windows(open_mixture([str(mixed)], CONFIG["input"]["weights"]), read_run(out).config)  # type: ignore[union-attr]
    assert [window.sample for window in skipped.trace(2, range(4))] == [12, 13, 14, 15]
    with pytest.raises(ConfigError, match=r"input\.skip: samples below 16 were drawn already: skip later ones"):
        train(config(tmp_path), [str(mixed)], out, Silent(), steps=4)


def test_an_evaluation_that_was_stopped_is_done_again(mixed: Path, tmp_path: Path) -> None:
    changes = {"evaluation": {"every": 3, "batches": 2}}
    asked: list[int] = []

    def stops_in_the_evaluation() -> bool:
        asked.append(1)
        return len(asked) == 5  # three steps, then before each batch

    out, whole = tmp_path / "run", tmp_path / "whole"
    found = train(config(tmp_path, **changes), [str(mixed)], out, Silent(), is_asked_to_stop=stops_in_the_evaluation)
    assert (found.step, found.stopped) == (3, True)
    assert "held_out" not in lines(out)[-1]
    for folder in (out, whole):
        train(config(tmp_path, **changes), [str(mixed)], folder, Silent(), steps=4)
    assert lines(out) == lines(whole)
    assert [line["step"] for line in lines(out) if "held_out" in line] == [3]


def test_stopping_early_leaves_the_schedule(mixed: Path, tmp_path: Path) -> None:
    found = train(config(tmp_path, log_every=4), [str(mixed)], tmp_path / "run", Silent(), steps=3)
    assert (found.step, found.line["step"], found.line["partial"]) == (3, 3, True)
    found = train(config(tmp_path, log_every=4), [str(mixed)], tmp_path / "run", Silent(), steps=4)
    assert [line["step"] for line in lines(tmp_path / "run")] == [4]
    with pytest.raises(ConfigError, match="--steps 1001 is more than the config's steps 1000: raise that instead"):
        train(config(tmp_path), [str(mixed)], tmp_path / "run", Silent(), steps=1001)


@pytest.mark.parametrize("name", ["policy", "checkpoints", "metrics.jsonl", "loss.png", "manifest.json", "run.json"])
def test_a_run_begins_in_no_folder_with_files_of_its_names(name: str, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")  # of another name, and no harm
    (out / name).write_text("mine")
    with pytest.raises((ConfigError, DataError), match=rf"{re.escape(str(out))}.*{re.escape(name)}"):
        train(config(tmp_path, steps=4), [str(mixed)], out, Silent())
    (out / name).unlink()
    (tmp_path / "victim").mkdir()
    (out / name).symlink_to("../victim")
    with pytest.raises(MalformedError if name == "run.json" else ConfigError, match=re.escape(name)):
        train(config(tmp_path, steps=4), [str(mixed)], out, Silent())
    assert list((tmp_path / "victim").iterdir()) == []
    assert sorted(path.name for path in out.iterdir()) == sorted(["notes.txt", name])


def test_a_run_does_not_go_on_through_a_link(trained: Path, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for name in ("checkpoints", "policy", "tensorboard", "metrics.jsonl", "loss.png", "run.json"):
        shutil.copytree(trained, out)
        (out / name).rename(tmp_path / "victim")
        (out / name).symlink_to("../victim")
        with pytest.raises(MalformedError, match=rf"{re.escape(name)} is a link"):
            train(config(tmp_path, steps=9, log_every=2), [str(mixed)], out, Silent())
        shutil.rmtree(out)
        (shutil.rmtree if (tmp_path / "victim").is_dir() else os.remove)(tmp_path / "victim")


def test_a_link_among_checkpoints_is_neither_read_nor_removed(trained: Path, mixed: Path, tmp_path: Path) -> None:
    out, victim = tmp_path / "run", tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.tex").touch()
    for name in ("1", "9.orbax-checkpoint-tmp"):
        shutil.copytree(trained, out)
        (out / "checkpoints" / name).symlink_to(victim)
        with pytest.raises(MalformedError, match=rf"{re.escape(name)} is a link"):
            train(config(tmp_path, steps=9, log_every=2), [str(mixed)], out, Silent())
        assert [path.name for path in victim.iterdir()] == ["thesis.tex"]
        shutil.rmtree(out)


@pytest.mark.parametrize("target", [None, "victim", "nothing"])
def test_weights_replace_nothing(target: str | None, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "config.json").write_text("mine")
    out = tmp_path / ("victim" if target is None else "link")
    if target is not None:
        out.symlink_to(target)
    with pytest.raises(ConfigError, match="is there already: give another --out, or remove it"):
        export(trained, out)
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["config.json"]
    assert not (tmp_path / "nothing").exists()


def test_a_missing_shard_ends_in_a_sentence(mixed: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(mixed, broken)
    shard = next((broken / "books").glob("*.arrayrecord"))
    shard.unlink()
    with pytest.raises(DataError, match=rf"the shard {shard} cannot be read: No such file"):
        train(config(tmp_path), [str(broken)], tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"mesh .*does not fill 1 device"):
        train(config(tmp_path, mesh={"tensor": 2}), [str(mixed)], tmp_path / "run", Silent())


def test_an_observation_longer_than_the_table_of_positions(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "OBSERVATION_POSITIONS", 4)
    with pytest.raises(DataError, match=r"grid, task grid: .* has 5 tokens, and the model has 4 positions: build"):
        train(config(tmp_path, steps=7), [str(mixed)], tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()
    # If a text of some step is too long, windows with that step are left out.
    monkeypatch.undo()
    monkeypatch.setattr(windows_module, "OBSERVATION_POSITIONS", 16)
    changes = {"input": {"weights": {"arm": 1}}, "context": 64, "steps": 4}
    train(config(tmp_path, **changes), [str(mixed)], tmp_path / "run", report := Silent())
    counted = [line["unusable"] for line in lines(tmp_path / "run") if "unusable" in line]
    assert counted
    assert f"{counted[0]} windows with a damaged or too long record were drawn again" in report.lines


def test_the_checkpoint_writes_and_plays(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ``gatokit generate`` prints, from the run and from its export; and who cannot play."""
    words = ["--text", "the stream", "--tokens", "5", "--greedy"]
    assert main(["generate", "--checkpoint", str(trained), *words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["text"], said["image"]) == ("the stream", None)
    export(trained, tmp_path / "weights")
    assert main(["generate", "--checkpoint", str(tmp_path / "weights"), *words]) == 0
    assert capsys.readouterr().out.rstrip("\n") == f"the stream{said['written']}".rstrip("\n")
    assert main(["generate", "--checkpoint", str(trained), "--image", str(tmp_path / "none.png")]) == 2
    assert f"--image: {tmp_path / 'none.png'} cannot be read: No such file or directory" in capsys.readouterr().err
    policy = load_policy(trained)
    (task,) = policy.tasks
    with pytest.raises(ConfigError, match="grid/grid has 2 action fields, and a policy plays one"):
        policy.player(task, task.spec, 1)
