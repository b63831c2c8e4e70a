"""Paths that a trainer on another machine does not have are refused."""

import pytest

from launch import trainer_flags
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
