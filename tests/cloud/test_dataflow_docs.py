"""docs/dataflow.md and the files beside it say what gatokit, Beam and the repository say."""

import importlib
import importlib.metadata
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gatokit.cli.main import VERBS, verb_parser
from gatokit.pipelines.beam.jobs import execution

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "dataflow.md").read_text()

NOT_CHECKED = {"gcloud", "docker", "gcsfuse", "git", "cd", "export", "python3.11", ".venv/bin/pip", ".venv/bin/uv", "."}
"""Programs of others, whose arguments are not checked. Every other command of the page must be gatokit."""


def commands(language: str = "sh") -> list[list[str]]:
    """The words of each command in the page's code blocks."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", DOC, re.S | re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(part) for line in lines for part in line.split(" && ") if part.strip()]


def gatokit_commands() -> list[list[str]]:
    """Those of gatokit."""
    return [words for words in commands() if words[0] not in NOT_CHECKED]


def options_of_gatokit() -> set[str]:
    return {name for verb in VERBS for action in verb_parser(verb)._actions for name in action.option_strings}


def options_of_beam() -> set[str]:
    beam = _BeamArgumentParser(allow_abbrev=False)
    for type_ in PipelineOptions.__subclasses__():
        type_._add_argparse_args(beam)
    return {name for action in beam._actions for name in action.option_strings}


def check(arguments: list[str]) -> None:
    """ConfigError where neither gatokit nor Beam has an argument, or a value is none of its kind."""
    _, rest = verb_parser(arguments[0]).parse_known_args(arguments[1:])
    module = importlib.import_module(f"gatokit.cli.{arguments[0]}")
    assert not rest or module.TAKES_BEAM_OPTIONS, rest
    execution(rest, 1)


def test_the_page_has_commands_and_other_programs_are_named() -> None:
    assert {words[0] for words in gatokit_commands()} == {"gatokit"}
    assert {words[1] for words in gatokit_commands()} >= {"build", "scan", "inspect", "verify"}
    assert {words[0] for words in commands()} >= NOT_CHECKED - {"docker"}


@pytest.mark.parametrize("words", gatokit_commands(), ids=" ".join)
def test_every_command_is_one_that_gatokit_and_beam_take(words: list[str]) -> None:
    check(words[1:])


@pytest.mark.parametrize("wrong", ["--max_num_worker=5", "--disk_size_gb=large", "--sdk_container=x", "--limit=0"])
def test_a_wrong_flag_would_be_found(wrong: str) -> None:
    [words] = [words for words in gatokit_commands() if "gs://$BUCKET/tried" in words]
    check(words[1:])
    with pytest.raises((Exception, SystemExit)):
        check([*words[1:], wrong])


def test_every_flag_in_the_text_is_one_that_gatokit_or_beam_has() -> None:
    text = re.sub(r"^```.*?^```", "", DOC, flags=re.S | re.M)
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    assert len(flags) > 10
    assert flags <= options_of_gatokit() | options_of_beam()


def test_the_arithmetic_is_right() -> None:
    [block] = re.findall(r"^```text arithmetic\n(.*?)^```", DOC, re.S | re.M)
    lines = block.splitlines()
    assert len(lines) > 8
    for line in lines:
        expression, result = line.partition(":")[2].split("=")
        assert re.fullmatch(r"[\d\s.e+*/-]+", expression)
        digits = len(result.strip().partition(".")[2])
        assert round(eval(expression), digits) == float(result), line


def metadata() -> dict[str, Any]:
    return json.loads((ROOT / "deploy" / "metadata.json").read_text())


def test_the_templates_parameters_are_those_of_the_build() -> None:
    parameters = metadata()["parameters"]
    names = [parameter["name"] for parameter in parameters]
    assert len(set(names)) == len(names)
    own = options_of_gatokit() | {"--config"}
    for parameter in parameters:
        assert f"--{parameter['name']}" in own | options_of_beam()
        assert parameter["label"]
        assert parameter["helpText"]
        assert all(re.compile(regex) for regex in parameter.get("regexes", []))
    assert {item["name"] for item in parameters if not item.get("isOptional")} == {
        "config",
        "out",
        "sdk_container_image",
    }


def test_the_template_passes_every_parameter_to_the_build() -> None:
    spec = importlib.util.spec_from_file_location("template", ROOT / "deploy" / "template.py")
    assert spec is not None
    assert spec.loader is not None
    template = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(template)
    values = {"config": "gs://b/c.yaml", "out": "gs://b/o", "update": "true", "sdk_location": "container"}
    given = {item["name"]: values.get(item["name"], "3") for item in metadata()["parameters"]}
    for item in metadata()["parameters"]:
        assert all(re.fullmatch(regex, given[item["name"]]) for regex in item.get("regexes", [])), item["name"]
    launcher = ["--runner=DataflowRunner", "--project=p", "--template_location=gs://b/t", "--job_name=n"]
    arguments, _ = template.build_arguments([*(f"--{name}={value}" for name, value in given.items()), *launcher])
    check(arguments)
    assert arguments[:4] == ["build", "gs://b/c.yaml", "--out", "gs://b/o"]
    passed = {word.partition("=")[0].removeprefix("--") for word in arguments[4:]}
    assert passed == (set(given) - {"config", "out"}) | {"runner", "project"}


def test_the_commands_give_the_template_what_it_knows() -> None:
    words = [word for command in commands() for word in command if word.startswith("--parameters=")]
    given = {pair.partition("=")[0] for word in words for pair in word.removeprefix("--parameters=").split(",")}
    names = {parameter["name"] for parameter in metadata()["parameters"]}
    assert {item["name"] for item in metadata()["parameters"] if not item.get("isOptional")} <= given <= names


def pins(file: str = "requirements.lock") -> dict[str, str]:
    """A lock's version of each package on a worker, which has Python 3.11 on Linux."""
    found = {}
    for line in re.findall(r"^(\S.*?) \\$", (ROOT / file).read_text(), re.M):
        item = Requirement(line)
        if item.marker is None or item.marker.evaluate({"python_version": "3.11", "python_full_version": "3.11.7"}):
            found[canonicalize_name(item.name)] = str(item.specifier).removeprefix("==")
    return found


def extras() -> dict[str, list[Requirement]]:
    """What gatokit asks for, by extra; "" is always."""
    found: dict[str, list[Requirement]] = {}
    for line in importlib.metadata.requires("gatokit") or []:
        requirement = Requirement(line)
        extra = re.search(r'extra == "(\w+)"', line)
        found.setdefault(extra[1] if extra else "", []).append(requirement)
    return found


def test_image_and_workers_get_all_that_a_build_needs_at_the_locked_versions() -> None:
    locked = pins("deploy/requirements.txt")
    names = needed([*extras()[""], *extras()["build"], Requirement("apache-beam[gcp]")])
    assert names - {"pip"} <= locked.keys()
    assert "setuptools" in locked
    assert not {"tensorflow", "tensorflow-cpu", "jax", "jaxlib", "torch", "envlogger"} & locked.keys()
    assert locked.items() <= pins().items()


def needed(requirements: list[Requirement]) -> set[str]:
    """Names of the distributions that an installation of these brings, by what is installed here."""
    waiting, seen = [(item.name, frozenset(item.extras)) for item in requirements], set()
    while waiting:
        name, wanted = key = (canonicalize_name(waiting[-1][0]), waiting.pop()[1])
        if key in seen:
            continue
        seen.add(key)
        for line in importlib.metadata.requires(name) or []:
            item = Requirement(line)
            if item.marker is None or any(item.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                waiting.append((item.name, frozenset(item.extras)))
    return {name for name, _ in seen}


def test_the_image_has_neither_tensorflow_nor_jax() -> None:
    names = needed([*extras()[""], *extras()["build"], Requirement("apache-beam[gcp]")])
    assert {"apache-beam", "tensorflow-datasets", "google-cloud-storage", "google-cloud-dataflow-client"} <= names
    assert not {"tensorflow", "tensorflow-cpu", "jax", "jaxlib", "grain", "torch", "envlogger"} & names
    assert names <= pins().keys() | {"setuptools", "pip"}


def test_the_dockerfile_takes_what_is_there() -> None:
    """The image's whole context is what .dockerignore lets through."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    image = f"apache/beam_python3.11_sdk:{pins()['apache-beam']}"
    assert f'case "$BASE" in {image}@sha256:' in text
    assert f"export BASE={image}@sha256:" in DOC
    assert re.findall(r"^COPY .*", text, re.M) == ["COPY . ."]
    ignored = (ROOT / ".dockerignore").read_text().split()
    taken = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert ignored[0] == "*"
    assert all((ROOT / source).exists() for source in taken)
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert taken == folders | {"LICENSE", "README.md", "deploy", "pyproject.toml", "requirements.lock", "setup.py"}
    template = (ROOT / "deploy" / "template.Dockerfile").read_text()
    for source in re.findall(r"^COPY (deploy/\S+)", template, re.M):
        assert (ROOT / source).is_file()
    assert "/template/template.py\n" in template
