"""Self-gated activations: what the table does not hold. Learned parameters, any sign of them, xielu, bad numbers."""

import copy
import pickle

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import references as ref

from jaxnorm import functional as F
from jaxnorm import nn
from jaxnorm.benchmark._accuracy import LIMITS, of_jax
from jaxnorm.benchmark._exact import DIGITS

inf = float('inf')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_swish_of_one_is_silu(dtype):
    x = np.linspace(-100, 100, 4001).astype(jnp.dtype(dtype))
    for one in (1, 1.0):
        for got, wanted in zip(of_jax(lambda v, one=one: F.swish(v, one))(x), of_jax(F.silu)(x), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_any_sign_of_beta(x64):
    x = jnp.linspace(-6, 6, 25)[:, None]
    alpha, beta = jnp.array([1.0, -2.0, 0.5, 1.5]), jnp.array([1.5, -0.7, 0.0, 1e-12])
    expected = np.asarray(alpha) * x * ref.sigmoid(np.asarray(beta) * np.asarray(x))
    np.testing.assert_allclose(F.adaptive_swish(x + 0 * beta, alpha, beta), expected, 1e-14)
    far = jnp.array([-inf, inf])
    for b, wanted in ((-0.7, [-inf, 0]), (0.0, [-inf, inf]), (0.7, [0, inf])):
        np.testing.assert_array_equal(F.swish(far, jnp.asarray(b)), wanted)


XIELU = [
    (0.8, 0.8, 0.5, -1e-6),
    (0.8, 0.8, 0.5, 0.0),
    (2.5, 0.75, 0.25, -1e-6),
    (0.3, 0.5, 0.5, -1e-6),
    (1.0, 0.9, 0.25, -2.0),
]


def terms_of_xielu(x, alpha_p, alpha_n, beta, eps):
    """The two terms of the value, and of the slope."""
    if x > 0:
        return (alpha_p * x * x, beta * x), (2 * alpha_p * x, beta)
    bent = mp.expm1(x) if x < eps else mp.mpf(-1)
    return (alpha_n * (mp.expm1(min(x, eps)) - x), beta * x), (alpha_n * bent, beta)


@pytest.mark.parametrize('hyper', XIELU)
@pytest.mark.parametrize('dtype', ['float32', 'float64', 'bfloat16', 'float16'])
def test_xielu_to_an_ulp_of_its_larger_term(hyper, dtype):
    """Where its terms cancel depends on the parameters."""
    n, rng = 300, np.random.default_rng(0)
    parts = [rng.uniform(-4, 4, n), rng.uniform(-1.2, 0, n), rng.uniform(-95, 95, n)]
    with jax.enable_x64(dtype == 'float64'), mp.workdps(DIGITS):
        x = np.concatenate([*parts, rng.choice([-1, 1], n) * 10 ** rng.uniform(-9, 1, n)]).astype(jnp.dtype(dtype))
        got = of_jax(lambda v: F.xielu(v, *hyper))(x)
        wide = 'float64' if dtype == 'float64' else 'float32'
        numbers = [mp.mpf(float(np.dtype(wide).type(h))) for h in hyper]
        info = jnp.finfo(dtype)
        for i, g in enumerate(got):
            assert g.dtype == dtype
            error = []
            for at, value in zip(x.astype(np.float64).tolist(), np.asarray(g, np.float64).tolist(), strict=True):
                pair = terms_of_xielu(mp.mpf(at), *numbers)[i]
                largest = max(*map(abs, (*pair, sum(pair))), mp.mpf(float(info.tiny)))
                unit = mp.ldexp(1, mp.frexp(largest)[1] - info.nmant - 1)
                error.append(float(abs(mp.mpf(value) - sum(pair)) / unit))
            assert max(error) <= LIMITS[dtype], f'{max(error):.2f} ulp at {x[int(np.argmax(error))]}'


def test_xielu_far_out():
    value, slope = jax.vmap(jax.value_and_grad(F.xielu))(jnp.array([-inf, inf, jnp.nan, 0.0, -0.0]))
    np.testing.assert_allclose(value, [inf, inf, jnp.nan, -8e-7, -8e-7], 1e-6)
    np.testing.assert_allclose(slope, [-0.3, inf, jnp.nan, -0.3, -0.3], 1e-6)
    for alpha_n, limit in ((0.5, -0.5), (0.25, -inf)):
        assert F.xielu(-inf, 0.8, alpha_n, 0.5) == limit
    assert F.xielu(0.0, eps=0.0) == 0
    x = jnp.array([-200.0, -30.0, -1.0, -0.4, 0.0, 0.3, 50.0])
    curvature = jax.vmap(jax.grad(jax.grad(F.xielu)))(x)
    np.testing.assert_allclose(curvature, jnp.where(x > 0, 1.6, jnp.where(x < 0, 0.8 * jnp.exp(x), 0)), 1e-6, 1e-30)


def test_xielu_by_the_definition(x64):
    x = np.linspace(-5, 5, 41)
    for hyper in XIELU:
        np.testing.assert_allclose(F.xielu(x, *hyper), ref.xielu(x, *hyper), 1e-13, 1e-15)


def test_by_beta_far_out():
    by = jax.vmap(jax.grad(F.swish, 1), (0, None))
    np.testing.assert_array_equal(by(jnp.array([-inf, -3e38, 3e38, inf]), jnp.asarray(1.7)), np.zeros(4))


def test_adaptive_swish_layer():
    layer = nn.AdaptiveSwish(3, alpha=0.2)
    assert {n: v.shape for n, v in layer.weight.value.items()} == {'alpha': (3,), 'beta': (3,)}
    x = jnp.linspace(-3, 3, 12).reshape(4, 3)
    np.testing.assert_array_equal(layer(x), F.adaptive_swish(x, jnp.full(3, 0.2), jnp.ones(3)))
    assert nn.AdaptiveSwish(num_features=3).weight.value['alpha'].shape == (3,)
    assert nn.AdaptiveSwish()(jnp.ones(())).shape == ()


@pytest.mark.parametrize('size', [1, 3])
def test_xielu_layer(size):
    layer = nn.XIELU(size)
    assert {n: v.shape for n, v in layer.weight.value.items()} == {'alpha_p': (size,), 'alpha_n': (size,)}
    np.testing.assert_allclose(layer.weight.value['alpha_p'], np.log(np.expm1(0.8)), 1e-6)
    np.testing.assert_allclose(layer.weight.value['alpha_n'], np.log(np.expm1(0.8 - 0.5)), 1e-6)
    x = jnp.linspace(-3, 3, 12).reshape(4, 3)
    np.testing.assert_allclose(layer(x), F.xielu(x), 1e-5, 1e-7)
    for again in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        np.testing.assert_array_equal(again(x), layer(x))
    assert nn.XIELU(beta=0.25, alpha_n=0.3)(jnp.ones(())).shape == ()


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda x: F.swish(x, 0.0), 'swish: beta must be a finite number above 0, got 0.0; '),
        (lambda x: F.swish(x, -1), 'swish: beta must be a finite number above 0, got -1.0; '),
        (lambda x: F.swish(x, jnp.ones(2)), r'swish: beta must broadcast to the input shape \(3,\), got \(2,\); '),
        (lambda x: F.adaptive_swish(x, inf), 'adaptive_swish: alpha must be a finite number, got inf; '),
        (lambda x: F.xielu(x, eps=0.1), 'xielu: eps must be a finite number at most 0, got 0.1; '),
        (lambda x: nn.XIELU(alpha_n=0.5), 'XIELU: alpha_n must be above 0.5, got '),
        (lambda x: nn.XIELU(alpha_p=-1.0), 'XIELU: alpha_p must be above 0, got '),
    ],
)
def test_bad_numbers(call, words):
    with pytest.raises(ValueError, match=words):
        call(jnp.ones(3))


def test_bad_types():
    with pytest.raises(TypeError, match='swish: beta must be a finite number above 0, got str'):
        F.swish(jnp.ones(3), 'sharp')  # type: ignore[arg-type]
    with pytest.raises(TypeError, match='xielu: eps must be a finite number at most 0 known before tracing'):
        jax.jit(lambda e: F.xielu(jnp.ones(3), eps=e))(-1e-6)
