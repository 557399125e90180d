"""Norms by the size of a response, without centring: of a vector, a neighbourhood, a filter, or all filters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from .. import _checks
from .._typing import Activation, Array, ArrayLike, Axes, AxisGroups, AxisName, Result
from . import _moments
from ._elementary import exact_product, number, power
from ._kernel import kernel
from ._moments import Pool, SegmentPool, Window, wide
from ._normalization import (
    _NORM,
    _affine,
    _channels,
    _epsilon,
    _keep_moments,
    _norm,
    _of_segments,
    _parameter,
    _parameters,
    _pool,
    _Seen,
    _Spec,
    _then,
)
from ._products import Pair, add, power_of_two, rounded, single, spread_power
from ._rectified import tlu


def _root(square: Array) -> Array:
    """The square root, with slope 0 at 0."""
    zero = square == 0  # which nan is not
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


class _Images(NamedTuple):
    """Samples of channels, with an axis to pool in any case, and what belongs to them in their rank."""

    x: Array
    channel: int
    mask: Array | None
    ids: Array | None
    pool: Pool  # of one channel of one sample
    parameters: list[Any]
    seen: _Seen


def _images(
    op: str,
    x: Any,
    axis: Any,
    where: Any,
    names: tuple[Any, Any],
    parameters: Sequence[Array | None],
    segment_ids: Any = None,
) -> _Images:
    channel = _channels(op, x, axis)
    mask, ids = _checks.mask(op, 'where', where, x.shape), _checks.segment_ids(op, segment_ids, x.shape)
    seen, arrays = _Seen(x.shape, _of_segments(mask, ids)), [x, mask, ids, *parameters]
    if x.ndim == 2:
        channel, arrays = 2, [None if a is None else a[:, None] for a in arrays]
    x, mask, ids, *parameters = arrays
    axes = [a for a in range(1, x.ndim) if a != channel]
    return _Images(x, channel, _of_segments(mask, ids), ids, _pool(op, axes, *names), parameters, seen)


def _parted(pool: Pool, ids: Array | None) -> Pool | SegmentPool:
    return pool if ids is None else SegmentPool(pool, ids)


@dataclass(frozen=True)
class _Neighbours:
    """What the channels round each one add up to: k + alpha times their mean square."""

    window: Window
    alpha: float
    k: float

    def base(self, x: Array, c: Array, times: float) -> Pair:
        """That of c x, over c**2, so many times."""
        square, lost = self.window.sum_of_squares(x)
        share, little = number(self.alpha / self.window.size * times, x.dtype)
        whole, part = exact_product(square, jnp.asarray(share, x.dtype))
        part = part + (square * little + lost * share)
        k, little = number(self.k * times, x.dtype)
        total = rounded(k * (1 / c) * (1 / c), whole)
        return Pair(total.head, total.tail + (part + little * (1 / c) * (1 / c)))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _weight(neighbours: _Neighbours, exponent: float, factor: float, x: Array, c: Array) -> Array:
    """The base to a power, times a factor; 0 where it is 0.

    All of a slope may be a multiple of it, so it is rounded once; the factor is part of the base for that.
    """
    least = math.log(1e12)
    within = abs(exponent) > 0.5 and factor != 0 and abs(math.log(abs(factor)) / exponent) < least
    times = abs(factor) ** (1 / exponent) if within else 1.0
    base, rest = neighbours.base(x, c, times)
    y = sum(power(jnp.where(base > 0, base, 1), jnp.where(base > 0, rest, 0), exponent))
    return jnp.where(base > 0, y * (math.copysign(1.0, factor) if within else factor), 0)


@_weight.defjvp
def _weight_jvp(
    neighbours: _Neighbours, exponent: float, factor: float, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, c), (dx, _) = primals, tangents
    slope = factor * exponent * 2 * neighbours.alpha / neighbours.window.size
    dy = neighbours.window.total(x * dx)
    dy = dy * _weight(neighbours, exponent - 1, slope, x, c) if slope else jnp.zeros_like(dy)
    return cast(Array, _weight(neighbours, exponent, factor, x, c)), dy


@kernel(family=_NORM)
def local_response_norm(
    x: ArrayLike,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    activation: Activation | None = None,
) -> Array:
    r"""Local response normalization: each channel by the mean square of the channels round it.

    .. math:: y_c = x_c \left(k + \frac{\alpha}{n} \sum_{j=c - \lfloor n/2 \rfloor}^{c + \lfloor (n-1)/2 \rfloor}
        x_j^2\right)^{-\beta}

    Parameters
    ----------
    x : array, any shape
        Real numbers, dimensionless; integers become the default float.
    size : int
        The number :math:`n` of neighbouring channels, itself among them. Beyond the first and the last are zeros.
    alpha : float
        The weight of the mean square, at least 0.
    beta : float
        The exponent.
    k : float
        What is added to the mean square, at least 0.
    axis : int
        The channels.

    Returns
    -------
    array
        Shape and dtype of `x`.

    Raises
    ------
    ValueError, TypeError
        For an axis that `x` does not have, a mask that does not fit, numbers out of range, or an input with a unit.

    Notes
    -----
    Definition and defaults are PyTorch's. TensorFlow's ``tf.nn.lrn`` does not divide the sum: its ``depth_radius=r,
    bias=b, alpha=a`` are ``size=2 * r + 1, k=b, alpha=a * (2 * r + 1)`` here, and its defaults are 5, 1, 1 and an
    exponent of 0.5. Masked channels count as zeros. Arithmetic is in at least float32, and squares neither over- nor
    underflow; the mean square and its power are carried in two parts, so that for mean/std up to 1e6 the result and its
    gradient are within 2e-7 (float32). The backward pass keeps `x` and one number for all channels together. Where `k`
    and all neighbours are 0, so is the result, with finite gradients. A value that is not finite makes its vector nan.
    The result is no pure number, so an input with a unit is refused.

    References
    ----------
    Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks", 2012, section
    3.3.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> F.local_response_norm(jnp.array([3.0, 4.0]), 2, alpha=2.0, beta=0.5, k=0.0).tolist()
    [1.0, 0.8]
    """
    op = 'local_response_norm'
    x = cast(Array, x)
    size, channel = _checks.integer(op, 'size', size), _checks.one_axis(op, 'axis', axis, x.ndim)
    alpha, k = (_checks.number(op, n, v, at_least=0) for n, v in (('alpha', alpha), ('k', k)))
    exponent = -_checks.number(op, 'beta', beta)

    neighbours = _Neighbours(_moments.Window(channel, size), alpha, k)

    @_keep_moments
    def respond(x: Array, scale: None, bias: None, mask: Array | None) -> tuple[Array]:
        values = wide(x, mask)
        # y(x; k) = c**(1 - 2 beta) y(x / c; k / c**2), for c = 1 unless squares would over- or underflow
        top = jnp.maximum(_moments.largest(values, Pool((channel,))), k**0.5)
        c = jnp.where((top > 1e-12) & (top < 1e12), 1, power_of_two(top))
        part = values / c
        y = part * (_weight(neighbours, exponent, 1.0, part, c) * c ** (1 + 2 * exponent))
        y = jnp.where(top < jnp.inf, y, jnp.nan)
        return (y.astype(x.dtype),)

    mask = _checks.mask(op, 'where', where, x.shape)
    return _then(respond, op, activation)(x, None, None, mask)[0]


def _unit(
    op: str, x: Any, scale: Any, axis: Any, epsilon: Any, where: Any, names: tuple[Any, Any], activation: Any
) -> Array:
    """x / max(|x|, epsilon) times the scale."""
    axes = _checks.axes(op, 'axis', axis, x.ndim)
    spec = _Spec(_pool(op, axes, *names), _epsilon(op, epsilon), centred=False, length=True)
    scale, mask = _parameter(op, 'scale', scale, x.shape, axes), _checks.mask(op, 'where', where, x.shape)
    return _then(partial(_norm, spec), op, activation)(x, scale, None, mask)[0]


@kernel(unit_out=0, family=_NORM)
def unit_norm(
    x: ArrayLike,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-12,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    activation: Activation | None = None,
) -> Array:
    r"""Unit norm, or L2 normalization: each vector by its length.

    .. math:: y = \frac{x}{\max(\lVert x \rVert_2, \epsilon)}

    Parameters
    ----------
    axis : int or tuple of int
        The axes along which the vectors lie.
    epsilon : float
        The least length, in the unit of `x`.

    Notes
    -----
    As `torch.nn.functional.normalize`. The length is taken of values times a power of two that brings the largest next
    to 1, so that it neither over- nor underflows for anything that float32 holds. Within 2e-7 (float32); the backward
    pass keeps `x` and two numbers a vector. Vectors of zeros give zeros and finite gradients, also at epsilon 0.

    References
    ----------
    Wang, Xiang, Cheng & Yuille, "NormFace: L2 hypersphere embedding for face verification", 2017, arXiv:1704.06369.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> F.unit_norm(jnp.array([3e30, 4e30])).tolist()
    [0.6, 0.8]
    """
    return _unit('unit_norm', x, None, axis, epsilon, where, (axis_name, axis_index_groups), activation)


@kernel(unit_out=0, family=_NORM)
def scale_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    activation: Activation | None = None,
) -> Array:
    r"""Scale norm: each vector by its length, times one number.

    .. math:: y = g \, \frac{x}{\max(\lVert x \rVert_2, \epsilon)}

    Parameters
    ----------
    scale : array, optional
        One number, at first the root of the size of `axis`; or anything that broadcasts to `x`. Dimensionless.
    axis : int or tuple of int
        The axes along which the vectors lie.
    epsilon : float
        The least length, in the unit of `x`.

    Notes
    -----
    `unit_norm` with a scale, and as accurate: the length neither over- nor underflows. The backward pass keeps `x` and
    two numbers a vector. Vectors of zeros give zeros and finite gradients, also at epsilon 0.

    References
    ----------
    Nguyen & Salazar, "Transformers without tears: improving the normalization of self-attention", 2019,
    arXiv:1910.05895.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> F.scale_norm(jnp.array([3.0, 4.0]), jnp.array(10.0)).tolist()
    [6.0, 8.0]
    """
    return _unit('scale_norm', x, scale, axis, epsilon, where, (axis_name, axis_index_groups), activation)


# it keeps a unit, but what an activation makes of a number depends on the unit that this counts
@kernel(unit_in={'bias': 1}, unit_out=lambda activation=None, **_: 1 if activation is None else None, family=_NORM)
def global_response_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    segment_ids: ArrayLike | None = None,
    activation: Activation | None = None,
) -> Result:
    r"""Global response normalization: each channel weighed by its share of the response, added to the input.

    .. math:: y = \gamma \, x \, N + \beta + x, \quad
        N_c = \frac{\lVert x_c \rVert_2}{\frac{1}{C} \sum_j \lVert x_j \rVert_2 + \epsilon}

    Parameters
    ----------
    x : array, batch first
        Real numbers; integers become the default float. A Quantity may have any unit, which is kept; where
        an activation follows it must be dimensionless.
    scale, bias : array, optional
        One value for each channel, or anything that broadcasts to `x`; both are zeros at first in a model. The bias
        has the unit of `x`.
    axis : int
        The channels; the first axis is the batch, and lengths are taken over all others.
    epsilon : float
        Added to the mean length, in the unit of `x`.

    Returns
    -------
    array
        Shape, dtype and unit of `x`.

    Notes
    -----
    Lengths are of values divided by the largest of the sample, in at least float32: they neither over- nor underflow.
    The backward pass keeps `x`, one number a channel of a sample and one a sample. A sample of zeros gives the bias,
    with finite gradients, also at epsilon 0. Without a scale it is 1.

    References
    ----------
    Woo et al., "ConvNeXt V2: co-designing and scaling ConvNets with masked autoencoders", 2023, arXiv:2301.00808.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> F.global_response_norm(jnp.array([[1.0, 3.0]]), jnp.array([2.0, 2.0]), epsilon=0.0).tolist()
    [[2.0, 12.0]]
    """
    op, shape = 'global_response_norm', cast(Array, x).shape
    parameters = [_parameter(op, n, v, shape, (_channels(op, x, axis),)) for n, v in (('scale', scale), ('bias', bias))]
    x, channel, mask, ids, pool, parameters, seen = _images(
        op, x, axis, where, (axis_name, axis_index_groups), parameters, segment_ids
    )
    channels, sample = Pool((channel,)), pool._replace(axes=tuple(range(1, x.ndim)))
    least = _epsilon(op, epsilon)

    @_keep_moments
    def respond(
        x: Array, scale: Array | None, bias: Array | None, mask: Array | None, ids: Array | None
    ) -> tuple[Array]:
        values, own = wide(x, mask), _parted(pool, ids)
        top = _moments.largest(values, _parted(sample, ids))
        square = _moments.mean_square(values / top, own, 1.0).var
        length = _root(square)
        counted = None if mask is None else cast(Array, own.size(x, mask)) > 0
        mean = _moments.mean_of(channels.total_in_steps(length), channels.size(length, counted)) + least / top
        y = values + _affine(values * jnp.where(mean == 0, 0, length / jnp.where(mean == 0, 1, mean)), scale, bias)
        return ((y if mask is None else jnp.where(mask, y, 0)).astype(x.dtype),)

    return _then(respond, op, activation, seen=seen)(x, *parameters, mask, ids)[0]


@kernel(unit_in={'learned_epsilon': 2}, unit_out=0, family=_NORM)
def filter_response_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    threshold: ArrayLike | None = None,
    learned_epsilon: ArrayLike | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    segment_ids: ArrayLike | None = None,
    activation: Activation | None = None,
) -> Array:
    r"""Filter response normalization, with its thresholded linear unit.

    .. math:: z = \max\left(\gamma \, \frac{x}{\sqrt{\nu^2 + \epsilon + |\epsilon_l|}} + \beta, \, \tau\right), \quad
        \nu_{nc}^2 = \frac{1}{S} \sum_s x_{nsc}^2

    Parameters
    ----------
    x : array, batch first
        Real numbers; integers become the default float. A Quantity may have any unit.
    threshold : array, optional
        The least result :math:`\tau`, one for each channel; without it there is no threshold.
    learned_epsilon : array, optional
        Its magnitude is added to `epsilon`, one for each channel: to be learned where a channel of a sample has few
        elements, or one.
    axis : int
        The channels; the first axis is the batch, and squares are taken over all others.
    epsilon : float
        Added to the mean square, in the square of the unit of `x`.

    Notes
    -----
    `instance_norm` without centring, then `tlu`. The mean square is taken in at least float32; the result is within
    2e-7 (float32). The backward pass keeps `x` and one number a channel of a sample, beside a zero. A channel of zeros
    gives the bias (or the threshold, if that is larger) and finite gradients, also at epsilon 0.

    References
    ----------
    Singh & Krishnan, "Filter response normalization layer: eliminating batch dependence in the training of deep neural
    networks", 2019, arXiv:1911.09737.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.array([[[-1.0], [1.0], [2.0], [-2.0]]])
    >>> F.filter_response_norm(x * 10, threshold=jnp.zeros(1)).round(3).ravel().tolist()
    [0.0, 0.632, 1.265, 0.0]
    """
    op, shape = 'filter_response_norm', cast(Array, x).shape
    channel = (_channels(op, x, axis),)
    more = [
        _parameter(op, n, v, shape, channel)
        for n, v in (('threshold', threshold), ('learned_epsilon', learned_epsilon))
    ]
    parameters = [*_parameters(op, scale, bias, shape, channel), *more]
    x, _, mask, ids, pool, parameters, seen = _images(
        op, x, axis, where, (axis_name, axis_index_groups), parameters, segment_ids
    )
    scale, bias, *more = parameters
    spec = _Spec(pool, _epsilon(op, epsilon), centred=False)

    @_keep_moments
    def respond(
        x: Array,
        scale: Array | None,
        bias: Array | None,
        mask: Array | None,
        ids: Array | None,
        bound: Array | None,
        extra: Array | None,
    ) -> tuple[Array]:
        if extra is None:
            y = _norm(spec, x, scale, bias, mask, ids)[0]
        else:
            values, own = wide(x, mask), _parted(pool, ids)
            square = single(_moments.kept(_moments.mean_of_squares(values, own, own.size(values, mask)).head))
            square = add(square, single(spec.epsilon + jnp.abs(wide(extra))))
            y = _affine(values * spread_power(-0.5, square, values.shape), scale, bias).astype(x.dtype)
        y = y if bound is None else tlu(y, bound.astype(y.dtype))
        return (y if mask is None else jnp.where(mask, y, 0),)

    return _then(respond, op, activation, seen=seen)(x, scale, bias, mask, ids, *more)[0]
