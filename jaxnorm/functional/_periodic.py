"""Periodic activations.

The backend's sine and cosine are right to 0.6 ulp for arguments of any size, near their zeros too. What loses digits is
the argument: half an ulp of a product frequency * x is as much in the result, which for a large product is much.
"""

import math

import jax
import jax.numpy as jnp

from .. import _checks
from .._typing import Array, ArrayLike
from . import _elementary as elementary
from ._kernel import elementwise


def _angle(x: Array, frequency: ArrayLike) -> tuple[Array, Array | None]:
    """`frequency * x` in two parts, of which the second is None where there is none."""
    if not isinstance(frequency, jax.Array) and math.frexp(frequency)[0] == 0.5:  # a power of two
        return frequency * x, None
    frequency = jnp.broadcast_to(jnp.asarray(frequency, x.dtype), x.shape)
    angle, rest = elementary.exact_product(x, frequency)
    angle = jnp.where(jnp.isfinite(angle), angle, frequency * x)
    return angle, jnp.where(jnp.abs(rest) <= 1, rest, 0)  # nor is there one beyond 2**24, 2**53 in float64


def _parts(angle: Array, rest: Array | None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Sine and cosine, each in two parts, of an angle in two parts; 0 in place of those of an infinite angle.

    The second part of the angle is at most 2.
    """
    infinite = jnp.isinf(angle)
    angle = jnp.where(infinite, 0, angle)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    if rest is not None:
        terms = 12 if angle.dtype == jnp.float64 else 8
        square = rest * rest
        s = rest * elementary.polynomial(square, tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(terms)))
        c = square * elementary.polynomial(square, tuple((-1) ** n / math.factorial(2 * n) for n in range(1, terms)))
        return (jnp.where(infinite, 0, sin), sin * c + cos * s), (jnp.where(infinite, 0, cos), cos * c - sin * s)
    zero = jnp.zeros_like(sin)
    return (jnp.where(infinite, 0, sin), zero), (jnp.where(infinite, 0, cos), zero)


def _around(angle: Array, rest: Array | None) -> tuple[Array, Array]:
    """Sine and cosine of an angle in two parts."""
    (sin, more_sin), (cos, more_cos) = _parts(angle, rest)
    return sin + more_sin, cos + more_cos


@elementwise
def snake(x: ArrayLike, frequency: ArrayLike = 1.0) -> Array:
    r"""The identity with waves, for what is periodic beyond the range of its data.

    .. math:: \mathrm{snake}(x) = x + \frac{\sin^2(a x)}{a} = x + \frac{1 - \cos(2 a x)}{2 a}

    Parameters
    ----------
    frequency : float or array, optional
        The number :math:`a`, above 0. An array broadcasts to `x` (one value a channel, say) and can be differentiated
        with respect to, that is learned.

    Returns
    -------
    array
        Same shape and dtype as `x`; in (-inf, inf).

    Raises
    ------
    ValueError
        If `frequency` is not above 0, or does not broadcast to the shape of `x`.

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64, for a `frequency` that
    is a power of two. For another one that holds for the value; and for the slope up to `frequency` * |x| = 4e6 (2e15
    in float64), save for the few numbers next to a zero of it: there the angle is right to 1e-7 of its ulp.
    The slope, 1 + sin(2 a x), is nowhere below 0. It has no limit at -inf and inf: it is 1 there, its mean.

    References
    ----------
    Liu, Hartwig and Ueda, "Neural networks fail to learn periodic functions and how to fix it", arXiv:2006.08195.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> snake(jnp.array([0.0, jnp.pi, jnp.inf])).tolist()
    [0.0, 3.14159, inf]
    """
    _checks.hyperparameter('snake', 'frequency', frequency, above=0)
    (angle, rest), eps = _angle(x, frequency), float(jnp.finfo(x.dtype).eps)
    waves = (jnp.abs(angle) > eps / 4) & (jnp.abs(angle) < 4 / eps)  # elsewhere the result is x, rounded
    angle = jnp.where(waves, angle, 0)
    sin = jnp.sin(angle)
    square, more = elementary.product(sin, sin)  # where x and the waves cancel, that counts
    if rest is not None:
        more = more + rest * (1 + 2 * sin * jnp.cos(angle))
    return jnp.where(waves, ((angle + square) + more) / jnp.asarray(frequency, x.dtype), x)


# 1 + sin(w) with w = 2 a x; near its zeros, at the bottoms of the sine, cos(w)**2 / (1 - sin(w)), which is the same and
# has all digits. Where twice the angle is no number, sin(w) comes from the angle.
@snake.derivative
def _snake_slope(x: Array, frequency: ArrayLike = 1.0) -> Array:
    angle, rest = _angle(x, frequency)
    far = jnp.abs(angle) > 0.5 * float(jnp.finfo(x.dtype).max)
    sines, cosines = _parts(jnp.where(far, angle, 2 * angle), None if rest is None else 2 * rest)
    sin, cos = sum(sines), sum(cosines)
    lost = jnp.where(jnp.abs(cos) > jnp.abs(cosines[1]), (cosines[0] - cos) + cosines[1], 0)  # of the sum's rounding
    square = cos * cos + 2 * cos * lost
    sin = jnp.where(far, 2 * sin * cos, sin)
    return jnp.where((sin < -0.75) & ~far, square / (1 - sin), 1 + sin)


@snake.derivative(by='frequency')
def _snake_by_frequency(x: Array, frequency: ArrayLike = 1.0) -> Array:
    angle, rest = _angle(x, frequency)
    sin, cos = _around(angle, rest)
    frequency = jnp.asarray(frequency, x.dtype)
    product = frequency * jnp.where(jnp.isinf(x), 0, x)  # not `angle`: one part of two has a slope of its own
    return (sin / frequency) * ((2 * jnp.where(jnp.isinf(product), 0, product) * cos - sin) / frequency)


@elementwise
def sine(x: ArrayLike, frequency: ArrayLike = 1.0) -> Array:
    r"""Sine, the activation of implicit representations (SIREN, which begins with a frequency of 30).

    .. math:: \mathrm{sine}(x) = \sin(\omega x)

    Parameters
    ----------
    frequency : float or array, optional
        The number :math:`\omega`, above 0. An array broadcasts to `x` (one value a channel, say) and can be
        differentiated with respect to, that is learned.

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-1, 1].

    Raises
    ------
    ValueError
        If `frequency` is not above 0, or does not broadcast to the shape of `x`.

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64, for a `frequency` that
    is a power of two. For another one the product is carried in two parts, and that holds up to `frequency` * |x| =
    4e6 (2e15 in float64), save for the few numbers next to a zero: there the angle is right to 1e-7 of its ulp.
    There is no limit at -inf and inf: value and slope are 0 there, their mean, and not nan.

    References
    ----------
    Sitzmann, Martel, Bergman, Lindell and Wetzstein, "Implicit neural representations with periodic activation
    functions", arXiv:2006.09661.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> sine(jnp.array([0.0, 0.5, jnp.inf]), jnp.pi).tolist()
    [0.0, 1.0, 0.0]
    """
    _checks.hyperparameter('sine', 'frequency', frequency, above=0)
    angle = jnp.asarray(frequency, x.dtype) * x
    small = jnp.abs(angle) < 0.25 * float(jnp.finfo(x.dtype).eps) ** 0.5  # the parts of a product may be subnormal
    return jnp.where(small, angle, _around(*_angle(x, frequency))[0])


@sine.derivative
def _sine_slope(x: Array, frequency: ArrayLike = 1.0) -> Array:
    return jnp.asarray(frequency, x.dtype) * _around(*_angle(x, frequency))[1]


@sine.derivative(by='frequency')
def _sine_by_frequency(x: Array, frequency: ArrayLike = 1.0) -> Array:
    return jnp.where(jnp.isinf(x), 0, x) * _around(*_angle(x, frequency))[1]
