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


def _serf(x: Any) -> Any:
    return x * mp.erf(log1p_exp(x))


def _serf_slope(x: Any) -> Any:
    s = log1p_exp(x)
    return mp.erf(s) + x * 2 / mp.sqrt(mp.pi) * mp.exp(-s * s) * logistic(x)


def _mean_at_infinity(wave: Any, x: Any, mean: int) -> Any:
    """A wave has no limit: its mean stands for one."""
    return mp.mpf(mean) if abs(x) > mp.mpf(10) ** 50 else wave(x)


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
    'prelu': Exact(
        lambda x, slope: x if x > 0 else slope * x,
        lambda x, slope: _ONE if x > 0 else slope,
        ({'slope': 0.25}, {'slope': -0.3}),
    ),
    'threshold': Exact(
        lambda x, threshold, value: x if x > threshold else value,
        lambda x, threshold, value: mp.mpf(x > threshold),
        ({'threshold': 0.1, 'value': 20.0}, {'threshold': -1.5, 'value': 0.3}),
        edges=(0.1, 1.5),
    ),
    'tlu': Exact(
        lambda x, threshold: max(x, threshold),
        lambda x, threshold: mp.mpf(x > threshold),
        ({'threshold': 0.1}, {'threshold': -1.5}),
        edges=(0.1, 1.5),
    ),
    'squared_relu': Exact(lambda x: max(x, _ZERO) ** 2, lambda x: 2 * max(x, _ZERO)),
    'star_relu': Exact(
        lambda x, scale, bias: scale * max(x, _ZERO) ** 2 + bias,
        lambda x, scale, bias: 2 * scale * max(x, _ZERO),
        ({}, {'scale': 1.0, 'bias': 0.0}, {'scale': 3.3, 'bias': 0.7}, {'scale': -0.3, 'bias': 0.7}),
        roots=('0.7071067811865475244008444', '1.527525231651946668268837'),
        edges=(0.7071067811865475, 1.5275252316519468),
        defaults={'scale': 0.8944, 'bias': -0.4472},
    ),
    'identity': Exact(lambda x: x, lambda x: _ONE),
    'hard_tanh': Exact(
        lambda x, min_value, max_value: min(max(x, min_value), max_value),
        lambda x, min_value, max_value: mp.mpf(min_value < x < max_value),
        ({}, {'min_value': -0.3, 'max_value': 2.7}),
        edges=(0.3, 1.0, 2.7),
        defaults={'min_value': -1.0, 'max_value': 1.0},
    ),
    'approximate_tanh': Exact(lambda x: min(max(x, -_ONE), _ONE), lambda x: mp.mpf(-1 < x < 1), edges=(1.0,)),
    'hard_sigmoid': Exact(
        lambda x: min(max(x + 3, _ZERO), mp.mpf(6)) / 6, lambda x: mp.mpf(-3 < x < 3) / 6, edges=(3.0,)
    ),
    'hard_silu': Exact(
        lambda x: x * min(max(x + 3, _ZERO), mp.mpf(6)) / 6,
        lambda x: _ZERO if x <= -3 else _ONE if x >= 3 else (2 * x + 3) / 6,
        roots=('-1.5',),
        edges=(3.0,),
    ),
    'hard_mish': Exact(
        lambda x: x * min(max(x + 2, _ZERO), mp.mpf(2)) / 2,
        lambda x: _ZERO if x <= -2 else _ONE if x >= 0 else x + 1,
        roots=('-1',),
        edges=(2.0,),
    ),
    'sparse_plus': Exact(
        lambda x: _ZERO if x <= -1 else x if x >= 1 else (x + 1) ** 2 / 4,
        lambda x: min(max(x + 1, _ZERO), mp.mpf(2)) / 2,
        edges=(1.0,),
    ),
    'sparse_sigmoid': Exact(
        lambda x: min(max(x + 1, _ZERO), mp.mpf(2)) / 2, lambda x: mp.mpf(-1 < x < 1) / 2, edges=(1.0,)
    ),
    'hard_shrink': Exact(
        lambda x, lambd: x if abs(x) > lambd else _ZERO,
        lambda x, lambd: mp.mpf(abs(x) > lambd),
        ({}, {'lambd': 1.3}),
        edges=(0.5, 1.3),
        defaults={'lambd': 0.5},
    ),
    'soft_shrink': Exact(
        lambda x, lambd: mp.sign(x) * max(abs(x) - lambd, _ZERO),
        lambda x, lambd: mp.mpf(abs(x) > lambd),
        ({}, {'lambd': 1.3}),
        edges=(0.5, 1.3),
        defaults={'lambd': 0.5},
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
    'swish': Exact(
        lambda x, beta: x * logistic(beta * x),
        lambda x, beta: logistic(beta * x) * (1 + beta * x * logistic(-beta * x)),
        ({}, {'beta': 0.03125}, {'beta': 2.75}, {'beta': 37.0}),
        roots=('-1.278464542761073795109359',),
        edges=(1.2784645427610738 / 0.03125, 1.2784645427610738 / 2.75, 1.2784645427610738 / 37),
        defaults={'beta': 1.0},
    ),
    'adaptive_swish': Exact(
        lambda x, alpha, beta: alpha * x * logistic(beta * x),
        lambda x, alpha, beta: alpha * logistic(beta * x) * (1 + beta * x * logistic(-beta * x)),
        ({}, {'alpha': 0.2, 'beta': 1.5}, {'alpha': -3.3, 'beta': 0.7}, {'alpha': 2.5, 'beta': -1.3}),
        roots=('-1.278464542761073795109359',),
        edges=(1.2784645427610738 / 1.5, 1.2784645427610738 / 0.7, 1.2784645427610738 / 1.3),
        defaults={'alpha': 1.0, 'beta': 1.0},
    ),
    'quick_gelu': Exact(
        lambda x: x * logistic(mp.mpf('1.702') * x),
        lambda x: logistic(mp.mpf('1.702') * x) * (1 + mp.mpf('1.702') * x * logistic(-mp.mpf('1.702') * x)),
        roots=('-0.7511542554412889512980956',),
    ),
    'mish': Exact(
        lambda x: x * mp.tanh(log1p_exp(x)),
        lambda x: mp.tanh(log1p_exp(x)) + x * mp.sech(log1p_exp(x)) ** 2 * logistic(x),
        roots=('-1.192431214515495212137588',),
    ),
    'lisht': Exact(lambda x: x * mp.tanh(x), lambda x: mp.tanh(x) + x * mp.sech(x) ** 2),
    'tanh_exp': Exact(
        lambda x: x * mp.tanh(mp.exp(min(x, 9))),  # 1 to a thousand digits from there on
        lambda x: mp.tanh(mp.exp(min(x, 9))) + x * mp.exp(min(x, 9)) * mp.sech(mp.exp(min(x, 9))) ** 2,
        roots=('-1.078860058464624056650667',),
    ),
    'serf': Exact(_serf, _serf_slope, roots=('-1.193059968928187966183286',)),
    'sigmoid': Exact(logistic, lambda x: logistic(x) * logistic(-x)),
    'log_sigmoid': Exact(lambda x: -log1p_exp(-x), lambda x: logistic(-x)),
    'tanh': Exact(mp.tanh, lambda x: mp.sech(x) ** 2),
    'softplus': Exact(
        lambda x, beta: log1p_exp(beta * x) / beta,
        lambda x, beta: logistic(beta * x),
        ({}, {'beta': 0.03125}, {'beta': 2.75}, {'beta': 40.0}),
        defaults={'beta': 1.0},
    ),
    'celu': Exact(
        lambda x, alpha: x if x > 0 else alpha * mp.expm1(x / alpha),
        lambda x, alpha: _ONE if x > 0 else mp.exp(x / alpha),
        ({}, {'alpha': 0.3}, {'alpha': 3.7}, {'alpha': 2.0**20}),  # the last: x is normal where x / alpha is not
        defaults={'alpha': 1.0},
    ),
    'exponential': Exact(mp.exp, mp.exp, edges=(88.7228,)),
    'squareplus': Exact(
        lambda x, b: (mp.sqrt(x * x + b) + x) / 2 if x > 0 else b / (mp.sqrt(x * x + b) - x) / 2,
        lambda x, b: b / (x * x + b + abs(x) * mp.sqrt(x * x + b)) / 2 if x < 0 else (1 + x / mp.sqrt(x * x + b)) / 2,
        ({}, {'b': 0.01}, {'b': 1.9}, {'b': 1e6}),
        defaults={'b': 4.0},
    ),
    'soft_sign': Exact(lambda x: x / (1 + abs(x)), lambda x: (1 + abs(x)) ** -2),
    'scaled_tanh': Exact(
        lambda x, scale, slope: scale * mp.tanh(slope * x),
        lambda x, scale, slope: scale * slope * mp.sech(slope * x) ** 2,
        ({}, {'slope': 3.3}, {'scale': 1000.0}),
        defaults={'scale': 1.7159, 'slope': 2 / 3},
    ),
    'time_decayed_tanh': Exact(
        lambda x, t, decay_rate: mp.exp(-decay_rate * t) * mp.tanh(x),
        lambda x, t, decay_rate: mp.exp(-decay_rate * t) * mp.sech(x) ** 2,
        ({'t': 3.0}, {'t': 0.3, 'decay_rate': 77.0}, {'t': -30.5}),
        defaults={'decay_rate': 0.1},
    ),
    'tanh_shrink': Exact(
        lambda x: x - mp.tanh(x) if abs(x) > 1e-6 else x**3 / 3 - 2 * x**5 / 15 + 17 * x**7 / 315,
        lambda x: mp.tanh(x) ** 2,
        edges=(0.8, 1.0),
    ),
    'snake': Exact(
        lambda x, frequency: x + mp.sin(frequency * x) ** 2 / frequency,
        lambda x, frequency: _mean_at_infinity(lambda x: 2 * mp.sin(frequency * x + mp.pi / 4) ** 2, x, 1),
        ({}, {'frequency': 0.5}),  # for others see test_smooth.py
        roots=('-0.7853981633974483096156608', '2.356194490192344928846983', '5.497787143782138167309626'),
        edges=(1.1656,),
        defaults={'frequency': 1.0},
    ),
    'sine': Exact(
        lambda x, frequency: _mean_at_infinity(lambda x: mp.sin(frequency * x), x, 0),
        lambda x, frequency: _mean_at_infinity(lambda x: frequency * mp.cos(frequency * x), x, 0),
        ({}, {'frequency': 0.25}),  # for others see test_smooth.py
        roots=('1.570796326794896619231322', '3.141592653589793238462643', '4.712388980384689857693965'),
        defaults={'frequency': 1.0},
    ),
}
