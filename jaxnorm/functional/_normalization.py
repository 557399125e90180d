"""Normalization: every norm is moments, then a standardized and scaled input, with one lean derivative rule."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from .. import _checks
from .._typing import Array, ArrayLike, Axes, AxisGroups, AxisName
from . import _moments
from ._kernel import kernel
from ._linear import linear
from ._moments import Moments, Pool, wide

# ---------------------------------------------------------------------------------------------------------------
# The one norm. x, scale, bias and where have the same rank; scale and bias have the same shape.
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spec:
    """What is constant in a norm."""

    pool: Pool
    epsilon: float
    centred: bool = True


def _rstd(var: Array, epsilon: float) -> Array:
    """1 / sqrt(var + epsilon): a root and a division round better than rsqrt. A constant row at epsilon 0 gives 0."""
    v = var + epsilon
    return jnp.where(v > 0, 1 / jnp.sqrt(jnp.where(v > 0, v, 1)), 0)


def _affine(h: Array, scale: Array | None, bias: Array | None) -> Array:
    h = h if scale is None else h * scale
    return h if bias is None else h + bias


def _once(y: Array, x: Array) -> Array:
    """`y`, but where `x` is nan, and so is `y`, that nan.

    The choice changes nothing, and keeps XLA:CPU from computing `y` again in each of its consumers, which it does with
    what is made of a single array: in a chain of norms each layer's consumers would compute all layers before it.
    """
    return jnp.where(x == x, y, x)


class _Norm(NamedTuple):
    """A norm as it is defined, with what its derivative needs."""

    y: Array
    mean: Array
    var: Array
    shift: Array
    rstd: Array


def _plain(spec: _Spec, x: Array, scale: Array | None, bias: Array | None, where: Array | None) -> _Norm:
    values = wide(x, where)
    share = _moments.reciprocal(spec.pool.size(x, where))
    if spec.centred:
        found = _moments.compute(values, spec.pool, where, share)
    else:
        found = _moments.mean_square(values, spec.pool, share)
    found = Moments(*(checkpoint_name(m, 'moments') for m in found))
    rstd = _rstd(found.var, spec.epsilon)
    d = _moments.centre(values, found.shift, where) - found.offset if spec.centred else values
    y = _once(_affine(d * rstd, scale, bias), values)
    y = y if where is None else jnp.where(where, y, 0)
    return _Norm(y.astype(x.dtype), *found.reported(share), found.shift, rstd)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _lean(spec: _Spec, x: Array, scale: Array | None, bias: Array | None, where: Array | None) -> tuple[Array, ...]:
    return _plain(spec, x, scale, bias, where)[:3]


def _lean_jvp(spec: _Spec, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    # saved for the backward pass: x, and two numbers a statistic (beside the parameter and the mask themselves)
    x, scale, bias, where = primals
    norm = _plain(spec, x, scale, bias, where)
    rule = _Rule(
        spec, scale is not None, where is not None, next((p.shape for p in (scale, bias) if p is not None), ())
    )
    kept = [x, norm.shift, norm.rstd, *(p for p in (scale, where) if p is not None)]
    moving = [None if t is None or isinstance(t, SymbolicZero) else t for t in tangents[:3]]
    out = norm[:3]
    if all(t is None for t in moving):
        return out, tuple(jnp.zeros_like(o) for o in out)
    return out, tuple(linear(_Tangent(rule), _Cotangent(rule), kept, moving, results=3))


_lean.defjvp(_lean_jvp, symbolic_zeros=True)


@dataclass(frozen=True)
class _Rule:
    """What the tangent of a norm and its transpose have in common."""

    spec: _Spec
    scaled: bool
    masked: bool
    shape: tuple[int, ...]  # of scale and bias, () where there are none

    def unpack(self, residuals: Sequence[Array]) -> tuple[Array, Array, Array, Array | None, Array | None]:
        x, shift, rstd, *rest = residuals
        scale = rest.pop(0) if self.scaled else None
        where = rest.pop(0) if self.masked else None
        return x, shift, rstd, scale, where

    def centred(self, x: Array, shift: Array, where: Array | None) -> Array:
        return _moments.centre(wide(x, where), shift, where) if self.spec.centred else wide(x, where)


@dataclass(frozen=True)
class _Tangent:
    """(dx, dscale, dbias) -> (dy, dmean, dvar): with h = d rstd, dh = rstd (dx - mean dx - h mean(h dx))."""

    rule: _Rule

    def __call__(self, residuals: Sequence[Array], operands: Sequence[Array | None]) -> list[Array]:
        x, shift, rstd, scale, where = self.rule.unpack(residuals)
        dx, dscale, dbias = operands
        pool, centred = self.rule.spec.pool, self.rule.spec.centred
        share = _moments.reciprocal(pool.size(x, where))
        d = self.rule.centred(x, shift, where)
        if centred:
            d = d - pool.total(d) * share
        h = d * rstd
        dy = jnp.zeros_like(d)
        dmean = dvar = jnp.zeros_like(rstd)
        if dx is not None:
            t = wide(dx, where)
            if centred:
                dmean = pool.total(t) * share
                t = t - dmean
            dvar = 2 * pool.total(d * t) * share
            dy = _affine(rstd * (t - h * (rstd * dvar / 2)), scale, None)
        if dscale is not None:
            dy = dy + h * dscale
        if dbias is not None:
            dy = dy + dbias
        dy = dy if where is None else jnp.where(where, dy, 0)
        return [dy.astype(x.dtype), dmean, dvar]


@dataclass(frozen=True)
class _Cotangent:
    """The transpose: with g the cotangent of y and gs = g scale, rstd (gs - mean gs - h mean(gs h)).

    One product p = g d serves the row sums (contracted with the scale) and the column sums (contracted with rstd).
    `offset`, by which `shift` misses the mean, enters by its small share in each sum, so that no pass waits for it.
    """

    rule: _Rule

    def __call__(self, residuals: Sequence[Array], operands: Sequence[Array | None]) -> list[Array | None]:
        # the barrier keeps XLA from merging this with the forward pass, which would keep its intermediates alive
        residuals, operands = jax.lax.optimization_barrier((list(residuals), list(operands)))
        x, shift, rstd, scale, where = self.rule.unpack(residuals)
        g, gmean, gvar = operands
        pool, centred = self.rule.spec.pool, self.rule.spec.centred
        share = _moments.reciprocal(pool.size(x, where))
        d = self.rule.centred(x, shift, where)
        offset = _moments.offset_of(wide(x, where), shift, where, pool, share) if centred else None
        zero = jnp.zeros_like(d)
        dx, dscale, dbias = zero, None, None
        if g is not None:
            g = wide(g, where)
            p = jax.lax.optimization_barrier(g * d)
            # where the parameters are constant along a pooled axis, it is summed before they come in
            shape = self.rule.shape or (1,) * x.ndim
            inner = tuple(a for a in pool.axes if shape[a] == 1)
            rest = tuple(a for a in pool.axes if shape[a] != 1)
            outer = tuple(a for a in range(x.ndim) if a not in pool.axes and shape[a] == 1)
            g_sum, p_sum = (_moments.contract(t, None, inner) for t in (g, p))
            q = _moments.contract(p_sum, scale, rest)
            gs = g if scale is None else g * scale
            # dx as a difference of two arrays, and not a multiple of one, for the reason that `_once` gives
            if offset is None:
                dx = gs * rstd - (d * rstd) * (q * rstd * (rstd * share))  # so that nothing over- or underflows
                dscale = _moments.contract(p_sum, rstd, outer)
            else:
                mean_gs = _moments.contract(g_sum, scale, rest)
                q = (q - offset * mean_gs) * rstd * (rstd * share)
                dx = (gs - mean_gs * share) * rstd - ((d - offset) * rstd) * q
                dscale = _moments.contract(p_sum, rstd, outer) - _moments.contract(g_sum, rstd * offset, outer)
            dbias = _moments.contract(g_sum, None, outer)
        if gmean is not None and centred:
            dx = dx + gmean * share
        if gvar is not None:
            dx = dx + 2 * gvar * share * (d if offset is None else d - offset)
        dx = dx if where is None else jnp.where(where, dx, 0)
        return [dx.astype(x.dtype), dscale, dbias]


def _norm(
    spec: _Spec, x: Array, scale: Array | None, bias: Array | None, where: Array | None
) -> tuple[Array, Array, Array]:
    """(y, mean, var) of a norm; the moments keep the pooled axes."""
    if spec.pool.axis_name is None:
        return cast(Any, _lean(spec, x, scale, bias, where))

    # over named axes JAX's own rules for collectives apply; checkpointing keeps what is saved as lean
    @partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names('moments'))
    def over_devices(*arrays: Array | None) -> tuple[Array, Array, Array]:
        return _plain(spec, *cast(Any, arrays))[:3]

    return over_devices(x, scale, bias, where)


# ---------------------------------------------------------------------------------------------------------------
# What the kernels share: parameters and masks in the rank of the input.
# ---------------------------------------------------------------------------------------------------------------


def _parameter(op: str, argument: str, value: Any, shape: Sequence[int], axes: Sequence[int]) -> Array | None:
    """A scale or bias in the rank of the input: along `axes` if it has just their sizes, else broadcast."""
    if value is None:
        return None
    array = _checks.floating(op, argument, value)
    own = tuple(shape[a] for a in axes)
    if array.shape == own:
        return array.reshape([s if a in axes else 1 for a, s in enumerate(shape)])
    if not _checks.broadcasts(array.shape, shape):
        raise ValueError(
            f'{op}: {argument} must have the shape {own} or broadcast to the input shape {tuple(shape)}, '
            f'got {array.shape}; give it one value for each element of axis {tuple(axes)}.'
        )
    return array.reshape((1,) * (len(shape) - array.ndim) + array.shape)


def _parameters(
    op: str, scale: Any, bias: Any, shape: Sequence[int], axes: Sequence[int]
) -> tuple[Array | None, Array | None]:
    scale, bias = (_parameter(op, n, v, shape, axes) for n, v in (('scale', scale), ('bias', bias)))
    if scale is not None and bias is not None and scale.shape != bias.shape:
        scale, bias = jnp.broadcast_arrays(scale, bias)
    return scale, bias


def _epsilon(op: str, epsilon: Any) -> float:
    return _checks.number(op, 'epsilon', epsilon, at_least=0)


def _channels(op: str, x: Array, axis: Any) -> int:
    """The channel axis of an input whose first axis is the batch."""
    if x.ndim < 2:
        raise ValueError(
            f'{op}: x must have a batch axis and a channel axis, got the shape {x.shape}; add an axis with x[None].'
        )
    channel = _checks.one_axis(op, 'axis', axis, x.ndim)
    if channel == 0:
        raise ValueError(
            f'{op}: axis must not be 0, which is the batch, got {axis}; move the channels to another axis.'
        )
    return channel


# ---------------------------------------------------------------------------------------------------------------
# The kernels.
# ---------------------------------------------------------------------------------------------------------------


#: What the docstrings below need not say.
_NORM = r"""Of a norm.

Parameters
----------
x : array, any shape
    Real numbers; integers become the default float. A Quantity may have any unit.
scale, bias : array, optional
    One value for each element of the channels, or anything that broadcasts to `x`. Dimensionless.
epsilon : float
    Added to the variance, in the square of the unit of `x`.
where : bool array, optional
    What counts, broadcast to `x`. Elsewhere the result is 0, and nothing there (nan included) touches any
    result or gradient.
axis_name, axis_index_groups : optional
    Named axes of a surrounding `jax.vmap` or `jax.shard_map` over which the statistics are pooled as well, each
    element counting once.

Returns
-------
array
    Shape and dtype of `x`, dimensionless.

Raises
------
ValueError, TypeError
    For an axis that `x` does not have, a parameter or mask that does not fit, an epsilon that is no number
    from 0 on, an unbound `axis_name`.
"""


@kernel(unit_out=(1, 2), family=_NORM)
def moments(
    x: ArrayLike,
    axis: Axes,
    *,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
) -> tuple[Array, Array]:
    r"""Mean and biased variance over axes.

    .. math:: \mu = \frac{1}{n} \sum_i x_i, \qquad \sigma^2 = \frac{1}{n} \sum_i (x_i - \mu)^2

    Parameters
    ----------
    axis : int or tuple of int
        The axes to reduce.
    where : bool array, optional
        What counts, broadcast to `x`. Nothing elsewhere (nan included) touches any
        result or gradient.
    keepdims : bool
        Whether the reduced axes stay, with size one.

    Returns
    -------
    mean, var : arrays
        At least float32; the mean has the unit of `x`, the variance its square. nan where nothing counts.

    Notes
    -----
    Values are centred twice, which is exact where E[x²] - E[x]² loses every digit; gradients save `x` and two numbers a
    statistic.

    References
    ----------
    Chan, Golub & LeVeque, "Algorithms for computing the sample variance", The American Statistician 37, 1983.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.arange(6.0).reshape(3, 2)
    >>> [m.tolist() for m in F.moments(x, 0)]
    [[2.0, 3.0], [2.666..., 2.666...]]
    """
    x = cast(Array, x)
    axes = _checks.axes('moments', 'axis', axis, x.ndim)
    mask = _checks.mask('moments', 'where', where, x.shape)
    pool = Pool(axes, _checks.axis_name('moments', axis_name), axis_index_groups)
    _, mean, var = _norm(_Spec(pool, 0.0), x, None, None, mask)
    return (mean, var) if keepdims else (mean.squeeze(axes), var.squeeze(axes))


@kernel(unit_out=0, family=_NORM)
def standardize(x: ArrayLike, axis: Axes = -1, *, epsilon: float = 1e-5, where: ArrayLike | None = None) -> Array:
    r"""Centre and scale to variance one.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}

    Parameters
    ----------
    axis : int or tuple of int
        The axes to reduce, and those along which each slice is standardized.

    Notes
    -----
    Statistics are taken in at least float32 from values centred twice: for mean/std up to 1e6 the result is within
    2e-7 (float32). The backward pass keeps `x` and two numbers a statistic. A constant slice gives zeros (then the
    bias) and finite gradients, also at epsilon 0.

    References
    ----------
    LeCun, Bottou, Orr & Müller, "Efficient BackProp", 1998, section 4.3.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.arange(6.0).reshape(2, 3)
    >>> bool(abs(F.standardize(x).mean()) < 1e-6)
    True
    """
    return _over('standardize', x, None, None, axis, epsilon, where, (None, None))


def _over(
    op: str, x: Any, scale: Any, bias: Any, axis: Any, epsilon: Any, where: Any, names: Any, centred: bool = True
) -> Array:
    """A norm over given axes, with parameters along the same."""
    axes = _checks.axes(op, 'axis', axis, x.ndim)
    scale, bias = _parameters(op, scale, bias, x.shape, axes)
    spec = _Spec(Pool(axes, _checks.axis_name(op, names[0]), names[1]), _epsilon(op, epsilon), centred)
    return _norm(spec, x, scale, bias, _checks.mask(op, 'where', where, x.shape))[0]


@kernel(unit_out=0, family=_NORM)
def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
) -> Array:
    r"""Layer normalization: each sample by the mean and variance over its features.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \, \gamma + \beta

    Parameters
    ----------
    scale, bias : array, optional
        One value for each element of `axis`, or anything that broadcasts to `x`. Dimensionless.
    axis : int or tuple of int
        The axes to reduce, and those along which scale and bias lie.

    Notes
    -----
    Statistics are taken in at least float32 from values centred twice: for mean/std up to 1e6 the result is within
    2e-7 (float32). The backward pass keeps `x` and two numbers a statistic. A constant row gives zeros (then the
    bias) and finite gradients, also at epsilon 0.

    References
    ----------
    Ba, Kiros & Hinton, "Layer normalization", 2016, arXiv:1607.06450.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.arange(6.0).reshape(2, 3)
    >>> F.layer_norm(x, jnp.ones(3), jnp.zeros(3)).round(3).tolist()
    [[-1.225, 0.0, 1.225], [-1.225, 0.0, 1.225]]
    """
    return _over('layer_norm', x, scale, bias, axis, epsilon, where, (axis_name, axis_index_groups))


@kernel(unit_out=0, family=_NORM)
def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
) -> Array:
    r"""RMS normalization: each sample by the root of its mean square.

    .. math:: y = \frac{x}{\sqrt{\frac{1}{n} \sum_i x_i^2 + \epsilon}} \, \gamma

    Parameters
    ----------
    scale : array, optional
        One value for each element of `axis`, or anything that broadcasts to `x`. Dimensionless.
    axis : int or tuple of int
        The axes to reduce, and those along which the scale lies.
    epsilon : float
        Added to the mean square, in the square of the unit of `x`.

    Notes
    -----
    The mean square is taken in at least float32; the result is within 2e-7 (float32). The backward pass keeps `x` and
    one number a row, beside a zero. A row of zeros gives zeros and finite gradients, also at epsilon 0.

    References
    ----------
    Zhang & Sennrich, "Root mean square layer normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.arange(6.0).reshape(2, 3)
    >>> bool(abs((F.rms_norm(x) ** 2).mean() - 1) < 1e-5)
    True
    """
    return _over('rms_norm', x, scale, None, axis, epsilon, where, (axis_name, axis_index_groups), centred=False)


@kernel(unit_out=0, family=_NORM)
def group_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    num_groups: int,
    axis: int = -1,
    reduction_axes: Axes | None = None,
    epsilon: float = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
) -> Array:
    r"""Group normalization: each sample by the mean and variance of groups of its channels.

    .. math:: y = \frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} \, \gamma + \beta

    Parameters
    ----------
    x : array, batch first
        Real numbers; integers become the default float. A Quantity may have any unit.
    num_groups : int
        The number of groups; it divides the number of channels.
    axis : int
        The channels; the first axis is the batch.
    reduction_axes : int or tuple of int, optional
        The axes to reduce, the channels among them, of which each group is taken for itself; by default all but the
        batch.

    Raises
    ------
    ValueError, TypeError
        For an axis that `x` does not have, a parameter or mask that does not fit, an epsilon that is no number
        from 0 on, an unbound `axis_name`,
        an input without batch and channels, or groups that do not divide the channels.

    Notes
    -----
    Statistics are taken in at least float32 from values centred twice: for mean/std up to 1e6 the result is within
    2e-7 (float32). The backward pass keeps `x` and two numbers a statistic. A constant group gives zeros (then the
    bias) and finite gradients, also at epsilon 0.

    References
    ----------
    Wu & He, "Group normalization", 2018, arXiv:1803.08494.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.arange(24.0).reshape(2, 3, 4)
    >>> F.group_norm(x, num_groups=2).shape
    (2, 3, 4)
    """
    names = (axis_name, axis_index_groups)
    return _grouped('group_norm', x, scale, bias, num_groups, axis, epsilon, where, names, reduction_axes)


def _grouped(
    op: str,
    x: Any,
    scale: Any,
    bias: Any,
    num_groups: int | None,
    axis: Any,
    epsilon: Any,
    where: Any,
    names: Any,
    reduction_axes: Any = None,
) -> Array:
    """A norm of each sample over its groups of channels; None is a group a channel."""
    channel = _channels(op, x, axis)
    size = x.shape[channel]
    groups = size if num_groups is None else _checks.integer(op, 'num_groups', num_groups)
    if size % groups:
        raise ValueError(
            f'{op}: num_groups must divide the {size} channels of axis {channel}, got {groups}; '
            f'choose one of {[n for n in range(1, size + 1) if size % n == 0]}.'
        )

    def split(t: Array | None) -> Array | None:
        if t is None:
            return None
        parts = (groups, size // groups) if t.shape[channel] == size else (1, 1)
        return t.reshape(*t.shape[:channel], *parts, *t.shape[channel + 1 :])

    scale, bias = _parameters(op, scale, bias, x.shape, (channel,))
    mask = _checks.mask(op, 'where', where, x.shape)
    reduced = _checks.axes(op, 'reduction_axes', range(1, x.ndim) if reduction_axes is None else reduction_axes, x.ndim)
    if channel not in reduced or 0 in reduced:
        raise ValueError(
            f'{op}: reduction_axes must hold the channels, axis {channel}, and not the batch, axis 0, '
            f'got {reduction_axes}; leave it out to reduce all but the batch.'
        )
    pool = Pool(tuple(a + (a >= channel) for a in reduced), _checks.axis_name(op, names[0]), names[1])
    y = _norm(_Spec(pool, _epsilon(op, epsilon)), cast(Array, split(x)), split(scale), split(bias), split(mask))[0]
    return y.reshape(x.shape)


@kernel(unit_out=0, family=_NORM)
def instance_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
) -> Array:
    r"""Instance normalization: each channel of each sample by its own mean and variance.

    .. math:: y = \frac{x - \mu_{nc}}{\sqrt{\sigma_{nc}^2 + \epsilon}} \, \gamma + \beta

    Parameters
    ----------
    x : array, batch first
        Real numbers; integers become the default float. A Quantity may have any unit.
    axis : int
        The channels; the first axis is the batch.

    Raises
    ------
    ValueError, TypeError
        For an axis that `x` does not have, a parameter or mask that does not fit, an epsilon that is no number
        from 0 on, an unbound `axis_name`,
        or an input without batch and channels.

    Notes
    -----
    Statistics are taken in at least float32 from values centred twice: for mean/std up to 1e6 the result is within
    2e-7 (float32). The backward pass keeps `x` and two numbers a statistic. A constant channel gives zeros (then the
    bias) and finite gradients, also at epsilon 0.

    References
    ----------
    Ulyanov, Vedaldi & Lempitsky, "Instance normalization", 2016, arXiv:1607.08022.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> x = jnp.arange(24.0).reshape(2, 3, 4)
    >>> F.instance_norm(x).shape
    (2, 3, 4)
    """
    return _grouped('instance_norm', x, scale, bias, None, axis, epsilon, where, (axis_name, axis_index_groups))


@kernel(unit_in={'mean': 1, 'var': 2}, unit_out=0, family=_NORM)
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
) -> Array:
    r"""Batch normalization with given statistics, as while evaluating.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \, \gamma + \beta

    Parameters
    ----------
    mean, var : array
        One value for each channel, in the unit of `x` and in its square.
    axis : int or tuple of int
        The channels; all other axes are the batch.

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
    x = cast(Array, x)
    channel = _checks.axes('batch_norm', 'axis', axis, x.ndim)
    mean, var = (
        cast(Array, _parameter('batch_norm', n, v, x.shape, channel)) for n, v in (('mean', mean), ('var', var))
    )
    scale, bias = _parameters('batch_norm', scale, bias, x.shape, channel)
    rstd = _rstd(wide(var), _epsilon('batch_norm', epsilon))
    mask = _checks.mask('batch_norm', 'where', where, x.shape)
    y = _affine(_moments.centre(wide(x, mask), mean, mask) * rstd, scale, bias)
    return (y if mask is None else jnp.where(mask, y, 0)).astype(x.dtype)


@kernel(unit_out=(0, 1, 2), family=_NORM)
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
) -> tuple[Array, Array, Array]:
    r"""Batch normalization by the batch's own statistics, as while fitting.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \, \gamma + \beta

    Parameters
    ----------
    axis : int or tuple of int
        The channels; all other axes are the batch.

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
        from 0 on, an unbound `axis_name`,
        or one value a channel.

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
    x = cast(Array, x)
    channel = _checks.axes(op, 'axis', axis, x.ndim)
    axes = tuple(a for a in range(x.ndim) if a not in channel)
    pool = Pool(axes, _checks.axis_name(op, axis_name), axis_index_groups)
    if where is None:
        _checks.several(op, pool.size(x, None), x.shape, channel, 'batch_norm with given statistics')
    scale, bias = _parameters(op, scale, bias, x.shape, channel)
    mask = _checks.mask(op, 'where', where, x.shape)
    y, mean, var = _norm(_Spec(pool, _epsilon(op, epsilon)), x, scale, bias, mask)
    return y, mean.squeeze(axes), var.squeeze(axes)
