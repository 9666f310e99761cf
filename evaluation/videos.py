"""Films of rollouts: one MP4 for each, or a GIF where OpenCV cannot write MP4."""

import math
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gatokit.environments.adapter import Adapter
from gatokit.schemas.errors import DataError

FRAMES_PER_SECOND = 30
"""At most; of faster environments every second or third step is shown, so that time stays true."""

STEPS_PER_SECOND = 10
"""Of environments without a time of their own."""


def video_path(folder: Path, task: str, number: int, suffix: str = ".mp4") -> Path:
    """Where the film of a rollout is."""
    return folder / f"{task.replace('/', '-')}-{number}{suffix}"


def has_video(folder: Path, task: str, number: int) -> bool:
    """Whether the film of a rollout is there."""
    return any(video_path(folder, task, number, suffix).exists() for suffix in (".mp4", ".gif"))


class Videos:
    """A watcher of ``play`` that films every rollout; a film appears under its name when it is whole."""

    def __init__(self, folder: Path, task: str) -> None:
        self._folder, self._task = folder, task
        self._films: dict[int, _Film] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder} cannot be written: {error.strerror}") from None

    def __call__(self, number: int, adapter: Adapter) -> None:
        """Shows the current state."""
        if number not in self._films:
            self._films[number] = _Film(video_path(self._folder, self._task, number), adapter.hz)
        self._films[number].show(adapter)

    def finish(self, number: int) -> None:
        """The rollout has ended: its film is whole."""
        film = self._films.pop(number)
        try:
            film.finish()
        except OSError as error:
            raise DataError(f"{self._folder} cannot be written: {error.strerror}") from None


class _Film:
    """A film that is being made: an MP4 on disk, or the frames of a GIF."""

    def __init__(self, path: Path, hz: float | None) -> None:
        hz = hz or STEPS_PER_SECOND
        self._path, self._temporary = path, path.with_name(f".{path.name}")
        self._every = math.ceil(hz / FRAMES_PER_SECOND - 1e-9)
        self._rate = hz / self._every
        self._steps = 0
        self._writer: Any = None
        self._frames: list[np.ndarray] = []

    def show(self, adapter: Adapter) -> None:
        if self._steps % self._every == 0:
            frame = adapter.render()
            if self._writer is None:
                height, width = frame.shape[:2]
                codec = cv2.VideoWriter.fourcc(*"mp4v")
                self._writer = cv2.VideoWriter(str(self._temporary), codec, self._rate, (width, height))
            if self._writer.isOpened():
                self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            else:
                self._frames.append(frame)
        self._steps += 1

    def finish(self) -> None:
        self._writer.release()
        if not self._frames:
            os.replace(self._temporary, self._path)
            return
        from PIL import Image

        first, *others = (Image.fromarray(frame) for frame in self._frames)
        duration = round(1000 / self._rate)
        first.save(self._temporary.with_suffix(".gif"), save_all=True, append_images=others, duration=duration, loop=0)
        os.replace(self._temporary.with_suffix(".gif"), self._path.with_suffix(".gif"))
