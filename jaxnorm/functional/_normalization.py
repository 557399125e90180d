"""Normalization: every norm is moments, then a standardized and scaled input, with one lean derivative rule."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from .. import _checks
from .._typing import Activation, Array, ArrayLike, Axes, AxisGroups, AxisName
from . import _moments
from ._elementary import exact_product, number
from ._get import get
from ._kernel import computed_once, kernel
from ._linear import linear
from ._moments import Pool, SegmentPool, wide
from ._products import (
    Pair,
    add,
    divided,
    inverse_root,
    minus,
    multiplied,
    power_of_two,
    rounded,
    single,
)

# ---------------------------------------------------------------------------------------------------------------
# The one norm. x, scale, bias and where have the same rank; scale and bias have the same shape.
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spec:
    """What is constant in a norm."""

    pool: Pool
    epsilon: float
    centred: bool = True
    counted: tuple[int, int] | None = None  # (axis, n): statistics of the first n along the axis; None is all
    length: bool = False  # a sum of squares in place of their mean; epsilon is then the least length

    def count(self, pool: Pool | SegmentPool, x: Array, where: Array | None) -> Array | float:
        """What a sum is divided by for a statistic."""
        return 1.0 if self.length else pool.size(x, where)

    @property
    def limit(self) -> float:
        """The greatest reciprocal of a length."""
        return 1 / self.epsilon if self.length and self.epsilon > 1e-37 else math.inf

    def projected(self, along: Array, rstd: Array) -> Array:
        """What a slope has along the row: nothing where that is divided by the least length."""
        return along if math.isinf(self.limit) else jnp.where(rstd < self.limit, along, 0)


def _rstd(spec: _Spec, var: Array, lift: Array | None) -> Array:
    """1 / sqrt(var + epsilon), rounded once; of a length, that of values which were lifted. Epsilon 0 gives 0 for 0."""
    if lift is None:
        return inverse_root(var + spec.epsilon)
    rstd = inverse_root(var) * lift
    return rstd if math.isinf(spec.limit) else jnp.where((var == 0) | (rstd > spec.limit), spec.limit, rstd)


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


def _plain(
    spec: _Spec,
    x: Array,
    scale: Array | None,
    bias: Array | None,
    where: Array | None,
    segment_ids: Array | None = None,
) -> _Norm:
    values = wide(x, where)
    pool = spec.pool if segment_ids is None else SegmentPool(spec.pool, segment_ids)
    sample, mask = (_first(a, spec.counted) for a in (values, where))
    count = spec.count(pool, sample, mask)
    # squares of lengths stay in range, and nothing is rounded for it
    lift = 1 / power_of_two(_moments.largest(sample, spec.pool)) if spec.length else None
    if spec.centred:
        found = _moments.compute(sample, pool, mask, count)
    else:
        found = _moments.mean_square(sample if lift is None else sample * lift, pool, count)
    (rstd,) = computed_once(_rstd(spec, found.var, lift))
    d = _moments.centre(values, found.shift, where) - found.offset if spec.centred else values
    y = _once(_affine(d * rstd, scale, bias), values)
    y = y if where is None else jnp.where(where, y, 0)
    return _Norm(y.astype(x.dtype), *found.reported(count), found.shift, rstd)


def _first(a: Any, counted: tuple[int, int] | None) -> Any:
    """The part of an array that statistics are taken of."""
    if a is None or counted is None or a.shape[counted[0]] == 1:
        return a
    axis, n = counted
    return jax.lax.slice_in_dim(a, 0, n, axis=axis)


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

    def short(self, x: Array) -> bool:
        """Whether a row is so short that next to nothing may be left of its gradient: of two, what epsilon leaves."""
        return 1 < self.spec.pool.range(x)[1] < _SHORT


#: Rows of fewer elements have their gradient in pairs of floats.
_SHORT = 8


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _remains(
    rule: _Rule, x: Array, shift: Array, rstd: Array, where: Array | None, t: Array, scale: Array | None
) -> Array:
    """rstd (t - mean t - h mean(h t)) of t times the scale, whatever cancels: element by element of the rows."""
    spec, axes = rule.spec, rule.spec.pool.axes
    front = tuple(range(len(axes)))

    def elements(a: Array) -> list[Array]:
        moved = jnp.moveaxis(jnp.broadcast_to(a, x.shape), axes, front)
        return list(moved.reshape(math.prod(moved.shape[: len(axes)]), *moved.shape[len(axes) :]))

    def total(parts: list[Pair]) -> Pair:
        return reduce(add, parts)

    def shown(parts: list[Pair]) -> list[Pair]:
        if where is None:
            return parts
        return [Pair(*(jnp.where(w, a, 0) for a in p)) for p, w in zip(parts, elements(where), strict=True)]

    def centred(parts: list[Pair]) -> list[Pair]:
        if not spec.centred:
            return parts
        mean = divided(total(parts), count)
        return shown([minus(p, mean) for p in parts])

    size = jnp.maximum(jnp.asarray(spec.count(spec.pool, x, where), rstd.dtype), 1)
    inverse, count = elements(rstd)[0], single(elements(size)[0])
    d = centred(shown([rounded(v, -m) for v, m in zip(elements(wide(x, where)), elements(shift), strict=True)]))
    left = list(map(single, elements(t)))
    if scale is not None:
        left = [Pair(*exact_product(p.head, s)) for p, s in zip(left, elements(scale), strict=True)]
    left, h = centred(shown(left)), [multiplied(p, single(inverse)) for p in d]
    power, rest = total([multiplied(p, p) for p in h]), jnp.zeros_like(inverse)
    if not spec.length:
        least = Pair(*(jnp.full_like(inverse, part) for part in number(spec.epsilon, rstd.dtype)))
        power = add(power, multiplied(multiplied(multiplied(single(inverse), single(inverse)), least), count))
        # what the mean of h**2 + epsilon rstd**2 tells of rstd: it is 1 but for roundings
        rest = inverse * (0.5 * ((count.head - power.head) - power.tail) / count.head)
        rest = jnp.where(power.head > 0, rest, 0)
    some = power.head > 0
    along = divided(total(list(map(multiplied, h, left))), Pair(jnp.where(some, power.head, 1), power.tail))
    along = Pair(*computed_once(*(spec.projected(jnp.where(some, part, 0), inverse) for part in along)))
    result = [sum(minus(p, multiplied(q, along))) for p, q in zip(left, h, strict=True)]
    result = jnp.stack([r * inverse + r * rest for r in result])
    moved = [x.shape[a] for a in (*axes, *(a for a in range(x.ndim) if a not in axes))]
    return jnp.moveaxis(result.reshape(moved), front, axes)


@_remains.defjvp
def _remains_jvp(rule: _Rule, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    def plain(x: Array, shift: Array, rstd: Array, where: Array | None, t: Array, scale: Array | None) -> Array:
        spec, pool = rule.spec, rule.spec.pool
        share = _moments.reciprocal(spec.count(pool, x, where))
        d, t = rule.centred(x, shift, where), t if scale is None else t * scale
        if spec.centred:
            d, t = (_moments.centre(a, pool.total(a) * share, where) for a in (d, t))
        h = d * rstd
        return rstd * (t - h * spec.projected(pool.total(h * t) * share, rstd))

    return cast(Array, _remains(rule, *primals)), jax.jvp(plain, primals, tangents)[1]


@dataclass(frozen=True)
class _Tangent:
    """(dx, dscale, dbias) -> (dy, dmean, dvar): with h = d rstd, dh = rstd (dx - mean dx - h mean(h dx))."""

    rule: _Rule

    def __call__(self, residuals: Sequence[Array], operands: Sequence[Array | None]) -> list[Array]:
        x, shift, rstd, scale, where = self.rule.unpack(residuals)
        dx, dscale, dbias = operands
        spec, pool, centred = self.rule.spec, self.rule.spec.pool, self.rule.spec.centred
        share = _moments.reciprocal(spec.count(pool, x, where))
        d = self.rule.centred(x, shift, where)
        if centred:
            d = _moments.centre(d, pool.total(d) * share, where)
        h = d * rstd
        dy = jnp.zeros_like(d)
        dmean = dvar = jnp.zeros_like(rstd)
        if dx is not None:
            t = whole = wide(dx, where)
            if centred:
                dmean = pool.total(t) * share
                t = t - dmean
            dvar = 2 * pool.total(d * t) * share
            if self.rule.short(x):
                dy = _remains(self.rule, x, shift, rstd, where, whole, None)
            else:
                dy = rstd * (t - h * spec.projected(rstd * dvar / 2, rstd))
            dy = _affine(dy, scale, None)
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
        spec, pool, centred = self.rule.spec, self.rule.spec.pool, self.rule.spec.centred
        share = _moments.reciprocal(spec.count(pool, x, where))
        d = self.rule.centred(x, shift, where)
        offset = _moments.offset_of(wide(x, where), shift, where, pool, share) if centred else None
        zero = jnp.zeros_like(d)
        dx, dscale, dbias = zero, *(jnp.zeros(self.rule.shape, d.dtype),) * 2
        if g is not None:
            g = wide(g, where)
            p = jax.lax.optimization_barrier(g * d)
            # where the parameters are constant along a pooled axis, it is summed before they come in
            shape = self.rule.shape or (1,) * x.ndim
            inner = tuple(a for a in pool.axes if shape[a] == 1)
            rest = tuple(a for a in pool.axes if shape[a] != 1)
            outer = tuple(a for a in range(x.ndim) if a not in pool.axes and shape[a] == 1)
            g_sum, p_sum = (_moments.contract(t, None, inner) for t in (g, p))
            q = spec.projected(_moments.contract(p_sum, scale, rest), rstd)
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
            if self.rule.short(x):
                dx = _remains(self.rule, x, shift, rstd, where, g, scale)
        if gmean is not None and centred:
            dx = dx + gmean * share
        if gvar is not None:
            dx = dx + 2 * gvar * share * (d if offset is None else d - offset)
        dx = dx if where is None else jnp.where(where, dx, 0)
        return [dx.astype(x.dtype), dscale, dbias]


#: Keeps what is saved for the backward pass as lean as the rule above does: the arguments and the moments.
_keep_moments = partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names('moments'))


def _norm(
    spec: _Spec,
    x: Array,
    scale: Array | None,
    bias: Array | None,
    where: Array | None,
    segment_ids: Array | None = None,
) -> tuple[Array, Array, Array]:
    """(y, mean, var) of a norm; the moments keep the pooled axes."""
    if spec.pool.axis_name is None and spec.counted is None and segment_ids is None:
        return cast(Any, _lean(spec, x, scale, bias, where))
    # else JAX's own rules apply, as those for collectives do
    return _keep_moments(lambda *arrays: tuple(_plain(spec, *arrays)[:3]))(x, scale, bias, where, segment_ids)


class _Seen(NamedTuple):
    """An input and its mask as a user has them, where a norm takes them in another shape."""

    shape: tuple[int, ...]
    mask: Array | None


def _then(
    norm: Callable[..., Any],
    op: str,
    activation: Any,
    cast_before: bool = False,
    seen: _Seen | None = None,
) -> Callable[..., Any]:
    """`norm(x, scale, bias, where, *rest) -> (y, ...)` with what may follow, of which nothing is saved.

    With `cast_before` scale and bias come in after the rounding to the dtype of `x`. The result, and what the
    activation takes, has the shape that is `seen`.
    """
    activation = named_activation(op, activation)

    def back(y: Array) -> Array:
        return y if seen is None else y.reshape(seen.shape)

    if activation is None and not cast_before:
        if seen is None:
            return norm

        def plain(*arrays: Any) -> Any:
            y, *more = norm(*arrays)
            return back(y), *more

        return plain

    @_keep_moments
    def composed(x: Array, scale: Array | None, bias: Array | None, where: Array | None, *rest: Any) -> Any:
        if cast_before:
            y, *more = norm(x, None, None, where, *rest)
            y = _affine(y, *(None if p is None else p.astype(y.dtype) for p in (scale, bias)))
            y = y if where is None else jnp.where(where, y, 0)
        else:
            y, *more = norm(x, scale, bias, where, *rest)
        y = back(y)
        y = y if activation is None else _activated(op, activation, y)
        mask = where if seen is None else seen.mask
        return y if mask is None else jnp.where(_mask_after(op, mask, y.shape), y, 0), *more

    return composed


def _activated(op: str, activation: Callable[[Array], Array], y: Array) -> Array:
    result = activation(y)
    if not isinstance(result, jax.Array):
        raise TypeError(
            f'{op}: activation must return one array, got {_checks.describe(result)}; pass a function of one array.'
        )
    return result


def _mask_after(op: str, mask: Array, shape: tuple[int, ...]) -> Array:
    """The mask of what an activation returned."""
    if not _checks.broadcasts(mask.shape, shape):
        raise ValueError(
            f'{op}: where must broadcast to what the activation returns, of the shape {shape}, got {mask.shape}; give '
            'it the size 1 along the axis that the activation changes, or apply the activation after the norm.'
        )
    return mask


def named_activation(op: str, activation: Any) -> Callable[[Array], Array] | None:
    """The function that follows a norm, given as it is or by its name."""
    if isinstance(activation, str):
        try:
            return cast(Any, get(activation))
        except ValueError as error:
            nearest = str(error).rpartition('; ')[2]
            raise ValueError(
                f'{op}: activation must be a function or the name of one, got {activation!r}; {nearest}'
            ) from None
    if activation is not None and not callable(activation):
        raise TypeError(
            f'{op}: activation must be a function of an array or the name of one, got {_checks.describe(activation)}; '
            "pass for example jax.nn.relu or 'relu'."
        )
    return cast(Any, activation)


class _Options(NamedTuple):
    """What the norms of single samples take beside axes, parameters and a mask, as it was given."""

    epsilon: Any
    axis_name: Any = None
    axis_index_groups: Any = None
    segment_ids: Any = None
    scale_offset: Any = 0.0
    cast: Any = 'after'
    activation: Any = None


def _of_segments(where: Array | None, segment_ids: Array | None) -> Array | None:
    """The mask, which leaves out as well what is of no segment."""
    if segment_ids is None:
        return where
    known = segment_ids >= 0
    return known if where is None else where & known


def _of_samples(
    op: str,
    x: Array,
    axes: tuple[int, ...],
    scale: Array | None,
    bias: Array | None,
    where: Array | None,
    segment_ids: Array | None,
    options: _Options,
    centred: bool = True,
    counted: tuple[int, int] | None = None,
    seen: _Seen | None = None,
) -> Array:
    """A norm over axes of `x`, of whose rank all arrays are."""
    pool = _pool(op, axes, options.axis_name, options.axis_index_groups)
    spec = _Spec(pool, _epsilon(op, options.epsilon), centred, counted)
    offset = _checks.number(op, 'scale_offset', options.scale_offset)
    if scale is not None and offset:
        scale = wide(scale) + offset
    where = _of_segments(where, segment_ids)
    before = _checks.one_of(op, 'cast', options.cast, ('after', 'before')) == 'before'
    norm = _then(partial(_norm, spec), op, options.activation, before, seen)
    return norm(x, scale, bias, where, segment_ids)[0]


# ---------------------------------------------------------------------------------------------------------------
# What the kernels share: parameters and masks in the rank of the input.
# ---------------------------------------------------------------------------------------------------------------


def _parameter(
    op: str, argument: str, value: Any, shape: Sequence[int], axes: Sequence[int], strict: bool = False
) -> Array | None:
    """A scale or bias in the rank of the input: along `axes` if it has just their sizes, else broadcast.

    `strict`: only along `axes`.
    """
    if value is None:
        return None
    array = wide(_checks.floating(op, argument, value))
    own = tuple(shape[a] for a in axes)
    if array.shape == own:
        return array.reshape([s if a in axes else 1 for a, s in enumerate(shape)])
    if strict or not _checks.broadcasts(array.shape, shape):
        other = '' if strict else f' or broadcast to the input shape {tuple(shape)}'
        raise ValueError(
            f'{op}: {argument} must have the shape {own}{other}, got {array.shape}; '
            f'give it one value for each element of axis {tuple(axes)}.'
        )
    return array.reshape((1,) * (len(shape) - array.ndim) + array.shape)


def _parameters(
    op: str, scale: Any, bias: Any, shape: Sequence[int], axes: Sequence[int], strict: bool = False
) -> tuple[Array | None, Array | None]:
    scale, bias = (_parameter(op, n, v, shape, axes, strict) for n, v in (('scale', scale), ('bias', bias)))
    if scale is not None and bias is not None and scale.shape != bias.shape:
        scale, bias = jnp.broadcast_arrays(scale, bias)
    return scale, bias


def _epsilon(op: str, epsilon: Any) -> float:
    return _checks.number(op, 'epsilon', epsilon, at_least=0)


def _pool(op: str, axes: Sequence[int], axis_name: Any, axis_index_groups: Any) -> Pool:
    name = _checks.axis_name(op, axis_name)
    return Pool(tuple(axes), name, _checks.axis_index_groups(op, axis_index_groups, name))


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


def _split(groups: tuple[int, int], channel: int, t: Array | None) -> Array | None:
    """`t` with its channel axis split in two: groups, and the channels of each."""
    if t is None:
        return None
    parts = groups if t.shape[channel] == math.prod(groups) else (1, 1)
    return t.reshape(*t.shape[:channel], *parts, *t.shape[channel + 1 :])


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
segment_ids : int array, optional
    For packed sequences: broadcast to `x`, equal numbers from 0 on are one segment, and a statistic is taken of each
    segment by itself. What has a negative number counts nowhere, and its result is 0.
scale_offset : float
    Added to the scale, in the dtype of the statistics: with 1.0 a scale of zeros is none, as in Gemma.
cast : {'after', 'before'}
    Whether the result is rounded to the dtype of `x` after scale and bias come in, or before, as in Llama.
activation : callable or str, optional
    What follows the norm: a function of the result in the dtype of `x`, or its name. Beside a few numbers a row nothing
    more is saved for the backward pass. What is masked out is 0 when it comes to it.

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
        The axes to reduce; ``()`` where all that is reduced is over `axis_name`.
    where : bool array, optional
        What counts, broadcast to `x`. Nothing elsewhere (nan included) touches any
        result or gradient.
    keepdims : bool
        Whether the reduced axes stay, with size one.

    Returns
    -------
    mean, var : arrays
        At least float32; the mean has the unit of `x`, the variance its square. nan where nothing counts.

    Raises
    ------
    ValueError, TypeError
        For an axis that `x` does not have, a mask that does not fit, or an unbound `axis_name`.

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
    axes = _checks.axes('moments', 'axis', axis, x.ndim, empty=axis_name is not None)
    mask = _checks.mask('moments', 'where', where, x.shape)
    pool = _pool('moments', axes, axis_name, axis_index_groups)
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
    2e-7 (float32). The backward pass keeps `x` and two numbers a statistic. A constant slice gives zeros and finite
    gradients, also at epsilon 0.

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
    return _over('standardize', x, None, None, axis, None, where, _Options(epsilon))


def _over(
    op: str,
    x: Any,
    scale: Any,
    bias: Any,
    axis: Any,
    feature_axes: Any,
    where: Any,
    options: _Options,
    centred: bool = True,
    partial: Any = 1.0,
) -> Array:
    """A norm over given axes, with parameters along the same if no others are named."""
    axes = _checks.axes(op, 'axis', axis, x.ndim)
    along = axes if feature_axes is None else _checks.axes(op, 'feature_axes', feature_axes, x.ndim)
    scale, bias = _parameters(op, scale, bias, x.shape, along, strict=feature_axes is not None)
    counted = _counted(op, partial, axes, x.shape)
    ids = _checks.segment_ids(op, options.segment_ids, x.shape)
    if counted is not None and ids is not None and ids.shape[counted[0]] != 1:
        raise ValueError(
            f'{op}: segment_ids must be the same along axis {counted[0]} where partial is below 1, got the shape '
            f'{ids.shape}; pass partial=1.0.'
        )
    mask = _checks.mask(op, 'where', where, x.shape)
    return _of_samples(op, x, axes, scale, bias, mask, ids, options, centred, counted)


def _counted(op: str, partial: Any, axes: Sequence[int], shape: Sequence[int]) -> tuple[int, int] | None:
    """What of the features is counted where the statistics are those of a part."""
    share = _checks.number(op, 'partial', partial, above=0, at_most=1)
    if share == 1:
        return None
    if len(axes) != 1:
        raise ValueError(
            f'{op}: axis must be one axis where partial is below 1, got {tuple(axes)}; reshape x, or pass partial=1.0.'
        )
    n = int(shape[axes[0]] * share)
    if n == 0:
        raise ValueError(
            f'{op}: partial must leave at least one of the {shape[axes[0]]} features of axis {axes[0]}, got {share}; '
            'choose a larger one.'
        )
    return axes[0], n


@kernel(unit_out=0, family=_NORM)
def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    segment_ids: ArrayLike | None = None,
    scale_offset: float = 0.0,
    cast: str = 'after',
    activation: Activation | None = None,
) -> Array:
    r"""Layer normalization: each sample by the mean and variance over its features.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \, \gamma + \beta

    Parameters
    ----------
    scale, bias : array, optional
        One value for each element of `axis`, or anything that broadcasts to `x`. Dimensionless.
    axis : int or tuple of int
        The axes to reduce.
    feature_axes : int or tuple of int, optional
        The axes along which scale and bias lie; by default those of `axis`.

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
    options = _Options(epsilon, axis_name, axis_index_groups, segment_ids, scale_offset, cast, activation)
    return _over('layer_norm', x, scale, bias, axis, feature_axes, where, options)


@kernel(unit_out=0, family=_NORM)
def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-6,
    partial: float = 1.0,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    segment_ids: ArrayLike | None = None,
    scale_offset: float = 0.0,
    cast: str = 'after',
    activation: Activation | None = None,
    bias: ArrayLike | None = None,
) -> Array:
    r"""RMS normalization: each sample by the root of its mean square.

    .. math:: y = \frac{x}{\sqrt{\frac{1}{n} \sum_i x_i^2 + \epsilon}} \, \gamma

    Parameters
    ----------
    scale : array, optional
        One value for each element of `axis`, or anything that broadcasts to `x`. Dimensionless.
    axis : int or tuple of int
        The axes to reduce.
    feature_axes : int or tuple of int, optional
        The axes along which the scale lies; by default those of `axis`.
    partial : float
        The share of the features, from the first on, of which the mean square is taken: pRMSNorm.
    epsilon : float
        Added to the mean square, in the square of the unit of `x`.
    bias : array, optional
        What is added, in the shape of the scale: none in the paper, a shift in adaptive norms. Dimensionless.

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
    options = _Options(epsilon, axis_name, axis_index_groups, segment_ids, scale_offset, cast, activation)
    return _over('rms_norm', x, scale, bias, axis, feature_axes, where, options, centred=False, partial=partial)


@kernel(unit_in={'residual': 1}, unit_out=(0, 1), family=_NORM)
def add_layer_norm(
    x: ArrayLike,
    residual: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    segment_ids: ArrayLike | None = None,
    scale_offset: float = 0.0,
    cast: str = 'after',
    activation: Activation | None = None,
) -> tuple[Array, Array]:
    r"""Residual addition and `layer_norm` of the sum, both of which a block of a transformer goes on with.

    .. math:: s = x + r, \qquad y = \mathrm{layer\_norm}(s)

    Parameters
    ----------
    residual : array of the shape and dtype of `x`
        What is added, in the unit of `x`.
    axis : int or tuple of int
        The axes to reduce.
    feature_axes : int or tuple of int, optional
        The axes along which scale and bias lie; by default those of `axis`.

    Returns
    -------
    y, total : arrays
        The normalized sum, dimensionless, and the sum itself in the unit of `x`; both of shape and dtype of `x`.

    Notes
    -----
    The sum is rounded to the dtype of `x` first, so that `y` is the norm of what is returned. The backward pass keeps
    that sum, which is alive anyhow, and two numbers a row; neither `x` nor `residual`.

    References
    ----------
    Ba, Kiros & Hinton, "Layer normalization", 2016, arXiv:1607.06450.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> y, total = F.add_layer_norm(jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0]), epsilon=0.0)
    >>> y.tolist(), total.tolist()
    ([-1.0, 1.0], [1.0, 3.0])
    """
    total = _added('add_layer_norm', x, residual)
    options = _Options(epsilon, axis_name, axis_index_groups, segment_ids, scale_offset, cast, activation)
    return _over('add_layer_norm', total, scale, bias, axis, feature_axes, where, options), total


@kernel(unit_in={'residual': 1}, unit_out=(0, 1), family=_NORM)
def add_rms_norm(
    x: ArrayLike,
    residual: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-6,
    partial: float = 1.0,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    segment_ids: ArrayLike | None = None,
    scale_offset: float = 0.0,
    cast: str = 'after',
    activation: Activation | None = None,
    bias: ArrayLike | None = None,
) -> tuple[Array, Array]:
    r"""Residual addition and `rms_norm` of the sum, both of which a block of a transformer goes on with.

    .. math:: s = x + r, \qquad y = \mathrm{rms\_norm}(s)

    Parameters
    ----------
    residual : array of the shape and dtype of `x`
        What is added, in the unit of `x`.
    scale : array, optional
        One value for each element of `axis`, or anything that broadcasts to `x`. Dimensionless.
    axis : int or tuple of int
        The axes to reduce.
    feature_axes : int or tuple of int, optional
        The axes along which the scale lies; by default those of `axis`.
    partial : float
        The share of the features, from the first on, of which the mean square is taken: pRMSNorm.
    epsilon : float
        Added to the mean square, in the square of the unit of `x`.
    bias : array, optional
        What is added, in the shape of the scale: none in the paper, a shift in adaptive norms. Dimensionless.

    Returns
    -------
    y, total : arrays
        The normalized sum, dimensionless, and the sum itself in the unit of `x`; both of shape and dtype of `x`.

    Notes
    -----
    The sum is rounded to the dtype of `x` first, so that `y` is the norm of what is returned. The backward pass keeps
    that sum, which is alive anyhow, and one number a row, beside a zero; neither `x` nor `residual`.

    References
    ----------
    Zhang & Sennrich, "Root mean square layer normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> y, total = F.add_rms_norm(jnp.array([1.0, -2.0]), jnp.array([2.0, -1.0]), epsilon=0.0)
    >>> y.tolist(), total.tolist()
    ([1.0, -1.0], [3.0, -3.0])
    """
    total = _added('add_rms_norm', x, residual)
    options = _Options(epsilon, axis_name, axis_index_groups, segment_ids, scale_offset, cast, activation)
    y = _over('add_rms_norm', total, scale, bias, axis, feature_axes, where, options, False, partial)
    return y, total


def _added(op: str, x: Any, residual: Any) -> Array:
    """The sum, in one of the two dtypes and shapes, which are the same."""
    residual = _checks.floating(op, 'residual', residual)
    if (residual.shape, residual.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f'{op}: residual must have the shape and dtype of x, {_checks.describe(x)}, '
            f'got {_checks.describe(residual)}; broadcast or convert it first.'
        )
    return x + residual


@kernel(unit_in={'residual': 1}, unit_out=1)
def add_norm(x: ArrayLike, residual: ArrayLike) -> Array:
    """The sum of which a module takes the norm."""
    return _added('AddNorm', x, residual)


@kernel(unit_out=0, family=_NORM)
def group_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    axis: int = -1,
    reduction_axes: Axes | None = None,
    epsilon: float = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    segment_ids: ArrayLike | None = None,
    scale_offset: float = 0.0,
    cast: str = 'after',
    activation: Activation | None = None,
) -> Array:
    r"""Group normalization: each sample by the mean and variance of groups of its channels.

    .. math:: y = \frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} \, \gamma + \beta

    Parameters
    ----------
    x : array, batch first
        Real numbers; integers become the default float. A Quantity may have any unit.
    num_groups, group_size : int
        The number of groups or that of channels in each, one of the two; it divides the number of channels.
    axis : int
        The channels; the first axis is the batch.
    reduction_axes : int or tuple of int, optional
        The axes to reduce, the channels among them, of which each group is taken for itself; by default all but the
        batch.

    Raises
    ------
    ValueError, TypeError
        For an axis that `x` does not have, a parameter or mask that does not fit, an epsilon that is no number from 0
        on, an unbound `axis_name`, an input without batch and channels, or groups that do not divide the channels.

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
    options = _Options(epsilon, axis_name, axis_index_groups, segment_ids, scale_offset, cast, activation)
    return _grouped('group_norm', x, scale, bias, num_groups, group_size, axis, where, options, reduction_axes)


def _grouped(
    op: str,
    x: Any,
    scale: Any,
    bias: Any,
    num_groups: int | None,
    group_size: int | None,
    axis: Any,
    where: Any,
    options: _Options,
    reduction_axes: Any = None,
) -> Array:
    """A norm of each sample over its groups of channels."""
    channel = _channels(op, x, axis)
    groups = _checks.groups(op, x.shape[channel], num_groups, group_size)
    scale, bias = _parameters(op, scale, bias, x.shape, (channel,))
    mask = _checks.mask(op, 'where', where, x.shape)
    ids = _checks.segment_ids(op, options.segment_ids, x.shape)
    reduced = _checks.axes(op, 'reduction_axes', range(1, x.ndim) if reduction_axes is None else reduction_axes, x.ndim)
    if channel not in reduced or 0 in reduced:
        raise ValueError(
            f'{op}: reduction_axes must hold the channels, axis {channel}, and not the batch, axis 0, '
            f'got {reduction_axes}; leave it out to reduce all but the batch.'
        )
    axes = tuple(a + (a >= channel) for a in reduced)
    seen = _Seen(x.shape, _of_segments(mask, ids))
    parts, scale, bias, mask, ids = (_split(groups, channel, a) for a in (x, scale, bias, mask, ids))
    return _of_samples(op, cast(Array, parts), axes, scale, bias, mask, ids, options, seen=seen)


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
    segment_ids: ArrayLike | None = None,
    scale_offset: float = 0.0,
    cast: str = 'after',
    activation: Activation | None = None,
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
        For an axis that `x` does not have, a parameter or mask that does not fit, an epsilon that is no number from 0
        on, an unbound `axis_name`, or an input without batch and channels.

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
    options = _Options(epsilon, axis_name, axis_index_groups, segment_ids, scale_offset, cast, activation)
    return _grouped('instance_norm', x, scale, bias, None, 1, axis, where, options)
