"""EvoNorm: norms with an activation in them, found by search."""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from .. import _checks
from .._typing import Activation, Array, ArrayLike, AxisGroups, AxisName
from . import _moments
from ._elementary import product
from ._gated import swish
from ._kernel import kernel
from ._moments import Pool, SegmentPool, wide
from ._normalization import (
    _NORM,
    _affine,
    _channels,
    _epsilon,
    _keep_moments,
    _parameter,
    _parameters,
    _pool,
    _split,
    _then,
)
from ._products import Pair, add, divided, rounded, single, spread_power
from ._response import _images, _parted


def _variance_and(epsilon: float, values: Array, pool: Pool | SegmentPool, mask: Array | None) -> Pair:
    return _moments.variance_and(epsilon, values, pool, mask, pool.size(values, mask))


@jax.custom_jvp
def _quotient(x: Array, v: Array, size: Array) -> Array:
    """x / (v x + size), whose derivatives don't cancel where `x` is large."""
    return x / (v * x + size)


@_quotient.defjvp
def _quotient_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    x, v, size = primals
    dx, dv, dsize = tangents
    below = add(Pair(*product(x, v)), single(size))
    q = divided(single(jnp.ones_like(size)), below)

    def over_square(a: Array) -> Array:  # one after the other, so that nothing underflows
        once, rest = product(a, q.head)
        twice, little = product(once, q.head)
        return twice + (little + ((rest + a * q.tail) * q.head + once * q.tail))

    return cast(Array, _quotient(x, v, size)), over_square(size) * dx - over_square(x) * (dsize + x * dv)


def _b0(
    op: str,
    x: Any,
    var: Any,
    v: Any,
    scale: Any,
    bias: Any,
    axis: Any,
    epsilon: Any,
    where: Any,
    activation: Any,
    names: tuple[Any, Any] = (None, None),
) -> tuple[Array, Array]:
    """(y, variance of the batch) with the variance given, or None to take it."""
    shape, channel = x.shape, (_channels(op, x, axis),)
    parameters = [_parameter(op, n, a, shape, channel) for n, a in (('var', var), ('v', v))]
    parameters += _parameters(op, scale, bias, shape, channel)
    x, _, mask, _, pool, (var, v, scale, bias), seen = _images(op, x, axis, where, (None, None), parameters)
    batch, least = _pool(op, (0, *pool.axes), *names), _epsilon(op, epsilon)
    if var is None and mask is None:
        _checks.several(op, batch.range(x)[0], shape, channel, 'evonorm_b0 with a given variance')

    @_keep_moments
    def divide(
        x: Array, scale: Array | None, bias: Array | None, mask: Array | None, var: Array | None, v: Array
    ) -> tuple[Array, Array]:
        values = wide(x, mask)

        @jax.jit  # by itself, so that its small part of the slope is summed before the large one comes to it
        def measure(values: Array) -> tuple[Array, Pair, Pair]:
            own = _variance_and(least, values, pool, mask)
            if var is not None:
                return wide(var), rounded(wide(var), jnp.asarray(least, own.head.dtype)), own
            count = batch.size(values, mask)
            shown = _moments.compute(values, batch, mask, count).reported(count)[1]
            return shown, _variance_and(least, values, batch, mask), own

        shown, *squares = measure(values)
        most, own = (spread_power(0.5, s, values.shape) for s in squares)
        within = v * values + own > most
        ratio = jnp.where(
            within,
            _quotient(jnp.where(within, values, 0), v, jnp.where(within, own, 1)),
            values / jnp.where(most == 0, 1, most),
        )
        y = _affine(jnp.where(within | (most != 0), ratio, 0), scale, bias)
        return (y if mask is None else jnp.where(mask, y, 0)).astype(x.dtype), shown

    y, var = _then(divide, op, activation, seen=seen)(x, scale, bias, mask, var, v)
    return y, var.reshape(-1)


@kernel(unit_in={'var': 2}, unit_out=0, family=_NORM)
def evonorm_b0(
    x: ArrayLike,
    var: ArrayLike,
    v: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
    activation: Activation | None = None,
) -> Array:
    r"""EvoNorm B0 with a given variance of the batch, as while evaluating.

    .. math:: y = \frac{x}{\max\left(\sqrt{\sigma_c^2 + \epsilon}, \; v x + \sqrt{\sigma_{nc}^2 + \epsilon}\right)} \,
        \gamma + \beta

    Parameters
    ----------
    x : array, batch first
        Real numbers; integers become the default float. A Quantity may have any unit.
    var : array
        The variance of each channel over the batch, :math:`\sigma_c^2`, in the square of the unit of `x`.
    v : array
        The weight of `x` beside the deviation of its own sample, one for each channel, ones at first in a model.
    axis : int
        The channels; the first axis is the batch.
    epsilon : float
        Added to both variances, in the square of the unit of `x`.

    Notes
    -----
    The variance of each channel of each sample, :math:`\sigma_{nc}^2`, is that of `x` in both phases, taken in at least
    float32 from values centred twice: for mean/std up to 1e6 the result and its gradient are within 2e-7 (float32). The
    backward pass keeps `x`, four numbers a channel of a sample and the parameters. Where the denominator is 0, at
    epsilon 0, the result is the bias and gradients are finite. It is not centred: a constant channel stays one.

    References
    ----------
    Liu, Brock, Simonyan & Le, "Evolving normalization-activation layers", 2020, arXiv:2004.02967.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> F.evonorm_b0(jnp.array([[-3.0], [4.0]]), jnp.ones(1), jnp.ones(1), epsilon=0.0).tolist()
    [[-3.0], [1.0]]
    """
    return _b0('evonorm_b0', x, var, v, scale, bias, axis, epsilon, where, activation)[0]


@kernel(unit_out=(0, 2), family=_NORM)
def evonorm_b0_fit(
    x: ArrayLike,
    v: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    activation: Activation | None = None,
) -> tuple[Array, Array]:
    r"""EvoNorm B0 by the batch's own variance, as while fitting.

    .. math:: y = \frac{x}{\max\left(\sqrt{\sigma_c^2 + \epsilon}, \; v x + \sqrt{\sigma_{nc}^2 + \epsilon}\right)} \,
        \gamma + \beta

    Parameters
    ----------
    x : array, batch first
        Real numbers; integers become the default float. A Quantity may have any unit.
    v : array
        The weight of `x` beside the deviation of its own sample, one for each channel, ones at first in a model.
    axis : int
        The channels; the first axis is the batch.
    epsilon : float
        Added to both variances, in the square of the unit of `x`.
    axis_name, axis_index_groups : optional
        Named axes of a surrounding `jax.vmap` or `jax.shard_map` over which the batch is split.

    Returns
    -------
    y : array
        Shape and dtype of `x`, dimensionless.
    var : array
        The batch's variance, one a channel, at least float32, in the square of the unit of `x`; differentiable. nan
        where nothing counts.

    Notes
    -----
    Variances are taken in at least float32 from values centred twice: for mean/std up to 1e6 the result and its
    gradient are within 2e-7 (float32). The backward pass keeps `x`, four numbers a channel of a sample and a channel,
    and the parameters. Where the denominator is 0, at epsilon 0, the result is the bias and gradients are finite. It is
    not centred: a constant channel stays one.

    References
    ----------
    Liu, Brock, Simonyan & Le, "Evolving normalization-activation layers", 2020, arXiv:2004.02967.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> y, var = F.evonorm_b0_fit(jnp.array([[-3.0], [1.0]]), jnp.ones(1), epsilon=0.0)
    >>> y.tolist(), var.tolist()
    ([[-1.5], [0.5]], [4.0])
    """
    names = (axis_name, axis_index_groups)
    return _b0('evonorm_b0_fit', x, None, v, scale, bias, axis, epsilon, where, activation, names)


@kernel(family=_NORM)
def evonorm_s0(
    x: ArrayLike,
    v: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    axis: int = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    segment_ids: ArrayLike | None = None,
    activation: Activation | None = None,
) -> Array:
    r"""EvoNorm S0: each sample gated as by `swish`, over the deviation of its groups of channels.

    .. math:: y = \frac{x \, \mathrm{sigmoid}(v x)}{\sqrt{\sigma_{ng}^2 + \epsilon}} \, \gamma + \beta

    Parameters
    ----------
    x : array, batch first
        Real numbers, dimensionless; integers become the default float.
    v : array
        The sharpness of the gate, one for each channel, ones at first in a model.
    num_groups : int, optional
        The number of groups; it divides the number of channels.
    group_size : int, optional
        The number of channels in a group, in place of `num_groups`.
    axis : int
        The channels; the first axis is the batch.
    epsilon : float
        Added to the variance.

    Returns
    -------
    array
        Shape and dtype of `x`.

    Raises
    ------
    ValueError, TypeError
        For an axis that `x` does not have, a parameter or mask that does not fit, an epsilon that is no number from 0
        on, an unbound `axis_name`, an input without batch and channels or with a unit, or groups that do not divide the
        channels.

    Notes
    -----
    The variance is taken in at least float32 from values centred twice: for mean/std up to 1e6 the result and its
    gradient are within 2e-7 (float32). The backward pass keeps `x`, four numbers a group and the parameters. A constant
    group at epsilon 0 gives the bias, with finite gradients. `v` is one over a unit, so that a plain number for it
    would mean something else in another unit: an input with a unit is refused.

    References
    ----------
    Liu, Brock, Simonyan & Le, "Evolving normalization-activation layers", 2020, arXiv:2004.02967.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.array([[-100.0, 100.0, -200.0, 200.0]])
    >>> F.evonorm_s0(x, jnp.ones(4), num_groups=2)[0, 1::2].tolist()
    [1.0, 1.0]
    """
    op, shape = 'evonorm_s0', cast(Array, x).shape
    channel = (_channels(op, x, axis),)
    parameters = [_parameter(op, 'v', v, shape, channel), *_parameters(op, scale, bias, shape, channel)]
    groups = _checks.groups(op, x.shape[channel[0]], num_groups, group_size)
    x, at, mask, ids, pool, parameters, seen = _images(
        op, x, axis, where, (axis_name, axis_index_groups), parameters, segment_ids
    )
    x, mask, ids, v, scale, bias = (_split(groups, at, a) for a in (x, mask, ids, *parameters))
    pool = pool._replace(axes=tuple(sorted([*(a + (a > at) for a in pool.axes), at + 1])))
    least = _epsilon(op, epsilon)

    @_keep_moments
    def gate(
        x: Array, scale: Array | None, bias: Array | None, mask: Array | None, ids: Array | None, v: Array
    ) -> tuple[Array]:
        values = wide(x, mask)
        var = jax.jit(partial(_variance_and, least, pool=_parted(pool, ids), mask=mask))(values)
        rstd = spread_power(-0.5, var, values.shape)
        y = _affine(swish(values, v) * rstd, scale, bias)
        return ((y if mask is None else jnp.where(mask, y, 0)).astype(x.dtype),)

    return _then(gate, op, activation, seen=seen)(x, scale, bias, mask, ids, v)[0]
