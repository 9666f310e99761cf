"""From a name ``family/task`` to its adapter."""

import importlib
from typing import Any

from gatokit.environments.adapter import Adapter
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.words import did_you_mean

FAMILIES = ("atari", "babyai", "dm_control", "metaworld")


def families() -> tuple[str, ...]:
    """The names of the families, each a module of this package."""
    return FAMILIES


def tasks(family: str) -> list[str]:
    """The task names of a family; imports its packages."""
    return _module(family).tasks()


def make(name: str, **options: Any) -> Adapter:
    """The adapter of ``family/task``, such as ``metaworld/door-open-v3`` or ``atari/Breakout``.

    ``options`` go to the family: ``time_limit`` (steps) to all of them, ``size`` to atari.
    """
    family, slash, task = name.partition("/")
    if not slash:
        raise ConfigError(f"{name!r} is no environment: write family/task, with one of {', '.join(FAMILIES)}")
    known = tasks(family)
    if task not in known:
        shown = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
        way_out = did_you_mean(task, known) or f"it has {len(known)}: {shown}"
        raise ConfigError(f"{family} has no task {task!r}", way_out=way_out)
    adapter: Adapter = _module(family).make(task, **options)
    return adapter


def _module(family: str) -> Any:
    if family not in FAMILIES:
        way_out = did_you_mean(family, FAMILIES) or f"there are {', '.join(FAMILIES)}"
        raise ConfigError(f"there is no environment family {family!r}", way_out=way_out)
    return importlib.import_module(f"gatokit.environments.{family}")
