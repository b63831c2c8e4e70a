"""Image files for tests, good ones and every kind of bad ones."""

import io
import pathlib
from typing import Any

import numpy as np
import PIL.Image


def pixels(
    seed: int, height: int = 32, width: int = 32, channels: int = 3
) -> np.ndarray:
    """Returns a smooth picture, uint8 [H, W, C], another for each seed."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, [4, 4, channels], dtype=np.uint8)
    planes = [
        PIL.Image.fromarray(small[..., c]).resize(
            (width, height), PIL.Image.Resampling.BILINEAR
        )
        for c in range(channels)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def encode(
    array: np.ndarray, image_format: str = "PNG", **options: Any
) -> bytes:
    """Encodes uint8 [H, W, 1 or 3], or [H, W, 4] with transparency."""
    buffer = io.BytesIO()
    flat = array[..., 0] if array.shape[-1] == 1 else array
    PIL.Image.fromarray(flat).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def encode_image(
    image: PIL.Image.Image, image_format: str, **options: Any
) -> bytes:
    """Encodes a picture of Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def write_folder(
    root: pathlib.Path,
    num_per_class: int = 10,
    *,
    classes: tuple[str, ...] = ("cat", "dog"),
    height: int = 32,
    width: int = 32,
    channels: int = 3,
    image_format: str = "JPEG",
) -> None:
    """Writes pictures, all different, in a sub-folder for each class."""
    seed = 0
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(num_per_class):
            content = encode(
                pixels(seed, height, width, channels), image_format
            )
            suffix = image_format.lower().replace("jpeg", "jpg")
            (root / name / f"{number:04d}.{suffix}").write_bytes(content)
            seed += 1


def damage(content: bytes) -> bytes:
    """Returns a file whose header is fine, and its body is not all there."""
    return content[: len(content) * 9 // 10]


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Returns files that no header check lets pass, with a part of why."""
    picture = pixels(99)
    good = encode(picture, "JPEG")
    cmyk = PIL.Image.fromarray(picture).convert("CMYK")
    palette = PIL.Image.fromarray(picture).quantize(16)
    other = PIL.Image.fromarray(pixels(98))
    return {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"<html>404 Not Found</html>", "not an image"),
        "tiny.jpg": (good[:3], "damaged header"),
        "cut-in-header.jpg": (good[:100], "damaged header"),
        "cut-in-header.png": (encode(picture)[:20], "damaged header"),
        "huge.png": (
            encode_image(PIL.Image.new("1", (20_000, 6_000)), "PNG"),
            "more than --max_pixels",
        ),
        "cmyk.jpg": (encode_image(cmyk, "JPEG"), "CMYK"),
        "palette.bmp": (encode_image(palette, "BMP"), "palette"),
        "scan.tif": (encode(picture, "TIFF"), "TIFF"),
        "moving.webp": (
            encode_image(
                PIL.Image.fromarray(picture),
                "WEBP",
                save_all=True,
                append_images=[other],
            ),
            "animated",
        ),
        "notes.txt": (b"Remember the milk.", "not an image"),
        "archive.zip": (b"PK\x03\x04" + bytes(60), "not an image"),
    }
