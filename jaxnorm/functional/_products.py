"""Products of matrices to within one rounding of their largest terms, however many terms an entry has.

A product in float32 rounds after each of its terms; here only the last rounding is left. An array is parted into heads,
multiples of a power of two so large that sums of products of heads are exact, and what remains of it, some 500 times
smaller, whose roundings don't show: three products in place of one. A number may come, and the result does, as the
unevaluated sum of two, so that a chain of products rounds once.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from .._typing import Array
from . import _elementary as elementary
from ._elementary import exact_product, product
from ._kernel import computed_once
from ._linear import linear


class Pair(NamedTuple):
    """The unevaluated sum of an array and what its rounding has left."""

    head: Array
    tail: Array


def single(x: Array) -> Pair:
    """An array as it is."""
    return Pair(x, jnp.zeros_like(x))


def rounded(a: Array, b: Array) -> Pair:
    """`a + b`: the rounded sum, and what is missing from it (Knuth), which is constant for derivatives."""
    total, rest = elementary.exact_sum(a, b)
    return Pair(total, jax.lax.stop_gradient(rest))


def add(a: Pair, b: Pair) -> Pair:
    """The sum of two pairs."""
    total = rounded(a.head, b.head)
    return rounded(total.head, total.tail + (a.tail + b.tail))


def minus(a: Pair, b: Pair) -> Pair:
    """The difference of two pairs."""
    return add(a, Pair(-b.head, -b.tail))


def multiplied(a: Pair, b: Pair) -> Pair:
    """The product of two pairs, not to be differentiated."""
    whole, part = exact_product(a.head, b.head)
    return rounded(whole, part + (a.head * b.tail + a.tail * b.head))


def power_of_two(x: Array, bits: int = 0) -> Array:
    """The power of two next above each number, less so many bits: what an array is scaled with without a rounding."""
    form = jnp.finfo(x.dtype)
    exponent = jnp.clip(elementary.exponent(x) - bits, int(form.minexp), -int(form.minexp))
    return elementary.two_to_integer(exponent, x.dtype)


def _parted(x: Pair, axes: tuple[int, ...], bits: int) -> tuple[Array, Array]:
    """A head of so many bits below the largest of the axes, and all that remains."""
    unit = power_of_two(jnp.max(jnp.abs(x.head), axes, keepdims=True, initial=0), bits)
    head = jnp.round(x.head / unit) * unit
    return head, (x.head - head) + x.tail


@jax.custom_jvp
def inverse_root(x: Array) -> Array:
    """1 / sqrt(x), rounded once, as its derivative nearly is; 0 where `x` is 0 or infinite, nan below 0."""
    plain = (x > 0) & (x < jnp.inf)
    lift = jnp.where(x < 2.0**-50, 2.0**32, jnp.ones((), x.dtype))  # else what is left of a small x is subnormal
    positive = jnp.where(plain, x * lift * lift, 1)
    y = 1 / jnp.sqrt(positive)
    root, low = product(positive, y)
    one, rest = product(root, y)
    y = y + 0.5 * y * (((1 - one) - rest) - low * y)  # a step of Newton's method, with what is left of 1 - x y**2
    return jnp.where(plain, y * lift, jnp.where((x == 0) | (x == jnp.inf), 0, jnp.nan))


@inverse_root.defjvp
def _inverse_root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    y = cast(Array, inverse_root(x))
    return y, -0.5 * dx * y / jnp.where(x > 0, x, 1)  # in this order nothing over- or underflows


def divided(x: Pair, by: Pair) -> Pair:
    """The quotient, to twice the digits."""
    head = x.head / by.head
    whole, part = exact_product(jax.lax.stop_gradient(head), jax.lax.stop_gradient(by.head))
    return Pair(head, jax.lax.stop_gradient((((x.head - whole) - part) + (x.tail - head * by.tail)) / by.head))


def parted(x: Pair, axes: tuple[int, ...], terms: int) -> tuple[Array, Array]:
    """Heads, of which sums of so many terms along the axes are exact, and what remains."""
    bits = jnp.finfo(x.head.dtype).nmant + 1 - math.ceil(math.log2(max(terms, 1)))
    return _parted(x, axes, bits)


def total(x: Array, axes: tuple[int, ...]) -> Pair:
    """The sum over axes, which stay with size one: an exact one of heads, and that of what remains."""
    parts = parted(single(x), axes, math.prod(x.shape[a] for a in axes))
    return Pair(*(jnp.sum(part, axes, keepdims=True) for part in parts))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def power(exponent: float, x: Pair) -> Pair:
    """`x` to a power, for numbers above 0 that are neither huge nor tiny."""
    return rounded(*elementary.power(*x, exponent))


@power.defjvp
def _power_jvp(exponent: float, primals: tuple[Pair], tangents: tuple[Pair]) -> tuple[Pair, Pair]:
    (x,), (dx,) = primals, tangents
    return power(exponent, x), single(exponent * power(exponent - 1, x).head * dx.head)


@dataclass(frozen=True)
class _Spread:
    """One number, times a factor in two parts, for each element of the axes, and the transpose."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    back: bool = False

    def __call__(self, residuals: Any, operands: Any) -> list[Array]:
        head, tail = residuals
        moved = total(operands[0], self.axes) if self.back else single(operands[0])
        whole, part = exact_product(moved.head, head)
        product = whole + (part + (moved.head * tail + moved.tail * head))
        return [product if self.back else jnp.broadcast_to(product, self.shape)]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _spread_power(exponent: float, shape: tuple[int, ...], x: Pair) -> Array:
    (y,) = computed_once(power(exponent, x).head)
    return jnp.broadcast_to(y, shape)


@_spread_power.defjvp
def _spread_power_jvp(
    exponent: float, shape: tuple[int, ...], primals: tuple[Pair], tangents: tuple[Pair]
) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    axes = tuple(a for a, s in enumerate(x.head.shape) if s != shape[a])
    slope = Pair(*computed_once(*power(exponent - 1, x)))
    residuals = [exponent * slope.head, exponent * slope.tail]
    dy = linear(_Spread(shape, axes), _Spread(shape, axes, back=True), residuals, [dx.head])[0]
    return cast(Array, _spread_power(exponent, shape, x)), dy


def spread_power(exponent: float, x: Pair, shape: tuple[int, ...]) -> Array:
    """The square root (0.5) or its inverse (-0.5), 0 where `x` is 0 and nan where it is none, broadcast to a shape.

    The slope, a sum over what it is broadcast along, is rounded once: where a derivative is a multiple of it.
    """
    positive = (x.head > 0) & (x.head < jnp.inf)
    head = jnp.where(positive, x.head, 1)
    # of 1/4 to 1, and a root of what was taken out: nothing over- or underflows on the way
    half = (elementary.exponent(head) + 1) // 2
    root, inverse = (elementary.two_to_integer(k, head.dtype) for k in (half, -half))
    y = _spread_power(exponent, shape, Pair(*(t * inverse * inverse for t in (head, jnp.where(positive, x.tail, 0)))))
    return jnp.where(positive, y * (root if exponent > 0 else inverse), jnp.where(x.head == 0, 0, jnp.nan))


def _names(spec: str) -> tuple[str, str, str]:
    operands, result = spec.split('->')
    left, right = operands.split(',')
    return left, right, result


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def times(spec: str, a: Pair, b: Pair) -> Pair:
    """`jnp.einsum(spec, a, b)` of two operands."""
    left, right, result = _names(spec)
    summed = [n for n in left if n in right and n not in result]
    terms = math.prod(a.head.shape[left.index(n)] for n in summed)
    bits = (jnp.finfo(a.head.dtype).nmant + 1 - math.ceil(math.log2(max(terms, 1)))) // 2
    top, rest = _parted(a, tuple(left.index(n) for n in summed), bits)
    top2, rest2 = _parted(b, tuple(right.index(n) for n in summed), bits)
    dot = partial(jnp.einsum, spec, precision=jax.lax.Precision.HIGHEST)
    return rounded(dot(top, top2), dot(top, rest2) + dot(rest, b.head))


@dataclass(frozen=True)
class _By:
    """The product as a map of its left operand (0) or its right one (1)."""

    spec: str
    side: int

    def __call__(self, residuals: Any, operands: Any) -> list[Array]:
        moving, fixed = single(operands[0]), Pair(*residuals)
        return [times(self.spec, *((fixed, moving) if self.side else (moving, fixed))).head]

    @property
    def transpose(self) -> '_By':
        left, right, result = _names(self.spec)
        return _By(f'{left},{result}->{right}' if self.side else f'{result},{right}->{left}', self.side)


@times.defjvp
def _times_jvp(spec: str, primals: tuple[Pair, Pair], tangents: tuple[Pair, Pair]) -> tuple[Pair, Pair]:
    # tails have no tangents
    maps = _By(spec, 0), _By(spec, 1)
    moved = [
        linear(f, f.transpose, [*fixed], [moving.head])[0]
        for f, fixed, moving in zip(maps, reversed(primals), tangents, strict=True)
    ]
    return cast(Pair, times(spec, *primals)), single(moved[0] + moved[1])
