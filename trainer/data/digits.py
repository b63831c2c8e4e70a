"""The 1,797 handwritten digits inside scikit-learn, made to look like MNIST's.

They are the test split of UCI's "Optical Recognition of Handwritten Digits"
(E. Alpaydin and C. Kaynak, 1998): real handwriting, 8x8, in 17 shades of grey.
Nothing is downloaded, so a first run works anywhere.
"""

import numpy as np
from PIL import Image

from trainer import errors
from trainer.data.array_dataset import ArrayDataset

# MNIST's layout: the ink fills a box of 20x20, keeping its aspect ratio, and
# its centre of mass is the centre of the 28x28 image (LeCun et al., 1998).
_IMAGE_SIZE = 28
_BOX_SIZE = 20

_MAX_SHADE = 16
_UPSAMPLING = 8
_PADDING = 2
# After interpolation the strokes' edges are ramps several pixels wide. Shades
# below the first bound become background and those above the second ink, which
# brings the contrast and the stroke width to MNIST's: mean 34.7 of 255 (MNIST
# 33.3), 79% of the pixels 0 (81%), 10.6% above 200 (10.2%).
_BACKGROUND_SHADE = 0.4
_INK_SHADE = 0.7


def load(*, data_dir: str | None, split: str | None = None) -> ArrayDataset:
    """Returns the digits as uint8 [1797, 28, 28, 1] with labels 0..9.

    Raises:
      UsageError: `data_dir` or `split` is given.
    """
    if split is not None:
        raise errors.UsageError(
            f"--split={split} has no use: --dataset=digits has one part. Leave"
            " it out, or choose another --dataset."
        )
    if data_dir is not None:
        raise errors.UsageError(
            f"--data_dir={data_dir} has no use: --dataset=digits is embedded"
            " and takes no --data_dir. Leave it out, or choose another"
            " --dataset."
        )
    # Here, because the import takes most of a second.
    from sklearn import datasets

    source = datasets.load_digits()
    samples = np.stack([_enlarge(image) for image in source.images])
    return ArrayDataset(
        samples=samples[..., np.newaxis],
        labels=source.target.astype(np.int32),
        class_names=tuple("0123456789"),
    )


def _enlarge(image: np.ndarray) -> np.ndarray:
    """Redraws [8, 8] in 0..16 as uint8 [28, 28]."""
    # Padding lets strokes that touch the border taper off.
    padded = np.pad(image / _MAX_SHADE, _PADDING).astype(np.float32)
    size = len(padded) * _UPSAMPLING
    smooth = _resize(padded, (size, size), Image.Resampling.BICUBIC)
    ink = (smooth - _BACKGROUND_SHADE) / (_INK_SHADE - _BACKGROUND_SHADE)
    ink = _crop(np.clip(ink, 0, 1))
    scale = _BOX_SIZE / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    # A box filter averages: it cannot overshoot, and the edges come out
    # antialiased like MNIST's.
    ink = _resize(ink, (width, height), Image.Resampling.BOX)
    return _centre(np.rint(ink * 255).astype(np.uint8))


def _resize(
    image: np.ndarray, size: tuple[int, int], resampling: Image.Resampling
) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size, resampling))


def _crop(ink: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(ink.any(axis=1))
    columns = np.flatnonzero(ink.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _centre(ink: np.ndarray) -> np.ndarray:
    """Pastes uint8 [<= 20, <= 20] into [28, 28] by its centre of mass."""
    image = np.zeros((_IMAGE_SIZE, _IMAGE_SIZE), np.uint8)
    corner = []
    for axis, side in enumerate(ink.shape):
        mass = ink.sum(axis=1 - axis)
        centre = np.average(np.arange(side), weights=mass)
        start = round((_IMAGE_SIZE - 1) / 2 - centre)
        corner.append(min(max(start, 0), _IMAGE_SIZE - side))
    top, left = corner
    image[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return image
