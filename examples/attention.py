"""Self-attention whose queries, keys and values go through activations: tanh, tanh and ReLU, and GELU at the end.

The weights of attention are drawn, for layers whose matrices are tiny (0.01), of the usual size (1 / sqrt(n)) and
large. How sharp they are is told by their entropy: that of equal weights is log n, that of a single choice is 0.

    python examples/attention.py
"""

from collections.abc import Sequence
from typing import NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _common import Options, plt, print_table, save, whole

import jaxnorm
from jaxnorm import nn

BATCH = 16


class Attention(brainstate.nn.Module):
    """Self-attention with activations on its way: tanh bounds the logits, ReLU makes values sparse, GELU ends it."""

    def __init__(self, size: int, scale: float) -> None:
        super().__init__()

        def linear() -> brainstate.nn.Linear:
            return brainstate.nn.Linear(size, size, w_init=brainstate.nn.init.Normal(scale=scale), b_init=None)

        self.query = brainstate.nn.Sequential(linear(), nn.Tanh())
        self.key = brainstate.nn.Sequential(linear(), nn.Tanh())
        self.value = brainstate.nn.Sequential(linear(), nn.ReLU())
        self.softmax = nn.Softmax()
        self.last = nn.GELU()
        self.size = size

    def weights(self, x: jax.Array) -> jax.Array:
        """How much each position takes from each: (batch, query, key)."""
        logits = self.query(x) @ self.key(x).swapaxes(-1, -2)
        return self.softmax(logits / np.sqrt(self.size))

    def update(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The result for x (batch, sequence, size), and the weights."""
        weights = self.weights(x)
        return self.last(weights @ self.value(x)), weights


class Outcome(NamedTuple):
    """What one layer makes of the sequences."""

    weights: np.ndarray  # (batch, query, key)
    output: np.ndarray  # (batch, sequence, size)

    @property
    def entropy(self) -> float:
        """The mean entropy of a row of weights."""
        return float(-np.sum(self.weights * np.log(self.weights), axis=-1).mean())


def main(arguments: Sequence[str] | None = None) -> dict[str, Outcome]:
    """Apply layers of three sizes of weights to the same sequences, print what they do, and draw their attention."""
    parser = Options(__doc__)
    parser.add_argument('--length', type=whole(2, 200), default=10, metavar='N', help='of the sequences')
    parser.add_argument('--size', type=whole(1, 1024), default=32, metavar='N', help='of each vector of a sequence')
    options = parser.read(arguments)
    rng = np.random.default_rng(options.seed)
    x = jnp.asarray(rng.standard_normal((BATCH, options.length, options.size)), jnp.float32)
    usual = 1 / np.sqrt(options.size)
    outcomes = {}
    for name, scale in {'tiny': 0.01, 'usual': usual, 'large': 4 * usual}.items():
        brainstate.random.seed(options.seed)
        output, weights = jaxnorm.jit(Attention(options.size, scale))(x)
        outcomes[f'{name} ({scale:.2g})'] = Outcome(np.asarray(weights), np.asarray(output))

    equal = np.log(options.length)
    print_table(
        ['matrices', 'least weight', 'greatest', f'entropy (equal: {equal:.3f})', 'sum of a row', 'std of the output'],
        [
            [name, f'{o.weights.min():.4f}', f'{o.weights.max():.4f}', f'{o.entropy:.4f}',
             f'{o.weights.sum(axis=-1).min():.6f} to {o.weights.sum(axis=-1).max():.6f}', f'{o.output.std():.2g}']
            for name, o in outcomes.items()
        ],
    )  # fmt: skip
    for name, outcome in outcomes.items():
        share = 1 - outcome.entropy / equal
        words = 'looks at all positions alike' if share < 0.001 else f'has given up {share:.1%} of the greatest entropy'
        print(f'{name}: attention {words}.')
    # |tanh| < 1, so a logit is no further from 0 than sqrt(size)
    print(f'Tanh bounds the logits by sqrt(size) = {np.sqrt(options.size):.2f}, however large the matrices are.')
    draw(outcomes, options)
    return outcomes


def draw(outcomes: dict[str, Outcome], options) -> None:
    """The weights of attention of the first sequence, and their mean over the batch."""
    figure, axes = plt.subplots(2, len(outcomes), figsize=(4 * len(outcomes), 7.2), squeeze=False)
    for column, (name, outcome) in zip(axes.T, outcomes.items(), strict=True):
        for cell, weights, of in zip(
            column, (outcome.weights[0], outcome.weights.mean(axis=0)), ('one', 'mean'), strict=True
        ):
            image = cell.imshow(weights, cmap='viridis', vmin=0)
            figure.colorbar(image, ax=cell, shrink=0.8)
            cell.set(title=f'{name}: {of}', xlabel='key position', ylabel='query position')
            cell.grid(visible=False)
    figure.suptitle('Weights of attention: of one sequence, and the mean over the batch')
    save(figure, options.output / 'attention.png')


if __name__ == '__main__':
    main()
