"""A data set that is decoded while it is read.

A file whose header is fine may still turn out damaged when it is decoded. The
next good image of its class takes its place, every time, so that the batches
remain a function of seed, step and files, whether the data are streamed or kept
in memory. What cannot be read at the moment is waited for.
"""

import os
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from absl import logging

from trainer import errors
from trainer.data import (
    dataset,
    decoding,
    geometry,
    patience,
    stream_options,
)
from trainer.data.array_dataset import ArrayDataset, aligned_empty
from trainer.data.headers import BadImage
from trainer.data.images import ImageList
from trainer.data.quarantine import own_failure
from trainer.data.replacement import Replacements

_REMOTE_READS = 64
_MAX_BATCH_IN_ORDER = 256
# Several batches are in flight, besides the samples that they fill.
_BATCH_BYTES_IN_ORDER = 4 << 20
# A batch of 256 in colours then takes 48 MiB, and 192 as floats.
_MAX_PIXELS_TO_BATCH = 1 << 16
_SECS_BETWEEN_REPORTS = 10.0


class StreamedDataset:
    """The images of a list as samples of one shape; see `Dataset`."""

    def __init__(
        self,
        images: ImageList,
        *,
        sample_shape: tuple[int, int, int],
        resize: str,
    ) -> None:
        """Reads nothing yet.

        Args:
          images: what to read.
          sample_shape: (H, W, C) to bring them to.
          resize: a key of `geometry.RESIZERS`.
        """
        self.images = images
        self.labels = images.labels
        self.class_names = images.class_names
        self.quarantine = images.quarantine
        self.sample_shape = sample_shape
        self.resize = resize
        self._replacements = Replacements(images.labels)
        numbers = decoding.choose(
            images.formats,
            images.heights,
            images.widths,
            images.orientations,
            sample_shape=sample_shape,
        )
        self._common_size = _not_too_large(
            decoding.common_size(images.heights, images.widths, numbers)
        )
        numbers, self._choices = np.unique(numbers, return_inverse=True)
        self._all_choices = tuple(numbers.tolist())

    @property
    def num_threads(self) -> int | None:
        """Threads to read with, if each waits for a server most of the time."""
        return _REMOTE_READS if self.images.storage.is_remote else None

    @property
    def memory_bytes(self) -> int:
        """What the samples take when all of them are decoded."""
        return len(self.labels) * int(np.prod(self.sample_shape))

    def digest(self) -> str:
        """Returns the fingerprint of the list; see there."""
        return self.images.digest()

    def describe(self) -> str:
        """Returns shape, classes and sizes, in words."""
        gibibytes = self.memory_bytes / 2**30
        return dataset.describe(
            self, f"streamed (decoded it would be {gibibytes:,.1f} GiB)"
        )

    def at(self, indices: np.ndarray) -> np.ndarray:
        """Returns the samples at some places.

        Raises:
          DataError: too many of them are bad.
          StorageError: one of them could not be read for minutes.
        """
        return np.stack([self._read_or_replace(int(i)) for i in indices])

    def reader(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a function for graphs: int64 [B] -> uint8 samples [B, ...].

        It decodes in parallel. What fails is read again, with patience, and
        replaced if it is bad; the next time, its replacement is read at once.
        """
        fetch, load = self.images.storage.graph_reader()
        read_one = self._single_reader(load)

        def read(indices: tf.Tensor) -> tf.Tensor:
            size = indices.shape[0]
            indices = tf.ensure_shape(
                tf.numpy_function(
                    self._replacements.apply, [indices], tf.int64
                ),
                [size],
            )
            places, samples = self._readable(read_one, indices, fetch(indices))
            if self._common_size is not None:
                # All at once: one by one, more time goes into handing parts of
                # such small images to threads than into the arithmetic.
                samples = self._resize(samples)
            samples = tf.cond(
                tf.size(places) == size,
                lambda: samples,
                lambda: tf.numpy_function(
                    self._complete, [indices, places, samples], tf.uint8
                ),
            )
            return tf.ensure_shape(samples, [size, *self.sample_shape])

        return read

    def _single_reader(
        self, load: Callable[[tf.Tensor], tf.Tensor]
    ) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
        """Returns a function of one place in a batch, for graphs.

        (place, index, fetched) -> (place, image), uint8 [h, w, C]: resized
        already unless all images have one size. It fails for a bad image.
        """
        with tf.device("CPU:0"):
            choices = tf.constant(self._choices, tf.int32)
            num_bytes = tf.constant(self.images.num_bytes, tf.int64)

        def read_one(
            place: tf.Tensor, index: tf.Tensor, fetched: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            content = load(fetched)
            size = tf.cast(tf.strings.length(content), tf.int64)
            # No assertion: an op with an effect would not run in parallel
            # where determinism is asked for. What is empty does not decode.
            is_same = size == tf.gather(num_bytes, index)
            content = tf.where(is_same, content, "")
            image = self._decode(content, tf.gather(choices, index))
            if self._common_size is None:
                return place, self._resize(image)
            # One that is of another size than its header said is read again.
            return place, tf.ensure_shape(
                image, [*self._common_size, image.shape[-1]]
            )

        return read_one

    def _readable(
        self,
        read_one: Callable[..., tuple[tf.Tensor, tf.Tensor]],
        indices: tf.Tensor,
        fetched: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the places in a batch that can be read, and their images."""
        size = indices.shape[0]
        parallel_calls = len(os.sched_getaffinity(0)) * 2
        parallel_calls = max(parallel_calls, self.num_threads or 0)
        places = tf.range(size, dtype=tf.int64)
        image_shape = self.sample_shape
        if self._common_size is not None:
            image_shape = (*self._common_size, self.sample_shape[-1])
        nothing = tf.data.Dataset.from_tensors(
            (places[:0], tf.zeros([0, *image_shape], tf.uint8))
        )
        return (
            tf.data.Dataset.from_tensor_slices((places, indices, fetched))
            .map(read_one, num_parallel_calls=parallel_calls)
            .ignore_errors()
            .batch(size)
            .concatenate(nothing)
            .take(1)
            .with_options(stream_options.ordered())
            .get_single_element()
        )

    def in_order(self) -> Iterator[np.ndarray]:
        """Yields all samples, uint8 [b, H, W, C], in the order of the list.

        Raises:
          DataError: too many of them are bad.
          StorageError: one of them could not be read for minutes.
        """
        count = len(self.labels)
        size = self._batch_in_order()
        read = self.reader()

        def read_from(start: tf.Tensor) -> tf.Tensor:
            indices = start + tf.range(size, dtype=tf.int64)
            return read(tf.minimum(indices, count - 1))

        starts = tf.data.Dataset.range(0, count, size)
        batches = starts.map(read_from).prefetch(1)
        batches = batches.with_options(
            stream_options.ordered(num_threads=self.num_threads)
        )
        with own_failure(self.quarantine):
            for start, batch in zip(
                range(0, count, size),
                batches.as_numpy_iterator(),
                strict=True,
            ):
                yield batch[: count - start]

    def _batch_in_order(self) -> int:
        image_bytes = int(np.prod(self.sample_shape))
        if self._common_size is not None:
            common_bytes = int(np.prod(self._common_size))
            image_bytes = max(image_bytes, common_bytes * self.sample_shape[-1])
        size = min(_BATCH_BYTES_IN_ORDER // image_bytes, _MAX_BATCH_IN_ORDER)
        # All of a batch are read at once.
        return max(size, self.num_threads or 8)

    def in_memory(self) -> ArrayDataset:
        """Returns the same samples, decoded; see `Dataset` for the rest."""
        count = len(self.labels)
        samples = aligned_empty((count, *self.sample_shape))
        done = 0
        next_report_secs = time.monotonic() + _SECS_BETWEEN_REPORTS
        for batch in self.in_order():
            samples[done : done + len(batch)] = batch
            done += len(batch)
            if time.monotonic() > next_report_secs:
                logging.info("Decoded %d of %d images.", done, count)
                next_report_secs = time.monotonic() + _SECS_BETWEEN_REPORTS
        return ArrayDataset(
            samples=samples,
            labels=self.labels,
            class_names=self.class_names,
            quarantine=self.quarantine,
            source_digest=self.digest(),
        )

    def read_encoded(self, index: int) -> bytes:
        """Returns an encoded image, which is waited for in an outage.

        Raises:
          BadImage: it has been changed or removed.
          StorageError: it could not be read for minutes.
        """
        storage = self.images.storage
        content = patience.read(
            storage.name(index),
            lambda: storage.read(index),
            lambda: storage.is_gone(index),
        )
        if content is None:
            raise BadImage("it was removed after the start")
        if len(content) != self.images.num_bytes[index]:
            raise BadImage("it has changed since the start")
        return content

    def decode(self, index: int, content: bytes) -> np.ndarray:
        """Returns the sample, uint8 [H, W, C], of an encoded image.

        Raises:
          BadImage: it is damaged.
        """
        try:
            with tf.device("CPU:0"):
                image = self._decode(
                    tf.constant(content), tf.constant(self._choices[index])
                )
                return self._resize(image).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise BadImage(_brief(error)) from error

    def _decode(self, content: tf.Tensor, choice: tf.Tensor) -> tf.Tensor:
        return decoding.decode(
            content,
            tf.cast(choice, tf.int32),
            choices=self._all_choices,
            channels=self.sample_shape[-1],
        )

    def _resize(self, images: tf.Tensor) -> tf.Tensor:
        """Brings images [..., h, w, C] to [..., H, W, C]."""
        height, width, _ = self.sample_shape
        return geometry.resize(
            images, height=height, width=width, how=self.resize
        )

    def _complete(
        self, indices: np.ndarray, places: np.ndarray, samples: np.ndarray
    ) -> np.ndarray:
        """Returns a batch, given its samples at some of its places."""
        batch = np.empty((len(indices), *self.sample_shape), np.uint8)
        batch[places] = samples
        for place in np.setdiff1d(np.arange(len(indices)), places):
            batch[place] = self._read_or_replace(int(indices[place]))
        return batch

    def _read_or_replace(self, index: int) -> np.ndarray:
        bad: list[int] = []
        [first] = self._replacements.apply(np.array([index]))
        for candidate in self._replacements.candidates(first).tolist():
            try:
                sample = self.decode(candidate, self.read_encoded(candidate))
            except BadImage as reason:
                name = self.images.storage.name(candidate)
                self.quarantine.replace(name, str(reason))
                bad.append(candidate)
            except (errors.StorageError, errors.StoppedError) as error:
                self.quarantine.failure = error
                raise
            else:
                self._replacements.note(bad, candidate)
                return sample
        raise self.quarantine.fail(
            f"No image of class {self.labels[index]} can be decoded, and a"
            " damaged one is replaced by another of its class. Look at them"
            " with `python -m trainer.data_tools inspect`."
        )


def _not_too_large(size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Lets only small images be kept in their own size for a whole batch."""
    if size is None or size[0] * size[1] > _MAX_PIXELS_TO_BATCH:
        return None
    return size


def _brief(error: tf.errors.OpError) -> str:
    text = (error.message or type(error).__name__).splitlines()[0]
    # "{{function_node ...}} what happened [Op:DecodeJpeg] name: "
    text = text.rpartition("}}")[2].partition("[Op:")[0]
    return text.strip().rstrip(".")
