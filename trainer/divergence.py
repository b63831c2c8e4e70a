"""How a run that diverges is noticed, and what it tries instead."""

import math

from trainer import errors, loss_scale

# Far from any other, so that seeds a user counts up do not meet these.
_SEED_OFFSET = 0x3C6EF372
_MAX_SEED = 2**31 - 1


def check_metrics(metrics: dict[str, float], step: int) -> None:
    """Refuses numbers that no later step can mend.

    With loss scaling, an overflow is an update left out, until the scale of
    that network can fall no further.

    Raises:
      DivergedError: one is not finite.
    """
    scales = {
        network: metrics.get(f"{network}_loss_scale", loss_scale.MIN_SCALE)
        for network in ("g", "d")
    }
    for name, value in metrics.items():
        # The probabilities are neither network's own.
        scale = scales.get(name.split("_")[0], max(scales.values()))
        if not math.isfinite(value) and scale <= loss_scale.MIN_SCALE:
            raise errors.DivergedError(f"{name} is {value} at step {step}")


def seed_after(seed: int, num_rollbacks: int) -> int:
    """Returns the seed of what is drawn after so many rollbacks.

    The same draws would lead to the same end.
    """
    return (seed + num_rollbacks * _SEED_OFFSET) % (_MAX_SEED + 1)
