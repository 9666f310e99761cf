"""Which environment a policy's task is played in."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gatokit.environments.adapter import Adapter
from gatokit.environments.registry import families, make, tasks
from gatokit.evaluation.rollout_jobs import options_of
from gatokit.policy.policy import Policy
from gatokit.policy.step_codec import Task
from gatokit.schemas.errors import ConfigError


@dataclass(frozen=True)
class Contest:
    """An environment, and the policy's task that is played in it; ``options`` go to ``make``."""

    name: str
    task: Task
    options: dict[str, Any]

    @property
    def called(self) -> str:
        """The task's own name, ``dataset/task``."""
        return f"{self.task.dataset}/{self.task.name}"

    def agent(self, variant: str) -> str:
        """The policy's name in the log: two datasets may hold tasks of one environment."""
        return variant if self.called == self.name else f"{variant} as {self.called}"

    @contextmanager
    def adapters(self, count: int) -> Iterator[list[Adapter]]:
        """``count`` adapters of the environment, closed at the end."""
        made: list[Adapter] = []
        try:
            for _ in range(count):
                made.append(make(self.name, **self.options))
            yield made
        finally:
            for adapter in made:
                adapter.close()


def find_contests(
    policy: Policy, names: Sequence[str] | None, time_limits: Mapping[str, int], notice: Callable[[str], None]
) -> list[Contest]:
    """The environments ``names`` (``family/task`` or ``dataset/task``), or those of all the policy's tasks; each once.

    ConfigError for one that is unknown, that the policy was not trained on or that two tasks are played in, or where
    there is none at all.
    """
    found: dict[str, Contest] = {}
    for task in policy.tasks if names is None else ():
        known = environment_of(task.dataset, task.name)
        if known is None:
            notice(f"{task.dataset}/{task.name} is left out: no family has an environment of that name")
        elif known in found:
            notice(f"{task.dataset}/{task.name} is left out: {found[known].called} is played in {known} already")
        else:
            found[known] = _contest(known, task, time_limits)
    for name in names or ():
        task = policy.find(name)
        known = name if name.partition("/")[0] in families() else environment_of(task.dataset, task.name)
        if known is None:
            raise ConfigError(f"{name}: no family has an environment of that name; name it family/task")
        if known in found and found[known].task != task:
            raise ConfigError(f"{name} and {found[known].called} are both played in {known}: name one of them")
        found[known] = _contest(known, task, time_limits)
    if not found:
        raise ConfigError(f"{policy.path} was trained on no task of a known environment")
    return list(found.values())


def environment_of(dataset: str, task: str) -> str | None:
    """The environment that a dataset's task was recorded in: the names hold its family's, or only one family has a task
    of that name; None where neither tells."""
    short = task.rpartition("/")[2]
    for part in reversed(f"{dataset}/{task}".split("/")):
        if part in families():
            return f"{part}/{short}"
    found = [family for family in families() if short in tasks(family)]
    return f"{found[0]}/{short}" if len(found) == 1 else None


def _contest(name: str, task: Task, time_limits: Mapping[str, int]) -> Contest:
    options = options_of(name, time_limits)
    if name.startswith("atari/"):
        frames = [item for item in task.spec.observation if item.path == "observation/frame"]
        options |= {"size": frames[0].shape[:2]} if frames else {}
    return Contest(name, task, options)
