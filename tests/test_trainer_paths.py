"""Paths that a trainer on another machine does not have are refused."""

import pytest

from launch import trainer_flags, trainer_paths
from launch.job_spec import JobSpec
from trainer import errors


def _check(platform, *flags, **fields):
    spec = JobSpec(
        platform=platform,
        workdir="gs://bucket/run",
        trainer_flags=flags,
        **fields,
    )
    trainer_flags.check(spec)


@pytest.mark.parametrize(
    ("platform", "flags"),
    [
        ("vertex", ["--dataset=mnist", "--data_dir=~/mnist"]),
        ("vertex", ["--dataset=mnist", "--data_dir=/data/mnist"]),
        ("vertex", ["--dataset=mnist", "--data_dir=/gcs/../mnist"]),
        ("vertex", ["--dataset=mnist", "--data_dir=gs://bucket/mnist"]),
        ("vertex", ["--dataset=folder:pictures"]),
        ("vertex", ["--dataset=folder:/gcsx/pictures"]),
        ("vertex", ["--dataset=tfrecord:/data/faces"]),
        ("kubernetes", ["--dataset=mnist", "--data_dir=/gcs/bucket"]),
        ("kubernetes", ["--dataset=folder:/scratch/faces"]),
        ("kubernetes", ["--local_dir=/tmp/run"]),
        ("docker", ["--local_dir=/runs"]),
        ("docker", ["--dataset=mnist", "--data_dir=gs://bucket/mnist"]),
        ("docker", ["--dataset=folder:cats"]),
        ("docker", ["--dataset=folder:~/cats"]),
        ("docker", ["--data_dir=/data", "--dataset=folder:~/cats"]),
        ("docker", ["--dataset=tfrecord:*.tfrecord"]),
        ("docker", ["--dataset=tfrecord:/*.tfrecord"]),
        ("docker", ["--dataset=folder:/opt/"]),
    ],
)
def test_a_path_that_is_not_there_is_refused(platform, flags):
    volume = {"volume_claim": "data"} if platform == "kubernetes" else {}
    with pytest.raises(errors.UsageError) as caught:
        _check(platform, *flags, **volume)
    assert flags[-1] in str(caught.value)


@pytest.mark.parametrize(
    ("platform", "flags"),
    [
        ("vertex", ["--dataset=mnist", "--data_dir=/gcs/bucket/mnist"]),
        ("vertex", ["--dataset=folder:gs://bucket/faces"]),
        ("vertex", ["--dataset=folder:faces", "--data_dir=/gcs/bucket"]),
        ("vertex", ["--dataset=folder:faces", "--data_dir=gs://bucket/a"]),
        ("vertex", ["--dataset=mnist"]),
        ("kubernetes", ["--dataset=mnist", "--data_dir=/volume/mnist"]),
        ("kubernetes", ["--dataset=tfrecord:/volume/faces"]),
        ("kubernetes", ["--local_dir=/scratch/elsewhere"]),
        ("docker", ["--dataset=folder:/pictures"]),
        ("docker", ["--dataset=folder:cats", "--data_dir=animals"]),
        ("docker", ["--dataset=folder:gs://bucket/faces"]),
        ("docker", ["--dataset=tfrecord:/packed/a-*/b.tfrecord"]),
        ("local", ["--dataset=folder:pictures", "--local_dir=runs/here"]),
        ("slurm", ["--dataset=mnist", "--data_dir=/data/mnist"]),
    ],
)
def test_a_path_that_may_be_there_is_taken(platform, flags):
    volume = {"volume_claim": "data"} if platform == "kubernetes" else {}
    _check(platform, *flags, **volume)


def test_the_volume_is_there_only_with_its_claim():
    for flag in ("--dataset=folder:/volume/faces", "--local_dir=/volume/a"):
        with pytest.raises(errors.UsageError, match="without --volume_claim"):
            _check("kubernetes", flag)


@pytest.mark.parametrize(
    ("dataset", "directory"),
    [
        ("folder:/faces/all", "/faces/all"),
        ("folder:gs://bucket/faces", None),
        ("tfrecord:/packed/*.tfrecord", "/packed"),
        ("tfrecord:/packed/part-[01]/a.tfrecord", "/packed"),
        ("tfrecord:/packed/one.tfrecord", "/packed"),
        ("digits", None),
        ("tfds:mnist", None),
    ],
)
def test_the_directory_that_a_data_set_names(dataset, directory):
    assert trainer_paths.data_directory(dataset) == directory
