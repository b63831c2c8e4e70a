"""TFRecord files: ours and anybody's, whole and damaged, in any order."""

import itertools
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests import image_files
from trainer import data, errors
from trainer.data import packed, packing, pipeline, record_file, record_storage


def example(image=None, label=None, **others):
    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(
                bytes_list=tf.train.BytesList(value=[value])
            )
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    values = {"image": image, "label": label, **others}
    features = {k: feature(v) for k, v in values.items() if v is not None}
    return tf.train.Example(
        features=tf.train.Features(feature=features)
    ).SerializeToString()


def write_shards(
    folder: pathlib.Path, *, num_shards: int = 2, per_shard: int = 5, **kwargs
) -> None:
    """Writes with TensorFlow's own writer, as anybody would."""
    folder.mkdir(exist_ok=True)
    for shard in range(num_shards):
        path = str(folder / f"part-{shard}.tfrecord")
        with tf.io.TFRecordWriter(path, **kwargs) as writer:
            for number in range(per_shard):
                seed = shard * per_shard + number
                content = image_files.encode(image_files.pixels(seed))
                writer.write(example(content, seed % 3))


def stream(pattern, **wanted):
    return data.stream(
        f"tfrecord:{pattern}", data_dir=None, wanted=data.Wanted(**wanted)
    )


def labels_and_samples(dataset, num_batches=8, batch_size=4, **kwargs):
    stream = pipeline.training_batches(
        dataset,
        global_batch_size=batch_size,
        num_replicas=1,
        first_step=0,
        seed=0,
        **kwargs,
    )
    return [
        (batch["label"].numpy().tolist(), batch["sample"].numpy().tobytes())
        for batch in itertools.islice(stream, num_batches)
    ]


def test_reads_what_tensorflow_writes(tmp_path):
    write_shards(tmp_path)
    dataset = stream(tmp_path / "*.tfrecord")
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert dataset.class_names == ("0", "1", "2")
    expected = [image_files.pixels(seed) for seed in range(10)]
    np.testing.assert_array_equal(dataset.at(np.arange(10)), expected)
    np.testing.assert_array_equal(dataset.in_memory().samples, expected)
    # Streamed in an order of its own: two epochs.
    assert labels_and_samples(dataset, 4) == labels_and_samples(
        dataset.in_memory(), 4
    )
    assert dataset.images.storage.name(7) == "part-1.tfrecord, record 2"


def test_writes_what_tensorflow_reads(tmp_path):
    payloads = [b"", b"abc", bytes(10_000)]
    path = tmp_path / "file"
    path.write_bytes(b"".join(map(record_file.frame, payloads)))
    read = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    assert list(read) == payloads


@pytest.mark.parametrize(
    ("image_key", "label_key"),
    [("image/encoded", "image/class/label"), ("image_raw", "label")],
)
def test_knows_the_names_of_other_converters(tmp_path, image_key, label_key):
    content = image_files.encode(image_files.pixels(0))
    payload = example(**{image_key: content, label_key: 1})
    (tmp_path / "x").write_bytes(record_file.frame(payload))
    assert stream(tmp_path / "x").labels.tolist() == [1]


@pytest.mark.parametrize("label", [None, b"cat", -1])
def test_without_labels_all_are_of_one_class(tmp_path, caplog, label):
    caplog.set_level("INFO")
    payload = example(image_files.encode(image_files.pixels(0)), label)
    (tmp_path / "x").write_bytes(record_file.frame(payload) * 3)
    dataset = stream(tmp_path / "x")
    assert dataset.labels.tolist() == [0, 0, 0]
    assert "No image has a label" in caplog.text


@pytest.mark.parametrize("label", [None, b"cat"])
def test_labels_of_some_images_only_are_no_class(tmp_path, label):
    content = image_files.encode(image_files.pixels(0))
    (tmp_path / "x").write_bytes(
        record_file.frame(example(content, 1)) * 3
        + record_file.frame(example(content, label))
    )
    with pytest.raises(errors.DataError, match="from -1 to 1.*without one"):
        stream(tmp_path / "x")


@pytest.mark.parametrize("place", ["payload", "checksum"])
def test_a_damaged_record_is_left_out(tmp_path, place):
    write_shards(tmp_path)
    path = tmp_path / "part-1.tfrecord"
    content = bytearray(path.read_bytes())
    [length] = np.frombuffer(content[:8], "<u8")
    content[int(length) + (6 if place == "payload" else 13)] ^= 1
    path.write_bytes(content)
    with pytest.raises(errors.DataError, match="1 of 10 images"):
        stream(tmp_path / "*")
    dataset = stream(tmp_path / "*", max_bad_fraction=0.1)
    assert len(dataset.labels) == 9
    assert dataset.quarantine.reasons == {
        "part-1.tfrecord, record 0": "its checksum is wrong"
    }


@pytest.mark.parametrize("damage", ["truncated", "length"])
def test_what_lies_behind_a_break_is_lost_and_estimated(tmp_path, damage):
    write_shards(tmp_path, per_shard=10)
    path = tmp_path / "part-0.tfrecord"
    content = path.read_bytes()
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        offsets = [
            o for o, _ in record_file.scan(path.open("rb"), len(content))
        ]
        place = offsets[6]
        content = content[:place] + b"\xff" + content[place + 1 :]
    path.write_bytes(content)
    dataset = stream(tmp_path / "*", max_bad_fraction=0.5)
    [(name, reason)] = dataset.quarantine.reasons.items()
    assert name.startswith("part-0.tfrecord from byte ")
    if damage == "truncated":
        assert "ends within a record; about 1 record" in reason
    else:
        assert len(dataset.labels) == 16
        assert "about 4 record(s) are lost" in reason
        with pytest.raises(errors.DataError, match="4 of 20 images"):
            stream(tmp_path / "*", max_bad_fraction=0.15)


def test_bad_images_within_good_records(tmp_path):
    good = image_files.encode(image_files.pixels(0))
    bad = [content for content, _ in image_files.bad_files().values()]
    payloads = [example(content, 0) for content in [good, *bad, good]]
    payloads.append(b"no protocol buffer")
    (tmp_path / "x").write_bytes(b"".join(map(record_file.frame, payloads)))
    dataset = stream(tmp_path / "x", max_bad_fraction=0.9)
    assert len(dataset.labels) == 2
    reasons = dataset.quarantine.reasons
    assert len(reasons) == len(bad) + 1
    assert "no tf.train.Example" in reasons[f"x, record {len(bad) + 2}"]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: write_shards(f, options="GZIP"), "is compressed"),
        (lambda f: (f / "x").write_bytes(b"text"), "no TFRecord|ends within"),
        (lambda f: (f / "x").write_bytes(b""), "hold no image"),
        (
            lambda f: (f / "x").write_bytes(
                record_file.frame(example(None, 1, picture=b"x"))
            ),
            "no image under image or image/encoded.*: record 0 has label, pict",
        ),
        (
            lambda f: (f / "x").write_bytes(
                record_file.frame(
                    example(image_files.encode(image_files.pixels(0)), -2)
                )
            ),
            "from -2 to -2",
        ),
        (
            lambda f: (f / "x").write_bytes(
                record_file.frame(
                    example(image_files.encode(image_files.pixels(0)), 10**12)
                )
            ),
            "from 1000000000000 .* must be 0 to 999999",
        ),
        (lambda f: None, "No file matches"),
    ],
)
def test_files_of_another_kind(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises(errors.DataError, match=message):
        stream(tmp_path / "*")


def test_a_split_has_no_use(tmp_path):
    with pytest.raises(errors.UsageError, match="pattern chooses"):
        stream(tmp_path / "*", split="test")


def test_a_record_that_changes_meanwhile_is_replaced(tmp_path):
    write_shards(tmp_path)
    dataset = stream(tmp_path / "*", max_bad_fraction=0.1)
    path = tmp_path / "part-0.tfrecord"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    samples = dataset.at(np.arange(10))
    np.testing.assert_array_equal(samples[0], image_files.pixels(3))
    assert dataset.quarantine.reasons == {
        "part-0.tfrecord, record 0": "its checksum is wrong"
    }


# Packing.


@pytest.fixture(name="folder")
def _folder(tmp_path):
    image_files.write_folder(tmp_path / "images", 10)
    return tmp_path / "images"


def folder_stream(folder, **wanted):
    return data.stream(
        f"folder:{folder}", data_dir=None, wanted=data.Wanted(**wanted)
    )


def pack(source, output, as_samples=False):
    return packing.pack(source, output, shard_bytes=4000, as_samples=as_samples)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("as_samples", [True, False])
def test_a_packed_folder_gives_the_same_batches(
    folder, tmp_path, as_samples, in_memory
):
    wanted = {"image_size": (24, 16)} if as_samples else {}
    source = folder_stream(folder, **wanted)
    output = tmp_path / "packed"
    result = pack(source, output, as_samples)
    assert result.num_images == 20 and result.num_shards > 2
    dataset = stream(output / "*.tfrecord")  # In its own size.
    assert dataset.sample_shape == source.sample_shape
    assert dataset.class_names == source.class_names
    if in_memory:
        dataset = dataset.in_memory()
    assert labels_and_samples(dataset, 12) == labels_and_samples(source, 12)


def test_packed_files_are_not_scanned_and_anybody_can_read_them(
    folder, tmp_path, monkeypatch
):
    output = tmp_path / "packed"
    pack(folder_stream(folder), output)
    with monkeypatch.context() as patch:
        patch.setattr(record_file, "scan", None)
        listed = stream(output / "*.tfrecord")
    # Without our lists, they are like anybody's.
    for path in [*output.glob("*.npy"), *output.glob("*.json")]:
        path.unlink()
    scanned = stream(output / "*.tfrecord")
    np.testing.assert_array_equal(
        listed.at(np.arange(20)), scanned.at(np.arange(20))
    )
    np.testing.assert_array_equal(listed.labels, scanned.labels)
    np.testing.assert_array_equal(listed.images.crcs, scanned.images.crcs)


def test_packed_images_may_be_too_large_for_a_run(folder, tmp_path):
    output = tmp_path / "packed"
    pack(folder_stream(folder), output)
    name = "shard-00000-of-.*, record 0 .*x.* pixels, more than --max_pixels=9"
    with pytest.raises(errors.DataError, match=name):
        stream(output / "*.tfrecord", max_pixels=9)
    with pytest.raises(errors.DataError, match="hold no image"):
        stream(output / "*.tfrecord", max_pixels=9, max_bad_fraction=1.0)


def test_packing_goes_on_where_it_was_stopped(folder, tmp_path, monkeypatch):
    source = folder_stream(folder)
    whole = tmp_path / "whole"
    num_shards = pack(source, whole).num_shards
    broken = tmp_path / "broken"
    written = []
    write = packing._write_shard

    def write_two(source, path, *args):
        if len(written) == 2:
            (path.parent / f".{path.name}.tmp-0").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        written.append(path)
        return write(source, path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write_shard", write_two)
        with pytest.raises(KeyboardInterrupt):
            pack(source, broken)
    with pytest.raises(errors.DataError, match="not complete"):
        stream(broken / "*.tfrecord")
    before = {path: path.stat().st_mtime_ns for path in written}
    assert pack(source, broken).num_written == num_shards - 2
    assert before == {path: path.stat().st_mtime_ns for path in written}
    for path in whole.iterdir():
        assert (broken / path.name).read_bytes() == path.read_bytes()
    assert pack(source, broken).num_written == 0


def test_what_a_kill_or_a_disk_has_left_is_written_anew(folder, tmp_path):
    source = folder_stream(folder)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pack(source, whole)
    broken.mkdir()
    (broken / f".{packing._PLAN_FILE}.tmp-0").write_bytes(b"half a plan")
    pack(source, broken)
    [path] = broken.glob("shard-00001-of-*.tfrecord")
    for other in (packed.list_path(str(path)), packed.left_out_path(str(path))):
        content = pathlib.Path(other).read_bytes()
        for damaged in (b"", content[: len(content) // 2], None):
            pathlib.Path(other).unlink()
            if damaged is not None:
                pathlib.Path(other).write_bytes(damaged)
            assert pack(source, broken).num_written == 1
            assert pathlib.Path(other).read_bytes() == content
    for path in whole.iterdir():
        assert (broken / path.name).read_bytes() == path.read_bytes()


def test_progress_is_that_of_images_and_not_of_shards(
    folder, tmp_path, monkeypatch
):
    counts = []

    class Bar(packing.tqdm.tqdm):
        def update(self, n=1):
            counts.append(n)
            return super().update(n)

    monkeypatch.setattr(packing.tqdm, "tqdm", Bar)
    path = folder / "dog" / "0001.jpg"  # Left out, and done as well.
    path.write_bytes(image_files.damage(path.read_bytes()))
    source = folder_stream(folder, max_bad_fraction=0.1)
    packing.pack(
        source, tmp_path / "packed", shard_bytes=1 << 30, as_samples=False
    )
    assert counts == [1] * len(source.labels)


def test_two_data_sets_do_not_get_into_one_folder(folder, tmp_path):
    output = tmp_path / "packed"
    pack(folder_stream(folder), output)
    (folder / "cat" / "0000.jpg").unlink()
    with pytest.raises(errors.UsageError, match="another data set"):
        pack(folder_stream(folder), output)
    with pytest.raises(errors.UsageError, match="not empty"):
        pack(folder_stream(folder), folder)


def test_damaged_bodies_are_not_packed(folder, tmp_path):
    path = folder / "cat" / "0003.jpg"
    path.write_bytes(image_files.damage(path.read_bytes()))
    output = tmp_path / "packed"
    for num_written in (4, 0):
        source = folder_stream(folder, max_bad_fraction=0.05)
        result = pack(source, output)
        assert (result.num_images, result.num_written) == (19, num_written)
        assert source.quarantine.reasons.keys() == {"cat/0003.jpg"}
    assert len(stream(output / "*.tfrecord").labels) == 19


def test_too_many_damaged_bodies_are_an_error_every_time(folder, tmp_path):
    for name in ("cat/0003.jpg", "dog/0007.jpg"):
        path = folder / name
        path.write_bytes(image_files.damage(path.read_bytes()))
    output = tmp_path / "packed"
    for _ in range(2):
        source = folder_stream(folder, max_bad_fraction=0.05)
        with pytest.raises(errors.DataError, match="2 of 20 images"):
            pack(source, output)
        assert len(source.quarantine.reasons) == 2
        with pytest.raises(errors.DataError, match="not complete"):
            stream(output / "*.tfrecord")
    pack(folder_stream(folder, max_bad_fraction=0.1), output)
    assert len(stream(output / "*.tfrecord").labels) == 18


def test_a_missing_shard_is_noticed(folder, tmp_path):
    output = tmp_path / "packed"
    count = pack(folder_stream(folder), output).num_shards
    for number in (0, count - 1):
        path = output / packed.shard_name(number, count)
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(errors.DataError, match=f"1 of the .*{path.name}"):
            stream(output / "*.tfrecord")
        path.write_bytes(content)
    assert len(stream(output / "*.tfrecord").labels) == 20
    (output / packed.shard_name(0, count + 1)).write_bytes(content)
    with pytest.raises(errors.DataError, match="missing"):
        stream(output / "*.tfrecord")


def test_a_packed_image_that_changes_meanwhile_is_replaced(folder, tmp_path):
    output = tmp_path / "packed"
    pack(folder_stream(folder), output)
    dataset = stream(output / "*.tfrecord", max_bad_fraction=0.1)
    path = min(output.glob("*.tfrecord"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    samples = dataset.at(np.arange(2))
    np.testing.assert_array_equal(samples[0], samples[1])


def test_shards_of_two_data_sets_are_noticed(folder, tmp_path):
    output = tmp_path / "packed"
    pack(folder_stream(folder), output)
    path = output / packed.CLASSES_FILE
    path.write_text(path.read_text().replace("20", "21"))
    with pytest.raises(errors.DataError, match="20 images.*says 21"):
        stream(output / "*.tfrecord")


def test_a_class_of_which_nothing_was_packed_is_told(folder, tmp_path, caplog):
    for path in (folder / "dog").iterdir():
        path.write_bytes(image_files.damage(path.read_bytes()))
    output = tmp_path / "packed"
    pack(folder_stream(folder, max_bad_fraction=0.5), output)
    assert stream(output / "*.tfrecord").class_names == ("cat", "dog")
    assert "1 of 2 classes have no image: dog" in caplog.text


@pytest.mark.parametrize("what", ["list", "shard", "other list"])
def test_a_list_that_does_not_fit_is_refused(folder, tmp_path, what):
    output = tmp_path / "packed"
    pack(folder_stream(folder), output)
    shard = sorted(output.glob("*.tfrecord"))[0]
    path = pathlib.Path(packed.list_path(str(shard)))
    if what == "list":
        path.unlink()
    elif what == "shard":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        np.save(path, np.zeros([3]))
    with pytest.raises(errors.DataError, match=str(shard.stem)):
        stream(output / "*.tfrecord")


def test_names_tell_where_an_image_is(tmp_path):
    storage = record_storage.RecordStorage(
        ["gs://bucket/x.tfrecord"], [record_storage.Place(0, 5, 0, 0, 0, 0)]
    )
    assert storage.name(0) == "x.tfrecord, record 5"
    assert storage.is_remote


def test_shards_stay_open_but_not_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(record_storage, "_MAX_OPEN_SHARDS", 2)
    shards = record_storage._OpenShards()
    paths = [tmp_path / str(number) for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(b"abc%d" % number)
        assert shards.read(str(path), 1, 9) == b"bc%d" % number
    assert list(shards._files) == [str(path) for path in paths[1:]]
    paths[2].unlink()  # It is read all the same, as long as it is open.
    assert shards.read(str(paths[2]), 0, 2) == b"ab"
    assert list(shards._files) == [str(path) for path in paths[1:]]


def test_a_shard_that_cannot_be_read_is_opened_anew(tmp_path, monkeypatch):
    path = tmp_path / "shard"
    path.write_bytes(b"abc")
    shards = record_storage._OpenShards()
    shards.read(str(path), 0, 1)

    def fail(*_):
        raise OSError("Stale file handle")

    with monkeypatch.context() as context:
        context.setattr("os.pread", fail)
        with pytest.raises(OSError, match="Stale"):
            shards.read(str(path), 0, 1)
    path.unlink()
    path.write_bytes(b"xyz")
    assert shards.read(str(path), 0, 1) == b"x"


def test_a_stricter_call_takes_back_what_an_earlier_one_allowed(tmp_path):
    image_files.write_folder(tmp_path / "in", 4)
    damaged = tmp_path / "in" / "cat" / "0001.jpg"
    damaged.write_bytes(image_files.damage(damaged.read_bytes()))

    def pack(max_bad_fraction):
        wanted = data.Wanted(max_bad_fraction=max_bad_fraction)
        packing.pack(
            data.stream(f"folder:{tmp_path}/in", data_dir=None, wanted=wanted),
            tmp_path / "out",
            shard_bytes=1 << 20,
            as_samples=False,
        )

    pack(0.2)
    assert len(stream(tmp_path / "out" / "*.tfrecord").labels) == 7
    with pytest.raises(errors.DataError, match="1 of 8 images"):
        pack(0.1)
    with pytest.raises(errors.DataError, match="not complete"):
        stream(tmp_path / "out" / "*.tfrecord")
