"""Image files by their first bytes: format, size and colours, undecoded.

A file's name says nothing about what is in it, and its header says how much
memory decoding would take, before anything is decoded.
"""

import io
from typing import IO, NamedTuple

import PIL.Image

# The limit is ours, in `read`, and may be higher than Pillow's.
PIL.Image.MAX_IMAGE_PIXELS = None

# What TensorFlow has a decoder for that is not known to fail on some of it.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
}
# Not read, but worth a better reason than "not an image".
_OTHER_MAGIC = {
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "Photoshop",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"%PDF": "PDF",
    b"<svg": "SVG",
}
# EXIF 2.32, 4.6.4 A: where the first row and column of the pixels belong.
UPRIGHT = 1
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = range(1, 9)
# Of these, rows are columns of what is to be seen.
_LYING_ORIENTATIONS = range(5, 9)
_GREY_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16B")
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
}


class BadImage(Exception):
    """An image that cannot be used; the text is the reason."""


class Header(NamedTuple):
    """What the first bytes of an image tell.

    Attributes:
      format: one of `FORMATS`.
      height: in pixels, of the image as it is to be seen.
      width: in pixels, likewise.
      channels: 1 for grey, 3 for colours.
      orientation: what is to be done with the pixels for that, 1 to 8 as in
        EXIF; `UPRIGHT` is nothing.
    """

    format: str
    height: int
    width: int
    channels: int
    orientation: int = UPRIGHT


def read(start: bytes, file: IO[bytes], *, max_pixels: int) -> Header:
    """Reads the header of an image.

    Args:
      start: the first bytes of the file, 16 or more if it has so many.
      file: the file, at any place; it is read only as far as needed.
      max_pixels: of an image that can be used.

    Raises:
      BadImage: it cannot be used.
    """
    name = _format(start)
    file.seek(0)
    try:
        image = PIL.Image.open(file, formats=[name])
        # Only asked of formats that decode to one image or many.
        moves = name == "WEBP" and getattr(image, "is_animated", False)
    # Whatever a plugin stumbles over: they raise more than they document.
    except Exception as error:
        raise BadImage(f"a {name} file with a damaged header") from error
    width, height = image.size
    check_size(height, width, max_pixels=max_pixels)
    if width * height == 0:
        raise BadImage(f"{width}x{height} pixels")
    if image.mode == "CMYK":
        raise BadImage("CMYK colours, which need a profile: convert it to RGB")
    if name == "BMP" and (
        image.mode not in ("L", "RGB", "RGBA")
        or image.info.get("compression", 0)
    ):
        raise BadImage("a BMP file with a palette: convert it to PNG")
    if moves:
        raise BadImage("an animated WebP file")
    orientation = _orientation(image)
    if orientation in _LYING_ORIENTATIONS:
        height, width = width, height
    channels = 1 if image.mode in _GREY_MODES else 3
    return Header(name, height, width, channels, orientation)


def read_bytes(content: bytes, *, max_pixels: int) -> Header:
    """Reads the header of an image in memory; see `read`."""
    return read(content[:16], io.BytesIO(content), max_pixels=max_pixels)


def check_size(height: int, width: int, *, max_pixels: int) -> None:
    """Refuses an image with more pixels.

    Raises:
      BadImage: it has.
    """
    if width * height > max_pixels:
        raise BadImage(
            f"{width}x{height} pixels, more than --max_pixels={max_pixels}"
        )


def is_named_otherwise(name: str, header: Header) -> bool:
    """Tells whether a file's name promises another format than it has."""
    suffix = f".{name.lower().rpartition('.')[2]}"
    known = {s for suffixes in _SUFFIXES.values() for s in suffixes}
    return suffix in known and suffix not in _SUFFIXES[header.format]


def _orientation(image: PIL.Image.Image) -> int:
    """Returns how the camera was held, as far as the header tells."""
    # Not `getexif`: of a PNG file, it decodes the pixels to look behind them.
    notes = image.info.get("exif")
    if not notes:
        return UPRIGHT
    exif = PIL.Image.Exif()
    try:
        exif.load(notes)
        orientation = exif.get(_ORIENTATION_TAG, UPRIGHT)
    # Damaged notes are no damage to the pixels.
    except Exception:
        return UPRIGHT
    return orientation if orientation in _ORIENTATIONS else UPRIGHT


def _format(start: bytes) -> str:
    if not start:
        raise BadImage("empty")
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    for magic, name in _OTHER_MAGIC.items():
        if start.startswith(magic):
            raise BadImage(f"{name}, which is not read: convert it to PNG")
    if start[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1"):
        raise BadImage("AVIF or HEIC, which is not read: convert it to PNG")
    raise BadImage("not an image")
