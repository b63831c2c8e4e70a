"""Devices and seeds for all tests: four replicas' worth of logical CPUs."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 4,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    # With op determinism on, TensorFlow refuses unseeded draws.
    keras.utils.set_random_seed(1)
