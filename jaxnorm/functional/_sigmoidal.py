"""Sigmoidal activations. Their slopes are even and die out like an exponential: they are written as one."""

import jax.numpy as jnp

from .. import _checks
from .._typing import Array, ArrayLike
from . import _elementary as elementary
from ._kernel import elementwise


@elementwise
def sigmoid(x: ArrayLike) -> Array:
    r"""Logistic function.

    .. math:: \mathrm{sigmoid}(x) = \frac{1}{1 + e^{-x}}

    Returns
    -------
    array
        Same shape and dtype as `x`; in [0, 1].

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64, both tails
    included.

    References
    ----------
    Verhulst, "Recherches mathématiques sur la loi d'accroissement de la population", 1845.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> sigmoid(jnp.array([-jnp.inf, 0.0, jnp.inf])).tolist()
    [0.0, 0.5, 1.0]
    """
    return elementary.logistic(x)


@sigmoid.derivative
def _sigmoid_slope(x: Array) -> Array:
    return elementary.logistic_slope(x)


@elementwise
def log_sigmoid(x: ArrayLike) -> Array:
    r"""Logarithm of the logistic function.

    .. math:: \mathrm{log\_sigmoid}(x) = \log \frac{1}{1 + e^{-x}} = -\mathrm{softplus}(-x)

    Returns
    -------
    array
        Same shape and dtype as `x`; in (-inf, 0].

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64, both tails
    included. The slope is ``sigmoid(-x)``.

    References
    ----------
    Goodfellow, Bengio and Courville, "Deep Learning", MIT Press 2016, section 3.10.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> log_sigmoid(jnp.array([-100.0, jnp.inf])).tolist()
    [-100.0, 0.0]
    """
    return jnp.minimum(x, 0) - elementary.log1p(elementary.exp(-jnp.abs(x)))


@log_sigmoid.derivative
def _log_sigmoid_slope(x: Array) -> Array:
    return elementary.logistic(-x)


@elementwise
def tanh(x: ArrayLike) -> Array:
    r"""Hyperbolic tangent.

    .. math:: \tanh(x) = \frac{e^x - e^{-x}}{e^x + e^{-x}}

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-1, 1].

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64. The sign of zero
    is kept.

    References
    ----------
    LeCun, Bottou, Orr and Müller, "Efficient BackProp", 1998.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> tanh(jnp.array([-jnp.inf, 0.0, jnp.inf])).tolist()
    [-1.0, 0.0, 1.0]
    """
    return _tanh(x)


def _tanh(x: Array) -> Array:
    return _tanh64(x) if x.dtype == jnp.float64 else _tanh32(x)


# tanh(x / 2) = x p(x**2) / q(x**2), up to |x| = 9.02, from where tanh is 1 in float32; minimax in the relative error
# of tanh(x), which is 9.5e-9. These are the coefficients of (2 p - 1) / x**2 and (q - 1) / x**2.
_HALF_OVER = (0.02976839244365692, 0.00011414550681365654)
_HALF_UNDER = (0.11310168355703354, 0.0012059942819178104, 1.2269456419744529e-06)


def _tanh32(x: Array) -> Array:
    """From half the argument, tanh(x) = 2 h / (1 + h**2): an error of h counts for less the closer both are to 1."""
    square = x * x
    t = jnp.minimum(square, 81.5)
    a = x + x * (t * elementary.polynomial(t, _HALF_OVER))  # 2 x p
    b = t * elementary.polynomial(t, _HALF_UNDER)  # q - 1
    inside = (a + a * b) / (1 + (b * (2 + b) + 0.25 * a * a))
    return jnp.where(square > 81.4, elementary.with_sign(jnp.ones_like(x), x), inside)


def _tanh64(x: Array) -> Array:
    fall = jnp.abs(elementary.expm1(-2 * jnp.abs(x)))
    return elementary.with_sign(fall / (2 - fall), x)


# sech(x)**2 from the exponential, not 1 - tanh(x)**2: that difference has no digits left by |x| = 9.
@tanh.derivative
def _tanh_slope(x: Array) -> Array:
    four_u = elementary.exp(-2 * elementary.magnitude(x), shift=2)
    return four_u / elementary.square_of_one_plus(0.25 * four_u)


def _lifted_sech_squared(x: Array, rest: Array | None, times: ArrayLike, shift: int) -> Array:
    """times / cosh(x + rest)**2 * 2**shift: multiplied out before the exponential can become subnormal."""
    y, rest = elementary.minus_magnitude(x, rest)
    scale, p = elementary.exp_parts(2 * y, None if rest is None else 2 * rest, shift)
    part = scale * (4 * times / elementary.square_of_one_plus((scale + scale * p) * 2.0**-shift))
    return part + part * p


def _sech_squared(x: Array, rest: Array | None, times: ArrayLike) -> Array:
    """times / cosh(x + rest)**2."""
    shift = elementary.format_of(x).spare
    return _lifted_sech_squared(x, rest, times, shift) * 2.0**-shift


def _precise_tanh(x: Array) -> Array:
    """tanh(x) to about 1 ulp, where more is to be multiplied with it: small terms taken from x, or from 1."""
    y, near = elementary.magnitude(x), jnp.clip(x, -1, 1)
    u = elementary.exp(-2 * y)
    far = 1 - 2 * u / (1 + u)
    return jnp.where(y < 1, near * (1 - elementary.tanh_share_lost(near)), jnp.where(x < 0, -far, far))


def _finite(x: Array) -> Array:
    """`x` without infinities, which have no product with 0."""
    return jnp.clip(x, -(limit := float(jnp.finfo(x.dtype).max) ** 0.9), limit)


@elementwise
def scaled_tanh(x: ArrayLike, scale: ArrayLike = 1.7159, slope: ArrayLike = 2 / 3) -> Array:
    r"""Hyperbolic tangent with a scale for each axis; by default LeCun's, which is nearly 1 at 1 and -1 at -1.

    .. math:: \mathrm{scaled\_tanh}(x) = a \tanh(s x)

    Parameters
    ----------
    scale : float or array, optional
        The limit :math:`a` at inf, above 0. An array broadcasts to `x` (one value a channel, say) and can be
        differentiated with respect to.
    slope : float or array, optional
        What `x` is multiplied with, :math:`s`, above 0; an array as for `scale`. The derivative at 0 is
        ``scale * slope``.

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-scale, scale].

    Raises
    ------
    ValueError
        If `scale` or `slope` is not above 0, or does not broadcast to the shape of `x`.

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64. The sign of zero
    is kept.

    References
    ----------
    LeCun, Bottou, Orr and Müller, "Efficient BackProp", 1998, section 4.4.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> bool(jnp.allclose(scaled_tanh(jnp.array([-1.0, 0.0, 1.0, jnp.inf])), jnp.array([-1, 0, 1, 1.7159]), atol=1e-4))
    True
    """
    for name, value in (('scale', scale), ('slope', slope)):
        _checks.hyperparameter('scaled_tanh', name, value, above=0)
    return _scaled_tanh(x, scale, slope)


def _scaled_tanh(x: Array, scale: ArrayLike, slope: ArrayLike) -> Array:
    scale, slope = jnp.asarray(scale, x.dtype), jnp.asarray(slope, x.dtype)
    steep = slope * x
    small = jnp.abs(steep) < 0.25 * float(jnp.finfo(x.dtype).eps) ** 0.5  # the line: `steep` may be subnormal
    return jnp.where(small, (scale * slope) * x, scale * _precise_tanh(steep))


# The product is carried in two parts: half an ulp of a large one is many ulps of its exponential.
@scaled_tanh.derivative
def _scaled_tanh_slope(x: Array, scale: ArrayLike = 1.7159, slope: ArrayLike = 2 / 3) -> Array:
    scale, slope = jnp.asarray(scale, x.dtype), jnp.asarray(slope, x.dtype)
    return _sech_squared(*elementary.product(_finite(x), slope), times=scale * slope)


@scaled_tanh.derivative(by='scale')
def _scaled_tanh_by_scale(x: Array, scale: ArrayLike = 1.7159, slope: ArrayLike = 2 / 3) -> Array:
    return _precise_tanh(jnp.asarray(slope, x.dtype) * x)


@scaled_tanh.derivative(by='slope')
def _scaled_tanh_by_slope(x: Array, scale: ArrayLike = 1.7159, slope: ArrayLike = 2 / 3) -> Array:
    scale, slope = jnp.asarray(scale, x.dtype), jnp.asarray(slope, x.dtype)
    return _finite(x) * _sech_squared(*elementary.product(_finite(x), slope), times=scale)


def _decay(x: Array, t: ArrayLike, decay_rate: ArrayLike) -> Array:
    """exp(-decay_rate * t), with the digits of `x`; the product is carried in two parts."""
    t = _finite(jnp.asarray(t, x.dtype))
    return elementary.exp_of_any_sign(*elementary.product(-t, jnp.asarray(decay_rate, x.dtype)))


@elementwise
def time_decayed_tanh(x: ArrayLike, t: ArrayLike, decay_rate: ArrayLike = 0.1) -> Array:
    r"""Hyperbolic tangent that fades with time, for recurrent networks.

    .. math:: \mathrm{time\_decayed\_tanh}(x, t) = e^{-\lambda t} \tanh(x)

    Parameters
    ----------
    t : float or array
        Time, in units of 1 / `decay_rate`. An array broadcasts to `x` (one value a sample, say) and can be
        differentiated with respect to.
    decay_rate : float or array, optional
        The rate :math:`\lambda`, at least 0; an array as for `t`.

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-1, 1] for `t` not below 0.

    Raises
    ------
    ValueError
        If `decay_rate` is below 0, or an array does not broadcast to the shape of `x`.

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64, where the decay is not
    below the least normal number. An infinite `t` gives 0. Saved for the backward pass: `x`, and those of `t` and
    `decay_rate` that are arrays.

    References
    ----------
    Mozer, Kazakov and Lindsey, "Discrete event, continuous time RNNs", arXiv:1710.04110, where states decay so.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> time_decayed_tanh(jnp.array([-jnp.inf, 0.0, jnp.inf]), 0.0).tolist()
    [-1.0, 0.0, 1.0]
    >>> bool(time_decayed_tanh(jnp.inf, 10.0) == jnp.exp(-1.0))
    True
    """
    _checks.hyperparameter('time_decayed_tanh', 't', t)
    _checks.hyperparameter('time_decayed_tanh', 'decay_rate', decay_rate, at_least=0)
    return _precise_tanh(x) * _decay(x, t, decay_rate)


@time_decayed_tanh.derivative
def _time_decayed_tanh_slope(x: Array, t: ArrayLike, decay_rate: ArrayLike = 0.1) -> Array:
    return _sech_squared(x, None, times=_decay(x, t, decay_rate))


@time_decayed_tanh.derivative(by='t')
def _time_decayed_tanh_by_t(x: Array, t: ArrayLike, decay_rate: ArrayLike = 0.1) -> Array:
    return -jnp.asarray(decay_rate, x.dtype) * (_precise_tanh(x) * _decay(x, t, decay_rate))


@time_decayed_tanh.derivative(by='decay_rate')
def _time_decayed_tanh_by_decay_rate(x: Array, t: ArrayLike, decay_rate: ArrayLike = 0.1) -> Array:
    return -_finite(jnp.asarray(t, x.dtype)) * (_precise_tanh(x) * _decay(x, t, decay_rate))


def _update_gate(x: Array, h: Array) -> tuple[Array, Array, Array, int]:
    """(s, scale, p, shift) for s = x + h, where u = exp(-|s|) is scale * (1 + p) / 2**shift."""
    shift = elementary.format_of(x).spare
    x, h = _finite(x), _finite(h)
    s = x + h
    back = s - x
    rest = (x - (s - back)) + (h - back)  # half an ulp of a large sum is many ulps of its exponential
    return s, *elementary.exp_parts(*elementary.minus_magnitude(s, rest), shift), shift


@elementwise
def gated_tanh(x: ArrayLike, h_prev: ArrayLike) -> Array:
    r"""Hyperbolic tangent mixed with the state before by an update gate, for recurrent networks.

    .. math:: \mathrm{gated\_tanh}(x, h) = z \tanh(x) + (1 - z) \, h, \quad z = \mathrm{sigmoid}(x + h)

    Parameters
    ----------
    h_prev : float or array
        The state before, :math:`h`. An array broadcasts to `x` and can be differentiated with respect to.

    Returns
    -------
    array
        Same shape and dtype as `x`; between tanh(x) and `h_prev`.

    Raises
    ------
    ValueError
        If `h_prev` does not broadcast to the shape of `x`.

    Notes
    -----
    The two terms of the value may cancel, and so may those of its derivatives: errors are counted in ulp of the largest
    of both terms and their sum. In float32 they are within 4 for value and derivative by `h_prev` and within 5 for the
    slope; within 0.6 in bfloat16 and float16, and 8 in float64. 1 - z is computed as a sigmoid.
    The limits at -inf and inf are `h_prev` and 1. Saved for the backward pass: `x`, and `h_prev` if it is an array.

    References
    ----------
    Zhou, Wu, Zhang and Zhou, "Minimal gated unit for recurrent neural networks", arXiv:1603.09420, whose gate this is,
    without weights of its own.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> gated_tanh(jnp.array([-jnp.inf, 0.0, jnp.inf]), jnp.array([0.5, 0.0, 0.5])).tolist()
    [0.5, 0.0, 1.0]
    """
    _checks.hyperparameter('gated_tanh', 'h_prev', h_prev)
    h = jnp.asarray(h_prev, x.dtype)
    s, scale, p, shift = _update_gate(x, h)
    lifted, down = scale + scale * p, 2.0**-shift
    u, bent = lifted * down, _precise_tanh(x)
    h = jnp.minimum(h, float(jnp.finfo(x.dtype).max))  # 0 * inf is none
    return jnp.where(s < 0, u * bent + h, bent + lifted * h * down) / (1 + u)


# The gate z is u / (1 + u) or 1 / (1 + u), its derivative u / (1 + u)**2. Terms are added before they are scaled down,
# for one of them may be subnormal.
@gated_tanh.derivative
def _gated_tanh_slope(x: Array, h_prev: ArrayLike) -> Array:
    h = jnp.asarray(h_prev, x.dtype)
    s, scale, p, shift = _update_gate(x, h)
    u = (scale + scale * p) * 2.0**-shift
    turn = scale * ((_precise_tanh(x) - _finite(h)) / elementary.square_of_one_plus(u))
    rise = _lifted_sech_squared(x, None, jnp.where(s < 0, u, 1) / (1 + u), shift)
    return ((turn + rise) + turn * p) * 2.0**-shift


@gated_tanh.derivative(by='h_prev')
def _gated_tanh_by_h_prev(x: Array, h_prev: ArrayLike) -> Array:
    h = jnp.asarray(h_prev, x.dtype)
    s, scale, p, shift = _update_gate(x, h)
    u = (scale + scale * p) * 2.0**-shift
    turn, share = (_precise_tanh(x) - _finite(h)) / elementary.square_of_one_plus(u), 1 / (1 + u)
    part = scale * jnp.where(s < 0, turn, turn + share)
    lifted = part + part * p
    return jnp.where(s < 0, lifted * 2.0**-shift + share, lifted * 2.0**-shift)
