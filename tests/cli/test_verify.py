"""``gatokit verify``: exit status, one line a fault, JSON."""

import shutil

from gatokit.inspection import open_directory


def test_sound_directories(gatokit, built, scanned):
    for directory in (built, scanned):
        result = gatokit("verify", directory)
        assert result.status == 0
        assert "is complete and sound" in result.out
        assert len(result.out.splitlines()) == 1
    result = gatokit("verify", built, "--json")
    assert (result.json["ok"], result.json["faults"]) == (True, [])
    assert result.json["records"] == sum(dataset.records for dataset in open_directory(built).manifest.datasets)


def test_a_fault_a_line(gatokit, built, tmp_path):
    root = shutil.copytree(built, tmp_path / "damaged")
    split = open_directory(root).datasets["control"].totals.splits[0]
    shard, index = root / "control" / split.parts[0].file, root / "control" / split.index
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 0x80
    shard.write_bytes(data)
    index.unlink()
    result = gatokit("verify", root)
    assert result.status == 1
    lines = result.out.splitlines()
    assert lines[:2] == sorted(
        [f"control/{shard.name}: its content does not match its digest", f"control/{index.name}: missing"]
    )
    assert lines[2].endswith("2 faults in 2 of its files")
    found = gatokit("verify", root, "--json")
    assert found.status == 1
    assert found.json["ok"] is False
    assert [set(fault) for fault in found.json["faults"]] == [{"file", "fault"}] * 2


def test_an_unfinished_build(gatokit, built, tmp_path):
    root = shutil.copytree(built, tmp_path / "unfinished")
    (root / "manifest.json").unlink()
    result = gatokit("verify", root, "--json")
    assert result.status == 1
    (fault,) = result.json["faults"]
    assert fault["file"] == "manifest.json"
    assert "not complete" in fault["fault"]


def test_no_directory(gatokit, tmp_path):
    result = gatokit("verify", tmp_path / "absent")
    assert (result.status, result.out) == (2, "")
    assert "there is no directory" in result.err
