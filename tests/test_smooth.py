"""Smooth activations: what the table does not hold. Two inputs, any frequency, extreme arguments, bad ones."""

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from jaxnorm import functional as F
from jaxnorm import nn
from jaxnorm.benchmark._accuracy import LIMITS, of_jax
from jaxnorm.benchmark._exact import DIGITS, logistic

STATES = [-2.5, -0.3, 0.0, 0.7, 40.0]
DTYPES = ['float32', 'float64', 'bfloat16', 'float16']


def numbers(dtype, n=400):
    rng = np.random.default_rng(3)
    x = np.concatenate(
        [rng.uniform(-4, 4, n), rng.uniform(-95, 95, n), rng.choice([-1, 1], n) * 10 ** rng.uniform(-7, 1, n)]
    )
    return x.astype(jnp.dtype(dtype))


def ulp_of(exact, dtype):
    """The ulp of the dtype at each number, that of the least normal number where they are smaller."""
    info = jnp.finfo(dtype)
    return [mp.ldexp(1, mp.frexp(max(abs(e), mp.mpf(float(info.tiny))))[1] - info.nmant - 1) for e in exact]


def gated(x, h):
    """The terms of value, slope and derivative by the state."""
    z, rest, t = logistic(x + h), logistic(-x - h), mp.tanh(x)
    return (z * t, rest * h), (z * rest * (t - h), z * mp.sech(x) ** 2), (z * rest * (t - h), rest)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('state', STATES)
def test_gated_tanh_in_ulps_of_its_largest_term(state, dtype):
    with jax.enable_x64(dtype == 'float64'):
        x = numbers(dtype)
        h = np.full_like(x, state)
        y, pull = jax.vjp(F.gated_tanh, x, h)
        got = (y, *pull(jnp.ones_like(y)))
        assert all(g.dtype == dtype for g in got)
        with mp.workdps(DIGITS):
            wanted = [gated(mp.mpf(float(v)), mp.mpf(float(h[0]))) for v in x]
            for i, g in enumerate(got):
                terms = [w[i] for w in wanted]
                unit = ulp_of([max(a, b, a + b, key=abs) for a, b in terms], dtype)
                error = [
                    float(abs(mp.mpf(float(v)) - (a + b)) / e) for v, (a, b), e in zip(g, terms, unit, strict=True)
                ]
                # what is smaller may be flushed to zero
                tiny = mp.mpf(float(jnp.finfo(dtype).tiny))
                counted = [abs(a + b) >= tiny for a, b in terms]
                assert max(e for e, c in zip(error, counted, strict=True) if c) <= LIMITS[dtype] + (
                    i == 1 and dtype == 'float32'
                ), (  # as its docstring says
                    i,
                    max(error),
                )


def test_gated_tanh_at_infinity():
    inf = jnp.inf
    x = jnp.array([-inf, inf, 0.5, 0.5, jnp.nan, 1.0])
    h = jnp.array([0.25, 0.25, inf, -inf, 1.0, jnp.nan])
    y, pull = jax.vjp(F.gated_tanh, x, h)
    np.testing.assert_allclose(y, [0.25, 1, np.tanh(0.5), -inf, np.nan, np.nan], 1e-6)
    dx, dh = pull(jnp.ones_like(y))
    np.testing.assert_allclose(dx[:4], [0, 0, 1 / np.cosh(0.5) ** 2, 0], 1e-6)
    np.testing.assert_allclose(dh[:4], [1, 0, 0, 1], 1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('frequency', [0.1, 1.7, 30.0])
@pytest.mark.parametrize('name', ['sine', 'snake'])
def test_any_frequency(name, frequency, dtype):
    """As promised up to 4e6, save next to a zero, where the second part of the angle has 24 (or 53) bits."""
    with jax.enable_x64(dtype == 'float64'):
        rng = np.random.default_rng(7)
        x = np.concatenate([numbers(dtype), rng.uniform(-1, 1, 400) * 4e6 / frequency]).astype(dtype)
        got = of_jax(lambda v: getattr(F, name)(v, frequency))(x)
        eps = float(jnp.finfo(dtype).eps)
        with mp.workdps(60):
            f = mp.mpf(float(np.dtype(dtype).type(frequency)))
            points = [mp.mpf(float(v)) for v in x]
            if name == 'sine':
                wanted = [mp.sin(f * p) for p in points], [f * mp.cos(f * p) for p in points]
            else:
                wanted = [p + mp.sin(f * p) ** 2 / f for p in points], [1 + mp.sin(2 * f * p) for p in points]
            for g, exact, scale in zip(got, wanted, (1, f if name == 'sine' else 1), strict=True):
                for v, e, p, unit in zip(g, exact, points, ulp_of(exact, dtype), strict=True):
                    near_zero = abs(f * p) * eps**2 * scale
                    if name == 'snake':
                        near_zero *= mp.sqrt(abs(e)) + abs(f * p) * eps
                    assert abs(mp.mpf(float(v)) - e) <= LIMITS[dtype] * unit + 4 * near_zero, (float(p), float(e), v)


def test_squareplus_and_soft_sign_far_out():
    x = jnp.array([-3e38, -1e20, -1e4, 1e20, 3e38], jnp.float32)
    np.testing.assert_allclose(F.squareplus(x)[1:], [1e-20, 1e-4, 1e20, 3e38], 3e-7)
    slope = jax.vmap(jax.grad(lambda v: F.squareplus(v, 1e6)))(x)
    np.testing.assert_allclose(slope[1:], [2.5e-35, 1e6 / 4 / 1e8 * (1 - 0.0074257), 1, 1], 1e-4)
    np.testing.assert_array_equal(F.soft_sign(x), np.sign(x).astype(np.float32) * np.float32([1, 1, 1e4 / 10001, 1, 1]))


@pytest.mark.parametrize('b', [1e-30, 1e-26, 4.0, 1e28, 1e30])
def test_second_derivative_of_squareplus(b):
    for f in (lambda x: F.squareplus(x, b), lambda x: F.squareplus(x, jnp.float32(b))):
        bend = jax.vmap(jax.hessian(f))(jnp.asarray([-jnp.inf, 0.0, jnp.inf]))
        np.testing.assert_allclose(bend, [0, 0.5 / np.sqrt(b), 0], 1e-6)


@pytest.mark.parametrize('b', [0.0, 1e-42])
def test_squareplus_of_no_width_is_relu(b):
    x = jnp.asarray([-jnp.inf, -1.0, 0.0, 1.0, jnp.inf])
    y, pull = jax.vjp(lambda v: F.squareplus(v, jnp.float32(b)), x)
    np.testing.assert_array_equal(y, [0, 0, 0, 1, jnp.inf])
    np.testing.assert_array_equal(pull(jnp.ones(5))[0], [0, 0, 0, 1, 1])


@pytest.mark.slow
def test_second_derivatives_next_to_subnormal():
    exact = float(mp.exp(mp.mpf('-86.5')))
    for f in (F.elu, F.selu, F.exponential, F.celu, lambda x: F.elu(x, jnp.float32(1.0))):
        scale = float(f(0.0)) or -float(f(-jnp.inf))
        for second in (jax.grad(jax.grad(f)), jax.hessian(f)):
            np.testing.assert_allclose(second(-86.5) / scale, exact, 3e-7)
    # that of a small alpha is normal where the exponential is not
    x, alpha = np.float32(-0.09), np.float32(1e-3)
    exact = float(mp.exp(mp.mpf(float(x)) / float(alpha)) / float(alpha))
    np.testing.assert_allclose(jax.hessian(lambda v: F.celu(v, 1e-3))(x), exact, 1e-6)


@pytest.mark.slow
def test_derivatives_by_hyperparameters_where_terms_cancel_or_vanish():
    x = np.float32([-1e-6, -1e-3, -0.3, -0.9, -1.1, -20])
    for alpha in np.float32([0.3, 1.0, 30.0]):
        u = [mp.mpf(float(v)) / float(alpha) for v in x]
        exact = [float(mp.expm1(v) - v * mp.exp(v)) for v in u]
        np.testing.assert_allclose(jax.vmap(jax.grad(F.celu, 1), (0, None))(x, alpha), exact, 5e-7)
    x, beta = np.float32([-911, -1.0, 0.0, 50.0, 911]), np.float32(0.1)
    u = [mp.exp(-abs(mp.mpf(float(v)) * float(beta))) for v in x]
    exact = [float(-(mp.log1p(e) - mp.log(e) * e / (1 + e)) / float(beta) ** 2) for e in u]
    np.testing.assert_allclose(jax.vmap(jax.grad(F.softplus, 1), (0, None))(x, beta), exact, 5e-7)


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda x: F.celu(x, 0.0), 'celu: alpha must be a finite number above 0, got 0.0; '),
        (lambda x: F.squareplus(x, 0), 'squareplus: b must be a finite number above 0, got 0.0; '),
        (lambda x: F.scaled_tanh(x, -1.0), 'scaled_tanh: scale must be a finite number above 0, got -1.0; '),
        (lambda x: F.scaled_tanh(x, 1.0, 0.0), 'scaled_tanh: slope must be a finite number above 0, got 0.0; '),
        (lambda x: F.snake(x, 0.0), 'snake: frequency must be a finite number above 0, got 0.0; '),
        (lambda x: F.sine(x, -30.0), 'sine: frequency must be a finite number above 0, got -30.0; '),
        (lambda x: F.time_decayed_tanh(x, 1.0, -0.1), 'decay_rate must be a finite number at least 0, got -0.1; '),
        (lambda x: F.gated_tanh(x, jnp.ones(2)), r'h_prev must broadcast to the input shape \(3,\), got \(2,\); '),
    ],
)
def test_bad_numbers(call, words):
    with pytest.raises(ValueError, match=words):
        call(jnp.ones(3))


def test_bad_types():
    x = jnp.ones(3)
    with pytest.raises(TypeError, match='gated_tanh: h_prev must be a finite number, got str'):
        F.gated_tanh(x, 'zero')
    with pytest.raises(TypeError, match='time_decayed_tanh: t must be dimensionless, got a Quantity in ms; '):
        F.time_decayed_tanh(x, 3 * u.ms)
    with pytest.raises(TypeError, match=r'time_decayed_tanh: missing a required argument'):
        F.time_decayed_tanh(x)


def test_modules_with_a_second_input():
    x, h, t = jnp.linspace(-2, 2, 6).reshape(2, 3), jnp.ones((2, 3)) / 3, jnp.array([[1.0], [5.0]])
    assert jnp.array_equal(nn.GatedTanh()(x, h), F.gated_tanh(x, h))
    layer = nn.TimeDecayedTanh(0.5)
    assert layer.decay_rate == 0.5
    assert jnp.array_equal(layer(x, t), F.time_decayed_tanh(x, t, 0.5))
    assert jnp.array_equal(nn.TimeDecayedTanh(decay_rate=0.5)(x, 2), F.time_decayed_tanh(x, 2, 0.5))
    assert nn.Sine(w0=30.0).frequency == nn.Sine(omega=30.0).frequency == nn.Sine(30.0).frequency == 30.0


def test_in_a_recurrent_network():
    """Through scan: the gradient by the state is that of autodiff."""

    def run(step):
        return lambda w: jax.lax.scan(lambda h, x: (step(x * w, h), None), jnp.zeros(4), xs)[0].sum()

    def plain(x, h):
        z = jax.nn.sigmoid(x + h)
        return z * jnp.tanh(x) + (1 - z) * h

    xs = jnp.sin(jnp.arange(40.0)).reshape(10, 4)
    np.testing.assert_allclose(jax.grad(run(F.gated_tanh))(0.7), jax.grad(run(plain))(0.7), 1e-5)


def test_brainstate_knows_the_names():
    for name in ('CELU', 'Softsign', 'Tanhshrink'):
        assert hasattr(brainstate.nn, name)
        assert hasattr(nn, name)
