"""Reparametrizations: what a layer's weight is made of, so that its size, mean or largest singular value is known."""

import math
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from .. import _checks
from .._typing import Array, ArrayLike, Axes
from . import _moments
from ._kernel import compute_dtype, kernel
from ._moments import Pool, wide
from ._normalization import _epsilon, _norm, _parameter, _Spec

#: What the docstrings below need not say.
_REPARAMETRIZATION = r"""Of a reparametrization.

Parameters
----------
w : array, at least two axes
    The weight: real numbers; integers become the default float. A Quantity may have any unit.
axis : int or tuple of int
    The output axis or axes; all others are the fan-in.

Raises
------
ValueError, TypeError
    For an axis that the weight does not have, a weight without a fan-in, or an argument of the wrong shape or range.
"""


def _fan_in(op: str, argument: str, w: Array, axis: Any) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The output axes, the others, and how many elements these hold."""
    along = () if axis is None else _checks.axes(op, 'axis', axis, w.ndim)
    over = tuple(a for a in range(w.ndim) if a not in along)
    if not over:
        raise ValueError(
            f'{op}: {argument} must have an axis beside the output axis {axis}, got the shape {w.shape}; '
            'a weight of one number an output has no direction: leave it as it is.'
        )
    return along, over, math.prod(w.shape[a] for a in over)


@kernel(unit_out=1)
def weight_length(w: ArrayLike, *, axis: Axes | None = -1) -> Array:
    """The Euclidean norm of each output's weights, one value for each element of `axis`: the `g` of a weight."""
    w = cast(Array, w)
    _, over, n = _fan_in('weight_norm', 'w', w, axis)
    square = _moments.mean_square(wide(w), Pool(over), float(n)).var
    return jnp.sqrt(square.squeeze(over)) * math.sqrt(n)


@kernel(unit_in={'g': 1}, unit_out=1, family=_REPARAMETRIZATION)
def weight_norm(v: ArrayLike, g: ArrayLike, *, axis: Axes | None = -1) -> Array:
    r"""Weight normalization: each output's weights by direction and length.

    .. math:: w = g \, \frac{v}{\lVert v \rVert}

    Parameters
    ----------
    v : array
        The direction; its length has no effect. Real numbers; integers become the default float.
    g : array
        The length: one value for each element of `axis`, or anything that broadcasts to `v`. In the unit of `v`.
    axis : int, tuple of int or None
        The output axis or axes, each with a length of its own; None is one length for the whole weight.

    Returns
    -------
    array
        Shape, dtype and unit of `v`.

    Notes
    -----
    Arithmetic is in at least float32; the result is within 2e-7 (float32), for `v` of any size from 1e-17 to 1e17. A
    `v` of zeros gives zeros and finite gradients. The backward pass keeps `v`, `g` and one number an output, beside a
    zero.

    References
    ----------
    Salimans & Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural
    networks", 2016, arXiv:1602.07868.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> F.weight_norm(jnp.array([[3.0, 0.0], [4.0, 2.0]]), jnp.array([10.0, 1.0])).round(4).tolist()
    [[6.0, 0.0], [8.0, 1.0]]
    """
    op, v = 'weight_norm', cast(Array, v)
    along, over, n = _fan_in(op, 'v', v, axis)
    length = _parameter(op, 'g', g, v.shape, along)
    if length is None:
        raise TypeError(f'{op}: g must be an array, got None; pass for example jnp.ones(v.shape[-1]).')
    return _norm(_Spec(Pool(over), 0.0, centred=False), v, wide(length) / math.sqrt(n), None, None)[0]


@kernel(unit_out=0, family=_REPARAMETRIZATION)
def weight_standardization(
    w: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-6,
    scaled: bool = False,
) -> Array:
    r"""Weight standardization: each output's weights with mean zero and variance one.

    .. math:: \hat w = \gamma \, \frac{w - \mu}{\sqrt{\sigma^2 + \epsilon}}, \qquad
        \hat w_\text{scaled} = \frac{\hat w}{\sqrt{N}}

    Parameters
    ----------
    gain : array, optional
        One value for each element of `axis`, or anything that broadcasts to `w`. Dimensionless.
    epsilon : float
        Added to the variance, in the square of the unit of `w`.
    scaled : bool
        Whether to divide by the root of the fan-in N, as normalizer-free networks do: an input of variance one gives
        an output of variance one.

    Returns
    -------
    array
        Shape and dtype of `w`, dimensionless.

    Notes
    -----
    Statistics are taken in at least float32 from values centred twice: for mean/std up to 1e6 the result is within
    2e-7 (float32). The backward pass keeps `w` and two numbers an output. A constant row gives zeros and finite
    gradients, also at epsilon 0.

    `brainstate.nn.weight_standardization` is the scaled form, with the variance kept from below where this one adds
    epsilon: at epsilon 0 both are the same.

    References
    ----------
    Qiao, Wang, Liu, Shen & Yuille, "Micro-batch training with batch-channel normalization and weight
    standardization", 2019, arXiv:1903.10520. Brock, De & Smith, "Characterizing signal propagation to close the
    performance gap in unnormalized ResNets", 2021, arXiv:2101.08692 (scaled).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> w = jnp.arange(6.0).reshape(3, 2)
    >>> F.weight_standardization(w).round(3).tolist()
    [[-1.225, -1.225], [0.0, 0.0], [1.225, 1.225]]
    """
    op, w = 'weight_standardization', cast(Array, w)
    along, over, n = _fan_in(op, 'w', w, axis)
    scale = _parameter(op, 'gain', gain, w.shape, along)
    if _checks.flag(op, 'scaled', scaled):
        scale = (jnp.ones((1,) * w.ndim, jnp.float32) if scale is None else wide(scale)) / math.sqrt(n)
    return _norm(_Spec(Pool(over), _epsilon(op, epsilon)), w, scale, None, None)[0]


def _direction(x: Array, otherwise: Array, epsilon: float) -> Array:
    """`x` with length one, or `otherwise` where it has none or is not finite."""
    length = jnp.linalg.norm(x)
    sound = (length > epsilon) & jnp.isfinite(length)
    return jnp.where(sound, x / jnp.where(sound, length, 1), otherwise)


def _matrix(w: Array, axis: Any) -> tuple[Array, Array]:
    """The weight as a matrix of outputs and fan-in, by its largest entry, so that no square over- or underflows."""
    if w.ndim < 2:
        raise ValueError(
            f'spectral_norm: w must have at least two axes, got the shape {w.shape}; '
            'a vector has no singular values but its length: use weight_norm, or leave it as it is.'
        )
    row = _checks.one_axis('spectral_norm', 'axis', axis, w.ndim)
    values = wide(w)
    largest = jax.lax.stop_gradient(jnp.abs(values).max(initial=0))
    size = jnp.where(largest > 0, largest, 1)
    return jnp.moveaxis(values, row, 0).reshape(w.shape[row], -1) / size, size


_product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@kernel(unit_out=0)
def leading_vector(w: ArrayLike, *, axis: int = -1, n_steps: int = 100) -> Array:
    """The first left singular vector of a weight, for `spectral_norm` to start from.

    Power iteration takes a thousand steps where two singular values are within a percent of each other. The best
    vector of all that it has passed (Lanczos) takes the root of that.
    """
    matrix, _ = _matrix(cast(Array, w), axis)
    n = len(matrix)
    # any direction will do that is no special one, and a fixed one gives the same model each time
    first = jax.random.normal(jax.random.key(0), (n,), matrix.dtype)
    none = jnp.zeros_like(first)
    passed = jnp.zeros((min(n, n_steps + 1), n), matrix.dtype)
    passed = passed.at[0].set(_direction(first, none, 0.0))

    def step(k: Any, passed: Array) -> Array:
        new = _product(matrix, _product(passed[k - 1], matrix))
        for _ in range(3):  # what one subtraction leaves of the others is large where little is new
            new = _direction(new, none, 0.0)
            new = new - _product(_product(passed, new), passed)
        return passed.at[k].set(_direction(new, none, 0.0))

    passed = jax.lax.fori_loop(1, len(passed), step, passed)
    mixed = _product(passed, matrix)
    best = _product(jnp.linalg.eigh(_product(mixed, mixed.T))[1][:, -1], passed)
    return _direction(best, passed[0], 0.0)


@kernel(unit_out=(0, 0, 1), family=_REPARAMETRIZATION)
def spectral_norm(
    w: ArrayLike, u: ArrayLike, *, n_steps: int = 1, axis: int = -1, epsilon: float = 1e-12
) -> tuple[Array, Array, Array]:
    r"""Spectral normalization: the weight by its largest singular value, estimated by power iteration.

    .. math:: v \leftarrow \frac{W^\top u}{\lVert W^\top u \rVert}, \quad u \leftarrow \frac{W v}{\lVert W v \rVert},
        \qquad \sigma = u^\top W v, \qquad \hat W = \frac{W}{\sigma}

    Parameters
    ----------
    u : array, one value for each element of `axis`
        Where the iteration starts: what the call before returned, or at first any random vector. Dimensionless.
    n_steps : int
        Steps of the iteration; 0 takes `u` as it is, as while evaluating.
    axis : int
        The output axis: the matrix W has it as rows, and all others as columns.
    epsilon : float
        The length up to which a vector counts as zero, in units of the largest entry of `w`.

    Returns
    -------
    w_normalized : array
        Shape and dtype of `w`, dimensionless.
    u : array
        The left singular vector as far as it is known, at least float32; the one given where the weight is zero or
        not finite.
    sigma : array
        The largest singular value as far as it is known, at least float32, in the unit of `w`.

    Notes
    -----
    Arithmetic is in at least float32. `u` and `v` are constants of the derivative, which is exact once they are
    singular vectors: the derivative of a largest singular value is :math:`u v^\top`; a second derivative leaves out how
    they turn. A weight of zeros gives zeros
    and finite gradients; weights of size 1e17 or 1e-17 are those of size 1. The backward pass keeps `w`, two vectors
    and a few numbers. Two calls, the second with ``n_steps=0`` and the `u` of the first, give the same result.

    References
    ----------
    Miyato, Kataoka, Koyama & Yoshida, "Spectral normalization for generative adversarial networks", 2018,
    arXiv:1802.05957.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnorm import functional as F
    >>> w, u, sigma = F.spectral_norm(jnp.diag(jnp.array([3.0, 1.0])), jnp.ones(2), n_steps=10)
    >>> bool(abs(sigma - 3) < 1e-6), bool(abs(w[0, 0] - 1) < 1e-6)
    (True, True)
    """
    op, w = 'spectral_norm', cast(Array, w)
    matrix, size = _matrix(w, axis)
    rows = len(matrix)
    start = _checks.floating(op, 'u', u)
    if start.shape != (rows,):
        raise ValueError(
            f'{op}: u must have the shape {(rows,)}, one value for each element of axis {axis}, '
            f'got {start.shape}; start from a random vector of that shape.'
        )
    steps = _checks.integer(op, 'n_steps', n_steps, at_least=0)
    epsilon = _epsilon(op, epsilon)
    fixed = jax.lax.stop_gradient(matrix)

    def right(left: Array) -> Array:
        return _direction(_product(left, fixed), jnp.zeros_like(fixed[0]), epsilon)

    left = jax.lax.stop_gradient(start).astype(matrix.dtype)
    left = _direction(left, jnp.full(rows, rows**-0.5, left.dtype), 0.0)
    left = jax.lax.fori_loop(0, steps, lambda _, u: _direction(_product(fixed, right(u)), u, epsilon), left)
    sigma = _product(left, _product(matrix, right(left)))
    none = sigma <= 0  # which nan is not
    normalized = wide(w) * (jnp.where(none, 0, 1 / jnp.where(none, 1, sigma)) / size)
    return normalized.astype(w.dtype), left.astype(compute_dtype(start.dtype)), sigma * size
