"""Video files become frames, and nothing else reaches the decoder."""

import glob
import tempfile
from pathlib import Path

import numpy as np
import pytest

from gatokit.schemas.errors import RejectedError
from gatokit.tokenizers import video
from gatokit.tokenizers.video import decode_frames, is_video
from tests.helpers.videos import h264_file, numbered_frames, video_file

FRAMES = numbered_frames(9)


@pytest.mark.parametrize(
    ("suffix", "codec", "error"),
    [(".avi", "HFYU", 0), (".mkv", "FFV1", 0), (".avi", "MJPG", 3), (".mp4", "mp4v", 5), (".webm", "VP90", 5)],
)
def test_frames_are_those_that_were_written(suffix: str, codec: str, error: int) -> None:
    data = video_file(FRAMES, suffix, codec)
    assert is_video(data)
    frames = list(decode_frames(data))
    assert [(frame.shape, frame.dtype) for frame in frames] == [((48, 64, 3), np.uint8)] * 9
    apart = [np.abs(frame.astype(int) - wanted).max() for frame, wanted in zip(frames, FRAMES, strict=True)]
    assert max(apart) <= error


def test_h264() -> None:
    levels = np.array([40, 60, 100, 200])
    frames = list(decode_frames(h264_file(levels.tolist())))
    assert [(frame.shape, frame.min() == frame.max()) for frame in frames] == [((96, 128, 3), True)] * 4
    wanted = (levels - 16) * 255 / 219  # luma of BT.601 in its limited range
    assert np.abs(np.array([int(frame[0, 0, 0]) for frame in frames]) - wanted).max() <= 1


@pytest.mark.parametrize(
    "data", [b"", b"#EXTM3U\n/etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd", b"RIFF    WAVE"]
)
def test_only_video_files_are_decoded(data: bytes) -> None:
    assert not is_video(data)
    with pytest.raises(RejectedError, match="the video is neither MP4, WebM, Matroska nor AVI: it begins with"):
        next(decode_frames(data))


@pytest.mark.parametrize("data", [b"\0\0\0\x1cftypisom" + bytes(400), b"\x1aE\xdf\xa3" + bytes(400)])
def test_a_damaged_video_is_rejected(data: bytes) -> None:
    with pytest.raises(RejectedError, match="the video does not decode; OpenCV may lack its codec") as error:
        list(decode_frames(data))
    assert error.value.reason == "bad_image"


def test_a_truncated_video_has_fewer_frames() -> None:
    data = video_file(FRAMES)
    assert 0 < len(list(decode_frames(data[: len(data) // 2]))) < len(FRAMES)
    with pytest.raises(RejectedError, match="does not decode"):
        list(decode_frames(video_file(FRAMES, ".mp4", "mp4v")[:1000]))  # its index stands at the end


def test_too_large_frames_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_PIXELS", 48 * 64 - 1)
    with pytest.raises(RejectedError, match="the video's frames have 48 x 64 pixels, more than 3,071"):
        next(decode_frames(video_file(FRAMES)))


def test_one_frame_at_a_time_and_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = video_file(FRAMES)
    frames = decode_frames(data)
    assert np.array_equal(next(frames), FRAMES[0])
    assert len(glob.glob(f"{tmp_path}/gatokit-*")) == 1
    frames.close()
    assert not glob.glob(f"{tmp_path}/*")
