"""The one place where a mean or a variance is computed.

Every statistic here is taken from values centred twice. A mean rounded to float32 is off by up to half a unit in
its last place, which at mean/std = 1e6 is 6 % of a standard deviation; E[x²] - E[x]² loses everything long before.
So: `shift` = the rounded mean, `d = x - shift` (exact, for x and the shift are close), `offset` = mean(d), which is
what the rounding took away, and the variance is that of d. Centred values are `d - offset`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from .._typing import Array, ArrayLike, AxisGroups, AxisName
from . import _products
from ._elementary import exact_product, format_of, number, product
from ._kernel import compute_dtype, computed_once
from ._linear import linear
from ._products import Pair, single, times


def over_names(x: Array, axis_name: AxisName, groups: AxisGroups | None, largest: bool = False) -> Array:
    """The sum, or the largest and at least 0, over named axes, or over the group of devices that this one is in."""
    if groups is None:
        return (jax.lax.pmax if largest else jax.lax.psum)(x, axis_name)
    # vmap knows no psum over groups, nor does a shard_map that checks what varies; what is gathered here is small
    devices = range(jax.lax.psum(1, axis_name))
    together = jnp.asarray([[any(i in g and j in g for g in groups) for j in devices] for i in devices])
    mates = together[jax.lax.axis_index(axis_name)]
    gathered = jnp.where(mates.reshape(-1, *(1,) * x.ndim), jax.lax.all_gather(x, axis_name), 0)
    return gathered.max(0) if largest else gathered.sum(0)


class Pool(NamedTuple):
    """What a statistic is taken over: axes of the array, and named axes of the surrounding maps."""

    axes: tuple[int, ...]
    axis_name: AxisName | None = None
    groups: AxisGroups | None = None

    def total(self, x: Array) -> Array:
        """Sum over the pool; the axes stay, with size one."""
        return self._over_names(_sum(x, self.axes))

    def _over_names(self, total: Array) -> Array:
        return total if self.axis_name is None else over_names(total, self.axis_name, self.groups)

    def range(self, x: Array) -> tuple[int, int]:
        """How many elements a statistic is taken over at least and at most, on all devices."""
        here = math.prod(x.shape[a] for a in self.axes)
        if self.axis_name is None:
            return here, here
        devices = [int(jax.lax.psum(1, self.axis_name))] if self.groups is None else [len(g) for g in self.groups]
        return here * min(devices), here * max(devices)

    def size(self, x: Array, where: Array | None) -> Array | float:
        """How many elements each statistic is taken over: a number, or an array of them under a mask."""
        if where is not None:
            full = jnp.broadcast_to(where, x.shape)
            return self.total(full.astype(compute_dtype(x.dtype)))
        least, most = self.range(x)
        return float(most) if least == most else self.total(jnp.full_like(x, 1, compute_dtype(x.dtype)))

    def total_in_steps(self, x: Array, few: int = 0) -> Pair:
        """The total, with fewer roundings on the way: the last of the steps is exact."""
        if not self.axes:
            return single(self._over_names(x))
        first, *others = _order(x, self.axes)
        last, partial = (first, *others)[-1], x
        if first == x.ndim - 1 or not others or x.shape[first] > few:
            partial = _in_steps(x, first)
        if others:
            partial = _in_steps(jax.lax.optimization_barrier(_sum(partial, (first, *others[:-1]))), last)
        if partial is x:
            return single(self.total(x))
        head, tail = _products.total(partial, (last,))
        return self._pair_over_names(Pair(head, jnp.where(jnp.isfinite(head), tail, 0)))

    def total_exactly(self, x: Array, plus: ArrayLike) -> Pair:
        """The total and a little more, to twice the digits."""
        most, rest = self._pair_over_names(_products.total(x, self.axes))
        return _products.rounded(most, rest + plus)

    def largest(self, x: Array) -> Array:
        """The largest of numbers from 0 on; the axes stay, with size one."""
        top = jnp.max(x, self.axes, keepdims=True, initial=0)
        return top if self.axis_name is None else over_names(top, self.axis_name, self.groups, largest=True)

    def _pair_over_names(self, total: Pair) -> Pair:
        return Pair(*map(self._over_names, total))


class SegmentPool(NamedTuple):
    """A pool that is parted: a statistic is taken over the elements of one id, and stands at each of them.

    `ids` has the rank of the array; along pooled axes where its size is 1 nothing is parted. What is of no segment has
    negative ids; it is to be masked out as well.
    """

    pool: Pool
    ids: Array

    @property
    def axes(self) -> tuple[int, ...]:
        return self.pool.axes

    def total(self, x: Array) -> Array:
        """Sum over the elements of each segment, given back at each of them."""
        return self._each(_sum(x, self._whole), jax.ops.segment_sum)

    def largest(self, x: Array) -> Array:
        """The largest of numbers from 0 on in each segment, given back at each of its elements."""
        return self._each(jnp.max(x, self._whole, keepdims=True, initial=0), jax.ops.segment_max)

    @property
    def _whole(self) -> tuple[int, ...]:
        """The pooled axes along which nothing is parted."""
        return tuple(a for a in self.axes if self.ids.shape[a] == 1)

    def _each(self, x: Array, reduce: Callable[..., Array]) -> Array:
        ids, parted = self.ids, tuple(a for a in self.axes if self.ids.shape[a] != 1)
        apart = tuple(a for a in range(x.ndim) if a not in self.axes and ids.shape[a] != 1)
        alike = tuple(a for a in range(x.ndim) if a not in parted and a not in apart)
        order = (*apart, *parted, *alike)
        moved = x.transpose(order)
        rows = moved.reshape([math.prod(x.shape[a] for a in axes) for axes in (apart, parted, alike)])
        at, segments = self._places(ids.transpose(order).reshape(rows.shape[:2]))
        found = jax.vmap(lambda r, i: reduce(r, i, segments))(rows, at)
        if self.pool.axis_name is not None:
            found = over_names(found, self.pool.axis_name, self.pool.groups, largest=reduce is jax.ops.segment_max)
        here = jnp.take_along_axis(found, at[:, :, None], 1).reshape(moved.shape)
        return here.transpose([order.index(a) for a in range(x.ndim)])

    def range(self, x: Array) -> tuple[int, int]:
        """How many elements a segment has at least and at most, on all devices."""
        return 1, self.pool.range(x)[1]

    def _places(self, ids: Array) -> tuple[Array, int]:
        """Ids by their rank among those of a row, on all devices, and how many there may be."""
        known, name = ids, self.pool.axis_name
        if name is not None:
            known = jnp.moveaxis(jax.lax.all_gather(ids, name), 0, 1).reshape(len(ids), -1)
        known = jnp.sort(known, 1)
        ranks = jnp.pad(jnp.cumsum(known[:, 1:] != known[:, :-1], 1), ((0, 0), (1, 0)))
        return jnp.take_along_axis(ranks, jax.vmap(jnp.searchsorted)(known, ids), 1), known.shape[1]

    def total_in_steps(self, x: Array, few: int = 0) -> Pair:
        """The total, to twice the digits: a sum of a segment adds one term after the other."""
        return self.total_exactly(x, 0)

    def total_exactly(self, x: Array, plus: ArrayLike) -> Pair:
        """The total and a little more, to twice the digits."""
        totals = _totals_with_slope if self.pool.axis_name is None else _totals  # collectives have rules of their own
        most, rest = totals(self.pool, x, self.ids)
        return _products.rounded(most, rest + plus)

    def size(self, x: Array, where: Array | None) -> Array:
        """How many elements each statistic is taken over."""
        full = jnp.ones(x.shape, bool) if where is None else jnp.broadcast_to(where, x.shape)
        return self.total(full.astype(compute_dtype(x.dtype)))


def _totals(pool: Pool, x: Array, ids: Array) -> Pair:
    """The totals of segments: exact ones of heads, and those of what remains."""
    parts = _products.parted(single(x), pool.axes, math.prod(x.shape[a] for a in pool.axes))
    return Pair(*map(SegmentPool(pool, ids).total, parts))


@dataclass(frozen=True)
class _Together:
    """Each element to the total of its segment: its own transpose."""

    pool: Pool

    def __call__(self, residuals: Sequence[Array], operands: Sequence[Array | None]) -> list[Array]:
        head, tail = _totals(self.pool, cast(Array, operands[0]), *residuals)
        return [head + tail]


_totals_with_slope = jax.custom_jvp(_totals, nondiff_argnums=(0,))


@_totals_with_slope.defjvp
def _totals_jvp(pool: Pool, primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Pair, Pair]:
    (x, ids), (dx, _) = primals, tangents
    together = _Together(pool)
    dx = _sum(dx, SegmentPool(pool, ids)._whole)
    return cast(Pair, _totals_with_slope(pool, x, ids)), single(linear(together, together, [ids], [dx])[0])


#: From this size on, sums over the last axis are made of many partial sums by the backends themselves.
_VECTORIZED = 256


#: So many squares of centred values may be added one after the other, where other axes follow.
_FEW = 32
#: So many squares of numbers of size 1e17 are still a number when added up.
_MANY = 2**14
#: A last axis shorter than this leaves most of a register empty.
_VECTOR = 64


def _order(x: Array, axes: tuple[int, ...]) -> list[int]:
    """The axes as they are summed: the last one first, or at the end where it is no vector."""
    return sorted(axes, key=lambda a: (a == x.ndim - 1 and x.shape[a] < _VECTOR, -a))


def _split(n: int) -> int:
    """The divisor of n that is nearest below its root."""
    return next((k for k in range(math.isqrt(n), 1, -1) if n % k == 0), 1)


def _in_steps(x: Array, axis: int) -> Array:
    """Sum the axis down to about the root of its size: n terms one after the other lose up to n roundings."""
    n = x.shape[axis]
    if n < 4 or (axis == x.ndim - 1 and n >= _VECTORIZED) or _laid_out(x, [axis]):
        return x
    outer, rest = _split(n), 0
    if outer * outer * 4 < n:  # no divisor near the root: what is left over is a term of its own
        outer = math.isqrt(n)
        rest = n % outer
    whole = jax.lax.slice_in_dim(x, 0, n - rest, axis=axis) if rest else x
    parts = jnp.sum(whole.reshape(*x.shape[:axis], outer, (n - rest) // outer, *x.shape[axis + 1 :]), axis + 1)
    if rest:
        left = jnp.sum(jax.lax.slice_in_dim(x, n - rest, n, axis=axis), axis, keepdims=True)
        parts = jnp.concatenate([parts, left], axis)
    return jax.lax.optimization_barrier(parts)  # else the compiler makes it one sum again


def _laid_out(x: Array, axes: Sequence[int]) -> bool:
    """Whether some axes are laid out over devices by the type, where a reshape has to say how (explicit sharding)."""
    sharding = getattr(jax.typeof(x), 'sharding', None)
    return sharding is not None and any(s is not None for a, s in enumerate(sharding.spec) if a in axes)


def _sum(x: Array, axes: tuple[int, ...]) -> Array:
    """The sum over axes, one after the other."""
    if not axes:
        return x
    first, *others = _order(x, axes)
    x = jnp.sum(x, first, keepdims=True)
    for axis in others:
        x = jnp.sum(_in_steps(jax.lax.optimization_barrier(x), axis), axis, keepdims=True)
    return x


class Moments(NamedTuple):
    """Mean (as shift + offset) and variance, with the reduced axes kept; zeros where nothing was counted."""

    shift: Array
    offset: Array
    var: Array

    def reported(self, count: Array | float) -> tuple[Array, Array]:
        """(mean, variance) as a user sees them: nan, not 0, where nothing was counted."""
        mean, var = self.shift + self.offset, self.var
        if isinstance(count, float) and count:
            return mean, var
        return jnp.where(count > 0, mean, jnp.nan), jnp.where(count > 0, var, jnp.nan)


def reciprocal(count: Array | float) -> Array | float:
    """1 / count, and 0 for an empty pool, whose moments are then zeros."""
    if isinstance(count, float):
        return 1 / count if count else 0.0
    return jnp.where(count > 0, 1 / jnp.maximum(count, 1), 0)


def wide(x: Array, where: Array | None = None) -> Array:
    """The values in the compute dtype, with zeros where they are masked out (nan included)."""
    x = x.astype(compute_dtype(x.dtype))
    return x if where is None else jnp.where(where, x, 0)


def centre(x: Array, shift: Array, where: Array | None) -> Array:
    """x - shift, and zeros where masked out."""
    return x - shift if where is None else jnp.where(where, x - shift, 0)


def centre_to_sum(x: Array, shift: Array, where: Array | None) -> Array:
    """The same, to be summed at once: written as a sum, which XLA:CPU makes a part of the reduction."""
    return x + -shift if where is None else centre(x, shift, where)


def kept(moment: Array) -> Array:
    """The same, named as what is saved for the backward pass where all else is computed again."""
    return checkpoint_name(moment, 'moments')


def steady(mean: Array) -> Array:
    """A constant next to the mean, its last bit cleared, to be subtracted from what it is the mean of.

    It is the same wherever the compiler computes it again, as an offset needs it that belongs to it: the product that
    a mean is may be left unrounded when it is subtracted at once, but bits have to be there. What derivative the mean
    has, the offset has.
    """
    integer = format_of(mean).integer
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(mean), integer) & np.asarray(-2, integer)
    return jax.lax.bitcast_convert_type(bits, mean.dtype)


def _squares(x: Array, pool: Pool | SegmentPool) -> tuple[Array, float]:
    """x², or such a part of it that sums of many squares are still numbers, and which part that is."""
    many = pool.range(x)[1] / _MANY
    scale = 2.0 ** -math.ceil(math.log2(max(many, 1)) / 2)
    x = x if scale == 1 else x * scale
    return x * x, scale * scale


def mean_of(total: Pair, count: Array | float, part: float = 1.0) -> Array:
    """A total of such a part of squares by what it was counted over, rounded once; 0 for an empty pool.

    An infinite total stays.
    """
    head, tail = total
    if isinstance(count, float):
        share, rest = number(cast(float, reciprocal(count)) / part, head.dtype)
    else:
        share = cast(Array, reciprocal(count))
        whole, low = product(share, jnp.maximum(count, 1))
        rest = ((1 - whole) - low) * share / part
        share = share / part
    return head * share + (jnp.minimum(head, jnp.finfo(head.dtype).max) * rest + tail * share)


def compute(x: Array, pool: Pool | SegmentPool, where: Array | None, count: Array | float) -> Moments:
    """The moments of `x`, given wide, over the pool of so many elements."""
    share = reciprocal(count)
    shift = kept(steady(pool.total(x) * share))
    again = shift
    # else `x - shift` is taken for one in both sums, and stored: which costs less only for sums over axes in the middle
    if pool.axes in _ends(x.ndim, len(pool.axes)):
        (again,) = computed_once(shift)
    offset = kept(pool.total(centre_to_sum(x, shift, where)) * share)
    squares, part = _squares(centre_to_sum(x, again, where), pool)
    # the offset is far below one standard deviation, so nothing cancels in this difference
    var = jnp.maximum(mean_of(pool.total_in_steps(squares, _FEW), count, part) - offset * offset, 0)
    return Moments(shift, offset, kept(var))


def mean_of_squares(x: Array, pool: Pool | SegmentPool, count: Array | float, plus: Array | float = 0.0) -> Pair:
    """The mean of x², and a share of a little more, to twice the digits."""
    squares, part = _squares(x, pool)
    count = jnp.asarray(jnp.maximum(count, 1) * part, x.dtype)
    return _products.divided(pool.total_exactly(squares, plus * part), single(count))


def variance_and(epsilon: float, x: Array, pool: Pool | SegmentPool, where: Array | None, count: Array | float) -> Pair:
    """The variance plus epsilon, to twice the digits: where all of a slope is a multiple of its power."""
    shift, offset, _ = compute(x, pool, where, count)
    d = centre(x, shift, where)
    var = mean_of_squares(d, pool, count, (epsilon - offset * offset) * count)
    least = jnp.asarray(epsilon, x.dtype)
    below = var.head <= least  # which nan is not
    return Pair(kept(jnp.where(below, least, var.head)), kept(jnp.where(below, 0, var.tail)))


def offset_of(x: Array, shift: Array, where: Array | None, pool: Pool, share: Array | float) -> Array:
    """The offset that belongs to a shift, again."""
    return pool.total(centre_to_sum(x, shift, where)) * share


def mean_square(x: Array, pool: Pool | SegmentPool, count: Array | float) -> Moments:
    """The mean of x², in place of the variance, for norms that do not centre."""
    squares, part = _squares(x, pool)
    square = kept(mean_of(pool.total_in_steps(squares), count, part))
    return Moments(jnp.zeros_like(square), jnp.zeros_like(square), square)


def _ends(rank: int, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first axes and the last ones, so many of them."""
    return tuple(range(count)), tuple(range(rank - count, rank))


def contract(p: Array, weight: Array | None, axes: tuple[int, ...]) -> Array:
    """The sum over `axes` of p * weight; None is a weight of one.

    Where the axes are the leading or the trailing ones and the weight varies along nothing else, the sum is a matrix
    product: on a CPU several times faster than a reduction that is fused with a product, on a GPU as fast. Rows are
    taken in blocks, for a product adds them one after the other.
    """
    if not axes:
        return p if weight is None else p * weight
    if weight is None:
        return _sum(_in_steps(p, _order(p, axes)[0]), axes)
    trail = _ends(p.ndim, len(axes))[1]
    along = tuple(s if a in axes else 1 for a, s in enumerate(p.shape))
    if axes not in _ends(p.ndim, len(axes)) or weight.shape != along or _laid_out(p, range(p.ndim)):
        return jnp.sum(p * weight, axes, keepdims=True)
    n = math.prod(p.shape[a] for a in axes)
    each = math.prod(p.shape[a] for a in range(p.ndim) if a not in axes)
    weight = weight.astype(p.dtype)
    if axes == trail:
        out = jnp.matmul(p.reshape(each, n), weight.reshape(n, 1), precision=jax.lax.Precision.HIGHEST)
    else:
        rows = _split(n)
        blocks = (p.reshape(n // rows, rows, each), weight.reshape(n // rows, rows))
        out = jnp.einsum('bic,bi->bc', *blocks, precision=jax.lax.Precision.HIGHEST).sum(0)
    return out.reshape(tuple(1 if a in axes else s for a, s in enumerate(p.shape)))


def largest(x: Array, pool: Pool | SegmentPool) -> Array:
    """The largest magnitude in the pool, 1 where that is 0: a constant that values are divided by before squaring."""
    top = pool.largest(jnp.abs(jax.lax.stop_gradient(x)))
    return kept(jnp.where(top == 0, 1, top))


class Window(NamedTuple):
    """The elements round each one along an axis, the larger half before it; beyond the ends are zeros."""

    axis: int
    size: int

    def total(self, x: Array) -> Array:
        """Sum over each window."""
        window, pads = [1] * x.ndim, [(0, 0)] * x.ndim
        window[self.axis], pads[self.axis] = self.size, (self.size // 2, (self.size - 1) // 2)
        return jax.lax.reduce_window(x, np.zeros((), x.dtype), jax.lax.add, window, [1] * x.ndim, pads)

    def sum_of_squares(self, x: Array) -> Pair:
        """The sum of x² over each window, rounded where it is small beside the largest of the axis."""
        square, lost = exact_product(x, x)
        head, rest = _products.parted(Pair(square, lost), (self.axis,), self.size)
        return Pair(self.total(head), self.total(rest))


def covariance(d: Array, offset: Array, pool: Pool, share: Array | float) -> Array:
    """The covariances of groups of channels: (groups, channels, channels) of rows (rows, groups, channels).

    The rows are those less the shift. Squares of numbers on a coarse grid end in the same bits, so that roundings of a
    plain sum, or of what is less the offset too, would not be random.
    """
    n = d.shape[0]
    rows = math.isqrt(max(n - 1, 0)) + 1
    d = jnp.pad(d, [(0, -n % rows), *[(0, 0)] * (d.ndim - 1)])
    blocks = single(d.reshape(-1, rows, *d.shape[1:]))  # so that each product has few terms
    products = times('brgc,brgd->bgcd', blocks, blocks).head
    return kept(pool.total(products)[0] * share - offset[..., None] * offset[..., None, :])


def average(values: list[Array], counts: Array | float, pool: Pool) -> list[Array]:
    """The averages of statistics over a pool, each weighing what it was taken over; nan where that is nothing."""
    counts = jnp.broadcast_to(jnp.asarray(counts, values[0].dtype), values[0].shape)
    total = pool.total(counts)
    weights = counts * reciprocal(total)
    return [jnp.where(total > 0, pool.total(jnp.where(counts > 0, v, 0) * weights), jnp.nan) for v in values]


def merge(count: Array, one: Moments, more: Array, other: Moments, between: bool = True) -> tuple[Array, Moments]:
    """The count and the moments of two samples together (Chan, Golub & LeVeque); the mean is again shift + offset.

    Without what is `between` the means, the variance is the average of the two.
    """
    total = count + more
    share = more * reciprocal(total)
    apart = (other.shift - one.shift) + (other.offset - one.offset)
    step = one.offset + share * apart
    shift = one.shift + step
    # what the sum rounds away (Knuth), so that a mean of many batches is as exact as that of one
    part = shift - one.shift
    offset = (one.shift - (shift - part)) + (step - part)
    var = (1 - share) * one.var + jnp.where(more > 0, share * other.var, 0)
    var = var + (share * apart) * ((1 - share) * apart) if between else var
    first = count == 0
    return total, Moments(
        jnp.where(first, other.shift, shift),
        jnp.where(first, other.offset, offset),
        jnp.where(first, jnp.where(more > 0, other.var, 0), var),
    )
