"""Activations over an axis: temperature, masks, limits, derivatives of every kind, what is saved, errors."""

import brainstate
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
from jaxnorm.benchmark._exact import DIGITS

pytestmark = pytest.mark.slow  # many compilations

SOFT = {
    'softmax': jax.nn.softmax,
    'log_softmax': jax.nn.log_softmax,
    'softmin': lambda x, axis=-1: jax.nn.softmax(-x, axis),
}
soft = pytest.mark.parametrize('name', SOFT)


def rows(shape=(3, 5), seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 2, shape))


# --- temperature ---


@pytest.mark.parametrize('name', ['softmax', 'log_softmax'])
@pytest.mark.parametrize('temperature', [0.3, 1.0])
def test_temperature(name, temperature, x64):
    x, weight, f = rows(), rows(seed=1), getattr(F, name)
    np.testing.assert_allclose(f(x, temperature=temperature), SOFT[name](x / temperature), 1e-13)
    transforms.check(
        lambda v: (weight * f(v, temperature=temperature)).sum(),
        lambda v: (weight * SOFT[name](v / temperature)).sum(),
        x,
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['softmax', 'log_softmax'])
def test_learned_temperature(name, x64):
    x, weight, f = rows(), rows(seed=1), getattr(F, name)
    for temperature in (jnp.asarray(0.7), jnp.asarray([[0.5], [1.0], [3.0]])):
        np.testing.assert_allclose(f(x, temperature=temperature), SOFT[name](x / temperature), 1e-13)
    ours = lambda v, t: (weight * f(v, temperature=t)).sum()
    exact = lambda v, t: (weight * SOFT[name](v / t)).sum()
    transforms.check(ours, exact, x, temperature)
    along = jax.grad(lambda t: (rows().T * f(x.T, axis=0, temperature=t)).sum())(jnp.asarray([0.5, 1.0, 3.0]))
    assert along.shape == (3,)


@pytest.mark.parametrize('temperature', [0.37, 2.9, 20.0])
def test_temperature_in_ulps(temperature):
    rng = np.random.default_rng(0)
    z = np.float32(rng.normal(0, 20 * temperature, (4, 32)) + np.array([[0], [1000], [-300], [5]]))
    exact = ([], [])
    with mp.workdps(DIGITS):
        t = mp.mpf(float(np.float32(temperature)))
        for row in z.tolist():
            quotients = [mp.mpf(v) / t for v in row]
            total = mp.fsum(mp.exp(q - max(quotients)) for q in quotients)
            exact[0].extend(mp.exp(q - max(quotients)) / total for q in quotients)
            exact[1].extend(q - max(quotients) - mp.log(total) for q in quotients)
        for f, wanted in zip((F.softmax, F.log_softmax), exact, strict=True):
            for form in (float(t), jnp.float32(temperature)):
                assert (
                    ulps(jax.jit(f, static_argnames=())(z, temperature=form), wanted, 'float32').max()
                    <= LIMITS['float32']
                )


@pytest.mark.parametrize('temperature', [1e-50, 1e-45, jnp.float32(0), jnp.float32(1e-38)], ids=str)
def test_least_temperatures_are_the_limit(temperature):
    x = jnp.asarray([0.0, 8.0])
    for f, expected in ((F.softmax, [0, 1]), (F.log_softmax, [-jnp.inf, 0])):
        np.testing.assert_array_equal(f(x, temperature=temperature), expected)
        assert jnp.isfinite(jax.grad(lambda v, f=f: f(v, temperature=temperature)[1])(x)).all()


def test_greatest_temperatures():
    x = jnp.asarray([0.0, 2.0**126])
    np.testing.assert_allclose(F.softmax(x, temperature=2.0**126), jax.nn.softmax(jnp.arange(2.0)), 1e-6)
    for temperature in (1e38, 1e300, jnp.float32(1e38), jnp.inf * jnp.ones(())):
        np.testing.assert_array_equal(F.softmax(jnp.arange(2.0), temperature=temperature), [0.5, 0.5])
        np.testing.assert_allclose(F.log_softmax(jnp.arange(2.0), temperature=temperature), np.log([0.5, 0.5]), 1e-6)


# --- limits and masks ---


@pytest.mark.parametrize('options', [{}, {'temperature': 0.5}, {'temperature': jnp.float32(2.0)}], ids=str)
def test_limits(options):
    inf, nan = jnp.inf, jnp.nan
    x = jnp.asarray([[0, inf, 3e38], [inf, inf, 1], [-inf, -inf, -inf], [-inf, 2, 2], [nan, 1, 2], [-inf, inf, 0]])
    shares = [[0, 1, 0], [0.5, 0.5, 0], [1 / 3] * 3, [0, 0.5, 0.5], [nan] * 3, [0, 1, 0]]
    np.testing.assert_allclose(F.softmax(x, **options), shares, 1e-6)
    np.testing.assert_allclose(F.softmin(-x, **options), shares, 1e-6)
    with np.errstate(divide='ignore'):
        np.testing.assert_allclose(F.log_softmax(x, **options), np.log(shares), 1e-6)
    for f in (F.softmax, F.log_softmax):
        slope = jax.grad(lambda v, f=f: f(v, **options)[..., 1].sum())(x)
        assert jnp.isfinite(slope[jnp.asarray([0, 1, 2, 3, 5])]).all()


def test_limits_of_the_others():
    inf, nan = jnp.inf, jnp.nan
    x = jnp.asarray([[0, inf, 3e38], [inf, inf, 1], [-inf, -inf, -inf], [-inf, 2, 2], [nan, 1, 2]])
    np.testing.assert_allclose(F.sparsemax(x), [[0, 1, 0], [0.5, 0.5, 0], [1 / 3] * 3, [0, 0.5, 0.5], [nan] * 3], 1e-6)
    np.testing.assert_allclose(F.logsumexp(x, -1), [inf, inf, -inf, 2 + np.log(2), nan], 1e-6)
    for f in (F.sparsemax, F.logsumexp):
        assert jnp.isfinite(jax.grad(lambda v, f=f: f(v, -1).sum())(x)[:4]).all()


@pytest.mark.parametrize('name', [*SOFT, 'sparsemax', 'logsumexp'])
def test_what_is_masked_out_touches_nothing(name, x64):
    f, x = getattr(F, name), rows((4, 6)).at[0, 2].set(jnp.nan).at[1, 0].set(jnp.inf).at[3].set(jnp.nan)
    mask = jnp.isfinite(x).at[2, 3].set(False)
    out = -jnp.inf if name in ('log_softmax', 'logsumexp') else 0.0
    y = f(x, -1, where=mask)
    slope = jax.grad(lambda v: jnp.where(jnp.isfinite(y), f(v, -1, where=mask), 0).sum())(x)
    curved = jax.jacfwd(jax.grad(lambda v: jnp.where(jnp.isfinite(y), f(v, -1, where=mask) ** 2, 0).sum()))(x)
    assert (slope[~mask] == 0).all()
    assert jnp.isfinite(slope).all()
    assert jnp.isfinite(curved).all()
    for i in range(3):
        kept = x[i][mask[i]]
        np.testing.assert_allclose(y[i] if name == 'logsumexp' else y[i][mask[i]], f(kept), 1e-14)
        one = jax.grad(lambda v: f(v).sum())(kept)
        np.testing.assert_allclose(slope[i][mask[i]], one, 1e-12, 1e-13)
    if name == 'logsumexp':
        assert y[3] == out
    else:
        assert (y[~mask] == out).all()


def test_axes_of_a_mask():
    x = rows((2, 3, 4))
    mask = jnp.asarray([True, False, True])[:, None]
    np.testing.assert_allclose(F.softmax(x, (0, 1), where=mask)[:, ::2], jax.nn.softmax(x[:, ::2], (0, 1)), 1e-6)


# --- logsumexp ---


def test_logsumexp(x64):
    x, weight = rows((3, 4, 5)), rows((3, 5), 1)
    for axis in (-1, 0, (0, 2), (0, 1, 2), None):
        np.testing.assert_allclose(F.logsumexp(x, axis), jax.nn.logsumexp(x, axis), 1e-14)
        kept = F.logsumexp(x, axis, keepdims=True)
        np.testing.assert_array_equal(kept, F.logsumexp(x, axis).reshape(kept.shape))
    np.testing.assert_allclose(F.logsumexp(x, (0, 2)), cases.ref.logsumexp(np.asarray(x), (0, 2)), 1e-14)
    transforms.check(lambda v: (weight * F.logsumexp(v, 1)).sum(), lambda v: (weight * jax.nn.logsumexp(v, 1)).sum(), x)
    np.testing.assert_allclose(jax.vmap(jax.grad(lambda v: F.logsumexp(v)))(x[0]), jax.nn.softmax(x[0]), 1e-13)
    np.testing.assert_allclose(F.logsumexp(x), jax.nn.logsumexp(x), 1e-14)  # of all, as there
    np.testing.assert_array_equal(F.logsumexp(2.0), 2.0)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_logsumexp_in_ulps(dtype):
    rng = np.random.default_rng(3)
    z = np.concatenate([rng.normal(0, s, (10, 20)) + c for s, c in ((1, 3), (30, 100), (5, -200), (20, 0))])
    z[-1] = [0, *[-60] * 19]  # the result is as small as the share of the others
    z = z.astype(jnp.dtype(dtype))
    wide = z.astype(np.float64)
    with mp.workdps(DIGITS):
        exact = [mp.log(mp.fsum(mp.exp(mp.mpf(v)) for v in row)) for row in wide.tolist()]
        error = ulps(jax.jit(lambda v: F.logsumexp(v, -1))(z), exact, dtype)
        # an ulp of the larger of the two that are added, where they cancel
        larger = np.abs(wide.max(-1)) > np.abs([float(e) for e in exact])
        error *= np.where(larger, np.abs([float(e) for e in exact]) / np.maximum(np.abs(wide.max(-1)), 1e-30), 1)
    assert error.max() <= LIMITS[dtype]


# --- sparsemax ---


def test_sparsemax_by_definition(x64):
    for seed, scale in enumerate((0.01, 0.3, 1.0, 5.0)):
        x = scale * rows((6, 40), seed)
        y = F.sparsemax(x)
        np.testing.assert_allclose(y, cases.ref.sparsemax(np.asarray(x)), 1e-12, 1e-15)
        np.testing.assert_allclose(y.sum(-1), 1, 1e-14)
    for axis in (0, 1, (0, 2)):
        x = rows((3, 4, 5))
        np.testing.assert_allclose(F.sparsemax(x, axis), cases.ref.sparsemax(np.asarray(x), axis), 1e-12, 1e-15)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_sparsemax_dtypes(dtype):
    x = (0.5 * rows((8, 100), 2) + 3).astype(dtype)
    y = F.sparsemax(x)
    assert y.dtype == dtype
    expected = cases.ref.sparsemax(np.asarray(x, np.float64))
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, 0.6 * float(jnp.finfo(dtype).eps), 2e-7)


def test_sparsemax_derivative(x64):
    x, weight = rows((3, 6)), rows((3, 6), 1)
    f = lambda v: (weight * F.sparsemax(v)).sum()
    support = np.asarray(F.sparsemax(x)) > 0
    assert 3 < support.sum() < 12
    mean = (weight * support).sum(-1, keepdims=True) / support.sum(-1, keepdims=True)
    np.testing.assert_allclose(jax.grad(f)(x), np.where(support, weight - mean, 0), 1e-14, 1e-15)
    transforms.check(f, lambda v: (weight * on_support(v)).sum(), x)


def on_support(x):
    """Sparsemax by its threshold, which JAX can differentiate."""
    ordered = jnp.sort(x, -1, descending=True)
    sums, count = ordered.cumsum(-1), jnp.arange(1, x.shape[-1] + 1)
    size = (1 + count * ordered > sums).sum(-1, keepdims=True)
    threshold = (jnp.take_along_axis(sums, size - 1, -1) - 1) / size
    return jnp.maximum(x - threshold, 0)


# --- gumbel_softmax ---


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_gumbel_softmax(dtype):
    key, x = jax.random.key(3), rows((6, 5)).astype(dtype)
    noisy = np.asarray(x, np.float64) + np.asarray(jax.random.gumbel(key, x.shape, jnp.float32), np.float64)
    y = F.gumbel_softmax(x, key, 0.5)
    assert y.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(y, np.float64), cases.ref.softmax(noisy / 0.5), 2 * float(jnp.finfo(dtype).eps), 1e-7
    )
    hard = F.gumbel_softmax(x, key, 0.5, True)
    np.testing.assert_array_equal(np.asarray(hard, np.float64), np.eye(5)[np.argmax(noisy, -1)])
    first = F.gumbel_softmax(x.T, key, 0.5, True, axis=0)
    assert (first.sum(0) == 1).all()
    weight = rows((6, 5), 1).astype(dtype)
    soft, straight = (
        jax.grad(lambda v, hard=hard: (weight * F.gumbel_softmax(v, key, 0.5, hard)).sum())(x) for hard in (False, True)
    )
    np.testing.assert_array_equal(np.asarray(soft, np.float32), np.asarray(straight, np.float32))
    np.testing.assert_array_equal(F.gumbel_softmax(x, None, 0.5), F.softmax(x, temperature=0.5))
    assert F.gumbel_softmax(x[:, :0], key, 0.5, True).shape == (6, 0)


def test_gumbel_softmax_samples_the_categories():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    draws = F.gumbel_softmax(jnp.broadcast_to(jnp.log(p), (20000, 4)), jax.random.PRNGKey(0), hard=True)
    np.testing.assert_allclose(draws.mean(0), p, atol=5 * 0.5 / np.sqrt(20000))


def test_gumbel_softmax_derivatives(x64):
    key, x, weight = jax.random.key(1), rows(), rows(seed=1)
    noise = jax.random.gumbel(key, x.shape, x.dtype)
    transforms.check(
        lambda v, t: (weight * F.gumbel_softmax(v, key, t)).sum(),
        lambda v, t: (weight * jax.nn.softmax((v + noise) / t)).sum(),
        x,
        jnp.asarray(0.7),
    )


# --- what is saved, dtypes, units, errors, classes ---


def of_rows(x):
    return F.logsumexp(x, -1)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
    'f',
    [
        F.softmin,
        of_rows,
        lambda x: F.softmax(x, temperature=0.5),
        lambda x: F.log_softmax(x, temperature=0.5),
        lambda x: F.gumbel_softmax(x, jax.random.key(0)),
        lambda x: F.gumbel_softmax(x, jax.random.key(0), hard=True),
    ],
)
def test_saves_one_array(f, dtype):
    x = jnp.ones((8, 16), dtype)
    saved = [
        a for a in jax.tree.leaves(jax.vjp(f, x)[1]) if a.size > 2 and not jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    ]
    numbers = 8 * len(x) if f is of_rows else 0  # the greatest and the sum of the others
    assert sum(a.nbytes for a in saved) <= x.nbytes + numbers


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_logsumexp_dtype(dtype):
    assert F.logsumexp(jnp.ones(3, dtype)).dtype == dtype
    assert F.logsumexp(jnp.arange(3)).dtype == jnp.float32
    assert F.logsumexp(jnp.zeros((0, 3)), -1).shape == (0,)
    assert F.logsumexp(jnp.zeros((0, 3))) == -jnp.inf


@pytest.mark.parametrize('name', [*SOFT, 'sparsemax', 'logsumexp', 'gumbel_softmax'])
def test_units(name):
    f = getattr(F, name)
    more = {'key': None} if name == 'gumbel_softmax' else {}
    with pytest.raises(TypeError, match=rf'{name}: x must be dimensionless, got a Quantity in mV; divide it by'):
        f(jnp.ones(3) * u.mV, **more)
    np.testing.assert_array_equal(f(u.Quantity(jnp.arange(3.0)), **more), f(jnp.arange(3.0), **more))


@soft
def test_errors_of_temperature(name):
    f, x = getattr(F, name), jnp.ones((3, 4))
    for temperature in (0.0, -1, float('nan')):
        with pytest.raises(ValueError, match=rf'^{name}: temperature must be a finite number above 0, got .*; choose'):
            f(x, temperature=temperature)
    with pytest.raises(
        ValueError, match=rf'^{name}: temperature must broadcast to \(3, 1\), one number a row, got \(4,\)'
    ):
        f(x, temperature=jnp.ones(4))
    with pytest.raises(TypeError, match=rf'^{name}: temperature must hold real numbers, got bool'):
        f(x, temperature=jnp.ones((3, 1), bool))


def test_other_errors():
    x = jnp.ones((3, 4))
    for call, error, words in (
        (lambda: F.gumbel_softmax(x, 3), TypeError, 'gumbel_softmax: key must be one JAX random key, got int 3'),
        (lambda: F.gumbel_softmax(x), TypeError, 'gumbel_softmax: missing a required argument'),
        (lambda: F.gumbel_softmax(x, None, 0.0), ValueError, 'gumbel_softmax: temperature must be .* above 0, got 0.0'),
        (lambda: F.gumbel_softmax(x, None, hard=1), TypeError, 'gumbel_softmax: hard must be True or False, got int 1'),
        (lambda: F.gumbel_softmax(x, None, axis=(0, 1)), ValueError, 'gumbel_softmax: axis must be one axis'),
        (lambda: F.logsumexp(x, keepdims=1), TypeError, 'logsumexp: keepdims must be True or False, got int 1'),
        (lambda: F.logsumexp(x, 2), ValueError, r'logsumexp: axis must lie in \[-2, 1\]'),
        (lambda: F.softmax(1.0), ValueError, 'softmax: x must have an axis to work on, got a single number; pass'),
        (lambda: F.softmax(x, where='a'), TypeError, "softmax: where must hold booleans, got str 'a'; write"),
        (lambda: F.sparsemax(x, where=x), TypeError, 'sparsemax: where must hold booleans'),
        (lambda: F.softmin(x, where=jnp.ones(3, bool)), ValueError, 'softmin: where must broadcast'),
        (
            lambda: nn.Softmax2d()(x),
            ValueError,
            r'Softmax2d: x must have rank 3 or 4, .* got the shape \(3, 4\); use Softmax',
        ),
    ):
        with pytest.raises(error, match=words):
            call()


def test_softmax2d():
    image = rows((2, 4, 4, 3)).astype(jnp.float32)
    np.testing.assert_array_equal(nn.Softmax2d()(image), F.softmax(image, -1))
    np.testing.assert_array_equal(nn.Softmax2d(dim=1)(image[0]), F.softmax(image[0], 1))


def test_class_gumbel_softmax():
    x = rows().astype(jnp.float32)
    layer = nn.GumbelSoftmax(tau=0.5, dim=0)
    np.testing.assert_array_equal(layer(x, fit=False), F.softmax(x, 0, temperature=0.5))
    brainstate.random.seed(0)
    with brainstate.environ.context(fit=True):
        one, two = layer(x), layer(x)
        hard = nn.GumbelSoftmax(hard=True)(x)
    assert (one != two).any()
    np.testing.assert_allclose(one.sum(0), 1, 1e-6)
    assert ((hard == 0) | (hard == 1)).all()
    with pytest.raises(ValueError, match='GumbelSoftmax: fit must say whether the layer fits or evaluates'):
        layer(x)
