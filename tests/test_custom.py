"""Activations by name, and activations of one's own."""

import functools
import importlib
import pickle

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm import functional as F

X = jnp.asarray(np.random.default_rng(0).normal(0, 2, (6, 4)), jnp.float32)


@jaxnorm.activation
def bent(x):
    """Half a parabola above zero, a softplus below."""
    return jnp.where(x > 0, x * x / 2, jnp.log1p(jnp.exp(jnp.minimum(x, 0))))


def bent_slope(x):
    return jnp.where(x > 0, x, F.sigmoid(x))


@jaxnorm.activation(learned={'alpha': 0.5, 'beta': 1.0})
def trainable(x, alpha=0.5, beta=1.0):
    return alpha * x * jax.nn.sigmoid(beta * x)


@pytest.mark.parametrize(
    ('name', 'same'),
    [
        ('gelu', 'gelu'),
        ('GELU', 'gelu'),
        ('leaky_relu', 'leaky_relu'),
        ('LeakyReLU', 'leaky_relu'),
        ('log-sigmoid', 'log_sigmoid'),
        ('logistic', 'sigmoid'),
        ('clipped_relu', 'relu6'),
        ('gelu_python', 'gelu'),
    ],
)
def test_names(name, same):
    assert F.get(name) is getattr(F, same)


def test_variants_and_functions_by_name():
    np.testing.assert_array_equal(F.get('gelu_new')(X), F.gelu(X, approximate=True))
    np.testing.assert_array_equal(F.get('gelu_python_tanh')(X), F.gelu(X, approximate=True))
    np.testing.assert_array_equal(F.get('swish')(X), F.silu(X))
    assert F.get(jnp.sin) is jnp.sin
    for alias in importlib.import_module('jaxnorm.functional._get')._ALIASES:
        assert callable(F.get(alias))


@pytest.mark.parametrize(
    ('name', 'words'),
    [('gelo', r"get: name must be .* got 'gelo'; the nearest are .*'gelu'"), ('layer_norm', 'got .layer_norm.')],
)
def test_unknown_names(name, words):
    with pytest.raises(ValueError, match=words):
        F.get(name)
    with pytest.raises(TypeError, match='get: name must be a string or a function, got int 3; pass for example'):
        F.get(3)


def test_a_formula_becomes_a_kernel():
    wide = np.asarray(X, float)
    expected = np.where(wide > 0, wide**2 / 2, np.log1p(np.exp(np.minimum(wide, 0))))
    np.testing.assert_allclose(bent(X), expected, 1e-6)
    for dtype in ('bfloat16', 'float16'):
        narrow = X.astype(dtype)
        assert bent(narrow).dtype == dtype
        np.testing.assert_array_equal(bent(narrow), bent(narrow.astype(float)).astype(dtype))
    assert bent(jnp.arange(3)).dtype == jnp.float32
    np.testing.assert_allclose(jax.grad(lambda x: bent(x).sum())(X), bent_slope(X), 1e-5)
    assert bent.__name__ == 'bent'
    assert 'parabola' in bent.__doc__
    assert repr(bent) == '<activation bent(x)>'
    with pytest.raises(TypeError, match='bent: x must be dimensionless, got a Quantity in mV'):
        bent(X * u.mV)
    with pytest.raises(TypeError, match='bent: x must hold real numbers, got bool'):
        bent(X > 0)


def test_a_derivative_is_checked_and_lean():
    lean = jaxnorm.activation(bent.__wrapped__, bent_slope, name='lean')
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: lean(x).sum()))(X), bent_slope(X), 1e-6)
    saved = [a for a in jax.tree.leaves(jax.vjp(lean, X)[1]) if a.size > 1]
    assert sum(a.nbytes for a in saved) == X.nbytes
    second = jax.vmap(jax.grad(jax.grad(lean)))(X.ravel())
    np.testing.assert_allclose(second, jnp.where(X > 0, 1, F.sigmoid(X) * F.sigmoid(-X)).ravel(), 1e-5)
    wrong = jaxnorm.activation(lambda x: x * x, lambda x: x, name='square')
    for call in (wrong, jax.jit(wrong)):  # seen for the first time while tracing, or not
        with pytest.raises(ValueError, match=r'square: derivative must be .*, got .* gives .*; correct it'):
            call(X)
    constant = jaxnorm.activation(lambda x: 2 * x, lambda x: 2.0)
    assert jax.grad(constant)(3.0) == 2


def test_a_derivative_is_compared_at_its_own_size_and_for_more_than_one_number():
    for scale in (1e-4, 1e-12):
        jaxnorm.activation(lambda x, s=scale: s * (x - jnp.tanh(x)), lambda x, s: s * jnp.tanh(x) ** 2)(X)
        wrong = jaxnorm.activation(lambda x, s=scale: s * x, lambda x, s: 1.1 * s)
        with pytest.raises(ValueError, match='activation: derivative must be that of the formula'):
            wrong(X)
    for k in (1, 1.0):
        wrong = jaxnorm.activation(lambda x, k=k: jnp.sin(k * x), lambda x, k: jnp.cos(k * x))
        for call in (wrong, functools.partial(wrong, k=jnp.float32(1))):
            with pytest.raises(ValueError, match=r'derivative must be .* at x = .* and k = .*, where automatic'):
                call(X)
        right = jaxnorm.activation(lambda x, k=k: jnp.sin(k * x), lambda x, k: k * jnp.cos(k * x))
        assert jax.grad(right)(0.0) == k

    def bounded(x, order=1):
        if order > 1:
            raise ValueError('of another order')
        return x * x

    assert jax.grad(jaxnorm.activation(bounded, lambda x, order: 2 * x))(3.0) == 6


def test_hyperparameters_are_differentiable():
    alpha = jnp.linspace(0.5, 2, 4)
    got = jax.grad(lambda a: trainable(X, a).sum())(alpha)
    np.testing.assert_allclose(got, (X * jax.nn.sigmoid(X)).sum(0), 1e-5)
    with pytest.raises(ValueError, match='trainable: alpha must broadcast to the input shape'):
        trainable(X, jnp.ones(3))


def test_a_unit_goes_through_where_the_formula_is_homogeneous():
    keeping = jaxnorm.activation(lambda x: jnp.where(x > 0, x, x / 4), keeps_unit=True)
    y = keeping(X * u.mV)
    assert y.unit == u.mV
    np.testing.assert_array_equal(y.mantissa, keeping(X))


def test_modules():
    plain = bent.Module()
    np.testing.assert_array_equal(plain(X), bent(X))
    layer = trainable.Module(4, alpha=2.0)
    states = layer.states(brainstate.ParamState)
    (key,) = states
    assert jax.tree.map(jnp.shape, states[key].value) == {'alpha': (4,), 'beta': (4,)}
    np.testing.assert_allclose(layer(X), trainable(X, 2.0, 1.0), 1e-6)
    grads = brainstate.transform.grad(lambda: layer(X).sum(), states)()
    np.testing.assert_allclose(grads[key]['alpha'], (X * jax.nn.sigmoid(X)).sum(0), 1e-5)
    other = pickle.loads(pickle.dumps(layer))
    np.testing.assert_array_equal(other(X), layer(X))
    model = brainstate.nn.Sequential(brainstate.nn.Linear(4, 8), trainable.Module(8), bent.Module())
    assert model(X).shape == (6, 8)
    assert trainable.Module()(jnp.asarray(1.0)).shape == ()


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda: jaxnorm.activation(3), 'activation: formula must be a function of an array, got int 3; pass'),
        (
            lambda: jaxnorm.activation(lambda x, a=1: a * x, learned={'b': 1}),
            "learned must name .* got 'b'; .* has 'a'",
        ),
        (lambda: jaxnorm.activation(lambda x, a=1: a * x, learned=['a']), 'learned must be a dict .* got list'),
        (
            lambda: jaxnorm.activation(lambda: 1),
            'formula must take an array as its first argument, got a function of none',
        ),
        (
            lambda: jaxnorm.activation(jnp.sin, 3, name='wave'),
            'wave: derivative must be a function .* x, got int 3; write',
        ),
        (
            lambda: jaxnorm.activation(lambda x, a=1: a * x, lambda x: 1.0),
            r"derivative must be a function of the arguments of the formula, x, a, got one that is not \(.*'a'\)",
        ),
        (
            lambda: jaxnorm.activation(lambda x: x.sum())(X),
            r'must return an array of the shape of x, \(6, 4\), got \(\)',
        ),
    ],
)
def test_errors_are_sentences(call, words):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        call()
    assert str(caught.value).endswith('.')
