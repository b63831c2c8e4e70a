"""Everything that training changes, in one object: what is saved is this."""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import keras
import tensorflow as tf

from trainer import loss_scale, optimizers
from trainer.adaptive_probability import AdaptiveProbability

_NO_SETTINGS: Mapping[str, float] = MappingProxyType({})


class TrainState:
    """Both networks, both optimizers and the global step.

    Attributes:
      generator: latents [B, latent_dim] -> samples [B, ...].
      ema_generator: the average of the generator (`trainer.ema`), or None.
      discriminator: samples [B, ...] -> logits [B, 1].
      g_optimizer: the generator's.
      d_optimizer: the discriminator's.
      g_loss_scale: the generator's, or None where none is needed.
      d_loss_scale: the discriminator's.
      penalty: the newest one's mean over a global batch, or None where the
        discriminator is not penalized.
      augment_probability: how often is augmented, or None where that is fixed.
      global_step: int64, the number of finished rounds; one round updates both
        networks on every replica.
    """

    def __init__(
        self,
        *,
        build_generator: Callable[[], keras.Model],
        build_discriminator: Callable[[], keras.Model],
        g_learning_rate: float,
        d_learning_rate: float,
        seed: int,
        precision: str = "float32",
        optimizer: str = "adam",
        g_optimizer_settings: Mapping[str, float] = _NO_SETTINGS,
        d_optimizer_settings: Mapping[str, float] = _NO_SETTINGS,
        has_penalty: bool = False,
        has_ema: bool = False,
        build_augment_probability: Callable[[], AdaptiveProbability]
        | None = None,
    ) -> None:
        """Builds and initializes; call under the strategy's scope.

        Initial weights are a function of `seed` and of the networks alone.

        Args:
          build_generator: makes the generator.
          build_discriminator: makes the discriminator.
          g_learning_rate: of the generator's optimizer.
          d_learning_rate: of the discriminator's.
          seed: the run's seed.
          precision: a Keras dtype policy. "float32"; "mixed_bfloat16" computes
            layers in bfloat16; "mixed_float16" in float16, whose narrow range
            needs loss scaling. Weights, losses and updates are float32 always.
          optimizer: one of `trainer.optimizers.OPTIMIZERS`.
          g_optimizer_settings: what else the generator's optimizer takes, such
            as `beta_1`.
          d_optimizer_settings: the same of the discriminator's.
          has_penalty: whether the discriminator is penalized.
          has_ema: whether the generator is averaged; the average begins as a
            copy.
          build_augment_probability: makes one that adapts.

        Raises:
          ValueError: the networks share a variable or keep random state.
        """
        keras.utils.set_random_seed(seed)
        with _dtype_policy(precision), _layer_seeds(seed):
            self.generator = build_generator()
            self.discriminator = build_discriminator()
        _check_networks(self.generator, self.discriminator)
        self._build_discriminator = build_discriminator
        self._is_float32 = precision == "float32"
        make_optimizer = optimizers.get(optimizer)
        self.g_optimizer = make_optimizer(
            [v.value for v in self.generator.trainable_variables],
            learning_rate=g_learning_rate,
            **g_optimizer_settings,
        )
        self.d_optimizer = make_optimizer(
            [v.value for v in self.discriminator.trainable_variables],
            learning_rate=d_learning_rate,
            **d_optimizer_settings,
        )
        self.g_loss_scale: loss_scale.LossScale | None = None
        self.d_loss_scale: loss_scale.LossScale | None = None
        if precision == "mixed_float16":
            self.g_loss_scale = loss_scale.LossScale()
            self.d_loss_scale = loss_scale.LossScale()
        self.ema_generator: keras.Model | None = None
        if has_ema:
            # Last of the networks: the others' initial weights stay the same.
            with _dtype_policy(precision):
                self.ema_generator = build_generator()
            for average, variable in zip(
                self.ema_generator.variables,
                self.generator.variables,
                strict=True,
            ):
                average.assign(variable.value)
        self.penalty: tf.Variable | None = None
        if has_penalty:
            self.penalty = tf.Variable(0.0, trainable=False)
        self.augment_probability: AdaptiveProbability | None = None
        if build_augment_probability:
            self.augment_probability = build_augment_probability()
        self.global_step = tf.Variable(0, dtype=tf.int64, trainable=False)

    @property
    def shown_generator(self) -> keras.Model:
        """The one to make pictures with: the average, if there is one."""
        return self.ema_generator or self.generator

    @property
    def variables(self) -> list[tf.Variable]:
        """All variables, in an order that is the same in every process."""
        networks = (self.generator, self.discriminator)
        modules = (
            self.g_optimizer,
            self.d_optimizer,
            self.g_loss_scale,
            self.d_loss_scale,
            self.augment_probability,
        )
        variables = [
            *(v.value for network in networks for v in network.variables),
            *(v for module in modules if module for v in module.variables),
            *([] if self.penalty is None else [self.penalty]),
            *(
                v.value
                for v in (
                    self.ema_generator.variables if self.ema_generator else []
                )
            ),
            self.global_step,
        ]
        # An optimizer knows the weights that it updates.
        return list({id(v): v for v in variables}.values())

    @property
    def num_bytes(self) -> int:
        """What the variables take, of one replica, and about a checkpoint."""
        return sum(
            variable.dtype.size * variable.shape.num_elements()
            for variable in self.variables
        )

    def build_float32_discriminator(self) -> keras.Model | None:
        """Builds the discriminator for a computation that needs float32.

        Returns:
          the same network as a function of its weights, see
          `trainer.network`; its own variables stay on the host and mean
          nothing. None if the trained network computes in float32 itself.
        """
        if self._is_float32:
            return None
        with _dtype_policy("float32"), tf.device("CPU:0"):
            return self._build_discriminator()

    def as_checkpoint(self) -> tf.train.Checkpoint:
        """Returns the objects to save and restore, by name."""
        objects = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "g_optimizer": self.g_optimizer,
            "d_optimizer": self.d_optimizer,
            "global_step": self.global_step,
        }
        if self.g_loss_scale and self.d_loss_scale:
            objects["g_loss_scale"] = self.g_loss_scale
            objects["d_loss_scale"] = self.d_loss_scale
        if self.ema_generator:
            objects["ema_generator"] = self.ema_generator
        if self.penalty is not None:
            objects["penalty"] = self.penalty
        if self.augment_probability:
            objects["augment_probability"] = self.augment_probability
        return tf.train.Checkpoint(**objects)


@contextlib.contextmanager
def _layer_seeds(seed: int) -> Iterator[None]:
    """Lets the layers that this thread builds have seeds of nobody else.

    Keras takes the seed of an initializer from Python's one generator. Other
    threads draw from that, too, at any moment: Cloud Storage's client does for
    each upload.
    """
    own, others = random.Random(seed), random.randint
    builder = threading.get_ident()

    def randint(low: int, high: int) -> int:
        is_builder = threading.get_ident() == builder
        return (own.randint if is_builder else others)(low, high)

    random.randint = randint  # type: ignore[assignment]
    try:
        yield
    finally:
        random.randint = others


@contextlib.contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    """Builds layers with a policy, which Keras knows only as a global."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _check_networks(generator: keras.Model, discriminator: keras.Model) -> None:
    """Refuses networks that could not be trained or resumed correctly."""
    shared = {id(v) for v in generator.variables} & {
        id(v) for v in discriminator.variables
    }
    if shared:
        raise ValueError(
            f"The generator and the discriminator share {len(shared)} "
            "variables; each must own its variables, since each is updated "
            "against the other."
        )
    for network in (generator, discriminator):
        stateful = [
            v.path
            for v in network.non_trainable_variables
            if "seed_generator_state" in v.path
        ]
        if stateful:
            raise ValueError(
                f"{network.name} has layers with a random state of their own "
                f"({', '.join(stateful)}), which is the same on every replica "
                "and is not resumed; draw from trainer.randomness instead (for "
                "dropout: trainer.models.layers.Dropout)."
            )
