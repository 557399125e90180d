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


def _left(y: Array, scale: Array, p: Array, shift: int) -> Array:
    """y * u / (1 + u), given u = scale * (1 + p) / 2**shift."""
    exponential = scale + scale * p
    return y * exponential / (2.0**shift + exponential)


def _left_slope(bent: Array, scale: Array, p: Array, shift: int) -> Array:
    """u * bent / (1 + u)**2, given u = scale * (1 + p) / 2**shift."""
    u = (scale + scale * p) * 2.0**-shift
    part = scale * (bent / elementary.square_of_one_plus(u))
    return (part + part * p) * 2.0**-shift


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
    return _by_symmetry(x, _left(y, *elementary.exp_parts(-y, shift=shift), shift))


# With u = exp(-y), silu'(-y) = u (1 + u - y) / (1 + u)**2. At its root r, 1 + exp(-r) = r, so that
# 1 + u - y = (r - y) + (u - exp(-r)): two terms of one sign, and no digit is lost.
@silu.derivative
def _silu_slope(x: Array) -> Array:
    root = _two_parts(x.dtype, (1.2784645557403564, -1.297928265020314e-08), (1.2784645427610737, 1.0946994183093437e-16))
    shift = elementary.format_of(x).spare
    y = jnp.minimum(elementary.magnitude(x), -elementary.lowest(x, shift))
    scale, p = elementary.exp_parts(-y, shift=shift)
    ahead = _from_root(y, root)
    bent = ahead + _rise((scale + scale * p) * 2.0**-shift, 0.27846454276107380, ahead)
    return _slope_by_symmetry(x, _left_slope(bent, scale, p, shift))


swish = silu

# Phi(-y) exp(y**2 / 2) and gelu'(-y) exp(y**2 / 2) / (r - y), r = 0.75179 being the root of the slope, as quotients
# of polynomials: minimax in relative error, as in `_elementary`, for 0 <= y <= 15 in float32 (errors 1.2e-8 and
# 1.6e-8) and for y <= 39.5 in float64 (5e-17 and 4e-17). No coefficient is negative, so nothing cancels.
_TAIL = (
    (0.5, 0.4392835795879364, 0.18396921455860138, 0.04088117182254791, 0.004153234418481588),
    (1.0, 1.6764521598815918, 1.205548644065857, 0.4714089632034302, 0.10248000919818878, 0.01041050348430872),
)
_BEND = (
    (0.6650779843330383, 0.7541886568069458, 0.37849417328834534, 0.09587924927473068, 0.010470819659531116),
    (1.0, 1.3995978832244873, 0.7941608428955078, 0.2206089049577713, 0.02624630741775036),
)
_TAIL64 = (
    (
        0.5, 0.7751925551131666, 0.5945083605549802, 0.28966298251506456, 0.09784774938053993, 0.023667802460406243,
        0.0040989599084099385, 0.0004918136131237995, 3.738109463075212e-05, 1.3913605602870707e-06,
    ),
    (
        1.0, 2.3482696710291884, 2.562664836226104, 1.715863357116248, 0.7829733334707213, 0.2553550915045402,
        0.06055220192212633, 0.01036826930086365, 0.0012362815324178478, 9.370050873604879e-05, 3.487623720631844e-06,
    ),
)  # fmt: skip
_BEND64 = (
    (
        0.6650779951314343, 1.2537319340535047, 1.131497330101185, 0.6325489566653771, 0.24009272865981118,
        0.06409831083351261, 0.012058612989758207, 0.001548222920227258, 0.00012400087852193633,
        4.776200408383952e-06,
    ),
    (
        1.0, 2.15070321586106, 2.125862119468935, 1.2710902683268293, 0.5083412819150672, 0.14159378641780057,
        0.027610716709067843, 0.0036591165762558846, 0.00030182354051976507, 1.197215898897066e-05,
    ),
)  # fmt: skip


def _times_bell(factor: Array, y: Array, shift: int = 0) -> Array:
    """factor * exp(-y**2 / 2), the square carried in two parts."""
    square, rest = elementary.product(y, y)
    scale, p = elementary.exp_parts(-0.5 * square, -0.5 * rest, shift)
    factor = scale * factor
    return (factor + factor * p) * 2.0**-shift


def _erf_gelu(x: Array) -> Array:
    double = x.dtype == jnp.float64
    y = jnp.minimum(jnp.abs(x), 39.5 if double else 15.0)
    over, under = _TAIL64 if double else _TAIL
    return _by_symmetry(x, _times_bell(y * elementary.polynomial(y, over) / elementary.polynomial(y, under), y))


# gelu'(-y) = Phi(-y) - y phi(y) = exp(-y**2 / 2) (r - y) S(y) with a positive S: right to the last digits at
# the root and in the tail, where y exp(-y**2 / 2) is a normal number when the exponential is none.
def _erf_gelu_slope(x: Array) -> Array:
    double = x.dtype == jnp.float64
    root = _two_parts(x.dtype, (0.7517915368080139, -1.211444988769017e-08), (0.7517915246935645, -1.49567591770e-16))
    y = jnp.minimum(elementary.magnitude(x), 39.5 if double else 15.0)
    over, under = _BEND64 if double else _BEND
    bend = _from_root(y, root) * elementary.polynomial(y, over) / elementary.polynomial(y, under)
    return _slope_by_symmetry(x, _times_bell(bend, y, elementary.format_of(x).spare))


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
    return _by_symmetry(x, _left(y, *elementary.exp_parts(-t, -rest, shift), shift))


# With u = exp(-t(y)) the slope at -y is u (1 + u - y t') / (1 + u)**2. As for silu, the bracket is written from its
# root r: r t'(r) - y t'(y) = (r - y) (a + 3 b (r² + r y + y²)) and t(r) - t(y) = (r - y) (a + b (r² + r y + y²)).
def _tanh_gelu_slope(x: Array) -> Array:
    root = _two_parts(x.dtype, _TANH_ROOT, _TANH_ROOT64)
    shift = elementary.format_of(x).spare
    y = jnp.minimum(elementary.magnitude(x), 22.0 if x.dtype == jnp.float64 else 12.0)
    t, rest = _cubic(y)
    scale, p = elementary.exp_parts(-t, -rest, shift)
    ahead = _from_root(y, root)
    squares = root[0] * root[0] + y * (root[0] + y)
    rise = _rise((scale + scale * p) * 2.0**-shift, _TANH_ROOT_EXP, ahead * (_LINEAR + _CUBIC * squares))
    return _slope_by_symmetry(x, _left_slope(ahead * (_LINEAR + 3 * _CUBIC * squares) + rise, scale, p, shift))


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
