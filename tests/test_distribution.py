"""Devices, strategies and the batch sizes that fit them."""

import contextlib
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import tensorflow as tf

from trainer import deadline, distribution, errors

_ROOT = Path(distribution.__file__).parent.parent


@pytest.mark.parametrize(
    ("batch_size", "num_replicas", "texts"),
    [
        (65, 2, ["=65", "2 replicas", "1 would be left", "64 or 66"]),
        (255, 4, ["=255", "4 replicas", "3 would be left", "252 or 256"]),
        (3, 8, ["=3", "8 replicas", "3 would be left", "Choose 8,"]),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_both_numbers(
    batch_size, num_replicas, texts
):
    with pytest.raises(errors.UsageError) as caught:
        distribution.check_batch_size(batch_size, num_replicas=num_replicas)
    for text in texts:
        assert text in str(caught.value)


def test_a_batch_that_divides_is_accepted():
    for batch_size, num_replicas in ((64, 1), (64, 2), (63, 3), (8, 8)):
        distribution.check_batch_size(batch_size, num_replicas=num_replicas)


def test_one_device_is_one_replica():
    for num_logical_cpus in (0, 1, 2):
        strategy = distribution.make_strategy(
            "one_device", num_logical_cpus=num_logical_cpus
        )
        assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
        assert strategy.num_replicas_in_sync == 1


@pytest.mark.parametrize(
    "tf_config",
    # Vertex AI sets it for a single machine, too.
    ["", '{"cluster": {"chief": ["a:1"]}, "task": {"type": "chief"}}'],
)
def test_mirrored_is_a_replica_on_each_device(monkeypatch, tf_config):
    monkeypatch.setenv("TF_CONFIG", tf_config or "{}")
    # `conftest.py` makes four.
    for num_logical_cpus, num_replicas in ((0, 4), (1, 1), (2, 2), (3, 3)):
        strategy = distribution.make_strategy(
            "mirrored", num_logical_cpus=num_logical_cpus
        )
        assert isinstance(strategy, tf.distribute.MirroredStrategy)
        assert strategy.num_replicas_in_sync == num_replicas
        devices = strategy.extended.worker_devices
        assert [d.split("device:")[1] for d in devices] == [
            f"CPU:{i}" for i in range(num_replicas)
        ]


def test_an_unknown_strategy_names_the_known_ones():
    with pytest.raises(
        errors.UsageError, match="--strategy=tpu.*one_device and mirrored"
    ):
        distribution.make_strategy("tpu")


def test_right_sums_over_the_replicas_pass():
    for num_replicas in (1, 3):
        distribution.check_all_reduce(
            distribution.make_strategy(
                "mirrored", num_logical_cpus=num_replicas
            )
        )


@pytest.mark.parametrize("replica", [0, 1])
def test_a_wrong_sum_names_the_device_and_the_remedies(monkeypatch, replica):
    all_reduce = tf.distribute.ReplicaContext.all_reduce

    def corrupted(self, operation, value):
        # As seen on machines whose GPUs read each other's memory wrongly.
        total = all_reduce(self, operation, value)
        is_hit = tf.equal(self.replica_id_in_sync_group, replica)
        wrong = tf.concat([total[:7], [0.5], total[8:]], axis=0)
        return tf.where(is_hit, wrong, total)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", corrupted)
    strategy = distribution.make_strategy("mirrored", num_logical_cpus=2)
    with pytest.raises(errors.DeviceError) as caught:
        distribution.check_all_reduce(strategy)
    for text in (f"CPU:{replica}", "2 replicas", "1 of 5", "NCCL_P2P_DISABLE"):
        assert text in str(caught.value)
    assert caught.value.exit_code == 7


def test_devices_are_made_before_tensorflow_starts_and_not_after():
    code = """
import tensorflow as tf
from trainer import distribution, errors
distribution.prepare_devices(num_logical_cpus=3, deterministic="auto")
print(len(tf.config.list_logical_devices("CPU")))
print(distribution.make_strategy(
    "mirrored", num_logical_cpus=3).num_replicas_in_sync)
try:
    tf.random.normal([1])
except RuntimeError as error:
    print("determin" in str(error))
# Fewer are there; more cannot come.
distribution.prepare_devices(num_logical_cpus=2, deterministic="auto")
try:
    distribution.prepare_devices(num_logical_cpus=5, deterministic="auto")
except errors.UsageError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=_ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    *counts, deterministic, message = result.stdout.splitlines()
    assert counts == ["3", "3"]
    assert deterministic == "True"
    assert message.startswith("--num_logical_cpus=5, but TensorFlow already")
    assert "with 3 in" in message


@pytest.mark.parametrize(
    ("deterministic", "num_gpus", "expected"),
    [
        ("auto", 0, True),
        ("auto", 2, False),
        ("on", 0, True),
        ("on", 2, True),
        ("off", 0, False),
        ("off", 2, False),
    ],
)
def test_auto_is_deterministic_where_it_costs_nothing(
    monkeypatch, deterministic, num_gpus, expected
):
    # No test machine has GPUs: only what is asked of TensorFlow is seen here.
    gpus = [types.SimpleNamespace(name=f"GPU:{i}") for i in range(num_gpus)]
    growing, enabled = [], []
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind: gpus if kind == "GPU" else [],
    )
    monkeypatch.setattr(
        tf.config.experimental,
        "set_memory_growth",
        lambda gpu, on: growing.append((gpu, on)),
    )
    monkeypatch.setattr(
        tf.config.experimental,
        "enable_op_determinism",
        lambda: enabled.append(True),
    )
    distribution.prepare_devices(
        num_logical_cpus=0, deterministic=deterministic
    )
    assert enabled == [True] * expected
    assert growing == [(gpu, True) for gpu in gpus]


@pytest.mark.parametrize(
    ("choice", "device", "sync_batch_norm", "expected"),
    [
        ("auto", "GPU:1", False, True),
        # XLA cannot compile its reductions.
        ("auto", "GPU:1", True, False),
        # XLA's convolutions on a CPU lose, whatever GPUs the machine has.
        ("auto", "CPU:1", False, False),
        ("on", "CPU:1", False, True),
        ("off", "GPU:1", False, False),
    ],
)
def test_auto_compiles_where_it_is_faster(
    choice, device, sync_batch_norm, expected
):
    devices = [f"/job:localhost/replica:0/task:0/device:{device}"]
    assert expected == distribution.should_jit(
        choice, devices=devices, sync_batch_norm=sync_batch_norm
    )


@pytest.mark.parametrize(("num_gpus", "expected"), [(0, "RING"), (2, "NCCL")])
def test_workers_speak_nccl_between_gpus(monkeypatch, num_gpus, expected):
    made = []
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: ["GPU"] * num_gpus
    )
    monkeypatch.setattr(
        tf.distribute,
        "MultiWorkerMirroredStrategy",
        lambda cluster, options: made.append((cluster, options)),
    )
    distribution.join_cluster(["host0:1", "host1:2"], 1)
    [(cluster, options)] = made
    assert options.implementation.value == expected
    assert cluster.task_id == 1
    assert cluster.cluster_spec().job_tasks("worker") == ["host0:1", "host1:2"]


def test_a_join_that_fails_is_restartable(monkeypatch):
    def fail(cluster, options):
        raise tf.errors.UnknownError(None, None, "Could not start the server")

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", fail)
    with pytest.raises(errors.StalledError, match="host1:2.*start the server"):
        distribution.join_cluster(["host0:1", "host1:2"], 1)


def test_a_join_has_a_deadline_until_it_ends(monkeypatch):
    happened = []

    @contextlib.contextmanager
    def end_process_after(secs, exit_code):
        happened.append((secs, exit_code))
        yield
        happened.append("cancelled")

    monkeypatch.setattr(deadline, "end_process_after", end_process_after)
    monkeypatch.setattr(
        tf.distribute,
        "MultiWorkerMirroredStrategy",
        lambda cluster, options: happened.append("joined"),
    )
    distribution.join_cluster(["host0:1", "host1:2"], 1)
    assert happened == [(600.0, 142), "joined", "cancelled"]
