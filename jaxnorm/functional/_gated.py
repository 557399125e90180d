"""Self-gated activations, `x * gate(x)` with `gate(x) + gate(-x) = 1`.

For every one of them f(x) - f(-x) = x, and so f'(x) + f'(-x) = 1: the negative side, where tails are small and
relative errors show, is computed from y = |x|, and the positive side follows by one subtraction.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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


def _from_root(y: Array, root: tuple[float, float]) -> tuple[Array, Array]:
    """`root - y` in two parts, the root given in two: near it the first is exact and the second counts.

    The second is made of y throughout, for compilers add up constants.
    """
    ahead = root[0] - y
    rounding = jnp.where(y > root[0], root[0] - (ahead + y), 0)
    return ahead, rounding + y * (root[1] / root[0])


def _left(y: Array, scale: Array, p: Array, shift: int) -> Array:
    """y * u / (1 + u), given u = scale * (1 + p) / 2**shift."""
    exponential = scale + scale * p
    return y * exponential / (2.0**shift + exponential)


def _left_slope(bent: Array, scale: Array, p: Array, shift: int, factor: ArrayLike = 1.0) -> Array:
    """factor * u * bent / (1 + u)**2, given u = scale * (1 + p) / 2**shift."""
    u = (scale + scale * p) * 2.0**-shift
    bent = factor * bent
    return scale * ((bent + bent * p) / elementary.square_of_one_plus(u)) * 2.0**-shift


def _rise(u: Array, base: float, exponent: Array) -> Array:
    """u - base, given u = base * exp(exponent): a difference only where it is exact enough."""
    return jnp.where(jnp.abs(exponent) < 0.345, base * elementary.expm1_near_zero(exponent), u - base)


def _silu(x: Array) -> Array:
    shift = elementary.format_of(x).spare
    y = jnp.minimum(jnp.abs(x), -elementary.lowest(x, shift))
    return _by_symmetry(x, _left(y, *elementary.exp_parts(-y, shift=shift), shift))


@elementwise
def silu(x: ArrayLike) -> Array:
    r"""Sigmoid linear unit, also called swish.

    .. math:: \mathrm{silu}(x) = x \, \mathrm{sigmoid}(x) = \frac{x}{1 + e^{-x}}

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-0.2785, inf).

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
    return _silu(x)


# where the slope is zero, in two parts
_SILU_ROOT = (1.2784645557403564, -1.297928265020314e-08)
_SILU_ROOT64 = (1.2784645427610737, 1.0946994183093437e-16)


# With u = exp(-y), silu'(-y) = u (1 + u - y) / (1 + u)**2. At its root r, 1 + exp(-r) = r, so that
# 1 + u - y = (r - y) + (u - exp(-r)): two terms of one sign, and no digit is lost.
@silu.derivative
def _silu_slope(x: Array, part: Array | None = None, factor: ArrayLike = 1.0) -> Array:
    """factor * silu'(x + part), the second part being small beside the first."""
    root = _two_parts(x.dtype, _SILU_ROOT, _SILU_ROOT64)
    shift = elementary.format_of(x).spare
    y = jnp.minimum(elementary.magnitude(x), -elementary.lowest(x, shift))
    minus = None
    if part is not None:  # that of what lies beyond the limit is no small number
        minus = jnp.where(y < -elementary.lowest(x, shift), jnp.where(x < 0, part, -part), 0)
    scale, p = elementary.exp_parts(-y, minus, shift)
    ahead, rest = _from_root(y, root)
    rest = rest if minus is None else rest + minus
    rise = _rise((scale + scale * p) * 2.0**-shift, 0.27846454276107380, ahead + rest)
    left = _left_slope(ahead + (rest + rise), scale, p, shift, factor)
    return jnp.where(x < 0, left, factor - left)


def _is_one(beta: ArrayLike) -> bool:
    return not isinstance(beta, jax.Array) and bool(beta == 1)


def _swish(x: Array, whole: Array, part: Array, factor: ArrayLike = 1.0) -> Array:
    """factor * x * sigmoid(whole + part)."""
    shift = elementary.format_of(x).spare
    minus, rest = elementary.minus_magnitude(whole, part)
    exponential = elementary.exp(minus, rest, shift)
    smaller = exponential / (1 + exponential * 2.0**-shift)  # of the gate at whole and at -whole, times 2**shift
    saturated = minus <= elementary.lowest(x, shift)  # there infinite inputs go round the products
    inside = factor * jnp.where(saturated, 0, x)
    gated = jnp.where(whole < 0, inside * smaller * 2.0**-shift, inside * (1 - smaller * 2.0**-shift))
    return jnp.where(saturated & (whole > 0), factor * x, gated)


@elementwise
def swish(x: ArrayLike, beta: ArrayLike = 1.0) -> Array:
    r"""Self-gated unit with a gate of given sharpness; `silu` for ``beta = 1``.

    .. math:: \mathrm{swish}(x) = x \, \mathrm{sigmoid}(\beta x) = \frac{x}{1 + e^{-\beta x}}

    Parameters
    ----------
    beta : float or array, optional
        Sharpness of the gate. A number is above 0. An array broadcasts to `x` (one value a channel, say), may hold
        any numbers and can be differentiated with respect to.

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-0.2785 / beta, inf).

    Raises
    ------
    ValueError
        If the number `beta` is not above 0, or the array does not broadcast to the shape of `x`.

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64, in the tail and where
    the slope passes through zero (beta x = -1.2785), too.

    References
    ----------
    Ramachandran, Zoph and Le, "Searching for activation functions", arXiv:1710.05941.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> bool(jnp.allclose(swish(jnp.array([-1.0, 2.0]), 2.0), jnp.array([-0.1192, 1.9640]), atol=1e-4))
    True
    """
    _checks.hyperparameter('swish', 'beta', beta, above=0)
    if _is_one(beta):
        return _silu(x)
    return _swish(x, *elementary.scaled(x, beta))


# swish(x) = silu(beta x) / beta
@swish.derivative
def _swish_slope(x: Array, beta: ArrayLike = 1.0) -> Array:
    return _silu_slope(x) if _is_one(beta) else _silu_slope(*elementary.scaled(x, beta, exact=True))


@swish.derivative(by='beta')
def _swish_by_beta(x: Array, beta: ArrayLike = 1.0, factor: ArrayLike = 1.0) -> Array:
    """factor * x**2 * sigmoid'(beta * x)."""
    shift = elementary.format_of(x).spare
    minus, rest = elementary.minus_magnitude(*elementary.scaled(x, beta))
    exponential = elementary.exp(minus, rest, shift)
    inside = jnp.where(minus <= elementary.lowest(x, shift), 0, x)
    slope = exponential / elementary.square_of_one_plus(exponential * 2.0**-shift)
    return factor * inside * slope * inside * 2.0**-shift


@elementwise
def adaptive_swish(x: ArrayLike, alpha: ArrayLike = 1.0, beta: ArrayLike = 1.0) -> Array:
    r"""Swish of learned height and sharpness.

    .. math:: \mathrm{adaptive\_swish}(x) = \alpha \, x \, \mathrm{sigmoid}(\beta x)

    Parameters
    ----------
    alpha, beta : float or array, optional
        Factor of the result and sharpness of the gate. Arrays broadcast to `x` (one pair a feature, say) and can be
        differentiated with respect to.

    Raises
    ------
    ValueError
        If `alpha` or `beta` does not broadcast to the shape of `x`.

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64, whatever the signs of
    `alpha` and `beta`. With both 1 it is `silu`.

    References
    ----------
    Ramachandran, Zoph and Le, "Searching for activation functions", arXiv:1710.05941.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> y = adaptive_swish(jnp.array([-1.0, 2.0]), jnp.array([0.2, 0.5]), jnp.array([1.0, 2.0]))
    >>> bool(jnp.allclose(y, jnp.array([-0.0538, 0.9820]), atol=1e-4))
    True
    """
    _checks.hyperparameter('adaptive_swish', 'alpha', alpha)
    _checks.hyperparameter('adaptive_swish', 'beta', beta)
    return _swish(x, *elementary.scaled(x, beta), alpha)


@adaptive_swish.derivative
def _adaptive_swish_slope(x: Array, alpha: ArrayLike = 1.0, beta: ArrayLike = 1.0) -> Array:
    return _silu_slope(*elementary.scaled(x, beta, exact=True), alpha)


@adaptive_swish.derivative(by='alpha')
def _adaptive_swish_by_alpha(x: Array, alpha: ArrayLike = 1.0, beta: ArrayLike = 1.0) -> Array:
    return _swish(x, *elementary.scaled(x, beta))


@adaptive_swish.derivative(by='beta')
def _adaptive_swish_by_beta(x: Array, alpha: ArrayLike = 1.0, beta: ArrayLike = 1.0) -> Array:
    return _swish_by_beta(x, beta, alpha)


# 1.702 is what the formula says: the float next to it, and what it lacks
_QUICK = {'float32': (1.702, -2.193450927734375e-08), 'float64': (1.702, 4.263256414560601e-17)}


@elementwise
def quick_gelu(x: ArrayLike) -> Array:
    r"""Approximation of `gelu` by a sigmoid gate, as CLIP uses it.

    .. math:: \mathrm{quick\_gelu}(x) = x \, \mathrm{sigmoid}(1.702 x)

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-0.1637, inf).

    Notes
    -----
    It differs from `gelu` by up to 0.02. Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16,
    8 ulp in float64, in the tail and where the slope passes through zero, too.

    References
    ----------
    Hendrycks and Gimpel, "Gaussian error linear units (GELUs)", arXiv:1606.08415.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> bool(jnp.allclose(quick_gelu(jnp.array([-1.0, 2.0])), jnp.array([-0.1542, 1.9357]), atol=1e-4))
    True
    """
    return _swish(x, *elementary.scaled(x, *_QUICK[x.dtype.name]))


@quick_gelu.derivative
def _quick_gelu_slope(x: Array) -> Array:
    return _silu_slope(*elementary.scaled(x, *_QUICK[x.dtype.name], exact=True))


# The normal distribution, written so that its larger part is rounded once and what is less accurate is added as a
# smaller part. With y = |x|, c = 1 / sqrt(2 pi) and r the root of the slope, these functions are approximated:
#   _NEAR   (1/2 - Phi(-y)) / y                        in powers of y**2, for y <= 0.8
#   _FAR    c - y Phi(-y) exp(y**2 / 2)                a quotient of polynomials in y, for y >= 0.6
#   _BEND   gelu'(-y) exp(y**2 / 2) / (r - y) - c      likewise, for all y
# to y = 15 in float32 and 39.5 in float64: minimax, as in `_elementary`, in the relative error of the whole, which
# is 7e-9, 7e-9 and 2.4e-8 in float32, 1e-16, 1.2e-17 and 7e-17 in float64. No coefficient of a quotient is negative.
_DENSITY = 0.3989422804014327
_ERF_ROOT = (0.7517915368080139, -1.211444988769017e-08)
_ERF_ROOT64 = (0.7517915246935645, -1.4956759177009883e-17)
_NEAR = (0.3989422619342804, -0.06649000197649002, 0.00997055321931839, -0.0011770405108109117, 9.958958980860189e-05)
_FAR = (
    (0.3989614248275757, 0.22810345888137817, 0.06417275965213776, 0.008591976948082447),
    (1.0, 1.8254590034484863, 1.4474159479141235, 0.6395990252494812, 0.16069509088993073, 0.021540062502026558),
)
_BEND = (
    (0.26613569259643555, 0.20511041581630707, 0.06701463460922241, 0.008994114585220814),
    (1.0, 1.4344676733016968, 0.8374046087265015, 0.24070915579795837, 0.029990190640091896),
)
_NEAR64 = (
    0.3989422804014327, -0.06649038006690529, 0.00997355701003076, -0.0011873282154060206, 0.00011543468700753134,
    -9.444653243644041e-06, 6.659599197316163e-07, -4.120791928080178e-08, 2.250462915071661e-09,
    -9.68723811164432e-11,
)  # fmt: skip
_FAR64 = (
    (
        0.39894228037231055, 0.4773069703512153, 0.2901981389936685, 0.11341734788943732, 0.03077166778106916,
        0.005909068845020376, 0.0007861506195752097, 6.692118086031204e-05, 2.8663697901225874e-06,
    ),
    (
        1.0, 2.449745283956173, 2.797719263073981, 1.967628000443326, 0.9472867764218013, 0.32772470445828344,
        0.08300176283523382, 0.01531507928510683, 0.0019921421282240357, 0.00016774652428211547,
        7.184923560559009e-06,
    ),
)  # fmt: skip
_BEND64 = (
    (
        0.2661357147300016, 0.4007265444493938, 0.29030962255441456, 0.1300158374545926, 0.03912066787268614,
        0.008087926184627087, 0.0011249487939243299, 9.689851888912914e-05, 4.0094643886315455e-06,
    ),
    (
        1.0, 2.1694945900412352, 2.1642941475845556, 1.306840263963823, 0.5281729291934636, 0.14880371106928608,
        0.029380601369519335, 0.003947954010681254, 0.0003308114802125995, 1.3368382686321435e-05,
    ),
)  # fmt: skip


def _quotient(y: Array, single: tuple, double: tuple) -> Array:
    over, under = double if y.dtype == jnp.float64 else single
    return elementary.polynomial(y, over) / elementary.polynomial(y, under)


def _times_bell(factor: Array, y: Array) -> Array:
    """factor * exp(-y**2 / 2), the square carried in two parts."""
    shift = elementary.format_of(y).spare
    square, rest = elementary.product(y, y)
    scale, p = elementary.exp_parts(-0.5 * square, -0.5 * rest, shift)
    factor = scale * factor
    return (factor + factor * p) * 2.0**-shift


def _erf_gelu(x: Array) -> Array:
    double = x.dtype == jnp.float64
    y = jnp.minimum(jnp.abs(x), 39.5 if double else 15.0)
    near = y * (0.5 - y * elementary.polynomial(y * y, _NEAR64 if double else _NEAR))
    far = _times_bell(_DENSITY - _quotient(y, _FAR, _FAR64), y)
    return _by_symmetry(x, jnp.where(y < 0.7, near, far))


# gelu'(-y) = Phi(-y) - y phi(y) = exp(-y**2 / 2) (r - y) S(y) with a positive S: right to the last digits at
# the root and in the tail, where y exp(-y**2 / 2) is a normal number when the exponential is none.
def _erf_gelu_slope(x: Array) -> Array:
    double = x.dtype == jnp.float64
    root = _two_parts(x.dtype, _ERF_ROOT, _ERF_ROOT64)
    y = jnp.minimum(elementary.magnitude(x), 39.5 if double else 15.0)
    ahead, rest = _from_root(y, root)
    bend = _DENSITY + _quotient(y, _BEND, _BEND64)
    return _slope_by_symmetry(x, _times_bell(ahead * bend + rest * bend, y))


# The tanh form is x sigmoid(t) with t = 2 sqrt(2 / pi) (x + 0.044715 x**3); coefficients in two parts, of t and of
# t / log(2)
_LINEAR = (1.5957691216057308, -9.96930880911092e-17)
_CUBIC = (0.07135481627260025, -6.175149918155315e-19)
_LINEAR_BASE2 = (2.3022081981443248, 1.3132826040769712e-16)
_CUBIC_BASE2 = (0.1029432395800235, -5.978177400718744e-18)
# (2**r - 1) / r - 1 for |r| <= 0.5: the sum of r and r times this is rounded less; errors of 2**r: 2e-9, 3.4e-18
_EXP2 = (
    -0.3068528175354004, 0.24022647738456726, 0.055503323674201965, 0.009618437848985195, 0.0013398899463936687,
    0.00015353334310930222,
)  # fmt: skip
_EXP2_64 = (
    -0.3068528194400547, 0.2402265069591013, 0.055504108664820084, 0.009618129107594058, 0.0013333558146774995,
    0.00015403530457195342, 1.525273349289971e-05, 1.3215435238231572e-06, 1.017819960851839e-07,
    7.0737912304209945e-09, 4.4347745532685074e-10,
)  # fmt: skip
# where its slope is zero, and exp(-t) there
_TANH_ROOT = (0.7524614334106445, -1.1339627903339533e-08)
_TANH_ROOT64 = (0.7524614220710163, -3.635560509207687e-17)
_TANH_ROOT_EXP = 0.29195521191476713459


def _short(x: Array) -> Array:
    """`x` rounded to a third of its digits: 8, or 17 in float64."""
    form = elementary.format_of(x)
    dropped = form.digits - form.digits // 3
    bits = lax.bitcast_convert_type(x, form.integer) + np.asarray(1 << (dropped - 1), form.integer)
    return lax.bitcast_convert_type(bits & np.asarray(-1 << dropped, form.integer), x.dtype)


def _tanh_exp_parts(y: Array) -> tuple[Array, Array]:
    """exp(-t(y)) as `elementary.exp_parts` gives it, for y up to the limit where it is zero.

    Near 88, half an ulp of t is 30 ulp of exp(-t). So T = t / log(2) = y * (linear + cubic * y**2) is taken in two
    parts: of numbers with few digits the products are exact, and all that is rounded is in the rest, which is small.
    As a power of two, since taking the integer off is exact, too.
    """
    double = y.dtype == jnp.float64
    steps = (2.0**15, 2.0**20) if double else (2.0**6, 2.0**11)
    linear, cubic = (round(c[0] * s) / s for c, s in zip((_LINEAR_BASE2, _CUBIC_BASE2), steps, strict=True))
    linear_rest = _LINEAR_BASE2[0] - linear + _LINEAR_BASE2[1]
    cubic_rest = _CUBIC_BASE2[0] - cubic + _CUBIC_BASE2[1]

    front = _short(y)
    square = front * front
    bulk = cubic * square
    bracket = elementary.head(linear + bulk)
    rest = cubic_rest * square + (linear_rest + _CUBIC_BASE2[0] * ((y - front) * (y + front)))
    rest = ((linear - bracket) + bulk) + rest
    whole = front * bracket
    rest = (y - front) * bracket + y * rest
    k, scale = elementary.nearest_power(-whole - rest, elementary.format_of(y).spare)
    r = (-k - whole) - rest
    return scale, r + r * elementary.polynomial(r, _EXP2_64 if double else _EXP2)


def _tanh_limit(dtype: Any) -> float:
    """Where T(y) is the exponent from which on `two_to` gives zero: 167, and 1123 in float64."""
    return 21.841 if dtype == jnp.float64 else 11.114


def _tanh_gelu(x: Array) -> Array:
    y = jnp.minimum(jnp.abs(x), _tanh_limit(x.dtype))
    return _by_symmetry(x, _left(y, *_tanh_exp_parts(y), elementary.format_of(x).spare))


# With u = exp(-t(y)) the slope at -y is u (1 + u - y t') / (1 + u)**2. As for silu, the bracket is written from its
# root r: r t'(r) - y t'(y) = (r - y) (a + 3 b (r² + r y + y²)) and t(r) - t(y) = (r - y) (a + b (r² + r y + y²)).
def _tanh_gelu_slope(x: Array) -> Array:
    root = _two_parts(x.dtype, _TANH_ROOT, _TANH_ROOT64)
    shift = elementary.format_of(x).spare
    y = jnp.minimum(elementary.magnitude(x), _tanh_limit(x.dtype))
    scale, p = _tanh_exp_parts(y)
    ahead, rest = _from_root(y, root)
    a, b, r = _LINEAR[0], _CUBIC[0], root[0]
    steep = (a + 3 * b * r * r) + 3 * b * (y * (r + y))
    climb = (a + b * r * r) + b * (y * (r + y))
    rise = _rise((scale + scale * p) * 2.0**-shift, _TANH_ROOT_EXP, (ahead + rest) * climb)
    return _slope_by_symmetry(x, _left_slope(ahead * steep + (rest * steep + rise), scale, p, shift))


@elementwise
def gelu(x: ArrayLike, approximate: bool = False) -> Array:
    r"""Gaussian error linear unit.

    .. math:: \mathrm{gelu}(x) = x \, \Phi(x) = \frac{x}{2} \left(1 + \mathrm{erf} \frac{x}{\sqrt 2}\right)

    Parameters
    ----------
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
