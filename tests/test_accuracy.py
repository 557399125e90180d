"""Errors of activations in units of the last place, against mpmath.

An error is |got - exact| / ulp(exact), the ulp being that of the dtype under test at the exact value; it counts
wherever the exact value is a normal number of that dtype. The limits are those of the contract: 4 in float32, 8 in
float64, 0.6 in bfloat16 and float16 (0.5 is the rounding of the result). They are not to be widened.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from jaxnorm import functional as F

LIMIT = {'float32': 4.0, 'float64': 8.0, 'bfloat16': 0.6, 'float16': 0.6}
DIGITS = 40


# --- exact values: of mpmath numbers one at a time, and of float64 arrays in numpy ---


def logistic(x):
    return 1 / (1 + mp.exp(-x)) if x > 0 else mp.exp(x) / (1 + mp.exp(x))


def log1p_exp(x):
    return x + mp.log1p(mp.exp(-x)) if x > 0 else mp.log1p(mp.exp(x))


def normal_below(x):
    return mp.erfc(-x / mp.sqrt(2)) / 2


def normal_density(x):
    return mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi)


def steepness(x):
    """The exponent of the tanh form of gelu, and its derivative."""
    a, b = 2 * mp.sqrt(2 / mp.pi), mp.mpf('0.044715')
    return a * (x + b * x**3), a * (1 + 3 * b * x * x)


def tanh_gelu_slope(x):
    t, rise = steepness(x)
    return logistic(t) * (1 + x * rise * logistic(-t))


def np_logistic(x):
    u = np.exp(-np.abs(x))
    return np.where(x > 0, 1, u) / (1 + u)


def np_erfc(x):
    return np.fromiter(map(math.erfc, x.tolist()), float, x.size).reshape(x.shape)


def np_steepness(x):
    a, b = 2 * math.sqrt(2 / math.pi), 0.044715
    x = np.clip(x, -1e3, 1e3)  # where all is over, and nothing overflows
    return a * (x + b * x**3), a * (1 + 3 * b * x * x)


def np_gelu(x):
    return x * np_erfc(-x / math.sqrt(2)) / 2


def np_gelu_slope(x):
    bell = np.exp(-np.minimum(x * x, 1e4) / 2) / math.sqrt(2 * math.pi)
    return np_erfc(-x / math.sqrt(2)) / 2 + x * bell


def np_tanh_gelu_slope(x):
    t, rise = np_steepness(x)
    return np_logistic(t) * (1 + np.clip(x, -1e3, 1e3) * rise * np_logistic(-t))


def np_below(x):
    return np.minimum(x, 0)


LAMBDA, ALPHA = mp.mpf('1.0507009873554804934193349852946'), mp.mpf('1.6732632423543772848170429916717')


@dataclass(frozen=True)
class Op:
    """An activation, its exact value and slope; `roots` are the zeros of the slope."""

    name: str
    value: Callable[[Any], Any]
    slope: Callable[[Any], Any]
    np_value: Callable[[Any], Any]
    np_slope: Callable[[Any], Any]
    arguments: tuple[tuple[str, Any], ...] = ()
    roots: tuple[str, ...] = ()

    def __str__(self) -> str:
        return '-'.join([self.name, *(f'{k}={v}' for k, v in self.arguments)])

    def __call__(self, x):
        return getattr(F, self.name)(x, **dict(self.arguments))

    @cached_property
    def both(self) -> Callable[..., Any]:
        def both(x):
            y, back = jax.vjp(self, x)
            return y, back(jnp.ones_like(y))[0]

        return jax.jit(both)

    def __hash__(self) -> int:
        return hash(str(self))


def softplus(beta: float) -> Op:
    b = mp.mpf(beta)
    return Op(
        'softplus',
        lambda x: log1p_exp(b * x) / b,
        lambda x: logistic(b * x),
        lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(beta * x))) / beta,
        lambda x: np_logistic(beta * x),
        () if beta == 1 else (('beta', beta),),
    )


def elu(alpha: float) -> Op:
    a = mp.mpf(alpha)
    return Op(
        'elu',
        lambda x: x if x > 0 else a * mp.expm1(x),
        lambda x: mp.mpf(1) if x > 0 else a * mp.exp(x),
        lambda x: np.where(x > 0, x, alpha * np.expm1(np_below(x))),
        lambda x: np.where(x > 0, 1, alpha * np.exp(np_below(x))),
        () if alpha == 1 else (('alpha', alpha),),
    )


def leaky_relu(slope: float) -> Op:
    s = mp.mpf(slope)
    return Op(
        'leaky_relu',
        lambda x: x if x > 0 else s * x,
        lambda x: mp.mpf(1) if x > 0 else s,
        lambda x: np.where(x > 0, x, slope * x),
        lambda x: np.where(x > 0, 1, slope),
        () if slope == 0.01 else (('negative_slope', slope),),
    )


OPS = [
    Op(
        'relu',
        lambda x: max(x, mp.mpf(0)),
        lambda x: mp.mpf(x > 0),
        lambda x: np.maximum(x, 0),
        lambda x: (x > 0) * 1.0,
    ),
    Op(
        'relu6',
        lambda x: min(max(x, mp.mpf(0)), mp.mpf(6)),
        lambda x: mp.mpf(0 < x < 6),
        lambda x: np.clip(x, 0, 6),
        lambda x: ((x > 0) & (x < 6)) * 1.0,
    ),
    leaky_relu(0.01),
    leaky_relu(0.3),
    elu(1.0),
    elu(0.75),
    elu(2.0**20),  # alpha * exp(x) is normal where exp(x) is not
    Op(
        'selu',
        lambda x: LAMBDA * (x if x > 0 else ALPHA * mp.expm1(x)),
        lambda x: LAMBDA * (1 if x > 0 else ALPHA * mp.exp(x)),
        lambda x: float(LAMBDA) * np.where(x > 0, x, float(ALPHA) * np.expm1(np_below(x))),
        lambda x: float(LAMBDA) * np.where(x > 0, 1, float(ALPHA) * np.exp(np_below(x))),
    ),
    Op(
        'gelu',
        lambda x: x * normal_below(x),
        lambda x: normal_below(x) + x * normal_density(x),
        np_gelu,
        np_gelu_slope,
        roots=('-0.7517915246935644574579049',),
    ),
    Op(
        'gelu',
        lambda x: x * logistic(steepness(x)[0]),
        tanh_gelu_slope,
        lambda x: x * np_logistic(np_steepness(x)[0]),
        np_tanh_gelu_slope,
        (('approximate', True),),
        roots=('-0.7524614220710162584879544',),
    ),
    Op(
        'silu',
        lambda x: x * logistic(x),
        lambda x: logistic(x) * (1 + x * logistic(-x)),
        lambda x: x * np_logistic(x),
        lambda x: np_logistic(x) * (1 + x * np_logistic(-x)),
        roots=('-1.278464542761073795109359',),
    ),
    Op(
        'sigmoid',
        logistic,
        lambda x: logistic(x) * logistic(-x),
        np_logistic,
        lambda x: np_logistic(x) * np_logistic(-x),
    ),
    Op(
        'log_sigmoid',
        lambda x: -log1p_exp(-x),
        lambda x: logistic(-x),
        lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
        lambda x: np_logistic(-x),
    ),
    Op('tanh', mp.tanh, lambda x: mp.sech(x) ** 2, np.tanh, lambda x: 4 * np_logistic(2 * x) * np_logistic(-2 * x)),
    softplus(1.0),
    softplus(0.03125),
    softplus(2.75),
    softplus(40.0),
]
SMOOTH = [op for op in OPS if op.name not in ('relu', 'relu6', 'leaky_relu')]


def argument_as_float(op: Op, dtype: np.dtype) -> Op:
    """The op whose hyperparameters are those numbers that `dtype` holds: what the kernel was given."""
    rebuild = {'softplus': softplus, 'elu': elu, 'leaky_relu': leaky_relu}.get(op.name)
    if rebuild is None or not op.arguments:
        return leaky_relu(float(dtype.type(0.01))) if op.name == 'leaky_relu' else op
    return rebuild(float(dtype.type(op.arguments[0][1])))


def grid(op: Op, dtype: np.dtype) -> np.ndarray:
    """All scales and signs, the tails to where results go subnormal, and the neighbourhood of every root and edge."""
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    tail = -math.log(info.tiny)  # 87.3 in float32
    beta = dict(op.arguments).get('beta', 1.0)
    edges = [0.3466, 0.7, 9.02, math.sqrt(2 * tail), tail / 2 + 0.7, tail, tail * 1.05]
    near = []
    for edge in [*(-float(r) for r in op.roots), *edges]:
        for at in (dtype.type(edge), dtype.type(-edge), dtype.type(edge / beta), dtype.type(-edge / beta)):
            near.append(at * (1 + info.eps * np.arange(-4, 5)))
            near.append(at * (1 + rng.normal(size=12) * 10 ** rng.uniform(-6, -1, 12)))
    sign = rng.choice([-1.0, 1.0], 200)
    points = np.concatenate(
        [
            rng.uniform(-4, 4, 300),
            rng.uniform(-15, 15, 200),
            rng.uniform(-1.06, 1.06, 250) * tail / beta,
            sign * 10 ** rng.uniform(-8, 2, 200),
            sign[:60] * 2 ** rng.uniform(np.log2(info.tiny), 20, 60),
            *near,
        ]
    )
    return np.unique(points.astype(dtype))


def ulps(got: np.ndarray, exact: list, dtype: np.dtype) -> np.ndarray:
    info = np.finfo(dtype)
    out = []
    for g, e in zip(got.tolist(), exact, strict=True):
        if abs(e) < float(info.tiny) or abs(e) > float(info.max):
            out.append(0.0)
            continue
        exponent = mp.frexp(e)[1]  # e = m * 2**exponent, 1/2 <= m < 1
        out.append(float(abs(mp.mpf(g) - e) / mp.ldexp(1, exponent - info.nmant - 1)))
    return np.array(out)


def np_ulps(got: np.ndarray, exact: np.ndarray, dtype: Any) -> np.ndarray:
    info = jnp.finfo(dtype)
    with np.errstate(all='ignore'):  # of what is not normal, and not counted
        error = np.abs(got - exact) / 2.0 ** (np.frexp(exact)[1] - info.nmant - 1.0)
    return np.where((np.abs(exact) >= float(info.tiny)) & (np.abs(exact) <= float(info.max)), error, 0)


def check(error: np.ndarray, x: np.ndarray, limit: float, what: str) -> None:
    assert not np.isnan(error).any(), f'{what} is nan at {x[np.isnan(error)][:5]}'
    worst = int(np.argmax(error))
    assert error[worst] <= limit, f'{what}: {error[worst]:.2f} ulp at {x[worst]!r}, limit {limit}'


def check_against_mpmath(op: Op, dtype: np.dtype) -> None:
    exact = argument_as_float(op, dtype)
    x = grid(op, dtype)
    value, slope = op.both(x)
    assert value.dtype == slope.dtype == dtype
    with mp.workdps(DIGITS):
        points = [mp.mpf(v) for v in x.tolist()]
        check(ulps(np.asarray(value), [exact.value(p) for p in points], dtype), x, LIMIT[dtype.name], 'value')
        check(ulps(np.asarray(slope), [exact.slope(p) for p in points], dtype), x, LIMIT[dtype.name], 'slope')


@pytest.mark.parametrize('op', OPS, ids=str)
def test_float32(op):
    check_against_mpmath(op, np.dtype(np.float32))


@pytest.mark.parametrize('op', OPS, ids=str)
def test_float64(op, x64):
    check_against_mpmath(op, np.dtype(np.float64))


@pytest.mark.parametrize('op', OPS, ids=str)
def test_float32_densely(op):
    """Half a million points, against numpy in float64, except beside the roots, where that has too few digits."""
    rng = np.random.default_rng(1)
    n = 125_000
    parts = [rng.uniform(-4, 4, n), rng.uniform(-15, 15, n), rng.uniform(-92, 92, n)]
    x = np.concatenate([*parts, rng.choice([-1, 1], n) * 10 ** rng.uniform(-6, 2, n)]).astype(np.float32)
    for root in op.roots:
        x = x[np.abs(x - float(root)) > 1e-3]
    exact, wide = argument_as_float(op, np.dtype(np.float32)), x.astype(np.float64)
    value, slope = (np.asarray(r, np.float64) for r in op.both(x))
    check(np_ulps(value, exact.np_value(wide), np.float32), x, 4.0, 'value')
    check(np_ulps(slope, exact.np_slope(wide), np.float32), x, 4.0, 'slope')


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('op', OPS, ids=str)
def test_every_number_of_16_bits(op, dtype):
    x = np.arange(2**16, dtype=np.uint16).view(jnp.dtype(dtype))
    with np.errstate(all='ignore'):  # nan
        wide = x.astype(np.float64)
    # what is subnormal in float32 too is a zero to XLA:CPU, whatever is done with it
    counted = np.isfinite(wide) & ((wide == 0) | (np.abs(wide) >= np.finfo(np.float32).tiny))
    x, wide = x[counted], wide[counted]
    value, slope = op.both(x)
    assert value.dtype == slope.dtype == dtype
    with np.errstate(all='ignore'):  # widening nan or inf, underflow
        value, slope = (np.asarray(r).astype(np.float64) for r in (value, slope))
    check(np_ulps(value, op.np_value(wide), dtype), wide, LIMIT[dtype], 'value')
    check(np_ulps(slope, op.np_slope(wide), dtype), wide, LIMIT[dtype], 'slope')


@pytest.mark.parametrize('op', OPS, ids=str)
def test_numpy_references(op):
    """What the 16-bit and the dense tests compare with is right to 1e-4 ulp of float32."""
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.uniform(-90, 90, 60), rng.uniform(-4, 4, 60)])
    for root in op.roots:
        x = x[np.abs(x - float(root)) > 1e-3]
    with mp.workdps(DIGITS):
        for exact, approximate in ((op.value, op.np_value), (op.slope, op.np_slope)):
            wanted = np.array([float(exact(mp.mpf(v))) for v in x.tolist()])
            np.testing.assert_allclose(approximate(x), wanted, rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize('op', SMOOTH, ids=str)
def test_second_derivative(op):
    """Autodiff of the slope: 1e-5 where the curvature is of the order of one, and finite everywhere."""
    exact = argument_as_float(op, np.dtype(np.float32))
    x = np.array(
        [-8.1, -5.3, -3.2, -2.1, -1.2784646, -0.75, -0.4, -0.05, 0.06, 0.3, 0.69, 0.71, 1.1, 1.9, 3.3, 5.2, 7.9]
    )
    x = x.astype(np.float32)
    curvature = jax.jit(jax.vmap(jax.grad(jax.grad(op))))
    with mp.workdps(DIGITS):
        wanted = np.array([float(mp.diff(exact.slope, mp.mpf(v))) for v in x.tolist()])
        at_zero = [float(mp.diff(exact.slope, mp.mpf(v))) for v in (-1e-9, 1e-9)]
    scale = np.maximum(np.abs(wanted), 0.01)
    np.testing.assert_array_less(np.abs(curvature(x) - wanted) / scale, 1e-5)
    inf = np.float32(np.inf)
    rare = np.array([-inf, -3e38, -1e4, -200, -100, -88, -44, -13.5, -1e-30, -0.0, 0.0, 1e-30, 13.5, 44, 88, 200, inf])
    got = np.asarray(curvature(rare.astype(np.float32)))
    assert np.isfinite(got).all(), got
    assert np.abs(got[rare == 0] - np.array(at_zero)[:, None]).min(0).max() <= 1e-5 * max(1, *map(abs, at_zero))


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('op', OPS, ids=str)
def test_infinity_zero_and_nan(op, dtype, x64):
    x = jnp.array([-jnp.inf, jnp.inf, jnp.nan, -0.0, 0.0], dtype)
    value, slope = (np.asarray(r) for r in op.both(x))
    assert value.dtype == dtype
    with mp.workdps(DIGITS):
        far = [op.value(mp.mpf(-1000000)), op.slope(mp.mpf(-1000000)), op.slope(mp.mpf(1000000))]
    assert value[0] == (-np.inf if op.name in ('leaky_relu', 'log_sigmoid') else dtype_of(far[0], dtype))
    assert value[1] == {'sigmoid': 1, 'tanh': 1, 'relu6': 6, 'log_sigmoid': 0}.get(op.name, np.inf)
    assert np.allclose(slope[:2], [float(f) for f in far[1:]], rtol=1e-7, atol=0)
    assert np.isnan(value[2])
    if op.name not in ('relu', 'relu6', 'leaky_relu'):  # what these save is one bit
        assert np.isnan(slope[2])
    if op.name not in ('relu', 'relu6', 'sigmoid', 'log_sigmoid', 'softplus'):
        assert np.array_equal(np.signbit(value[3:]), [True, False])


def dtype_of(exact: Any, dtype: str) -> float:
    return float(np.dtype(dtype).type(float(exact)))


LEARNED = {
    'elu': ('alpha', [0.5, 1.0, 3.0], lambda x, a: min(x, 0) and mp.expm1(min(x, 0))),
    'leaky_relu': ('negative_slope', [0.01, 0.5, 2.0], lambda x, a: min(x, 0)),
    'softplus': ('beta', [0.1, 1.0, 7.0], lambda x, b: x * logistic(b * x) / b - log1p_exp(b * x) / b**2),
}


@pytest.mark.parametrize('name', LEARNED)
def test_learned_hyperparameter(name):
    """One a channel; the derivative by it is right to 1e-5 of the largest it takes, and has its limit at +inf."""
    argument, values, exact = LEARNED[name]
    values = np.array(values, np.float32)
    x = np.array([-30, -3, -0.4, 0.2, 2.5, 20], np.float32)[:, None] * np.ones(3, np.float32)

    def one(v, h):
        return getattr(F, name)(v, **{argument: h})

    by = jax.jit(jax.vmap(jax.vmap(jax.grad(one, 1)), (0, None)))
    with mp.workdps(DIGITS):
        wanted = [
            [float(exact(mp.mpf(float(v)), mp.mpf(float(h)))) for v, h in zip(row, values, strict=True)] for row in x
        ]
    wanted = np.array(wanted)
    np.testing.assert_allclose(by(x, values), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    total = jax.grad(lambda h: jnp.sum(one(x, h)))(jnp.asarray(values))
    np.testing.assert_allclose(total, wanted.sum(0), rtol=1e-5)
    at_inf = np.asarray(by(np.full((1, 3), np.inf, np.float32), values))
    assert np.array_equal(at_inf, np.zeros((1, 3)))


# --- over an axis ---


def logits(n: int, dtype: Any) -> np.ndarray:
    """Rows of several kinds: ordinary, wide, off centre, one that dominates, ties."""
    rng = np.random.default_rng(n)
    z = rng.normal(size=(8, n))
    z[1] *= 30
    z[2] = z[2] * 20 + 1000
    z[3] = z[3] * 20 - 300
    z[4, 0] += 60
    z[5, 0] += 85
    z[6] = np.round(z[6])
    z[7] = rng.uniform(-87, 0, n)
    return z.astype(dtype)


def exact_rows(z: np.ndarray) -> tuple[list, list]:
    """Softmax and its logarithm, each a flat list."""
    shares, logs = [], []
    for row in z.astype(np.float64):
        points = [mp.mpf(v) for v in row.tolist()]
        top = max(points)
        e = [mp.exp(p - top) for p in points]
        s = mp.fsum(e)
        shares += [v / s for v in e]
        logs += [p - top - mp.log(s) for p in points]
    return shares, logs


def check_rows(n: int, dtype: str) -> None:
    z = logits(n, jnp.dtype(dtype))
    wide = z.astype(np.float64)
    with mp.workdps(DIGITS + 40):
        shares, logs = exact_rows(z)
    for fun, exact in ((F.softmax, shares), (F.log_softmax, logs)):
        got = jax.jit(fun)(z)
        assert got.dtype == dtype
        flat = np.asarray(got, np.float64).ravel()
        if dtype in ('float32', 'float64'):
            error = ulps(flat, exact, np.dtype(dtype))
        else:
            error = np_ulps(flat, np.array([float(e) for e in exact]), dtype)
        check(error, wide.ravel(), LIMIT[dtype], fun.__name__)

    # The derivatives are sums that cancel: their errors are counted in ulps of the sum of the absolute terms. Two
    # shares are in every term: twice the error of a value, and a rounding of each of the three operations.
    share = np.array([float(s) for s in shares]).reshape(z.shape)
    t = np.zeros(z.shape)
    t[:, 0], t[:, -1] = 1, -0.5
    inner = (share * t).sum(-1, keepdims=True)
    exact = {'softmax': share * (t - inner), 'log_softmax': t - share * t.sum(-1, keepdims=True)}
    terms = {
        'softmax': share * (np.abs(t) + np.abs(share * t).sum(-1, keepdims=True)),
        'log_softmax': np.abs(t) + share * np.abs(t.sum(-1, keepdims=True)),
    }
    limit = {'float32': 11.0, 'float64': 19.0}.get(dtype, LIMIT[dtype])
    for fun in (F.softmax, F.log_softmax):
        back = jax.jit(lambda z, c, fun=fun: jax.vjp(fun, z)[1](c)[0])(z, t.astype(z.dtype))
        assert back.dtype == dtype
        info, name = jnp.finfo(dtype), fun.__name__
        error = np.abs(np.asarray(back, np.float64) - exact[name])
        error /= 2.0 ** (np.frexp(terms[name])[1] - info.nmant - 1.0)
        normal = np.minimum(terms[name], np.abs(exact[name])) >= float(info.tiny)
        check(np.where(normal, error, 0).ravel(), wide.ravel(), limit, f'slope of {name}')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('n', [2, 5, 31, 128])
def test_rows(n, dtype):
    check_rows(n, dtype)


@pytest.mark.parametrize('n', [2, 5, 31, 128])
def test_rows_in_double(n, x64):
    check_rows(n, 'float64')


def test_log_softmax_of_one_that_dominates():
    """The result is as small as the share of the others, and has all its digits."""
    z = np.array([[0, -10.7], [0, -80.3], [50, -30.123], [-200, -285.5]], np.float32)
    with mp.workdps(DIGITS + 40):
        _, logs = exact_rows(z)
    got = np.asarray(jax.jit(F.log_softmax)(z)).ravel()
    assert ulps(got, logs, np.dtype(np.float32)).max() <= 4


@pytest.mark.parametrize('fun', [F.softmax, F.log_softmax])
def test_second_derivative_of_rows(fun, x64):
    """Both nestings and the definition agree, in float32 to what its digits give."""
    z, c = np.random.default_rng(4).normal(size=(2, 6))

    def naive(z):
        e = jnp.exp(z)
        return jnp.sum(c * (e / e.sum() if fun is F.softmax else z - jnp.log(e.sum())))

    exact = jax.hessian(naive)(z)
    for dtype, tolerance in ((np.float64, 1e-13), (np.float32, 3e-7)):
        at, weights = z.astype(dtype), c.astype(dtype)
        for outer, inner in ((jax.jacfwd, jax.jacrev), (jax.jacrev, jax.jacfwd), (jax.jacrev, jax.jacrev)):
            got = outer(inner(lambda v, w=weights: jnp.sum(w * fun(v))))(at)
            assert got.dtype == dtype
            np.testing.assert_allclose(got, exact, atol=tolerance, rtol=0)
