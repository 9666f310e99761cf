"""What every folder of tests may use."""

import ctypes
import os
import pydoc_data.topics
import shutil
import struct
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings
from mixed_build import mixed, mixed_config
from packages import DM_CONTROL
from shared import shared

from gatokit.environments.agents import Mix
from gatokit.environments.record import Job, record_tasks

__all__ = ["mixed", "mixed_config"]

# A busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

QUICK_COMPILES = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that have a task of dm_control as a parameter."""
    for item in items:
        if "dm_control/" in item.name:
            item.add_marker(DM_CONTROL)


def pytest_configure(config: pytest.Config) -> None:
    """Lets JAX compile quickly rather than well, and keeps what it compiles for all workers and child processes.

    The variables are set before xdist starts its workers, which inherit them.
    """
    os.environ.setdefault("XLA_FLAGS", QUICK_COMPILES)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="gatokit-compiled-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        config.add_cleanup(partial(shutil.rmtree, folder, ignore_errors=True))


def empty_library(soname: str) -> bytes:
    """An x86-64 ELF library with a name and no symbols."""
    strings = b"\0" + soname.encode() + b"\0"
    strings += bytes(-len(strings) % 8)
    begin = 64 + 3 * 56
    symbols, names = begin, begin + 24
    hashes = names + len(strings)
    dynamic = hashes + 16
    entries = [(14, 1), (4, hashes), (5, names), (6, symbols), (10, len(strings)), (11, 24), (0, 0)]
    size = dynamic + 16 * len(entries)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 6, 0, 0, 0, size, size, 4096)
    dynamics = struct.pack("<IIQQQQQQ", 2, 6, dynamic, dynamic, dynamic, size - dynamic, size - dynamic, 8)
    stack = struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    table = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    return header + load + dynamics + stack + bytes(24) + strings + struct.pack("<4I", 1, 1, 0, 0) + table


@pytest.fixture(scope="session")
def native_envlogger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes EnvLogger load on a machine without libgmpxx, here and in child processes; the library's stand-in.

    EnvLogger was linked to libgmpxx and uses no symbol of it, so an empty library of that name will do.
    """
    stand_in = tmp_path_factory.mktemp("native") / "libgmpxx.so.4"
    stand_in.write_bytes(empty_library("libgmpxx.so.4"))
    try:
        ctypes.CDLL("libgmpxx.so.4")
    except OSError:
        ctypes.CDLL(os.fspath(stand_in))
        known = os.environ.get("LD_LIBRARY_PATH")
        os.environ["LD_LIBRARY_PATH"] = os.fspath(stand_in.parent) + (f":{known}" if known else "")
    return stand_in


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model trained on Python's own reference."""
    from tests.helpers.vocabularies import train_vocabulary

    def fill(folder: Path) -> None:
        lines = [line.strip() for text in pydoc_data.topics.topics.values() for line in text.splitlines()]
        assert train_vocabulary((line for line in lines if line), folder / "text.model", 1500) == 1500

    return shared(tmp_path_factory, "vocabulary", fill) / "text.model"


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real episodes of four families, recorded on the spot: ``FAMILY/TASK`` directories of RLDS."""
    pytest.importorskip("dm_control", reason="dm-control has no wheel here")
    jobs = (
        Job("metaworld/button-press-topdown-v3", Mix(expert=12, noisy=6, random=6), writer="tfrecord"),
        Job("babyai/GoToLocal-v0", Mix(expert=12, noisy=8, random=12)),
        Job("babyai/PickupLoc-v0", Mix(expert=12, noisy=8, random=12)),
        Job("dm_control/cartpole-swingup", Mix(expert=3, noisy=2, random=3)),
        Job("atari/Breakout", Mix(expert=3, noisy=2, random=3), options={"time_limit": 120}),
    )
    return shared(tmp_path_factory, "recorded", lambda folder: record_tasks(jobs, folder, jobs=2))


RECORDED_CONFIG = """
vocabulary: {vocabulary}
chunk_tokens: 2048
shard_bytes: {shard_bytes}
datasets:
  - name: metaworld
    kind: episodes
    source: {data}/metaworld/*
    agent: {{metadata: agent_id}}
    order: {{metadata: episode_index}}
  - name: babyai
    kind: episodes
    source: {data}/babyai/*
    order: {{metadata: episode_index}}
    keep: {{min_return: 0.9}}
    fields: {{observation/grid: {{as: discrete}}}}
  - name: control
    kind: episodes
    source: {data}/dm_control
    agent: {{metadata: agent_id}}
    keep: {{min_return: 0.5}}
  - name: atari
    kind: episodes
    source: {data}/atari/*/1.0.0
    keep: {{min_return: 0.3}}
    fields: {{action: {{num: 4}}}}
  - name: atari-small
    kind: episodes
    source: {data}/atari/*
    images: {{size: [64, 48], codec: png}}
    keep: {{all: true}}
"""


@pytest.fixture(scope="session")
def recorded_config(tmp_path_factory: pytest.TempPathFactory, recorded: Path, vocabulary: Path) -> Path:
    """A config over ``recorded`` with paths relative to itself; small shards, so that there are many."""

    def fill(folder: Path) -> None:
        (folder / "data").symlink_to(recorded)
        (folder / "text.model").symlink_to(vocabulary)
        config = RECORDED_CONFIG.format(data="data", vocabulary="text.model", shard_bytes=400_000)
        (folder / "build.yaml").write_text(config)

    return shared(tmp_path_factory, "config", fill) / "build.yaml"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, recorded_config: Path) -> Path:
    """A finished build of ``recorded_config``. Not to be written to."""
    from gatokit.pipelines.run import build

    return shared(tmp_path_factory, "built", lambda folder: build(recorded_config, folder / "out")) / "out"
