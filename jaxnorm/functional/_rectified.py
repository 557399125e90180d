"""Piecewise linear activations. Their slope is a step, so what they save for the backward pass is a mask."""

import jax
import jax.numpy as jnp

from .._typing import Array, ArrayLike, Result
from ._kernel import elementwise


@elementwise(unit_out=1)
def relu(x: ArrayLike) -> Result:
    r"""Rectified linear unit: the positive part of the input.

    .. math:: \mathrm{relu}(x) = \max(x, 0)

    Parameters
    ----------
    x : array of any shape, or Quantity
        A unit is kept.

    Returns
    -------
    array
        Same shape, dtype and unit as `x`; in [0, inf).

    Raises
    ------
    TypeError
        If `x` is not an array of real numbers.

    Notes
    -----
    Exact in every dtype. The slope at the kink is that of the flatter side, 0. A mask of one byte an element
    is all that is saved for the backward pass.

    References
    ----------
    Nair and Hinton, "Rectified linear units improve restricted Boltzmann machines", ICML 2010.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> relu(jnp.array([-1.0, 0.0, 2.0])).tolist()
    [0.0, 0.0, 2.0]
    """
    return jnp.maximum(x, 0)


# Not `x > 0`: a cotangent at nan is passed on, and so seen, instead of becoming 0.
@relu.derivative(residual=lambda x: ~(x <= 0))
def _relu_slope(positive: Array) -> Array:
    return positive


@elementwise
def relu6(x: ArrayLike) -> Array:
    r"""Rectified linear unit that saturates at 6.

    .. math:: \mathrm{relu6}(x) = \min(\max(x, 0), 6)

    Parameters
    ----------
    x : array of any shape
        Dimensionless, since it is compared with 6.

    Returns
    -------
    array
        Same shape and dtype as `x`; in [0, 6].

    Raises
    ------
    TypeError
        If `x` is not an array of real numbers, or has a unit.

    Notes
    -----
    Exact in every dtype. The slope at both kinks is that of the flatter side, 0. A mask of one byte an element
    is all that is saved for the backward pass.

    References
    ----------
    Krizhevsky, "Convolutional deep belief networks on CIFAR-10", 2010.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> relu6(jnp.array([-1.0, 3.0, 8.0])).tolist()
    [0.0, 3.0, 6.0]
    """
    return jnp.minimum(jnp.maximum(x, 0), 6)


@relu6.derivative(residual=lambda x: ~((x <= 0) | (x >= 6)))
def _relu6_slope(inside: Array) -> Array:
    return inside


@elementwise(unit_out=1)
def leaky_relu(x: ArrayLike, negative_slope: ArrayLike = 0.01) -> Result:
    r"""Rectified linear unit that lets a fraction of negative inputs through.

    .. math:: \mathrm{leaky\_relu}(x) = \begin{cases} x & x > 0 \\ a x & x \le 0 \end{cases}

    Parameters
    ----------
    x : array of any shape, or Quantity
        A unit is kept.
    negative_slope : float or array, optional
        The slope :math:`a` on the negative side, dimensionless. An array broadcasts to `x` (one slope a channel,
        say) and can be differentiated with respect to.

    Returns
    -------
    array
        Same shape, dtype and unit as `x`.

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers.
    ValueError
        If `negative_slope` does not broadcast to the shape of `x`.

    Notes
    -----
    Within 2 ulp. The slope at the kink is `negative_slope`. A mask of one byte an element is all that is saved
    for the backward pass.

    References
    ----------
    Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML 2013.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> leaky_relu(jnp.array([-2.0, 0.0, 2.0]), 0.25).tolist()
    [-0.5, 0.0, 2.0]
    """
    if isinstance(negative_slope, jax.Array):  # the minimum: its derivative by the slope at +inf is 0, not 0 * inf
        return jnp.where(x > 0, x, negative_slope * jnp.minimum(x, 0))
    return jnp.where(x > 0, x, negative_slope * x) if negative_slope != 0 else jnp.maximum(x, 0)  # 0 * -inf is none


@leaky_relu.derivative(residual=lambda x, negative_slope=0.01: x > 0)
def _leaky_relu_slope(positive: Array, negative_slope: ArrayLike = 0.01) -> Array:
    return jnp.where(positive, 1.0, negative_slope)
