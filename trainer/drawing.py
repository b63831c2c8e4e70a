"""What a generator makes, as files: a grid, single images, an interpolation."""

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from trainer import atomic_file, generation, samples, video
from trainer.generation import Generation

FRAME_MSECS = 50
_PURPOSE = "generated samples"
_PER_CALL = 64


class Selection:
    """Which samples: number n of a class is the same in each selection.

    Attributes:
      seed: decides the latents.
      num_samples: of each class.
      classes: labels; None alone for a generator without classes.
    """

    def __init__(
        self,
        made: Generation,
        *,
        seed: int,
        num_samples: int,
        truncation: float | None,
        labels: Sequence[int],
    ) -> None:
        """Makes nothing yet.

        Args:
          made: the generator.
          seed: decides the latents.
          num_samples: of each class.
          truncation: see `generation.truncate`; None for none.
          labels: the classes; empty for a generator without classes.
        """
        self.seed = seed
        self.num_samples = num_samples
        self.classes: list[int | None] = [*labels] or [None]
        self._made = made
        self._truncation = truncation

    def images(self, label: int | None) -> Iterator[np.ndarray]:
        """Yields those of one class, some at a time: uint8 [b, H, W, C]."""
        for start in range(0, self.num_samples, _PER_CALL):
            count = min(_PER_CALL, self.num_samples - start)
            yield self._images(self._latents(start, count), label)

    def frames(
        self, label: int | None, num_frames: int
    ) -> Iterator[np.ndarray]:
        """Yields what lies between those of one class, round and back.

        Args:
          label: the class.
          num_frames: from one to the next.

        Yields:
          uint8 [H, W, C], each as `samples.make_grid` lays it out.
        """
        anchors = self._latents(0, self.num_samples)
        others = np.roll(anchors, -1, axis=0)
        for one, other in zip(anchors, others, strict=True):
            latents = generation.interpolate(one, other, num_frames)
            for image in self._images(latents, label):
                yield samples.make_grid(image[np.newaxis])

    def _images(self, latents: np.ndarray, label: int | None) -> np.ndarray:
        labels = None
        if label is not None:
            labels = np.full(len(latents), label, np.int32)
        return samples.to_uint8(self._made.samples(latents, labels))

    def _latents(self, first: int, count: int) -> np.ndarray:
        latents = self._made.latents(
            seed=self.seed, first=first, count=count, purpose=_PURPOSE
        )
        if self._truncation is None:
            return latents
        return generation.truncate(latents, self._truncation)


def write_grid(selection: Selection, output: pathlib.Path) -> str:
    """Writes one picture of all, where classes are rows; says so.

    Raises:
      StorageError: it cannot be written.
    """
    images = [
        batch
        for label in selection.classes
        for batch in selection.images(label)
    ]
    path = output / f"grid_seed_{selection.seed}.png"
    has_classes = selection.classes != [None]
    grid = samples.make_grid(
        np.concatenate(images),
        columns=selection.num_samples if has_classes else None,
    )
    atomic_file.write_bytes(path, samples.to_png(grid))
    return f"Wrote {path}."


def write_files(selection: Selection, output: pathlib.Path) -> str:
    """Writes a picture for each; says so.

    Raises:
      StorageError: one cannot be written.
    """
    for label in selection.classes:
        prefix = "sample" if label is None else f"class_{label}"
        number = 0
        for batch in selection.images(label):
            for image in batch:
                path = output / f"{prefix}_{number:06d}.png"
                try:
                    path.write_bytes(samples.to_png(image))
                except OSError as error:
                    raise atomic_file.storage_error(
                        "write", path, error
                    ) from error
                number += 1
    count = selection.num_samples * len(selection.classes)
    return f"Wrote {count:,} files in {output}."


def write_interpolation(
    selection: Selection, output: pathlib.Path, *, num_frames: int, format: str
) -> str:
    """Writes a film for each class, which goes round; says so.

    Args:
      selection: where it passes.
      output: a directory.
      num_frames: from one sample to the next.
      format: "gif" or "mp4".

    Raises:
      StorageError: one cannot be written.
    """
    paths = []
    for label in selection.classes:
        suffix = "" if label is None else f"_class_{label}"
        name = f"interpolation_seed_{selection.seed}{suffix}.{format}"
        frames = selection.frames(label, num_frames)
        if format == "mp4":
            video.write_mp4(output / name, frames, frame_msecs=FRAME_MSECS)
        else:
            gif = samples.to_gif(frames, frame_msecs=FRAME_MSECS)
            atomic_file.write_bytes(output / name, gif)
        paths.append(str(output / name))
    return f"Wrote {', '.join(paths)}."
