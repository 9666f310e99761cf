"""Rendering of MuJoCo's simulators, which needs OpenGL: which backend the machine has, and an error if it has none."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gatokit.schemas.errors import ConfigError

RENDER_SIZE = (240, 320)
"""Height and width of a rendered image in pixels."""

_BACKENDS = ("egl", "osmesa")
_PROBE = "import mujoco; context = mujoco.GLContext(16, 16); context.make_current(); context.free()"


def choose_backend() -> None:
    """Sets ``MUJOCO_GL`` to an OpenGL backend that works without a screen, if there is one. A value that is set stays.

    Call it before mujoco is first imported.
    """
    if "mujoco" in sys.modules or "MUJOCO_GL" in os.environ:
        return
    for backend in _BACKENDS:
        environment = os.environ | {"MUJOCO_GL": backend}
        probe = subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True, check=False)
        if probe.returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return


@contextmanager
def rendering(name: str) -> Iterator[None]:
    """Raises ConfigError if rendering in this context fails because OpenGL is missing."""
    try:
        yield
    except (RuntimeError, AttributeError, ImportError) as error:
        backend = os.environ.get("MUJOCO_GL")
        raise ConfigError(
            f"{name} cannot be rendered with MUJOCO_GL={backend} ({error}): apt-get install libegl1 and set "
            "MUJOCO_GL=egl, or libosmesa6 and osmesa, or leave out --video"
        ) from None
