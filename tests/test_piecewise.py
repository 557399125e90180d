"""Rectifiers and hard activations that the table has no place for: random, quantized, not elementwise, learned."""

import functools
import inspect

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import references as ref
import transforms

import jaxnorm
from jaxnorm import functional as F
from jaxnorm import nn
from jaxnorm.benchmark._accuracy import LIMITS, of_jax, ulps
from jaxnorm.benchmark._exact import DIGITS, logistic

pytestmark = pytest.mark.slow  # many compilations

DTYPES = ['float32', 'bfloat16', 'float16']
KEY = jax.random.key(7)


def saved(f, x):
    """What is kept for the backward pass, single numbers excepted."""
    return [str(a.dtype) for a in jax.tree.leaves(jax.vjp(f, x)[1]) if a.size > 1]


def check_derivatives(f, x):
    """Every mode gives the same, and the definition: f is linear between its kinks."""
    t = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), x.dtype)
    y, out = jax.jvp(f, (x,), (t,))
    np.testing.assert_allclose(out, (f(x + 1e-6 * t) - f(x - 1e-6 * t)) / 2e-6, 1e-8, 1e-9)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=y.shape), x.dtype)
    weighted = lambda v: (weight * f(v)).sum()
    transforms.check(weighted, weighted, x)
    np.testing.assert_array_equal(jax.jit(transforms.SECOND['forward over reverse'], static_argnums=0)(weighted, x), 0)


# --- rrelu ---


@pytest.mark.parametrize('dtype', DTYPES)
def test_rrelu_without_a_key_is_the_midpoint(dtype):
    x = jnp.linspace(-3, 3, 61).astype(dtype)
    for bounds in ({}, {'lower': -0.5, 'upper': 0.1}):
        y = F.rrelu(x, **bounds)
        assert y.dtype == dtype
        expected = ref.rrelu(np.asarray(x, np.float64), **bounds)
        np.testing.assert_allclose(np.asarray(y, np.float64), expected, float(jnp.finfo(dtype).eps))
    assert jax.grad(F.rrelu)(0.0) == pytest.approx(11 / 48)
    assert saved(F.rrelu, x) == ['bool']


@pytest.mark.parametrize('dtype', DTYPES)
def test_rrelu_draws_uniformly(dtype):
    x = jnp.full((200, 100), -1.0, dtype)
    f = lambda v: F.rrelu(v, 0.25, 0.75, KEY)
    y = f(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, f(x))
    slopes = -np.asarray(y, np.float64)
    assert slopes.min() >= 0.25
    assert slopes.max() <= 0.75
    # the mean of n is off by (b - a) / sqrt(12 n), here five times that; the deviation of half of it by as much
    assert abs(slopes.mean() - 0.5) < 5 * 0.5 / np.sqrt(12 * slopes.size) + float(jnp.finfo(dtype).eps)
    assert slopes.std() == pytest.approx(0.5 / np.sqrt(12), rel=0.03)
    assert np.abs(np.corrcoef(slopes[:, 0], slopes[:, 1])[0, 1]) < 0.3
    np.testing.assert_array_equal(jax.grad(lambda v: f(v).astype(jnp.float32).sum())(x), -y)
    assert (F.rrelu(x, 0.25, 0.75, jax.random.key(8)) != y).any()
    assert saved(f, x) == ['bool']


def test_rrelu_with_a_key(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)))
    f = lambda v: F.rrelu(v, key=KEY)
    assert f(x).dtype == jnp.float64
    check_derivatives(f, x)
    np.testing.assert_array_equal(jnp.where(x > 0, x, 0), jnp.maximum(f(x), 0))
    np.testing.assert_array_equal(f(jnp.asarray([jnp.inf, -jnp.inf, jnp.nan])), [jnp.inf, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(F.rrelu(jnp.asarray([-jnp.inf, jnp.nan]), 0.0, 0.0, KEY), [0, jnp.nan])
    assert 1 / 8 <= jax.grad(f)(0.0) <= 1 / 3
    keys = jax.random.split(KEY, 4)
    rows = jax.vmap(lambda v, k: F.rrelu(v, key=k))(x, keys)
    np.testing.assert_array_equal(rows[2], F.rrelu(x[2], key=keys[2]))
    slopes = jax.vmap(jax.grad(lambda v, k: F.rrelu(v, key=k).sum()))(x, keys)
    np.testing.assert_allclose(slopes * x, rows, 1e-15)
    raw = jax.random.PRNGKey(7)
    np.testing.assert_array_equal(F.rrelu(x, key=raw), jax.jit(lambda v, k: F.rrelu(v, key=k))(x, raw))
    quantity = f(x * u.mV)
    assert quantity.unit == u.mV
    np.testing.assert_array_equal(quantity.mantissa, f(x))


def test_the_layer_draws_while_it_fits():
    layer, x = nn.RReLU(), -jnp.ones(50)
    assert (layer.lower, layer.upper) == (1 / 8, 1 / 3)
    with brainstate.environ.context(fit=False):
        np.testing.assert_array_equal(layer(x), F.rrelu(x))
    np.testing.assert_array_equal(layer(x, fit=False), F.rrelu(x))
    apply = jaxnorm.jit(layer)
    with brainstate.environ.context(fit=True):
        for f in (layer, apply):
            first, second = f(x), f(x)
            assert (first != second).any()
            assert first.min() >= -1 / 3
            assert first.max() <= -1 / 8
    with brainstate.environ.context(fit=False):
        np.testing.assert_array_equal(apply(x), F.rrelu(x))
    with pytest.raises(ValueError, match='RReLU: fit must say whether the layer fits or evaluates'):
        layer(x)
    with pytest.raises(TypeError, match='RReLU: mask must be None for a function of single elements'):
        layer(x, jnp.ones(50, bool), fit=False)


# --- crelu and maxout ---


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('axis', [0, 1, -1])
def test_crelu(dtype, axis):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), dtype)
    y = F.crelu(x, axis)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, ref.crelu(np.asarray(x), axis))
    np.testing.assert_array_equal(nn.CReLU(dim=axis)(x), y)
    assert saved(lambda v: F.crelu(v, axis), x) == ['bool', 'bool']


def test_derivatives_of_crelu(x64):
    check_derivatives(lambda v: F.crelu(v, 0), jnp.asarray(np.random.default_rng(0).normal(size=(4, 6))))
    f = lambda v: F.crelu(v[None])
    np.testing.assert_array_equal(jax.jacfwd(f)(0.0), [0, 0])
    np.testing.assert_array_equal(f(jnp.asarray(jnp.inf)), [jnp.inf, 0])
    np.testing.assert_array_equal(f(jnp.asarray(-jnp.inf)), [0, jnp.inf])
    assert jnp.isnan(f(jnp.asarray(jnp.nan))).all()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 4)))
    np.testing.assert_array_equal(jax.vmap(F.crelu)(x), F.crelu(x))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('units', [1, 2, 3, 6])
def test_maxout(dtype, units):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6)), dtype)
    y = F.maxout(x, units)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, ref.maxout(np.asarray(x), units))
    np.testing.assert_array_equal(F.maxout(jnp.moveaxis(x, -1, 0), units, axis=0), jnp.moveaxis(y, -1, 0))
    np.testing.assert_array_equal(nn.Maxout(units)(x), y)
    np.testing.assert_array_equal(jax.vmap(lambda v: F.maxout(v, units))(x), y)
    assert saved(lambda v: F.maxout(v, units), x) == ['bool']


def test_derivatives_of_maxout(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)))
    check_derivatives(lambda v: F.maxout(v, 2), x)
    check_derivatives(lambda v: F.maxout(v, 2, axis=0), x)
    slope = jax.grad(lambda v: F.maxout(v, 2).sum())
    np.testing.assert_array_equal(slope(jnp.asarray([1.0, 1, 0, -0.0, 0.0, -1])), [1, 0, 0, 1, 0, 0])
    row = jnp.asarray([1.0, jnp.inf, -jnp.inf, 1, jnp.nan, 5])
    np.testing.assert_array_equal(F.maxout(row, 2), [jnp.inf, jnp.nan])
    np.testing.assert_array_equal(slope(row), [0, 1, 0, 0, 1, 0])
    assert F.maxout(jnp.zeros((0, 6)), 3).shape == (0, 3)


def test_units_of_functions_of_rows():
    x = jnp.asarray([-1.0, 2.0, 3.0, 4.0])
    for f in (F.crelu, lambda v: F.maxout(v, 2)):
        y = f(x * u.mV)
        assert y.unit == u.mV
        np.testing.assert_array_equal(y.mantissa, f(x))
        assert f(jnp.arange(4)).dtype == jnp.float32


def test_layers_know_the_size_of_what_they_return():
    assert nn.CReLU(in_size=(8, 3)).out_size == (8, 6)
    assert nn.CReLU(axis=1, in_size=(8, 3)).out_size == (16, 3)
    assert nn.Maxout(2, in_size=(8, 6)).out_size == (8, 2)
    assert nn.Identity(in_size=(8, 6)).out_size == (8, 6)
    assert nn.GLU(in_size=(8,)).out_size == (4,)
    assert nn.SwiGLU(axis=1, in_size=(8, 3)).out_size == (4, 3)
    assert nn.GLU(in_size=7).out_size == (7,)  # that of one of two arrays


def test_a_sequence_asks_them():
    first, last = brainstate.nn.Linear(4, 8), brainstate.nn.Linear.desc(out_size=(3,))
    for layer, size in ((nn.CReLU(in_size=(8,)), 16), (nn.Maxout(2, in_size=(8,)), 2), (nn.ReGLU(in_size=(8,)), 4)):
        model = brainstate.nn.Sequential(first, layer)
        assert model.out_size == (size,)
        model.append(last)
        assert model(jnp.ones((2, 4))).shape == (2, 3)
    model = brainstate.nn.Sequential(first, nn.GLU.desc(), nn.ReLU(), nn.Softmax(), last)
    assert model(jnp.ones((2, 4))).shape == (2, 3)


# --- quantized_sigmoid ---


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('bits', [1, 2, 3, 8, 12])
def test_quantized_sigmoid(dtype, bits):
    rng, largest = np.random.default_rng(bits), 2**bits - 1
    x = np.concatenate([rng.uniform(-12, 12, 2000), rng.normal(size=1000) * 10 ** rng.uniform(-30, 0, 1000)])
    x = x.astype(jnp.dtype(dtype))
    got, slope = of_jax(lambda v: F.quantized_sigmoid(v, bits))(x)
    assert got.dtype == dtype
    assert slope.dtype == dtype
    points = x.astype(np.float64).tolist()
    with mp.workdps(DIGITS):
        exact = [logistic(mp.mpf(v)) * largest for v in points]
        # an ulp next to a step, on whose side a sigmoid within 4 ulp can't tell; zero is one it can
        away = [abs(v - mp.floor(v) - 0.5) > 5e-7 * v or abs(p) < 1e-7 for v, p in zip(exact, points, strict=True)]
        exact = [mp.floor(v + 0.5) / largest for v in exact]
        slopes = [logistic(mp.mpf(v)) * logistic(mp.mpf(-v)) for v in points]
        assert sum(away) > 0.98 * len(away)
        assert np.where(away, ulps(got, exact, dtype), 0).max() <= LIMITS[dtype]
        assert ulps(slope, slopes, dtype).max() <= LIMITS[dtype]
    np.testing.assert_array_equal(got, nn.QuantizedSigmoid(bits)(x))


def test_quantized_sigmoid_of_what_is_special(x64):
    for bits in (1, 4, 24):
        f = lambda v, bits=bits: F.quantized_sigmoid(v, bits)
        upper = 2 ** (bits - 1) / (2**bits - 1)
        x = jnp.asarray([-jnp.inf, -1e-300, -0.0, 0.0, 1e-300, jnp.inf, jnp.nan])
        np.testing.assert_array_equal(f(x), [0, 1 - upper, upper, upper, upper, 1, jnp.nan])
        np.testing.assert_array_equal(jax.vmap(jax.grad(f))(x)[:-1], [0, 0.25, 0.25, 0.25, 0.25, 0])
        y = f(jnp.linspace(-4, 4, 1000))
        np.testing.assert_allclose(y + y[::-1], 1, 1e-15)
        assert len(set(np.asarray(y).tolist())) <= 2**bits
    assert saved(F.quantized_sigmoid, jnp.ones(5)) == ['float64']
    x = jnp.linspace(-4, 4, 9)
    for order in (1, 2):  # straight through: every derivative is that of sigmoid
        ours, sigmoid = F.quantized_sigmoid, F.sigmoid
        for _ in range(order):
            ours, sigmoid = jax.grad(ours), jax.grad(sigmoid)
        np.testing.assert_array_equal(jax.vmap(ours)(x), jax.vmap(sigmoid)(x))
    with pytest.raises(TypeError, match='quantized_sigmoid: x must be dimensionless, got a Quantity in mV'):
        F.quantized_sigmoid(x * u.mV)


# --- what is learned ---

LEARNED = [
    ('prelu', {'slope': 0.2}),
    ('threshold', {'threshold': -0.4, 'value': 2.0}),
    ('tlu', {'threshold': 0.3}),
    ('star_relu', {'scale': 0.8, 'bias': -0.4}),
    ('hard_tanh', {'min_value': -1.0, 'max_value': 1.5}),
    ('hard_shrink', {'lambd': 0.5}),
    ('soft_shrink', {'lambd': 0.5}),
]


@pytest.mark.parametrize(('name', 'values'), LEARNED, ids=[n for n, _ in LEARNED])
def test_learned_hyperparameters(name, values, x64):
    f, reference = getattr(F, name), getattr(ref, name)
    x = np.linspace(-4, 4, 20).reshape(4, 5) + 0.0137
    arrays = {n: v + np.arange(5) / 10 for n, v in values.items()}
    np.testing.assert_allclose(f(x, **arrays), reference(x, **arrays), 1e-14)
    np.testing.assert_allclose(f(x, *(jnp.asarray(a) for a in arrays.values())), reference(x, **arrays), 1e-14)
    weight = np.random.default_rng(0).normal(size=x.shape)
    got = jax.grad(lambda a: (f(x, **a) * weight).sum())({n: jnp.asarray(a) for n, a in arrays.items()})
    h = 1e-6
    for n, a in arrays.items():
        up, down = (reference(x, **{**arrays, n: a + d}) for d in (h, -h))
        np.testing.assert_allclose(got[n], ((up - down) / (2 * h) * weight).sum(0), 1e-7, 1e-9)
    slope = jax.grad(lambda v: (f(v, **arrays) * weight).sum())(x)
    rise = (reference(x + h, **arrays) - reference(x - h, **arrays)) / (2 * h)
    np.testing.assert_allclose(slope, rise * weight, 1e-7, 1e-9)
    # at infinity too, where the limit of the derivative is finite
    for at in (-jnp.inf, jnp.inf):
        by = jax.grad(lambda a, at=at: f(jnp.asarray(at), **a))({n: jnp.asarray(v) for n, v in values.items()})
        assert not any(jnp.isnan(v) for v in by.values())
    if name != 'star_relu':
        assert all(jnp.isfinite(v) for v in by.values())


@pytest.mark.parametrize(('name', 'learned'), [('prelu', 'slope'), ('leaky_relu', 'negative_slope')])
def test_a_slope_of_another_dtype_does_not_set_that_of_the_product(name, learned, x64):
    f = getattr(F, name)
    for narrow in (jnp.float16, jnp.bfloat16, jnp.float32):
        for wide in (jnp.float32, jnp.float64):
            for x in (-2.0, 2.0):
                pull = jax.vjp(functools.partial(f, **{learned: narrow(0.25)}), wide(x))[1]
                (got,) = pull(wide(123456.789))
                assert got.dtype == wide
                assert got == wide(123456.789) * (1 if x > 0 else 0.25)


def test_prelu_has_a_slope_of_its_own():
    np.testing.assert_array_equal(F.get('prelu')(jnp.asarray([-2.0, 2.0])), [-0.5, 2])
    assert jax.grad(F.prelu)(-2.0) == 0.25


@pytest.mark.parametrize('name', ['prelu', 'leaky_relu'])
def test_what_a_learned_slope_saves(name):
    x = jnp.ones((8, 16), jnp.bfloat16)
    f = getattr(F, name)
    kept = [a for a in jax.tree.leaves(jax.vjp(f, x, jnp.full(16, 0.1))[1]) if a.size > 16]
    assert sorted(str(a.dtype) for a in kept) == ['bfloat16', 'bool']


def test_derivatives_by_hyperparameters_at_kinks():
    assert jax.grad(F.prelu, 1)(jnp.inf, 0.25) == 0
    assert jax.grad(F.prelu, 1)(0.0, 0.25) == 0
    assert jax.grad(F.tlu, 1)(0.5, 0.5) == 1
    assert jax.grad(F.hard_tanh, 2)(1.0, -1.0, 1.0) == 1
    assert jax.grad(F.soft_shrink, 1)(0.5, 0.5) == 0
    assert jax.grad(F.star_relu, 2)(-1.0, 1.0, 0.0) == 1


def test_learned_layers():
    shared, each = nn.PReLU(), nn.PReLU(num_parameters=3, init=0.1)
    assert shared.weight.value.shape == (1,)
    np.testing.assert_allclose(each.weight.value, [0.1] * 3)
    x = jnp.asarray([[-1.0, -2.0, 3.0]])
    np.testing.assert_allclose(shared(x), [[-0.25, -0.5, 3]])
    each.weight.value = jnp.asarray([1.0, 2.0, 3.0])
    np.testing.assert_allclose(each(x), [[-1, -4, 3]])
    grads = brainstate.transform.grad(lambda: each(x).sum(), each.states(brainstate.ParamState))()
    np.testing.assert_allclose(jax.tree.leaves(grads)[0], [-1, -2, 0])
    star = nn.StarReLU()
    assert {n: float(v[0]) for n, v in star.weight.value.items()} == pytest.approx({'scale': 0.8944, 'bias': -0.4472})
    np.testing.assert_allclose(nn.TLU(3, threshold=-1.5)(x), [[-1, -1.5, 3]])
    with pytest.raises(ValueError, match='prelu: slope must broadcast to the input shape'):
        nn.PReLU(4)(x)


def test_the_constants_of_star_relu_standardize_a_normal_input():
    # E relu(z)^2 = 1/2 and Var relu(z)^2 = 5/4, so that s = sqrt(4/5), b = -s/2
    layer = nn.StarReLU()
    assert float(layer.weight.value['scale'][0]) == pytest.approx(np.sqrt(0.8), abs=5e-5)
    assert float(layer.weight.value['bias'][0]) == pytest.approx(-np.sqrt(0.8) / 2, abs=5e-5)


# --- units and errors ---


def test_bounds_in_the_unit_of_the_input():
    x = jnp.asarray([-3.0, -0.2, 0.7, 5.0])
    for name, bounds in [
        ('hard_tanh', {'min_value': -1.0, 'max_value': 2.0}),
        ('threshold', {'threshold': 0.5, 'value': 4.0}),
        ('tlu', {'threshold': 0.5}),
        ('hard_shrink', {'lambd': 0.5}),
        ('soft_shrink', {'lambd': 0.5}),
    ]:
        f = getattr(F, name)
        for given in (
            bounds,
            {n: v * u.mV for n, v in bounds.items()},
            {n: v / 1000 * u.volt for n, v in bounds.items()},
        ):
            y = f(x * u.mV, **given)
            assert y.unit == u.mV
            np.testing.assert_allclose(y.mantissa, f(x, **bounds), 1e-6)
        with pytest.raises(TypeError, match=rf'{name}: \w+ must be in mV to match the input, got ms; convert'):
            f(x * u.mV, **{n: v * u.ms for n, v in bounds.items()})
        with pytest.raises(TypeError, match=rf'{name}: \w+ must be dimensionless, got a Quantity in ms'):
            f(x, **{n: v * u.ms for n, v in bounds.items()})


X = jnp.ones((2, 6))


@pytest.mark.parametrize(
    ('call', 'error', 'words'),
    [
        (lambda: F.maxout(X), TypeError, "maxout: missing a required argument: 'num_units'; the signature is maxout"),
        (
            lambda: F.leaky_relu(X, 'a'),
            TypeError,
            "leaky_relu: negative_slope must be a finite number, got str 'a'; pass",
        ),
        (lambda: F.crelu(1.0), ValueError, 'crelu: x must have an axis to work on, got a single number; pass an array'),
        (
            lambda: nn.PReLU(4, init='a'),
            TypeError,
            "PReLU: slope must be numbers, or .*, got str 'a'; pass for example",
        ),
        (lambda: F.prelu(X, 'a'), TypeError, "prelu: slope must be a finite number, got str 'a'; pass a Python float."),
        (lambda: F.threshold(X, 0.0), TypeError, "threshold: missing a required argument: 'value'"),
        (lambda: F.threshold(X, 0.0, None), TypeError, 'threshold: value must be a finite number, got NoneType None'),
        (lambda: F.tlu(X, jnp.ones(5)), ValueError, r'tlu: threshold must broadcast to the input shape \(2, 6\)'),
        (lambda: F.star_relu(X, True), TypeError, 'star_relu: scale must be a finite number, got bool True'),
        (
            lambda: F.hard_tanh(X, 1.0, -1.0),
            ValueError,
            r'hard_tanh: min_value must be below max_value, got 1.0 and -1.0; exchange or move them.',
        ),
        (
            lambda: F.hard_shrink(X, -0.1),
            ValueError,
            'hard_shrink: lambd must be a finite number at least 0, got -0.1;',
        ),
        (
            lambda: F.soft_shrink(X, -0.1),
            ValueError,
            'soft_shrink: lambd must be a finite number at least 0, got -0.1;',
        ),
        (lambda: F.quantized_sigmoid(X, 0), ValueError, 'quantized_sigmoid: bits must be at least 1, got 0; choose'),
        (lambda: F.quantized_sigmoid(X, 25), ValueError, 'quantized_sigmoid: bits must be at most 24, got 25; choose'),
        (lambda: F.quantized_sigmoid(X, 8.0), TypeError, 'quantized_sigmoid: bits must be an integer, got float 8.0;'),
        (lambda: F.rrelu(X, 0.5, 0.1), ValueError, 'rrelu: upper must be a finite number at least 0.5, got 0.1;'),
        (lambda: F.rrelu(X, key=0), TypeError, 'rrelu: key must be one JAX random key, got int 0; pass for example'),
        (
            lambda: F.rrelu(X, key=jax.random.split(KEY, 3)),
            TypeError,
            r'rrelu: key must be one JAX random key, got key<fry>\[3\]; pass for example jax.random.key\(0\)',
        ),
        (lambda: F.maxout(X, 4), ValueError, 'maxout: num_units must divide the 6 features on axis 1, got 4; choose'),
        (lambda: F.maxout(X, 2.0), TypeError, 'maxout: num_units must be an integer, got float 2.0; pass a Python int'),
        (lambda: F.maxout(X, 2, 2), ValueError, r'maxout: axis must lie in \[-2, 1\] for an input of rank 2, got 2;'),
        (lambda: F.crelu(X, 2), ValueError, r'crelu: axis must lie in \[-2, 1\] for an input of rank 2, got 2;'),
        (lambda: F.crelu(X, (0, 1)), ValueError, r'crelu: axis must be one axis, got \(0, 1\); pass a single int.'),
        (lambda: F.identity(X > 0), TypeError, 'identity: x must hold real numbers, got bool'),
    ],
)
def test_what_is_wrong_is_said(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_other_classes_have_the_defaults_of_their_functions():
    for name in ('CReLU', 'Maxout', 'QuantizedSigmoid', 'RReLU'):
        cls = getattr(nn, name)
        function, layer = (inspect.signature(f).parameters for f in (cls.fn, cls))
        hyper = [n for n in list(function)[1:] if n != 'key']
        assert [layer[n].default for n in hyper] == [function[n].default for n in hyper]
        assert list(layer)[: len(hyper)] == hyper
