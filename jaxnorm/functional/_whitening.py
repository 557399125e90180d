"""Whitening: channels that are not only of variance one, but uncorrelated."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from .. import _checks
from .._typing import Activation, Array, ArrayLike, AxisGroups, AxisName
from . import _moments
from ._elementary import product
from ._kernel import kernel
from ._linear import linear
from ._moments import Pool, wide
from ._normalization import _NORM, _affine, _epsilon, _keep_moments, _parameters, _pool, _then
from ._products import Pair, add, inverse_root, power_of_two, rounded, single, times


def _rows(x: Array, channel: int) -> Array:
    """An array in the rank of the input as (elements of the batch, channels)."""
    moved = jnp.moveaxis(x, channel, -1)
    return moved.reshape(-1, moved.shape[-1])


def _back(y: Array, x: Array, channel: int) -> Array:
    moved = [s for a, s in enumerate(x.shape) if a != channel]
    return jnp.moveaxis(y.reshape(*moved, x.shape[channel]), -1, channel)


def _mask(op: str, where: Any, shape: tuple[int, ...], channel: int) -> Array | None:
    mask = _checks.mask(op, 'where', where, shape)
    if mask is None:
        return None
    if mask.shape[channel] != 1:
        raise ValueError(
            f'{op}: where must be the same for all channels, got the shape {mask.shape} with channels on axis '
            f'{channel}; give it size 1 there, for a covariance is taken over whole vectors.'
        )
    return jnp.broadcast_to(mask, [1 if a == channel else s for a, s in enumerate(shape)])


def _whiten(rows: Array, whitening: Pair) -> Array:
    """Rows times the matrix of each group of their channels."""
    parts = single(rows.reshape(-1, *whitening.head.shape[:2]))
    return times('rgc,gcd->rgd', parts, whitening).head.reshape(rows.shape)


def _diagonal(values: Array, size: int) -> Array:
    """Multiples of the identity."""
    return values[:, None, None] * jnp.eye(size, dtype=values.dtype)[None]


def _scaled(sigma: Array, rate: Array) -> Pair:
    """Covariances of values that are multiplied with a rate."""
    square, low = product(rate, rate)
    head, tail = product(sigma, jnp.broadcast_to(square, sigma.shape))
    return rounded(head, tail + sigma * low)


_dot = partial(times, 'gcd,gde->gce')


def _multiple(factor: float, x: Pair) -> Pair:
    """A power of two times a pair, which is exact."""
    return Pair(factor * x.head, factor * x.tail)


def _turned(x: Pair) -> Pair:
    return Pair(*(jnp.swapaxes(part, -1, -2) for part in x))


def _newton(sigma: Pair, steps: int) -> tuple[Pair, tuple[Pair, ...]]:
    """Newton's method for the inverse root of matrices of trace one, from the identity on; and all that it passes.

    What it goes on with is P, and R = P Sigma beside it: written as P**3 Sigma, rounding errors grow from step to step
    (Higham, "Functions of matrices", 2008, ch. 6). A step is S = (1 - P R) / 2, P + S P, R + R S.
    """
    one = single(jnp.broadcast_to(jnp.eye(sigma.head.shape[-1], dtype=sigma.head.dtype), sigma.head.shape))

    def iterate(parts: tuple[Pair, Pair], _: None) -> tuple[tuple[Pair, Pair], tuple[Pair, ...]]:
        p, root = parts
        step = _multiple(0.5, add(one, _multiple(-1, _dot(p, root))))
        return (add(p, _dot(step, p)), add(root, _dot(root, step))), (p, root, step)

    (p, _), passed = jax.lax.scan(iterate, (one, sigma), length=steps)
    return p, passed


@dataclass(frozen=True)
class _Newton:
    """The derivative of Newton's method, and its transpose: pairs as well, for each step adds to what the last left."""

    steps: int
    back: bool = False

    def __call__(self, residuals: Any, operands: Any) -> list[Array]:
        passed = _newton(Pair(*residuals), self.steps)[1]
        moved, still = single(operands[0]), single(jnp.zeros_like(operands[0]))

        def forward(moving: tuple[Pair, Pair], at: tuple[Pair, ...]) -> tuple[tuple[Pair, Pair], None]:
            (dp, droot), (p, root, step) = moving, at
            dstep = _multiple(-0.5, add(_dot(dp, root), _dot(p, droot)))
            dp = add(dp, add(_dot(dstep, p), _dot(step, dp)))
            return (dp, add(droot, add(_dot(droot, step), _dot(root, dstep)))), None

        def backward(moving: tuple[Pair, Pair], at: tuple[Pair, ...]) -> tuple[tuple[Pair, Pair], None]:
            (dp, droot), (p, root, step) = moving, map(_turned, at)
            dstep = _multiple(-0.5, add(_dot(dp, p), _dot(root, droot)))
            dp = add(dp, add(_dot(step, dp), _dot(dstep, root)))
            return (dp, add(droot, add(_dot(droot, step), _dot(p, dstep)))), None

        if self.back:
            return [jax.lax.scan(backward, (moved, still), passed, reverse=True)[0][1].head]
        return [jax.lax.scan(forward, (still, moved), passed)[0][0].head]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _inverse_root(sigma: Pair, steps: int) -> Pair:
    """The inverse root of matrices of trace one, after so many steps of Newton's method."""
    return _newton(sigma, steps)[0]


@_inverse_root.defjvp
def _inverse_root_jvp(steps: int, primals: tuple[Pair], tangents: tuple[Pair]) -> tuple[Pair, Pair]:
    (sigma,), (dsigma,) = primals, tangents
    moved = linear(_Newton(steps), _Newton(steps, back=True), [*sigma], [dsigma.head])[0]
    return cast(Pair, _inverse_root(sigma, steps)), single(moved)


def _whitening(sigma: Array, steps: int) -> tuple[Pair, Array]:
    """The inverse root of covariances as a matrix and a number for each group."""
    rtrace = inverse_root(jnp.trace(sigma, axis1=1, axis2=2))
    return _inverse_root(_scaled(sigma, rtrace[:, None, None]), steps), rtrace


class _Batch(NamedTuple):
    """A batch as rows of groups of channels, centred and multiplied with a power of two for each group."""

    d: Array
    unit: Array
    covariance: Array
    found: _moments.Moments
    size: Array | float


def _measure(x: Array, mask: Array | None, channel: int, groups: tuple[int, int], pool: Pool, least: float) -> _Batch:
    counted = None if mask is None else _rows(mask, channel)
    rows = wide(_rows(x, channel), counted)
    size = pool.size(rows[:, :1], counted)
    share = _moments.reciprocal(size)
    found = _moments.compute(rows, pool, counted, size)
    d = _moments.centre(rows, found.shift, counted)
    # squares stay in range, and nothing is rounded
    top = jnp.maximum(_moments.largest(d, pool).reshape(groups).max(1), least**0.5)
    unit = 1 / power_of_two(top)
    d = d.reshape(len(d), *groups) * unit[None, :, None]
    offset = found.offset.reshape(groups) * unit[:, None]
    covariance = _moments.covariance(d, offset, pool, share)
    d = d - offset[None] if counted is None else jnp.where(counted[..., None], d - offset[None], 0)
    return _Batch(d, unit, covariance, found, size)


@kernel(unit_in={'mean': 1, 'whitening': -1}, unit_out=0, family=_NORM)
def iterative_norm(
    x: ArrayLike,
    mean: ArrayLike,
    whitening: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    activation: Activation | None = None,
) -> Array:
    r"""Whitening with given statistics, as while evaluating.

    .. math:: y = W (x - \mu) \, \gamma + \beta

    Parameters
    ----------
    mean : array
        One value for each channel, in the unit of `x`.
    whitening : array, (groups, size, size)
        The matrix :math:`W` of each group of channels, in one over the unit of `x`.
    axis : int
        The channels; all other axes are the batch.
    where : bool array, optional
        What counts, broadcast to `x` with size 1 along the channels. Elsewhere the result is 0, and nothing there (nan
        included) touches any result or gradient.

    Raises
    ------
    ValueError, TypeError
        For an axis that `x` does not have, or a statistic, parameter or mask that does not fit.

    Notes
    -----
    Arithmetic is in at least float32, and products of matrices round once, on every device.

    References
    ----------
    Huang, Zhou, Zhu, Liu & Shao, "Iterative normalization: beyond standardization towards efficient whitening", 2019,
    arXiv:1904.03441.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> F.iterative_norm(jnp.array([[1.0, 2.0]]), jnp.ones(2), 2 * jnp.eye(2)[None]).tolist()
    [[0.0, 2.0]]
    """
    op, x = 'iterative_norm', cast(Array, x)
    channel = _checks.one_axis(op, 'axis', axis, x.ndim)
    size = x.shape[channel]
    mean, whitening = (_checks.floating(op, n, a) for n, a in (('mean', mean), ('whitening', whitening)))
    if mean.shape != (size,):
        raise ValueError(f'{op}: mean must have the shape {(size,)}, got {mean.shape}; give it one value a channel.')
    groups, *square = whitening.shape if whitening.ndim == 3 else (0,)
    if square != [size // max(groups, 1)] * 2 or groups * square[0] != size:
        raise ValueError(
            f'{op}: whitening must have the shape (groups, size, size) for {size} channels, got {whitening.shape}; '
            'pass what iterative_norm_fit returns.'
        )
    scale, bias = _parameters(op, scale, bias, x.shape, (channel,))
    mask = _mask(op, where, x.shape, channel)

    def whiten(x: Array, scale: Array | None, bias: Array | None, mask: Array | None) -> tuple[Array]:
        rows = _moments.centre(wide(_rows(x, channel)), wide(mean), None if mask is None else _rows(mask, channel))
        y = _affine(_back(_whiten(rows, single(wide(whitening))), x, channel), scale, bias)
        return ((y if mask is None else jnp.where(mask, y, 0)).astype(x.dtype),)

    return _then(whiten, op, activation)(x, scale, bias, mask)[0]


@kernel(unit_out=(0, 1, -1), family=_NORM)
def iterative_norm_fit(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    num_iterations: int = 5,
    axis: int = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    activation: Activation | None = None,
) -> tuple[Array, Array, Array]:
    r"""Iterative whitening (IterNorm) by the batch's own statistics, as while fitting.

    .. math:: y = \frac{P_T}{\sqrt{\mathrm{tr}\,\Sigma}} (x - \mu) \, \gamma + \beta, \quad
        P_0 = I, \quad P_k = \frac{1}{2} \left(3 P_{k-1} - P_{k-1}^3 \frac{\Sigma}{\mathrm{tr}\,\Sigma}\right), \quad
        \Sigma = \mathrm{cov}(x) + \epsilon I

    Parameters
    ----------
    num_groups : int, optional
        The number of groups of channels, each whitened by itself; it divides the number of channels.
    group_size : int, optional
        The number of channels in a group, in place of `num_groups`.
    num_iterations : int
        The number :math:`T` of steps of Newton's method: with few, directions of small variance stay small.
    axis : int
        The channels; all other axes are the batch.
    epsilon : float
        Added to the variances, in the square of the unit of `x`.
    where : bool array, optional
        What counts, broadcast to `x` with size 1 along the channels. Elsewhere the result is 0, and nothing there (nan
        included) touches any result or gradient.

    Returns
    -------
    y : array
        Shape and dtype of `x`, dimensionless.
    mean : array
        The batch's mean, one a channel, at least float32, in the unit of `x`.
    whitening : array, (groups, size, size)
        What the centred values of each group are multiplied with, in one over the unit of `x`. Both are differentiable,
        and nan where nothing counts.

    Raises
    ------
    ValueError, TypeError
        For an axis that `x` does not have, a parameter or mask that does not fit, an epsilon that is no number from 0
        on, an unbound `axis_name`, groups that do not divide the channels, or one value a channel.

    Notes
    -----
    Statistics are taken in at least float32 from values centred twice, and the steps of Newton's method are in pairs of
    floats, products of matrices rounding once: for mean/std up to 1e6 result and gradient are within 2e-7 (float32),
    and steps beyond those needed do no harm. The backward pass keeps `x`, the covariances and three numbers a channel.
    Constant channels give zeros (then the bias) and finite gradients, also at epsilon 0.

    References
    ----------
    Huang, Zhou, Zhu, Liu & Shao, "Iterative normalization: beyond standardization towards efficient whitening", 2019,
    arXiv:1904.03441.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.array([[3.0, 1.0], [-3.0, 1.0], [3.0, -1.0], [-3.0, -1.0]])
    >>> y, mean, whitening = F.iterative_norm_fit(x, num_groups=1, num_iterations=9)
    >>> (y.T @ y / 4).round(3).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    op, x = 'iterative_norm_fit', cast(Array, x)
    channel = _checks.one_axis(op, 'axis', axis, x.ndim)
    groups = _checks.groups(op, x.shape[channel], num_groups, group_size)
    steps, least = _checks.integer(op, 'num_iterations', num_iterations), _epsilon(op, epsilon)
    pool = _pool(op, (0,), axis_name, axis_index_groups)
    scale, bias = _parameters(op, scale, bias, x.shape, (channel,))
    mask = _mask(op, where, x.shape, channel)
    if mask is None:
        count, _ = pool.range(_rows(x, channel))
        _checks.several(op, count, x.shape, (channel,), 'iterative_norm with given statistics')

    @_keep_moments
    def fit(x: Array, scale: Array | None, bias: Array | None, mask: Array | None) -> tuple[Array, Array, Array]:
        batch = _measure(x, mask, channel, groups, pool, least)
        p, rtrace = _whitening(batch.covariance + _diagonal(least * batch.unit * batch.unit, groups[1]), steps)
        y = _back(times('rgc,gcd->rgd', single(batch.d), p).head.reshape(-1, x.shape[channel]), x, channel)
        # the root of the trace comes in with the scale
        rate = jnp.broadcast_to(rtrace[:, None], groups).reshape([-1 if a == channel else 1 for a in range(x.ndim)])
        y = _affine(y, rate if scale is None else rate * scale, bias)
        y = (y if mask is None else jnp.where(mask, y, 0)).astype(x.dtype)
        whitening, share = p.head * (rtrace * batch.unit)[:, None, None], _moments.reciprocal(batch.size)
        if not isinstance(share, float) or not share:
            whitening = jnp.where(jnp.reshape(share, ()) > 0, whitening, jnp.nan)
        return y, batch.found.reported(batch.size)[0].reshape(-1), whitening

    return _then(fit, op, activation)(x, scale, bias, mask)


# ---------------------------------------------------------------------------------------------------------------
# What modules keep of several batches.
# ---------------------------------------------------------------------------------------------------------------


@kernel(unit_in={'mean': 1, 'offset': 1, 'covariance': 2}, unit_out=(0, 1, 1, 2))
def accumulated(
    x: Array,
    count: Array,
    mean: Array,
    offset: Array,
    covariance: Array,
    *,
    axis: int,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
) -> tuple[Array, ...]:
    """(count, mean, offset, covariance) of what was seen and of one more batch; the mean is the sum of two numbers."""
    op, groups = 'accumulate_statistics', (covariance.shape[0], covariance.shape[1])
    channel = _checks.one_axis(op, 'axis', axis, x.ndim)
    mask, pool = _mask(op, where, x.shape, channel), _pool(op, (0,), axis_name, axis_index_groups)
    batch = _measure(x, mask, channel, groups, pool, 0.0)
    size = jnp.broadcast_to(jnp.asarray(batch.size, count.dtype), (1, 1)).reshape(1)
    more = _moments.Moments(*(m.reshape(mean.shape) for m in batch.found))
    seen = _moments.Moments(mean, offset, jnp.zeros_like(mean))
    total, merged = _moments.merge(count, seen, size, more)
    share = (size * _moments.reciprocal(total))[:, None, None]
    apart = ((more.shift - mean) + (more.offset - offset)).reshape(groups)
    between = share * apart[..., None] * ((1 - share) * apart[..., None, :])
    scaled = batch.covariance / batch.unit[:, None, None] / batch.unit[:, None, None]
    # as `merge` makes it of variances
    new = jnp.where(share > 0, share * scaled, 0) + jnp.where(share < 1, (1 - share) * covariance + between, 0)
    return total, merged.shift, merged.offset, jnp.where(total > 0, new, covariance)


@kernel
def whitening_of(covariance: Array, *, num_iterations: int, epsilon: float) -> Array:
    """The whitening matrices of covariances, as numbers."""
    top = jnp.maximum(jnp.sqrt(jnp.abs(covariance).max((1, 2))), epsilon**0.5)
    unit = 1 / power_of_two(jnp.where(top > 0, top, 1))
    sigma = (covariance * unit[:, None, None]) * unit[:, None, None]
    p, rtrace = _whitening(sigma + _diagonal(epsilon * unit * unit, covariance.shape[-1]), num_iterations)
    return p.head * (rtrace * unit)[:, None, None]
