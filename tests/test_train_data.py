"""Whole runs on image files, small ones, in this process."""

import json
import pathlib

import numpy as np
import PIL.Image
import pytest

from tests import image_files, runs
from trainer import errors, train
from trainer.assembly import datasets
from trainer.config import Config
from trainer.heartbeat import Heartbeat


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    image_files.write_folder(folder, 12)
    return folder


def run(workdir: pathlib.Path, folder: pathlib.Path, **changes) -> int:
    values = {
        "workdir": str(workdir),
        "dataset": f"folder:{folder}",
        "model": "dcgan",
        "model_width": 4,
        "latent_dim": 8,
        "batch_size": 8,
        "epochs": 2,
        "num_logical_cpus": 1,
        "steps_per_loop": 2,
        "num_samples": 4,
        **changes,
    }
    config = Config(**values)
    config.validate()
    return train.run(config.resolve(), Heartbeat(stall_timeout_secs=300))


def real(workdir: pathlib.Path) -> np.ndarray:
    return np.asarray(PIL.Image.open(workdir / "samples" / "real.png"))


def test_trains_on_a_folder_in_colours_and_streaming_changes_no_bit(
    folder, tmp_path
):
    assert run(tmp_path / "memory", folder) == 0
    streamed = {"data_memory_mib": 0}
    # Stopped within the second epoch, too.
    assert run(tmp_path / "streamed", folder, max_steps=4, **streamed) == 0
    assert run(tmp_path / "streamed", folder, **streamed) == 0
    runs.assert_same(tmp_path / "memory", tmp_path / "streamed")
    assert len(runs.records(tmp_path / "memory")) == 4
    # Of both classes: the first and the last are in the corners.
    grid = real(tmp_path / "memory")
    factor = round(480 / 70)
    for index, place in ((0, 2), (23, 36)):
        start, end = place * factor, (place + 32) * factor
        cell = grid[start:end, start:end][::factor, ::factor]
        name = f"{'cat' if index < 12 else 'dog'}/{index % 12:04d}.jpg"
        np.testing.assert_array_equal(cell, PIL.Image.open(folder / name))
    assert (tmp_path / "memory" / "samples" / "training.gif").exists()


def test_trains_on_a_rectangular_size_with_flips_on_two_replicas(
    folder, tmp_path
):
    assert (
        run(
            tmp_path,
            folder,
            image_size="20x36",
            channels="1",
            random_flip=True,
            num_logical_cpus=2,
            sync_batch_norm=True,
            max_steps=2,
        )
        == 0
    )
    grid = real(tmp_path)
    # Two rows and two columns of 20x36, with 2 pixels around each.
    factor = round(480 / 78)
    assert grid.shape == (factor * 46, factor * 78)
    assert (tmp_path / "samples" / "epoch_0001.png").exists() is False
    record = runs.records(tmp_path)[-1]
    assert np.isfinite([record["g_loss"], record["d_loss"]]).all()


def test_the_model_must_fit_the_data(folder, tmp_path):
    with pytest.raises(errors.UsageError, match="32x32x3.*--model=dcgan"):
        run(tmp_path / "run", folder, model="dcgan28", model_width=None)
    assert not (tmp_path / "run").exists()


def test_too_little_data_for_a_batch(folder, tmp_path):
    with pytest.raises(errors.DataError, match="24 examples.*32"):
        run(tmp_path / "run", folder, batch_size=32)


def test_data_that_changed_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    image_files.write_folder(copy, 12)
    assert run(tmp_path / "run", copy, max_steps=1) == 0
    (copy / "cat" / "0000.jpg").unlink()
    with pytest.raises(errors.DataError, match="data has changed"):
        run(tmp_path / "run", copy)


def damaged(tmp_path: pathlib.Path, count: int) -> pathlib.Path:
    folder = tmp_path / "damaged"
    image_files.write_folder(folder, 12)
    for number in range(count):
        path = folder / "dog" / f"{number:04d}.jpg"
        path.write_bytes(image_files.damage(path.read_bytes()))
    return folder


@pytest.mark.parametrize("data_memory_mib", [0, 1])
def test_what_turned_out_damaged_is_told_at_the_end(
    tmp_path, caplog, data_memory_mib
):
    folder = damaged(tmp_path, 1)
    changes = {"max_bad_fraction": 0.1, "data_memory_mib": data_memory_mib}
    # Some more was found in an earlier start.
    assert run(tmp_path / "run", folder, max_steps=1, **changes) == 0
    listed = tmp_path / "run" / "bad_files.json"
    listed.write_text('{"cat/0005.jpg": "removed"}')
    caplog.clear()
    assert run(tmp_path / "run", folder, **changes) == 0
    found = json.loads(listed.read_bytes())
    assert found.pop("cat/0005.jpg") == "removed"
    assert list(found) == ["dog/0000.jpg"]
    told = [record.getMessage() for record in caplog.records]
    [*_, last] = (text for text in told if "are not used" in text)
    assert "1 of 24 images are not used (1 of them replaced)" in last
    assert "dog/0000.jpg (jpeg::Uncompress failed" in last


def test_too_much_of_it_stops_before_training_or_in_the_middle(tmp_path):
    folder = damaged(tmp_path, 4)
    for name, data_memory_mib in (("memory", 1), ("streamed", 0)):
        with pytest.raises(errors.DataError, match="of 24 images cannot"):
            run(
                tmp_path / name,
                folder,
                max_bad_fraction=0.1,
                data_memory_mib=data_memory_mib,
            )
    assert not (tmp_path / "memory").exists()


def test_split_and_max_pixels_arrive_at_the_data(folder, tmp_path):
    for part in ("train", "test"):
        image_files.write_folder(tmp_path / part, 3 if part == "train" else 1)
    large = image_files.encode(image_files.pixels(0, 50, 60))
    (tmp_path / "train" / "cat" / "large.png").write_bytes(large)
    config = Config(
        dataset=f"folder:{tmp_path}",
        split="train",
        model="dcgan",
        max_pixels=2000,
        max_bad_fraction=0.5,
    )
    dataset = datasets.load_data(config.resolve())
    assert len(dataset.labels) == 6
    [(name, reason)] = dataset.quarantine.reasons.items()
    assert name == "cat/large.png" and "--max_pixels" in reason


def test_the_run_directory_is_named_by_the_data(folder):
    config = Config(dataset="folder:/data/cats & dogs", model="dcgan")
    assert config.resolve().workdir == "./runs/folder_data_cats_dogs-dcgan"
    assert json.loads(config.to_json())["dataset"] == config.dataset
