"""From latent vectors to hidden units, as a generator begins: softplus, scaled tanh, PReLU and a Gaussian gate.

Each activation follows the same linear layer (the gate one of twice its size), with small weights (0.02, as generators
often begin) and with those of He. Shown are the statistics of what comes out and the size of the gradient that comes
back to the latent vectors.

    python examples/generative.py
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _common import Options, plt, print_table, save

import jaxnorm
from jaxnorm import nn

BATCH, LATENT, HIDDEN = 64, 100, 256
SCALES = {'small': 0.02, 'He': float(np.sqrt(2 / LATENT))}
ACTIVATIONS = {
    'softplus': nn.Softplus,
    'scaled tanh': nn.ScaledTanh,
    'prelu': nn.PReLU,
    'gaussian glu': lambda: nn.GaussianGLU(gate='first'),  # exp(-a² / 2) · b of the halves a and b
}


class Outcome(NamedTuple):
    """What one layer does."""

    output: np.ndarray  # (batch, hidden)
    gradient: float  # the root mean square of that of the latent vectors, for a random gradient of size 1 from above


def layer(activation: Any, scale: float) -> brainstate.nn.Sequential:
    """Latent vectors to hidden units; a gate halves its input, so it gets twice as much."""
    size = 2 * HIDDEN if isinstance(activation, nn.GaussianGLU) else HIDDEN
    linear = brainstate.nn.Linear(LATENT, size, w_init=brainstate.nn.init.Normal(scale=scale))
    return brainstate.nn.Sequential(linear, activation)


def main(arguments: Sequence[str] | None = None) -> dict[tuple[str, str], Outcome]:
    """Pass the same latent vectors through each layer, print the statistics, and draw how the outputs are spread."""
    options = Options(__doc__).read(arguments)
    rng = np.random.default_rng(options.seed)
    latent = jnp.asarray(rng.standard_normal((BATCH, LATENT)), jnp.float32)
    from_above = jnp.asarray(rng.standard_normal((BATCH, HIDDEN)), jnp.float32)

    outcomes = {}
    for scale_name, scale in SCALES.items():
        for name, activation in ACTIVATIONS.items():
            brainstate.random.seed(options.seed)
            model = layer(activation(), scale)

            @jaxnorm.jit
            def there_and_back(z, model=model):
                output, back = jax.vjp(model, z)
                return output, back(from_above)[0]

            output, gradient = there_and_back(latent)
            outcomes[scale_name, name] = Outcome(np.asarray(output), float(jnp.sqrt(jnp.mean(gradient**2))))

    print_table(
        ['weights, activation', 'mean', 'std', 'min', 'max', 'below 0', 'gradient to the latent'],
        [
            [', '.join(key), *(f'{v:.4f}' for v in (o.output.mean(), o.output.std(), o.output.min(), o.output.max())),
             f'{np.mean(o.output < 0):.1%}', f'{o.gradient:.3f}']
            for key, o in outcomes.items()
        ],
    )  # fmt: skip
    for scale_name in SCALES:
        centred = [
            n
            for n in ACTIVATIONS
            if abs(outcomes[scale_name, n].output.mean()) < 0.1 * outcomes[scale_name, n].output.std()
        ]
        most = max(ACTIVATIONS, key=lambda name: outcomes[scale_name, name].gradient)
        print(
            f'Weights: {scale_name}. Centred on zero (mean below a tenth of std): {", ".join(centred) or "none"}; '
            f'the largest gradient comes back through {most}.'
        )
    draw(outcomes, options)
    return outcomes


def draw(outcomes: dict[tuple[str, str], Outcome], options) -> None:
    """How the outputs of each layer are spread."""
    figure, axes = plt.subplots(len(SCALES), len(ACTIVATIONS), figsize=(14, 6))
    for cell, (key, outcome) in zip(axes.flat, outcomes.items(), strict=True):
        cell.hist(outcome.output.ravel(), bins=80, density=True)
        cell.axvline(outcome.output.mean(), color='tab:red', linestyle='--', label=f'mean {outcome.output.mean():.3f}')
        cell.set(title=', '.join(key), xlabel='output')
        cell.legend()
    figure.suptitle(f'{LATENT} latent numbers to {HIDDEN} hidden units')
    save(figure, options.output / 'generative.png')


if __name__ == '__main__':
    main()
