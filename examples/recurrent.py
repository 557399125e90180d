"""Activations of a recurrent layer over a sequence: which keep its numbers in bounds, and which remember?

A layer h = f(W x + U h) runs over a random sequence with tanh, hard tanh, a tanh that fades with time, and a gate that
mixes tanh with the state before. Shown are the size of the state, and how much the last state still depends on each
input before it.

    python examples/recurrent.py
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _common import Options, plt, print_table, save, whole

import jaxnorm
from jaxnorm import functional as F

BATCH, INPUTS, HIDDEN = 32, 10, 20
HALF = 0.5

# (pre-activation, state before, time) -> state
ACTIVATIONS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    'tanh': lambda z, h, t: F.tanh(z),
    'hard tanh': lambda z, h, t: F.hard_tanh(z),
    'time-decayed tanh': lambda z, h, t: F.time_decayed_tanh(z, t, decay_rate=0.1),
    'gated tanh': lambda z, h, t: F.gated_tanh(z, h),
}


class Recurrent(brainstate.nn.Module):
    """A recurrent layer: its state follows from the input, the state before and the time."""

    def __init__(self, activation: Callable[..., jax.Array], scale: float) -> None:
        super().__init__()

        def init(shape: Any) -> jax.Array:
            return scale * brainstate.random.randn(*shape) / np.sqrt(shape[0])

        self.of_input = brainstate.nn.Linear(INPUTS, HIDDEN, w_init=init)
        self.of_state = brainstate.nn.Linear(HIDDEN, HIDDEN, w_init=init, b_init=None)
        self.activation = activation
        self.h = brainstate.HiddenState(jnp.zeros((BATCH, HIDDEN)))

    def update(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """The state after one more input (batch, inputs), at time t."""
        self.h.value = self.activation(self.of_input(x) + self.of_state(self.h.value), self.h.value, t)
        return self.h.value


class Outcome(NamedTuple):
    """What one activation does with the sequence."""

    states: np.ndarray  # (time, batch, hidden)
    influence: np.ndarray  # (time,): the size of the derivative of the last state by each input


def run(activation: Callable[..., jax.Array], sequence: jax.Array, scale: float, seed: int) -> Outcome:
    """Run a new layer over a sequence (time, batch, inputs)."""
    brainstate.random.seed(seed)  # the same weights for every activation
    layer = Recurrent(activation, scale)
    direction = brainstate.random.randn(HIDDEN)
    time = jnp.arange(len(sequence), dtype=jnp.float32)

    def last(sequence: jax.Array) -> tuple[jax.Array, jax.Array]:
        layer.h.value = jnp.zeros((BATCH, HIDDEN))
        states = brainstate.transform.for_loop(layer, sequence, time)
        return jnp.sum(states[-1] @ direction), states

    differentiate: Any = jaxnorm.jit(brainstate.transform.grad(last, argnums=0, has_aux=True))
    gradient, states = differentiate(sequence)
    return Outcome(np.asarray(states), np.asarray(jnp.sqrt(jnp.mean(gradient**2, axis=(1, 2)))))


def above_zero(text: str) -> float:
    """An argparse type: a number between 0 and 100."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:  # nan is neither
        raise argparse.ArgumentTypeError(f'must be a number above 0 and below 100, got {text!r}')
    return value


def main(arguments: Sequence[str] | None = None) -> dict[str, Outcome]:
    """Run each activation over the same sequence, print statistics of its states, and draw them."""
    parser = Options(__doc__)
    parser.add_argument('--length', type=whole(2, 10000), default=100, metavar='N', help='of the sequence')
    parser.add_argument(
        '--scale', type=above_zero, default=1.0, metavar='X', help='of the weights; 1 keeps sizes about equal'
    )
    options = parser.read(arguments)
    rng = np.random.default_rng(options.seed)
    sequence = jnp.asarray(rng.standard_normal((options.length, BATCH, INPUTS)), jnp.float32)
    outcomes = {name: run(f, sequence, options.scale, options.seed) for name, f in ACTIVATIONS.items()}

    print(f'The states of {options.length} steps, {BATCH} sequences and {HIDDEN} units:')
    print_table(
        ['activation', 'mean', 'std', 'min', 'max', 'std, last step', 'influence of the input 20 before the last'],
        [
            [name, *(f'{v:.4f}' for v in (o.states.mean(), o.states.std(), o.states.min(), o.states.max())),
             f'{o.states[-1].std():.2g}', f'{o.influence[-21] / o.influence.max():.1e}' if options.length > 20 else '-']
            for name, o in outcomes.items()
        ],
    )  # fmt: skip
    for name, outcome in outcomes.items():
        share = outcome.states[-1].std() / outcome.states.std()
        if share < HALF:
            print(f'{name}: the state fades, its last is {share:.1g} of its size over all steps.')
    reach = {name: int(np.sum(o.influence > 1e-3 * outcomes['tanh'].influence[-1])) for name, o in outcomes.items()}
    print(verdict(reach))
    draw(outcomes, options)
    return outcomes


def verdict(reach: dict[str, int]) -> str:
    """Which look back farthest, by how many inputs they still depend on."""
    most = max(reach.values())
    farthest = [name for name, inputs in reach.items() if inputs == most]
    others = ', '.join(f'{name}: {inputs}' for name, inputs in reach.items() if inputs < most)
    who = (
        f'{" and ".join(farthest)} look{"s" * (len(farthest) == 1)} back farthest' if others else 'All look back as far'
    )
    return (
        f'{who}: {most} inputs have a thousandth of the influence, or more, that the last one has on a tanh layer'
        + (f' ({others}).' if others else '.')
    )


def draw(outcomes: dict[str, Outcome], options) -> None:
    """A unit over time, the size of the states, and the influence of each input on the last state."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4))
    for name, outcome in outcomes.items():
        axes[0].plot(outcome.states[:, 0, 0], label=name, linewidth=1.2)
        axes[1].semilogy(outcome.states.std(axis=(1, 2)), label=name)
        axes[2].semilogy(np.arange(options.length)[::-1], np.where(outcome.influence > 0, outcome.influence, np.nan))
    axes[0].set(title='one unit', xlabel='time', ylabel='state')
    axes[1].set(title='the size of the states', xlabel='time', ylabel='standard deviation')
    axes[2].set(title='what the last state remembers', xlabel='inputs ago', ylabel='derivative by that input')
    axes[1].legend()
    save(figure, options.output / 'recurrent.png')


if __name__ == '__main__':
    main()
