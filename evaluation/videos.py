"""Videos of rollouts: an MP4 for each, or a GIF if OpenCV cannot write MP4."""

import math
from pathlib import Path

import cv2
import numpy as np

from gatokit.environments.adapter import Adapter
from gatokit.schemas.errors import DataError
from gatokit.storage.files import commit, remove_temporaries, temporary_beside

_FRAMES_PER_SECOND = 30
"""Most frames a second; of faster environments only every second or third step is shown, in real time."""

_STEPS_PER_SECOND = 10
"""For environments that have no control rate."""


def _video_path(folder: Path, task: str, number: int, suffix: str = ".mp4") -> Path:
    """The path of a rollout's video."""
    return folder / f"{task.replace('/', '-')}-{number}{suffix}"


def has_video(folder: Path, task: str, number: int) -> bool:
    """Whether a rollout has a video."""
    return any(_video_path(folder, task, number, suffix).exists() for suffix in (".mp4", ".gif"))


class Videos:
    """A ``Watch`` of ``play`` that films every rollout; a video gets its name when it is complete."""

    def __init__(self, folder: Path, task: str) -> None:
        self._folder, self._task = folder, task
        self._videos: dict[int, _Video] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_temporaries(folder)
        except OSError as error:
            raise DataError(f"{folder} cannot be written: {error.strerror}") from None

    def __call__(self, number: int, adapter: Adapter) -> None:
        """Adds the current state to a rollout's video."""
        if number not in self._videos:
            self._videos[number] = _Video(_video_path(self._folder, self._task, number), adapter)
        self._videos[number].show(adapter)

    def finish(self, number: int) -> None:
        """Completes the video of a rollout that has ended."""
        try:
            self._videos.pop(number).finish()
        except OSError as error:
            raise DataError(f"{self._folder} cannot be written: {error.strerror}") from None


class _Video:
    """A video in progress: an MP4 on disk, or the frames of a GIF."""

    def __init__(self, path: Path, adapter: Adapter) -> None:
        hz = adapter.hz or _STEPS_PER_SECOND
        self._path, self._temporary = path, Path(temporary_beside(path))
        self._every = math.ceil(hz / _FRAMES_PER_SECOND - 1e-9)
        self._rate = hz / self._every
        self._steps = 0
        self._writer: cv2.VideoWriter | None = None
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
        if self._writer is not None:
            self._writer.release()
        if not self._frames:
            commit(self._temporary, self._path)
            return
        from PIL import Image

        first, *others = (Image.fromarray(frame) for frame in self._frames)
        gif = self._temporary.with_suffix(".gif")
        first.save(gif, save_all=True, append_images=others, duration=round(1000 / self._rate), loop=0)
        commit(gif, self._path.with_suffix(".gif"))
