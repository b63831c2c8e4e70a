"""Networks with every kind of layer that training must handle, but small."""

import keras

from trainer.models import layers


def build_generator(
    *, latent_dim: int, sync_batch_norm: bool = False
) -> keras.Model:
    """Builds latents [B, latent_dim] -> images [B, 28, 28, 1]."""
    return keras.Sequential(
        [
            keras.Input([latent_dim]),
            keras.layers.Dense(7 * 7 * 4, use_bias=False),
            layers.BatchNormalization(synchronized=sync_batch_norm),
            keras.layers.LeakyReLU(0.3),
            keras.layers.Reshape([7, 7, 4]),
            keras.layers.Conv2DTranspose(
                4, 5, strides=2, padding="same", use_bias=False
            ),
            layers.BatchNormalization(synchronized=sync_batch_norm),
            keras.layers.LeakyReLU(0.3),
            keras.layers.Conv2DTranspose(1, 5, strides=2, padding="same"),
            keras.layers.Activation("tanh"),
        ],
        name="generator",
    )


def build_discriminator(*, dropout_rate: float = 0.3) -> keras.Model:
    """Builds images [B, 28, 28, 1] -> logits [B, 1]."""
    return keras.Sequential(
        [
            keras.Input([28, 28, 1]),
            keras.layers.Conv2D(4, 5, strides=2, padding="same"),
            keras.layers.LeakyReLU(0.3),
            layers.Dropout(dropout_rate),
            keras.layers.Conv2D(8, 5, strides=2, padding="same"),
            keras.layers.LeakyReLU(0.3),
            layers.Dropout(dropout_rate),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ],
        name="discriminator",
    )
