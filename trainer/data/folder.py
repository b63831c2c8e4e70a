"""A folder of images, local or in a bucket.

The labels are the names of the sub-folders, or what `labels.csv` says. Files
are known by their content: their names matter to the order alone.
"""

import csv
import decimal
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from absl import logging

from trainer import errors
from trainer.data import files, images, listing, packed
from trainer.data.dataset import Wanted
from trainer.data.quarantine import NothingUsable, Quarantine, printable

LABELS_FILE = "labels.csv"

_IGNORED_NAMES = {"thumbs.db", "desktop.ini", "__macosx", LABELS_FILE}
_SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}


class FileStorage:
    """Images that are each a file below a root."""

    def __init__(self, root: str, names: list[str]) -> None:
        """Takes the names relative to the root, with slashes."""
        self.is_remote = files.is_remote(root)
        self._root = root
        self._names = names

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int) -> bytes:
        path = files.join(self._root, self._names[index])
        with files.open_binary(path) as file:
            return file.read()

    def is_gone(self, index: int) -> bool:
        path = files.join(self._root, self._names[index])
        return files.is_missing(path) and files.holds_anything(self._root)

    def graph_reader(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        import tensorflow as tf

        with tf.device("CPU:0"):
            paths = tf.constant(
                [os.fsencode(files.join(self._root, n)) for n in self._names]
            )
        return (lambda indices: tf.gather(paths, indices)), tf.io.read_file


class _Found(NamedTuple):
    """A file below the root: its name there, and why it is bad, or ""."""

    name: str
    problem: str = ""


def list_images(path: str, *, data_dir: str | None, wanted: Wanted) -> Any:
    """Returns the `images.ImageList` of a folder.

    Args:
      path: of the folder; a relative one is looked up in `data_dir`.
      data_dir: or None.
      wanted: what to do with it; `split` names a sub-folder.

    Raises:
      DataError: the folder is missing, empty, or too much of it is bad.
    """
    root = files.locate(path, data_dir)
    if wanted.split is not None:
        root = files.join(root, wanted.split)
    found = list(_find(root))
    _refuse_packed(root, {file.name for file in found})
    labels_text = _read_labels(root)
    quarantine = Quarantine(wanted.max_bad_fraction)
    if labels_text is None:
        class_of, class_names = _label_by_folder(root, found)
        if not files.is_remote(root):  # There, folders are parts of names.
            _warn_of_empty_folders(root, found)
    else:
        class_of, class_names = _label_by_table(
            files.join(root, LABELS_FILE), labels_text, found, quarantine
        )
    labelled = []
    for name, problem in found:
        if problem or name not in class_of:
            quarantine.add(name, problem or "it has no label")
        else:
            labelled.append(name)
    entries = []
    results = files.map_in_threads(
        lambda name: listing.examine(
            root, name, class_of[name], max_pixels=wanted.max_pixels
        ),
        labelled,
        remote=files.is_remote(root),
    )
    for name, result in zip(labelled, results, strict=True):
        if isinstance(result, images.Entry):
            entries.append(result)
        else:
            quarantine.add(name, result)
    quarantine.check(len(entries))
    if not entries:
        raise NothingUsable(
            f"{root} holds no image that can be used. Put JPEG, PNG, GIF, BMP"
            " or WebP files into it, or into one sub-folder for each class.",
            quarantine,
        )
    image_list = images.make_list(
        entries,
        lambda names: FileStorage(root, names),
        class_names=class_names,
        quarantine=quarantine,
    )
    if empty := images.classes_without_images(image_list):
        names = ", ".join(map(printable, empty[:5]))
        raise NothingUsable(
            f"{root} has {len(empty)} class(es) without an image that can be"
            f" used: {names}. Remove them, or add images.",
            quarantine,
        )
    return image_list


def _find(root: str) -> Iterator[_Found]:
    """Yields all files, in the order of their names as bytes."""
    try:
        if files.is_remote(root):
            found = [
                _Found(files.join(directory, name)[len(root) + 1 :])
                for directory, names in files.walk_remote(root)
                for name in names
                if name  # Some servers list a directory in itself.
            ]
        else:
            found = list(_walk(root, "", os.path.realpath(root)))
    except OSError as error:
        raise errors.DataError(
            f"{root} cannot be read as a folder: {error}. Correct --dataset or"
            " --data_dir."
        ) from error
    found = [file for file in found if not _is_ignored(file.name)]
    yield from sorted(found, key=lambda file: os.fsencode(file.name))


def _walk(directory: str, prefix: str, real_root: str) -> Iterator[_Found]:
    with os.scandir(directory) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{name}/", real_root)
            elif entry.is_file(follow_symlinks=False):
                yield _Found(name)
            elif entry.is_symlink():
                if not prefix and entry.is_dir() and not _is_ignored(name):
                    raise errors.DataError(
                        f"{entry.path} is a link to a folder, and those are not"
                        " followed: a class would be missing. Put the folder"
                        " itself there, or remove the link."
                    )
                yield _Found(name, _problem_of_link(entry, real_root))
            else:
                yield _Found(name, "not a file")


def _problem_of_link(entry: "os.DirEntry[str]", real_root: str) -> str:
    target = os.path.realpath(entry.path)
    if os.path.commonpath([target, real_root]) != real_root:
        return "a link out of the folder"
    if os.path.isdir(target):
        return "a link to a folder, which is not followed"
    if not os.path.isfile(target):
        return "a link to no file"
    return ""


def _is_ignored(name: str) -> bool:
    return any(
        part.startswith(".") or part.lower() in _IGNORED_NAMES
        for part in name.split("/")
    )


def _refuse_packed(root: str, names: set[str]) -> None:
    """Tells who names the folder that `prepare` made how it is read."""
    has_shards = any(name.endswith(".tfrecord") for name in names)
    if has_shards and packed.CLASSES_FILE in names:
        raise errors.UsageError(
            f"{root} holds TFRecord files of `prepare`, no images. Give"
            f" --dataset='tfrecord:{files.join(root, '*.tfrecord')}'."
        )


def _label_by_folder(
    root: str, found: list[_Found]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Labels by the first part of each name; all alike if there is none."""
    folders = sorted({f.name.split("/")[0] for f in found if "/" in f.name})
    if not folders:
        return dict.fromkeys((f.name for f in found), 0), ("images",)
    if "train" in folders and _SPLIT_NAMES.issuperset(folders):
        raise errors.DataError(
            f"The sub-folders of {root} ({', '.join(folders)}) are parts of a"
            " data set, not classes. Choose one with --split=train."
        )
    labels = {name: label for label, name in enumerate(folders)}
    return {
        file.name: labels[file.name.split("/")[0]]
        for file in found
        if "/" in file.name
    }, tuple(folders)


def _warn_of_empty_folders(root: str, found: list[_Found]) -> None:
    """Names the sub-folders that make no class, because no file is in them."""
    with os.scandir(root) as entries:
        folders = {
            entry.name
            for entry in entries
            if entry.is_dir(follow_symlinks=False)
            and not _is_ignored(entry.name)
        }
    if empty := sorted(folders - {f.name.split("/")[0] for f in found}):
        logging.warning(
            "%d sub-folder(s) of %s hold no file and make no class: %s%s.",
            len(empty),
            root,
            ", ".join(empty[:5]),
            ", ..." if len(empty) > 5 else "",
        )


def _read_labels(root: str) -> str | None:
    path = files.join(root, LABELS_FILE)
    if not files.is_remote(root) and not os.path.exists(path):
        return None
    try:
        with files.open_binary(path) as file:
            return file.read().decode("utf-8-sig")
    except OSError as error:
        if files.is_remote(root) and "NotFound" in str(error):
            return None
        raise errors.DataError(f"{path} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise errors.DataError(
            f"{path} is not UTF-8: {error}. Save it as such."
        ) from error


def _label_by_table(
    path: str, text: str, found: list[_Found], quarantine: Quarantine
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Labels by a table with the columns "file" and "label"."""
    try:
        names = _read_table(path, text)
    except csv.Error as error:
        raise errors.DataError(
            f"{path} is no table of comma-separated values: {error}. Look for"
            " a quotation mark that is opened and not closed."
        ) from error
    existing = {file.name for file in found}
    for file in names:
        if file not in existing:
            quarantine.add(file, f"in {LABELS_FILE}, but not in the folder")
    class_names = sorted(set(names.values()))
    # Numbers in the order of numbers, so that label "7" becomes 7. Those that
    # are equal, as "07" is, stay in the order of their texts.
    if all(label.isdecimal() for label in class_names):
        class_names.sort(key=decimal.Decimal)
    labels = {name: label for label, name in enumerate(class_names)}
    return {f: labels[name] for f, name in names.items()}, tuple(class_names)


def _read_table(path: str, text: str) -> dict[str, str]:
    """Returns the labels by file.

    Raises:
      DataError: a column or a value is missing, or a file has two labels.
      csv.Error: it is something else.
    """
    table = csv.DictReader(io.StringIO(text, newline=""))
    if not {"file", "label"}.issubset(table.fieldnames or ()):
        raise errors.DataError(
            f"The first line of {path} names the columns"
            f" {table.fieldnames or []}; among them must be file and label,"
            " with a comma and no space between."
        )
    names: dict[str, str] = {}
    for row in table:
        file, label = row["file"], row["label"]
        if not file or not label:
            raise errors.DataError(
                f"Line {table.line_num} of {path} has no file or no label."
                " Complete or remove it."
            )
        if names.setdefault(file, label) != label:
            raise errors.DataError(
                f"{path} gives {file} two labels: {names[file]} and {label}."
                " Keep one."
            )
    return names
