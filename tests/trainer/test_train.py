"""Whole runs at a tiny size: what they write, what stops them, and what another one may begin with."""

import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import CONFIG, Silent, config, lines

from gatokit.cli.main import main
from gatokit.loader.mixture import open_mixture
from gatokit.loader.records import OpenShards, Shard
from gatokit.loader.windows import Windows
from gatokit.policy.policy import load_policy
from gatokit.schemas.errors import ConfigError, DataError, MalformedError
from gatokit.schemas.record import Record
from gatokit.schemas.run_directory import flatten
from gatokit.storage.folder import read_policy
from gatokit.storage.run_directory import read_run
from gatokit.trainer import model
from gatokit.trainer.export import abstract, export, load_weights
from gatokit.trainer.mesh import make_mesh, place
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
    changed = config(tmp_path, optimizer=wild, checkpoint={"every": 1})
    with pytest.raises(DataError) as found:
        train(changed, [str(mixed)], out, Silent(), steps=9)
    said = str(found.value)
    step = int(said.split()[4])
    assert said.startswith(f"the loss of step {step} is ")
    assert f"the run stops, and the last good checkpoint is step {step - 1}" in said
    listed = json.loads((out / f"not-finite-{step}.json").read_text())
    assert len(listed) == 4
    assert f"The 4 windows of its batch ({listed[0]['dataset']} {listed[0]['owner']}, " in said
    assert max(int(item.name) for item in (out / "checkpoints").iterdir()) == step - 1


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
    monkeypatch.setattr(model, "OBSERVATION_POSITIONS", 4)
    with pytest.raises(DataError, match=r"has at least \d+ tokens, and the model has 4 positions: build the data with"):
        train(config(tmp_path, steps=7), [str(mixed)], tmp_path / "run", Silent())


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
