"""The sample grids of a run, in as few bytes as a page can carry."""

import base64
import dataclasses
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from absl import logging

_MAX_GRIDS = 60
_MAX_BYTES = 9_000_000
# People look longest at the newest one.
_MAX_BYTES_OF_NEWEST = 1_500_000
_MAX_REDUCTION = 64
# What may be decoded: more is none of our grids.
_MAX_PIXELS = 50_000_000
_NAME = re.compile(r"epoch_(\d{4,9})\.png")


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as it is in the page.

    Attributes:
      uri: a data URI of a PNG.
      width: in pixels, as on the disk.
      height: in pixels, as on the disk.
      is_enlarged: whether its pixels are to be shown as squares.
    """

    uri: str
    width: int
    height: int
    is_enlarged: bool


def read_grids(directory: Path) -> tuple[list[tuple[int, Picture]], int]:
    """Reads the grids of the epochs; of many, some that are evenly spaced.

    One that cannot be read is left out.

    Args:
      directory: the samples of a run; it need not exist.

    Returns:
      (epoch, grid) by epoch, and how many grids there are in all.
    """
    paths = {}
    for path in directory.glob("epoch_*.png"):
        if match := _NAME.fullmatch(path.name):
            paths[int(match[1])] = path
    epochs = sorted(paths)
    chosen = _evenly(epochs, _MAX_GRIDS)
    each = (_MAX_BYTES - _MAX_BYTES_OF_NEWEST) // max(len(chosen), 1)
    grids = []
    for epoch in chosen:
        is_newest = epoch == chosen[-1]
        picture = read_picture(
            paths[epoch], max_bytes=_MAX_BYTES_OF_NEWEST if is_newest else each
        )
        if picture:
            grids.append((epoch, picture))
    return grids, len(epochs)


def read_picture(
    path: Path, *, max_bytes: int = _MAX_BYTES_OF_NEWEST
) -> Picture | None:
    """Reads a picture and makes it small; None if that is impossible.

    Enlarged pixels become single ones again, which loses nothing. What still
    takes more than `max_bytes` is averaged over squares of pixels.
    """
    try:
        with PIL.Image.open(path) as image:
            width, height = image.size
            if width * height > _MAX_PIXELS:
                raise ValueError(f"it has {width} x {height} pixels")
            is_grey = image.mode in ("1", "L", "I", "I;16")
            pixels = np.asarray(image.convert("L" if is_grey else "RGB"))
    # A damaged PNG gives any of these, depending on where.
    except (OSError, SyntaxError, ValueError) as error:
        if path.exists():
            logging.warning("The report goes without %s: %s", path, error)
        return None
    factor = enlargement(pixels)
    small = PIL.Image.fromarray(
        np.ascontiguousarray(pixels[::factor, ::factor])
    )
    png = _encode(small)
    reduction = 1
    while len(png) > max_bytes and reduction < _MAX_REDUCTION:
        # As many pixels less as there are bytes too much; noise takes more.
        excess = math.sqrt(len(png) / max_bytes)
        reduction = max(reduction + 1, math.floor(reduction * excess))
        png = _encode(small.reduce(reduction))
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    return Picture(uri, width, height, is_enlarged=factor > reduction)


def enlargement(pixels: np.ndarray) -> int:
    """Returns the factor by which small images were enlarged, often 1.

    Args:
      pixels: uint8 [H, W] or [H, W, 3].
    """
    height, width = pixels.shape[:2]
    for factor in range(min(height, width, 64), 1, -1):
        if height % factor or width % factor:
            continue
        small = pixels[::factor, ::factor]
        if np.array_equal(
            small.repeat(factor, axis=0).repeat(factor, axis=1), pixels
        ):
            return factor
    return 1


def _evenly(epochs: Sequence[int], count: int) -> list[int]:
    """Chooses so many, the first and the last among them."""
    chosen = np.linspace(0, len(epochs) - 1, min(len(epochs), count))
    return [epochs[index] for index in chosen.round().astype(int)]


def _encode(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
