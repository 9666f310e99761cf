"""Video files of known frames, written by OpenCV."""

import struct
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


def h264_file(levels: Sequence[int]) -> bytes:
    """An AVI of H.264 frames, 96×128, each gray of one level of luma (1 to 255), written without an encoder: its
    macroblocks are uncompressed (I_PCM)."""
    sequence, picture = bytes.fromhex("000000016742000af841a2"), bytes.fromhex("0000000168ce3880")
    frames = []
    for level in levels:
        block = bytes([level]) * 256 + b"\x80" * 128
        blocks = b"\x0d\x00".join([block] * (96 * 128 // 256))
        frames.append(sequence + picture + bytes.fromhex("0000000105888421a0") + blocks + b"\x80")
    size, count = (128, 96), len(frames)
    header = struct.pack("<14I", 100_000, 0, 0, 0x10, count, 0, 1, 0, *size, 0, 0, 0, 0)
    stream = struct.pack("<4s4sIHHIIIIIIII4h", b"vids", b"H264", 0, 0, 0, 0, 1, 10, 0, count, 0, 0, 0, 0, 0, *size)
    form = struct.pack("<IiiHH4sIiiII", 40, *size, 1, 24, b"H264", 96 * 128 * 3, 0, 0, 0, 0)
    index, at = b"", 4
    for frame in frames:
        index += b"00dc" + struct.pack("<III", 16, at, len(frame))
        at += 8 + len(frame) + len(frame) % 2
    headers = _chunk(b"avih", header) + _list(b"strl", _chunk(b"strh", stream) + _chunk(b"strf", form))
    body = _list(b"hdrl", headers) + _list(b"movi", b"".join(_chunk(b"00dc", frame) for frame in frames))
    return _chunk(b"RIFF", b"AVI " + body + _chunk(b"idx1", index))


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _list(name: bytes, data: bytes) -> bytes:
    return _chunk(b"LIST", name + data)
