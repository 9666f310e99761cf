"""``gatokit build --runner=DataflowRunner``: the real submission, against stand-ins of storage and Dataflow."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gatokit.cli.main import main
from tests.google.dataflow import DataflowServer, Job
from tests.google.fixtures import Bucket
from tests.google.workers import execute, install

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [path.parent.name for path in ROOT.glob("*/__init__.py")]
CONFIG = """
vocabulary: text.model
chunk_tokens: 64
shard_bytes: 2000
datasets:
  - name: books
    kind: text
    source: data/*.jsonl
    field: text
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is made of, so that making it leaves the checkout as it is."""
    copy = tmp_path_factory.mktemp("copy") / "gatokit"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, copy)
    for folder in (*FOLDERS, "deploy"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def corpus(bucket: Bucket, vocabulary: Path) -> str:
    """The ``gs://`` name of a config of two files, with all that it names beside it."""
    bucket.put("text.model", vocabulary.read_bytes())
    for name in ("one", "two"):
        lines = [json.dumps({"text": f"Page {number} of book {name}: the import statement."}) for number in range(60)]
        bucket.put(f"data/{name}.jsonl", "\n".join(lines).encode())
    bucket.put("build.yaml", CONFIG.encode())
    return bucket.url("build.yaml")


Submit = Callable[..., int]


@pytest.fixture
def submit(checkout: Path, monkeypatch: pytest.MonkeyPatch, dataflow: DataflowServer, bucket: Bucket) -> Submit:
    """Runs ``gatokit VERB CONFIG --out ...`` on the stand-in as the documentation says, from the checkout."""
    monkeypatch.chdir(checkout)

    def run(verb: str, config: str, *more: str) -> int:
        endpoint = f"--dataflow_endpoint={dataflow.url}"
        where = ["--runner=DataflowRunner", "--project", "p", "--region", "r", endpoint, "--no_auth"]
        return main([verb, config, "--out", bucket.url("out"), *where, f"--temp_location={bucket.url('tmp')}", *more])

    return run


class Workers:
    """Runs jobs in processes of an environment that is made of the first job's staged package."""

    def __init__(self, bucket: Bucket, directory: Path) -> None:
        self._bucket, self._directory = bucket, directory
        self.log = directory / "workers.log"
        self.python: Path | None = None

    def __call__(self, job: Job) -> None:
        if self.python is None:
            self.python = install(self.package(job), self._directory / "environment")
        execute(job, self._bucket, self.python, self.log)

    def package(self, job: Job) -> Path:
        path = self._directory / "workflow.tar.gz"
        path.write_bytes(staged(self._bucket, job.packages()[path.name]))
        return path


def staged(bucket: Bucket, url: str) -> bytes:
    return bucket.get(url.removeprefix(bucket.url()))


def steps(bucket: Bucket, job: Job) -> list[str]:
    """The staged pipeline's steps from first to last: gatokit's own transforms and those of Beam that they use."""
    from apache_beam.portability.api import beam_runner_api_pb2

    transforms = beam_runner_api_pb2.Pipeline.FromString(staged(bucket, job.graph)).components.transforms
    inside = {part for transform in transforms.values() for part in transform.subtransforms}
    drawn = [transforms[key] for key in transforms if key not in inside]
    while any(opened := [node for node in drawn if node.spec.urn in ("", "beam:transform:generic_composite:v1")]):
        drawn = [node for node in drawn if node not in opened]
        drawn += [transforms[key] for node in opened for key in node.subtransforms]
    [node] = [node for node in drawn if not node.inputs]
    chain = [node.unique_name]
    while following := [other for other in drawn if set(node.outputs.values()) & set(other.inputs.values())]:
        [node] = following
        chain.append(node.unique_name)
    assert len(chain) == len(drawn)
    return chain


def drawn() -> dict[str, list[str]]:
    """The steps of each job as docs/dataflow.md draws them."""
    [block] = re.findall(r"```text graph\n(.*?)```", (ROOT / "docs" / "dataflow.md").read_text(), re.S)
    lines = [line.split(":", 1) for line in block.splitlines()]
    return {name.strip(): [step.strip() for step in chain.split("->")] for name, chain in lines}


def test_a_build_runs_in_workers_of_the_staged_package(
    submit: Submit, corpus: str, bucket: Bucket, dataflow: DataflowServer, tmp_path: Path
) -> None:
    dataflow.execute = workers = Workers(bucket, tmp_path)
    assert submit("build", corpus, "--setup_file=./setup.py") == 0
    scan, build = dataflow.jobs
    assert {"scan": steps(bucket, scan), "build": steps(bucket, build)} == drawn()
    assert [job.state for job in dataflow.jobs] == ["JOB_STATE_DONE"] * 2

    assert main(["build", corpus, "--out", str(tmp_path / "local")]) == 0
    local = {
        path.relative_to(tmp_path / "local").as_posix(): path
        for path in (tmp_path / "local").rglob("*.*")
        if path.is_file()
    }
    remote = {name.removeprefix("out/") for name in bucket.names("out/")}
    assert remote == set(local)
    shards = [name for name in local if name.startswith("books/")]
    assert len(shards) > 4
    for name in shards:
        assert bucket.get(f"out/{name}") == local[name].read_bytes(), name

    # The workers had gatokit from the package that was staged, and nothing of the checkout.
    with tarfile.open(workers.package(scan)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "pipelines/run.py", "pipelines/inputs.py", "schemas/record.proto"} <= names
    program = "import gatokit.pipelines.run as run; print(run.__file__)"
    done = subprocess.run([str(workers.python), "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "environment")


OPTIONS = {
    "--job_name": "books-build",
    "--machine_type": "n2-standard-4",
    "--num_workers": "2",
    "--max_num_workers": "50",
    "--disk_size_gb": "60",
    "--number_of_worker_harness_threads": "1",
    "--service_account_email": "gatokit-worker@p.iam.gserviceaccount.com",
    "--sdk_container_image": "r-docker.pkg.dev/p/gatokit/worker:1",
    "--sdk_location": "container",
    "--labels": "what=gatokit",
    "--staging_location": "gs://bucket/staging",
    "--flexrs_goal": "COST_OPTIMIZED",
}


def request(submit: Submit, corpus: str, dataflow: DataflowServer, *more: str) -> Job:
    """The first job of a build that comes no further: nobody runs the job, and the build misses its results."""
    assert submit("build", corpus, *more) == 1
    return dataflow.jobs[0]


def test_the_job_carries_the_options(submit: Submit, corpus: str, bucket: Bucket, dataflow: DataflowServer) -> None:
    given = [f"{name}={value}" for name, value in OPTIONS.items()]
    job = request(submit, corpus, dataflow, *given, "--no_use_public_ips", "--dataflow_service_options=x=y")
    assert (job.project, job.region) == ("p", "r")
    assert job.request["name"] == "books-build"
    assert job.request["labels"] == {"what": "gatokit"}
    pool = job.pool
    assert pool["machineType"] == "n2-standard-4"
    assert pool["numWorkers"] == 2
    assert pool["diskSizeGb"] == 60
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 50
    assert pool["numThreadsPerWorker"] == 1
    assert pool["ipConfiguration"] == 2  # WORKER_IP_PRIVATE
    assert job.environment["serviceAccountEmail"] == OPTIONS["--service_account_email"]
    assert job.environment["serviceOptions"] == ["x=y"]
    assert job.environment["flexResourceSchedulingGoal"] == 2  # FLEXRS_COST_OPTIMIZED
    assert pool["workerHarnessContainerImage"] == OPTIONS["--sdk_container_image"]
    [container] = pool["sdkHarnessContainerImages"]
    assert container["containerImage"] == OPTIONS["--sdk_container_image"]
    # One process a core.
    assert container["useSingleCorePerContainer"] is True
    # The image has all that a worker needs.
    assert set(job.packages()) == {"submission_environment_dependencies.txt"}
    assert job.options["runner"] == "DataflowRunner"
    assert job.options["temp_location"].startswith("gs://bucket/tmp/books-build.")
    assert job.graph.startswith("gs://bucket/staging/books-build.")
    assert job.options["sdk_location"] == "container"


def test_the_main_session_does_not_travel(submit: Submit, corpus: str, dataflow: DataflowServer) -> None:
    job = request(submit, corpus, dataflow, "--save_main_session")
    assert job.options["save_main_session"] is False
    assert "pickled_main_session" not in str(job.packages())


def test_the_requirements_of_workers_without_an_image_travel(
    submit: Submit, corpus: str, dataflow: DataflowServer, bucket: Bucket
) -> None:
    more = ("--requirements_file=deploy/requirements.txt", "--requirements_cache=skip", "--setup_file=./setup.py")
    job = request(submit, corpus, dataflow, *more)
    packages = job.packages()
    assert {"requirements.txt", "workflow.tar.gz"} <= set(packages)
    assert staged(bucket, packages["requirements.txt"]) == (ROOT / "deploy" / "requirements.txt").read_bytes()


def test_a_job_that_fails_ends_the_build_with_its_reason(
    submit: Submit, corpus: str, bucket: Bucket, dataflow: DataflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(job: Job) -> None:
        raise RuntimeError("The zone has no such machine.")

    dataflow.execute = work
    assert submit("build", corpus) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("gatokit: Dataflow pipeline failed.")
    assert said.endswith("The zone has no such machine. Run the same command again to go on")
    assert len(dataflow.jobs) == 1
    assert not [name for name in bucket.names("out/") if "manifest" in name or ".lock" in name]


def outputs(bucket: Bucket) -> dict[str, bytes]:
    return {name: bucket.get(name) for name in bucket.names("out/") if "/books/" in name}


def test_the_same_command_again_goes_on_where_it_stopped(
    submit: Submit, corpus: str, bucket: Bucket, dataflow: DataflowServer
) -> None:
    def work(job: Job) -> None:
        execute(job, bucket)
        if len(dataflow.jobs) == 2:
            # As if the worker had been lost before these: an index marks its shard as done.
            lost = [name for name in bucket.names("out/books/") if name.endswith(".parquet")][:2]
            for name in lost:
                bucket.remove(name)
            raise RuntimeError("The workers were lost.")

    dataflow.execute = work
    assert submit("build", corpus) == 1
    left = {name: bucket.blob(name).generation for name in outputs(bucket)}
    assert submit("build", corpus) == 0
    scan, build, again = dataflow.jobs
    assert steps(bucket, scan) == drawn()["scan"]
    assert steps(bucket, build) == steps(bucket, again) == drawn()["build"]
    written = {name for name in outputs(bucket) if bucket.blob(name).generation != left.get(name)}
    assert len([name for name in written if name.endswith(".index.parquet")]) == 2
    assert len(written) < len(outputs(bucket))
    # A finished build only looks whether its sources are still the same, and needs no job for that.
    assert submit("build", corpus) == 0
    assert len(dataflow.jobs) == 3


@pytest.mark.slow
def test_a_job_whose_pieces_run_twice_at_once_gives_the_same_bytes(
    submit: Submit, corpus: str, bucket: Bucket, dataflow: DataflowServer
) -> None:
    dataflow.execute = lambda job: execute(job, bucket)
    assert submit("build", corpus) == 0
    once = outputs(bucket)
    for name in bucket.names("out/"):
        bucket.remove(name)

    def twice(job: Job) -> None:
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(execute, job, bucket) for _ in range(2)]:
                done.result()

    dataflow.execute = twice
    assert submit("build", corpus) == 0
    assert outputs(bucket) == once


def test_an_option_that_nobody_knows_is_an_error(
    submit: Submit, corpus: str, dataflow: DataflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("build", corpus, "--max_num_worker=5") == 2
    assert "--max_num_worker" in capsys.readouterr().err
    assert dataflow.jobs == []


def test_the_flex_template_makes_a_job_that_runs_the_build(
    checkout: Path, bucket: Bucket, dataflow: DataflowServer, tmp_path: Path
) -> None:
    parameters = ["--config=gs://bucket/build.yaml", "--out=gs://bucket/out", "--limit=3", "--max_num_workers=50"]
    image = "--sdk_container_image=r-docker.pkg.dev/p/gatokit/worker:1-template"
    launcher = ["--runner=DataflowRunner", "--project=p", "--region=r", "--job_name=launch", "--sdk_location=container"]
    where = [f"--temp_location={bucket.url('tmp')}", f"--template_location={bucket.url('launch/job_object')}"]
    service = ["--no_auth", f"--dataflow_endpoint={dataflow.url}"]
    command = [sys.executable, str(checkout / "deploy" / "template.py"), *parameters, image, *launcher, *where]
    done = subprocess.run([*command, *service], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert dataflow.jobs == []
    job = Job("", "p", "r", json.loads(bucket.get("launch/job_object")))
    assert job.pool["machineType"] == "e2-standard-2"
    assert (job.pool["numWorkers"], job.pool["autoscalingSettings"]["maxNumWorkers"]) == (1, 1)
    assert job.pool["workerHarnessContainerImage"] == image.partition("=")[2]
    assert steps(bucket, job) == ["Arguments", "Run the build"]

    # Its worker runs this; the program stands in for the command.
    (tmp_path / "gatokit").mkdir()
    (tmp_path / "gatokit" / "__init__.py").touch()
    program = tmp_path / "gatokit" / "__main__.py"
    program.write_text(f"import json, sys; json.dump(sys.argv[1:], open({str(tmp_path / 'said')!r}, 'w'))")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    path = os.pathsep.join([str(tmp_path), *(entry for entry in sys.path if entry)])
    python.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    execute(job, bucket, python, tmp_path / "log")
    said: list[Any] = json.loads((tmp_path / "said").read_text())
    assert said[:4] == ["build", "gs://bucket/build.yaml", "--out", "gs://bucket/out"]
    assert {"--limit=3", "--max_num_workers=50", image, "--runner=DataflowRunner", "--sdk_location=container"} <= set(
        said
    )
    assert not [argument for argument in said if "template_location" in argument or "job_name" in argument]
