"""Cheap stand-ins for activations: what they save in time and memory, and what they cost in exactness.

A quantized sigmoid, a piecewise linear tanh, a piecewise linear sigmoid and the hard swish, beside what they stand in
for, on a million numbers. `python -m jaxnorm.benchmark activations` measures more carefully, and other libraries too.

    python examples/cheap_activations.py
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _common import Options, plt, print_table, save, whole

from jaxnorm import functional as F

SIZE = (1000, 1000)


def sigmoid_in_a_byte(x: jax.Array) -> jax.Array:
    """The quantized sigmoid as it can be kept: one of 256 levels."""
    return jnp.round(255 * F.quantized_sigmoid(x, bits=8)).astype(jnp.uint8)


def from_byte(levels: jax.Array) -> jax.Array:
    """The number that a level stands for."""
    return levels.astype(jnp.float32) / 255


# name: (stand-in, what it stands in for, how its result is read)
CHEAP: dict[str, tuple[Callable[..., jax.Array], Callable[..., jax.Array], Callable[..., jax.Array]]] = {
    'quantized sigmoid': (F.quantized_sigmoid, F.sigmoid, lambda y: y),
    'quantized sigmoid, uint8': (sigmoid_in_a_byte, F.sigmoid, from_byte),
    'hard sigmoid': (F.hard_sigmoid, F.sigmoid, lambda y: y),
    'approximate tanh': (F.approximate_tanh, F.tanh, lambda y: y),
    'hard swish': (F.hard_silu, F.silu, lambda y: y),
    'relu': (F.relu, F.gelu, lambda y: y),
}


class Outcome(NamedTuple):
    """What a stand-in saves and costs."""

    seconds: float
    of_exact: float  # the seconds of what it stands in for
    apart: float  # the largest difference
    bytes: int
    dtype: str


def seconds(functions: Sequence[Callable[..., jax.Array]], x: jax.Array, repeats: int) -> list[float]:
    """The median time of each function; they take turns, so that what else runs disturbs all alike."""
    compiled = [jax.jit(f) for f in functions]
    for f in compiled:
        f(x).block_until_ready()
    taken = np.empty((repeats, len(compiled)))
    for turn in taken:
        for index, f in enumerate(compiled):
            started = time.perf_counter()
            f(x).block_until_ready()
            turn[index] = time.perf_counter() - started
    return np.median(taken, axis=0).tolist()


def main(arguments: Sequence[str] | None = None) -> dict[str, Outcome]:
    """Measure each stand-in, print what it saves and costs, and draw it beside what it stands in for."""
    parser = Options(__doc__)
    parser.add_argument('--repeats', type=whole(1, 10000), default=100, metavar='N', help='measurements of each')
    options = parser.read(arguments)
    x = jnp.asarray(np.random.default_rng(options.seed).standard_normal(SIZE), jnp.float32)
    outcomes = {}
    for name, (cheap, exact, read) in CHEAP.items():
        taken, of_exact = seconds((cheap, exact), x, options.repeats)
        result = cheap(x)
        apart = float(jnp.abs(read(result) - exact(x)).max())
        outcomes[name] = Outcome(taken, of_exact, apart, result.nbytes, str(result.dtype))

    device = jax.devices()[0].platform
    print(f'{x.size:,} numbers, {x.nbytes / 1e6:.0f} MB of {x.dtype}; {device}, median of {options.repeats}:')
    print_table(
        ['stand-in', 'for', 'ms', 'ms of that', 'ratio', 'largest difference', 'MB of the result', 'dtype'],
        [
            [name, CHEAP[name][1].__name__, f'{1e3 * o.seconds:.3f}', f'{1e3 * o.of_exact:.3f}',
             f'{o.seconds / o.of_exact:.2f}', f'{o.apart:.4f}', f'{o.bytes / 1e6:.0f}', o.dtype]
            for name, o in outcomes.items()
        ],
    )  # fmt: skip
    faster = [name for name, o in outcomes.items() if o.seconds < 0.9 * o.of_exact]
    smaller = [name for name, o in outcomes.items() if o.bytes < x.nbytes]
    print(f'Faster by a tenth or more: {", ".join(faster) or "none"}. Smaller: {", ".join(smaller) or "none"}.')
    draw(outcomes, options)
    return outcomes


def draw(outcomes: dict[str, Outcome], options) -> None:
    """Each stand-in and what it stands in for."""
    x = jnp.linspace(-5, 5, 501)
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.4))
    for cell, (name, (cheap, exact, read)) in zip(axes.flat, CHEAP.items(), strict=True):
        cell.plot(x, exact(x), label=exact.__name__)
        cell.plot(x, read(cheap(x)), '--', label=name)
        cell.set(title=f'{name}: up to {outcomes[name].apart:.3f} off', xlabel='input')
        cell.legend()
    save(figure, options.output / 'cheap_activations.png')


if __name__ == '__main__':
    main()
