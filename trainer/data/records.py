"""Images in TFRecord files: ours, of tensorflow-datasets, or anybody's.

A record is a tf.train.Example with an encoded image and perhaps a label. Where
each image lies is found once, at the start; from then on any of them can be
read in any order, which is what a shuffle is made of.
"""

from trainer import errors
from trainer.data import (
    files,
    headers,
    images,
    packed,
    record_scan,
    record_shard,
    record_storage,
)
from trainer.data.dataset import Wanted
from trainer.data.quarantine import NothingUsable, Quarantine
from trainer.data.record_storage import Place


def list_images(
    pattern: str, *, data_dir: str | None, wanted: Wanted
) -> images.ImageList:
    """Lists the images in the files that a glob pattern matches.

    Args:
      pattern: such as "/data/train-*.tfrecord"; a relative one is looked up in
        `data_dir`.
      data_dir: or None.
      wanted: what to do with them.

    Raises:
      DataError: no file matches, they are of another kind, or bad.
      UsageError: a split is wanted.
    """
    if wanted.split is not None:
        raise errors.UsageError(
            f"--split={wanted.split} has no use with --dataset=tfrecord: its"
            " pattern chooses the files. Leave --split out."
        )
    pattern = files.locate(pattern, data_dir)
    try:
        paths = files.list_glob(pattern)
    except OSError as error:
        raise errors.DataError(
            f"{pattern} cannot be listed: {error}. Correct --dataset."
        ) from error
    if not paths:
        raise errors.DataError(
            f"No file matches {pattern}. Correct --dataset=tfrecord:<glob>, in"
            " quotes, or --data_dir."
        )
    if packed.is_packed(paths):
        return _list_packed(paths, wanted)
    return record_scan.scan_shards(
        [record_shard.Shard(path) for path in paths], wanted=wanted
    )


def _list_packed(paths: list[str], wanted: Wanted) -> images.ImageList:
    """Reads the lists that `prepare` wrote beside its shards."""
    rows, class_names = packed.read_lists(paths)
    quarantine = Quarantine(wanted.max_bad_fraction)
    entries = []
    for place, *rest in rows:
        entry = images.Entry(Place(*place), *rest)
        header = entry.header
        try:
            headers.check_size(
                header.height, header.width, max_pixels=wanted.max_pixels
            )
        except headers.BadImage as reason:
            name = record_storage.name_of(paths, entry.place)
            quarantine.add(name, str(reason))
        else:
            entries.append(entry)
    quarantine.check(len(entries))
    if not entries:
        raise NothingUsable(
            f"{paths[0]} and the like hold no image that can be used.",
            quarantine,
        )
    image_list = record_storage.make_list(
        paths, entries, class_names=class_names, quarantine=quarantine
    )
    images.warn_of_empty_classes(image_list)
    return image_list
