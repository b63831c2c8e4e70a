"""Several updates of the discriminator for each of the generator."""

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from trainer import losses, messages, pixels, randomness
from trainer.data import pipeline
from trainer.schedule import Schedule

_N = 3


def _weights(network) -> list[np.ndarray]:
    return [w.numpy() for w in network.trainable_variables]


def test_the_ratio_is_honoured_and_one_network_is_updated_alone() -> None:
    state, step = tiny.make_micro(num_discriminator_steps=_N)
    step.run(2)
    assert state.global_step.numpy() == 2
    assert state.g_optimizer.num_updates.numpy() == 2
    assert state.d_optimizer.num_updates.numpy() == 2 * _N
    assert step.num_traces == 1
    # Its moving statistics moved twice: from zero, by a hundredth each time.
    batch_norm = state.generator.layers[1]
    variance = batch_norm.moving_variance.numpy()
    assert (0.98 < variance).all()


def test_two_replicas_do_what_one_does_in_parts() -> None:
    one, two = (
        tiny.make_micro(
            num_replicas,
            num_discriminator_steps=2,
            num_accumulation_steps=2,
            loss=losses.wasserstein,
            penalty="wgan_gp",
            # Of four updates the first and the last: one in each step.
            penalty_every_steps=3,
            state_settings={"learning_rate": 1e-4},
        )
        for num_replicas in (1, 2)
    )
    tiny.assert_alike(one, two, num_steps=2)


def test_each_update_has_real_and_generated_examples_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without accumulation an update sees B examples: a step's B * n positions.
    seen = []
    normal = randomness.Draws.normal

    def record(self, shape):
        seen.append((self._purpose, shape, self._first_position))
        return normal(self, shape)

    monkeypatch.setattr(randomness.Draws, "normal", record)
    _, step = tiny.make_micro(num_discriminator_steps=_N)
    step.run(1)
    size = tiny.GLOBAL_BATCH_SIZE
    assert [purpose for purpose, _, _ in seen] == ["latents"] * _N
    assert {shape for _, shape, _ in seen} == {(size, tiny.LATENT_DIM)}


def test_it_is_one_update_after_the_other() -> None:
    def frozen(*, real_logits, fake_logits):
        g_loss, d_loss = losses.non_saturating(
            real_logits=real_logits, fake_logits=fake_logits
        )
        return 0.0 * g_loss, d_loss

    settings = {
        "discriminator": lambda: tiny.build_micro_discriminator(
            dropout_rate=0.0
        ),
        "learning_rate": 1e-3,
    }
    state, step = tiny.make_micro(
        num_discriminator_steps=_N, loss=frozen, state_settings=settings
    )
    step.run(1)
    other, _ = tiny.make_micro(loss=frozen, state_settings=settings)
    # The same real batches and latents, from one step's positions.
    batch = next(
        iter(
            pipeline.training_batches(
                tiny.micro_noise(),
                global_batch_size=tiny.GLOBAL_BATCH_SIZE * _N,
                num_replicas=1,
                num_parts=_N,
                first_step=0,
                seed=0,
            )
        )
    )
    whole = pixels.to_float(batch["sample"]).numpy()
    latents = (
        randomness.Draws(seed=0, purpose="latents", step=0)
        .normal((tiny.GLOBAL_BATCH_SIZE * _N, tiny.LATENT_DIM))
        .numpy()
    )
    _train_by_hand(other, np.split(whole, _N), np.split(latents, _N))
    for a, b in zip(
        _weights(state.discriminator),
        _weights(other.discriminator),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def _train_by_hand(state, reals, latents) -> None:
    weights = [w.value for w in state.discriminator.trainable_variables]
    for real, latent in zip(reals, latents, strict=True):
        fake = state.generator(latent, training=True)
        with tf.GradientTape() as tape:
            _, d_losses = losses.non_saturating(
                real_logits=state.discriminator(real, training=True),
                fake_logits=state.discriminator(fake, training=True),
            )
            d_loss = tf.reduce_mean(d_losses)
        state.d_optimizer.apply(tape.gradient(d_loss, weights))


def test_the_log_says_what_a_step_takes() -> None:
    schedule = Schedule(
        steps_per_epoch=3,
        epochs=3,
        max_steps=None,
        steps_per_loop=1,
        log_every_steps=1,
        sample_every_epochs=1,
        checkpoint_every_epochs=1,
    )
    text = messages.batch_arithmetic(
        dataset="noise",
        num_examples=100,
        global_batch_size=16,
        batches_per_step=2,
        num_replicas=2,
        schedule=schedule,
    )
    assert "16 = 2 replicas x 8, 2 of them a step. 3 steps an epoch" in text
    assert "4 images" in text


def test_float16_scales_and_counts_each_update() -> None:
    state, step = tiny.make_micro(
        num_discriminator_steps=_N,
        jit_compile=True,
        state_settings={"precision": "mixed_float16"},
    )
    metrics = step.run(1)
    assert state.d_loss_scale.num_good_steps.numpy() == _N
    assert state.g_loss_scale.num_good_steps.numpy() == 1
    assert metrics["d_skipped_steps"] == metrics["g_skipped_steps"] == 0
