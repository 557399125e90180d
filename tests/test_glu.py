"""Two-input gates: values, slopes, what is saved, limits, units, errors."""

import brainunit as u
import cases
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import transforms

from jaxnorm import functional as F
from jaxnorm import nn
from jaxnorm.benchmark._accuracy import LIMITS, ulps
from jaxnorm.benchmark._exact import DIGITS, EXACT

pytestmark = pytest.mark.slow  # many compilations

OPTIONS = [
    *((name, {}) for name in cases.GATES),
    ('geglu', {'approximate': True}),
    ('swiglu', {'alpha': 1.702, 'offset': 1.0}),
    ('gaussian_glu', {'mean': 0.5, 'std': 2.0}),
]
each = pytest.mark.parametrize('name', cases.GATES)
every = pytest.mark.parametrize(('name', 'options'), OPTIONS, ids=lambda v: v if isinstance(v, str) else str(v or ''))


def two(shape=(3, 4), seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, shape), rng.normal(0, 2, shape)


@every
def test_value_of_one_array_and_of_two(name, options, x64):
    a, b = two()
    f, expected = getattr(F, name), getattr(cases.ref, name)(a, b, **options)
    np.testing.assert_allclose(f(a, b, **options), expected, 1e-13)
    np.testing.assert_array_equal(f(b, a, gate='first', **options), f(a, b, **options))
    for axis in (0, 1, -1, -2):
        np.testing.assert_array_equal(f(np.concatenate([a, b], axis), axis=axis, **options), f(a, b, **options))
    first = np.concatenate([b, a], -1)
    np.testing.assert_array_equal(f(first, gate='first', **options), f(a, b, **options))


@every
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_dtypes(name, options, dtype):
    a, b = (jnp.asarray(v, dtype) for v in two())
    y = getattr(F, name)(a, b, **options)
    assert y.dtype == dtype
    expected = getattr(cases.ref, name)(*(np.asarray(v, np.float64) for v in (a, b)), **options)
    np.testing.assert_allclose(
        np.asarray(y, np.float64), expected, 4 * float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
    )
    assert getattr(F, name)(jnp.arange(4), **options).dtype == jnp.float32


EXACT_GATES = {
    'glu': (EXACT['sigmoid'], {}),
    'geglu': (EXACT['gelu'], {'approximate': False}),
    'reglu': (EXACT['relu'], {}),
    'swiglu': (EXACT['silu'], {}),
}


def exact_gate(name):
    if name == 'bilinear':
        return (lambda x: x), (lambda x: mp.mpf(1))
    if name == 'gaussian_glu':
        return (lambda x: mp.exp(-x * x / 2)), (lambda x: -x * mp.exp(-x * x / 2))
    exact, options = EXACT_GATES[name]
    return (lambda x: exact.value(x, **options)), (lambda x: exact.slope(x, **options))


@each
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'float64'])
def test_ulps(name, dtype, request):
    """The limit of a single activation, wherever the gate is a normal number."""
    if dtype == 'float64':
        request.getfixturevalue('x64')
    rng, n = np.random.default_rng(1), 400
    wide = dtype == 'float64'
    span = {'geglu': 36 if wide else 12.5, 'gaussian_glu': 37 if wide else 13}.get(name, 700 if wide else 86)
    b = np.concatenate([rng.uniform(-span, span, n), rng.normal(size=n), 10 ** rng.uniform(-4, 0, n)])
    b = b.astype(jnp.dtype(dtype))
    a = (rng.normal(size=b.size) * 10 ** rng.uniform(-1, 1, b.size)).astype(b.dtype)
    y, pull = jax.vjp(jax.jit(getattr(F, name)), jnp.asarray(a), jnp.asarray(b))
    by_a, by_b = pull(jnp.ones_like(y))
    value, slope = exact_gate(name)
    tiny = float(jnp.finfo(np.promote_types(np.float32, np.float64) if wide else np.float32).tiny)
    with mp.workdps(DIGITS):
        first, second = ([mp.mpf(v) for v in s.astype(np.float64).tolist()] for s in (a, b))
        gate, bend = [value(v) for v in second], [slope(v) for v in second]
        normal = np.array([abs(g) >= tiny and abs(s) >= tiny for g, s in zip(gate, bend, strict=True)])
        for got, exact in (
            (y, [v * g for v, g in zip(first, gate, strict=True)]),
            (by_a, gate),
            (by_b, [v * s for v, s in zip(first, bend, strict=True)]),
        ):
            error = np.where(normal, ulps(got, exact, dtype), 0)
            assert error.max() <= LIMITS[dtype], (error.max(), b[error.argmax()])


@pytest.mark.slow
@every
def test_derivatives_of_every_kind(name, options, x64):
    f = getattr(F, name)
    definition = {
        'glu': lambda a, b: a / (1 + jnp.exp(-b)),
        'geglu': lambda a, b: a * jax.nn.gelu(b, options.get('approximate', False)),
        'reglu': lambda a, b: a * jnp.maximum(b, 0),
        'swiglu': lambda a, b: (a + options.get('offset', 0)) * b / (1 + jnp.exp(-options.get('alpha', 1) * b)),
        'bilinear': lambda a, b: a * b,
        'gaussian_glu': lambda a, b: a * jnp.exp(-(((b - options.get('mean', 0)) / options.get('std', 1)) ** 2) / 2),
    }[name]
    a, b = (jnp.asarray(v) for v in two((2, 3)))
    weight = jnp.asarray(two((2, 3), 1)[0])

    def exact(a, b):
        return (weight * definition(a, b)).sum()

    transforms.check(lambda a, b: (weight * f(a, b, **options)).sum(), exact, a, b)
    joined = jax.jit(jax.grad(lambda x: (weight * f(x, **options)).sum()))(jnp.concatenate([a, b], -1))
    np.testing.assert_allclose(joined, jnp.concatenate(jax.grad(exact, (0, 1))(a, b), -1), 1e-11, 1e-13)


@every
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_saves_its_inputs_and_nothing_else(name, options, dtype):
    f = lambda *arrays: getattr(F, name)(*arrays, **options)
    x = jnp.ones((4, 8), dtype)
    for inputs in ((x,), (x, x + 1)):
        kept = [a for a in jax.tree.leaves(jax.vjp(f, *inputs)[1]) if a.size > 1]
        assert sum(a.nbytes for a in kept) <= sum(i.nbytes for i in inputs)


@each
def test_limit(name):
    f = getattr(F, name)
    a, b = jnp.asarray([-9.0, 3.0, 9.0, jnp.inf, 7.0]), jnp.asarray([2.0, 8.0, -9.0, jnp.inf, 7.0])
    clamped = f(jnp.clip(a, -7, 7), jnp.minimum(b, 7))
    np.testing.assert_array_equal(f(a, b, limit=7.0), clamped)
    np.testing.assert_array_equal(f(jnp.concatenate([b, a]), gate='first', limit=7.0), clamped)
    by_a, by_b = jax.grad(lambda a, b: f(a, b, limit=7.0).sum(), (0, 1))(a, b)
    assert (by_a[jnp.abs(a) >= 7] == 0).all()
    assert (by_b[b >= 7] == 0).all()
    assert jnp.isfinite(by_a).all()
    assert jnp.isfinite(by_b).all()
    assert jnp.isnan(f(jnp.asarray([jnp.nan]), jnp.ones(1), limit=7.0)).all()


def test_gpt_oss():
    """Clamped, sharpened and offset, as it is defined there."""
    gate, linear = (jnp.asarray(v * 4, jnp.float32) for v in two((5, 6)))
    low, middle = jnp.minimum(gate, 7), jnp.clip(linear, -7, 7)
    expected = (middle + 1) * low * jax.nn.sigmoid(1.702 * low)
    got = F.swiglu(linear, gate, limit=7.0, alpha=1.702, offset=1.0)
    np.testing.assert_allclose(got, expected, 2e-6, 1e-30)


def test_infinite_gates():
    one = jnp.ones(2)
    far = jnp.asarray([-jnp.inf, jnp.inf])
    limits = {'glu': [0, 1], 'geglu': [0, jnp.inf], 'reglu': [0, jnp.inf], 'swiglu': [0, jnp.inf],
              'bilinear': [-jnp.inf, jnp.inf], 'gaussian_glu': [0, 0]}  # fmt: skip
    for name, expected in limits.items():
        f = getattr(F, name)
        np.testing.assert_array_equal(f(one, far), expected)
        assert jnp.isfinite(jax.grad(lambda b, f=f: f(one, b).sum())(far)).all()
        assert jnp.isnan(f(one, jnp.full(2, jnp.nan))).all()


def test_learned_bell(x64):
    a, b = (jnp.asarray(v) for v in two())
    mean, std = jnp.asarray([-0.5, 0.0, 0.5, 1.0]), jnp.asarray([0.5, 1.0, 2.0, 3.0])
    np.testing.assert_allclose(
        F.gaussian_glu(a, b, mean=mean, std=std), cases.ref.gaussian_glu(*map(np.asarray, (a, b, mean, std))), 1e-13
    )
    got = jax.grad(lambda m, s: F.gaussian_glu(a, b, mean=m, std=s).sum(), (0, 1))(mean, std)
    wanted = jax.grad(lambda m, s: (a * jnp.exp(-(((b - m) / s) ** 2) / 2)).sum(), (0, 1))(mean, std)
    np.testing.assert_allclose(got, wanted, 1e-11)
    with pytest.raises(ValueError, match=r'gaussian_glu: mean must broadcast to the shape of the gate \(3, 4\), got'):
        F.gaussian_glu(a, b, mean=jnp.ones(3))


@each
def test_units(name):
    f, x = getattr(F, name), jnp.asarray([1.0, 2.0, -3.0, 4.0])
    if name in ('reglu', 'bilinear'):
        y = f(x * u.mV, limit=2.0 * u.mV)
        assert y.unit == u.mV**2
        np.testing.assert_array_equal(y.mantissa, f(x, limit=2.0))
        with pytest.raises(TypeError, match=rf'{name}: other must be in mV to match the input'):
            f(x * u.mV, x * u.ms)
    else:
        with pytest.raises(TypeError, match=rf'{name}: x must be dimensionless, got a Quantity in mV; divide it'):
            f(x * u.mV)
    np.testing.assert_array_equal(f(u.Quantity(x)), f(x))


@each
def test_errors(name):
    f, x = getattr(F, name), jnp.ones((3, 4))
    for call, error, words in (
        (lambda: f(x, axis=0), ValueError, r'x must have an even size on axis 0 .* got the shape \(3, 4\); change'),
        (lambda: f(1.0), ValueError, 'x must have an axis to work on, got a single number; pass an array'),
        (lambda: f(x, axis=2), ValueError, r'axis must lie in \[-2, 1\]'),
        (lambda: f(x, axis=(0, 1)), ValueError, 'axis must be one axis'),
        (lambda: f(x, -1), TypeError, 'other must be an array of the shape of x, got int -1; name other arguments'),
        (lambda: f(x, x[:2]), ValueError, r'other must have the shape of x, \(3, 4\), got \(2, 4\); broadcast'),
        (lambda: f(x, gate='middle'), ValueError, "gate must be one of 'last', 'first', got 'middle'; choose"),
        (lambda: f(x, limit=0.0), ValueError, r'limit must be a finite number above 0, got 0.0; choose'),
        (lambda: f(x > 0), TypeError, 'x must hold real numbers, got bool'),
        (lambda: f(x, x > 0), TypeError, 'other must hold real numbers, got bool'),
    ):
        with pytest.raises(error, match=rf'^{name}: {words}[^\n]*\.(\n|$)'):
            call()


def test_errors_of_one():
    x = jnp.ones(4)
    for call, words in (
        (lambda: F.swiglu(x, alpha=0.0), 'swiglu: alpha must be a finite number above 0, got 0.0'),
        (lambda: F.swiglu(x, offset=jnp.inf), 'swiglu: offset must be a finite number, got inf'),
        (lambda: F.gaussian_glu(x, std=-1.0), 'gaussian_glu: std must be a finite number above 0, got -1.0'),
        (lambda: F.gaussian_glu(x, mean=float('nan')), 'gaussian_glu: mean must be a finite number, got nan'),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@each
def test_class_is_the_function(name):
    f, cls = getattr(F, name), getattr(nn, cases.GATES[name])
    x = jnp.asarray(two((4, 6))[0], jnp.float32)
    np.testing.assert_array_equal(cls()(x), f(x))
    np.testing.assert_array_equal(cls(0)(x), f(x, axis=0))
    np.testing.assert_array_equal(cls(dim=0, gate='first', limit=1.0)(x), f(x, axis=0, gate='first', limit=1.0))
    np.testing.assert_array_equal(cls()(x, x + 1), f(x, x + 1))
    with pytest.raises(TypeError, match='dim is another name of axis'):
        cls(dim=0, axis=0)
    with pytest.raises(
        TypeError, match=rf'^{cls.__name__}: mask must be None for a function of single elements, got bool'
    ):
        cls()(x, mask=x > 0)


def test_jit_vmap_scan():
    x = jnp.asarray(two((4, 6))[0], jnp.float32)
    for name in cases.GATES:
        f = getattr(F, name)
        np.testing.assert_allclose(jax.jit(f)(x), f(x), 1e-6)
        np.testing.assert_allclose(jax.vmap(f)(x), f(x), 1e-6)
        np.testing.assert_allclose(jax.lax.map(f, x), f(x), 1e-6)
        assert f(jnp.zeros((0, 4))).shape == (0, 2)
