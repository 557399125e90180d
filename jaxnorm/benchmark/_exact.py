"""Activations as they are defined, in mpmath: what accuracy is measured against.

A definition is written for one number, by the letter of the formula but without cancellation where mpmath's digits
would not suffice. It knows nothing of the kernels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mpmath as mp
import numpy as np

#: decimal digits of the arithmetic
DIGITS = 40


@dataclass(frozen=True)
class Exact:
    """An activation: value and slope, functions of a number and of hyperparameters by name.

    `samples` are the hyperparameters to measure with; `roots` are zeros of the slope (and of the value, 0 excepted) at
    the default ones, where relative errors show; `edges` are points round which to look closely as well.
    """

    value: Callable[..., Any]
    slope: Callable[..., Any]
    samples: tuple[Mapping[str, Any], ...] = ({},)
    roots: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def at(self, given: Mapping[str, Any], dtype: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        """(value, slope) for hyperparameters as a kernel sees them, rounded to `dtype`."""
        hyper = {
            name: mp.mpf(float(np.dtype(dtype).type(v))) if isinstance(v, float) else v
            for name, v in {**self.defaults, **given}.items()
        }
        return lambda x: self.value(x, **hyper), lambda x: self.slope(x, **hyper)


def logistic(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + mp.exp(-x)) if x > 0 else mp.exp(x) / (1 + mp.exp(x))


def log1p_exp(x: Any) -> Any:
    """log(1 + exp(x))."""
    return x + mp.log1p(mp.exp(-x)) if x > 0 else mp.log1p(mp.exp(x))


def normal_below(x: Any) -> Any:
    """The normal distribution function."""
    return mp.erfc(-x / mp.sqrt(2)) / 2


def normal_density(x: Any) -> Any:
    """The normal density."""
    return mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi)


def _steepness(x: Any) -> tuple[Any, Any]:
    """The exponent of the tanh form of gelu, and its derivative."""
    a, b = 2 * mp.sqrt(2 / mp.pi), mp.mpf('0.044715')
    return a * (x + b * x**3), a * (1 + 3 * b * x * x)


def _gelu(x: Any, approximate: bool) -> Any:
    return x * logistic(_steepness(x)[0]) if approximate else x * normal_below(x)


def _gelu_slope(x: Any, approximate: bool) -> Any:
    if not approximate:
        return normal_below(x) + x * normal_density(x)
    t, rise = _steepness(x)
    return logistic(t) * (1 + x * rise * logistic(-t))


_LAMBDA, _ALPHA = mp.mpf('1.0507009873554804934193349852946'), mp.mpf('1.6732632423543772848170429916717')
_ZERO, _ONE = mp.mpf(0), mp.mpf(1)

EXACT: dict[str, Exact] = {
    'relu': Exact(lambda x: max(x, _ZERO), lambda x: mp.mpf(x > 0)),
    'relu6': Exact(lambda x: min(max(x, _ZERO), mp.mpf(6)), lambda x: mp.mpf(0 < x < 6), edges=(6.0,)),
    'leaky_relu': Exact(
        lambda x, negative_slope: x if x > 0 else negative_slope * x,
        lambda x, negative_slope: _ONE if x > 0 else negative_slope,
        ({}, {'negative_slope': 0.3}),
        defaults={'negative_slope': 0.01},
    ),
    'elu': Exact(
        lambda x, alpha: x if x > 0 else alpha * mp.expm1(x),
        lambda x, alpha: _ONE if x > 0 else alpha * mp.exp(x),
        ({}, {'alpha': 0.75}, {'alpha': 2.0**20}),  # the last: alpha * exp(x) is normal where exp(x) is not
        defaults={'alpha': 1.0},
    ),
    'selu': Exact(
        lambda x: _LAMBDA * (x if x > 0 else _ALPHA * mp.expm1(x)),
        lambda x: _LAMBDA * (1 if x > 0 else _ALPHA * mp.exp(x)),
    ),
    'gelu': Exact(
        _gelu,
        _gelu_slope,
        ({}, {'approximate': True}),
        roots=('-0.7517915246935644574579049', '-0.7524614220710162584879544'),
        defaults={'approximate': False},
    ),
    'silu': Exact(
        lambda x: x * logistic(x),
        lambda x: logistic(x) * (1 + x * logistic(-x)),
        roots=('-1.278464542761073795109359',),
    ),
    'sigmoid': Exact(logistic, lambda x: logistic(x) * logistic(-x)),
    'log_sigmoid': Exact(lambda x: -log1p_exp(-x), lambda x: logistic(-x)),
    'tanh': Exact(mp.tanh, lambda x: mp.sech(x) ** 2),
    'softplus': Exact(
        lambda x, beta: log1p_exp(beta * x) / beta,
        lambda x, beta: logistic(beta * x),
        ({}, {'beta': 0.03125}, {'beta': 2.75}, {'beta': 40.0}),
        defaults={'beta': 1.0},
    ),
}
