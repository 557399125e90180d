"""Rectifiers. The slope of most is a step, so that what they save for the backward pass is a mask."""

import decimal
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .._typing import Array, ArrayLike, Result
from ._kernel import compute_dtype, elementwise, kernel
from ._linear import linear


@elementwise(unit_out=1)
def relu(x: ArrayLike) -> Result:
    r"""Rectified linear unit: the positive part of the input.

    .. math:: \mathrm{relu}(x) = \max(x, 0)

    Returns
    -------
    array
        Same shape, dtype and unit as `x`; in [0, inf).

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


# Selected: in a chain it is faster than `|`.
@relu6.derivative(residual=lambda x: jnp.where(x <= 0, False, ~(x >= 6)))
def _relu6_slope(inside: Array) -> Array:
    return inside


def _leak(x: Array, slope: ArrayLike) -> Array:
    if isinstance(slope, jax.Array):  # a slope of 0 gives 0 at -inf too, and nan at nan
        return jnp.where(x > 0, x, jnp.where(slope == 0, jnp.maximum(x, 0), slope * x))
    return jnp.where(x > 0, x, slope * x) if slope != 0 else jnp.maximum(x, 0)


@elementwise(unit_out=1)
def leaky_relu(x: ArrayLike, negative_slope: ArrayLike = 0.01) -> Result:
    r"""Rectified linear unit that lets a fraction of negative inputs through.

    .. math:: \mathrm{leaky\_relu}(x) = \begin{cases} x & x > 0 \\ a x & x \le 0 \end{cases}

    Parameters
    ----------
    negative_slope : float or array, optional
        The slope :math:`a` on the negative side, dimensionless. An array broadcasts to `x` (one slope a channel,
        say) and can be differentiated with respect to.

    Raises
    ------
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
    return _leak(x, _checks.hyperparameter('leaky_relu', 'negative_slope', negative_slope))


@leaky_relu.derivative(residual=lambda x, negative_slope=0.01: x > 0)
def _leaky_relu_slope(positive: Array, negative_slope: ArrayLike = 0.01) -> Array:
    return jnp.where(positive, 1.0, negative_slope)


@leaky_relu.derivative(by='negative_slope')
def _leaky_relu_by_slope(x: Array, negative_slope: ArrayLike = 0.01) -> Array:
    return jnp.where(x > 0, 0, x)


@elementwise(unit_out=1)
def prelu(x: ArrayLike, slope: ArrayLike = 0.25) -> Result:
    r"""Parametric rectified linear unit: `leaky_relu` with a slope that is learned.

    .. math:: \mathrm{prelu}(x) = \begin{cases} x & x > 0 \\ a x & x \le 0 \end{cases}

    Parameters
    ----------
    slope : array or float, optional
        The slope :math:`a` on the negative side, dimensionless. An array broadcasts to `x`: a scalar is shared, one
        of the size of the last axis holds a slope a channel. It can be differentiated with respect to.

    Raises
    ------
    ValueError
        If `slope` does not broadcast to the shape of `x`.

    Notes
    -----
    Within 2 ulp. The slope at the kink is `slope`; the derivative by `slope` is ``min(x, 0)``, at +inf too. A mask
    of one byte an element is all that is saved for the derivative by `x`; that by `slope` needs `x`.

    References
    ----------
    He, Zhang, Ren and Sun, "Delving deep into rectifiers: surpassing human-level performance on ImageNet
    classification", ICCV 2015.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> prelu(jnp.array([[-2.0, -2.0], [3.0, 3.0]]), jnp.array([0.25, 0.5])).tolist()
    [[-0.5, -1.0], [3.0, 3.0]]
    """
    return _leak(x, _checks.hyperparameter('prelu', 'slope', slope))


@prelu.derivative(residual=lambda x, slope=0.25: x > 0)
def _prelu_slope(positive: Array, slope: ArrayLike = 0.25) -> Array:
    return jnp.where(positive, 1.0, slope)


@prelu.derivative(by='slope')
def _prelu_by_slope(x: Array, slope: ArrayLike = 0.25) -> Array:
    return jnp.where(x > 0, 0, x)


@dataclass(frozen=True)
class _Drawn:
    """Slopes drawn from a key, and multiplication by them where the input was not positive."""

    lower: float
    upper: float

    def slopes(self, key: Array, like: Array) -> Array:
        return jax.random.uniform(key, like.shape, compute_dtype(like.dtype), self.lower, self.upper)

    def __call__(self, residuals: Sequence[Array], operands: Sequence[Array | None]) -> list[Array]:
        positive, key = residuals
        (t,) = operands
        assert t is not None
        slopes = self.slopes(key, t)
        return [jnp.where(positive, t, (slopes * t.astype(slopes.dtype)).astype(t.dtype))]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _random_leak(drawn: _Drawn, x: Array, key: Array) -> Array:
    return _leak(x.astype(compute_dtype(x.dtype)), drawn.slopes(key, x)).astype(x.dtype)


# The key is saved, not the slopes: they are drawn once more.
@_random_leak.defjvp
def _random_leak_jvp(drawn: _Drawn, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    x, key = primals
    return _random_leak(drawn, x, key), linear(drawn, drawn, [x > 0, key], [tangents[0]])[0]


@kernel(unit_out=1)
def rrelu(x: ArrayLike, lower: float = 1 / 8, upper: float = 1 / 3, key: ArrayLike | None = None) -> Result:
    r"""Randomized `leaky_relu`: the slope of each negative input is drawn.

    .. math:: \mathrm{rrelu}(x) = \begin{cases} x & x > 0 \\ a x & x \le 0 \end{cases}
        \qquad a \sim U(\mathit{lower}, \mathit{upper})

    Parameters
    ----------
    x : array of any shape, or Quantity
        A unit is kept.
    lower, upper : float, optional
        The bounds of the slopes.
    key : JAX random key, optional
        Draws one slope an element. Without it, as when a model is evaluated, all are the midpoint of the bounds.

    Returns
    -------
    array
        Same shape, dtype and unit as `x`.

    Raises
    ------
    TypeError
        If `x` is not an array of real numbers, a bound is not a number, or `key` is no random key.
    ValueError
        If `lower` is above `upper`.

    Notes
    -----
    Within 2 ulp of the product with the slope that is drawn, which is a float32 for an input of lower precision.
    The slope at the kink is that of the negative side. A mask of one byte an element and the key are all that is
    saved for the backward pass: it draws the same slopes once more.

    References
    ----------
    Xu, Wang, Chen and Li, "Empirical evaluation of rectified activations in convolutional network",
    arXiv:1505.00853.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> rrelu(jnp.array([-1.0, 2.0]), 0.25, 0.75).tolist()
    [-0.5, 2.0]
    >>> drawn = rrelu(-jnp.ones(1000), key=jax.random.key(0))
    >>> bool(drawn.min() >= -1 / 3) and bool(drawn.max() <= -1 / 8)
    True
    """
    lower = _checks.number('rrelu', 'lower', lower)
    upper = _checks.number('rrelu', 'upper', upper, at_least=lower)
    if key is None:
        return leaky_relu(x, (lower + upper) / 2)
    return _random_leak(_Drawn(lower, upper), x, _checks.random_key('rrelu', 'key', key))


@elementwise(unit_out=1, unit_in={'threshold': 1, 'value': 1})
def threshold(x: ArrayLike, threshold: ArrayLike, value: ArrayLike) -> Result:
    r"""Inputs above a threshold, and a constant in place of all others.

    .. math:: \mathrm{threshold}(x) = \begin{cases} x & x > \theta \\ v & x \le \theta \end{cases}

    Parameters
    ----------
    threshold : float or array, or Quantity
        What :math:`\theta` an input has to exceed; a plain number counts in the unit of `x`.
    value : float or array, or Quantity
        What :math:`v` replaces the others, likewise. An array broadcasts to `x` and can be differentiated with
        respect to.

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers, or has a unit that does not match that of `x`.
    ValueError
        If `threshold` or `value` does not broadcast to the shape of `x`.

    Notes
    -----
    Exact in every dtype. The slope at the threshold is that of the constant side, 0. A mask of one byte an element
    is all that is saved for the backward pass.

    References
    ----------
    PyTorch's documentation of ``torch.nn.Threshold``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> threshold(jnp.array([-1.0, 0.5, 2.0]), 0.5, -3.0).tolist()
    [-3.0, -3.0, 2.0]
    """
    bound = _checks.hyperparameter('threshold', 'threshold', threshold)
    return jnp.where(x <= bound, _checks.hyperparameter('threshold', 'value', value), x)


@threshold.derivative(residual=lambda x, threshold, value: ~(x <= threshold))
def _threshold_slope(above: Array, threshold: ArrayLike, value: ArrayLike) -> Array:
    return above


@elementwise(unit_out=1, unit_in={'threshold': 1})
def tlu(x: ArrayLike, threshold: ArrayLike) -> Result:
    r"""Thresholded linear unit: `relu` with a threshold that is learned.

    .. math:: \mathrm{tlu}(x) = \max(x, \tau)

    Parameters
    ----------
    threshold : array or float, or Quantity
        The lower bound :math:`\tau`; a plain one counts in the unit of `x`. An array broadcasts to `x`: one of the
        size of the last axis holds a bound a channel. It can be differentiated with respect to.

    Returns
    -------
    array
        Same shape, dtype and unit as `x`; at least `threshold`.

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers, or has a unit that does not match that of `x`.
    ValueError
        If `threshold` does not broadcast to the shape of `x`.

    Notes
    -----
    Exact in every dtype. The slope at the kink is that of the flatter side, 0; the derivative by `threshold` is 1
    there, and 0 above. A mask of one byte an element is all that is saved for the derivative by `x`.

    References
    ----------
    Singh and Krishnan, "Filter response normalization layer: eliminating batch dependence in the training of deep
    neural networks", CVPR 2020.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> tlu(jnp.array([[-1.0, -1.0], [2.0, 2.0]]), jnp.array([0.0, -3.0])).tolist()
    [[0.0, -1.0], [2.0, 2.0]]
    """
    bound = _checks.hyperparameter('tlu', 'threshold', threshold)
    return jnp.where(x <= bound, bound, x)


@tlu.derivative(residual=lambda x, threshold: ~(x <= threshold))
def _tlu_slope(above: Array, threshold: ArrayLike) -> Array:
    return above


@elementwise
def squared_relu(x: ArrayLike) -> Array:
    r"""Square of the positive part, also called relu2 or relu_squared.

    .. math:: \mathrm{squared\_relu}(x) = \max(x, 0)^2

    Returns
    -------
    array
        Same shape and dtype as `x`; in [0, inf).

    Notes
    -----
    Rounded once. The slope, ``2 * relu(x)``, is exact and has no kink; it grows without bound.

    References
    ----------
    So, Mańke, Liu, Dai, Shazeer and Le, "Primer: searching for efficient transformers for language modeling",
    arXiv:2109.08668.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> squared_relu(jnp.array([-2.0, 0.0, 3.0])).tolist()
    [0.0, 0.0, 9.0]
    """
    positive = jnp.maximum(x, 0)
    return positive * positive


# Selected, not the maximum: the second derivative at 0 is 0, not the mean of both sides.
@squared_relu.derivative
def _squared_relu_slope(x: Array) -> Array:
    return jnp.where(x <= 0, 0, 2 * x)


@functools.cache
def _star_root(scale: float, bias: float, dtype: np.dtype) -> tuple[float, float] | None:
    """Where star_relu is zero, if anywhere, in two parts, for hyperparameters as they are when rounded to `dtype`."""
    scale, bias = float(dtype.type(scale)), float(dtype.type(bias))
    if not scale * bias < 0:
        return None
    with decimal.localcontext(decimal.Context(prec=60)):
        root = (decimal.Decimal(-bias) / decimal.Decimal(scale)).sqrt()
        first = float(dtype.type(float(root)))
        return first, float(root - decimal.Decimal(first))


@elementwise
def star_relu(x: ArrayLike, scale: ArrayLike = 0.8944, bias: ArrayLike = -0.4472) -> Array:
    r"""Scaled and shifted square of the positive part.

    .. math:: \mathrm{star\_relu}(x) = s \max(x, 0)^2 + b

    Parameters
    ----------
    scale, bias : float or array, optional
        The factor :math:`s` and the summand :math:`b`. The defaults give a result of mean 0 and variance 1 for a
        standard normal input. Arrays broadcast to `x` and can be differentiated with respect to.

    Returns
    -------
    array
        Same shape and dtype as `x`; at least `bias` where `scale` is positive.

    Raises
    ------
    ValueError
        If `scale` or `bias` does not broadcast to the shape of `x`.

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64. Where the value
    passes through zero (x = 0.7071) that takes `scale` and `bias` as numbers; the error of arrays is an ulp or two of
    `bias` there. The slope, ``2 * scale * relu(x)``, has no kink and grows without bound.

    References
    ----------
    Yu, Si, Zhou, Luo, Zhou, Feng, Yan and Wang, "MetaFormer baselines for vision", arXiv:2210.13452.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> star_relu(jnp.array([-2.0, 0.0, 1.0]), 2.0, -1.0).tolist()
    [-1.0, -1.0, 1.0]
    """
    scale, bias = (_checks.hyperparameter('star_relu', n, v) for n, v in (('scale', scale), ('bias', bias)))
    positive = jnp.maximum(x, 0)
    numbers = isinstance(scale, float) and isinstance(bias, float)
    root = _star_root(scale, bias, x.dtype) if numbers else None
    if root is None:
        return scale * positive * positive + bias
    # s (r - root) (r + root): s r**2 + b has no digits left near the root
    rest = jnp.where(positive < 2 * root[0], positive * (root[1] / root[0]), 0)  # made of x: compilers add up constants
    ahead = (positive - root[0]) - rest
    return jnp.where(x <= 0, bias, scale * ahead * (positive + root[0]))


@star_relu.derivative
def _star_relu_slope(x: Array, scale: ArrayLike = 0.8944, bias: ArrayLike = -0.4472) -> Array:
    return jnp.where(x <= 0, 0, 2 * scale * x)


@star_relu.derivative(by='scale')
def _star_relu_by_scale(x: Array, scale: ArrayLike = 0.8944, bias: ArrayLike = -0.4472) -> Array:
    return jnp.where(x <= 0, 0, x * x)


@kernel(unit_out=1)
def crelu(x: ArrayLike, axis: int = -1) -> Result:
    r"""Concatenated rectified linear units: the positive and the negative part side by side.

    .. math:: \mathrm{crelu}(x) = [\max(x, 0), \max(-x, 0)]

    Parameters
    ----------
    x : array of rank at least 1, or Quantity
        A unit is kept.
    axis : int, optional
        The axis along which the two parts are concatenated.

    Returns
    -------
    array
        Dtype and unit of `x`, and its shape with twice the size along `axis`; in [0, inf).

    Raises
    ------
    TypeError
        If `x` is not an array of real numbers.
    ValueError
        If `x` has no such axis.

    Notes
    -----
    Exact in every dtype. The slope of both parts at 0 is 0. Two masks of one byte an element are all that is saved
    for the backward pass.

    References
    ----------
    Shang, Sohn, Almeida and Lee, "Understanding and improving convolutional neural networks via concatenated
    rectified linear units", ICML 2016.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> crelu(jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0, 1.0, 0.0]
    """
    return jnp.concatenate([relu(x), relu(-x)], _checks.one_axis('crelu', 'axis', axis, x.ndim))


@dataclass(frozen=True)
class _Pick:
    """The chosen one of each group."""

    axis: int

    def __call__(self, residuals: Sequence[Array], operands: Sequence[Array | None]) -> list[Array]:
        (chosen,), (t,) = residuals, operands
        assert t is not None
        return [jnp.sum(jnp.where(chosen, t, 0), self.axis)]


@dataclass(frozen=True)
class _Place:
    """The transpose of `_Pick`: to where the chosen one was."""

    axis: int

    def __call__(self, residuals: Sequence[Array], operands: Sequence[Array | None]) -> list[Array]:
        (chosen,), (t,) = residuals, operands
        assert t is not None
        return [jnp.where(chosen, jnp.expand_dims(t, self.axis), 0)]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _greatest(axis: int, groups: Array) -> Array:
    return jnp.max(groups, axis)


@_greatest.defjvp
def _greatest_jvp(axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (groups,) = primals
    first = jnp.expand_dims(jnp.argmax(groups, axis), axis)
    chosen = jax.lax.broadcasted_iota(first.dtype, groups.shape, axis) == first
    return _greatest(axis, groups), linear(_Pick(axis), _Place(axis), [chosen], list(tangents))[0]


@kernel(unit_out=1)
def maxout(x: ArrayLike, num_units: int, axis: int = -1) -> Result:
    r"""The greatest of each group of features.

    .. math:: \mathrm{maxout}(x)_i = \max_{0 \le j < k} x_{i k + j}

    Parameters
    ----------
    x : array of rank at least 1, or Quantity
        A unit is kept.
    num_units : int
        How many features remain: each is the greatest of :math:`k` that are next to each other, the size of `axis`
        being `num_units` times :math:`k`.
    axis : int, optional
        The axis of the features.

    Returns
    -------
    array
        Dtype and unit of `x`, and its shape with `num_units` along `axis`.

    Raises
    ------
    TypeError
        If `x` is not an array of real numbers, or `num_units` is not an int.
    ValueError
        If `x` has no such axis, or its size is not a multiple of `num_units`.

    Notes
    -----
    Exact in every dtype. Among equals the first has the slope 1 and the others have 0; in a group with nan the first
    nan counts as the greatest. A mask of one byte an element is all that is saved for the backward pass.

    References
    ----------
    Goodfellow, Warde-Farley, Mirza, Courville and Bengio, "Maxout networks", ICML 2013.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> maxout(jnp.array([1.0, 5.0, 2.0, -4.0, -3.0, -8.0]), 2).tolist()
    [5.0, -3.0]
    """
    axis = _checks.one_axis('maxout', 'axis', axis, x.ndim)
    num_units = _checks.integer('maxout', 'num_units', num_units)
    size = x.shape[axis]
    if size % num_units or not size:
        raise ValueError(
            f'maxout: num_units must divide the {size} features on axis {axis}, got {num_units}; '
            'choose a divisor of it.'
        )
    return _greatest(axis + 1, x.reshape(*x.shape[:axis], num_units, size // num_units, *x.shape[axis + 1 :]))


@kernel(unit_out=1)
def identity(x: ArrayLike) -> Result:
    r"""The input as it is: what stands for no activation.

    .. math:: \mathrm{identity}(x) = x

    Parameters
    ----------
    x : array of any shape, or Quantity
        A unit is kept.

    Returns
    -------
    array
        `x`; integers become the default float, as in every activation.

    Raises
    ------
    TypeError
        If `x` is not an array of real numbers.

    Notes
    -----
    Exact. The slope is 1, and nothing is saved for the backward pass.

    References
    ----------
    PyTorch's documentation of ``torch.nn.Identity``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> identity(jnp.array([-1.0, 2.0])).tolist()
    [-1.0, 2.0]
    """
    return x
