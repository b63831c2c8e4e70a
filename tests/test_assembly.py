"""What of a config arrives at the parts that are made from it."""

import tensorflow as tf

from trainer.assembly import networks
from trainer.config import Config


def test_each_network_has_the_optimizer_that_its_flags_say():
    config = Config(
        model="dcgan",
        model_width=2,
        g_learning_rate=1e-3,
        d_learning_rate=2e-3,
        g_beta_1=0.1,
        d_beta_1=0.2,
        g_beta_2=0.3,
        d_beta_2=0.4,
    ).resolve()
    state = networks.build_state(
        config, tf.distribute.get_strategy(), (16, 16, 1)
    )
    assert [
        (made._learning_rate, made._beta_1, made._beta_2)
        for made in (state.g_optimizer, state.d_optimizer)
    ] == [(1e-3, 0.1, 0.3), (2e-3, 0.2, 0.4)]
