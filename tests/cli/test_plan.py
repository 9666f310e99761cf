"""``gatokit build --plan`` as a user meets it."""

from pathlib import Path

import pytest

from gatokit.storage.folder import read_manifest


def test_plan_writes_nothing_and_its_json_is_what_the_build_gave(gatokit, recorded_config: Path, built: Path, tmp_path):
    out = tmp_path / "out"
    ran = gatokit("build", recorded_config, "--out", out, "--plan", "--sample-seconds", 300, "--workers", 3, "--json")
    assert (ran.status, out.exists(), ran.out.count("\n")) == (0, False, 1)
    plan = ran.json["plan"]
    datasets = read_manifest(built).datasets
    for found, real in zip(plan["datasets"], datasets, strict=True):
        keys = ("name", "episodes", "kept", "shards", "tokens", "bytes")
        assert [found[key] for key in keys] == [getattr(real, key) for key in keys]
        assert found["splits"] == len(real.splits)
        assert {"kept", "tokens"} <= set(found["exact"])
        assert set(found["spread"]) == {
            "kept_share",
            "tokens_per_byte",
            "scan_bytes_per_second",
            "build_bytes_per_second",
        }
    assert plan["totals"]["tokens"] == sum(dataset.tokens for dataset in datasets)
    assert plan["workers"] == 3
    assert 0 < plan["seconds"] < 3600
    assert plan["totals"]["worker_hours"] == pytest.approx(sum(item["worker_hours"] for item in plan["datasets"]))


def test_the_tables_mark_estimates(gatokit, recorded_config: Path, built: Path, tmp_path, monkeypatch):
    from gatokit.pipelines import estimate

    monkeypatch.setenv("COLUMNS", "250")
    words = ("build", recorded_config, "--out", tmp_path / "out", "--plan", "--only", "metaworld", "--sample-seconds")
    kept, tokens = (getattr(read_manifest(built).datasets[0], key) for key in ("kept", "tokens"))
    exact = gatokit(*words, 300).out
    assert f" {kept:,} " in exact
    assert f" {tokens:,} " in exact
    assert "about " in exact
    assert "with 1 worker," in exact
    monkeypatch.setattr(estimate, "_FIRST_BYTES", 20_000)
    part = gatokit(*words, 0).out
    assert f" {tokens:,} " not in part
    assert f"~{round(tokens, 3 - len(str(tokens))):,} " in part
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", 3], "--plan looks at whole datasets; leave out --limit"),
        (["--only", "x"], "--only x: "),
        (["--wrokers", 2], "unknown option '--wrokers'"),
        (["--sample-seconds", "soon"], "'soon' is no number of seconds from 0 to 3600"),
        (["--sample-seconds", "nan"], "'nan' is no number of seconds"),
    ],
)
def test_wrong_arguments(gatokit, recorded_config: Path, tmp_path, words, said):
    ran = gatokit("build", recorded_config, "--out", tmp_path / "out", "--plan", *words)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err
