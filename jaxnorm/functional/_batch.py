"""Batch normalization: with the batch's own statistics, with given ones, and what lies between."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from .. import _checks, _docs
from .._typing import Activation, Array, ArrayLike, Axes, AxisGroups, AxisName
from . import _moments
from ._kernel import kernel
from ._moments import Moments, Pool, wide
from ._normalization import _NORM, _affine, _epsilon, _norm, _parameter, _parameters, _pool, _Seen, _Spec, _then
from ._products import inverse_root

#: What the docstrings below need not say.
_BATCH = _docs.complete(
    r"""Of a batch norm.

Parameters
----------
running_mean, running_var : array
    Running averages of the batches' moments, one value a channel, in the unit of `x` and in its square.
axis : int or tuple of int
    The channels; all other axes are the batch.
activation : callable or str, optional
    A function of an array, or the name of one, that follows the norm; nothing of it is saved for the backward pass.

Returns
-------
y : array
    Shape and dtype of `x`, dimensionless.
mean, var : arrays
    The batch's moments, one a channel, at least float32, in the unit of `x` and in its square; differentiable.
    nan where nothing counts.

Raises
------
ValueError, TypeError
    For an axis that `x` does not have, a parameter or mask that does not fit, an epsilon that is no number
    from 0 on, an unbound `axis_name`, or one value a channel.
""",
    ('x', 'running_mean', 'scale', 'axis', 'epsilon', 'where', 'axis_name', 'activation'),
    _NORM,
)


class _Batch(NamedTuple):
    """A batch, what belongs to it in its rank, and what its statistics are taken over."""

    x: Array
    scale: Array | None
    bias: Array | None
    mask: Array | None
    channel: tuple[int, ...]
    pool: Pool

    def moments(self, x: Array) -> tuple[Array | float, Moments]:
        """How many elements there are a channel, and their moments."""
        size, values = self.pool.size(x, self.mask), wide(x, self.mask)
        return size, _moments.compute(values, self.pool, self.mask, size)

    def per_channel(self, op: str, argument: str, value: Any) -> Array:
        """A statistic in the rank of `x`, at least float32."""
        array = cast(Array, _parameter(op, argument, value, self.x.shape, self.channel))
        if array.shape != tuple(s if a in self.channel else 1 for a, s in enumerate(self.x.shape)):
            raise ValueError(
                f'{op}: {argument} must hold one value a channel, got the shape {jnp.shape(value)} for channels on '
                f'{self.channel} of the input shape {self.x.shape}; give it one value for each channel.'
            )
        return array


def _batch(op: str, x: Any, scale: Any, bias: Any, axis: Any, where: Any, names: tuple[Any, Any]) -> _Batch:
    channel = _checks.axes(op, 'axis', axis, x.ndim)
    pool = _pool(op, [a for a in range(x.ndim) if a not in channel], *names)
    return _Batch(
        x, *_parameters(op, scale, bias, x.shape, channel), _checks.mask(op, 'where', where, x.shape), channel, pool
    )


def _several(op: str, batch: _Batch) -> None:
    if batch.mask is None:
        count, _ = batch.pool.range(batch.x)
        _checks.several(op, count, batch.x.shape, batch.channel, 'batch_norm with given statistics')


@kernel(unit_in={'mean': 1, 'var': 2}, unit_out=0, family=_BATCH)
def batch_norm(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
    activation: Activation | None = None,
) -> Array:
    r"""Batch normalization with given statistics, as while evaluating.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \, \gamma + \beta

    Parameters
    ----------
    mean, var : array
        One value for each channel, in the unit of `x` and in its square.

    Returns
    -------
    array
        Shape and dtype of `x`, dimensionless.

    Notes
    -----
    Arithmetic is in at least float32. A variance of 0 at epsilon 0 gives the bias, not nan.

    References
    ----------
    Ioffe & Szegedy, "Batch normalization", 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.arange(4.0).reshape(2, 2)
    >>> F.batch_norm(x, jnp.ones(2), jnp.ones(2), epsilon=0.0).tolist()
    [[-1.0, 0.0], [1.0, 2.0]]
    """
    op = 'batch_norm'
    b = _batch(op, x, scale, bias, axis, where, (None, None))
    return _given(op, b, b.per_channel(op, 'mean', mean), b.per_channel(op, 'var', var), epsilon, activation)


def _given(op: str, b: _Batch, mean: Array, var: Array, epsilon: Any, activation: Any) -> Array:
    """A batch normalized by given statistics in its rank."""
    rstd = inverse_root(var + _epsilon(op, epsilon))

    def norm(x: Array, scale: Array | None, bias: Array | None, where: Array | None) -> tuple[Array]:
        y = _affine(_moments.centre(wide(x, where), mean, where) * rstd, scale, bias)
        return ((y if where is None else jnp.where(where, y, 0)).astype(x.dtype),)

    return _then(norm, op, activation)(b.x, b.scale, b.bias, b.mask)[0]


@kernel(unit_out=(0, 1, 2), family=_BATCH)
def batch_norm_fit(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    activation: Activation | None = None,
) -> tuple[Array, Array, Array]:
    r"""Batch normalization by the batch's own statistics, as while fitting.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \, \gamma + \beta

    Notes
    -----
    Statistics are taken in at least float32 from values centred twice: for mean/std up to 1e6 the result is within
    2e-7 (float32). The backward pass keeps `x` and two numbers a statistic. A constant channel gives zeros (then the
    bias) and finite gradients, also at epsilon 0.

    References
    ----------
    Ioffe & Szegedy, "Batch normalization", 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.arange(6.0).reshape(3, 2)
    >>> [m.tolist() for m in F.batch_norm_fit(x)[1:]]
    [[2.0, 3.0], [2.666..., 2.666...]]
    """
    op = 'batch_norm_fit'
    b = _batch(op, x, scale, bias, axis, where, (axis_name, axis_index_groups))
    _several(op, b)
    norm = partial(_norm, _Spec(b.pool, _epsilon(op, epsilon)))
    y, *found = _then(norm, op, activation)(b.x, b.scale, b.bias, b.mask)
    return y, *(m.squeeze(b.pool.axes) for m in found)


def _averaged(
    old: Sequence[Array], batch: Sequence[Array], weight: Any, count: Any, unbiased: bool
) -> tuple[list[Array], Array]:
    """(statistics, sound): running averages moved by the weight, and not at all by a batch that is not sound.

    Mean and variance, or others of which none is to be `unbiased`.
    """
    sound = jnp.all(jnp.asarray(count) > 1)
    for statistic in batch:
        sound &= jnp.isfinite(statistic).all()
    if unbiased:
        mean, var = batch
        batch = mean, var * (count / jnp.maximum(count - 1, 1))
    moved = [
        jnp.where(sound, _towards(o, b.reshape(o.shape).astype(o.dtype), weight), o)
        for o, b in zip(old, batch, strict=True)
    ]
    return moved, sound


def _towards(old: Array, new: Array, weight: Any) -> Array:
    """The average with this weight of what is new: all of it, whatever was there, even nan, where the weight is 1."""
    return jnp.where(weight == 1, new, old + weight * (new - old))


@kernel(unit_in={'running_mean': 1, 'running_var': 2}, unit_out=(0, 1, 2), family=_BATCH)
def batch_norm_update(
    x: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    fit: bool,
    momentum: float = 0.99,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    unbiased: bool = False,
    activation: Activation | None = None,
) -> tuple[Array, Array, Array]:
    r"""Batch normalization that takes its running statistics and returns them: a layer without states.

    .. math::
        y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \, \gamma + \beta, \qquad
        \bar\mu' = m \, \bar\mu + (1 - m) \, \mu, \quad \bar\sigma'^2 = m \, \bar\sigma^2 + (1 - m) \, \sigma^2

    While fitting, the statistics are the batch's; else they are the running ones, which then stay as they are.

    Parameters
    ----------
    fit : bool
        Whether to normalize by the batch and move the running statistics.
    momentum : float or array
        The share of the running statistics that is kept.
    unbiased : bool
        Whether the running variance is that of n - 1 degrees of freedom.

    Returns
    -------
    y : array
        Shape and dtype of `x`, dimensionless.
    running_mean, running_var : arrays
        In the shape in which they came, at least float32, in the unit of `x` and in its square.

    Notes
    -----
    A batch that is empty, masked out, not finite, or that a mask leaves with one value in some channel moves nothing.
    The gradient flows through `y` as in `batch_norm_fit`, with the same two numbers a statistic saved.

    References
    ----------
    Ioffe & Szegedy, "Batch normalization", 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.arange(6.0).reshape(3, 2)
    >>> y, mean, var = F.batch_norm_update(x, jnp.zeros(2), jnp.ones(2), fit=True, momentum=0.5)
    >>> mean.tolist()
    [1.0, 1.5]
    """
    op = 'batch_norm_update'
    old = (_checks.floating(op, 'running_mean', running_mean), _checks.floating(op, 'running_var', running_var))
    shapes = [o.shape for o in old]
    b = _batch(op, x, scale, bias, axis, where, (axis_name, axis_index_groups))
    mean, var = (b.per_channel(op, f'running_{n}', o) for n, o in zip(('mean', 'var'), old, strict=True))
    weight = 1 - _checks.hyperparameter(op, 'momentum', momentum, at_least=0, at_most=1)
    if _checks.flag(op, 'fit', fit):
        _several(op, b)
        norm = partial(_norm, _Spec(b.pool, _epsilon(op, epsilon)))
        y, *found = _then(norm, op, activation)(b.x, b.scale, b.bias, b.mask)
        count = b.pool.size(b.x, b.mask)
        (mean, var), _ = _averaged((mean, var), found, weight, count, _checks.flag(op, 'unbiased', unbiased))
    else:
        y = _given(op, b, mean, var, epsilon, activation)
    return y, mean.reshape(shapes[0]), var.reshape(shapes[1])


@kernel(unit_in={'running_mean': 1, 'running_var': 2}, unit_out=(0, 1, 2), family=_BATCH)
def batch_renorm_fit(
    x: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    rmax: float = 3.0,
    dmax: float = 5.0,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    activation: Activation | None = None,
) -> tuple[Array, Array, Array]:
    r"""Batch renormalization: by the batch's statistics, corrected towards the running ones.

    .. math::
        y = \left( \frac{x - \mu_c}{\sigma_c} r + d \right) \gamma + \beta, \qquad
        r = \operatorname{clip}\left(\frac{\sigma_c}{\bar\sigma_c}, \frac{1}{r_{max}}, r_{max}\right), \quad
        d = \operatorname{clip}\left(\frac{\mu_c - \bar\mu_c}{\bar\sigma_c}, -d_{max}, d_{max}\right)

    where :math:`\sigma_c` and :math:`\bar\sigma_c` are roots of a variance plus epsilon.

    Parameters
    ----------
    rmax : float or array
        The clip of r, at least 1; where it is 1 and `dmax` is 0, this is batch norm.
    dmax : float or array
        The clip of d, at least 0.

    Notes
    -----
    No gradient flows through r and d, as in the paper. Where neither is clipped, the result is that of `batch_norm`
    with the running statistics, and the gradient is that of `batch_norm_fit`. The backward pass keeps `x` and four
    numbers a channel.

    References
    ----------
    Ioffe, "Batch renormalization: towards reducing minibatch dependence in batch-normalized models", 2017,
    arXiv:1702.03275.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.arange(6.0).reshape(3, 2)
    >>> y, mean, var = F.batch_renorm_fit(x, jnp.full(2, 2.0), jnp.full(2, 4.0), epsilon=0.0)
    >>> y[:, 0].tolist()
    [-1.0, 0.0, 1.0]
    """
    op = 'batch_renorm_fit'
    b = _batch(op, x, scale, bias, axis, where, (axis_name, axis_index_groups))
    _several(op, b)
    mean, var = b.per_channel(op, 'running_mean', running_mean), b.per_channel(op, 'running_var', running_var)
    rmax = _checks.hyperparameter(op, 'rmax', rmax, at_least=1)
    dmax = _checks.hyperparameter(op, 'dmax', dmax, at_least=0)
    spec = _Spec(b.pool, _epsilon(op, epsilon))
    found = b.moments(jax.lax.stop_gradient(b.x))[1]
    rstd = inverse_root(var + spec.epsilon)
    r = jnp.clip(jnp.sqrt(found.var + spec.epsilon) * rstd, 1 / rmax, rmax)
    d = jnp.clip(((found.shift - mean) + found.offset) * rstd, -dmax, dmax)
    r, d = jax.lax.stop_gradient((r.astype(found.var.dtype), d.astype(found.var.dtype)))
    gain, shift = jnp.broadcast_arrays(_affine(r, b.scale, None), _affine(d, b.scale, b.bias))
    y, *moments = _then(partial(_norm, spec), op, activation)(b.x, gain, shift, b.mask)
    return y, *(m.squeeze(b.pool.axes) for m in moments)


@kernel(unit_out=(0, 1, 2), family=_BATCH)
def ghost_batch_norm_fit(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    virtual_batch_size: int,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    activation: Activation | None = None,
) -> tuple[Array, Array, Array]:
    r"""Ghost batch normalization: each part of the batch by its own statistics.

    .. math:: y = \frac{x - \mu_{gc}}{\sqrt{\sigma_{gc}^2 + \epsilon}} \, \gamma + \beta

    where g is one of the virtual batches, of `virtual_batch_size` samples that follow one another.

    Parameters
    ----------
    x : array, batch first
        Real numbers; integers become the default float. A Quantity may have any unit.
    virtual_batch_size : int
        Samples of a virtual batch. They are samples of the global batch, so that the result does not depend on the
        number of devices: neighbours are joined where one holds fewer.
    axis_name : optional
        Named axes of a surrounding `jax.vmap` or `jax.shard_map` over which the batch is split, in order.

    Returns
    -------
    y : array
        Shape and dtype of `x`, dimensionless.
    mean, var : arrays
        Averages of the moments of all virtual batches, weighted by what they hold, one a channel, at least float32,
        in the unit of `x` and in its square; differentiable. nan where nothing counts.

    Raises
    ------
    ValueError, TypeError
        For an axis that `x` does not have, a parameter or mask that does not fit, an epsilon that is no number from 0
        on, an unbound `axis_name`, one value a channel, or a size that divides neither the samples of a device nor,
        being a multiple of those, the global batch.

    Notes
    -----
    The variance is that within virtual batches, which is what the network is trained with. The backward pass keeps
    `x` and two numbers a statistic.

    References
    ----------
    Hoffer, Hubara & Soudry, "Train longer, generalize better: closing the generalization gap in large batch training
    of neural networks", 2017, arXiv:1705.08741.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.asarray([0.0, 2.0, 10.0, 14.0])[:, None]
    >>> y, mean, var = F.ghost_batch_norm_fit(x, virtual_batch_size=2, epsilon=0.0)
    >>> y.ravel().tolist(), mean.tolist(), var.tolist()
    ([-1.0, 1.0, -1.0, 1.0], [6.5], [2.5])
    """
    op = 'ghost_batch_norm_fit'
    b = _batch(op, x, scale, bias, axis, where, (axis_name, None))
    if 0 in b.channel:
        raise ValueError(
            f'{op}: axis must not be 0, which is the batch, got {axis}; move the channels to another axis.'
        )
    parts, name, groups = _virtual(op, b.x, b.pool.axis_name, virtual_batch_size)

    def split(t: Array | None) -> Array | None:
        if t is None or t.shape[0] != b.x.shape[0]:
            return None if t is None else t[None]
        return t.reshape(parts, -1 if t.size else virtual_batch_size, *t.shape[1:])

    pool = Pool((1, *(a + 1 for a in b.pool.axes if a)), name, groups)
    ghosts, mask = cast(Array, split(b.x)), split(b.mask)
    count = pool.size(ghosts, mask)
    if mask is None:
        _checks.several(op, pool.range(ghosts)[0], ghosts.shape[1:], b.channel, 'a larger virtual_batch_size')
    norm = partial(_norm, _Spec(pool, _epsilon(op, epsilon)))
    norm = _then(norm, op, activation, seen=_Seen(b.x.shape, b.mask))
    y, *found = norm(ghosts, split(b.scale), split(b.bias), mask)
    averages = _moments.average(list(found), count, Pool((0,), b.pool.axis_name))
    mean, var = (m.squeeze((0, *pool.axes)) for m in averages)
    return y, mean, var


def _virtual(op: str, x: Array, axis_name: AxisName | None, size: Any) -> tuple[int, AxisName | None, Any]:
    """How many virtual batches there are on this device, or over which groups of devices each of them lies."""
    size, here = _checks.integer(op, 'virtual_batch_size', size), x.shape[0]
    devices = 1 if axis_name is None else jax.lax.psum(1, axis_name)
    if here % size == 0:
        return here // size, None, None
    joined, rest = divmod(size, here)
    if rest or devices % joined:
        fitting = [n for n in range(1, here * devices + 1) if here % n == 0 or (n % here == 0 == devices * here % n)]
        raise ValueError(
            f'{op}: virtual_batch_size must divide the {here} samples of a device, or be a multiple of them that '
            f'divides the {here * devices} of all, got {size}; choose one of {fitting}.'
        )
    return 1, axis_name, tuple(tuple(range(i, i + joined)) for i in range(0, devices, joined))


# ---------------------------------------------------------------------------------------------------------------
# What modules keep between calls.
# ---------------------------------------------------------------------------------------------------------------


def count(op: str, x: ArrayLike, *, axis: Axes, where: Any, axis_name: Any, axis_index_groups: Any) -> Array | float:
    """How many elements there are a channel, on all devices: a number, or one for each channel under a mask."""
    mask = _checks.mask(op, 'mask', where, jnp.shape(x))  # as modules call it
    b = _batch(op, x, None, None, axis, mask, (axis_name, axis_index_groups))
    size = b.pool.size(b.x, b.mask)
    return size.squeeze(b.pool.axes) if isinstance(size, jax.Array) else float(size)


def place(op: str, n: int, axis_name: Any, axis_index_groups: Any) -> tuple[int, Array | int]:
    """How many samples all devices hold of which each has `n`, and the number of the first one here."""
    name = _checks.axis_name(op, axis_name)
    groups = _checks.axis_index_groups(op, axis_index_groups, name)
    if name is None:
        return n, 0
    here = jax.lax.axis_index(name)
    if groups is None:
        return n * int(jax.lax.psum(1, name)), here * n
    if len({len(group) for group in groups}) > 1:
        raise ValueError(
            f'{op}: axis_index_groups must be of one size where a batch is split among them, got {groups}; '
            'pass groups of equally many devices.'
        )
    places = {device: i for group in groups for i, device in enumerate(group)}
    return n * len(groups[0]), jnp.asarray([places[i] for i in sorted(places)])[here] * n


def average_weight(momentum: Any, step: Array | None, debias: bool) -> Any:
    """The share of a batch in a running average that it enters as the `step`-th, counted from 1.

    None weighs all batches alike. A debiased average is one whose weights add up to one over what it has seen: after
    the first batch it is that batch, whatever it held at first.
    """
    if momentum is None or (debias and momentum == 1):
        return 1 / jnp.maximum(cast(Array, step), 1).astype(jnp.float32)
    if not debias:
        return 1 - momentum
    kept = math.log(momentum) if momentum else -math.inf
    count = cast(Array, step).astype(jnp.float32)
    return jnp.where(count > 1, (1 - momentum) / -jnp.expm1(jnp.maximum(count, 1) * kept), 1)


@kernel(unit_in={'var': 2, 'running_mean': 1, 'running_var': 2}, unit_out=(1, 2, 0))
def running_average(
    mean: Array,
    var: Array,
    running_mean: Array,
    running_var: Array,
    *,
    weight: Any,
    count: Any = math.inf,
    unbiased: bool = False,
) -> tuple[Array, Array, Array]:
    """What modules make of the moments of a batch of `count` elements: (running_mean, running_var, sound)."""
    (mean, var), sound = _averaged((wide(running_mean), wide(running_var)), (mean, var), weight, count, unbiased)
    return mean, var, sound


@kernel(unit_in={'mean': 1, 'offset': 1, 'var': 2, 'within': 2}, unit_out=(0, 1, 1, 2))
def accumulated(
    x: Array,
    count: Array,
    mean: Array,
    offset: Array,
    var: Array,
    *,
    axis: Axes,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    within: Array | None = None,
) -> tuple[Array, ...]:
    """(count, mean, offset, var) of what was seen and of one more batch, as if all of it were one.

    The mean is the sum of two numbers. `within` is an average of variances, to be averaged on, in place of a variance.
    """
    b = _batch('accumulate_statistics', x, None, None, axis, where, (axis_name, axis_index_groups))
    size, found = b.moments(b.x)
    if within is not None:
        found = found._replace(var=within)
    more = Moments(*(m.reshape(count.shape).astype(count.dtype) for m in found))
    size = jnp.broadcast_to(
        jnp.asarray(size, count.dtype), [x.shape[a] if a in b.channel else 1 for a in range(x.ndim)]
    )
    seen = Moments(wide(mean), wide(offset), wide(var))
    total, merged = _moments.merge(count, seen, size.reshape(count.shape), more, between=within is None)
    return total, *merged


def renorm_clips(rmax: float, dmax: float, schedule: tuple[int, int, int] | None, step: Any) -> tuple[Any, Any]:
    """(rmax, dmax) after `step` batches: from (1, 0), which is batch norm, linearly to where they stay.

    `schedule` says where that begins, where it ends for d, and where for r.
    """
    if schedule is None:
        return rmax, dmax
    begin, end_d, end_r = schedule
    after = (step - begin).astype(jnp.float32)
    share_d, share_r = (jnp.clip(after / max(end - begin, 1), 0, 1) for end in (end_d, end_r))
    return 1 + share_r * (rmax - 1), share_d * dmax
