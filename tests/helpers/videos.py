"""Video files of known frames, written by OpenCV."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np


def video_file(frames: Sequence[np.ndarray], suffix: str = ".avi", codec: str = "HFYU") -> bytes:
    """The bytes of a video of RGB frames (H, W, 3). HuffYUV (``HFYU``) and FFV1 are lossless."""
    height, width = frames[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"film{suffix}")
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, (width, height))
        assert writer.isOpened()
        for frame in frames:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        writer.release()
        return path.read_bytes()


def numbered_frames(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames of one colour each, which tells their number."""
    colours = [(number * 20 % 256, 255 - number * 7 % 256, number * 3 % 256) for number in range(count)]
    return [np.full((height, width, 3), colour, np.uint8) for colour in colours]
