"""The small set of real episodes that ``gatokit demo`` begins with."""

from pathlib import Path

from gatokit.environments.agents import Mix
from gatokit.environments.jobs import Job, record_tasks
from gatokit.environments.record import Progress, Recording

DEMO = (
    Job("metaworld/button-press-topdown-v3", Mix(expert=80, noisy=30, random=30), writer="tfrecord"),
    Job("metaworld/door-open-v3", Mix(expert=80, noisy=30, random=30), writer="tfrecord"),
    Job("metaworld/drawer-open-v3", Mix(expert=80, noisy=30, random=30), writer="tfrecord"),
    Job("atari/Breakout", Mix(expert=8, noisy=4, random=4), options={"time_limit": 300}),
    Job("dm_control/cartpole-swingup", Mix(expert=24, noisy=12, random=12)),
    Job("babyai/GoToLocal-v0", Mix(expert=60, noisy=30, random=30)),
    Job("babyai/PickupLoc-v0", Mix(expert=60, noisy=30, random=30)),
)
"""The longest first, so that two processes end at about the same time. Meta-World's default writer, EnvLogger, needs a
native library that a machine may lack."""


def record_demo(out: str | Path, jobs: int = 2, progress: Progress | None = None) -> list[Recording]:
    """Records the demo's tasks from four families below ``out``."""
    return record_tasks(DEMO, out, jobs, progress)
