"""Atari games of ale-py with small frames, and controllers that read the console's memory as experts."""

from collections.abc import Callable

import numpy as np

from gatokit.environments.adapter import Action, Adapter, Observation, Transition, need
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import FieldSpec, ImageSpec
from gatokit.schemas.tokens import PATCH

STEPS = 27_000
"""Thirty minutes of play at four frames a step, the usual bound."""

SIZE = (96, 80)
"""Height and width of the stored frame: 210×160 at about half size, thirty patches of 16×16."""


def tasks() -> list[str]:
    """The games that have a controller."""
    return sorted(_CONTROLLERS)


class Atari(Adapter):
    """Observes ``frame`` uint8 (height, width, 3) RGB, the 210×160 screen shrunk by area averaging.

    ``ALE/<game>-v5`` rules: four frames a step, the last action repeated with probability 0.25, the game's
    minimal action set. Rewards are the game's own points, not clipped.
    """

    def __init__(self, task: str, time_limit: int = STEPS, size: tuple[int, int] = SIZE) -> None:
        if any(side < PATCH or side % PATCH for side in size):
            raise ConfigError(f"atari: the frame size {list(size)} must be multiples of {PATCH}")
        gymnasium = need("gymnasium")
        ale = need("ale_py")
        gymnasium.register_envs(ale)
        ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
        self._env = gymnasium.make(f"ALE/{task}-v5", obs_type="rgb")
        height, width = size
        super().__init__(
            f"atari/{task}",
            [
                FieldSpec(
                    path="observation/frame",
                    kind="image",
                    dtype="uint8",
                    shape=(height, width, 3),
                    image=ImageSpec(height=height, width=width),
                )
            ],
            FieldSpec(path="action", kind="discrete", dtype="int64", num=int(self._env.action_space.n)),
            time_limit=time_limit,
            longest=STEPS,
            hz=15.0,
        )
        self._size = size
        self._ale = self._env.unwrapped.ale
        self._meanings = self._env.unwrapped.get_action_meanings()
        self._controller = _CONTROLLERS[task]
        self._shrink = need("cv2")

    def _begin(self, seed: int) -> Observation:
        frame, _ = self._env.reset(seed=seed)
        return self._observe(frame)

    def _advance(self, action: Action) -> Transition:
        frame, reward, terminated, truncated, _ = self._env.step(int(action))
        return Transition(self._observe(frame), float(reward), bool(terminated), bool(truncated))

    def _observe(self, frame: np.ndarray) -> Observation:
        height, width = self._size
        return {"frame": self._shrink.resize(frame, (width, height), interpolation=self._shrink.INTER_AREA)}

    def _expert(self) -> int:
        return self._meanings.index(self._controller(self._ale.getRAM().astype(int)))

    def render(self) -> np.ndarray:
        """The whole screen, uint8 (210, 160, 3)."""
        screen: np.ndarray = self._ale.getScreenRGB()
        return screen


make = Atari
"""The adapter of one game; ``size`` is the height and width of the observed frame, multiples of 16."""


def _breakout(ram: np.ndarray) -> str:
    """Serves, then keeps the paddle under the ball."""
    ball_x, ball_y, paddle_x = ram[99], ram[101], ram[72]
    if ball_y == 0:
        return "FIRE"
    offset = ball_x - (paddle_x + 8)
    return "RIGHT" if offset > 3 else "LEFT" if offset < -3 else "NOOP"


def _freeway(ram: np.ndarray) -> str:
    """Crosses the road without looking."""
    return "UP"


def _pong(ram: np.ndarray) -> str:
    """Follows the ball's height; RIGHT moves the paddle up."""
    ball_x, ball_y, paddle_y = ram[49], ram[54], ram[51]
    if ball_x == 0:
        return "FIRE"
    offset = ball_y - (paddle_y + 8)
    return "LEFT" if offset > 3 else "RIGHT" if offset < -3 else "NOOP"


_CONTROLLERS: dict[str, Callable[[np.ndarray], str]] = {
    "Breakout": _breakout,
    "Freeway": _freeway,
    "Pong": _pong,
}
