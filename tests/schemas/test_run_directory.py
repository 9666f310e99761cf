"""A directory of one run is not gone on with by another."""

import json
from pathlib import Path
from typing import Any

import pytest
from runs import CONFIG, config

from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.run_directory import RunFile
from gatokit.storage.run_directory import read_run


def run_file(folder: Path, digest: str = "00", **changes: Any) -> RunFile:
    return RunFile(config=config(folder, **changes), data=["built"], data_digest=digest)


def test_what_may_change(tmp_path: Path) -> None:
    changed = run_file(
        tmp_path,
        steps=2000,
        log_every=2,
        microbatches=2,
        remat="full",
        mesh={"fsdp": 2},
        evaluation={"every": 3, "batches": 2},
        checkpoint={"every": 7, "keep_last": 1},
        input=CONFIG["input"] | {"workers": 2},
    )
    run_file(tmp_path).check_same(changed, tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch": 16}, "run holds a run whose batch is 4, and the config says 16: give another --out"),
        ({"seed": 1}, "whose seed is 0, and the config says 1"),
        (
            {"input": CONFIG["input"] | {"hide_actions": 0.5}},
            "whose input.hide_actions is 0.0, and the config says 0.5",
        ),
        ({"optimizer": {"clip": 2, "warmup_steps": 2}}, "whose optimizer.clip is 1.0, and the config says 2.0"),
        ({"model": "tiny"}, "whose model.head_size is 8, and the config says 32"),
        ({"steps": 999}, "a run of 1000 steps, and the config says 999: steps may only grow; --steps stops earlier"),
        ({"digest": "11"}, "a run on other data (built; its digest is 00, not 11): give another --out, or init_from"),
    ],
)
def test_what_may_not_change(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as found:
        run_file(tmp_path).check_same(run_file(tmp_path, **changed), tmp_path / "run")
    assert said in str(found.value)
    assert str(found.value).startswith(str(tmp_path / "run"))


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    written = run_file(tmp_path)
    (tmp_path / "run.json").write_bytes(written.to_bytes())
    assert read_run(tmp_path) == written
    old = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(old | {"overfit_one_batch": False}))
    assert read_run(tmp_path) == written
    (tmp_path / "run.json").write_text(json.dumps(old | {"overfit_one_batch": True}))
    with pytest.raises(
        DataError, match=r"run.json cannot be read: a run on one batch .* cannot go on; give another --out"
    ):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run.json cannot be read( as JSON)?: .*; give another --out"):
        read_run(tmp_path)
