"""``run.json``: what a run's directory was begun with, so that it is never gone on with by something else."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.run import RunConfig

RUN = "run.json"
RUN_VERSION = 1

CHANGEABLE = (
    "steps",
    "log_every",
    "microbatches",
    "remat",
    "mesh",
    "evaluation",
    "checkpoint",
    "init_from",
    "model.attention",
    "input.workers",
)
"""Fields that may change when a run goes on; ``steps`` only upwards. They change no batch and no loss but by rounding,
or, as ``steps``, only what is still to come."""


class RunFile(BaseModel):
    """The resolved config of a run, and what it reads."""

    model_config = ConfigDict(extra="forbid")

    version: int = RUN_VERSION
    config: RunConfig
    data: list[str]
    """Directories as they were given."""
    data_digest: str
    overfit_one_batch: bool = False

    def write(self, out: Path) -> None:
        """Writes the file, whole or not at all."""
        temporary = out / f".{RUN}"
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, out / RUN)
        except OSError as error:
            raise DataError(f"{out / RUN} cannot be written: {error.strerror}") from None


def read_run(out: Path) -> RunFile | None:
    """The file of a run's directory, None where there is none; DataError where it cannot be read."""
    path = out / RUN
    try:
        return RunFile(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}; give another --out") from None


def check_same(found: RunFile, wanted: RunFile, out: Path) -> None:
    """ConfigError naming what differs, where the run in ``out`` cannot go on as ``wanted``."""
    before, after = (_fields(item.config.model_dump(mode="json")) for item in (found, wanted))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name) and not name.startswith(CHANGEABLE):
            raise ConfigError(
                f"{out} holds a run whose {name} is {before.get(name)!r}, and the config says {after.get(name)!r}: "
                "give another --out, or the run's own config"
            )
    if wanted.config.steps < found.config.steps:
        raise ConfigError(
            f"{out} holds a run of {found.config.steps} steps, and the config says {wanted.config.steps}: steps may "
            "only grow; --steps stops earlier"
        )
    if found.data_digest != wanted.data_digest:
        raise ConfigError(
            f"{out} holds a run on other data ({', '.join(found.data)}; its digest is {found.data_digest[:12]}, not "
            f"{wanted.data_digest[:12]}): give another --out, or init_from to go on with other data"
        )
    if found.overfit_one_batch != wanted.overfit_one_batch:
        raise ConfigError(
            f"{out} holds a run {'with' if found.overfit_one_batch else 'without'} --overfit-one-batch: "
            "give another --out"
        )


def _fields(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted path."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _fields(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return found
