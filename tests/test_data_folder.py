"""Folders of images: which files, in which order, with which labels."""

import os
import pathlib

import numpy as np
import pytest

from tests import image_files
from trainer import data, errors
from trainer.data import folder

PICTURE = image_files.encode(image_files.pixels(0))


def list_images(root: pathlib.Path, **wanted):
    return folder.list_images(
        str(root), data_dir=None, wanted=data.Wanted(**wanted)
    )


def names(images) -> list[str]:
    return [images.storage.name(i) for i in range(len(images.labels))]


def write(root: pathlib.Path, *paths: str, content: bytes = PICTURE) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def test_labels_are_the_sub_folders_in_alphabetical_order(tmp_path):
    write(tmp_path, "dog/1.png", "cat/b/2.png", "cat/a.png", "cat/Z.png")
    images = list_images(tmp_path)
    # In the order of bytes, whatever the file system gives.
    assert names(images) == [
        "cat/Z.png",
        "cat/a.png",
        "cat/b/2.png",
        "dog/1.png",
    ]
    assert images.labels.tolist() == [0, 0, 0, 1]
    assert images.labels.dtype == np.int32
    assert images.class_names == ("cat", "dog")


def test_an_empty_sub_folder_is_told(tmp_path, caplog):
    write(tmp_path, "cat/1.png", "dog/2.png")
    assert list_images(tmp_path).class_names == ("cat", "dog")
    assert not caplog.records
    (tmp_path / "bird" / "deep").mkdir(parents=True)
    (tmp_path / ".cache").mkdir()
    assert list_images(tmp_path).class_names == ("cat", "dog")
    assert "1 sub-folder(s)" in caplog.text
    assert "make no class: bird." in caplog.text


def test_without_sub_folders_all_are_of_one_class(tmp_path):
    write(tmp_path, "2.png", "1.png")
    images = list_images(tmp_path)
    assert names(images) == ["1.png", "2.png"]
    assert images.labels.tolist() == [0, 0]
    assert len(images.class_names) == 1


def test_labels_from_a_table(tmp_path):
    write(tmp_path, "x/1.png", "2.png", "x/3.png")
    (tmp_path / "labels.csv").write_text(
        "\ufefffile,label,more\nx/1.png,10,\n2.png,9,\nx/3.png,10,\n", "utf-8"
    )
    images = list_images(tmp_path)
    assert images.class_names == ("9", "10")
    labelled = dict(zip(names(images), images.labels.tolist(), strict=True))
    assert labelled == {"2.png": 0, "x/1.png": 1, "x/3.png": 1}


def test_labels_that_are_the_same_number_have_one_order(tmp_path):
    # That of a set would be another in each process.
    labels = [f"{7:0{width}d}" for width in range(1, 9)] + ["6", "10"]
    write(tmp_path, *(f"{label}.png" for label in labels))
    rows = [f"{label}.png,{label}" for label in labels]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    expected = ("6", *sorted(labels[:8]), "10")
    assert list_images(tmp_path).class_names == expected


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_of_all_systems_are_read(tmp_path, end):
    write(tmp_path, "1.png", "2.png")
    text = end.join(["file,label", "1.png,a", "2.png,b", ""])
    (tmp_path / "labels.csv").write_bytes(text.encode())
    assert list_images(tmp_path).class_names == ("a", "b")


def test_a_table_and_a_folder_that_disagree(tmp_path):
    write(tmp_path, *(f"{i}.png" for i in range(8)))
    rows = [f"{i}.png,a" for i in range(1, 9)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    images = list_images(tmp_path, max_bad_fraction=0.5)
    assert len(images.labels) == 7
    assert images.quarantine.reasons == {
        "8.png": "in labels.csv, but not in the folder",
        "0.png": "it has no label",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\n1.png,a", "columns.*name.*must be file and label"),
        ("", "columns"),
        ("file,label\n1.png,", "Line 2 .* no label"),
        ("file;label\n1.png;a", "file;label.*with a comma"),
        ("file,label\n1.png,a\n1.png,b", "two labels: a and b"),
        # Never closed, so that all that follows is one field.
        ('file,label\n1.png,"a\n' + "2.png,b\n" * 20_000, "quotation mark"),
    ],
)
def test_tables_that_make_no_sense(tmp_path, text, message):
    write(tmp_path, "1.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(errors.DataError, match=message):
        list_images(tmp_path)


def test_a_split_is_a_sub_folder(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png")
    with pytest.raises(errors.DataError, match="test, train.*--split=train"):
        list_images(tmp_path)
    assert names(list_images(tmp_path, split="train")) == ["a/1.png", "b/2.png"]
    with pytest.raises(errors.DataError, match="/valid"):
        list_images(tmp_path, split="valid")


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, "train/1.png", "bus/2.png")
    assert list_images(tmp_path).class_names == ("bus", "train")


def test_the_path_may_start_at_the_data_directory(tmp_path):
    write(tmp_path, "pictures/1.png")
    images = folder.list_images(
        "pictures", data_dir=str(tmp_path), wanted=data.Wanted()
    )
    assert names(images) == ["1.png"]


def test_what_systems_leave_behind_is_ignored(tmp_path):
    write(tmp_path, "a/1.png", "b/2.png")
    write(tmp_path, ".DS_Store", "a/._1.png", "a/Thumbs.db", content=b"x")
    write(tmp_path, "__MACOSX/a/1.png", ".git/1.png", content=b"x")
    images = list_images(tmp_path)
    assert names(images) == ["a/1.png", "b/2.png"]
    assert images.quarantine.reasons == {}


def test_torture(tmp_path):
    image_files.write_folder(tmp_path, 10)
    bad = image_files.bad_files()
    for name, (content, _) in bad.items():
        (tmp_path / "cat" / name).write_bytes(content)
    write(tmp_path, "stray.png")  # In no class.
    with pytest.raises(errors.DataError) as caught:
        list_images(tmp_path)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert f"{len(bad) + 1} of {len(bad) + 21} images cannot" in message
    assert "--max_bad_fraction=0.01" in message
    assert "data_tools inspect" in message

    images = list_images(tmp_path, max_bad_fraction=0.5)
    assert len(images.labels) == 20
    reasons = images.quarantine.reasons
    assert reasons.keys() == {f"cat/{name}" for name in bad} | {"stray.png"}
    for name, (_, reason) in bad.items():
        assert reason in reasons[f"cat/{name}"]


def test_at_most_the_allowed_fraction_may_be_bad(tmp_path):
    image_files.write_folder(tmp_path, 5)
    write(tmp_path, "cat/bad.jpg", content=b"")
    assert len(list_images(tmp_path, max_bad_fraction=1 / 11).labels) == 10
    with pytest.raises(errors.DataError, match="1 of 11"):
        list_images(tmp_path, max_bad_fraction=0.0)


def test_the_name_of_another_format_does_no_harm(tmp_path):
    write(tmp_path, "really-png.jpg", "no-name")
    images = list_images(tmp_path)
    assert names(images) == ["no-name", "really-png.jpg"]
    assert images.quarantine.reasons == {}


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(root, "a/1.png")
    write(outside, "secret.png")
    # The prefix of its name does not make it a part of the root.
    write(tmp_path / "root2", "secret.png")
    links = {
        "a/out.png": outside / "secret.png",
        "a/near.png": tmp_path / "root2" / "secret.png",
        "a/relative.png": pathlib.Path("../../outside/secret.png"),
        "a/broken.png": root / "nothing",
        "a/folder": outside,
        "a/loop": root,
        "a/in.png": root / "a" / "1.png",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    images = list_images(root, max_bad_fraction=0.9)
    assert names(images) == ["a/1.png", "a/in.png"]
    reasons = images.quarantine.reasons
    for name in ("out.png", "near.png", "relative.png", "folder"):
        assert reasons[f"a/{name}"] == "a link out of the folder"
    assert reasons["a/broken.png"] == "a link to no file"
    assert reasons["a/loop"] == "a link to a folder, which is not followed"


def test_a_class_that_is_a_link_would_be_missing(tmp_path):
    write(tmp_path / "root", "a/1.png")
    write(tmp_path / "elsewhere", "1.png")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.DataError, match=r"root/b is a link to a folder"):
        list_images(tmp_path / "root", max_bad_fraction=0.9)


def test_the_root_itself_may_be_a_link(tmp_path):
    write(tmp_path / "real", "1.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert names(list_images(tmp_path / "link")) == ["1.png"]


def test_pipes_are_not_opened(tmp_path):
    write(tmp_path, "1.png")
    os.mkfifo(tmp_path / "pipe.png")
    images = list_images(tmp_path, max_bad_fraction=0.5)
    assert images.quarantine.reasons == {"pipe.png": "not a file"}


def test_names_may_be_any_bytes(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xff.png")
    write(tmp_path, name, "日本.png")
    images = list_images(tmp_path)
    assert set(names(images)) == {name, "日本.png"}
    assert images.digest()
    dataset = data.as_stream(images, data.Wanted())
    assert dataset.in_memory().samples.shape == (2, 32, 32, 3)


@pytest.mark.parametrize("what", ["missing", "empty", "file", "only bad"])
def test_folders_without_images(tmp_path, what):
    root = tmp_path / "root"
    if what == "file":
        root.write_bytes(PICTURE)
    elif what == "only bad":
        write(root, "a.jpg", content=b"no")
    elif what == "empty":
        root.mkdir()
    with pytest.raises(errors.DataError) as caught:
        list_images(root, max_bad_fraction=1.0)
    assert str(root) in str(caught.value)


def test_a_class_without_an_image_is_an_error(tmp_path):
    write(tmp_path, *(f"cat/{i}.png" for i in range(200)))
    write(tmp_path, "dog/1.png", content=b"")
    with pytest.raises(errors.DataError, match="without an image.*: dog"):
        list_images(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colours_become_colours_or_what_is_wanted(tmp_path, channels):
    write(tmp_path, "1.png", content=image_files.encode(image_files.pixels(0)))
    grey = image_files.encode(image_files.pixels(1, channels=1))
    write(tmp_path, "2.png", content=grey)
    images = list_images(tmp_path)
    assert images.channels.tolist() == [3, 1]
    assert images.sample_shape(data.Wanted()) == (32, 32, 3)
    wanted = data.Wanted(channels=channels)
    samples = data.as_stream(images, wanted).in_memory().samples
    assert samples.shape == (2, 32, 32, channels)
    if channels == 3:
        np.testing.assert_array_equal(samples[1][..., 0], samples[1][..., 2])


def test_sizes_that_differ_need_one(tmp_path):
    for seed, size in enumerate([(30, 20), (30, 20), (10, 10)]):
        content = image_files.encode(image_files.pixels(seed, *size))
        write(tmp_path, f"{seed}.png", content=content)
    images = list_images(tmp_path)
    with pytest.raises(errors.DataError, match="--image_size=30x20"):
        images.sample_shape(data.Wanted())
    wanted = data.Wanted(image_size=(5, 6))
    assert images.sample_shape(wanted) == (5, 6, 3)


@pytest.mark.parametrize("change", ["name", "content", "size", "label", "less"])
def test_the_digest_sees_changes_and_no_times(tmp_path, change):
    image_files.write_folder(tmp_path, 3)
    before = list_images(tmp_path).digest()
    os.utime(tmp_path / "cat" / "0000.jpg", (1, 1))
    assert list_images(tmp_path).digest() == before
    path = tmp_path / "cat" / "0000.jpg"
    if change == "name":
        path.rename(path.with_name("0000a.jpg"))
    elif change == "content":
        content = bytearray(path.read_bytes())
        content[-10] ^= 1
        path.write_bytes(content)
    elif change == "size":
        path.write_bytes(path.read_bytes() + b"\0")
    elif change == "label":
        (tmp_path / "cat").rename(tmp_path / "eel")
    else:
        path.unlink()
    assert list_images(tmp_path).digest() != before
