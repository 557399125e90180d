"""Iris: does a network need an activation to tell three kinds of flowers apart?

150 flowers, four lengths each, 70 % of them to learn from. The same network, 4 → 16 → 3, with each activation and with
none, over several splits and starts: the differences between activations beside those between splits.

    python examples/iris.py
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import brainstate
import numpy as np
import optax
from _common import Options, Trainer, evaluate, mlp, plt, print_table, save, spread
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split

from jaxnorm import functional as F
from jaxnorm import nn

ACTIVATIONS = {'none': nn.Identity, 'sigmoid': nn.Sigmoid, 'relu': nn.ReLU, 'gelu': nn.GELU}
SEPALS, PETALS = [0, 1], [2, 3]  # length and width
COLORS = ['tab:blue', 'tab:orange', 'tab:green']


class Outcome(NamedTuple):
    """The shares of right answers, one for each split, and the answers round the flowers for the first split."""

    train: list[float]
    test: list[float]
    regions: np.ndarray


def main(arguments: Sequence[str] | None = None) -> dict[str, Outcome]:
    """Train each network on each split, print the shares of right answers, and draw the regions of two."""
    options = Options(__doc__, steps=300, seeds=5).read(arguments)
    iris: Any = load_iris()
    flowers, kinds = iris.data.astype(np.float32), iris.target
    lengths, widths = np.meshgrid(np.linspace(0.5, 7.5, 141), np.linspace(0, 2.8, 113))
    # the plane through the flowers that fits them best: to each petal the sepal that goes with it
    petals = np.stack([lengths, widths, np.ones_like(lengths)], axis=-1).astype(np.float32)
    fit, *_ = np.linalg.lstsq(np.insert(flowers[:, PETALS], 2, 1, axis=1), flowers[:, SEPALS], rcond=None)
    plane = np.concatenate([petals @ fit, petals[..., :2]], axis=-1)

    outcomes = {}
    for name, activation in ACTIVATIONS.items():
        model = mlp((4, 16, 3), activation)

        def loss(x, y, model=model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        trainer = Trainer(model, loss, optax.adam(0.02))
        outcome = Outcome([], [], np.zeros(lengths.shape, int))
        for seed in range(options.seed, options.seed + options.seeds):
            brainstate.random.seed(seed)
            train, test = train_test_split(np.arange(150), test_size=0.3, random_state=seed, stratify=kinds)
            mean, var = F.moments(flowers[train], 0)  # of the flowers to learn from alone

            def standard(x, mean=mean, var=var):
                return F.batch_norm(x, mean, var)

            trainer.restart(mlp((4, 16, 3), activation))
            trainer.fit(options.steps, standard(flowers[train]), kinds[train])
            for shares, chosen in (outcome.train, train), (outcome.test, test):
                answers = evaluate(model, standard(flowers[chosen])).argmax(axis=-1)
                shares.append(float(np.mean(answers == kinds[chosen])))
            if seed == options.seed:
                outcome.regions[:] = evaluate(model, standard(plane)).argmax(axis=-1)
        outcomes[name] = outcome

    print_table(
        ['activation', 'right, of those learned from', 'right, of those held out'],
        [[name, spread(outcome.train), spread(outcome.test)] for name, outcome in outcomes.items()],
    )
    best = max(outcomes, key=lambda name: np.mean(outcomes[name].test))
    print(verdict(outcomes, best))
    bent = best if best != 'none' else 'relu'
    draw({name: outcomes[name] for name in ('none', bent)}, lengths, widths, flowers, kinds, iris, options.output)
    return outcomes


def verdict(outcomes: dict[str, Outcome], best: str) -> str:
    """What can be said of the best one, beside the spread from split to split."""
    if len(outcomes[best].test) == 1:
        return 'One split says nothing about the spread, so nothing about the differences: take more --seeds.'
    if best == 'none':
        return 'The network without activation is as good as any here: straight borders do for these held-out flowers.'
    gain = np.mean(outcomes[best].test) - np.mean(outcomes['none'].test)
    noise = np.std(outcomes['none'].test)
    return (
        f'{best} is best and gains {45 * gain:.1f} of the 45 held-out flowers over a network without activation; '
        f'from split to split that one varies by {45 * noise:.1f}, so the gain is '
        f'{"more" if gain > noise else "no more"} than chance may bring.'
    )


def draw(outcomes, lengths, widths, flowers, kinds, iris, folder) -> None:
    """The kind that a network sees at each place of the plane of petals, for the first split."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for cell, (name, outcome) in zip(axes, outcomes.items(), strict=True):
        cell.contourf(lengths, widths, outcome.regions, levels=[-0.5, 0.5, 1.5, 2.5], colors=COLORS, alpha=0.25)
        for kind, color in enumerate(COLORS):
            petals = flowers[kinds == kind][:, PETALS]
            cell.scatter(*petals.T, color=color, s=14, label=iris.target_names[kind])
        cell.set(title=f'activation: {name}', xlabel='petal length, cm')
    axes[0].set_ylabel('petal width, cm')
    axes[0].legend()
    figure.suptitle('What the network sees, for the sepals that go with such petals')
    save(figure, folder / 'iris.png')


if __name__ == '__main__':
    main()
