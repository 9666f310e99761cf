"""A command whose packages are not installed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gatokit.cli.console import needs
from gatokit.environments.demo import make_captions
from gatokit.schemas.errors import ConfigError, missing_package

WITHOUT = """
import sys

sys.modules[sys.argv[1]] = None
from gatokit.cli.main import main

sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("words", "package"),
    [
        ("scan c.yaml --out out", "apache_beam"),
        ("build c.yaml --out out", "apache_beam"),
        ("vocab c.yaml --out text.model", "tensorflow_datasets"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(words: str, package: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, package, *words.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    hint = "run in a checkout of gatokit: pip install '.[build]'"
    assert done.stderr == f"gatokit: {package} is not installed; {hint}\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert not list(tmp_path.iterdir())
    as_json = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True)
    said = {"code": "missing_package", "message": f"{package} is not installed", "way_out": hint}
    assert json.loads(as_json.stdout) == {"error": said}


def test_the_demos_pictures_need_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ConfigError, match=r"^resvg_py is not installed; .*: pip install '\.\[demo\]'$"):
        make_captions(tmp_path)


def test_where_envlogger_cannot_be_had_the_hint_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, extra, module, said in (
        ((3, 11, 9), "envlogger", "envlogger", r"envlogger is not installed; .* pip install '\.\[envlogger\]'"),
        ((3, 12, 1), "envlogger", "envlogger", r"envlogger is not installed; it cannot be had above Python 3\.11: .*"),
        ((3, 12, 1), "environments", "dm_control.suite", r"dm_control is .* pip install '\.\[environments\]'"),
        ((3, 13, 0), "environments", "dm_control.suite", r"dm_control is .* it cannot be had above Python 3\.12: .*"),
    ):
        monkeypatch.setattr(sys, "version_info", version)
        assert re.fullmatch(said, str(missing_package(module, extra)))


def test_a_part_of_gatokit_that_is_missing_is_a_fault_of_ours() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"gatokit\.cli\.absent"), needs("build"):
        import gatokit.cli.absent  # noqa: F401
