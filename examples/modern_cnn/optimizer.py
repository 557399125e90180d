"""The optimizer and its learning rate."""

from typing import Any

import jax
import optax
from options import Settings

MOMENTUM = 0.9  # of SGD


def schedule(settings: Settings, steps: int) -> optax.Schedule:
    """The learning rate at each of so many steps: a straight line up, then a cosine down to 0."""
    if not settings.warmup:
        return optax.cosine_decay_schedule(settings.learning_rate, steps)
    return optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, settings.warmup, steps)


def decays(path: Any, value: Any) -> bool:
    """Whether a parameter decays: matrices and kernels do.

    Biases, scales and what activations learn don't: pulling the scale of a norm to zero only fights the layer after it.
    """
    return path[-1].key == 'weight' and value.ndim > 1


def make(settings: Settings, steps: int) -> optax.GradientTransformation:
    """AdamW, or SGD with Nesterov momentum, as the settings say."""
    rate = schedule(settings, steps)

    def mask(parameters: Any) -> Any:
        return jax.tree_util.tree_map_with_path(decays, parameters)

    if settings.optimizer == 'adamw':
        rule = optax.adamw(rate, weight_decay=settings.weight_decay, mask=mask)
    else:
        # as usual with SGD the decay is a part of the gradient; AdamW keeps it out
        rule = optax.chain(
            optax.add_decayed_weights(settings.weight_decay, mask), optax.sgd(rate, MOMENTUM, nesterov=True)
        )
    return rule if settings.clip is None else optax.chain(optax.clip_by_global_norm(settings.clip), rule)
