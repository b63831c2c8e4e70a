"""The adversarial round: replicas, statistics, randomness, tracing."""

import pathlib
import random
import resource
import sys
import threading
import time
from collections import defaultdict

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from trainer import distribution, losses, pixels, randomness
from trainer.data import pipeline
from trainer.learning_rates import LearningRateFactor
from trainer.team import Team
from trainer.train_state import TrainState
from trainer.train_step import TrainStep

_GLOBAL_BATCH_SIZE = tiny.GLOBAL_BATCH_SIZE
_LATENT_DIM = tiny.LATENT_DIM


def _make(
    num_replicas: int,
    *,
    dropout_rate: float = 0.3,
    sync_batch_norm: bool = False,
    seed: int = 0,
    learning_rate: float = 1e-3,
    build_discriminator=None,
    loss=losses.non_saturating,
) -> tuple[TrainState, TrainStep]:
    strategy = distribution.make_strategy(
        "mirrored", num_logical_cpus=num_replicas
    )
    state = tiny.build_state(
        strategy,
        discriminator=build_discriminator
        or (lambda: tiny.build_discriminator(dropout_rate=dropout_rate)),
        sync_batch_norm=sync_batch_norm,
        learning_rate=learning_rate,
        seed=seed,
    )
    return state, tiny.build_step(state, Team(strategy), seed=seed, loss=loss)


def _copies(variable: tf.Variable) -> list[np.ndarray]:
    return [copy.numpy() for copy in variable.values]


@pytest.mark.parametrize("num_replicas", [2, 4])
def test_replicas_together_do_what_one_does_alone(num_replicas: int) -> None:
    # The article's rate: at higher ones, Adam's division by nearly vanishing
    # second moments blows rounding differences up.
    settings = {
        "dropout_rate": 0.0,
        "sync_batch_norm": True,
        "learning_rate": 1e-4,
    }
    tiny.assert_alike(_make(1, **settings), _make(num_replicas, **settings))


def test_dropout_does_not_change_that() -> None:
    # The masks belong to positions in the global batch, not to replicas.
    settings = {"sync_batch_norm": True, "learning_rate": 1e-4}
    tiny.assert_alike(_make(1, **settings), _make(2, **settings), num_steps=3)


def test_every_variable_is_equal_on_all_replicas() -> None:
    # Each replica normalizes with its own statistics here, so that the moving
    # ones would drift apart if they were not averaged.
    state, step = _make(2)
    step.run(5)
    for variable in state.variables:
        first, second = _copies(variable)
        np.testing.assert_array_equal(first, second)


def test_moving_statistics_are_the_mean_over_the_replicas() -> None:
    state_2, step_2 = _make(2, dropout_rate=0.0)
    initial_kernel = state_2.generator.layers[0].kernel.numpy()
    step_2.run(1)
    latents = (
        randomness.Draws(seed=0, purpose="latents", step=0)
        .normal((_GLOBAL_BATCH_SIZE, _LATENT_DIM))
        .numpy()
    )
    halves = np.split(latents @ initial_kernel, 2)
    expected = 0.01 * np.mean([half.mean(axis=0) for half in halves], axis=0)
    batch_norm = state_2.generator.layers[1]
    np.testing.assert_allclose(
        batch_norm.moving_mean.numpy(), expected, rtol=0, atol=1e-6
    )
    expected = 0.99 + 0.01 * np.mean(
        [half.var(axis=0) for half in halves], axis=0
    )
    np.testing.assert_allclose(
        batch_norm.moving_variance.numpy(), expected, rtol=0, atol=1e-6
    )


def test_keras_own_batch_norm_does_not_drift_either() -> None:
    # Its moving statistics differ between the replicas under Keras' own loop.
    def build() -> keras.Model:
        return keras.Sequential(
            [
                keras.Input([28, 28, 1]),
                keras.layers.Flatten(),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(1),
            ],
            name="discriminator",
        )

    state, step = _make(2, build_discriminator=build)
    step.run(3)
    moving_mean = state.discriminator.layers[1].moving_mean
    first, second = _copies(moving_mean.value)
    assert np.abs(first).max() > 0
    np.testing.assert_array_equal(first, second)


def _record_draws(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """Records, per purpose, what each replica drew at each step."""
    seen = defaultdict(list)

    def recording(method_name: str) -> None:
        method = getattr(randomness.Draws, method_name)

        def record(self: randomness.Draws, *args, **kwargs):
            result = method(self, *args, **kwargs)
            numbers = result[0] if isinstance(result, tuple) else result
            replica = tf.distribute.get_replica_context()
            tf.numpy_function(
                lambda step, replica_id, values: seen[
                    f"{self._purpose} {values.shape[1:]}"
                ].append((int(step), int(replica_id), values.copy())),
                [self._step, replica.replica_id_in_sync_group, numbers],
                [],
            )
            return result

        monkeypatch.setattr(randomness.Draws, method_name, record)

    recording("normal")
    recording("mask")
    return seen


def test_replicas_share_no_latents_and_no_dropout_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = _record_draws(monkeypatch)
    _, step = _make(2)
    step.run(2)
    purposes = {name.split(" (")[0] for name in seen}
    assert purposes == {
        "latents",
        "discriminator on real",
        "discriminator on fake",
    }
    assert len(seen) == 5  # Latents, and two masks for each of two passes.
    for name, draws in seen.items():
        assert len(draws) == 4, name  # Two replicas times two steps.
        flat = [values.tobytes() for _, _, values in draws]
        assert len(set(flat)) == 4, f"{name}: a draw is repeated"


def test_other_replica_counts_draw_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def global_draws(num_replicas: int) -> dict[str, np.ndarray]:
        with monkeypatch.context() as patch:
            seen = _record_draws(patch)
            _, step = _make(num_replicas)
            step.run(1)
        return {
            name: np.concatenate(
                [values for _, _, values in sorted(draws, key=lambda d: d[1])]
            )
            for name, draws in seen.items()
        }

    one, four = global_draws(1), global_draws(4)
    assert one.keys() == four.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], four[name], err_msg=name)


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_steps_per_call_do_not_change_a_bit(num_replicas: int) -> None:
    results = []
    for steps_per_call in (1, 7, 50):
        state, step = _make(num_replicas)
        done = 0
        while done < 50:
            num_steps = min(steps_per_call, 50 - done)
            metrics = step.run(num_steps)
            done += num_steps
        del metrics["data_wait_secs"]
        results.append((metrics, tiny.values(state)))
    for metrics, values in results[1:]:
        assert metrics == results[0][0]
        for value, first in zip(values, results[0][1], strict=True):
            np.testing.assert_array_equal(value, first)


def _resident_bytes() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_thousand_steps_need_no_more_memory(num_replicas: int) -> None:
    _, step = _make(num_replicas)
    for _ in range(30):  # Buffers and arenas reach their size.
        step.run(10)
    before_bytes = _resident_bytes()
    for _ in range(100):
        step.run(10)
    growth_bytes = _resident_bytes() - before_bytes
    # One batch of images kept a step would be 50 MB by now.
    assert growth_bytes < 20e6


def test_the_loop_is_traced_once() -> None:
    _, step = _make(2)
    for num_steps in (1, 3, 7, 1):
        step.run(num_steps)
    assert step.num_traces == 1


def test_each_loss_updates_its_own_network() -> None:
    # A loss of zero for one network leaves that network alone.
    def only(which: int):
        def loss(*, real_logits, fake_logits):
            both = losses.non_saturating(
                real_logits=real_logits, fake_logits=fake_logits
            )
            return tuple(
                part if index == which else 0.0 * part
                for index, part in enumerate(both)
            )

        return loss

    for which, moving in ((0, "generator"), (1, "discriminator")):
        state, step = _make(1, loss=only(which))
        before = {
            name: [v.numpy() for v in getattr(state, name).trainable_variables]
            for name in ("generator", "discriminator")
        }
        step.run(1)
        for name, old in before.items():
            new = [v.numpy() for v in getattr(state, name).trainable_variables]
            moved = [
                not np.array_equal(a, b) for a, b in zip(old, new, strict=True)
            ]
            assert any(moved) == (name == moving), (which, name)


def test_the_first_update_is_that_of_the_article() -> None:
    # The same round written as the tutorial does, with Keras' own optimizer.
    state, step = _make(1, dropout_rate=0.0)
    generator = tiny.build_generator(latent_dim=_LATENT_DIM)
    discriminator = tiny.build_discriminator(dropout_rate=0.0)
    generator.set_weights(state.generator.get_weights())
    discriminator.set_weights(state.discriminator.get_weights())
    batches = iter(
        pipeline.training_batches(
            tiny.noise(),
            global_batch_size=_GLOBAL_BATCH_SIZE,
            num_replicas=1,
            first_step=0,
            seed=0,
        )
    )
    optimizers = [keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3)]
    entropy = keras.losses.BinaryCrossentropy(from_logits=True)
    for index in range(3):
        real = pixels.to_float(next(batches)["sample"])
        latents = randomness.Draws(
            seed=0, purpose="latents", step=index
        ).normal((_GLOBAL_BATCH_SIZE, _LATENT_DIM))
        with tf.GradientTape(persistent=True) as tape:
            fake_logits = discriminator(
                generator(latents, training=True), training=True
            )
            real_logits = discriminator(real, training=True)
            g_loss = entropy(tf.ones_like(fake_logits), fake_logits)
            d_loss = entropy(tf.ones_like(real_logits), real_logits) + entropy(
                tf.zeros_like(fake_logits), fake_logits
            )
        for network, loss, optimizer in (
            (generator, g_loss, optimizers[0]),
            (discriminator, d_loss, optimizers[1]),
        ):
            gradients = tape.gradient(loss, network.trainable_variables)
            optimizer.apply(gradients, network.trainable_variables)
        metrics = step.run(1)
        assert metrics["g_loss"] == pytest.approx(float(g_loss), abs=1e-5)
        assert metrics["d_loss"] == pytest.approx(float(d_loss), abs=1e-5)
        assert metrics["real_probability"] == pytest.approx(
            float(tf.reduce_mean(tf.sigmoid(real_logits))), abs=1e-5
        )
        assert metrics["fake_probability"] == pytest.approx(
            float(tf.reduce_mean(tf.sigmoid(fake_logits))), abs=1e-5
        )
        d_norm = tf.linalg.global_norm(gradients)
        assert metrics["d_gradient_norm"] == pytest.approx(
            float(d_norm), rel=1e-4
        )
    for ours, theirs in (
        (state.generator, generator),
        (state.discriminator, discriminator),
    ):
        for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_seeds_decide_the_weights() -> None:
    def weights_after(seed: int) -> list[np.ndarray]:
        state, step = _make(2, seed=seed)
        step.run(2)
        return tiny.values(state)

    first, again, other = (weights_after(seed) for seed in (3, 3, 4))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])


def test_other_threads_draws_do_not_change_the_initial_weights() -> None:
    strategy = distribution.make_strategy("one_device", num_logical_cpus=1)
    alone = tiny.values(tiny.build_state(strategy))
    done = threading.Event()

    def draw() -> None:
        while not done.wait(0.0001):
            random.randrange(sys.maxsize)  # As for the boundary of an upload.
            random.randint(1, 6)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        beside = [tiny.values(tiny.build_state(strategy)) for _ in range(3)]
    finally:
        done.set()
        thread.join()
    for values in beside:
        for value, other in zip(values, alone, strict=True):
            np.testing.assert_array_equal(value, other)


def test_waiting_for_data_is_measured() -> None:
    _, step = _make(1)
    step.run(1)

    class Slow:
        def __init__(self, batches) -> None:
            self._batches = batches

        def __next__(self):
            [waited] = [tf.numpy_function(_sleep, [], tf.int64)]
            with tf.control_dependencies([waited]):
                return tf.nest.map_structure(tf.identity, next(self._batches))

    def _sleep() -> np.int64:
        time.sleep(0.05)
        return np.int64(0)

    step._batches = Slow(step._batches)
    step._run_steps = tf.function(step._trace_steps)
    waited_secs = step.run(4)["data_wait_secs"]
    assert 0.2 <= waited_secs < 2.0


def test_work_is_not_taken_for_waiting() -> None:
    def build_discriminator() -> keras.Model:
        return keras.Sequential(
            [
                keras.Input([28, 28, 1]),
                keras.layers.Conv2D(32, 5, padding="same"),
                keras.layers.LeakyReLU(0.3),
                keras.layers.Conv2D(32, 5, padding="same"),
                keras.layers.Flatten(),
                keras.layers.Dense(1),
            ]
        )

    strategy = distribution.make_strategy("one_device", num_logical_cpus=0)
    state = tiny.build_state(strategy, discriminator=build_discriminator)
    step = tiny.build_step(state, Team(strategy), global_batch_size=64)
    batches = tf.data.Dataset.from_tensors(next(step._batches)).repeat()
    step._batches = iter(
        strategy.distribute_datasets_from_function(lambda _: batches)
    )
    step.run(1)
    start_secs = time.monotonic()
    waited_secs = step.run(8)["data_wait_secs"]
    # The clock used to be read after the first layers, and said 20 to 40%.
    assert waited_secs < 0.1 * (time.monotonic() - start_secs)


def test_samples_become_floats_in_the_step() -> None:
    # In a graph, where TensorFlow replaces some arithmetic by faster one.
    floats = tf.function(pixels.to_float)(
        tf.cast(tf.random.shuffle(tf.range(256)), tf.uint8)
    )
    expected = np.arange(256, dtype=np.float32) / np.float32(127.5) - 1
    np.testing.assert_array_equal(np.sort(floats), expected)
    assert floats.dtype == tf.float32
    assert expected[0] == -1
    assert expected[255] == 1


def test_networks_that_share_a_variable_are_refused() -> None:
    shared = tiny.build_discriminator()
    with pytest.raises(ValueError, match="share"):
        TrainState(
            build_generator=lambda: shared,
            build_discriminator=lambda: shared,
            g_learning_rate=1e-3,
            d_learning_rate=1e-3,
            seed=0,
        )


def test_layers_with_random_state_of_their_own_are_refused() -> None:
    def build() -> keras.Model:
        return keras.Sequential(
            [
                keras.Input([28, 28, 1]),
                keras.layers.Flatten(),
                keras.layers.Dropout(0.3),
                keras.layers.Dense(1),
            ],
            name="discriminator",
        )

    with pytest.raises(ValueError, match=r"trainer\.models\.layers\.Dropout"):
        _make(1, build_discriminator=build)


def test_a_schedule_scales_both_networks_updates() -> None:
    strategy = distribution.make_strategy("mirrored", num_logical_cpus=2)
    updates = []
    for factor in (None, LearningRateFactor(warmup_steps=4)):
        state = tiny.build_state(strategy)
        step = tiny.build_step(
            state, Team(strategy), learning_rate_factor=factor
        )
        networks = (state.generator, state.discriminator)
        weights = [w for net in networks for w in net.trainable_variables]
        before = [w.numpy() for w in weights]
        metrics = [step.run(1)]
        updates.append(
            [w.numpy() - b for w, b in zip(weights, before, strict=True)]
        )
        metrics.append(step.run(2))
    for full, scaled in zip(*updates, strict=True):
        np.testing.assert_allclose(scaled, full / 4, rtol=0, atol=2e-7)
    assert [m["learning_rate_factor"] for m in metrics] == [0.25, 0.75]


def test_each_network_has_its_own_beta() -> None:
    strategy = distribution.make_strategy("one_device", num_logical_cpus=0)
    moments = []
    for settings in (
        {},
        {
            "g_optimizer_settings": {"beta_1": 0.5},
            "d_optimizer_settings": {"beta_1": 0.0, "beta_2": 0.0},
        },
    ):
        state = tiny.build_state(strategy, **settings)
        tiny.build_step(state, Team(strategy)).run(1)
        moments.append(
            [
                optimizer.first_moments[0].numpy()
                for optimizer in (state.g_optimizer, state.d_optimizer)
            ]
        )
    # The first moments begin with 1 - beta_1 times the gradient.
    for factor, (before, after) in zip(
        (5.0, 10.0), zip(*moments, strict=True), strict=True
    ):
        np.testing.assert_allclose(after, factor * before, rtol=1e-5)
