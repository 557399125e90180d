"""Activations over an axis."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from .. import _checks
from .._typing import Array, ArrayLike, Axes
from . import _elementary as elementary
from ._kernel import compute_dtype, computed_once, kernel
from ._linear import linear


@dataclass(frozen=True)
class _Row:
    """What of `x` is a row, the axes that are normalized over, and what it is divided by, if that is a number."""

    axes: tuple[int, ...]
    temperature: float = 1.0

    def sum(self, x: Array) -> Array:
        return jnp.sum(x, self.axes, keepdims=True)

    def greatest(self, x: Array) -> Array:
        return jnp.max(x, self.axes, keepdims=True, initial=None if x.size else -jnp.inf)  # not all formats have one


def _row(op: str, x: Array, axis: Axes, temperature: ArrayLike = 1.0) -> tuple[_Row, Array | None]:
    """The row, and the temperature if it is an array."""
    row = _Row(_checks.axes(op, 'axis', axis, x.ndim))
    if not isinstance(temperature, jax.Array | np.ndarray):
        return replace(row, temperature=_checks.number(op, 'temperature', temperature, above=0)), None
    array = _checks.floating(op, 'temperature', temperature)
    wanted = tuple(1 if a in row.axes else s for a, s in enumerate(x.shape))
    if not _checks.broadcasts(array.shape, wanted):
        raise ValueError(
            f'{op}: temperature must broadcast to {wanted}, one number a row, got {array.shape}; '
            'give it the rank of the input, with 1 on the axis.'
        )
    return row, array.reshape((1,) * (x.ndim - array.ndim) + array.shape)


def _finite(row: _Row, temperature: Array | None, dtype: Any) -> Array:
    """The temperature, or the greatest with a reciprocal that is a normal number, for XLA multiplies with that."""
    most = 1 / float(jnp.finfo(dtype).tiny)
    if temperature is None:
        return jnp.asarray(min(row.temperature, most), dtype)
    return jnp.minimum(temperature.astype(dtype), most)


def _divisor(row: _Row, temperature: Array | None, dtype: Any) -> Array:
    """The same in place of 0, too: no 0 / 0 of the greatest in a row."""
    t, least = _finite(row, temperature, dtype), float(jnp.finfo(dtype).tiny)
    return jnp.where(jnp.abs(t) < least, least, t)


def _visible(x: Array, where: Array | None) -> Array:
    return x if where is None else jnp.where(where, _wide(x), -jnp.inf)


def _exponentials(row: _Row, x: Array, m: Array, temperature: Array | None) -> tuple[Array, Array]:
    """(e, unit) with e = exp((x - m) / temperature) * unit, m being the greatest of each row and unit a number a row.

    The unit is large: a sum of exponentials may be a normal number where they are not.
    """
    if temperature is None and row.temperature == 1:
        return _exponentials_of_differences(x, m)
    return _exponentials_of_quotients(x, m, _divisor(row, temperature, x.dtype))


def _exponentials_of_differences(x: Array, m: Array) -> tuple[Array, Array]:
    """Half an ulp of a difference near -88 is 30 ulp of its exponential: nothing may be rounded before the reduction.

    Where m is near 0, x is reduced by itself, and m by itself: only the exponents of two are subtracted. Where m is
    far from 0, x - m is exact for all x whose exponential counts.
    """
    form, ln2 = elementary.format_of(x), math.log(2)
    span, largest = form.bias + form.spare, float(jnp.finfo(x.dtype).max)
    origin = jnp.where(jnp.abs(m) < 2 * span * ln2, 0, jnp.clip(m, -largest, largest))
    # an infinite m: those at inf are kept apart from all finite ones; a row of -inf is one of equals
    high = jnp.where(m == jnp.inf, span * ln2, jnp.where(m == -jnp.inf, 0, m - origin))
    top = lax.round(high * (1 / ln2), lax.RoundingMethod.TO_NEAREST_EVEN)
    low = jnp.where(m == -jnp.inf, 0, (top - span) * ln2)
    exponent = (span - top).astype(form.integer)
    origin, low, high, exponent = computed_once(origin, low, high, exponent)

    def exponential(x: Array) -> Array:
        d = x - origin
        d = jnp.where(d > low, d, low)
        d = jnp.where(d < high, d, high)
        k = lax.round(d * (1 / ln2), lax.RoundingMethod.TO_NEAREST_EVEN)
        r = (d - k * form.ln2[0]) - k * form.ln2[1]
        # added to 1.5 * 2**digits, an integer stands in the last bits
        biased = lax.bitcast_convert_type(k + 1.5 * 2.0**form.digits, form.integer) + exponent
        scale = lax.bitcast_convert_type(lax.shift_left(biased, np.asarray(form.digits, form.integer)), x.dtype)
        return scale * (1 + elementary.expm1_near_zero(r))

    return exponential(x), exponential(m)


def _exponentials_of_quotients(x: Array, m: Array, temperature: Array) -> tuple[Array, Array]:
    """For the same reason the difference and the quotient are carried in two parts."""
    top, d = x == m, x - m
    back = d - x
    rest = jnp.where(jnp.isfinite(d), (x - (d - back)) - (m + back), 0)
    shift = elementary.format_of(x).spare
    z = jnp.maximum(d / temperature, elementary.lowest(x, shift))
    whole, part = elementary.product(z, temperature)
    rest = (((d - whole) - part) + rest) / temperature
    e = jnp.where(top, 2.0**shift, elementary.exp(z, rest, shift))
    return e, jnp.full_like(m, 2.0**shift)


def _shares(row: _Row, x: Array, where: Array | None, temperature: Array | None) -> Array:
    """The softmax, in the dtype of the arithmetic."""
    seen = _visible(x, where)
    e, _ = _exponentials(row, _wide(seen), _wide(row.greatest(seen)), temperature)
    y = jnp.where(e > 0, e / row.sum(e), e)  # by choice, since XLA:CPU computes a product with e alone more than once
    return y if where is None else jnp.where(where, y, 0)


def _wide(x: Array) -> Array:
    return x.astype(compute_dtype(x.dtype))


class _Sums(NamedTuple):
    """Two numbers a row, of which its logarithm and all of its shares are made."""

    greatest: Array
    others: Array  # the sum of exp((x - greatest) / temperature), less 1 for the greatest


def _sums(row: _Row, x: Array, where: Array | None, temperature: Array | None) -> _Sums:
    """The greatest is one unit and left out, not subtracted: the logarithm of 1 + others may be as small as others.

    It is marked by its sign, and the sums are made of what XLA:CPU adds up without storing it: no selection.
    """
    x = _wide(_visible(x, where))
    m = row.greatest(x)
    e, unit = _exponentials(row, x, m, temperature)
    e = jnp.where(x == m, -unit, e)
    (e,) = computed_once(e if where is None else jnp.where(where, e, 0))
    others = row.sum(jnp.abs(e) + e) / 2
    equals = lax.round((others - row.sum(e)) / unit)
    return _Sums(m, others / unit + (equals - 1))


def _log_of_sum(s: Array) -> Array:
    """log(1 + s), one number a row."""
    return computed_once(jnp.where(s < 1, elementary.log1p(jnp.minimum(s, 1)), jnp.log(1 + s)))[0]


def _shares_of_sums(sums: _Sums, row: _Row, x: Array, where: Array | None, temperature: Array | None) -> Array:
    """What `_shares` returns, of what a logarithm was made of."""
    e, unit = _exponentials(row, _wide(_visible(x, where)), sums.greatest, temperature)
    return jnp.where(e > 0, e / (unit * (1 + sums.others)), e)  # as in `_shares`


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _softmax(row: _Row, x: Array, where: Array | None, temperature: Array | None) -> tuple[Array, None]:
    return _shares(row, x, where, temperature).astype(x.dtype), None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_softmax(row: _Row, x: Array, where: Array | None, temperature: Array | None) -> tuple[Array, None]:
    m, s = _sums(row, x, where, temperature)
    wide = _wide(x)
    z = (wide - m) / _finite(row, temperature, wide.dtype)
    # both are negative, z and what is subtracted: no digit is lost; and inf - inf and 0 / 0 are none
    y = jnp.where(wide == m, 0, z) - _log_of_sum(s)
    y = jnp.where(wide == wide, y, wide) if where is None else jnp.where(where, y, -jnp.inf)  # as in `_shares`
    return y.astype(x.dtype), None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_sum_exp(row: _Row, x: Array, where: Array | None, temperature: None) -> tuple[Array, _Sums]:
    sums = _sums(row, x, where, temperature)
    return (sums.greatest + _log_of_sum(sums.others)).astype(x.dtype), sums


@dataclass(frozen=True)
class _Slope:
    """The derivative of one of the three, or its transpose, in the input and in the temperature.

    With z = x / temperature and p = softmax(z) these are, of dz: p (dz - sum(p dz)); dz - sum(p dz); sum(p dz).
    """

    op: str
    row: _Row
    kept: str  # 'result', that of softmax, or 'input'
    masked: bool
    varies: bool  # whether the temperature is an array
    transposed: bool = False

    def __call__(self, residuals: Sequence[Array], operands: Sequence[Array | None]) -> list[Array | None]:
        if self.transposed:  # the barrier keeps XLA from keeping the exponentials of the forward pass
            residuals, operands = lax.optimization_barrier((list(residuals), list(operands)))
        kept, *rest = residuals
        where = rest.pop(0) if self.masked else None
        temperature = rest.pop(0) if self.varies else None
        sums = _Sums(*rest) if rest else None
        p = kept if self.kept == 'result' else _probabilities(self.row, kept, where, temperature, sums)
        number = temperature is None and self.row.temperature == 1
        divisor = 1 if number else _divisor(self.row, temperature, p.dtype)
        if not self.transposed:
            return [self.forward(kept, p, where, divisor, *operands)]
        (c,) = operands
        assert c is not None
        dz = self.back(p, c.astype(p.dtype), where)
        dx = (dz if where is None else jnp.where(where, dz, 0)) / divisor
        if temperature is None or self.kept == 'result':
            return [dx.astype(kept.dtype), None]
        dt = -jnp.where(dx == 0, 0, dx * self.distance(kept, where, divisor))
        shared = tuple(a for a, s in enumerate(temperature.shape) if s == 1)
        return [dx.astype(kept.dtype), jnp.sum(dt, shared, keepdims=True).astype(temperature.dtype)]

    def distance(self, x: Array, where: Array | None, divisor: Any) -> Array:
        """z, but for what is the same in a row; finite."""
        seen = _wide(_visible(x, where))
        d = seen - _wide(self.row.greatest(seen))
        return jnp.where(jnp.isfinite(d), d, 0) / divisor

    def forward(
        self, kept: Array, p: Array, where: Array | None, divisor: Any, dx: Array | None, dt: Array | None
    ) -> Array:
        out_dtype = next(t.dtype for t in (dx, dt) if t is not None)
        dz = jnp.zeros_like(p) if dx is None else dx.astype(p.dtype) / divisor
        if dt is not None:
            dz = dz - dt.astype(p.dtype) / divisor * self.distance(kept, where, divisor)
        dz = dz if where is None else jnp.where(where, dz, 0)
        total = self.row.sum(p * dz)
        if self.op == 'logsumexp':
            return total.astype(out_dtype)
        out = p * (dz - total) if self.op == 'softmax' else dz - total
        return (out if where is None else jnp.where(where, out, 0)).astype(out_dtype)

    def back(self, p: Array, c: Array, where: Array | None) -> Array:
        if self.op == 'logsumexp':
            return p * c
        c = c if where is None else jnp.where(where, c, 0)
        return p * (c - self.row.sum(p * c)) if self.op == 'softmax' else c - p * self.row.sum(c)


# Differentiable, as the shares are not, for second derivatives. The sums are numbers here: the rule holds for all.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _probabilities(row: _Row, x: Array, where: Array | None, temperature: Array | None, sums: _Sums | None) -> Array:
    return (_shares if sums is None else functools.partial(_shares_of_sums, sums))(row, x, where, temperature)


def _probabilities_jvp(row: _Row, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    *arrays, sums = primals

    def function(row: _Row, *arrays: Any) -> tuple[Array, None]:
        return _probabilities(row, *arrays, sums), None

    (p, _), (dp, _) = _jvp('softmax', function, row, tuple(arrays), tangents[:3])
    return p, dp


def _jvp(op: str, function: Any, row: _Row, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    x, where, temperature = primals
    dx, _, dt = (None if t is None or isinstance(t, SymbolicZero) else t for t in tangents)
    y, sums = function(row, x, where, temperature)
    still = jax.tree.map(jnp.zeros_like, sums)
    if dx is None and dt is None:
        return (y, sums), (jnp.zeros_like(y), still)
    # One array is saved. The result of softmax has its digits, but in low precision too few, and nothing of the
    # temperature's derivative; and half an ulp of a large logarithm is many ulps of the probability.
    kept = 'result' if op == 'softmax' and dt is None and compute_dtype(x.dtype) == x.dtype else 'input'
    slope = _Slope(op, row, kept, where is not None, temperature is not None)
    residuals = [y if kept == 'result' else x, *(a for a in (where, temperature) if a is not None), *(sums or ())]
    out = linear(slope, replace(slope, transposed=True), residuals, [dx, dt])[0]
    return (y, sums), (out.astype(y.dtype), still)


_softmax.defjvp(functools.partial(_jvp, 'softmax', _softmax), symbolic_zeros=True)
_probabilities.defjvp(_probabilities_jvp, symbolic_zeros=True)
_log_softmax.defjvp(functools.partial(_jvp, 'log_softmax', _log_softmax), symbolic_zeros=True)
_log_sum_exp.defjvp(functools.partial(_jvp, 'logsumexp', _log_sum_exp), symbolic_zeros=True)


#: What the docstrings below need not say.
_ROW = r"""Of a function over an axis.

Parameters
----------
x : array of rank at least 1
    Logits, dimensionless.
axis : int or tuple of int, optional
    What to normalize over.
where : bool array, optional
    Broadcasts to `x`; what is False there takes no part.
temperature : float or array, optional
    What the logits are divided by, above 0: one number, or an array of one number a row (1 on the axis), which
    can be differentiated with respect to.

Returns
-------
array
    Same shape and dtype as `x`; in [0, 1], 0 where masked out.

Raises
------
TypeError
    If `x` is not an array of real numbers, or has a unit; if `where` does not hold booleans.
ValueError
    If `x` has no such axis, `where` does not broadcast to its shape, or `temperature` is not above 0 or has not
    one number a row.
"""


@kernel(family=_ROW)
def softmax(x: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None, temperature: ArrayLike = 1.0) -> Array:
    r"""Exponentials, normalized to sum to one.

    .. math:: \mathrm{softmax}(x)_i = \frac{e^{x_i / t}}{\sum_j e^{x_j / t}}

    Notes
    -----
    For rows of up to some hundred entries within 4 ulp in float32 and 8 ulp in float64, and 0.6 ulp in bfloat16
    and float16; the rounding errors of the sum add about :math:`\sqrt n / 8` ulp to that in rows of n.
    An infinite logit has its limit: those at inf share the whole equally, as do all in a row of -inf. A row that
    holds nan is nan; one that is masked out entirely is zero. What is masked out, nan included, touches neither
    the result nor a gradient.
    The backward pass keeps one array: the result, or in low precision (or for a learned temperature) the input. A
    quotient by a temperature is carried in two parts, and taken after the greatest logit is subtracted.

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
    row, divisor = _row('softmax', x, axis, temperature)
    return _softmax(row, x, _checks.mask('softmax', 'where', where, x.shape), divisor)[0]


@kernel(family=_ROW)
def log_softmax(x: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None, temperature: ArrayLike = 1.0) -> Array:
    r"""Logarithm of `softmax`.

    .. math:: \mathrm{log\_softmax}(x)_i = \frac{x_i}{t} - \log \sum_j e^{x_j / t}

    Returns
    -------
    array
        Same shape and dtype as `x`; at most 0, and -inf where masked out.

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
    row, divisor = _row('log_softmax', x, axis, temperature)
    return _log_softmax(row, x, _checks.mask('log_softmax', 'where', where, x.shape), divisor)[0]


@kernel(family=_ROW)
def softmin(x: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None, temperature: ArrayLike = 1.0) -> Array:
    r"""Softmax of the negative input: the smallest has the largest share.

    .. math:: \mathrm{softmin}(x)_i = \frac{e^{-x_i / t}}{\sum_j e^{-x_j / t}}

    Parameters
    ----------
    x : array of rank at least 1
        Energies, or distances, dimensionless.

    Notes
    -----
    As `softmax` in all else: accuracy, limits, masks, and what the backward pass keeps.

    References
    ----------
    Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> softmin(jnp.array([1.0, -jnp.inf, 2.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    row, divisor = _row('softmin', x, axis, temperature)
    return _softmax(row, -x, _checks.mask('softmin', 'where', where, x.shape), divisor)[0]


@kernel(family=_ROW)
def logsumexp(x: ArrayLike, axis: Axes | None = None, where: ArrayLike | None = None, keepdims: bool = False) -> Array:
    r"""Logarithm of the sum of exponentials, a smooth maximum.

    .. math:: \mathrm{logsumexp}(x) = \log \sum_j e^{x_j}

    Parameters
    ----------
    x : array of any shape
        Dimensionless.
    axis : int or tuple of int, optional
        What to sum over; by default all axes, as in `jax.nn`.
    keepdims : bool
        Whether the axis stays, with size 1.

    Returns
    -------
    array
        Dtype of `x`, without the axis; -inf where all is masked out.

    Raises
    ------
    TypeError
        If `x` is not an array of real numbers, or has a unit; if `where` does not hold booleans, or `keepdims` is none.
    ValueError
        If `x` has no such axis, or `where` does not broadcast to its shape.

    Notes
    -----
    It is the greatest entry plus the logarithm of the sum of all that are divided by its exponential. That logarithm is
    within 3 ulp in float32, also where one entry dominates and it is tiny, and the sum of the two rounds once more; an
    ulp is that of the larger of the two, of which counts only where they cancel.
    An infinite entry has its limit; a row that holds nan is nan. The slope is `softmax`, and the backward pass keeps
    the input and two numbers a row.

    References
    ----------
    Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions", IMA Journal of
    Numerical Analysis 41, 2021.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> float(logsumexp(jnp.array([1000.0, 0.0])))
    1000.0
    >>> logsumexp(jnp.full((2, 3), -jnp.inf), -1, keepdims=True).tolist()
    [[-inf], [-inf]]
    """
    row = _Row(tuple(range(x.ndim)) if axis is None else _checks.axes('logsumexp', 'axis', axis, x.ndim))
    kept, _ = _log_sum_exp(row, x, _checks.mask('logsumexp', 'where', where, x.shape), None)
    return kept if _checks.flag('logsumexp', 'keepdims', keepdims) else jnp.squeeze(kept, row.axes)


def _project(row: _Row, x: Array, where: Array | None) -> Array:
    """The point of the simplex nearest to each row, in the dtype of the arithmetic.

    It is max(d - threshold, 0) for the threshold that makes the sum 1. Beginning with all that may be above it, the
    threshold for these is found and what is not above it is dropped, until nothing is: it is then exact.
    """
    seen = _wide(_visible(x, where))
    m = row.greatest(seen)
    d = jnp.where(seen == m, 0, seen - m)
    d = d if where is None else jnp.where(where, d, -jnp.inf)

    def threshold(support: Array) -> Array:
        return (row.sum(jnp.where(support, d, 0)) - 1) / row.sum(support.astype(d.dtype))

    def shrink(state: tuple[Array, Array]) -> tuple[Array, Array]:
        support, _ = state
        smaller = support & (d > threshold(support))
        return smaller, jnp.any(smaller != support)

    support, _ = lax.while_loop(lambda state: state[1], shrink, shrink((d > -1, jnp.asarray(True))))
    return jnp.maximum(d - threshold(support), 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sparsemax(row: _Row, x: Array, where: Array | None) -> Array:
    y = _project(row, x, where)
    return (y if where is None else jnp.where(where, y, 0)).astype(x.dtype)


@dataclass(frozen=True)
class _SparsemaxSlope:
    """t -> t minus its mean, over what is not zero and there only: a symmetric map."""

    row: _Row

    def __call__(self, residuals: Sequence[Array], operands: Sequence[Array | None]) -> list[Array]:
        (support,), (t,) = residuals, operands
        assert t is not None
        wide = jnp.where(support, _wide(t), 0)
        count = jnp.maximum(self.row.sum(support.astype(wide.dtype)), 1)
        return [jnp.where(support, wide - self.row.sum(wide) / count, 0).astype(t.dtype)]


# Piecewise linear: a mask is all that is saved.
@_sparsemax.defjvp
def _sparsemax_jvp(row: _Row, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    y = _sparsemax(row, *primals)
    slope = _SparsemaxSlope(row)
    return y, linear(slope, slope, [y > 0], [tangents[0]])[0]


@kernel(family=_ROW)
def sparsemax(x: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None) -> Array:
    r"""Nearest point of the probability simplex: like `softmax`, with shares that are exactly zero.

    .. math:: \mathrm{sparsemax}(x) = \arg\min_{p \ge 0,\, \sum p = 1} \lVert p - x \rVert^2 = \max(x - \tau, 0)

    Raises
    ------
    ValueError
        If `x` has no such axis, or `where` does not broadcast to its shape.

    Notes
    -----
    The threshold :math:`\tau` is found by dropping what lies below it until nothing does, in few rounds and without
    sorting, and so exactly: shares are right to 2e-7 (in float32), not relative to small ones.
    An infinite logit has its limit: those at inf share the whole equally, as do all in a row of -inf. A row that
    holds nan is nan; one that is masked out entirely is zero. The slope at a kink is that of the flat side, 0. A mask
    of one byte an element is all that is saved for the backward pass.

    References
    ----------
    Martins and Astudillo, "From softmax to sparsemax", arXiv:1602.02068. Michelot, "A finite algorithm for finding the
    projection of a point onto the canonical simplex", Journal of Optimization Theory and Applications 50, 1986.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> sparsemax(jnp.array([1.0, 0.5, -1.0])).tolist()
    [0.75, 0.25, 0.0]
    """
    row = _Row(_checks.axes('sparsemax', 'axis', axis, x.ndim))
    return _sparsemax(row, x, _checks.mask('sparsemax', 'where', where, x.shape))


@kernel(family=_ROW)
def gumbel_softmax(x: ArrayLike, key: Any, temperature: ArrayLike = 1.0, hard: bool = False, axis: int = -1) -> Array:
    r"""Sample of a categorical distribution, made differentiable.

    .. math:: \mathrm{gumbel\_softmax}(x) = \mathrm{softmax}\left(\frac{x + g}{t}\right), \quad g = -\log(-\log u)

    with :math:`u` uniform in (0, 1), drawn for each element.

    Parameters
    ----------
    key : jax.random key, or None
        What the noise is drawn with; None: no noise.
    temperature : float or array, optional
        Above 0: the smaller, the nearer is a sample to one-hot. An array holds one number a row (1 on the axis), and
        can be differentiated with respect to.
    hard : bool
        Whether the result is one-hot, with the derivative of the soft one (straight through).
    axis : int, optional
        Along which the categories lie.

    Returns
    -------
    array
        Same shape and dtype as `x`; in [0, 1].

    Raises
    ------
    TypeError
        If `x` is not an array of real numbers, or has a unit; if `key` is no key, or `hard` no bool.
    ValueError
        If `x` has no such axis, or `temperature` is not above 0 or has not one number a row.

    Notes
    -----
    Noise is drawn and added in at least float32, and `softmax` holds for the rest: accuracy, limits, derivative. The
    backward pass keeps one array, the soft result or in low precision the input, from which it draws again.

    References
    ----------
    Jang, Gu and Poole, "Categorical reparameterization with Gumbel-softmax", arXiv:1611.01144. Maddison, Mnih and Teh,
    "The concrete distribution", arXiv:1611.00712.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> sample = gumbel_softmax(jnp.zeros(4), jax.random.key(0), hard=True)
    >>> sorted(sample.tolist())
    [0.0, 0.0, 0.0, 1.0]
    """
    one = _checks.one_axis('gumbel_softmax', 'axis', axis, x.ndim)
    row, divisor = _row('gumbel_softmax', x, one, temperature)
    hard = _checks.flag('gumbel_softmax', 'hard', hard)
    if key is not None:
        key = _checks.random_key('gumbel_softmax', 'key', key)

    def sample(x: Array, divisor: Array | None) -> Array:
        noisy = _wide(x)
        if key is not None:
            noisy = noisy + jax.random.gumbel(key, x.shape, noisy.dtype)
        soft, _ = _softmax(row, noisy, None, divisor)
        if not hard or not soft.size:
            return soft.astype(x.dtype)
        chosen = jax.nn.one_hot(jnp.argmax(soft, one), x.shape[one], dtype=soft.dtype, axis=one)
        return (chosen + (soft - lax.stop_gradient(soft))).astype(x.dtype)  # the difference is zero, and has a slope

    return (sample if compute_dtype(x.dtype) == x.dtype else jax.checkpoint(sample))(x, divisor)
