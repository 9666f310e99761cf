"""An episode: the spec of its time steps, which turns values into tokens and back, and its values in memory.

Legend: S time steps that have an action.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from gatokit.schemas.digests import json_digest
from gatokit.schemas.tokens import PATCH, EncodedImage

FIRST, LAST, TERMINAL = 1, 2, 4
"""Bits of a step's flags. LAST marks the step whose action ended the episode, TERMINAL that it ended in a
terminal state (and not by a time limit)."""

FieldKind = Literal["text", "image", "discrete", "continuous"]


class ImageSpec(BaseModel):
    """How the frames of a field are stored: pixels, codec, and how a frame of another size is resized."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int
    width: int
    codec: Literal["png", "jpeg"] | None = None
    """None: PNG and JPEG are copied, and everything else becomes PNG."""
    quality: int = 95
    """JPEG quality of a frame that has to be encoded."""
    resize: Literal["area"] = "area"
    """Filter of a frame that has to be resized (OpenCV's INTER_AREA)."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns."""
        return self.height // PATCH, self.width // PATCH


class FieldSpec(BaseModel):
    """One observation or action field of a time step.

    ``path`` is the key path joined by ``/`` and begins with ``observation`` or ``action``. ``shape`` and
    ``dtype`` are those of one recorded step (``dtype`` is ``str`` for text). ``range`` holds ``(low, high)``
    pairs of a continuous action, one for all components or one each; ``num`` the number of values of a
    discrete field, if known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    kind: FieldKind
    dtype: str
    shape: tuple[int, ...] = ()
    range: tuple[tuple[float, float], ...] | None = None
    num: int | None = None
    image: ImageSpec | None = None

    @property
    def is_action(self) -> bool:
        """Whether the field is (part of) the action."""
        return self.components[0] == "action"

    @property
    def components(self) -> tuple[str, ...]:
        """The key path; fields are ordered by it, compared component by component (code points)."""
        return tuple(self.path.split("/"))

    @property
    def tokens(self) -> int | None:
        """Tokens a step: None for text, whose length varies."""
        if self.kind == "text":
            return None
        if self.image is not None:
            rows, columns = self.image.grid
            return rows * columns
        return math.prod(self.shape)


class EpisodeSpec(BaseModel):
    """The fields of a task's time step in token order: observations by key path, then actions by key path
    (Gato, section 2.1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: tuple[FieldSpec, ...]

    @staticmethod
    def ordered(fields: list[FieldSpec]) -> "EpisodeSpec":
        """The spec of ``fields`` given in any order."""
        return EpisodeSpec(fields=tuple(sorted(fields, key=lambda field: (field.is_action, field.components))))

    @property
    def observation(self) -> tuple[FieldSpec, ...]:
        """Observation fields in token order."""
        return tuple(field for field in self.fields if not field.is_action)

    @property
    def action(self) -> tuple[FieldSpec, ...]:
        """Action fields in token order."""
        return tuple(field for field in self.fields if field.is_action)

    @functools.cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits that name this spec in records, indexes and ``dataset.json``."""
        return json_digest(self.model_dump(mode="json"), 6)


@dataclass(frozen=True)
class Episode:
    """The S steps of an episode that have an action; a final observation without an action is dropped.

    ``values`` maps the path of every field of the task's spec to its S values: an array (S, *shape), a list
    of ``str`` for text, a list of ``EncodedImage`` for images. ``reward`` and ``discount`` are float64 (S,),
    ``discount`` None if the source has none; ``flags`` is uint8 (S,), made of FIRST, LAST and TERMINAL.
    """

    id: str
    values: dict[str, np.ndarray | list[str] | list[EncodedImage]]
    reward: np.ndarray
    discount: np.ndarray | None
    flags: np.ndarray

    @property
    def steps(self) -> int:
        """S, the number of time steps."""
        return len(self.flags)
