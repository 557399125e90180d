"""Self-gated activations, `x * gate(x)` with `gate(x) + gate(-x) = 1`.

For every one of them f(x) - f(-x) = x, and so f'(x) + f'(-x) = 1: the negative side, where tails are small and
relative errors show, is computed from y = |x|, and the positive side follows by one subtraction.
"""

import struct
from typing import Any

import jax.numpy as jnp

from .. import _checks
from .._typing import Array, ArrayLike
from . import _elementary as elementary
from ._kernel import elementwise


def _by_symmetry(x: Array, lost: Array) -> Array:
    """f(x), given `lost` = -f(-|x|)."""
    return jnp.where(x < 0, -lost, x - lost)


def _slope_by_symmetry(x: Array, left: Array) -> Array:
    """f'(x), given `left` = f'(-|x|)."""
    return jnp.where(x < 0, left, 1 - left)


def _two_parts(dtype: Any, parts: tuple[float, float], double: tuple[float, float]) -> tuple[float, float]:
    return double if dtype == jnp.float64 else parts


def _from_root(y: Array, root: tuple[float, float]) -> Array:
    """`root - y` with full relative precision, the root given in two parts.

    The second part counts where y is near the root; as a multiple of y, for compilers add up two constants.
    """
    return (root[0] - y) + y * (root[1] / root[0])


def _lifted_sigmoid_times(y: Array, exponential: Array, shift: int) -> Array:
    """y * u / (1 + u), given u * 2**shift."""
    return y * exponential / (2.0**shift + exponential)


def _left_slope(bent: Array, exponential: Array, shift: int) -> Array:
    """u * bent / (1 + u)**2, given u * 2**shift; as v - v² with v = u / (1 + u), which rounds least."""
    v = exponential / (1 + exponential * 2.0**-shift)
    return (v - v * (v * 2.0**-shift)) * bent * 2.0**-shift


def _rise(u: Array, base: float, exponent: Array) -> Array:
    """u - base, given u = base * exp(exponent): a difference only where it is exact enough."""
    return jnp.where(jnp.abs(exponent) < 0.345, base * elementary.expm1_near_zero(exponent), u - base)


@elementwise
def silu(x: ArrayLike) -> Array:
    r"""Sigmoid linear unit, also called swish.

    .. math:: \mathrm{silu}(x) = x \, \mathrm{sigmoid}(x) = \frac{x}{1 + e^{-x}}

    Parameters
    ----------
    x : array of any shape
        Dimensionless.

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-0.2785, inf).

    Raises
    ------
    TypeError
        If `x` is not an array of real numbers, or has a unit.

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64; that holds where
    the slope passes through zero (x = -1.2785) and in the tail, where exp(x) is subnormal and x * exp(x) is not.

    References
    ----------
    Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units for neural network function approximation in
    reinforcement learning", arXiv:1702.03118. Ramachandran, Zoph and Le, "Searching for activation functions",
    arXiv:1710.05941.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> silu(jnp.array([0.0, jnp.inf])).tolist()
    [0.0, inf]
    >>> bool(silu(-jnp.inf) == 0)
    True
    """
    shift = elementary.format_of(x).spare
    y = jnp.minimum(jnp.abs(x), -elementary.lowest(x, shift))
    return _by_symmetry(x, _lifted_sigmoid_times(y, elementary.exp(-y, shift=shift), shift))


# With u = exp(-y), silu'(-y) = u (1 + u - y) / (1 + u)**2. At its root r, 1 + exp(-r) = r, so that
# 1 + u - y = (r - y) + (u - exp(-r)): two terms of one sign, and no digit is lost.
@silu.derivative
def _silu_slope(x: Array) -> Array:
    root = _two_parts(x.dtype, (1.2784645557403564, -1.297928265020314e-08), (1.2784645427610737, 1.0946994183093437e-16))
    shift = elementary.format_of(x).spare
    y = jnp.minimum(elementary.magnitude(x), -elementary.lowest(x, shift))
    exponential = elementary.exp(-y, shift=shift)
    ahead = _from_root(y, root)
    bent = ahead + _rise(exponential * 2.0**-shift, 0.27846454276107380, ahead)
    return _slope_by_symmetry(x, _left_slope(bent, exponential, shift))


swish = silu

# Phi(-y) * exp(y**2 / 2) * (y + a) and gelu'(-y) * exp(y**2 / 2) / (r - y), r = 0.75179 being the root of the
# slope, as polynomials in q = 1 - 2 a / (y + a): minimax in relative error, as in `_elementary`, for
# 0 <= y <= 15 with a = 4 in float32 (errors 2.2e-8, 1.9e-8), for y <= 39.5 with a = 5 in float64 (2.5e-16, 6.2e-17).
_TAIL = (
    0.7552851438522339, -0.6078965663909912, 0.38713687658309937, -0.1865237057209015, 0.06040346249938011,
    -0.0075240060687065125, -0.0035102134570479393, 0.0015684064710512757, 0.00017465933342464268,
    -0.0001341963215963915,
)  # fmt: skip
_BEND = (
    0.4622112512588501, -0.1033659502863884, 0.06046251952648163, -0.028082245960831642, 0.009510071948170662,
    -0.0017931587062776089, -0.00017692314577288926, 0.00018603635544423014, 1.5744641132187098e-05,
)  # fmt: skip
_TAIL64 = (
    0.7691930497500629, -0.6653825028900554, 0.4953056159700101, -0.3135331566714424, 0.1650203661687802,
    -0.06911863870222379, 0.020795066829877914, -0.0029933768229767318, -0.0007978696878871848, 0.0005448994125724627,
    -5.937409429230376e-05, -4.976408393080682e-05, 1.6675493007866023e-05, 3.983375088583393e-06,
    -2.756638371964681e-06, -3.385006116939132e-07, 4.159787041046902e-07, 4.088916098629676e-08,
    -5.2733651159534327e-08, -5.853257542289104e-09, 3.1160836401698065e-09,
)  # fmt: skip
_BEND64 = (
    0.45143549526340543, -0.08979658026980374, 0.060487813553870784, -0.03553512146915548, 0.017807831556890828,
    -0.007334310928990589, 0.002302183723472948, -0.00044053062529940477, -1.5195774021803628e-05,
    4.064699576007585e-05, -9.201162129526378e-06, -1.9928307350009614e-06, 1.360133535249526e-06,
    2.1640447398334972e-08, -1.6868668939676502e-07, 1.2112042409023761e-08, 2.16598411624981e-08,
    -2.1473892349680485e-09, -2.7211085815962102e-09, 1.5668700652254224e-10, 2.1793063586611104e-10,
)  # fmt: skip


def _bell(y: Array, shift: int = 0) -> Array:
    """exp(-y**2 / 2) * 2**shift, the square carried in two parts."""
    square, rest = elementary.product(y, y)
    return elementary.exp(-0.5 * square, -0.5 * rest, shift)


def _erf_gelu(x: Array) -> Array:
    double = x.dtype == jnp.float64
    a = 5.0 if double else 4.0
    y = jnp.minimum(jnp.abs(x), 39.5 if double else 15.0)
    tail = elementary.polynomial(1 - 2 * a / (y + a), _TAIL64 if double else _TAIL)
    return _by_symmetry(x, _bell(y) * (y * tail / (y + a)))


# gelu'(-y) = Phi(-y) - y phi(y) = exp(-y**2 / 2) (r - y) S(y) with a positive S: right to the last digits at
# the root and in the tail.
def _erf_gelu_slope(x: Array) -> Array:
    double = x.dtype == jnp.float64
    a = 5.0 if double else 4.0
    root = _two_parts(x.dtype, (0.7517915368080139, -1.211444945855772e-08), (0.7517915246935645, -1.4956759177009883e-17))
    shift = elementary.format_of(x).spare
    y = jnp.minimum(elementary.magnitude(x), 39.5 if double else 15.0)
    bend = elementary.polynomial(1 - 2 * a / (y + a), _BEND64 if double else _BEND)
    return _slope_by_symmetry(x, _bell(y, shift) * (_from_root(y, root) * bend) * 2.0**-shift)


# The tanh form is x sigmoid(t) with t = 2 sqrt(2 / pi) (x + 0.044715 x**3).
_LINEAR = 1.59576912160573071175978
_CUBIC = 0.0713548162726002487763388
# what double precision leaves of the two
_LINEAR_REST = -9.96930880911092e-17
_CUBIC_REST = -6.175149918155315e-19
# where its slope is zero, and exp(-t) there
_TANH_ROOT = (0.7524614334106445, -1.1339628272762046e-08)
_TANH_ROOT64 = (0.7524614220710163, -3.635560509207687e-17)
_TANH_ROOT_EXP = 0.29195521191476713459


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """`a + b` in two parts."""
    total = a + b
    behind = total - a
    return total, (a - (total - behind)) + (b - behind)


def _cubic(y: Array) -> tuple[Array, Array]:
    """t(y) in two parts: near 88, half an ulp of t would be 30 ulp of exp(-t)."""
    steep, flat = (c if y.dtype == jnp.float64 else _nearest32(c) for c in (_CUBIC, _LINEAR))
    square, lost = _two_sum(*elementary.product(y, y))
    curve, rest = _two_sum(*elementary.product(square, jnp.full_like(y, steep)))
    rest = rest + (square * (_CUBIC - steep + _CUBIC_REST) + lost * steep)
    factor, more = _two_sum(curve, jnp.full_like(y, flat))  # this way round, for compilers fold constants
    more = more + (rest + (_LINEAR - flat + _LINEAR_REST))
    t, less = _two_sum(*elementary.product(factor, y))
    return t, less + more * y


def _nearest32(value: float) -> float:
    return struct.unpack('f', struct.pack('f', value))[0]


def _tanh_gelu(x: Array) -> Array:
    shift = elementary.format_of(x).spare
    y = jnp.minimum(jnp.abs(x), 22.0 if x.dtype == jnp.float64 else 12.0)
    t, rest = _cubic(y)
    return _by_symmetry(x, _lifted_sigmoid_times(y, elementary.exp(-t, -rest, shift), shift))


# With u = exp(-t(y)) the slope at -y is u (1 + u - y t') / (1 + u)**2. As for silu, the bracket is written from its
# root r: r t'(r) - y t'(y) = (r - y) (a + 3 b (r² + r y + y²)) and t(r) - t(y) = (r - y) (a + b (r² + r y + y²)).
def _tanh_gelu_slope(x: Array) -> Array:
    root = _two_parts(x.dtype, _TANH_ROOT, _TANH_ROOT64)
    shift = elementary.format_of(x).spare
    y = jnp.minimum(elementary.magnitude(x), 22.0 if x.dtype == jnp.float64 else 12.0)
    t, rest = _cubic(y)
    exponential = elementary.exp(-t, -rest, shift)
    ahead = _from_root(y, root)
    squares = root[0] * root[0] + y * (root[0] + y)
    rise = _rise(exponential * 2.0**-shift, _TANH_ROOT_EXP, ahead * (_LINEAR + _CUBIC * squares))
    return _slope_by_symmetry(x, _left_slope(ahead * (_LINEAR + 3 * _CUBIC * squares) + rise, exponential, shift))


@elementwise
def gelu(x: ArrayLike, approximate: bool = False) -> Array:
    r"""Gaussian error linear unit.

    .. math:: \mathrm{gelu}(x) = x \, \Phi(x) = \frac{x}{2} \left(1 + \mathrm{erf} \frac{x}{\sqrt 2}\right)

    Parameters
    ----------
    x : array of any shape
        Dimensionless.
    approximate : bool
        Use the tanh form, ``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³)))``, which differs by up to 4.7e-4.

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-0.17, inf).

    Raises
    ------
    TypeError
        If `x` is not an array of real numbers or has a unit, or `approximate` is not a bool.

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64, in the left tail too:
    exp(-x²/2) is taken with the square carried in two parts.

    References
    ----------
    Hendrycks and Gimpel, "Gaussian error linear units (GELUs)", arXiv:1606.08415.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> gelu(jnp.array([0.0, jnp.inf])).tolist()
    [0.0, inf]
    >>> bool(gelu(-jnp.inf) == 0)
    True
    """
    return _tanh_gelu(x) if _checks.flag('gelu', 'approximate', approximate) else _erf_gelu(x)


@gelu.derivative
def _gelu_slope(x: Array, approximate: bool = False) -> Array:
    return _tanh_gelu_slope(x) if approximate else _erf_gelu_slope(x)
