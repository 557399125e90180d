"""What the examples share: options, a small network, a training loop, tables and pictures."""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import brainstate
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import jaxnorm
from jaxnorm import functional as F

matplotlib.use('Agg')  # pictures go into files, so no screen is needed
import matplotlib.pyplot as plt

plt.rcParams.update({'figure.constrained_layout.use': True, 'axes.grid': True, 'grid.alpha': 0.3})

Activation = Callable[[jax.Array], Any]


def whole(least: int, most: int) -> Callable[[str], int]:
    """An argparse type: a whole number in a range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f'must be a whole number between {least} and {most}, got {text!r}')
        return value

    return parse


def activation_name(text: str) -> str:
    """An argparse type: the name of an activation that works on each number for itself."""
    try:
        function = F.get(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removesuffix('.')) from None
    x = jnp.linspace(-3, 3, 8)
    try:
        together = function(x)
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f'must be an activation that needs nothing but its input, got {text!r}'
        ) from None
    if together.shape != x.shape:
        raise argparse.ArgumentTypeError(f'must be an activation that keeps the shape of its input, got {text!r}')
    # one of a whole vector, such as softmax, has another result for a part of it
    if not np.allclose(together, [function(x[i : i + 1])[0] for i in range(len(x))], atol=1e-6):
        raise argparse.ArgumentTypeError(f'must be an activation that works on each number for itself, got {text!r}')
    return text


class Options(argparse.ArgumentParser):
    """The options of an example, with those that all have; what is wrong with them is said in one line.

    Parameters
    ----------
    doc : str
        The docstring of the example.
    steps, seeds : int, optional
        The defaults of --steps and --seeds, where the example has them.
    """

    def __init__(self, doc: str | None, *, steps: int | None = None, seeds: int | None = None) -> None:
        super().__init__(
            description=(doc or '').split('\n\n')[0].replace('%', '%%'),
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument('--seed', type=whole(0, 2**31 - 1), default=0, metavar='N', help='of all random numbers')
        if seeds is not None:
            self.add_argument(
                '--seeds', type=whole(1, 1000), default=seeds, metavar='N', help='starts: seed, seed + 1, …'
            )
        if steps is not None:
            self.add_argument('--steps', type=whole(1, 10**6), default=steps, metavar='N', help='of training')
        self.add_argument('--output', type=Path, default=Path('runs'), metavar='FOLDER', help='for the pictures')

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message} (--help lists all options)\n')

    def read(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The options, once the output folder is there and can be written into."""
        options = self.parse_args(arguments)
        try:
            options.output.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=options.output):
                pass
        except OSError as error:
            reason = error.strerror or error
            self.error(f"argument --output: can not write into '{options.output}': {reason}; choose another folder")
        return options


def mlp(sizes: Sequence[int], activation: Callable[[], Activation]) -> brainstate.nn.Sequential:
    """Linear layers of these sizes, with a new activation behind each but the last."""
    layers: list[Any] = []
    for wide, next_wide in itertools.pairwise(sizes):
        layers += [brainstate.nn.Linear(wide, next_wide), activation()]
    return brainstate.nn.Sequential(*layers[:-1])


class Trainer:
    """A model that learns: its weights, an optimizer, and a loop over the steps that is compiled once.

    Parameters
    ----------
    model : module
        What learns: all of its `ParamState`.
    loss : callable
        The loss of a batch, a function of the arrays of the batch.
    optimizer : optax.GradientTransformation
        How the weights follow the gradient.
    """

    def __init__(
        self, model: brainstate.nn.Module, loss: Callable[..., jax.Array], optimizer: optax.GradientTransformation
    ) -> None:
        self.weights: Any = model.states(brainstate.ParamState)
        self.optimizer = optimizer
        self.memory = brainstate.LongTermState(optimizer.init(self.values()))
        gradient: Any = brainstate.transform.grad(loss, self.weights, return_value=True)

        def step(*batch: jax.Array) -> jax.Array:
            gradients, value = gradient(*batch)
            values = self.values()
            updates, self.memory.value = optimizer.update(dict(gradients), self.memory.value, values)
            self.set(optax.apply_updates(values, updates))
            return value

        loop = brainstate.transform.for_loop
        self.with_all = jaxnorm.jit(lambda steps, *data: loop(lambda _: step(*data), steps))
        self.with_rows = jaxnorm.jit(lambda order, *data: loop(lambda rows: step(*(a[rows] for a in data)), order))

    def values(self) -> dict[Any, Any]:
        """The weights, as optax takes them."""
        return {name: state.value for name, state in self.weights.items()}

    def set(self, values: Any) -> None:
        """Put other weights in their place."""
        for name, state in self.weights.items():
            state.value = values[name]

    def restart(self, model: brainstate.nn.Module) -> None:
        """Begin again, with the weights of a new model of the same sizes; what is compiled is used again."""
        fresh: Any = model.states(brainstate.ParamState)
        self.set({name: state.value for name, state in fresh.items()})
        self.memory.value = self.optimizer.init(self.values())

    def fit(self, steps: int, *data: Any) -> np.ndarray:
        """Learn from all of the data at each step: the losses."""
        with brainstate.environ.context(fit=True):
            return np.asarray(self.with_all(jnp.arange(steps), *data))

    def fit_batches(self, order: np.ndarray, *data: Any) -> np.ndarray:
        """Learn from some rows of the data at each step, a row of `order` (steps, batch): the losses."""
        with brainstate.environ.context(fit=True):
            return np.asarray(self.with_rows(order, *data))


def evaluate(model: Callable[..., Any], *arrays: Any) -> np.ndarray:
    """What a model makes of arrays when it does not learn."""
    with brainstate.environ.context(fit=False):
        return np.asarray(model(*arrays))


def spread(values: Iterable[float]) -> str:
    """Mean and standard deviation, to print."""
    values = np.array(list(values))
    return f'{values.mean():.4f} ± {values.std():.4f}'


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows of texts and numbers, under their heads; the first column is flush left, the others flush right."""
    lines = [list(head)] + [[f'{v:.4g}' if isinstance(v, float) else str(v) for v in row] for row in rows]
    wide = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for first, *others in lines:
        cells = [first.ljust(wide[0]), *(cell.rjust(size) for cell, size in zip(others, wide[1:], strict=True))]
        print('  '.join(cells).rstrip())
    print()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written under another name, and give it its own once it is whole."""
    part = path.with_name(f'{path.name}.part')
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    print(f'written: {path}')


def save(figure: Any, path: Path) -> None:
    """Write a picture and close it."""
    write_whole(path, lambda part: figure.savefig(part, dpi=110, format='png'))
    plt.close(figure)
