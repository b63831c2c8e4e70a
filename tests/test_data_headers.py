"""What the first bytes of a file tell, and what is never decoded."""

import numpy as np
import PIL.Image
import pytest

from tests import image_files
from trainer.data import headers

_LIMIT = 100_000_000
_BAD = image_files.bad_files()


@pytest.mark.parametrize(
    ("image_format", "channels"),
    [
        *((image_format, 3) for image_format in headers.FORMATS),
        # The others have no grey, or tell it by their palette only.
        *((image_format, 1) for image_format in ("JPEG", "PNG", "BMP")),
    ],
)
def test_reads_format_size_and_colours(image_format, channels):
    content = image_files.encode(
        image_files.pixels(0, 20, 30, channels), image_format
    )
    header = headers.read_bytes(content, max_pixels=_LIMIT)
    assert header == (image_format, 20, 30, channels, headers.UPRIGHT)


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGBA", 3)],
)
def test_colours_of_png(mode, channels):
    image = PIL.Image.fromarray(image_files.pixels(0))
    if mode == "I;16":
        image = PIL.Image.fromarray(np.zeros([32, 32], np.uint16))
    content = image_files.encode_image(
        image if mode == "I;16" else image.convert(mode), "PNG"
    )
    header = headers.read_bytes(content, max_pixels=_LIMIT)
    assert header.channels == channels


@pytest.mark.parametrize("name", _BAD)
def test_refuses_with_a_reason(name):
    content, reason = _BAD[name]
    with pytest.raises(headers.BadImage, match=reason):
        headers.read_bytes(content, max_pixels=_LIMIT)


def test_the_limit_is_ours_and_not_pillows():
    # Pillow refuses more than 179 million pixels by itself.
    image = PIL.Image.new("1", (20_000, 10_000))
    content = image_files.encode_image(image, "PNG")
    header = headers.read_bytes(content, max_pixels=200_000_000)
    assert (header.height, header.width) == (10_000, 20_000)
    with pytest.raises(headers.BadImage, match="20000x10000 pixels"):
        headers.read_bytes(content, max_pixels=199_999_999)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_comes_is_a_header_or_a_reason(seed):
    generator = np.random.default_rng(seed)
    for image_format in headers.FORMATS:
        good = image_files.encode(image_files.pixels(0), image_format)
        for _ in range(40):
            content = bytearray(good)
            for place in generator.integers(0, min(len(content), 80), 3):
                content[place] = generator.integers(256)
            try:
                headers.read_bytes(bytes(content), max_pixels=_LIMIT)
            except headers.BadImage as bad:
                assert str(bad)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.jpg", True), ("a.PNG", False), ("a", False), ("a.v2", False)],
)
def test_notices_names_of_other_formats(name, expected):
    header = headers.Header("PNG", 1, 1, 3)
    assert headers.is_named_otherwise(name, header) == expected
