"""Which devices train, how they are made deterministic, and who runs where."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import deadline, errors

_MAX_NAMED_DEVICES = 4
_JOIN_SECS = 600.0
# Of a few megabytes, so that they travel the way of gradients.
_NUM_TEST_NUMBERS = 2**19
# Replicas' contributions differ, or swapped ones would not be noticed.
_NUM_FACTORS = 16


def prepare_devices(*, num_logical_cpus: int, deterministic: str) -> None:
    """Configures TensorFlow; call before anything touches a device.

    Args:
      num_logical_cpus: split the CPU into this many devices; 0 leaves it.
      deterministic: "on", "off" or "auto", which is on where there is no GPU:
        bit-identical repeats cost nothing on a CPU, and speed on a GPU.

    Raises:
      UsageError: TensorFlow has started with fewer devices in this process.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        # Otherwise one process takes all memory of every GPU that it sees.
        tf.config.experimental.set_memory_growth(gpu, True)
    if num_logical_cpus:
        _split_cpu(num_logical_cpus)
    uses_gpus = gpus and not num_logical_cpus
    if deterministic == "on" or (deterministic == "auto" and not uses_gpus):
        tf.config.experimental.enable_op_determinism()
    # In a loop, TensorFlow 2.21's remapper stumbles over the gradient of a
    # biased convolution before a LeakyReLU and logs an error; it has nothing to
    # fuse in training, and the measured speed is the same without it.
    tf.config.optimizer.set_experimental_options({"remapping": False})


def make_strategy(
    name: str, *, num_logical_cpus: int = 0
) -> tf.distribute.Strategy:
    """Returns a strategy over this process's devices.

    Args:
      name: "one_device": the first GPU, or the CPU; "mirrored": a replica on
        each GPU, or on each logical CPU where there is no GPU or where
        `num_logical_cpus` asks for it.
      num_logical_cpus: as given to `prepare_devices`.

    Raises:
      UsageError: there is no such strategy.
    """
    if num_logical_cpus:
        devices = tf.config.list_logical_devices("CPU")[:num_logical_cpus]
    else:
        gpus = tf.config.list_logical_devices("GPU")
        devices = gpus or tf.config.list_logical_devices("CPU")
    names = [f"{d.device_type}:{i}" for i, d in enumerate(devices)]
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(names[0])
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(names)
    raise errors.UsageError(
        f"--strategy={name} is unknown; on one machine there are one_device "
        "and mirrored."
    )


def join_cluster(
    addresses: Sequence[str], index: int
) -> tf.distribute.MultiWorkerMirroredStrategy:
    """Returns a strategy over the devices of several processes.

    All of them must be about to call this: TensorFlow waits for them without
    an end, holds Python's lock meanwhile, and takes SIGTERM for itself; one
    that comes in this second or two is lost.

    Args:
      addresses: "host:port" of each.
      index: which of them this process is.

    Raises:
      StalledError: they do not find together. If that hangs for ten minutes,
        the process ends with the same exit code.
    """
    cluster = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(addresses)}),
        task_type="worker",
        task_id=index,
        rpc_layer="grpc",
    )
    # What TensorFlow chooses by itself is gRPC, even between GPUs.
    implementation = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=implementation.NCCL
        if tf.config.list_physical_devices("GPU")
        else implementation.RING
    )
    try:
        with deadline.end_process_after(_JOIN_SECS, errors.EXIT_STALLED):
            return tf.distribute.MultiWorkerMirroredStrategy(cluster, options)
    except tf.errors.OpError as error:
        raise errors.StalledError(
            f"The workers {', '.join(addresses)} do not find together: "
            f"{error.message}. Each port must be free and open to all; start "
            "them again with the same command."
        ) from error


def check_all_reduce(strategy: tf.distribute.Strategy) -> None:
    """Sums known numbers over all replicas, as training will sum gradients.

    On some machines the connections between GPUs return wrong sums without an
    error, and losses become NaN hours later.

    Raises:
      DeviceError: a replica's answer is wrong.
    """
    num_replicas = strategy.num_replicas_in_sync
    numbers = tf.range(_NUM_TEST_NUMBERS, dtype=tf.float32) % 1024

    @tf.function
    def sum_on_replicas(numbers: tf.Tensor) -> Any:
        def on_replica(numbers: tf.Tensor) -> tf.Tensor:
            replica = tf.distribute.get_replica_context()
            factor = replica.replica_id_in_sync_group % _NUM_FACTORS + 1
            factor = tf.cast(factor, tf.float32)
            return replica.all_reduce("SUM", factor * numbers)

        return strategy.run(on_replica, [numbers])

    factors = [index % _NUM_FACTORS + 1 for index in range(num_replicas)]
    # Small enough for float32 to hold it exactly, on up to 1,024 replicas.
    expected = numbers.numpy() * sum(factors)
    answers = strategy.experimental_local_results(sum_on_replicas(numbers))
    for device, answer in zip(
        strategy.extended.worker_devices, answers, strict=True
    ):
        wrong = int(np.sum(answer.numpy() != expected))
        if wrong:
            raise errors.DeviceError(
                f"The sum over {num_replicas} replicas is wrong on {device}: "
                f"{wrong} of {_NUM_TEST_NUMBERS} numbers. Training would go "
                "wrong, too. Known remedies: NCCL_P2P_DISABLE=1 in the "
                "environment; the IOMMU (ACS) off in the machine's BIOS; a "
                "container with --ipc=host or a larger --shm-size; a newer "
                "driver. --strategy=one_device needs no sums."
            )


def describe(strategy: tf.distribute.Strategy) -> str:
    """Names the strategy's devices, and says if there is no GPU to use.

    TensorFlow's own warning about libraries that it cannot load is below the
    log level that `trainer.main` sets.
    """
    names = [
        ":".join(device.split(":")[-2:])
        for device in strategy.extended.worker_devices
    ]
    text = ", ".join(names)
    if len(names) > _MAX_NAMED_DEVICES:
        text = f"{names[0]} to {names[-1]}"
    if tf.config.list_physical_devices("GPU"):
        return text
    return f"{text}; no GPU was found (TF_CPP_MIN_LOG_LEVEL=0 tells more)"


def check_batch_size(
    global_batch_size: int, *, num_replicas: int, num_parts: int = 1
) -> None:
    """Refuses a global batch that cannot be shared equally.

    Args:
      global_batch_size: over all replicas.
      num_replicas: that share it.
      num_parts: that each of them goes through its share in.

    Raises:
      UsageError: with the numbers and the nearest batch sizes that divide.
    """
    divisor = num_replicas * num_parts
    remainder = global_batch_size % divisor
    if not remainder:
        return
    above = global_batch_size - remainder + divisor
    below = above - divisor
    nearest = f"{below} or {above}" if below else f"{above}"
    among = f"the {num_replicas} replicas"
    if num_parts > 1:
        among += f" times --gradient_accumulation_steps={num_parts}"
    raise errors.UsageError(
        f"--batch_size={global_batch_size} does not divide by {among}: "
        f"{remainder} would be left over, and all shares are equal. Choose "
        f"{nearest}, or another number of replicas."
    )


def should_jit(
    choice: str, *, devices: Sequence[str], sync_batch_norm: bool
) -> bool:
    """Decides whether XLA compiles each replica's computation.

    Args:
      choice: "on", "off" or "auto": on for GPUs, where it saves launches of
        kernels; off for CPUs, whose convolutions XLA makes several times
        slower, and for synchronized batch norm, whose reductions it cannot
        compile.
      devices: names of those that compute.
      sync_batch_norm: whether batch norm speaks to other replicas.
    """
    if choice == "auto":
        uses_gpus = any("GPU" in name for name in devices)
        return uses_gpus and not sync_batch_norm
    return choice == "on"


def _split_cpu(num_logical_cpus: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * num_logical_cpus
        )
    except RuntimeError as error:
        # The devices of a process are fixed once TensorFlow has used them.
        available = len(tf.config.list_logical_devices("CPU"))
        if available < num_logical_cpus:
            raise errors.UsageError(
                f"--num_logical_cpus={num_logical_cpus}, but TensorFlow "
                f"already runs with {available} in this process. Start a new "
                "process for more."
            ) from error
