"""A data set that is decoded while it is read.

A file whose header is fine may still turn out damaged when it is decoded. The
next good image of its class takes its place, every time, so that the batches
remain a function of seed, step and files, whether the data are streamed or kept
in memory.
"""

import os
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from absl import logging

from trainer.data import dataset, decoding, stream_options
from trainer.data.array_dataset import ArrayDataset, aligned_empty
from trainer.data.headers import BadImage
from trainer.data.images import ImageList
from trainer.data.quarantine import own_failure

_REMOTE_READS = 64
_BATCH_IN_ORDER = 256
_SECS_BETWEEN_REPORTS = 10.0
_READ_ATTEMPTS = 4
_FIRST_WAIT_SECS = 0.25


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
        numbers = decoding.choose(
            images.formats,
            images.heights,
            images.widths,
            sample_shape=sample_shape,
        )
        decoders, self._choices = np.unique(numbers, return_inverse=True)
        self._decoders = tuple(decoders.tolist())

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
        """
        return np.stack([self._read_or_replace(int(i)) for i in indices])

    def reader(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a function for graphs: int64 [B] -> uint8 samples [B, ...].

        It decodes in parallel; if anything fails, it does so again, one image
        at a time, to see which one it is.
        """
        fetch, load = self.images.storage.graph_reader()
        with tf.device("CPU:0"):
            choices = tf.constant(self._choices, tf.int32)
            num_bytes = tf.constant(self.images.num_bytes, tf.int64)
        parallel_calls = len(os.sched_getaffinity(0)) * 2
        if self.images.storage.is_remote:
            parallel_calls = max(parallel_calls, _REMOTE_READS)

        def read_one(index: tf.Tensor, fetched: tf.Tensor) -> tf.Tensor:
            content = load(fetched)
            size = tf.cast(tf.strings.length(content), tf.int64)
            # No assertion: an op with an effect would not run in parallel
            # where determinism is asked for. What is empty does not decode.
            is_same = size == tf.gather(num_bytes, index)
            content = tf.where(is_same, content, "")
            return self._decode(content, tf.gather(choices, index))

        def read(indices: tf.Tensor) -> tf.Tensor:
            size = indices.shape[0]
            shape = [size, *self.sample_shape]
            whole = tf.data.Dataset.from_tensors(indices)
            quickly = (
                tf.data.Dataset.from_tensor_slices((indices, fetch(indices)))
                .map(read_one, num_parallel_calls=parallel_calls)
                .batch(size, drop_remainder=True)
                .ignore_errors()
            )
            carefully = whole.map(
                lambda indices: tf.ensure_shape(
                    tf.numpy_function(self.at, [indices], tf.uint8),
                    shape,
                )
            )
            return (
                quickly.concatenate(carefully)
                .take(1)
                .with_options(stream_options.ordered())
                .get_single_element()
            )

        return read

    def in_order(self) -> Iterator[np.ndarray]:
        """Yields all samples, uint8 [b, H, W, C], in the order of the list.

        Raises:
          DataError: too many of them are bad.
        """
        count = len(self.labels)
        read = self.reader()

        def read_from(start: tf.Tensor) -> tf.Tensor:
            indices = start + tf.range(_BATCH_IN_ORDER, dtype=tf.int64)
            return read(tf.minimum(indices, count - 1))

        starts = tf.data.Dataset.range(0, count, _BATCH_IN_ORDER)
        batches = starts.map(read_from).prefetch(1)
        batches = batches.with_options(stream_options.ordered())
        with own_failure(self.quarantine):
            for start, batch in zip(
                range(0, count, _BATCH_IN_ORDER),
                batches.as_numpy_iterator(),
                strict=True,
            ):
                yield batch[: count - start]

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
        """Returns an encoded image; a busy server is asked again.

        Raises:
          BadImage: it cannot be read.
        """
        content = self._read_patiently(index)
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
                return self._decode(
                    tf.constant(content), tf.constant(self._choices[index])
                ).numpy()
        except tf.errors.OpError as error:
            raise BadImage(_brief(error)) from error

    def _decode(self, content: tf.Tensor, choice: tf.Tensor) -> tf.Tensor:
        return decoding.decode(
            content,
            tf.cast(choice, tf.int32),
            decoders=self._decoders,
            sample_shape=self.sample_shape,
            resize=self.resize,
        )

    def _read_or_replace(self, index: int) -> np.ndarray:
        same_class = np.flatnonzero(self.labels == self.labels[index])
        first = int(np.searchsorted(same_class, index))
        for candidate in np.roll(same_class, -first):
            try:
                content = self.read_encoded(int(candidate))
                return self.decode(int(candidate), content)
            except BadImage as bad:
                name = self.images.storage.name(int(candidate))
                self.quarantine.replace(name, str(bad))
        raise self.quarantine.fail(
            f"No image of class {self.labels[index]} can be decoded, and a"
            " damaged one is replaced by another of its class. Look at them"
            " with `python -m trainer.data_tools inspect`."
        )

    def _read_patiently(self, index: int) -> bytes:
        for attempt in range(_READ_ATTEMPTS):
            try:
                return self.images.storage.read(index)
            except OSError as error:
                if attempt == _READ_ATTEMPTS - 1:
                    raise BadImage(f"it cannot be read: {error}") from error
            time.sleep(_FIRST_WAIT_SECS * 2**attempt)
        raise ValueError(f"{_READ_ATTEMPTS=}")


def _brief(error: tf.errors.OpError) -> str:
    text = (error.message or type(error).__name__).splitlines()[0]
    # "{{function_node ...}} what happened [Op:DecodeJpeg] name: "
    return text.rpartition("}}")[2].partition("[Op:")[0].strip()
