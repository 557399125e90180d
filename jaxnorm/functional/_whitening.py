"""Whitening: channels that are not only of variance one, but uncorrelated."""

from typing import Any, cast

import jax
import jax.numpy as jnp

from .. import _checks
from .._typing import Array, ArrayLike, AxisGroups, AxisName
from . import _moments
from ._kernel import kernel
from ._moments import wide
from ._normalization import _NORM, _affine, _epsilon, _groups, _keep_moments, _parameters, _pool, _rstd


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


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _whiten(rows: Array, whitening: Array) -> Array:
    """Rows times the matrix of each group of their channels."""
    parts = rows.reshape(-1, *whitening.shape[:2])
    y = jnp.einsum('rgc,gcd->rgd', parts, whitening, precision=jax.lax.Precision.HIGHEST)
    return y.reshape(rows.shape)


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
    Arithmetic is in at least float32, and products of matrices are in full precision on every device.

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
    rows = _moments.centre(wide(_rows(x, channel)), wide(mean), None if mask is None else _rows(mask, channel))
    y = _affine(_back(_whiten(rows, wide(whitening)), x, channel), scale, bias)
    return (y if mask is None else jnp.where(mask, y, 0)).astype(x.dtype)


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
        For an axis that `x` does not have, a parameter or mask that does not fit, an epsilon that is no number
        from 0 on, an unbound `axis_name`,
        groups that do not divide the channels, or one value a channel.

    Notes
    -----
    Statistics are taken in at least float32 from values that are centred twice and divided by the root of the trace;
    products of matrices are in full precision on every device. For mean/std up to 1e6 result and gradient are within
    6e-7 (float32, 32 channels a group), and steps beyond those needed do no harm. The backward pass keeps `x`, the
    covariances and three numbers a channel. Constant channels give zeros (then the bias) and finite gradients, also at
    epsilon 0.

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
    groups = _groups(op, x, channel, num_groups, group_size)
    steps, least = _checks.integer(op, 'num_iterations', num_iterations), _epsilon(op, epsilon)
    pool = _pool(op, (0,), axis_name, axis_index_groups)
    scale, bias = _parameters(op, scale, bias, x.shape, (channel,))
    mask = _mask(op, where, x.shape, channel)
    if mask is None:
        count = pool.size(_rows(x, channel), None)
        _checks.several(op, count, x.shape, (channel,), 'iterative_norm with given statistics')

    @_keep_moments
    def fit(x: Array, scale: Array | None, bias: Array | None, mask: Array | None) -> tuple[Array, Array, Array]:
        counted = None if mask is None else _rows(mask, channel)
        rows = wide(_rows(x, channel), counted)
        share = _moments.reciprocal(pool.size(rows[:, :1], counted))
        found = _moments.compute(rows, pool, counted, share)
        trace = found.var.reshape(groups).sum(1) + groups[1] * least
        rtrace = _rstd(trace, 0.0)[:, None]
        d = _moments.centre(rows, found.shift, counted) - found.offset
        d = d if counted is None else jnp.where(counted, d, 0)
        d = d * jnp.broadcast_to(rtrace, groups).reshape(1, -1)
        one = jnp.eye(groups[1], dtype=d.dtype)
        sigma = _moments.covariance(d.reshape(-1, *groups), pool, share) + (least * rtrace * rtrace)[:, None] * one
        # P, and P Sigma beside it: written as P**3 Sigma, rounding errors grow from step to step (Higham 2008, ch. 6)
        p, root = jnp.broadcast_to(one, sigma.shape), sigma
        for _ in range(steps):
            step = 0.5 * (one - _product(p, root))
            p, root = p + _product(step, p), root + _product(root, step)
        y = _affine(_back(_whiten(d, p), x, channel), scale, bias)
        y = (y if mask is None else jnp.where(mask, y, 0)).astype(x.dtype)
        whitening = p * rtrace[:, None]
        if not isinstance(share, float) or not share:
            whitening = jnp.where(jnp.reshape(share, ()) > 0, whitening, jnp.nan)
        return (
            y,
            found.reported(share)[0].reshape(-1),
            whitening,
        )

    return fit(x, scale, bias, mask)
