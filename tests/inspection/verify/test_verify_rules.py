"""Indexes that contradict the keep rule of their config."""

import shutil

import pytest

from gatokit.inspection.verify.directory import verify
from gatokit.schemas.manifest import json_digest


@pytest.mark.parametrize(
    ("dataset", "keep", "said"),
    [
        ("grid", {"return": [8.5, None]}, "4 rows are kept with a return outside of the range; the first is "),
        ("grid", {"return": [8, 8]}, None),
        ("grid", {"where": "steps < 8"}, "4 rows are kept, and the expression of keep is not true for them; the first"),
        ("grid", {"where": "steps == 8 and task == 'grid' and expert_return == return"}, None),
        ("arm", {"best": 3}, "rows are dropped by a rule that the config does not have; the first is "),
    ],
)
def test_a_config_that_says_another_rule(small, edit_manifest, tmp_path, dataset, keep, said):
    out = tmp_path / "out"
    shutil.copytree(small.scanned, out)

    def edit(content):
        (config,) = (item for item in content["config"]["datasets"] if item["name"] == dataset)
        config["keep"] = keep
        content["config_digest"] = json_digest(content["config"])

    edit_manifest(out, edit)
    faults = verify(out)
    if said is None:
        assert faults == []
    else:
        assert faults
        for fault in faults:
            assert fault.file.startswith(f"{dataset}/{dataset}-")
            assert said in fault.fault
