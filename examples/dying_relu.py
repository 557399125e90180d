"""Dying ReLUs: how many hidden units get no gradient from any sample, and what helps?

A unit is dead where the slope of its activation is as good as zero for every sample: no sample moves it any more. That
is not the same as a unit that is zero for one sample, as half of all ReLUs are. Two hidden layers of 128 learn a plain
task by gradient descent, with a usual and with a far too large learning rate.

    python examples/dying_relu.py
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import brainstate
import jax
import numpy as np
import optax
from _common import Options, Trainer, evaluate, plt, print_table, save
from which_activation import INPUTS, data

from jaxnorm import functional as F
from jaxnorm import nn

WIDTH = 128
FLAT = 1e-3  # a slope below this is as good as none
RATES = {'usual': 0.1, 'far too large': 2.0}


class Network(brainstate.nn.Module):
    """Linear - (norm) - activation twice, then a linear layer; its hidden layers can be looked into."""

    def __init__(self, activation: Any, norm: bool) -> None:
        super().__init__()
        self.linear1, self.linear2 = brainstate.nn.Linear(INPUTS, WIDTH), brainstate.nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2 = (nn.BatchNorm0d(WIDTH, momentum=0.9) if norm else nn.Identity() for _ in range(2))
        self.activation = activation
        self.last = brainstate.nn.Linear(WIDTH, 1)

    def hidden(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What goes into the activations of the two hidden layers."""
        first = self.norm1(self.linear1(x))
        return first, self.norm2(self.linear2(self.activation(first)))

    def update(self, x: jax.Array) -> jax.Array:
        """One logit for each sample."""
        return self.last(self.activation(self.hidden(x)[1]))[:, 0]


NETWORKS = {
    'relu': (F.relu, False),
    'relu, batch norm': (F.relu, True),
    'leaky_relu': (F.leaky_relu, False),
    'elu': (F.elu, False),
    'gelu': (F.gelu, False),
}


class Outcome(NamedTuple):
    """What became of the hidden units, both layers together."""

    loss: float
    right: float  # the share of right answers to the samples learned from
    active: float  # the share of positive numbers going into the activations
    dead: float  # the share of units without a slope at any sample


def outcome(network: Network, loss: float, x: np.ndarray, y: np.ndarray) -> Outcome:
    """Look into a network."""
    inside = np.stack([evaluate(lambda x, layer=layer: network.hidden(x)[layer], x) for layer in range(2)], axis=1)
    slopes = jax.vmap(jax.grad(network.activation))(inside.ravel()).reshape(inside.shape)
    dead = np.max(np.abs(slopes), axis=0) < FLAT
    right = np.mean((evaluate(network, x) > 0) == y)
    return Outcome(loss, float(right), float(np.mean(inside > 0)), float(dead.mean()))


def main(arguments: Sequence[str] | None = None) -> dict[tuple[str, str], Outcome]:
    """Count dead units in new layers and in trained ones, print them, and draw them."""
    options = Options(__doc__, steps=200).read(arguments)
    rng = np.random.default_rng(options.seed)
    x, y = data(rng)

    weights = rng.standard_normal((INPUTS, 1000)) * np.sqrt(2 / INPUTS)
    outputs = np.asarray(F.relu(x @ weights))
    for_one, for_all = np.sum(outputs[0] == 0), np.sum(np.all(outputs == 0, axis=0))
    print(
        f'Of 1000 random ReLUs {for_one} are zero for one sample; {for_all} for all of {len(x)}: dead from the start.\n'
    )
    outcomes = {}
    for name, (activation, norm) in NETWORKS.items():
        for rate_name, rate in RATES.items():
            brainstate.random.seed(options.seed)
            network = Network(activation, norm)

            def loss(x, y, network=network):
                return optax.sigmoid_binary_cross_entropy(network(x), y).mean()

            losses = Trainer(network, loss, optax.sgd(rate)).fit(options.steps, x, y)
            outcomes[name, rate_name] = outcome(network, float(losses[-1]), x, y)

    print_table(
        ['network', 'learning rate', 'loss', 'right', 'active', 'dead units'],
        [
            [name, f'{rate} ({RATES[rate]:g})']
            + (
                [f'{o.loss:.2g}', *(f'{share:.1%}' for share in o[1:])]
                if np.isfinite(o.loss)
                else ['diverged'] + 3 * ['-']
            )
            for (name, rate), o in outcomes.items()
        ],
    )
    for rate in RATES:
        dead = [f'{name} ({found.dead:.0%})' for (name, r), found in outcomes.items() if r == rate and found.dead > 0]
        print(f'Learning rate {rate}: dead units in {", ".join(dead) or "no network"}.')
    draw(outcomes, options)
    return outcomes


def draw(outcomes: dict[tuple[str, str], Outcome], options) -> None:
    """The shares of dead units and of active ones."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2))
    places = np.arange(len(NETWORKS))
    for shift, rate in zip((-0.2, 0.2), RATES, strict=True):
        found = [outcomes[name, rate] for name in NETWORKS]
        for axes, values in (left, [o.dead for o in found]), (right, [o.active for o in found]):
            bars = axes.bar(places + shift, 100 * np.array(values), 0.4, label=f'{rate} learning rate')
            axes.bar_label(bars, fmt='%.0f', fontsize=9)
    left.set(title='dead: no slope at any sample', ylabel='% of the hidden units', ylim=(0, 110))
    right.set(title='active: above zero', ylabel='% of the numbers', ylim=(0, 110))
    for axes in left, right:
        axes.set_xticks(places, list(NETWORKS), rotation=20)
        axes.legend()
    save(figure, options.output / 'dying_relu.png')


if __name__ == '__main__':
    main()
