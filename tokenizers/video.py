"""A video file → its frames, by OpenCV, which reads files alone: MP4 and MOV, WebM and Matroska, AVI.

The containers are told by their first bytes. Other content never reaches the decoder, which would also follow playlists
to other files.
"""

import tempfile
from collections.abc import Iterator

import cv2
import numpy as np

from gatokit.schemas.errors import RejectedError
from gatokit.tokenizers.image_codec import MAX_PIXELS

_ONE_THREAD = [cv2.CAP_PROP_N_THREADS, 1]
"""Builds work on several episodes at a time."""


def is_video(data: bytes) -> bool:
    """Whether bytes begin as a video file does."""
    is_avi = data[:4] == b"RIFF" and data[8:12] == b"AVI "
    return data[4:8] == b"ftyp" or data[:4] == b"\x1aE\xdf\xa3" or is_avi


def decode_frames(data: bytes) -> Iterator[np.ndarray]:
    """Yields the frames of a video as uint8 RGB (H, W, 3), in order and one at a time, upright.

    A truncated video has fewer frames, or does not open. Damage inside a frame is not seen. Raises RejectedError
    ``bad_image`` if OpenCV cannot open or decode the video, or if its frames have more than 64 million pixels.
    """
    if not is_video(data):
        kinds = "neither MP4, WebM, Matroska nor AVI"
        raise RejectedError("bad_image", f"the video is {kinds}: it begins with {data[:12]!r}")
    with tempfile.NamedTemporaryFile(prefix="gatokit-") as file:
        file.write(data)
        file.flush()
        capture = cv2.VideoCapture(file.name, cv2.CAP_FFMPEG, _ONE_THREAD)
        try:
            height, width = (int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
            if height * width > MAX_PIXELS:
                raise RejectedError(
                    "bad_image", f"the video's frames have {height} x {width} pixels, more than {MAX_PIXELS:,}"
                )
            is_read, frame = capture.read()
            if not is_read:
                raise RejectedError("bad_image", "the video does not decode; OpenCV may lack its codec")
            while is_read:
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                is_read, frame = capture.read()
        finally:
            capture.release()
