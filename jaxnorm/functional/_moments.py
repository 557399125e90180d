"""The one place where a mean or a variance is computed.

Every statistic here is taken from values centred twice. A mean rounded to float32 is off by up to half a unit in
its last place, which at mean/std = 1e6 is 6 % of a standard deviation; E[x²] - E[x]² loses everything long before.
So: `shift` = the rounded mean, `d = x - shift` (exact, for x and the shift are close), `offset` = mean(d), which is
what the rounding took away, and the variance is that of d. Centred values are `d - offset`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, AxisGroups, AxisName
from ._kernel import compute_dtype


class Pool(NamedTuple):
    """What a statistic is taken over: axes of the array, and named axes of the surrounding maps."""

    axes: tuple[int, ...]
    axis_name: AxisName | None = None
    groups: AxisGroups | None = None

    def total(self, x: Array) -> Array:
        """Sum over the pool; the axes stay, with size one."""
        total = _sum(x, self.axes)
        if self.axis_name is not None:
            total = jax.lax.psum(total, self.axis_name, axis_index_groups=self.groups)
        return total

    def size(self, x: Array, where: Array | None) -> Array | float:
        """How many elements each statistic is taken over: a number, or an array of them under a mask."""
        if where is not None:
            full = jnp.broadcast_to(where, x.shape)
            return self.total(full.astype(compute_dtype(x.dtype)))
        here = math.prod(x.shape[a] for a in self.axes)
        if self.axis_name is None:
            return float(here)
        return here * jax.lax.psum(1.0, self.axis_name, axis_index_groups=self.groups)


#: From this size on, sums over the last axis are made of many partial sums by the backends themselves.
_VECTORIZED = 256


def _split(n: int) -> int:
    """The divisor of n that is nearest below its root."""
    return next((k for k in range(math.isqrt(n), 1, -1) if n % k == 0), 1)


def _in_steps(x: Array, axis: int) -> Array:
    """Sum the axis down to about the root of its size: n terms one after the other lose up to n roundings."""
    n = x.shape[axis]
    inner = _split(n)
    if inner == 1 or (axis == x.ndim - 1 and n >= _VECTORIZED):
        return x
    parts = x.reshape(*x.shape[:axis], n // inner, inner, *x.shape[axis + 1 :])
    return jax.lax.optimization_barrier(jnp.sum(parts, axis + 1))  # else the compiler makes it one sum again


def _sum(x: Array, axes: tuple[int, ...]) -> Array:
    """The sum over axes, one after the other, the last one first."""
    *others, last = sorted(axes)
    x = jnp.sum(x, last, keepdims=True)
    for axis in reversed(others):
        x = jnp.sum(_in_steps(jax.lax.optimization_barrier(x), axis), axis, keepdims=True)
    return x


class Moments(NamedTuple):
    """Mean (as shift + offset) and variance, with the reduced axes kept; zeros where nothing was counted."""

    shift: Array
    offset: Array
    var: Array

    def reported(self, share: Array | float) -> tuple[Array, Array]:
        """(mean, variance) as a user sees them: nan, not 0, where nothing was counted."""
        mean, var = self.shift + self.offset, self.var
        if isinstance(share, float) and share:
            return mean, var
        return jnp.where(share > 0, mean, jnp.nan), jnp.where(share > 0, var, jnp.nan)


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


def compute(x: Array, pool: Pool, where: Array | None, share: Array | float) -> Moments:
    """The moments of `x`, given wide, over the pool, of which each element is a `share`."""
    shift = pool.total(x) * share
    d = centre(x, shift, where)
    offset = pool.total(d) * share
    # the offset is far below one standard deviation, so nothing cancels in this difference
    var = jnp.maximum(pool.total(_in_steps(d * d, pool.axes[-1])) * share - offset * offset, 0)
    return Moments(shift, offset, var)


def offset_of(x: Array, shift: Array, where: Array | None, pool: Pool, share: Array | float) -> Array:
    """The offset that belongs to a shift, again.

    The difference is written as a sum: one of its own, which XLA:CPU makes a part of the reduction. The `x - shift`
    that stands in other terms as well would be stored for all of them.
    """
    return pool.total(centre(x, shift, where) if where is not None else x + -shift) * share


def mean_square(x: Array, pool: Pool, share: Array | float) -> Moments:
    """The mean of x², in place of the variance, for norms that do not centre."""
    square = pool.total(_in_steps(x * x, pool.axes[-1])) * share
    return Moments(jnp.zeros_like(square), jnp.zeros_like(square), square)


def contract(p: Array, weight: Array | None, axes: tuple[int, ...]) -> Array:
    """The sum over `axes` of p * weight; None is a weight of one.

    Where the axes are the leading or the trailing ones and the weight varies along nothing else, the sum is a matrix
    product: on a CPU several times faster than a reduction that is fused with a product, on a GPU as fast. Rows are
    taken in blocks, for a product adds them one after the other.
    """
    if not axes:
        return p if weight is None else p * weight
    if weight is None:
        return _sum(_in_steps(p, axes[-1]), axes)
    lead, trail = tuple(range(len(axes))), tuple(range(p.ndim - len(axes), p.ndim))
    if axes not in (lead, trail) or weight.shape != tuple(s if a in axes else 1 for a, s in enumerate(p.shape)):
        return jnp.sum(p * weight, axes, keepdims=True)
    n = math.prod(p.shape[a] for a in axes)
    weight = weight.astype(p.dtype)
    if axes == trail:
        out = jnp.matmul(p.reshape(-1, n), weight.reshape(n, 1), precision=jax.lax.Precision.HIGHEST)
    else:
        rows = _split(n)
        blocks = (p.reshape(n // rows, rows, -1), weight.reshape(n // rows, rows))
        out = jnp.einsum('bic,bi->bc', *blocks, precision=jax.lax.Precision.HIGHEST).sum(0)
    return out.reshape(tuple(1 if a in axes else s for a, s in enumerate(p.shape)))
