"""Bounded curves in place of a norm: no statistics, a learned slope, then scale and bias."""

import math
import numbers
from typing import Any

import jax.numpy as jnp

from .. import _checks, _docs
from .._typing import Activation, Array, ArrayLike, Axes
from . import _elementary as elementary
from ._gated import _DENSITY, _FAR, _FAR64, _NEAR, _NEAR64, _quotient
from ._kernel import elementwise, kernel
from ._normalization import _NORM, _parameter, _then
from ._sigmoidal import (
    _finite,
    _scaled_tanh,
    _scaled_tanh_by_scale,
    _scaled_tanh_by_slope,
    _scaled_tanh_slope,
)

#: What the docstrings below need not say.
_DYNAMIC = _docs.complete(
    r"""Of a curve in place of a norm.

Parameters
----------
x : array, any shape
    Real numbers, dimensionless; integers become the default float.
alpha : float or array, optional
    What `x` is multiplied with, in a model one learned number.
axis : int or tuple of int
    The channels, along which scale and bias lie.

Returns
-------
array
    Shape and dtype of `x`.

Raises
------
ValueError, TypeError
    For an input with a unit, an axis that `x` does not have, a parameter or mask that does not fit.
""",
    ('x', 'alpha', 'scale', 'axis', 'where', 'activation'),
    _NORM,
)


def _apply(
    op: str,
    curve: Any,
    x: Any,
    scale: Any,
    bias: Any,
    axis: Any,
    where: Any,
    activation: Any,
    **inner: Any,
) -> Array:
    """An elementwise curve with numbers, or arrays in the rank of `x`, for parameters."""
    axes = _checks.axes(op, 'axis', axis, x.ndim) if x.ndim else ()
    for name, value in inner.items():
        inner[name] = value if isinstance(value, numbers.Real) else _parameter(op, name, value, x.shape, axes)
        _checks.hyperparameter(op, name, inner[name])
    scale, bias = (_parameter(op, n, v, x.shape, axes) for n, v in (('scale', scale), ('bias', bias)))

    def bend(x: Array, scale: Array | None, bias: Array | None, mask: Array | None) -> tuple[Array]:
        y = curve(x if mask is None else jnp.where(mask, x, 0), *inner.values(), scale, bias)
        return (y if mask is None else jnp.where(mask, y, 0),)

    return _then(bend, op, activation)(x, scale, bias, _checks.mask(op, 'where', where, x.shape))[0]


def _one(scale: ArrayLike | None) -> ArrayLike:
    return 1.0 if scale is None else scale


def _with_bias(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias


@kernel(family=_DYNAMIC)
def dynamic_tanh(
    x: ArrayLike,
    alpha: ArrayLike = 0.5,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    where: ArrayLike | None = None,
    activation: Activation | None = None,
) -> Array:
    r"""Dynamic tanh (DyT): a bounded curve in place of a layer norm.

    .. math:: y = \gamma \tanh(\alpha x) + \beta

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64, of the larger of the
    two terms where scale and bias nearly cancel. The backward pass keeps `x` and the parameters. `alpha` is one over a
    unit, so that a plain number for it would mean something else in another unit: an input with a unit is refused.

    References
    ----------
    Zhu, Chen, He, LeCun & Liu, "Transformers without normalization", 2025, arXiv:2503.10622.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> F.dynamic_tanh(jnp.array([-jnp.inf, 0.0, jnp.inf]), bias=jnp.ones(3)).tolist()
    [0.0, 1.0, 2.0]
    """
    return _apply('dynamic_tanh', _tanh, x, scale, bias, axis, where, activation, alpha=alpha)


@elementwise
def _tanh(x: Any, alpha: ArrayLike, scale: ArrayLike | None, bias: Array | None) -> Array:
    return _with_bias(_scaled_tanh(x, _one(scale), alpha), bias)


@_tanh.derivative
def _tanh_slope(x: Array, alpha: ArrayLike, scale: ArrayLike | None, bias: Array | None) -> Array:
    return _scaled_tanh_slope(x, _one(scale), alpha)


@_tanh.derivative(by='alpha')
def _tanh_by_alpha(x: Array, alpha: ArrayLike, scale: ArrayLike | None, bias: Array | None) -> Array:
    return _scaled_tanh_by_slope(x, _one(scale), alpha)


@_tanh.derivative(by='scale')
def _tanh_by_scale(x: Array, alpha: ArrayLike, scale: ArrayLike | None, bias: Array | None) -> Array:
    return _scaled_tanh_by_scale(x, _one(scale), alpha)


@_tanh.derivative(by='bias')
def _tanh_by_bias(x: Array, alpha: ArrayLike, scale: ArrayLike | None, bias: Array | None) -> Array:
    return jnp.ones_like(x)


@kernel(family=_DYNAMIC)
def dynamic_erf(
    x: ArrayLike,
    alpha: ArrayLike = 0.5,
    shift: ArrayLike = 0.0,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    where: ArrayLike | None = None,
    activation: Activation | None = None,
) -> Array:
    r"""Dynamic erf (Derf): the error function in place of a layer norm.

    .. math:: y = \gamma \, \mathrm{erf}(\alpha x + s) + \beta

    Parameters
    ----------
    shift : float or array, optional
        What is added to ``alpha * x``, :math:`s`; in a model one learned number.

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64, of the larger of the
    two terms where scale and bias nearly cancel; ``alpha * x + shift`` is carried in two parts. The backward pass keeps
    `x` and the parameters. `alpha` is one over a unit, so that a plain number for it would mean something else in
    another unit: an input with a unit is refused.

    References
    ----------
    Chen, Lu, Zhu, Sun & Liu, "Stronger normalization-free Transformers", 2025, arXiv:2512.10938.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> F.dynamic_erf(jnp.array([-jnp.inf, 0.0, jnp.inf]), bias=jnp.ones(3)).tolist()
    [0.0, 1.0, 2.0]
    """
    return _apply('dynamic_erf', _derf, x, scale, bias, axis, where, activation, alpha=alpha, shift=shift)


def _argument(x: Array, alpha: ArrayLike, shift: ArrayLike) -> tuple[Array, Array]:
    """alpha * x + shift in two parts: half an ulp of a large one is many ulps of the slope."""
    head, tail = elementary.scaled(x, alpha)
    whole, part = elementary.exact_sum(head, tail)
    z, rest = elementary.exact_sum(whole, jnp.asarray(shift, x.dtype))
    return z, rest + part


def _bell(z: Array, rest: Array, times: ArrayLike) -> Array:
    """times * exp(-(z + rest)**2), multiplied out before the exponential can become subnormal."""
    shift = elementary.format_of(z).spare
    y = jnp.minimum(elementary.magnitude(z), 28.0 if z.dtype == jnp.float64 else 11.0)
    square, low = elementary.product(y, y)
    low = low + 2 * y * jnp.where(z < 0, -rest, rest)
    power, p = elementary.exp_parts(-square, -low, shift)
    part = power * times
    return (part + part * p) * 2.0**-shift


# With the two pieces of the normal distribution of which gelu is made: erf(z) = 1 - 2 Phi(-y), y = sqrt(2) |z|.
def _erf(z: Array, rest: Array) -> Array:
    double = z.dtype == jnp.float64
    total = z + rest
    small = jnp.clip(total, -0.6, 0.6)
    near = small * ((2 * math.sqrt(2)) * elementary.polynomial(2 * small * small, _NEAR64 if double else _NEAR))
    y = math.sqrt(2) * jnp.clip(elementary.magnitude(total), 0.4, 27.5 if double else 10.6)
    far = 1 - _bell(z, rest, 2 * (_DENSITY - _quotient(y, _FAR, _FAR64)) / y)
    return jnp.where(jnp.abs(total) < 0.5, near, jnp.where(total < 0, -far, far))


@elementwise
def _derf(x: Any, alpha: ArrayLike, shift: ArrayLike, scale: ArrayLike | None, bias: Array | None) -> Array:
    return _with_bias(_one(scale) * _erf(*_argument(x, alpha, shift)), bias)


_SLOPE = 2 / math.sqrt(math.pi)


@_derf.derivative
def _derf_slope(x: Array, alpha: ArrayLike, shift: ArrayLike, scale: ArrayLike | None, bias: Array | None) -> Array:
    return _bell(*_argument(x, alpha, shift), _SLOPE * (_one(scale) * alpha))


@_derf.derivative(by='alpha')
def _derf_by_alpha(x: Array, alpha: ArrayLike, shift: ArrayLike, scale: ArrayLike | None, bias: Array | None) -> Array:
    return _bell(*_argument(x, alpha, shift), _SLOPE * (_one(scale) * _finite(x)))


@_derf.derivative(by='shift')
def _derf_by_shift(x: Array, alpha: ArrayLike, shift: ArrayLike, scale: ArrayLike | None, bias: Array | None) -> Array:
    return _bell(*_argument(x, alpha, shift), _SLOPE * _one(scale))


@_derf.derivative(by='scale')
def _derf_by_scale(x: Array, alpha: ArrayLike, shift: ArrayLike, scale: ArrayLike | None, bias: Array | None) -> Array:
    return _erf(*_argument(x, alpha, shift))


@_derf.derivative(by='bias')
def _derf_by_bias(x: Array, alpha: ArrayLike, shift: ArrayLike, scale: ArrayLike | None, bias: Array | None) -> Array:
    return jnp.ones_like(x)
