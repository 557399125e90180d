"""Which activation works best? The training curves of several, with their spread over starts.

The sign of the sum of five of twenty random inputs is to be told, by a network of 20 → 64 → 32 → 16 → 1 (Adam, batches
of 32). New samples tell what the training loss does not: what is learned by heart is not understood.

    python examples/which_activation.py
    python examples/which_activation.py --activations relu mish snake --seeds 5
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import brainstate
import numpy as np
import optax
from _common import Activation, Options, Trainer, activation_name, evaluate, mlp, plt, print_table, save, spread, whole

from jaxnorm import functional as F

SAMPLES, INPUTS, COUNT, BATCH = 1000, 20, 5, 32
LEARNED = 0.1
SIZES = (INPUTS, 64, 32, 16, 1)


class Outcome(NamedTuple):
    """The runs of one activation, a row for each start."""

    losses: np.ndarray  # (starts, epochs): the mean training loss of each epoch
    held_out: np.ndarray  # (starts,): the share of right answers to new samples

    def epochs_to_learn(self) -> str:
        """The mean number of epochs until the training loss is low."""
        low = self.losses < LEARNED
        return f'{1 + low.argmax(axis=1).mean():.1f}' if low.any(axis=1).all() else 'not all'


def data(rng: np.random.Generator, samples: int = SAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Random samples, and whether the first five inputs sum to more than zero."""
    x = rng.standard_normal((samples, INPUTS)).astype(np.float32)
    return x, (x[:, :COUNT].sum(axis=1) > 0).astype(np.float32)


def trials(activation: Callable[[], Activation], seeds: Sequence[int], epochs: int) -> Outcome:
    """Train the network with this activation from several starts."""
    model = mlp(SIZES, activation)

    def loss(x, y):
        return optax.sigmoid_binary_cross_entropy(model(x)[:, 0], y).mean()  # of logits: no sigmoid in front of it

    trainer = Trainer(model, loss, optax.adam(0.01))
    losses, held_out = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        brainstate.random.seed(seed)
        x, y = data(rng)
        new_x, new_y = data(rng)
        trainer.restart(mlp(SIZES, activation))
        steps = SAMPLES // BATCH  # what does not fill a batch waits for the next epoch
        order = [rng.permutation(SAMPLES)[: steps * BATCH].reshape(steps, BATCH) for _ in range(epochs)]
        losses.append(trainer.fit_batches(np.concatenate(order), x, y).reshape(epochs, steps).mean(axis=1))
        held_out.append(np.mean((evaluate(model, new_x)[:, 0] > 0) == new_y))
    return Outcome(np.array(losses), np.array(held_out))


def compare(outcomes: dict[str, Outcome]) -> None:
    """Print the losses and the held-out accuracies, and what they allow to say."""
    print_table(
        ['activation', f'epochs to a loss of {LEARNED}', 'last training loss', 'held out, share right'],
        [
            [name, o.epochs_to_learn(), f'{o.losses[:, -1].mean():.1e}', spread(o.held_out)]
            for name, o in outcomes.items()
        ],
    )
    lowest = min(outcomes, key=lambda name: outcomes[name].losses[:, -1].mean())
    best = max(outcomes, key=lambda name: outcomes[name].held_out.mean())
    second = max(
        (name for name in outcomes if name != best), key=lambda name: outcomes[name].held_out.mean(), default=best
    )
    print(f'The lowest training loss is that of {lowest}; most new samples are right with {best}.')
    if best != second:
        gains = outcomes[best].held_out - outcomes[second].held_out  # of the same start and the same samples
        always = 'in every start' if np.all(gains > 0) else f'in {np.sum(gains > 0)} of {len(gains)} starts'
        print(f'It has {100 * gains.mean():.2f} points more of 100 than {second}, the next; it is ahead {always}.')
    if best == 'identity':
        print('That is a network without activation: a straight cut is all there is to learn, and the others bend it.')


def draw_curves(axes, outcomes: dict[str, Outcome]) -> None:
    """The mean training loss of each activation, and the range of its starts."""
    for name, outcome in outcomes.items():
        epochs = np.arange(1, outcome.losses.shape[1] + 1)
        (line,) = axes.semilogy(epochs, outcome.losses.mean(axis=0), label=name)
        low, high = outcome.losses.min(axis=0), outcome.losses.max(axis=0)
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(title='training, mean and range of the starts', xlabel='epoch', ylabel='cross-entropy')
    axes.legend(fontsize=9)


def draw_held_out(axes, outcomes: dict[str, Outcome]) -> None:
    """The share of right answers to new samples: a dot for each start, a line for the mean."""
    for place, outcome in enumerate(outcomes.values()):
        axes.plot(np.full(len(outcome.held_out), place), outcome.held_out, 'o', alpha=0.6)
        axes.hlines(outcome.held_out.mean(), place - 0.3, place + 0.3, color='black')
    axes.set_xticks(range(len(outcomes)), list(outcomes), rotation=30)
    axes.set(title='samples not learned from', ylabel='share of right answers')


def main(arguments: Sequence[str] | None = None) -> dict[str, Outcome]:
    """Train with each activation from the same starts, print what came out, and draw the curves."""
    parser = Options(__doc__, seeds=3)
    names = ['relu', 'leaky_relu', 'elu', 'gelu', 'silu', 'tanh', 'sigmoid', 'identity']
    parser.add_argument('--activations', nargs='+', type=activation_name, default=names, metavar='NAME')
    parser.add_argument('--epochs', type=whole(1, 1000), default=50, metavar='N', help='how often all samples are seen')
    options = parser.read(arguments)
    seeds = range(options.seed, options.seed + options.seeds)
    outcomes = {name: trials(lambda name=name: F.get(name), seeds, options.epochs) for name in options.activations}
    compare(outcomes)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2))
    draw_curves(left, outcomes)
    draw_held_out(right, outcomes)
    save(figure, options.output / 'which_activation.png')
    return outcomes


if __name__ == '__main__':
    main()
