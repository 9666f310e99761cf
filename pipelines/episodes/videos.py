"""Videos that are stored with an episode and have one frame for each of its steps: encoded or plain frames, or a file.

Legend: N recorded steps, the last one included; S steps that are used.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import cast

import numpy as np

from gatokit.pipelines.episodes.reader import SourceField, Values
from gatokit.schemas.errors import RejectedError
from gatokit.tokenizers.video import decode_frames, is_video

Frames = Iterable[bytes | np.ndarray]
"""PNG or JPEG files, or arrays (H, W, channels)."""


def frame_field(source: SourceField) -> SourceField:
    """A field of the episode as the rules for fields of a step see it: of a sequence of frames, the field of one."""
    if not has_frames(source):
        return source
    form = "image" if source.form == "video" else "tensor"
    return source.model_copy(update={"form": form, "shape": source.shape[1:]})


def has_frames(source: SourceField) -> bool:
    """Whether a field of the episode is a sequence of frames by its type."""
    return source.form == "video" or (source.form == "ragged" and len(source.shape) == 4)


def episode_frames(source: SourceField, value: Values) -> Frames | None:
    """The frames of a field's value in an episode; None if it is no video.

    A video file is decoded while its frames are read, which raises RejectedError as ``decode_frames`` does.
    """
    if has_frames(source):
        return cast(Frames, value if source.form == "video" else value[0])
    first = value[0]
    return decode_frames(first) if isinstance(first, bytes) and is_video(first) else None


def frames_of_steps(path: str, frames: Frames, recorded: int, steps: int) -> Iterator[bytes | np.ndarray]:
    """Yields the frames of the first S ``steps``.

    Raises RejectedError, which names the field: ``malformed_steps``, at the end, if there are not N frames, as many as
    ``recorded`` steps.
    """
    count = 0
    try:
        for count, frame in enumerate(islice(frames, recorded + 1), 1):
            if count <= steps:
                yield frame
    except RejectedError as error:
        raise RejectedError(error.reason, f"{path}: {error.detail}") from None
    if count != recorded:
        more = "more than " if count > recorded else ""
        raise RejectedError("malformed_steps", f"{path} has {more}{min(count, recorded)} frames for {recorded} steps")
