"""Films as MP4: H.264, which every browser and editor plays.

imageio-ffmpeg brings the FFmpeg that writes them; it is in the extra `video`.
"""

import contextlib
import itertools
import os
import pathlib
import secrets
from collections.abc import Iterable

import numpy as np

from trainer import atomic_file, errors

# Of x264's scale, where 18 looks like the original and 23 is the default.
_CONSTANT_RATE_FACTOR = 18


def check_available() -> None:
    """Looks for FFmpeg before anything is computed.

    Raises:
      UsageError: it is not installed.
    """
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    # The second: a package without a binary for this platform.
    except (ImportError, RuntimeError) as error:
        raise errors.UsageError(
            "--format=mp4 needs FFmpeg, which is not here: pip install"
            " 'gan-trainer[video]', or imageio-ffmpeg alone. Or take"
            " --format=gif."
        ) from error


def write_mp4(
    path: pathlib.Path, frames: Iterable[np.ndarray], *, frame_msecs: int
) -> None:
    """Writes a film, one frame after the other.

    Colours are kept at half the resolution, as players demand; so a side that
    is odd gets one more row or column, a copy of the last.

    Args:
      path: where it goes, in place of what is there.
      frames: one or more, uint8 [H, W, C] with C 1 or 3, all of one shape.
      frame_msecs: for how long each is seen.

    Raises:
      StorageError: it cannot be written.
    """
    import imageio_ffmpeg

    frames = iter(frames)
    first = _even(next(frames))
    height, width, channels = first.shape
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.mp4")
    writer = imageio_ffmpeg.write_frames(
        str(temporary),
        (width, height),
        pix_fmt_in="gray" if channels == 1 else "rgb24",
        fps=1000 / frame_msecs,
        codec="libx264",
        macro_block_size=2,
        quality=None,
        output_params=[
            *("-crf", str(_CONSTANT_RATE_FACTOR)),
            # So that a browser begins before it has all of it.
            *("-movflags", "+faststart"),
        ],
        ffmpeg_log_level="error",
    )
    try:
        with contextlib.closing(writer):
            writer.send(None)
            for frame in itertools.chain([first], map(_even, frames)):
                writer.send(np.ascontiguousarray(frame))
        os.replace(temporary, path)
    except OSError as error:
        raise atomic_file.storage_error("write", path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    return np.pad(frame, [(0, height % 2), (0, width % 2), (0, 0)], mode="edge")
