"""Errors in units of the last place, against mpmath.

An error is |got - exact| / ulp(exact), the ulp being that of the dtype at the exact value; it counts wherever the exact
value is a normal number of that dtype. A nan counts as an infinite error.
"""

# Peers are measured where they are installed; type checking does without them.
# pyright: reportMissingImports=false

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

from .. import functional
from ._exact import DIGITS, EXACT, Exact
from ._measure import AbsentError, Case, Layer

#: what jaxnorm promises
LIMITS = {'float32': 4.0, 'float64': 8.0, 'bfloat16': 0.6, 'float16': 0.6}


@dataclass
class Accuracy:
    """The worst errors of a library's activation, in ulp, and where they are."""

    op: str
    dtype: str
    library: str
    value: float | None = None
    value_at: float | None = None
    slope: float | None = None
    slope_at: float | None = None
    note: str = ''


def grid(exact: Exact, hyper: Mapping[str, Any], dtype: Any, points: int = 1000) -> np.ndarray:
    """Numbers of `dtype`: all scales and signs, tails to where results go subnormal, the sides of roots and edges."""
    info, rng = jnp.finfo(dtype), np.random.default_rng(0)
    eps, tiny = float(info.eps), float(info.tiny)
    tail = -math.log(tiny)  # 87.3 in float32
    stretch = float(hyper.get('beta', 1.0))  # where a hyperparameter multiplies the argument
    corners = [0.3466, 0.7, 9.02, math.sqrt(2 * tail), tail / 2 + 0.7, tail, tail * 1.05, *exact.edges]
    near = []
    for at in [*(float(r) for r in exact.roots), *corners]:
        for centre in {at, -at, at / stretch, -at / stretch}:
            near.append(centre * (1 + eps * np.arange(-4, 5)))
            near.append(centre * (1 + rng.normal(size=12) * 10 ** rng.uniform(-6, -1, 12)))
    share = points // 10
    sign = rng.choice([-1.0, 1.0], 2 * share)
    x = np.concatenate(
        [
            rng.uniform(-4, 4, 3 * share),
            rng.uniform(-15, 15, 2 * share),
            rng.uniform(-1.06, 1.06, 2 * share) * tail / stretch,
            sign * 10 ** rng.uniform(-8, 2, 2 * share),
            sign[:share] * 2 ** rng.uniform(math.log2(tiny), min(20, math.log2(float(info.max))), share),
            *near,
        ]
    )
    with np.errstate(over='ignore'):
        x = np.unique(x.astype(jnp.dtype(dtype)))
    return x[np.isfinite(x.astype(np.float64))]


def ulps(got: Any, exact: Sequence[Any], dtype: Any) -> np.ndarray:
    """The error of each number."""
    info = jnp.finfo(dtype)
    tiny, largest, digits = float(info.tiny), float(info.max), int(info.nmant)
    out = []
    for g, e in zip(np.asarray(got, np.float64).ravel().tolist(), exact, strict=True):
        if not tiny <= abs(e) <= largest:
            out.append(0.0)
        elif math.isnan(g) or math.isinf(g):
            out.append(math.inf)
        else:
            exponent = mp.frexp(e)[1]  # e = m * 2**exponent, 1/2 <= m < 1
            out.append(float(abs(mp.mpf(g) - e) / mp.ldexp(1, exponent - digits - 1)))
    return np.array(out)


def exact_values(exact: Exact, hyper: Mapping[str, Any], x: np.ndarray) -> tuple[list[Any], list[Any]]:
    """Value and slope at each number."""
    value, slope = exact.at(hyper, x.dtype if x.dtype == np.float64 else np.float32)
    with mp.workdps(DIGITS):
        points = [mp.mpf(v) for v in x.astype(np.float64).tolist()]
        return [value(p) for p in points], [slope(p) for p in points]


def of_jax(layer: Layer) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Value and slope of a JAX function, jitted."""

    @jax.jit
    def both(x: Any) -> Any:
        y, pull = jax.vjp(layer, x)
        return y, pull(jnp.ones_like(y))[0]

    return both


def of_torch(layer: Layer) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Value and slope of a PyTorch function."""

    def both(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        narrow = x.dtype == jnp.bfloat16  # numpy has none
        t = torch.from_numpy(x.astype(np.float32) if narrow else np.array(x))
        t = (t.bfloat16() if narrow else t).requires_grad_()
        y = layer(t)
        (slope,) = torch.autograd.grad(y, t, torch.ones_like(y))
        return tuple(v.detach().double().numpy() for v in (y, slope))  # type: ignore[return-value]

    return both


def measure(case: Case, exact: Exact, hyper: Mapping[str, Any], points: int = 1000) -> Iterator[Accuracy]:
    """The rows of an activation: each library that has it."""
    wide = case.dtype == 'float64'
    with jax.enable_x64(wide):
        x = grid(exact, hyper, case.dtype, points)
        values, slopes = exact_values(exact, hyper, x)
        for library, factory in case.candidates.items():
            row = Accuracy(case.op, case.dtype, library)
            try:
                layer = factory()
            except AbsentError:
                continue
            except ImportError as error:
                row.note = f'not installed ({error.name or error})'
                yield row
                continue
            try:
                value, slope = (of_torch if library == 'torch' else of_jax)(layer)(x)
            except Exception as error:  # a peer that fails, in whatever way, is a line of the table and not its end
                if library == 'jaxnorm':
                    raise
                row.note = f'fails: {type(error).__name__}'
            else:
                with mp.workdps(DIGITS):
                    errors = [ulps(got, wanted, case.dtype) for got, wanted in ((value, values), (slope, slopes))]
                (row.value, row.value_at), (row.slope, row.slope_at) = (
                    (float(e.max()), float(x[int(e.argmax())])) for e in errors
                )
            yield row


def cases(timed: Mapping[str, Case], dtype: str) -> dict[str, Case]:
    """The activations that are timed and can be measured, and after them those that jaxnorm alone has."""
    known = {op: case for op, case in timed.items() if _of(op)[0] in EXACT}
    for name in EXACT.keys() - {_of(op)[0] for op in known}:
        own = {'jaxnorm': lambda name=name: partial(getattr(functional, name), **EXACT[name].samples[0])}
        known[name] = Case(name, (), dtype, lambda x: x, own)
    return dict(sorted(known.items(), key=lambda item: list(EXACT).index(_of(item[0])[0])))


def _of(op: str) -> tuple[str, Mapping[str, Any]]:
    """The name and the hyperparameters of an op as the benchmark knows it."""
    if op == 'gelu_tanh':
        return 'gelu', {'approximate': True}
    return op, EXACT[op].samples[0] if op in EXACT else {}


def of_case(case: Case, say: Callable[[str], None]) -> Iterator[Accuracy]:
    """The rows of an activation."""
    name, hyper = _of(case.op)
    say(f'{case.op} {case.dtype}')
    yield from measure(case, EXACT[name], hyper)


def table(rows: Sequence[Accuracy]) -> str:
    """A line an op, a column a library."""
    libraries = list(dict.fromkeys(row.library for row in rows))
    cells = {(row.op, row.library): _errors(row) for row in rows}
    lines = [['op', *libraries]]
    lines += [[op, *(cells.get((op, lib), '') for lib in libraries)] for op in dict.fromkeys(row.op for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join('  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _errors(row: Accuracy) -> str:
    if row.value is None or row.slope is None:
        return row.note
    return ' / '.join(f'{error:.1f}' if error < 1000 else f'{error:.0e}' for error in (row.value, row.slope))
