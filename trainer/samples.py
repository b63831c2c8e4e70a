"""Pictures of what the generator makes: the grids, and the film of them."""

import io
import math
import pathlib
from collections.abc import Iterable, Sequence

import keras
import numpy as np
import PIL.Image
import tensorflow as tf
from absl import logging

from trainer import atomic_file, randomness

_PADDING_PIXELS = 2
_MIN_WIDTH_PIXELS = 480
_FILM_SECS = 5.0
_LAST_FRAME_SECS = 2.0
# These bound the memory that a film and a call of the generator take.
_MAX_FRAMES = 200
_SAMPLES_PER_CALL = 64


def grid_labels(num_samples: int, num_classes: int) -> np.ndarray:
    """Returns the classes of a grid, row by row, a column for each class.

    Args:
      num_samples: rounded up to as many of each class. If there are more
        classes, so many of them, evenly spaced, get one each.
      num_classes: K.

    Returns:
      int32 [rows, columns].
    """
    num_columns = min(num_classes, num_samples)
    shown = np.linspace(0, num_classes - 1, num_columns).round()
    num_rows = math.ceil(num_samples / num_columns)
    return np.tile(shown.astype(np.int32), [num_rows, 1])


class Sampler:
    """Makes the same samples' successors: its latents never change.

    A generator with classes makes the same latents in each class of a row.

    Attributes:
      num_columns: of the grid; None for about as many as rows.
    """

    def __init__(
        self,
        generator: keras.Model,
        *,
        latent_dim: int,
        num_samples: int,
        seed: int,
        num_classes: int | None = None,
    ) -> None:
        """Draws the latents from the run's seed.

        Args:
          generator: latents [B, latent_dim], or (latents, labels int32 [B]), ->
            samples [B, ...] in [-1, 1].
          latent_dim: its own.
          num_samples: how many, see `grid_labels` for one with classes.
          seed: the run's.
          num_classes: that the generator knows; None: it takes no labels.
        """
        self.num_columns: int | None = None
        labels = None
        num_latents = num_samples
        if num_classes is not None:
            labels = grid_labels(num_samples, num_classes)
            num_latents, self.num_columns = labels.shape
            num_samples = labels.size
        latents = randomness.Draws(
            seed=seed, purpose="sample latents", step=0
        ).normal((num_latents, latent_dim))
        if self.num_columns:
            latents = tf.repeat(latents, self.num_columns, axis=0)
        # Of one shape, the last chunk being padded, so that one graph does.
        size = min(num_samples, _SAMPLES_PER_CALL)
        padding = [0, -num_samples % size]
        padded = tf.pad(latents, [padding, [0, 0]])
        self._chunks = tf.split(padded, len(padded) // size)
        if labels is not None:
            padded_labels = tf.pad(labels.reshape(-1), [padding])
            parts = tf.split(padded_labels, len(self._chunks))
            self._chunks = [
                list(c) for c in zip(self._chunks, parts, strict=True)
            ]
        self._num_samples = num_samples
        self._generate = tf.function(
            lambda inputs: generator(inputs, training=False)
        )

    def sample(self) -> np.ndarray:
        """Returns samples [num_samples, ...] in [-1, 1]."""
        parts = [self._generate(chunk).numpy() for chunk in self._chunks]
        return np.concatenate(parts)[: self._num_samples]


def to_uint8(samples: np.ndarray) -> np.ndarray:
    """Maps [-1, 1] to the nearest of 0 ... 255; what is beyond is clipped."""
    return np.clip(np.rint((samples + 1.0) * 127.5), 0, 255).astype(np.uint8)


def make_grid(images: np.ndarray, *, columns: int | None = None) -> np.ndarray:
    """Lays out images in a grid, row by row.

    Args:
      images: uint8 [B, H, W, C] with C 1 or 3.
      columns: of the grid; None for about as many as rows.

    Returns:
      uint8 [grid H, grid W, C]; small images are enlarged by a whole factor.
    """
    num_images, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(num_images))
    rows = math.ceil(num_images / columns)
    cell_height, cell_width = height + _PADDING_PIXELS, width + _PADDING_PIXELS
    grid = np.full(
        [
            rows * cell_height + _PADDING_PIXELS,
            columns * cell_width + _PADDING_PIXELS,
            channels,
        ],
        255,
        np.uint8,
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top = row * cell_height + _PADDING_PIXELS
        left = column * cell_width + _PADDING_PIXELS
        grid[top : top + height, left : left + width] = image
    factor = max(1, round(_MIN_WIDTH_PIXELS / grid.shape[1]))
    return grid.repeat(factor, axis=0).repeat(factor, axis=1)


def to_png(image: np.ndarray) -> bytes:
    """Encodes an image, uint8 [H, W, C] with C 1 or 3."""
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def to_gif(images: Iterable[np.ndarray], *, frame_msecs: int) -> bytes:
    """Encodes frames, each uint8 [H, W, C] with C 1 or 3, as an endless GIF."""
    # One after the other: all at once, as arrays and as pictures, would take
    # several times the memory of what the encoder keeps of them.
    frames = (
        PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        for image in images
    )
    buffer = io.BytesIO()
    next(frames).save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=frames,
        duration=frame_msecs,
        loop=0,
    )
    return buffer.getvalue()


def epoch_path(directory: pathlib.Path, epoch: int) -> pathlib.Path:
    """Where the grid of an epoch is."""
    return directory / f"epoch_{epoch:04d}.png"


def write_film(directory: pathlib.Path, *, epochs: int) -> None:
    """Writes `training.gif` from the grids of epochs 1 to `epochs`.

    Of many grids it takes some, evenly spaced, the last one among them. A grid
    that is missing or cannot be read is left out; without any, so is the film.

    Raises:
      StorageError: the film cannot be written.
    """
    paths = [
        path
        for epoch in range(1, epochs + 1)
        if (path := epoch_path(directory, epoch)).exists()
    ]
    num_frames = min(len(paths), _MAX_FRAMES)
    chosen = np.linspace(0, len(paths) - 1, num_frames).round().astype(int)
    read = [_read_frame(paths[index]) for index in chosen]
    frames = [frame for frame in read if frame is not None]
    if not frames:
        return
    # Another --num_samples, after a resume, made grids of another size.
    frames = [frame.resize(frames[-1].size) for frame in frames]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=_durations_msecs(frames),
        loop=0,
    )
    atomic_file.write_bytes(directory / "training.gif", buffer.getvalue())


def _read_frame(path: pathlib.Path) -> PIL.Image.Image | None:
    """Reads a grid; a damaged one is no reason to lose a finished run."""
    try:
        with PIL.Image.open(path) as image:
            return image.copy()
    # A damaged PNG gives either of these, depending on where.
    except (OSError, SyntaxError, ValueError) as error:
        logging.warning("The film goes without %s: %s", path, error)
        return None


def _durations_msecs(frames: Sequence[PIL.Image.Image]) -> list[int]:
    each = round(1000 * min(0.5, _FILM_SECS / len(frames)))
    return [each] * (len(frames) - 1) + [round(1000 * _LAST_FRAME_SECS)]
