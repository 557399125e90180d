"""Activations that saturate like an exponential on the negative side."""

import jax
import jax.numpy as jnp

from .. import _checks
from .._typing import Array, ArrayLike
from . import _elementary as elementary
from ._kernel import elementwise


def _expm1_below_zero(x: Array) -> Array:
    return elementary.expm1(jnp.where(x > 0, 0, x))  # of slope 1 at 0, not the mean of both sides


# Its own derivative: that of the polynomial in it would be added up of subnormal numbers in the tail.
@jax.custom_jvp
def _scaled_exp_below_zero(x: Array, scale: ArrayLike) -> Array:
    """`scale * exp(min(x, 0))`, multiplied out before the exponential can become subnormal."""
    shift = elementary.format_of(x).spare
    return scale * elementary.exp(jnp.where(x > 0, 0, x), shift=shift) * 2.0**-shift


_scaled_exp_below_zero.defjvps(
    lambda dx, y, x, scale: dx * jnp.where(x > 0, 0, y),
    lambda dscale, _, x, scale: _scaled_exp_below_zero(x, dscale),
)


@elementwise
def elu(x: ArrayLike, alpha: ArrayLike = 1.0) -> Array:
    r"""Exponential linear unit.

    .. math:: \mathrm{elu}(x) = \begin{cases} x & x > 0 \\ \alpha (e^x - 1) & x \le 0 \end{cases}

    Parameters
    ----------
    alpha : float or array, optional
        Minus the limit at -inf. An array broadcasts to `x` (one value a channel, say) and can be differentiated
        with respect to.

    Returns
    -------
    array
        Same shape and dtype as `x`; in (-alpha, inf).

    Raises
    ------
    ValueError
        If `alpha` does not broadcast to the shape of `x`.

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64. The slope at 0 is
    `alpha`, that of the left side.

    References
    ----------
    Clevert, Unterthiner and Hochreiter, "Fast and accurate deep network learning by exponential linear units",
    arXiv:1511.07289.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> elu(jnp.array([-jnp.inf, 0.0, 2.0])).tolist()
    [-1.0, 0.0, 2.0]
    """
    return jnp.where(x < 0, _checks.hyperparameter('elu', 'alpha', alpha) * _expm1_below_zero(x), x)


# The exponential itself, not elu(x) + alpha: that sum has no digits left in the tail.
@elu.derivative
def _elu_slope(x: Array, alpha: ArrayLike = 1.0) -> Array:
    return jnp.where(x > 0, 1, _scaled_exp_below_zero(x, alpha))


@elu.derivative(by='alpha')
def _elu_by_alpha(x: Array, alpha: ArrayLike = 1.0) -> Array:
    return _expm1_below_zero(x)


def _divided(x: Array, alpha: ArrayLike) -> tuple[Array, Array | None]:
    """`min(x, 0) / alpha` in two parts: half an ulp of a large quotient is many ulps of its exponential."""
    x = jnp.where(x > 0, 0, jnp.maximum(x, -(float(jnp.finfo(x.dtype).max) ** 0.9)))  # no inf * 0 on the way
    if not isinstance(alpha, jax.Array) and alpha == 1:
        return x, None
    alpha = jnp.asarray(alpha, x.dtype)
    quotient = x / alpha
    bulk, rest = elementary.product(quotient, jnp.broadcast_to(alpha, x.shape))
    return quotient, ((x - bulk) - rest) / alpha


@elementwise
def celu(x: ArrayLike, alpha: ArrayLike = 1.0) -> Array:
    r"""Continuously differentiable exponential linear unit.

    .. math:: \mathrm{celu}(x) = \begin{cases} x & x > 0 \\ \alpha (e^{x / \alpha} - 1) & x \le 0 \end{cases}

    Parameters
    ----------
    alpha : float or array, optional
        Minus the limit at -inf, above 0. An array broadcasts to `x` (one value a channel, say) and can be
        differentiated with respect to.

    Returns
    -------
    array
        Same shape and dtype as `x`; in (-alpha, inf).

    Raises
    ------
    ValueError
        If `alpha` is not above 0, or does not broadcast to the shape of `x`.

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64; in the slope's tail
    too, for which the quotient is carried in two parts. The slope is 1 on both sides of 0.

    References
    ----------
    Barron, "Continuously differentiable exponential linear units", arXiv:1704.07483.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> celu(jnp.array([-jnp.inf, 0.0, 2.0]), 0.5).tolist()
    [-0.5, 0.0, 2.0]
    """
    _checks.hyperparameter('celu', 'alpha', alpha, above=0)
    quotient, _ = _divided(x, alpha)
    alpha = jnp.asarray(alpha, x.dtype)
    linear = -0.25 * float(jnp.finfo(x.dtype).eps) * alpha  # above it, nothing but x: the quotient may be subnormal
    return jnp.where(x < linear, alpha * elementary.expm1(quotient), x)


@celu.derivative
def _celu_slope(x: Array, alpha: ArrayLike = 1.0) -> Array:
    if not isinstance(alpha, jax.Array) and alpha == 1:
        return _elu_slope(x)
    return _celu_rise(x, jnp.asarray(alpha, x.dtype))


# Its derivatives are itself times (dx - x / alpha dalpha) / alpha, and normal numbers where it is none.
@jax.custom_jvp
def _celu_rise(x: Array, alpha: Array) -> Array:
    return jnp.where(x > 0, 1, elementary.exp(*_divided(x, alpha)))


def _celu_bend(x: Array, alpha: Array, by_alpha: bool = False) -> Array:
    shift = elementary.format_of(x).spare
    quotient, rest = _divided(x, alpha)
    quotient, half = jnp.maximum(quotient, elementary.lowest(x, shift)), 2.0 ** -(shift // 2)
    bend = elementary.exp(quotient, rest, shift) * (half / alpha) * half
    return jnp.where(x > 0, 0, -quotient * bend if by_alpha else bend)


_celu_rise.defjvps(
    lambda dx, _, x, alpha: dx * _celu_bend(x, alpha),
    lambda dalpha, _, x, alpha: dalpha * _celu_bend(x, alpha, by_alpha=True),
)


# The difference is q**2 / 2 near 0, where nothing would be left of it.
@celu.derivative(by='alpha')
def _celu_by_alpha(x: Array, alpha: ArrayLike = 1.0) -> Array:
    quotient, rest = _divided(x, alpha)
    quotient = jnp.maximum(quotient, elementary.lowest(x))  # no inf * 0 below it
    y = jnp.minimum(-quotient, 1)
    near = y * y * ((1 + y) * elementary.curve(y) - 1)
    return jnp.where(quotient > -1, near, elementary.expm1(quotient) - quotient * elementary.exp(quotient, rest))


# The fixed point of zero mean and unit variance, Klambauer et al., eq. 14.
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946


@elementwise
def selu(x: ArrayLike) -> Array:
    r"""Scaled exponential linear unit, which keeps mean 0 and variance 1 from layer to layer.

    .. math:: \mathrm{selu}(x) = \lambda \begin{cases} x & x > 0 \\ \alpha (e^x - 1) & x \le 0 \end{cases}

    with :math:`\lambda \approx 1.0507` and :math:`\alpha \approx 1.6733`.

    Returns
    -------
    array
        Same shape and dtype as `x`; in (-1.7581, inf).

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64. The slope at the
    kink is that of the left side, :math:`\lambda\alpha`, as in PyTorch.

    References
    ----------
    Klambauer, Unterthiner, Mayr and Hochreiter, "Self-normalizing neural networks", arXiv:1706.02515.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> bool(jnp.allclose(selu(jnp.array([-jnp.inf, 0.0, 1.0])), jnp.array([-1.7581, 0.0, 1.0507]), atol=1e-4))
    True
    """
    return jnp.where(x < 0, _SELU_SCALE * _SELU_ALPHA * _expm1_below_zero(x), _SELU_SCALE * x)


@selu.derivative
def _selu_slope(x: Array) -> Array:
    return jnp.where(x > 0, _SELU_SCALE, _scaled_exp_below_zero(x, _SELU_SCALE * _SELU_ALPHA))


def _check_beta(beta: ArrayLike) -> None:
    if not isinstance(beta, jax.Array):
        _checks.number('softplus', 'beta', beta, above=0)


def _scaled_parts(x: Array, beta: ArrayLike) -> tuple[Array, Array | None]:
    """`beta * x` in two parts: half an ulp of a large argument is many ulps of its exponential."""
    if not isinstance(beta, jax.Array) and beta == 1:
        return x, None
    finite = jnp.clip(x, -(limit := float(jnp.finfo(x.dtype).max) ** 0.9), limit)  # no inf * 0 on the way
    return elementary.product(finite, jnp.asarray(beta, x.dtype))


@elementwise
def softplus(x: ArrayLike, beta: ArrayLike = 1.0) -> Array:
    r"""Smooth version of `relu`.

    .. math:: \mathrm{softplus}(x) = \frac{1}{\beta} \log(1 + e^{\beta x})

    Parameters
    ----------
    beta : float or array, optional
        Sharpness of the bend, above 0. An array broadcasts to `x` (one value a channel, say) and can be
        differentiated with respect to.

    Returns
    -------
    array
        Same shape and dtype as `x`; in (0, inf).

    Raises
    ------
    ValueError
        If `beta` is not above 0, or does not broadcast to the shape of `x`.

    Notes
    -----
    There is no threshold above which the result is `x`: none is needed. Value and slope within 4 ulp in float32,
    0.6 ulp in bfloat16 and float16, 8 ulp in float64. The slope is ``sigmoid(beta * x)``.

    References
    ----------
    Dugas, Bengio, Bélisle, Nadeau and Garcia, "Incorporating second-order functional knowledge for better option
    pricing", NeurIPS 2000.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> softplus(jnp.array([-jnp.inf, 100.0, jnp.inf])).tolist()
    [0.0, 100.0, inf]
    """
    _check_beta(beta)
    scaled, rest = _scaled_parts(x, beta)
    if rest is None:
        return jnp.maximum(x, 0) + elementary.log1p(elementary.exp(-jnp.abs(x)))
    shift = elementary.format_of(x).spare  # a quotient by a small beta is normal where the logarithm is not
    u = elementary.exp(*elementary.minus_magnitude(scaled, rest), shift=shift)
    tail = elementary.log1p(u * 2.0**-shift, times=u)
    return jnp.maximum(x, 0) + tail / beta * 2.0**-shift


@softplus.derivative
def _softplus_slope(x: Array, beta: ArrayLike = 1.0) -> Array:
    return elementary.logistic(*_scaled_parts(x, beta))


# The entropy of a choice with these odds: the same on both sides of 0, where x * slope - value would cancel on one.
@softplus.derivative(by='beta')
def _softplus_by_beta(x: Array, beta: ArrayLike = 1.0) -> Array:
    minus, rest = elementary.minus_magnitude(*elementary.scaled(x, beta))
    assert rest is not None  # as `scaled` gives two parts
    shift = elementary.format_of(x).spare  # a quotient by a small beta is normal where the entropy is not
    u = elementary.exp(minus, rest, shift=shift)
    one = 1 + u * 2.0**-shift
    entropy = elementary.log1p(u * 2.0**-shift, times=u) - (minus + rest) * u / one
    half = 2.0 ** -(shift // 2) / beta
    return -entropy * half * half


@elementwise
def exponential(x: ArrayLike) -> Array:
    r"""Exponential function.

    .. math:: \mathrm{exponential}(x) = e^x

    Returns
    -------
    array
        Same shape and dtype as `x`; in [0, inf].

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64. What is above the
    greatest number of the dtype (x > 88.72 in float32) is inf, and so is the slope there; what is below the least
    normal number (x < -87.33) is 0.

    References
    ----------
    Nelder and Wedderburn, "Generalized linear models", 1972, where it is the inverse of the logarithmic link.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> exponential(jnp.array([-jnp.inf, 0.0, jnp.inf])).tolist()
    [0.0, 1.0, inf]
    """
    return elementary.exp_of_any_sign(x)


# Its own derivative, of which autodiff would lose digits where it is next to subnormal; finite where it overflows.
@exponential.derivative
@jax.custom_jvp
def _exponential_slope(x: Array) -> Array:
    return elementary.exp_of_any_sign(x)


_exponential_slope.defjvps(lambda dx, y, x: dx * jnp.where(y == jnp.inf, 0, y))
