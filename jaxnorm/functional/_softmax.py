"""Activations over an axis."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from .. import _checks
from .._typing import Array, ArrayLike, Axes
from . import _elementary as elementary
from ._kernel import compute_dtype, kernel
from ._linear import linear


@dataclass(frozen=True)
class _Row:
    """What of `x` is a row: the axes that are normalized over."""

    axes: tuple[int, ...]

    def sum(self, x: Array) -> Array:
        return jnp.sum(x, self.axes, keepdims=True)

    def mass(self, e: Array) -> Array:
        """The sum, by whatever keeps `e` from being computed twice."""
        return lax.platform_dependent(e, cpu=self._contract, default=self.sum)

    def _contract(self, e: Array) -> Array:
        # XLA:CPU fuses cheap arithmetic into every consumer, a contraction excepted
        ones = jnp.ones([e.shape[a] for a in self.axes], e.dtype)
        total = jnp.tensordot(e, ones, (self.axes, tuple(range(ones.ndim))), precision=lax.Precision.HIGHEST)
        return jnp.expand_dims(total, self.axes)

    def below_top(self, x: Array, where: Array | None) -> tuple[Array, Array, Array]:
        """(d, rest, top): `x` minus its greatest value in two parts, and where that value is.

        Half an ulp of a difference near -88 is 30 ulp of its exponential, hence two parts.
        """
        x = x if where is None else jnp.where(where, x, -jnp.inf)
        m = jnp.max(x, self.axes, keepdims=True, initial=-jnp.inf)
        top = x == m  # an infinite one too: inf - inf has no value
        d = x - m
        back = d - x
        rest = (x - (d - back)) - (m + back)
        return jnp.where(top, 0, d), jnp.where(jnp.isfinite(d), rest, 0), top

    def exponentials(self, x: Array, where: Array | None) -> Array:
        d, rest, _ = self.below_top(x, where)
        e = elementary.exp(d, rest)
        return e if where is None else jnp.where(where, e, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _softmax(row: _Row, x: Array, where: Array | None) -> Array:
    e = row.exponentials(x.astype(compute_dtype(x.dtype)), where)
    y = e / row.mass(e)
    return (y if where is None else jnp.where(where, y, 0)).astype(x.dtype)


@dataclass(frozen=True)
class _SoftmaxSlope:
    """t -> y (t - sum(y t)), a symmetric map."""

    row: _Row

    def __call__(self, residuals: Sequence[Array], operands: Sequence[Array | None]) -> list[Array]:
        kept, *masks = residuals
        (t,) = operands
        assert t is not None
        where = masks[0] if masks else None
        y = kept if _keeps_result(kept) else _softmax(self.row, kept.astype(jnp.float32), where)
        wide = t.astype(y.dtype)
        wide = wide if where is None else jnp.where(where, wide, 0)
        return [(y * (wide - self.row.sum(y * wide))).astype(t.dtype)]


def _keeps_result(x: Array) -> bool:
    """Whether the result is what the slope is made of: in low precision it has too few digits, the input all."""
    return compute_dtype(x.dtype) == x.dtype


# One array is saved: the result, or in low precision the input.
@_softmax.defjvp
def _softmax_jvp(row: _Row, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    x, where = primals
    y = _softmax(row, x, where)
    slope = _SoftmaxSlope(row)
    residuals = [y if _keeps_result(x) else x, *([] if where is None else [where])]
    return y, linear(slope, slope, residuals, [tangents[0]])[0]


@kernel
def softmax(x: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None) -> Array:
    r"""Exponentials, normalized to sum to one.

    .. math:: \mathrm{softmax}(x)_i = \frac{e^{x_i}}{\sum_j e^{x_j}}

    Parameters
    ----------
    x : array of rank at least 1
        Logits, dimensionless.
    axis : int or tuple of int, optional
        What to normalize over.
    where : bool array, optional
        Broadcasts to `x`; what is False there takes no part.

    Returns
    -------
    array
        Same shape and dtype as `x`; in [0, 1], 0 where masked out.

    Raises
    ------
    TypeError
        If `x` is not an array of real numbers, or has a unit; if `where` does not hold booleans.
    ValueError
        If `x` has no such axis, or `where` does not broadcast to its shape.

    Notes
    -----
    For rows of up to some hundred entries within 4 ulp in float32 and 8 ulp in float64, and 0.6 ulp in bfloat16
    and float16; the rounding errors of the sum add about :math:`\sqrt n / 8` ulp to that in rows of n.
    An infinite logit has its limit: those at inf share the whole equally, as do all in a row of -inf. A row that
    holds nan is nan; one that is masked out entirely is zero. What is masked out, nan included, touches neither
    the result nor a gradient.
    The backward pass keeps one array: the result, or in low precision the input.

    References
    ----------
    Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> softmax(jnp.array([1.0, jnp.inf, jnp.inf])).tolist()
    [0.0, 0.5, 0.5]
    >>> softmax(jnp.array([3.0, 3.0, jnp.nan]), where=jnp.array([True, True, False])).tolist()
    [0.5, 0.5, 0.0]
    """
    row = _Row(_checks.axes('softmax', 'axis', axis, x.ndim))
    return _softmax(row, x, _checks.mask('softmax', 'where', where, x.shape))


def _against_top(row: _Row, x: Array, where: Array | None) -> tuple[Array, Array, Array, Array]:
    """(d, rest, e, s): `x` minus its greatest value in two parts, their exponentials, and the sum of these minus 1.

    One of the greatest is that 1: where it dominates, its logarithm of a share is as small as s.
    """
    shift = elementary.format_of(x).spare  # a sum of exponentials may be normal where they are not
    d, rest, top = row.below_top(x, where)
    others = jnp.where(top, 0, elementary.exp(d, rest, shift))
    count = row.sum((top if where is None else top & where).astype(jnp.int32))
    s = row.mass(others) * 2.0**-shift + (count - 1).astype(x.dtype)
    return d, rest, jnp.where(top, 1, others * 2.0**-shift), s


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_softmax(row: _Row, x: Array, where: Array | None) -> Array:
    d, rest, _, s = _against_top(row, x.astype(compute_dtype(x.dtype)), where)
    log_sum = jnp.where(s < 1, elementary.log1p(jnp.minimum(s, 1)), jnp.log(1 + s))
    y = (d - log_sum) + rest
    return (y if where is None else jnp.where(where, y, -jnp.inf)).astype(x.dtype)


# What `_softmax` returns, out of the sums that `_log_softmax` has made.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _shares(row: _Row, x: Array, where: Array | None) -> Array:
    _, _, e, s = _against_top(row, x, where)
    y = e / (1 + s)
    return y if where is None else jnp.where(where, y, 0)


@_shares.defjvp
def _shares_jvp(row: _Row, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    y = _shares(row, *primals)
    t = tangents[0] if primals[1] is None else jnp.where(primals[1], tangents[0], 0)
    return y, y * (t - row.sum(y * t))


@dataclass(frozen=True)
class _LogSoftmaxSlope:
    """t -> t - sum(p t) with p = softmax(x), or its transpose t -> t - p sum(t)."""

    row: _Row
    transposed: bool

    def __call__(self, residuals: Sequence[Array], operands: Sequence[Array | None]) -> list[Array]:
        x, *masks = residuals
        (t,) = operands
        assert t is not None
        where = masks[0] if masks else None
        p = _shares(self.row, x.astype(compute_dtype(x.dtype)), where)
        wide = t.astype(p.dtype)
        wide = wide if where is None else jnp.where(where, wide, 0)
        out = wide - (p * self.row.sum(wide) if self.transposed else self.row.sum(p * wide))
        return [(out if where is None else jnp.where(where, out, 0)).astype(t.dtype)]


# The input is saved, not the result: half an ulp of a large logarithm is many ulps of the probability.
@_log_softmax.defjvp
def _log_softmax_jvp(row: _Row, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    x, where = primals
    residuals = [x, *([] if where is None else [where])]
    forward, transpose = _LogSoftmaxSlope(row, False), _LogSoftmaxSlope(row, True)
    return _log_softmax(row, x, where), linear(forward, transpose, residuals, [tangents[0]])[0]


@kernel
def log_softmax(x: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None) -> Array:
    r"""Logarithm of `softmax`.

    .. math:: \mathrm{log\_softmax}(x)_i = x_i - \log \sum_j e^{x_j}

    Parameters
    ----------
    x : array of rank at least 1
        Logits, dimensionless.
    axis : int or tuple of int, optional
        What to normalize over.
    where : bool array, optional
        Broadcasts to `x`; what is False there takes no part.

    Returns
    -------
    array
        Same shape and dtype as `x`; at most 0, and -inf where masked out.

    Raises
    ------
    TypeError
        If `x` is not an array of real numbers, or has a unit; if `where` does not hold booleans.
    ValueError
        If `x` has no such axis, or `where` does not broadcast to its shape.

    Notes
    -----
    For rows of up to some hundred entries within 4 ulp in float32 and 8 ulp in float64, and 0.6 ulp in bfloat16
    and float16; that holds near 0 too, where one logit dominates and the result is the share of the others.
    An infinite logit has its limit, as in `softmax`. A row that holds nan is nan. What is masked out, nan
    included, touches neither the rest of the result nor a gradient.
    The backward pass keeps the input.

    References
    ----------
    Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions", IMA Journal of
    Numerical Analysis 41, 2021.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> log_softmax(jnp.array([0.0, -100.0])).tolist()[1]
    -100.0
    >>> bool(log_softmax(jnp.array([0.0, -80.0]))[0] < 0)
    True
    """
    row = _Row(_checks.axes('log_softmax', 'axis', axis, x.ndim))
    return _log_softmax(row, x, _checks.mask('log_softmax', 'where', where, x.shape))
