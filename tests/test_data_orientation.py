"""Pictures of a camera that was held sideways come out the right way up."""

import io

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf

from tests import image_files
from trainer import data
from trainer.data import decoding, headers, packing

_ORIENTATIONS = range(1, 9)


def encode(orientation, image_format="PNG", *, seed=0, height=20, width=30):
    """Returns a file whose pixels are [height, width], with a note on it."""
    exif = PIL.Image.Exif()
    exif[headers._ORIENTATION_TAG] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    return image_files.encode(
        image_files.pixels(seed, height, width),
        image_format,
        exif=exif,
        **options,
    )


def as_seen(content):
    """Returns what other programs show, uint8 [H, W, 3]."""
    image = PIL.Image.open(io.BytesIO(content))
    return np.asarray(PIL.ImageOps.exif_transpose(image).convert("RGB"))


def write(root, contents):
    for number, content in enumerate(contents):
        path = root / "class" / f"{number:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def stream(dataset, **wanted):
    return data.stream(dataset, data_dir=None, wanted=data.Wanted(**wanted))


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", _ORIENTATIONS)
def test_the_header_tells_the_size_that_is_seen(orientation, image_format):
    content = encode(orientation, image_format)
    header = headers.read_bytes(content, max_pixels=1000)
    size = (20, 30) if orientation < 5 else (30, 20)
    assert header == (image_format, *size, 3, orientation)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_every_orientation_is_turned_as_elsewhere(tmp_path, image_format):
    # Those that lie are of the same size as the others, once they are turned.
    sizes = [(20, 30)] * 4 + [(30, 20)] * 4
    contents = [
        encode(o, image_format, seed=o, height=height, width=width)
        for o, (height, width) in zip(_ORIENTATIONS, sizes, strict=True)
    ]
    write(tmp_path, contents)
    dataset = stream(f"folder:{tmp_path}")
    assert dataset.sample_shape == (20, 30, 3)
    assert dataset._common_size == (20, 30)
    expected = np.stack([as_seen(content) for content in contents])
    np.testing.assert_array_equal(dataset.at(np.arange(8)), expected)
    streamed = dataset.reader()(tf.range(8, dtype=tf.int64))
    np.testing.assert_array_equal(streamed, expected)
    np.testing.assert_array_equal(dataset.in_memory().samples, expected)


def test_a_large_jpeg_file_is_shrunk_as_it_will_be_seen():
    lying = encode(6, "JPEG", height=80, width=333)
    header = headers.read_bytes(lying, max_pixels=10**6)
    [choice] = decoding.choose(
        np.array([headers.FORMATS.index("JPEG")]),
        *(np.array([value]) for value in (header.height, header.width, 6)),
        sample_shape=(83, 20, 3),
    )
    size = decoding.common_size(
        np.array([header.height]), np.array([header.width]), np.array([choice])
    )
    image = decoding.decode(
        tf.constant(lying), tf.constant(0), choices=(int(choice),), channels=3
    )
    # By 4 in both directions, which is all that the height allows.
    assert tuple(image.shape) == (84, 20, 3) == (*size, 3)
    upright = tf.io.decode_jpeg(lying, ratio=4, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(image, np.rot90(upright, -1))


def test_packed_they_are_the_same(tmp_path):
    write(tmp_path / "in", [encode(o, seed=o) for o in _ORIENTATIONS])
    source = stream(f"folder:{tmp_path / 'in'}", image_size=(16, 24))
    expected = source.in_memory().samples
    for as_samples in (False, True):
        output = tmp_path / f"packed-{as_samples}"
        packing.pack(source, output, shard_bytes=1 << 30, as_samples=as_samples)
        again = stream(f"tfrecord:{output}/*.tfrecord", image_size=(16, 24))
        np.testing.assert_array_equal(again.in_memory().samples, expected)
        # As they would be in records of somebody else, twice: the second time,
        # from what was kept of the first.
        (output / "classes.json").unlink()
        for path in output.glob("*.npy"):
            path.unlink()
        for _ in range(2):
            foreign = stream(
                f"tfrecord:{output}/*.tfrecord", image_size=(16, 24)
            )
            np.testing.assert_array_equal(foreign.in_memory().samples, expected)


def test_notes_that_make_no_sense_do_no_harm():
    for orientation in (0, 9, 2**15):
        content = encode(orientation)
        header = headers.read_bytes(content, max_pixels=1000)
        assert header == ("PNG", 20, 30, 3, headers.UPRIGHT)
    good = encode(6, "JPEG")
    place = good.index(b"Exif")
    for offset in range(6, 32):  # All of the notes, and nothing else.
        content = bytearray(good)
        content[place + offset] ^= 0xFF
        header = headers.read_bytes(bytes(content), max_pixels=1000)
        assert header.orientation in _ORIENTATIONS


def test_a_run_knows_how_they_were_turned(tmp_path, monkeypatch):
    write(tmp_path, [encode(6)])
    turned = stream(f"folder:{tmp_path}").digest()
    monkeypatch.setattr(headers, "_orientation", lambda image: headers.UPRIGHT)
    assert stream(f"folder:{tmp_path}").digest() != turned
