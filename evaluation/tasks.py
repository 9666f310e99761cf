"""The environments that a policy's tasks are played in."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gatokit.environments.adapter import Adapter
from gatokit.environments.registry import families, make, tasks
from gatokit.evaluation.rollouts import environment_options
from gatokit.policy.policy import Policy
from gatokit.policy.step_codec import Task
from gatokit.schemas.errors import ConfigError


@dataclass(frozen=True)
class EvalTask:
    """An environment ``name`` (``family/task``), and the policy's task that is played in it; ``options`` go to
    ``make``."""

    name: str
    task: Task
    options: dict[str, Any]

    def agent(self, variant: str) -> str:
        """The policy's name in the log: tasks of two datasets may be played in one environment."""
        return variant if self.task.full_name == self.name else f"{variant} as {self.task.full_name}"

    @contextmanager
    def adapters(self, count: int) -> Iterator[list[Adapter]]:
        """``count`` adapters of the environment, closed at the end."""
        adapters: list[Adapter] = []
        try:
            for _ in range(count):
                adapters.append(make(self.name, **self.options))
            yield adapters
        finally:
            for adapter in adapters:
                adapter.close()


def find_tasks(
    policy: Policy, names: Sequence[str] | None, time_limits: Mapping[str, int], notice: Callable[[str], None]
) -> list[EvalTask]:
    """The environments ``names`` (``family/task`` or ``dataset/task``), or those of all the policy's tasks; each once.

    Raises ConfigError for an environment that is unknown, that the policy was not trained on or in which two of the
    named tasks are played, and if no environment is left.
    """
    found: dict[str, EvalTask] = {}

    def add(environment: str, task: Task) -> None:
        options = environment_options(environment, time_limits)
        if environment.startswith("atari/"):
            frames = [field for field in task.spec.observation if field.path == "observation/frame"]
            options |= {"size": frames[0].shape[:2]} if frames else {}
        found[environment] = EvalTask(environment, task, options)

    for task in policy.tasks if names is None else ():
        environment = environment_of(task.dataset, task.name)
        if environment is None:
            notice(f"{task.full_name} is left out: no family has an environment of that name")
        elif environment in found:
            other = found[environment].task.full_name
            notice(f"{task.full_name} is left out: {other} is played in {environment} already")
        else:
            add(environment, task)
    for name in names or ():
        task = policy.find(name)
        environment = name if name.partition("/")[0] in families() else environment_of(task.dataset, task.name)
        if environment is None:
            raise ConfigError(f"{name}: no family has an environment of that name; name it family/task")
        if environment in found and found[environment].task != task:
            other = found[environment].task.full_name
            raise ConfigError(f"{name} and {other} are both played in {environment}: name one of them")
        add(environment, task)
    if not found:
        raise ConfigError(f"{policy.path} was trained on no task of a known environment")
    return list(found.values())


def environment_of(dataset: str, task: str) -> str | None:
    """The environment that a dataset's task was recorded in: the one whose family is part of the names, or the only one
    of that task's name; None if neither decides."""
    short = task.rpartition("/")[2]
    for part in reversed(f"{dataset}/{task}".split("/")):
        if part in families():
            return f"{part}/{short}"
    found = [family for family in families() if short in tasks(family)]
    return f"{found[0]}/{short}" if len(found) == 1 else None
