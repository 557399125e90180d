"""How large is the gradient in each layer of a deep network, and what does the activation do to it?

First the slope of each activation by itself: backpropagation multiplies by one at every layer. Then a network of ten
layers, as it begins (He initialization), on random data: the root mean square of the gradient of each layer's weights.

    python examples/deep_gradients.py
    python examples/deep_gradients.py --activations sigmoid tanh selu --norm layer
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _common import Options, activation_name, plt, print_table, save, whole

import jaxnorm
from jaxnorm import functional as F
from jaxnorm import nn

NORMS = {'none': nn.Identity, 'layer': lambda: nn.LayerNorm(WIDTH), 'rms': lambda: nn.RMSNorm(WIDTH)}
WIDTH, SAMPLES = 64, 256
X = jnp.linspace(-5, 5, 1000)
SMALL = 0.01  # a slope below this has as good as vanished
LOST = 1e-2  # a first layer that gets less than this share of the last one's gradient hardly learns


class Outcome(NamedTuple):
    """What one activation does."""

    slopes: np.ndarray  # at X
    gradients: np.ndarray  # (layers,): the root mean square of the gradient of the weights

    @property
    def ratio(self) -> float:
        """The gradient of the first layer over that of the last."""
        return float(self.gradients[0] / self.gradients[-1])


def gradient_sizes(activation: str, layers: int, norm: str, seed: int) -> np.ndarray:
    """The size of the gradient in each layer of a new network, for random inputs and targets."""
    brainstate.random.seed(seed)
    rng = np.random.default_rng(seed)
    x, y = (jnp.asarray(rng.standard_normal((SAMPLES, WIDTH)), jnp.float32) for _ in range(2))
    linear = [brainstate.nn.Linear(WIDTH, WIDTH) for _ in range(layers)]
    norms = [NORMS[norm]() for _ in range(layers)]
    function = F.get(activation)

    def loss() -> jax.Array:
        z = x
        for layer, normalize in zip(linear, norms, strict=True):
            z = function(normalize(layer(z)))
        return jnp.mean((z - y) ** 2)

    weights: Any = {str(depth): layer.weight for depth, layer in enumerate(linear)}
    gradients: Any = jaxnorm.jit(brainstate.transform.grad(loss, weights))()
    return np.array([jnp.sqrt(jnp.mean(gradients[str(depth)]['weight'] ** 2)) for depth in range(layers)])


def main(arguments: Sequence[str] | None = None) -> dict[str, Outcome]:
    """Measure slopes and gradients, print both as tables, and draw them."""
    parser = Options(__doc__)
    names = ['sigmoid', 'tanh', 'relu', 'gelu', 'swish', 'mish', 'snake']
    parser.add_argument('--activations', nargs='+', type=activation_name, default=names, metavar='NAME')
    parser.add_argument('--norm', choices=NORMS, default='none', help='in front of each activation')
    parser.add_argument('--layers', type=whole(2, 100), default=10, metavar='N')
    options = parser.read(arguments)
    outcomes = {}
    values = {}
    for name in dict.fromkeys(options.activations):
        values[name] = np.asarray(F.get(name)(X))
        slopes = np.asarray(jax.vmap(jax.grad(F.get(name)))(X))
        outcomes[name] = Outcome(slopes, gradient_sizes(name, options.layers, options.norm, options.seed))

    print('Between -5 and 5:')
    print_table(
        ['activation', 'mean |slope|', 'max |slope|', f'|slope| < {SMALL}', 'output'],
        [
            [name, f'{np.abs(o.slopes).mean():.3f}', f'{np.abs(o.slopes).max():.3f}',
             f'{np.mean(np.abs(o.slopes) < SMALL):.1%}', f'{values[name].min():.3f} to {values[name].max():.3f}']
            for name, o in outcomes.items()
        ],
    )  # fmt: skip
    print(f'In {options.layers} layers of {WIDTH}, norm: {options.norm}:')
    print_table(
        ['activation', 'gradient, last layer', 'first layer', 'first / last', 'factor a layer'],
        [
            [name, *(f'{size:.1e}' for size in (o.gradients[-1], o.gradients[0], o.ratio)),
             f'{o.ratio ** (1 / (options.layers - 1)):.2f}']
            for name, o in outcomes.items()
        ],
    )  # fmt: skip
    lost = [name for name, outcome in outcomes.items() if outcome.ratio < LOST]
    kept = [name for name in outcomes if name not in lost]
    if lost:
        print(f'Hardly anything reaches the first layer (less than {LOST:.0%} of the last): {", ".join(lost)}.')
    if kept:
        print(f'The gradient of the first layer is of use with: {", ".join(kept)}.')
    draw(outcomes, options)
    return outcomes


def draw(outcomes: dict[str, Outcome], options) -> None:
    """The slopes, and the gradient of each layer."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2))
    layers = range(1, options.layers + 1)
    for name, outcome in outcomes.items():
        left.plot(X, outcome.slopes, label=name)
        right.semilogy(layers, outcome.gradients, marker='o', label=name)
    left.set(title='the slope of each activation', xlabel='input', ylabel='slope')
    title = f'the gradient in each of {options.layers} layers, norm: {options.norm}'
    right.set(title=title, xlabel='layer (1: next to the input)', ylabel='root mean square of the gradient')
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend()
    save(figure, options.output / 'deep_gradients.png')


if __name__ == '__main__':
    main()
