"""Activations and their derivatives from scratch: SELU, softplus, hard swish, ReLU and sigmoid, and how exact they are.

Each formula is written as in a textbook, with its derivative by hand, and made an activation by `jaxnorm.activation`,
which compares the derivative with automatic differentiation. Then textbook, library and PyTorch (where it is installed)
are held against float64, at usual numbers and at large ones. At the end batch norm with ReLU behind it, by hand.

    python examples/from_scratch.py
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _common import Options, plt, print_table, save

import jaxnorm
from jaxnorm import functional as F
from jaxnorm import nn

SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772  # of SELU, from its paper


def logistic(x):
    """1 / (1 + exp(-x)), which numpy and jax get right for all but very negative numbers."""
    return 1 / (1 + jnp.exp(-x))


# name: (formula, derivative), as one would write them down
TEXTBOOK: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    'relu': (lambda x: jnp.where(x > 0, x, 0), lambda x: jnp.where(x > 0, 1, 0)),
    'sigmoid': (logistic, lambda x: logistic(x) * (1 - logistic(x))),
    'selu': (
        lambda x: SCALE * jnp.where(x > 0, x, ALPHA * (jnp.exp(jnp.minimum(x, 0)) - 1)),
        lambda x: SCALE * jnp.where(x > 0, 1, ALPHA * jnp.exp(jnp.minimum(x, 0))),
    ),
    'softplus': (lambda x: jnp.log(1 + jnp.exp(x)), logistic),
    'hard_silu': (
        lambda x: x * jnp.clip(x + 3, 0, 6) / 6,
        lambda x: jnp.where(x <= -3, 0, jnp.where(x >= 3, 1, (2 * x + 3) / 6)),
    ),
}
RANGES = {'|x| < 5': 5.0, '|x| < 80': 80.0, '|x| < 1000': 1000.0}
TORCH = {'relu': 'relu', 'sigmoid': 'sigmoid', 'selu': 'selu', 'softplus': 'softplus', 'hard_silu': 'hardswish'}


class Errors(NamedTuple):
    """The largest relative errors of one implementation, one for each range."""

    value: list[float]
    slope: list[float]


def exact(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and slope in float64, without what a textbook loses."""
    x = x.astype(np.float64)
    e = np.exp(-np.abs(x))
    sigmoid = np.where(x > 0, 1, e) / (1 + e)
    below = np.minimum(x, 0)
    return {
        'relu': lambda: (np.maximum(x, 0), (x > 0) * 1.0),
        'sigmoid': lambda: (sigmoid, e / (1 + e) ** 2),
        'selu': lambda: (
            SCALE * np.where(x > 0, x, ALPHA * np.expm1(below)),
            SCALE * np.where(x > 0, 1, ALPHA * np.exp(below)),
        ),
        'softplus': lambda: (np.maximum(x, 0) + np.log1p(e), sigmoid),
        'hard_silu': lambda: (
            x * np.clip(x + 3, 0, 6) / 6,
            np.where(x <= -3, 0, np.where(x >= 3, 1, (2 * x + 3) / 6)),
        ),
    }[name]()


def of_jax(f: Callable[..., Any], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and slope of a function of jax."""
    return np.asarray(f(x)), np.asarray(jax.vmap(jax.grad(f))(x))


def of_torch(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and slope of PyTorch's function."""
    import torch  # pyright: ignore[reportMissingImports]  # compared with where it is installed

    given = torch.tensor(x, requires_grad=True)
    value = getattr(torch.nn.functional, TORCH[name])(given)
    value.sum().backward()
    return value.detach().numpy(), np.asarray(given.grad)


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest relative error where the exact result is a normal number; infinite where nan came out."""
    normal = np.abs(wanted) > 2 * np.finfo(np.float32).tiny
    apart = np.abs(got[normal] - wanted[normal]) / np.abs(wanted[normal])
    return float(np.where(np.isnan(apart), np.inf, apart).max())


def measure(name: str) -> dict[str, Errors]:
    """The errors of textbook, library and PyTorch."""
    formula, derivative = TEXTBOOK[name]
    ways = {
        'textbook': lambda x: of_jax(jaxnorm.activation(formula, derivative, name=name), x),
        'jaxnorm': lambda x: of_jax(getattr(F, name), x),
    }
    if importlib.util.find_spec('torch') is not None:
        ways['PyTorch'] = lambda x: of_torch(name, x)
    found = {}
    for way, both in ways.items():
        errors = Errors([], [])
        for limit in RANGES.values():
            x = np.linspace(-limit, limit, 20001, dtype=np.float32)
            for column, got, wanted in zip(errors, both(x), exact(name, x), strict=True):
                column.append(error(got, wanted))
        found[way] = errors
    return found


def batch_norm_by_hand(seed: int) -> tuple[float, float]:
    """Batch norm and ReLU by hand beside the layer: how far apart results and running statistics are at most."""
    x = np.random.default_rng(seed).normal(10, 5, (32, 10)).astype(np.float32)
    layer = nn.BatchNorm0d(10, momentum=0.9, activation='relu')  # a momentum of 0.1 where the share replaced is meant
    y = layer(x, fit=True)
    mean, var = x.mean(axis=0), x.var(axis=0)
    by_hand = np.maximum((x - mean) / np.sqrt(var + 1e-5), 0)
    running = np.stack([0.9 * 0 + 0.1 * mean, 0.9 * 1 + 0.1 * var])
    kept = np.stack([np.ravel(state.value) for state in (layer.running_mean, layer.running_var)])
    return float(np.abs(by_hand - y).max()), float(np.abs(running - kept).max())


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, Errors]]:
    """Print and draw the errors of each way to compute each activation."""
    options = Options(__doc__).read(arguments)
    points = np.array([-2, -1, 0, 1, 2], np.float32)
    value, slope = of_jax(jaxnorm.activation(*TEXTBOOK['relu'], name='relu'), points)
    print(f'ReLU of {points} is {value}, its slope {slope}.')
    far = np.array([-1000, -1, 0, 1, 1000], np.float32)
    print(f'Sigmoid of {far} is {of_jax(F.sigmoid, far)[0]}, its slope {of_jax(F.sigmoid, far)[1]}.\n')

    measured = {name: measure(name) for name in TEXTBOOK}
    print('The largest relative error, value / slope (float32 rounds at 6e-8):')
    print_table(
        ['activation', 'by', *RANGES],
        [
            [name, way, *(f'{value:.0e} / {slope:.0e}' for value, slope in zip(*errors, strict=True))]
            for name, ways in measured.items()
            for way, errors in ways.items()
        ],
    )
    for way in measured['relu']:
        bad = [name for name, ways in measured.items() if max(*ways[way].value, *ways[way].slope) > 1e-5]
        print(f'{way}: {"loses digits in " + ", ".join(bad) if bad else "right to five digits everywhere"}.')
    result, running = batch_norm_by_hand(options.seed)
    print(
        f'Batch norm with ReLU by hand differs from the layer by {result:.0e}, its running statistics by {running:.0e}.'
    )
    draw(options)
    return measured


def draw(options) -> None:
    """Each function and its slope, and where the textbook's value loses its digits."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2))
    near, wide = np.linspace(-5, 5, 501, dtype=np.float32), np.linspace(-80, 80, 1601, dtype=np.float32)
    for name, (formula, derivative) in TEXTBOOK.items():
        axes[0].plot(near, formula(near), label=name)
        axes[1].plot(near, derivative(near), label=name)
        wanted = exact(name, wide)[0]
        with np.errstate(divide='ignore', invalid='ignore'):
            apart = np.abs(np.asarray(formula(wide)) - wanted) / np.abs(wanted)
        axes[2].semilogy(wide, np.maximum(apart, 1e-9), '.', markersize=3, label=name)
    axes[0].set(title='value', xlabel='input', ylim=(-2, 5))
    axes[1].set(title='slope', xlabel='input')
    axes[2].set(title='relative error of the textbook formula', xlabel='input')
    axes[0].legend()
    axes[2].legend()
    save(figure, options.output / 'from_scratch.png')


if __name__ == '__main__':
    main()
