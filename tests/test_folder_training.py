"""A folder of images, from the command line to a checkpoint."""

import pathlib

import numpy as np
import PIL.Image
import pytest

from tests import image_files, runs
from tests.processes import Command

_NUM_STEPS = 2
_TRAIN = (
    "--image_size=24x32",
    "--model=dcgan",
    "--model_width=8",
    "--batch_size=4",
    f"--max_steps={_NUM_STEPS}",
    "--log_every_steps=1",
    "--steps_per_loop=1",
)
_TWO_WORKERS = (
    *("launch.main", "submit", "--platform=local", "--num_workers=2"),
    "--",
)


@pytest.fixture(name="folder")
def _folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Images of another shape, and one whose body is damaged."""
    root = tmp_path / "images"
    image_files.write_folder(root, 8, height=30, width=60)
    damaged = root / "cat" / "0003.jpg"
    damaged.write_bytes(image_files.damage(damaged.read_bytes()))
    return root


def _train(
    workdir: pathlib.Path, folder: pathlib.Path, *flags: str, **kwargs: object
) -> str:
    """Trains to the end; returns what was said."""
    command = Command(
        workdir,
        f"--dataset=folder:{folder}",
        "--max_bad_fraction=0.1",
        *_TRAIN,
        *flags,
        **kwargs,
    )
    assert command.finish() == 0, command.stderr
    assert "Traceback" not in command.stderr
    assert runs.newest_step(workdir) == _NUM_STEPS
    losses = [
        record[name]
        for record in runs.records(workdir)
        for name in ("g_loss", "d_loss")
    ]
    assert len(losses) == 2 * _NUM_STEPS and np.isfinite(losses).all()
    return command.stderr


def test_rectangular_images_of_a_folder(
    tmp_path: pathlib.Path, folder: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    stderr = _train(workdir, folder)
    assert "24x32x3, 2 classes, in memory" in stderr
    assert "1 of 16 images are not used (1 of them replaced)" in stderr
    [*_, picture] = sorted((workdir / "samples").glob("*.png"))
    with PIL.Image.open(picture) as image:
        # As many rows as columns, of samples that are wider than high.
        assert image.width > image.height


@pytest.mark.slow
def test_two_processes_train_on_a_folder_as_one_with_two_replicas(
    tmp_path: pathlib.Path, folder: pathlib.Path
) -> None:
    workers, one = tmp_path / "workers", tmp_path / "one"
    stderr = _train(
        workers, folder, "--data_memory_mib=0", program=_TWO_WORKERS
    )
    assert "24x32x3, 2 classes, streamed" in stderr
    assert "Global batch 4 = 2 replicas x 2. 4 steps an epoch." in stderr
    assert "[worker 1] Worker 1 of 2" in stderr
    # In memory, and each replica reads the same share.
    _train(one, folder, "--strategy=mirrored", "--num_logical_cpus=2")
    tensors, others = runs.bundle(workers), runs.bundle(one)
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(
                value, others[name], rtol=1e-4, atol=1e-5, err_msg=name
            )
