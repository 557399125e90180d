"""A trainable activation, alpha * x * sigmoid(beta * x), fits sin(a) + cos(b), two of ten inputs.

Alpha and beta are weights like all others, two for each hidden unit. The network with them is held against the same one
with the fixed SiLU (alpha = beta = 1) and with ReLU, and against a single adaptive unit without a hidden layer.

    python examples/adaptive_activation.py
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import brainstate
import jax.numpy as jnp
import numpy as np
import optax
from _common import Options, Trainer, evaluate, mlp, plt, print_table, save, whole

from jaxnorm import functional as F
from jaxnorm import nn

ALPHA, BETA = 0.2, 1.0  # where they begin
SAMPLES, INPUTS = 1000, 10
ADAPTIVE, ONE_UNIT = 'adaptive', 'one adaptive unit'


class Outcome(NamedTuple):
    """What one network came to."""

    losses: np.ndarray
    held_out: float  # the squared error for new points
    alpha: np.ndarray  # empty where nothing of the activation is learned
    beta: np.ndarray


def data(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random points and what is to be learned of them."""
    x = rng.standard_normal((SAMPLES, INPUTS)).astype(np.float32)
    return x, np.sin(x[:, 0]) + np.cos(x[:, 1])


def networks(hidden: int) -> dict[str, Callable[[], brainstate.nn.Sequential]]:
    """How to make each of the networks."""
    sizes = (INPUTS, hidden, 1)

    def unit() -> brainstate.nn.Sequential:
        return brainstate.nn.Sequential(brainstate.nn.Linear(INPUTS, 1), nn.AdaptiveSwish(1, ALPHA, BETA))

    return {
        ONE_UNIT: unit,
        'relu': lambda: mlp(sizes, nn.ReLU),
        'silu': lambda: mlp(sizes, nn.SiLU),
        ADAPTIVE: lambda: mlp(sizes, lambda: nn.AdaptiveSwish(hidden, ALPHA, BETA)),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Outcome]:
    """Train all networks on the same points, print their errors, and draw what was learned."""
    parser = Options(__doc__, steps=500)
    parser.add_argument('--hidden', type=whole(1, 1024), default=32, metavar='N', help='units of the hidden layer')
    options = parser.read(arguments)
    rng = np.random.default_rng(options.seed)
    x, y = data(rng)
    new_x, new_y = data(rng)

    outcomes = {}
    for name, make in networks(options.hidden).items():
        brainstate.random.seed(options.seed)
        model: Any = make()

        def loss(x, y, model=model):
            return jnp.mean((model(x)[:, 0] - y) ** 2)

        losses = Trainer(model, loss, optax.adam(0.01)).fit(options.steps, x, y)
        learned = model.layers[1].weight.value if isinstance(model.layers[1], nn.AdaptiveSwish) else {}
        alpha, beta = (np.asarray(learned.get(name, ())) for name in ('alpha', 'beta'))
        outcomes[name] = Outcome(losses, float(evaluate(loss, new_x, new_y)), alpha, beta)

    print(f'The mean squared error (guessing the mean: {y.var():.3f}):')
    print_table(
        ['network', 'at first', f'after {options.steps} steps', 'for new points', 'alpha', 'beta'],
        [
            [name, *(f'{error:.4f}' for error in (o.losses[0], o.losses[-1], o.held_out)),
             *(f'{v.min():.2f} to {v.max():.2f}' if v.size else 'fixed' for v in (o.alpha, o.beta))]
            for name, o in outcomes.items()
        ],
    )  # fmt: skip
    hidden = {name: outcome.held_out for name, outcome in outcomes.items() if name != ONE_UNIT}
    best = min(hidden, key=lambda name: hidden[name])
    if best == ADAPTIVE:
        print(
            'The adaptive network has the smallest error for new points: '
            f'{hidden[best] / hidden["silu"]:.2f} times as much as that with SiLU.'
        )
    else:
        print(
            f'{best} has the smallest error for new points; the adaptive network has '
            f'{hidden[ADAPTIVE] / hidden[best]:.2f} times as much: what can be learned need not pay.'
        )
    times = outcomes[ONE_UNIT].held_out / hidden[ADAPTIVE]
    print(f'A single unit has {times:.1f} times the error of the adaptive network.')
    draw(outcomes, options)
    return outcomes


def draw(outcomes: dict[str, Outcome], options) -> None:
    """The losses, and the activation that each hidden unit has learned."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2))
    for name, outcome in outcomes.items():
        left.semilogy(outcome.losses, label=name)
    left.set(title='sin(a) + cos(b)', xlabel='step', ylabel='mean squared error')
    left.legend()
    x = np.linspace(-5, 5, 201, dtype=np.float32)
    for alpha, beta in zip(outcomes[ADAPTIVE].alpha, outcomes[ADAPTIVE].beta, strict=True):
        right.plot(x, F.adaptive_swish(x, alpha, beta), color='tab:red', linewidth=1, alpha=0.5)
    right.plot(x, F.adaptive_swish(x, ALPHA, BETA), color='black', label='where all units began')
    right.set(title='the activation of each unit, learned', xlabel='input', ylabel='output')
    right.legend()
    save(figure, options.output / 'adaptive_activation.png')


if __name__ == '__main__':
    main()
