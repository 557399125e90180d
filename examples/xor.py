"""XOR is learned with a ReLU between two linear layers, and can not be learned without.

Four points, a network of 2 → 4 → 1, squared error, Adam, from several random starts. Without an activation the two
layers are one, and no line has (0, 1) and (1, 0) on its one side and (0, 0) and (1, 1) on the other.

    python examples/xor.py
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import brainstate
import jax.numpy as jnp
import numpy as np
import optax
from _common import Options, Trainer, evaluate, mlp, plt, print_table, save

from jaxnorm import nn

X = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
Y = jnp.array([0.0, 1.0, 1.0, 0.0])
UNSURE = 0.01  # an answer as near to one half as this is none
NETWORKS = {'with ReLU': nn.ReLU, 'without': nn.Identity}
SIDE = np.linspace(-0.5, 1.5, 101, dtype=np.float32)


class Outcome(NamedTuple):
    """What one start came to."""

    losses: np.ndarray  # at each step
    answers: np.ndarray  # to the four points
    plane: np.ndarray  # to those of a grid round them

    @property
    def right(self) -> int:
        """How many of the four answers are on the side of one half that they should be on."""
        return int(np.sum(np.abs(self.answers - np.asarray(Y)) < 0.5 - UNSURE))


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Outcome]]:
    """Train both kinds of network from all starts; the outcomes, the lowest loss first."""
    options = Options(__doc__, steps=1000, seeds=20).read(arguments)
    grid = np.stack(np.meshgrid(SIDE, SIDE), axis=-1)
    outcomes = {}
    for name, activation in NETWORKS.items():
        model = mlp((2, 4, 1), activation)

        def loss(x, y, model=model):
            return jnp.mean((model(x)[:, 0] - y) ** 2)

        trainer = Trainer(model, loss, optax.adam(0.1))
        found = []
        for seed in range(options.seed, options.seed + options.seeds):
            brainstate.random.seed(seed)
            trainer.restart(mlp((2, 4, 1), activation))
            losses = trainer.fit(options.steps, X, Y)
            found.append(Outcome(losses, evaluate(model, X)[:, 0], evaluate(model, grid)[..., 0]))
        outcomes[name] = sorted(found, key=lambda outcome: outcome.losses[-1])

    print_table(
        ['network', 'answers to 00 01 10 11', 'loss', 'right', 'starts with all four right'],
        [
            [name, ' '.join(f'{answer:.2f}' for answer in best.answers), float(best.losses[-1]), f'{best.right}/4',
             f'{sum(outcome.right == 4 for outcome in (best, *others))} of {1 + len(others)}']
            for name, (best, *others) in outcomes.items()
        ],
    )  # fmt: skip
    most = {name: max(outcome.right for outcome in found) for name, found in outcomes.items()}
    stuck = sum(outcome.right < 4 for outcome in outcomes['with ReLU'])
    print(
        f'In {options.seeds} starts of {options.steps} steps the network with ReLU got at most {most["with ReLU"]} of '
        f'the four points right, the one without at most {most["without"]}.'
    )
    if 0 < stuck < options.seeds:
        print(f'With ReLU it can be learned, but not from everywhere: {stuck} of the starts got stuck.')
    draw(outcomes, options.output / 'xor.png')
    return outcomes


def draw(outcomes, path) -> None:
    """The plane as the best start of each network sees it, and the losses of all starts."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8))
    plane: Any = None
    for cell, (name, (best, *_)) in zip(axes, outcomes.items(), strict=False):
        plane = cell.contourf(SIDE, SIDE, best.plane, levels=np.linspace(-0.5, 1.5, 21), cmap='RdBu_r', extend='both')
        if best.plane.min() < 0.5 - UNSURE and best.plane.max() > 0.5 + UNSURE:
            cell.contour(SIDE, SIDE, best.plane, levels=[0.5], colors='black')
        cell.scatter(*X.T, c=Y, cmap='RdBu_r', vmin=0, vmax=1, edgecolor='black', s=90, zorder=3)
        cell.set(title=f'{name}: {best.right} of 4 right', xlabel='first input', ylabel='second input', aspect='equal')
    figure.colorbar(plane, ax=axes[:2], label='answer (black: one half)')
    for (name, found), color in zip(outcomes.items(), ('tab:blue', 'tab:orange'), strict=True):
        for index, outcome in enumerate(found):
            axes[2].semilogy(outcome.losses, color=color, alpha=0.5, linewidth=1, label=name if index == 0 else None)
    axes[2].set(title='all starts', xlabel='step', ylabel='squared error', ylim=(1e-8, None))
    axes[2].legend()
    save(figure, path)


if __name__ == '__main__':
    main()
