"""Which devices train, how they are made deterministic, and who runs where."""

import tensorflow as tf

from trainer import errors

_MAX_NAMED_DEVICES = 4


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
    if deterministic == "on" or (deterministic == "auto" and not gpus):
        tf.config.experimental.enable_op_determinism()
    # In a loop, TensorFlow 2.21's remapper stumbles over the gradient of a
    # biased convolution before a LeakyReLU and logs an error; it has nothing to
    # fuse in training, and the measured speed is the same without it.
    tf.config.optimizer.set_experimental_options({"remapping": False})


def make_strategy(
    name: str, *, num_logical_cpus: int = 0
) -> tf.distribute.Strategy:
    """Returns a strategy over this machine's devices.

    Args:
      name: "one_device": the first GPU, or the CPU; "mirrored": a replica on
        each GPU, or on each logical CPU where there is no GPU or where
        `num_logical_cpus` asks for it.
      num_logical_cpus: as given to `prepare_devices`.
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
        f"--strategy={name} is unknown; known are one_device and mirrored."
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


def should_jit(choice: str, *, sync_batch_norm: bool) -> bool:
    """Decides whether XLA compiles each replica's computation.

    Args:
      choice: "on", "off" or "auto": on for GPUs, where it saves launches of
        kernels; off for CPUs, whose convolutions XLA makes several times
        slower, and for synchronized batch norm, whose reductions it cannot
        compile.
      sync_batch_norm: whether batch norm speaks to other replicas.
    """
    if choice == "auto":
        has_gpu = bool(tf.config.list_physical_devices("GPU"))
        return has_gpu and not sync_batch_norm
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
