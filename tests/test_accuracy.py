"""Errors of activations in units of the last place, against mpmath.

The limits are those of the contract: 4 in float32, 8 in float64, 0.6 in bfloat16 and float16 (0.5 is the rounding of
the result). They are not to be widened.
"""

import functools

import cases
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from jaxnorm import functional as F
from jaxnorm.benchmark._accuracy import LIMITS, exact_values, grid, of_jax, ulps
from jaxnorm.benchmark._exact import DIGITS, EXACT, log1p_exp, logistic


class Op:
    """An activation with hyperparameters to measure it with."""

    def __init__(self, name, hyper):
        self.name, self.hyper, self.exact = name, hyper, EXACT[name]
        self.both = of_jax(self)

    def __call__(self, x):
        return getattr(F, self.name)(x, **self.hyper)

    def __repr__(self):
        return '-'.join([self.name, *(f'{k}={v}' for k, v in self.hyper.items())])

    def away_from_roots(self, x):
        """All points but those next to a root, where 16 digits are too few to say what is right."""
        for root in self.exact.roots:
            x = x[np.abs(x - float(root)) > 1e-3]
        return x


BLOCK = 2**16
OPS = [Op(name, hyper) for name, exact in EXACT.items() for hyper in exact.samples]
#: what saves one bit an element or nothing: piecewise linear
PIECEWISE = {case.name for case in cases.ACTIVATIONS if case.residual != 'input'}
SMOOTH = [op for op in OPS if op.name not in PIECEWISE]
every = pytest.mark.parametrize('op', OPS, ids=repr)


def test_every_activation_is_measured():
    assert {case.name for case in cases.ACTIVATIONS} - set(EXACT) == {'gated_tanh'}  # of two inputs: test_smooth.py


def check(error, x, limit, what):
    worst = int(np.argmax(error))
    assert error[worst] <= limit, f'{what}: {error[worst]:.2f} ulp at {x[worst]!r}, limit {limit}'


def check_against_mpmath(op, dtype):
    x = grid(op.exact, op.hyper, dtype)
    got = op.both(x)
    with mp.workdps(DIGITS):
        for what, g, e in zip(('value', 'slope'), got, exact_values(op.exact, op.hyper, x), strict=True):
            assert g.dtype == dtype
            check(ulps(g, e, dtype), x, LIMITS[dtype], what)


@every
def test_float32(op):
    check_against_mpmath(op, 'float32')


@every
def test_float64(op, x64):
    check_against_mpmath(op, 'float64')


@functools.cache
def in_double(name, hyper):
    """The same kernel in float64; one compilation serves all dtypes, given blocks of one size."""
    return Op(name, dict(hyper)).both


def check_against_double(op, x, dtype):
    """Against the same kernel in float64, which is right to 8 of its own ulp: many points, and still exact."""
    # hyperparameters as the kernel in float32 or less takes them
    hyper = {**op.exact.defaults, **op.hyper}
    exactly = in_double(
        op.name, tuple((n, float(np.float32(v)) if isinstance(v, float) else v) for n, v in hyper.items())
    )
    for block in np.resize(x, (-(-x.size // BLOCK), BLOCK)):
        with np.errstate(all='ignore'):  # widening nan or inf
            wide = block.astype(np.float64)
        with jax.enable_x64(True):
            exact = [np.asarray(e) for e in exactly(wide)]
        assert exact[0].dtype == np.float64
        for what, g, e in zip(('value', 'slope'), op.both(block), exact, strict=True):
            assert g.dtype == dtype
            check(np_ulps(np.asarray(g).astype(np.float64), e, dtype), wide, LIMITS[dtype], what)


def np_ulps(got, exact, dtype):
    info = jnp.finfo(dtype)
    with np.errstate(all='ignore'):  # of what is not normal, and not counted
        error = np.abs(got - exact) / 2.0 ** (np.frexp(exact)[1] - info.nmant - 1.0)
    error = np.where((np.abs(exact) >= float(info.tiny)) & (np.abs(exact) <= float(info.max)), error, 0)
    return np.where(np.isnan(error), np.inf, error)


@pytest.mark.slow
@every
def test_float32_densely(op):
    rng, n = np.random.default_rng(1), BLOCK
    parts = [rng.uniform(-4, 4, n), rng.uniform(-15, 15, n), rng.uniform(-92, 92, n)]
    x = np.concatenate([*parts, rng.choice([-1, 1], n) * 10 ** rng.uniform(-6, 2, n)]).astype(np.float32)
    check_against_double(op, op.away_from_roots(x), 'float32')


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@every
def test_every_number_of_16_bits(op, dtype):
    x = np.arange(2**16, dtype=np.uint16).view(jnp.dtype(dtype))
    with np.errstate(all='ignore'):  # nan
        wide = x.astype(np.float64)
    # what is subnormal in float32 too is a zero to XLA:CPU, whatever is done with it
    counted = np.isfinite(wide) & ((wide == 0) | (np.abs(wide) >= np.finfo(np.float32).tiny))
    check_against_double(op, x[counted], dtype)


@pytest.mark.slow
@pytest.mark.parametrize('op', SMOOTH, ids=repr)
def test_second_derivative(op):
    """Autodiff of the slope: 1e-5 where the curvature is of the order of one, and finite everywhere."""
    _, slope = op.exact.at(op.hyper, np.float32)
    below = [-8.1, -5.3, -3.2, -2.1, -1.2784646, -0.75, -0.4, -0.05]
    above = [0.06, 0.3, 0.69, 0.71, 1.1, 1.9, 3.3, 5.2, 7.9]
    x = np.array(below + above, np.float32)
    curvature = jax.jit(jax.vmap(jax.grad(jax.grad(op))))
    with mp.workdps(DIGITS):
        wanted = np.array([float(mp.diff(slope, mp.mpf(v))) for v in x.tolist()])
        at_zero = [float(mp.diff(slope, mp.mpf(v))) for v in (-1e-9, 1e-9)]
    scale = np.maximum(np.abs(wanted), 0.01)
    np.testing.assert_array_less(np.abs(curvature(x) - wanted) / scale, 1e-5)
    inf = np.float32(np.inf)
    rare = np.array([-inf, -3e38, -1e4, -200, -100, -88, -44, -13.5, -1e-30, -0.0, 0.0, 1e-30, 13.5, 44, 88, 200, inf])
    got = np.asarray(curvature(rare.astype(np.float32)))
    assert np.isfinite(got).all(), got
    assert np.abs(got[rare == 0] - np.array(at_zero)[:, None]).min(0).max() <= 1e-5 * max(1, *map(abs, at_zero))


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@every
def test_infinity_zero_and_nan(op, dtype, x64):
    x = jnp.array([-jnp.inf, jnp.inf, jnp.nan, -0.0, 0.0], dtype)
    value, slope = (np.asarray(r) for r in op.both(x))
    assert value.dtype == dtype
    with mp.workdps(DIGITS):
        value_at, slope_at = op.exact.at(op.hyper, dtype)
        far, near = mp.mpf(10) ** 60, mp.mpf(10) ** -60  # float32 and float64 round what is there to its limit
        limits = [dtype_of(value_at(v), dtype) for v in (-far, far)]
        slope_limits = [dtype_of(slope_at(v), dtype) for v in (-far, far)]
        rises_through_zero = value_at(-near) < 0 < value_at(near)
    limits, slope_limits = (
        [np.copysign(np.inf, v) if abs(v) > 1e20 else v if abs(v) > 1e-20 else 0.0 for v in r]
        for r in (limits, slope_limits)
    )
    for v, limit in zip(value[:2].tolist(), limits, strict=True):  # a whole one is met exactly
        assert v == limit or (not float(limit).is_integer() and np.isclose(v, limit, 4 * jnp.finfo(dtype).eps, 0))
    assert np.allclose(slope[:2], slope_limits, rtol=1e-7, atol=0)
    assert np.isnan(value[2])
    if op.name not in PIECEWISE:  # what these save is one bit
        assert np.isnan(slope[2])
    if rises_through_zero:
        assert np.array_equal(np.signbit(value[3:]), [True, False])


def dtype_of(exact, dtype):
    with np.errstate(over='ignore', under='ignore'):
        return float(np.dtype(dtype).type(float(exact)))


LEARNED = {
    'elu': ('alpha', [0.5, 1.0, 3.0], lambda x, a: min(x, 0) and mp.expm1(min(x, 0))),
    'leaky_relu': ('negative_slope', [0.01, 0.5, 2.0], lambda x, a: min(x, 0)),
    'softplus': ('beta', [0.1, 1.0, 7.0], lambda x, b: x * logistic(b * x) / b - log1p_exp(b * x) / b**2),
    'swish': ('beta', [0.1, 1.0, 7.0], lambda x, b: x * x * logistic(b * x) * logistic(-b * x)),
    'celu': ('alpha', [0.3, 1.0, 5.0], lambda x, a: min(x, 0) and mp.expm1(x / a) - x / a * mp.exp(x / a)),
    'squareplus': ('b', [0.1, 1.0, 4.0], lambda x, b: 1 / (4 * mp.sqrt(x * x + b))),
    'scaled_tanh': ('slope', [0.3, 2 / 3, 2.0], lambda x, s: mp.mpf('1.7159') * x * mp.sech(s * x) ** 2),
    'snake': ('frequency', [0.3, 1.0, 5.0], lambda x, f: (x * mp.sin(2 * f * x) - mp.sin(f * x) ** 2 / f) / f),
    'sine': ('frequency', [0.3, 1.0, 30.0], lambda x, f: x * mp.cos(f * x)),
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


def logits(n, dtype):
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


def exact_rows(z):
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


def check_rows(n, dtype):
    z = logits(n, jnp.dtype(dtype))
    wide = z.astype(np.float64)
    with mp.workdps(DIGITS + 40):
        shares, logs = exact_rows(z)
    for fun, exact in ((F.softmax, shares), (F.log_softmax, logs)):
        got = jax.jit(fun)(z)
        assert got.dtype == dtype
        flat = np.asarray(got, np.float64).ravel()
        if dtype in ('float32', 'float64'):
            error = ulps(flat, exact, dtype)
        else:
            error = np_ulps(flat, np.array([float(e) for e in exact]), dtype)
        check(error, wide.ravel(), LIMITS[dtype], fun.__name__)

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
    limit = {'float32': 11.0, 'float64': 19.0}.get(dtype, LIMITS[dtype])
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
    assert ulps(got, logs, 'float32').max() <= 4


@pytest.mark.slow
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
