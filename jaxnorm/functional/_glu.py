"""Gated linear units: one array, or one half of it, times a function of the other.

All are one function of the two, computed and differentiated by `_gated`; what differs is the function of the gate.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from .. import _checks
from .._typing import Array, ArrayLike, Result
from . import _elementary as elementary
from ._gated import gelu, swish
from ._kernel import compute_dtype, elementwise, kernel
from ._rectified import relu
from ._sigmoidal import sigmoid


def _halves(op: str, x: Array, other: Array | None, axis: int) -> tuple[Array, Array]:
    """The two inputs: `x` and `other`, or the halves of `x`."""
    axis = _checks.one_axis(op, 'axis', axis, x.ndim)
    if other is None:
        if x.shape[axis] % 2:
            raise ValueError(
                f'{op}: x must have an even size on axis {axis} to be split in halves, got the shape {x.shape}; '
                'change that size, or pass the second half as another array, other.'
            )
        first, second = jnp.split(x, 2, axis)
        return first, second
    return x, other


def _other(op: str, x: Array, other: ArrayLike | None) -> Array | None:
    """The second array, checked."""
    if other is None:
        return None
    if isinstance(other, bool | int | float | str | tuple):
        raise TypeError(
            f'{op}: other must be an array of the shape of x, got {_checks.describe(other)}; '
            'name other arguments, for example axis=-1.'
        )
    other = _checks.floating(op, 'other', other)
    if other.shape != x.shape:
        raise ValueError(
            f'{op}: other must have the shape of x, {x.shape}, got {other.shape}; broadcast it first, '
            'or pass one array that holds both halves.'
        )
    return other


@elementwise
def _bell(x: ArrayLike, mean: ArrayLike, std: ArrayLike) -> Array:
    """exp(-((x - mean) / std)**2 / 2)."""
    scale, p, _, shift = _bell_parts(x, mean, std)
    return (scale + scale * p) * 2.0**-shift


@_bell.derivative
def _bell_slope(x: Array, mean: ArrayLike, std: ArrayLike) -> Array:
    scale, p, z, shift = _bell_parts(x, mean, std)
    factor = scale * (-z / std)
    return (factor + factor * p) * 2.0**-shift


def _bell_parts(x: Array, mean: ArrayLike, std: ArrayLike) -> tuple[Array, Array, Array, int]:
    """(scale, p, z, shift): the bell is scale * (1 + p) / 2**shift at z = (x - mean) / std.

    z and its square are carried in two parts: an ulp of z**2 / 2 near 87 is 64 ulp of the bell.
    """
    mean, std = jnp.asarray(mean, x.dtype), jnp.asarray(std, x.dtype)
    far = (15.0 if x.dtype == jnp.float32 else 39.5) * std
    x = jnp.clip(x, mean - far, mean + far)  # beyond it is 0; and infinity has no second part
    d = x - mean
    back = d - x
    rest = (x - (d - back)) - (mean + back)
    z = d / std
    whole, part = elementary.product(z, std)
    rest = (((d - whole) - part) + rest) / std
    square, square_rest = elementary.product(z, z)
    shift = elementary.format_of(x).spare
    return *elementary.exp_parts(-0.5 * square, -0.5 * square_rest - z * rest, shift), z + rest, shift


# What is saved is the inputs: gates are computed again in the backward pass, whose slope is that of their own rule.
def _gated(
    op: str,
    x: Array,
    other: ArrayLike | None,
    axis: int,
    gate: str,
    limit: float | None,
    function: Callable[..., Array],
    offset: float = 0.0,
    **arrays: Array,
) -> Array:
    """(linear + offset) * function(gate, **arrays)."""
    _checks.one_of(op, 'gate', gate, ('last', 'first'))
    limit = None if limit is None else _checks.hyperparameter(op, 'limit', limit, above=0)
    other = _other(op, x, other)

    def value(x: Array, other: Array | None, limit: Array | None, arrays: dict[str, Array]) -> Array:
        linear, gating = (a.astype(compute_dtype(x.dtype)) for a in _halves(op, x, other, axis))
        if gate == 'first':
            linear, gating = gating, linear
        for name, array in arrays.items():
            if not _checks.broadcasts(array.shape, gating.shape):
                raise ValueError(
                    f'{op}: {name} must broadcast to the shape of the gate {gating.shape}, got {array.shape}; '
                    'give it the size of the last axis, or 1 where it is shared.'
                )
        if limit is not None:  # by choice, so that the slope at the kinks is that of the flat side
            gating = jnp.where(gating >= limit, limit, gating)
            linear = jnp.where(linear >= limit, limit, jnp.where(linear <= -limit, -limit, linear))
        return ((linear + offset if offset else linear) * function(gating, **arrays)).astype(x.dtype)

    return jax.checkpoint(value, prevent_cse=False)(x, other, limit, arrays)


#: What the docstrings below need not say.
_GATE = r"""Of a gate.

Parameters
----------
x : array
    Dimensionless; one array that holds both halves, or with `other` the first of two.
other : array of the shape of `x`, optional
    The second of two arrays; the result is that of the two joined on `axis`, without the copy.
axis : int, optional
    The axis that is split in halves; of no account for two arrays.
gate : {'last', 'first'}
    Which of the two gates: with 'last' the first one is :math:`a` and the second :math:`b`.
limit : float, optional
    Clamps first: :math:`a` to [-limit, limit], and :math:`b` to at most `limit`.

Returns
-------
array
    Dtype of `x`; with one array half its size on `axis`.

Raises
------
TypeError
    If an argument is not an array of real numbers, or has a unit.
ValueError
    If the size of `x` on `axis` is odd, `other` has another shape, `gate` is neither of the two,
    or `limit` is not above 0.
"""


@kernel(family=_GATE)
def glu(
    x: ArrayLike,
    other: ArrayLike | None = None,
    axis: int = -1,
    gate: str = 'last',
    limit: float | None = None,
) -> Array:
    r"""Gated linear unit.

    .. math:: \mathrm{glu}(a, b) = a \, \mathrm{sigmoid}(b)

    where :math:`a` and :math:`b` are the halves of `x`, or `x` and `other`.

    Notes
    -----
    Within 1.5 ulp more than `sigmoid`, value and slopes, wherever the gate itself is a normal number.
    A slope at a limit is that of the flat side, 0. The backward pass keeps the input, or both.

    References
    ----------
    Dauphin, Fan, Auli and Grangier, "Language modeling with gated convolutional networks", arXiv:1612.08083.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> glu(jnp.array([2.0, 4.0, 0.0, jnp.inf])).tolist()
    [1.0, 4.0]
    >>> glu(jnp.array([2.0, 4.0]), jnp.array([0.0, jnp.inf])).tolist()
    [1.0, 4.0]
    """
    return _gated('glu', x, other, axis, gate, limit, sigmoid)


@kernel(family=_GATE)
def geglu(
    x: ArrayLike,
    other: ArrayLike | None = None,
    axis: int = -1,
    gate: str = 'last',
    limit: float | None = None,
    approximate: bool = False,
) -> Array:
    r"""Gated linear unit with `gelu` as the function of the gate.

    .. math:: \mathrm{geglu}(a, b) = a \, \mathrm{gelu}(b)

    where :math:`a` and :math:`b` are the halves of `x`, or `x` and `other`.

    Parameters
    ----------
    approximate : bool
        Use the tanh form of `gelu`.

    Notes
    -----
    Within 1.5 ulp more than `gelu`, value and slopes, wherever the gate itself is a normal number.
    A slope at a limit is that of the flat side, 0. The backward pass keeps the input, or both.

    References
    ----------
    Shazeer, "GLU variants improve transformer", arXiv:2002.05202.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> geglu(jnp.array([2.0, 4.0, 0.0, 20.0])).tolist()
    [0.0, 80.0]
    """
    approximate = _checks.flag('geglu', 'approximate', approximate)
    return _gated('geglu', x, other, axis, gate, limit, lambda b: gelu(b, approximate))


@kernel(unit_in={'other': 1, 'limit': 1}, unit_out=2, family=_GATE)
def reglu(
    x: ArrayLike,
    other: ArrayLike | None = None,
    axis: int = -1,
    gate: str = 'last',
    limit: float | None = None,
) -> Result:
    r"""Gated linear unit with `relu` as the function of the gate.

    .. math:: \mathrm{reglu}(a, b) = a \max(b, 0)

    where :math:`a` and :math:`b` are the halves of `x`, or `x` and `other`.

    Parameters
    ----------
    x : array, or Quantity
        A unit is squared; one array that holds both halves, or with `other` the first of two.
    limit : float, or Quantity, optional
        Clamps first: :math:`a` to [-limit, limit], and :math:`b` to at most `limit`. A number is in the unit of `x`.

    Returns
    -------
    array
        Dtype of `x`, its unit squared; with one array half its size on `axis`.

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers.

    Notes
    -----
    Rounded once. The slope where the gate is 0 is that of the flat side, 0.
    A slope at a limit is that of the flat side, 0. The backward pass keeps the input, or both.

    References
    ----------
    Shazeer, "GLU variants improve transformer", arXiv:2002.05202.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> reglu(jnp.array([2.0, 4.0, -1.0, 3.0])).tolist()
    [0.0, 12.0]
    """
    return _gated('reglu', x, other, axis, gate, limit, relu)


@kernel(family=_GATE)
def swiglu(
    x: ArrayLike,
    other: ArrayLike | None = None,
    axis: int = -1,
    gate: str = 'last',
    limit: float | None = None,
    alpha: float = 1.0,
    offset: float = 0.0,
) -> Array:
    r"""Gated linear unit with `swish` as the function of the gate.

    .. math:: \mathrm{swiglu}(a, b) = (a + \mathrm{offset}) \, b \, \mathrm{sigmoid}(\alpha b)

    where :math:`a` and :math:`b` are the halves of `x`, or `x` and `other`.

    Parameters
    ----------
    alpha : float, optional
        Sharpness :math:`\alpha` of the gate, above 0.
    offset : float, optional
        What is added to :math:`a`, clamped or not.

    Raises
    ------
    ValueError
        If the size of `x` on `axis` is odd, `other` has another shape, `gate` is neither of the two,
        or `limit` or `alpha` is not above 0.

    Notes
    -----
    Within 1.5 ulp more than `swish`, value and slopes, wherever the gate itself is a normal number.
    That of GPT-OSS is ``swiglu(x, limit=7.0, alpha=1.702, offset=1.0)``.
    A slope at a limit is that of the flat side, 0. The backward pass keeps the input, or both.

    References
    ----------
    Shazeer, "GLU variants improve transformer", arXiv:2002.05202.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> swiglu(jnp.array([2.0, 4.0, 0.0, 100.0])).tolist()
    [0.0, 400.0]
    >>> swiglu(jnp.array([9.0]), jnp.array([99.0]), limit=7.0, alpha=1.702, offset=1.0).round(2).tolist()
    [56.0]
    """
    alpha = _checks.number('swiglu', 'alpha', alpha, above=0)
    offset = _checks.number('swiglu', 'offset', offset)
    return _gated('swiglu', x, other, axis, gate, limit, lambda b: swish(b, alpha), offset=offset)


@kernel(unit_in={'other': 1, 'limit': 1}, unit_out=2, family=_GATE)
def bilinear(
    x: ArrayLike,
    other: ArrayLike | None = None,
    axis: int = -1,
    gate: str = 'last',
    limit: float | None = None,
) -> Result:
    r"""Gated linear unit without a function of the gate: the product.

    .. math:: \mathrm{bilinear}(a, b) = a \, b

    where :math:`a` and :math:`b` are the halves of `x`, or `x` and `other`.

    Parameters
    ----------
    x : array, or Quantity
        A unit is squared; one array that holds both halves, or with `other` the first of two.
    limit : float, or Quantity, optional
        Clamps first: :math:`a` to [-limit, limit], and :math:`b` to at most `limit`. A number is in the unit of `x`.

    Returns
    -------
    array
        Dtype of `x`, its unit squared; with one array half its size on `axis`.

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers.

    Notes
    -----
    Rounded once.
    A slope at a limit is that of the flat side, 0. The backward pass keeps the input, or both.

    References
    ----------
    Shazeer, "GLU variants improve transformer", arXiv:2002.05202.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> bilinear(jnp.array([2.0, 4.0, -1.0, 3.0])).tolist()
    [-2.0, 12.0]
    """
    return _gated('bilinear', x, other, axis, gate, limit, lambda b: b)


@kernel(family=_GATE)
def gaussian_glu(
    x: ArrayLike,
    other: ArrayLike | None = None,
    axis: int = -1,
    gate: str = 'last',
    limit: float | None = None,
    mean: ArrayLike = 0.0,
    std: ArrayLike = 1.0,
) -> Array:
    r"""Gated linear unit with a bell curve as the function of the gate: it is open round `mean`, and shut far from it.

    .. math:: \mathrm{gaussian\_glu}(a, b) = a \exp\left(-\frac{(b - \mathrm{mean})^2}{2\,\mathrm{std}^2}\right)

    where :math:`a` and :math:`b` are the halves of `x`, or `x` and `other`.

    Parameters
    ----------
    mean, std : float or array, optional
        Where the gate is open, and how far; std is above 0. An array broadcasts to :math:`b`, and can be
        differentiated with respect to.

    Raises
    ------
    ValueError
        If the size of `x` on `axis` is odd, `other` has another shape, `gate` is neither of the two,
        or `limit` or `std` is not above 0.

    Notes
    -----
    Within 4 ulp, value and slopes, wherever the gate itself is a normal number: distance and square are carried
    in two parts.
    A slope at a limit is that of the flat side, 0. The backward pass keeps the input, or both.

    References
    ----------
    Dauphin, Fan, Auli and Grangier, "Language modeling with gated convolutional networks", arXiv:1612.08083.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> gaussian_glu(jnp.array([2.0, 4.0, 0.0, jnp.inf])).tolist()
    [2.0, 0.0]
    """
    _checks.hyperparameter('gaussian_glu', 'mean', mean)
    _checks.hyperparameter('gaussian_glu', 'std', std, above=0)
    given = {'mean': mean, 'std': std}
    arrays = {n: _checks.floating('gaussian_glu', n, v) for n, v in given.items() if isinstance(v, jax.Array)}
    function = functools.partial(_bell, **{n: v for n, v in given.items() if n not in arrays})
    return _gated('gaussian_glu', x, other, axis, gate, limit, function, **cast(Any, arrays))
