"""Hard versions of smooth activations: pieces of straight lines and parabolas.

Inside the bounds they are products of differences like x + 3, which are exact where they are small.
"""

import jax
import jax.numpy as jnp

from .. import _checks
from .._typing import Array, ArrayLike, Result
from . import _elementary as elementary
from ._kernel import elementwise
from ._sigmoidal import _sigmoid_slope


@elementwise
def hard_sigmoid(x: ArrayLike) -> Array:
    r"""Piecewise linear version of `sigmoid`.

    .. math:: \mathrm{hard\_sigmoid}(x) = \frac{\min(\max(x + 3, 0), 6)}{6}

    Returns
    -------
    array
        Same shape and dtype as `x`; in [0, 1].

    Notes
    -----
    Within 2 ulp. The slope at both kinks is that of the flatter side, 0. A mask of one byte an element is all that
    is saved for the backward pass.

    References
    ----------
    Howard and others, "Searching for MobileNetV3", ICCV 2019.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> hard_sigmoid(jnp.array([-3.0, 0.0, 1.5, 8.0])).tolist()
    [0.0, 0.5, 0.75, 1.0]
    """
    return jnp.minimum(jnp.maximum(x + 3, 0), 6) / 6


def _inside(x: Array, min_value: ArrayLike = -1.0, max_value: ArrayLike = 1.0) -> Array:
    """Where `x` is neither at a bound nor beyond: at nan too, so that a cotangent there is passed on, and seen."""
    return jnp.where(x <= min_value, False, ~(x >= max_value))  # selected: in a chain it is faster than `|`


@hard_sigmoid.derivative(residual=lambda x: _inside(x, -3, 3))
def _hard_sigmoid_slope(inside: Array) -> Array:
    return jnp.where(inside, 1 / 6, 0)


@elementwise
def hard_silu(x: ArrayLike) -> Array:
    r"""Piecewise quadratic version of `silu`, also called hard_swish.

    .. math:: \mathrm{hard\_silu}(x) = x \, \frac{\min(\max(x + 3, 0), 6)}{6}

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-0.375, inf).

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64. The slope at the
    kinks is that of the flatter side: 0 at -3 and 1 at 3.

    References
    ----------
    Howard and others, "Searching for MobileNetV3", ICCV 2019.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> hard_silu(jnp.array([-jnp.inf, -1.5, 0.0, 3.0])).tolist()
    [0.0, -0.375, 0.0, 3.0]
    """
    return jnp.where(x <= -3, 0, x * (jnp.minimum(x + 3, 6) / 6))


# (2 x + 3) / 6, written so that the difference is exact at its root.
@hard_silu.derivative
def _hard_silu_slope(x: Array) -> Array:
    return jnp.where(x <= -3, 0, jnp.where(x >= 3, 1, (x + 1.5) / 3))


hard_swish = hard_silu


@elementwise
def hard_mish(x: ArrayLike) -> Array:
    r"""Piecewise quadratic version of mish.

    .. math:: \mathrm{hard\_mish}(x) = \frac{x}{2} \min(\max(x + 2, 0), 2)

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-0.5, inf).

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64. The slope at the
    kink at -2 is that of the flatter side, 0; at 0 there is none.

    References
    ----------
    Misra, "H-Mish", github.com/digantamisra98/H-Mish, 2020.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> hard_mish(jnp.array([-jnp.inf, -1.0, 0.0, 3.0])).tolist()
    [0.0, -0.5, 0.0, 3.0]
    """
    return jnp.where(x <= -2, 0, x * (0.5 * jnp.minimum(x + 2, 2)))


# Selected, not the minimum of x + 1 and 1: their second derivative at 0 would be the mean of both sides.
@hard_mish.derivative
def _hard_mish_slope(x: Array) -> Array:
    return jnp.where(x <= -2, 0, jnp.where(x >= 0, 1, x + 1))


@elementwise
def sparse_plus(x: ArrayLike) -> Array:
    r"""Piecewise quadratic version of `softplus`.

    .. math:: \mathrm{sparse\_plus}(x) = \begin{cases}
        0 & x \le -1 \\ \frac{1}{4} (x + 1)^2 & -1 < x < 1 \\ x & x \ge 1 \end{cases}

    Returns
    -------
    array
        Same shape and dtype as `x`; in [0, inf).

    Notes
    -----
    Within 2 ulp. The slope is `sparse_sigmoid`, without a kink.

    References
    ----------
    Blondel, Martins and Niculae, "Learning with Fenchel-Young losses", JMLR 21, 2020.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> sparse_plus(jnp.array([-2.0, 0.0, 3.0])).tolist()
    [0.0, 0.25, 3.0]
    """
    rise = jnp.maximum(x, -1) + 1
    return jnp.where(x >= 1, x, 0.25 * rise * rise)


@sparse_plus.derivative
def _sparse_plus_slope(x: Array) -> Array:
    return jnp.where(x <= -1, 0, jnp.where(x >= 1, 1, 0.5 * (x + 1)))


@elementwise
def sparse_sigmoid(x: ArrayLike) -> Array:
    r"""Piecewise linear version of `sigmoid`, the derivative of `sparse_plus`.

    .. math:: \mathrm{sparse\_sigmoid}(x) = \frac{\min(\max(x + 1, 0), 2)}{2}

    Returns
    -------
    array
        Same shape and dtype as `x`; in [0, 1].

    Notes
    -----
    Rounded once. The slope at both kinks is that of the flatter side, 0. A mask of one byte an element is all that
    is saved for the backward pass.

    References
    ----------
    Martins and Astudillo, "From softmax to sparsemax: a sparse model of attention and multi-label classification",
    ICML 2016. Blondel, Martins and Niculae, "Learning with Fenchel-Young losses", JMLR 21, 2020.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> sparse_sigmoid(jnp.array([-2.0, 0.0, 0.5, 3.0])).tolist()
    [0.0, 0.5, 0.75, 1.0]
    """
    return 0.5 * jnp.minimum(jnp.maximum(x + 1, 0), 2)


@sparse_sigmoid.derivative(residual=_inside)
def _sparse_sigmoid_slope(inside: Array) -> Array:
    return jnp.where(inside, 0.5, 0)


@elementwise(unit_out=1, unit_in={'min_value': 1, 'max_value': 1})
def hard_tanh(x: ArrayLike, min_value: ArrayLike = -1.0, max_value: ArrayLike = 1.0) -> Result:
    r"""The input, held between two bounds.

    .. math:: \mathrm{hard\_tanh}(x) = \min(\max(x, a), b)

    Parameters
    ----------
    min_value, max_value : float or array, or Quantity, optional
        The bounds :math:`a` and :math:`b`; plain ones count in the unit of `x`. Arrays broadcast to `x` and can be
        differentiated with respect to.

    Returns
    -------
    array
        Same shape, dtype and unit as `x`; in [min_value, max_value].

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers, or a bound has a unit that does not match that of `x`.
    ValueError
        If `min_value` is not below `max_value`, or a bound does not broadcast to the shape of `x`.

    Notes
    -----
    Exact in every dtype. The slope at both bounds is that of the flatter side, 0. A mask of one byte an element is
    all that is saved for the backward pass.

    References
    ----------
    Collobert, "Large scale machine learning", PhD thesis, Université Paris VI, 2004.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> hard_tanh(jnp.array([-2.0, 0.5, 2.0])).tolist()
    [-1.0, 0.5, 1.0]
    >>> hard_tanh(jnp.array([-2.0, 0.5, 2.0]), 0.0, 0.25).tolist()
    [0.0, 0.25, 0.25]
    """
    low, high = (
        _checks.hyperparameter('hard_tanh', name, value)
        for name, value in (('min_value', min_value), ('max_value', max_value))
    )
    if isinstance(low, jax.Array) or isinstance(high, jax.Array):  # by a bound, the derivative at it is 1
        return jnp.where(x <= low, low, jnp.where(x >= high, high, x))
    if not low < high:
        raise ValueError(
            f'hard_tanh: min_value must be below max_value, got {low!r} and {high!r}; exchange or move them.'
        )
    return jnp.where(x > high, high, jnp.where(x < low, low, x))  # in a chain faster than minimum and maximum


@hard_tanh.derivative(residual=_inside)
def _hard_tanh_slope(inside: Array, min_value: ArrayLike = -1.0, max_value: ArrayLike = 1.0) -> Array:
    return inside


@elementwise
def approximate_tanh(x: ArrayLike) -> Array:
    r"""Piecewise linear approximation of `tanh`: its tangent at 0, up to its limits.

    .. math:: \mathrm{approximate\_tanh}(x) = \min(\max(x, -1), 1)

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-1, 1].

    Notes
    -----
    Exact in every dtype. At most 0.2384 away from `tanh`, at both kinks; the slope there is that of the flatter
    side, 0. Some write pieces of the slope 1/4 from the kinks on, and then clip to [-1, 1]: that is this function
    too. It has the values of `hard_tanh` with its default bounds. A mask of one byte an element is all that is saved
    for the backward pass.

    References
    ----------
    Collobert, "Large scale machine learning", PhD thesis, Université Paris VI, 2004.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> approximate_tanh(jnp.array([-2.0, 0.5, 2.0])).tolist()
    [-1.0, 0.5, 1.0]
    """
    return jnp.where(x > 1, 1, jnp.where(x < -1, -1, x))


@approximate_tanh.derivative(residual=_inside)
def _approximate_tanh_slope(inside: Array) -> Array:
    return inside


@elementwise
def quantized_sigmoid(x: ArrayLike, bits: int = 8) -> Array:
    r"""`sigmoid`, rounded to what an unsigned integer of few bits can hold.

    .. math:: \mathrm{quantized\_sigmoid}(x) = \frac{\mathrm{round}(n \, \mathrm{sigmoid}(x))}{n}
        \qquad n = 2^{\mathit{bits}} - 1

    Parameters
    ----------
    bits : int, optional
        The size of the integer, from 1 to 24: the result has :math:`n + 1` different values, 0 and 1 included.

    Returns
    -------
    array
        Same shape and dtype as `x`; in [0, 1].

    Raises
    ------
    TypeError
        If `x` is not an array of real numbers, or has a unit; if `bits` is not an int.
    ValueError
        If `bits` does not lie in [1, 24].

    Notes
    -----
    The derivative is that of `sigmoid` itself, as if nothing were rounded (a straight-through estimator: the exact
    one is 0 nearly everywhere, and nothing could be learned through it). It is within 4 ulp in float32, 0.6 ulp in
    bfloat16 and float16, 8 ulp in float64.
    The value is rounded once after its integer is known. That integer comes from a sigmoid within 4 ulp: so close to
    a step, either side of it. At 0, which is a step for every `bits`, the upper one is taken; apart from it
    f(x) + f(-x) = 1.

    References
    ----------
    Bengio, Léonard and Courville, "Estimating or propagating gradients through stochastic neurons for conditional
    computation", arXiv:1308.3432. Jacob and others, "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", CVPR 2018.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> quantized_sigmoid(jnp.array([-9.0, 0.5, 9.0]), 2).tolist()
    [0.0, 0.6666667, 1.0]
    """
    largest = 2 ** _checks.integer('quantized_sigmoid', 'bits', bits, at_most=24) - 1
    # half is rounded down below zero, for the sigmoid of a tiny x is 1/2 to all its digits
    below = jnp.ceil(elementary.logistic(-jnp.abs(x)) * largest - 0.5)
    return jnp.where(x < 0, below, largest - below) / largest


# Straight through the rounding: the slope of sigmoid.
@quantized_sigmoid.derivative
def _quantized_sigmoid_slope(x: Array, bits: int = 8) -> Array:
    return _sigmoid_slope(x)
