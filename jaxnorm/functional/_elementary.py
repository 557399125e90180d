"""Exponentials and their kin to within one unit in the last place.

Three things the backend's functions do not give, and the activations need:

- an argument in two parts, since half an ulp of an argument near -88 is 30 ulp of its exponential;
- the result in two parts, `2**k * (1 + p)`: for k = 0, p is expm1 to full relative precision, and a power of
  two that is multiplied last keeps products like x * exp(x) from passing through subnormal numbers, which
  the CPU backend flushes to zero;
- the same error on every backend: nothing but sums, products, rounding and bits. The forms below stay exact
  when the compiler contracts a product and a sum to one fused operation.

All of it is differentiable: what is made of bits is constant wherever it is smooth.

The coefficients are minimax (Remez exchange at 50 digits) in relative error of the function named beside them;
those of float32 were then moved to the neighbouring floats that keep the error smallest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._typing import Array


@dataclass(frozen=True)
class Format:
    """A floating-point format and the tables made for it."""

    integer: Any
    digits: int  # explicit bits of the significand
    bias: int
    ln2: tuple[float, float]  # in two parts; the product of the first and an exponent is exact
    expm1: tuple[float, ...]  # (expm1(r) - r) / r**2 for |r| <= 0.348
    log1p: tuple[float, ...]  # (log1p(u) - u) / u**2 for 0 <= u <= 1
    tanh: tuple[float, ...]  # (x - tanh(x)) / x**3, in powers of x**2, for |x| <= 1

    @property
    def head(self) -> Any:
        """The bits of a number whose square is exact."""
        ones = ~((1 << (self.digits + 2) // 2) - 1)
        return np.asarray(ones, self.integer)

    @property
    def spare(self) -> int:
        """A power of two that lifts every product of interest out of the subnormal numbers."""
        return 40 if self.digits == 23 else 100


_FLOAT32 = Format(
    integer=np.int32,
    digits=23,
    bias=127,
    ln2=(0.693145751953125, 1.428606765330187e-06),
    # 1.4e-8
    expm1=(0.4999999701976776, 0.16666541993618011, 0.041667353361845016, 0.008366841822862625, 0.0013881773920729756),
    # 3.4e-8
    log1p=(
        -0.49999648332595825, 0.3332132399082184, -0.24857167899608612, 0.19153669476509094,
        -0.13753829896450043, 0.07920482009649277, -0.030065955594182014, 0.005364865064620972,
    ),
    # 3.0e-8
    tanh=(
        0.3333333432674408, -0.13333411514759064, 0.05397828295826912, -0.021913612261414528, 0.008927339687943459,
        -0.003531438997015357, 0.0011527404421940446, -0.0002067028544843197,
    ),
)  # fmt: skip
_FLOAT64 = Format(
    integer=np.int64,
    digits=52,
    bias=1023,
    ln2=(6.93147180369123816490e-01, 1.90821492927058770002e-10),
    # 2.6e-17
    expm1=(
        0.5000000000000006, 0.16666666666666585, 0.04166666666657385, 0.008333333333391394, 0.0013888888932597845,
        0.00019841269716013528, 2.4801503953713062e-05, 2.7557408980954065e-06, 2.7626589244712106e-07,
        2.5053786279487542e-08,
    ),
    # 6.8e-17
    log1p=(
        -0.49999999999997, 0.33333333332838355, -0.24999999971102033, 0.19999999135271185, -0.16666651023651155,
        0.1428552632244414, -0.12498406346231992, 0.1110117138782301, -0.09953000885315637, 0.08918573238650977,
        -0.07834467673877321, 0.06534888563126691, -0.0495910629561471, 0.032606638289760494, -0.017632486143416067,
        0.007397159872760292, -0.0022309461708951957, 0.00042695511180307436, -3.873824371240515e-05,
    ),
    # 1.4e-17
    tanh=(
        0.3333333333333333, -0.13333333333333092, 0.05396825396804674, -0.021869488529139666, 0.00886323540474017,
        -0.003592126680859629, 0.0014558247010901383, -0.0005899793317774305, 0.00023895716069582672,
        -9.64630045245541e-05, 3.838995065121829e-05, -1.460650117919972e-05, 4.988037782876494e-06,
        -1.3793192970260093e-06, 2.633484404882726e-07, -2.516043726601646e-08,
    ),
)  # fmt: skip


def format_of(x: Array) -> Format:
    """The tables for the dtype of `x`."""
    return _FLOAT64 if x.dtype == jnp.float64 else _FLOAT32


def magnitude(x: Array) -> Array:
    """|x| with slope 1 at 0, where that of `abs` is 0: for derivatives that are written in |x|."""
    return jnp.where(x < 0, -x, x)


def polynomial(x: Array, coefficients: Sequence[Any], last: int = 1) -> Array:
    """The sum of `coefficients[i] * x**i`, in pairs (Estrin's scheme): half as long a chain as Horner's.

    The first coefficients, as many as `last` says, are most of the sum, and added last, one after the other.
    """
    terms, power = list(coefficients[last:]), x
    while len(terms) > 1:
        pairs = [a + b * power for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[2 * len(pairs) :]
        power = power * power
    total = terms[0]
    for c in coefficients[last - 1 :: -1]:
        total = c + x * total
    return total


def head(x: Array) -> Array:
    """The leading half of the significand of `x`: products of two heads are exact."""
    form = format_of(x)
    bits = lax.bitcast_convert_type(x, form.integer) & form.head
    return lax.bitcast_convert_type(bits, x.dtype)


def product(a: Array, b: Array) -> tuple[Array, Array]:
    """`a * b` in two parts, the first of them exact."""
    ah, bh = head(a), head(b)
    return ah * bh, ah * (b - bh) + (a - ah) * b


def exact_product(a: Array, b: Array) -> tuple[Array, Array]:
    """`a * b` in two parts: the rounded product, and what is missing from it to twice the digits."""
    ah, bh = head(a), head(b)
    al, bl = a - ah, b - bh
    one, other = ah * bl, al * bh
    middle = one + other
    back = middle - one
    lost = (one - (middle - back)) + (other - back)
    total = ah * bh + middle
    return total, ((ah * bh - total) + middle) + (lost + al * bl)


def exact_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """`a + b` in two parts: the rounded sum, and what is missing from it (Knuth)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def number(value: float, dtype: Any) -> tuple[float, float]:
    """A Python number in two parts: as one of the dtype, and what that rounds away."""
    head = float(np.asarray(value, dtype))
    return head, value - head


def scaled(x: Array, factor: Any, rest: float = 0.0, exact: bool = False) -> tuple[Array, Array]:
    """`(factor + rest) * x` in two parts, finite: half an ulp of a large argument is many of its exponential.

    `exact`: to twice the digits, as needed for its distance from a root.
    """
    limit = float(jnp.finfo(x.dtype).max) ** 0.9  # no inf * 0 on the way
    finite = jnp.clip(x, -limit, limit)
    whole, part = (exact_product if exact else product)(finite, jnp.asarray(factor, x.dtype))
    return whole, part + finite * rest if rest else part


def with_sign(y: Array, x: Array) -> Array:
    """The non-negative `y` with the sign of `x`, that of zero included."""
    integer = format_of(x).integer
    sign = lax.bitcast_convert_type(x, integer) & np.iinfo(integer).min
    return lax.bitcast_convert_type(lax.bitcast_convert_type(y, integer) | sign, y.dtype)


def lowest(x: Array, shift: Any = 0) -> Any:
    """The argument from which down `exp(x, shift=shift)` is zero."""
    return -(format_of(x).bias + shift) * math.log(2)


def two_to(k: Array, shift: int | Array = 0) -> Array:
    """2**(k + shift) for an integral `k`; 0 where that is the exponent below the least normal number."""
    form = format_of(k)
    # adding 1.5 * 2**digits leaves the biased exponent in the last bits of the significand
    bits = lax.bitcast_convert_type(k + (1.5 * 2.0**form.digits + form.bias + shift), form.integer)
    return lax.bitcast_convert_type(lax.shift_left(bits, np.asarray(form.digits, form.integer)), k.dtype)


def exponent(x: Array) -> Array:
    """The integer E with 2**(E - 1) <= x < 2**E, for a normal `x` above 0; the least one for 0."""
    form = format_of(x)
    bits = lax.bitcast_convert_type(lax.stop_gradient(x), form.integer)
    return lax.shift_right_logical(bits, np.asarray(form.digits, form.integer)) - (form.bias - 1)


def two_to_integer(k: Array, dtype: Any) -> Array:
    """2**k for integers that are the exponent of a normal number."""
    form = _FLOAT64 if dtype == jnp.float64 else _FLOAT32
    bits = lax.shift_left((k + form.bias).astype(form.integer), np.asarray(form.digits, form.integer))
    return lax.bitcast_convert_type(bits, dtype)


def nearest_power(x: Array, shift: int | Array = 0) -> tuple[Array, Array]:
    """(k, 2**(k + shift)) for k, the integer next to `x`."""
    # not by adding and subtracting a large number, which XLA takes for nothing
    k = lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
    return k, two_to(k, shift)


def expm1_near_zero(r: Array) -> Array:
    """exp(r) - 1 for |r| <= 0.348."""
    return r + r * r * polynomial(r, format_of(r).expm1)


# (exp(-y) - 1 + y) / y**2 for 0 <= y <= 1, minimax in relative error: 5.3e-10, 3.5e-20
_CURVE = (
    0.5, -0.166666641831398, 0.041666269302368164, -0.008330962620675564, 0.0013820752501487732,
    -0.00018817880481947213, 1.6879859686014242e-05,
)  # fmt: skip
_CURVE64 = (
    0.5, -0.16666666666666666, 0.04166666666666635, -0.008333333333326476, 0.0013888888888112481,
    -0.00019841269788829305, 2.480158502256473e-05, -2.7557252675887993e-06, 2.7555984594572105e-07,
    -2.503364074111045e-08, 2.0702796640238533e-09, -1.4984740350321805e-10, 7.453711219968302e-12,
)  # fmt: skip


def curve(y: Array) -> Array:
    """(exp(-y) - 1 + y) / y**2 for 0 <= y <= 1."""
    return polynomial(y, _CURVE64 if y.dtype == jnp.float64 else _CURVE)


def exp_parts(x: Array, rest: Array | None = None, shift: int | Array = 0) -> tuple[Array, Array]:
    """(scale, p) with exp(x + rest) * 2**shift = scale * (1 + p) and |p| < 0.42, for x + rest <= 0."""
    form, low = format_of(x), lowest(x, shift)
    if rest is not None:
        rest = jnp.where(x > low, rest, 0)
    x = jnp.maximum(x, low)
    k, scale = nearest_power((x if rest is None else x + rest) * (1 / math.log(2)), shift)
    r = (x - k * form.ln2[0]) - k * form.ln2[1]
    return scale, expm1_near_zero(r if rest is None else r + rest)


def exp(x: Array, rest: Array | None = None, shift: int = 0) -> Array:
    """exp(x + rest) * 2**shift for x + rest <= 0."""
    scale, p = exp_parts(x, rest, shift)
    return scale * (1 + p)  # not scale + scale * p: a subnormal product is lost


def exp_of_any_sign(x: Array, rest: Array | None = None) -> Array:
    """exp(x + rest), infinite where that is above the greatest number."""
    high = (format_of(x).bias + 1) * math.log(2)
    rest = None if rest is None else jnp.where(x < high, rest, 0)
    above = jnp.where(x > 0, 1, jnp.zeros_like(x))  # the greatest power, 2**128 in float32, is no number itself
    scale, p = exp_parts(jnp.minimum(x, high), rest, -above)
    return jnp.where(x > high, jnp.inf, scale * (1 + p) * (1 + above))


def expm1(x: Array) -> Array:
    """exp(x) - 1 for x <= 0."""
    scale, p = exp_parts(x)
    return (scale - 1) + scale * p


def log1p(u: Array, times: Array | None = None) -> Array:
    """log(1 + u) for 0 <= u <= 1; with `times`, log(1 + u) / u * times."""
    times = u if times is None else times
    return times + times * (u * polynomial(u, format_of(u).log1p))


#: (log1p(u) - u + u**2 / 2) / u**3 for sqrt(1/2) - 1 <= u <= sqrt(2) - 1, in float32; 2.6e-8
_LOG = (
    0.3333333134651184, -0.24999980628490448, 0.2000068873167038, -0.16669151186943054, 0.14251156151294708,
    -0.1239669993519783, 0.11634661257266998, -0.11659929901361465, 0.07332532852888107,
)  # fmt: skip


def _log(x: Array) -> tuple[Array, Array]:
    """log(x) of a float32 number above 0, in two parts, together within 1e-8 however large it is."""
    form = format_of(x)
    k = exponent(x * (1 / math.sqrt(2)))
    u = x * two_to_integer(-k, x.dtype) - 1
    k = k.astype(x.dtype)
    square, lost = exact_product(u, u)
    small = k * form.ln2[1] + (u * square * polynomial(u, _LOG) - 0.5 * lost)
    most, rest = exact_sum(k * form.ln2[0], u)
    most, more = exact_sum(most, -0.5 * square)
    return most, (rest + more) + small


def power(x: Array, rest: Array, exponent: float) -> tuple[Array, Array]:
    """(x + rest)**exponent in two parts, for x above 0 and a small rest. It has no derivative."""
    if x.dtype == jnp.float64:
        y = x**exponent
        return y, y * (exponent * (rest / x))
    form, (most, little) = format_of(x), number(exponent, x.dtype)
    log, tail = _log(x)
    whole, part = exact_product(log, jnp.asarray(most, x.dtype))
    part = part + (tail * most + log * little + exponent * (rest / x))
    k = jnp.clip(lax.round(whole * (1 / math.log(2)), lax.RoundingMethod.TO_NEAREST_EVEN), -250, 250)
    r = whole - k * form.ln2[0]
    head = lax.round(r * 2048, lax.RoundingMethod.TO_NEAREST_EVEN) / 2048
    part = (r - head) + (part - k * form.ln2[1])
    r = head + part
    half = lax.round(0.5 * k, lax.RoundingMethod.TO_NEAREST_EVEN)
    one, other = two_to(half), two_to(k - half)
    return (1 + head) * one * other, (part + r * r * polynomial(r, form.expm1)) * one * other


def minus_magnitude(x: Array, rest: Array | None = None) -> tuple[Array, Array | None]:
    """-|x + rest| in two parts, with slope -1 at 0."""
    return -magnitude(x), None if rest is None else jnp.where(x < 0, rest, -rest)


def rise(x: Array) -> Array:
    """exp(x), infinite from 2**(bias + 0.5) up: where only its reciprocal matters."""
    form = format_of(x)
    x = jnp.clip(x, lowest(x), (form.bias + 1) * math.log(2))
    k, scale = nearest_power(x * (1 / math.log(2)))
    return scale * (1 + expm1_near_zero((x - k * form.ln2[0]) - k * form.ln2[1]))


@jax.custom_jvp
def _logistic(x: Array) -> Array:
    return 1 / (1 + rise(-x))


@jax.custom_jvp
def logistic_slope(x: Array) -> Array:
    """The derivative y (1 - y) of the logistic function y.

    1 - y, which has no digits left where y is near 1, is y exp(-x). What y is off, it is off twice.
    """
    u = rise(-x)
    y = 1 / (1 + u)
    u = jnp.minimum(u, float(jnp.finfo(x.dtype).max))  # 0 * inf is none
    slope, off = y * (u * y), (1 - y) - u * y
    return slope + 2 * off * slope


# In the tails the squares that differentiation would find there are no numbers.
_logistic.defjvps(lambda dx, y, x: dx * logistic_slope(x))
logistic_slope.defjvps(lambda dx, y, x: dx * (y * (1 - 2 * _logistic(x))))


def logistic(x: Array, rest: Array | None = None) -> Array:
    """1 / (1 + exp(-x - rest)), the second part being small beside the first."""
    if rest is None:
        return _logistic(x)
    u = exp(*minus_magnitude(x, rest))
    return jnp.where(x < 0, u, jnp.ones_like(u)) / (1 + u)


def square_of_one_plus(u: Array) -> Array:
    """(1 + u)**2 for 0 <= u <= 1: the sum is rounded once, not twice."""
    return 1 + u * (2 + u)


def tanh_share_lost(x: Array) -> Array:
    """1 - tanh(x) / x for |x| <= 1."""
    return x * x * polynomial(x * x, format_of(x).tanh)
