"""Weight norm, weight standardization and spectral norm: kernels, and wrappers of brainstate's layers."""

import copy
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references as ref
import transforms

import jaxnorm
from jaxnorm import functional as F
from jaxnorm import nn
from jaxnorm.functional._reparametrization import leading_vector

pytestmark = pytest.mark.slow  # many compilations

SHAPE = (3, 3, 8, 16)
N = 72  # the fan-in


def weight(mean=0.0, shape=SHAPE, dtype='float32', seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(mean, 1, shape), dtype)


def wide(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def error(got, expected):
    return np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max()


G = weight(1.0, SHAPE[-1:], seed=1)


# ---------------------------------------------------------------------------------------------------------------
# Kernels.
# ---------------------------------------------------------------------------------------------------------------


def plain_weight_norm(v, g):
    return g * v / jnp.sqrt((v * v).sum(tuple(range(v.ndim - 1))))


def plain_standardization(w, gain, scaled=False):
    axes = tuple(range(w.ndim - 1))
    d = w - w.mean(axes)
    y = gain * d / jnp.sqrt((d * d).mean(axes) + 1e-6)
    return y / (w.size / w.shape[-1]) ** 0.5 if scaled else y


def plain_spectral_norm(w, left):
    """With singular vectors that are held constant."""
    matrix = w.reshape(-1, w.shape[-1]).T
    right = jax.lax.stop_gradient(left @ matrix)
    return w / (left @ (matrix @ (right / jnp.linalg.norm(right))))


@pytest.mark.parametrize('mean', [1e0, 1e2, 1e4, 1e6])
def test_value_and_gradient_at_any_mean(mean, x64):
    w, g = weight(mean), weight(shape=SHAPE, seed=3)
    for ours, definition in (
        (F.weight_norm, plain_weight_norm),
        (F.weight_standardization, plain_standardization),
        (lambda w, g: F.weight_standardization(w, g, scaled=True), lambda w, g: plain_standardization(w, g, True)),
    ):
        y, pull = jax.vjp(ours, w, G)
        expected, pull_wide = jax.vjp(definition, w.astype(float), G.astype(float))
        assert y.dtype == jnp.float32
        assert error(y, expected) <= 2e-7
        (dw, dgain), (exact, exact_gain) = pull(g), pull_wide(g.astype(float))
        assert error(dw, exact) <= 2e-7
        assert error(dgain, exact_gain) <= 2 * N**0.5 * 2.0**-24


def test_values():
    w = weight(0.5)
    np.testing.assert_allclose(F.weight_norm(w, G), ref.weight_norm(*wide(w, G)), 1e-6)
    for scaled in (False, True):
        expected = ref.weight_standardization(*wide(w, G), scaled=scaled)
        np.testing.assert_allclose(F.weight_standardization(w, G, scaled=scaled), expected, 1e-5, 1e-6)
    start = weight(shape=(16,), seed=2)
    for steps in (0, 1, 3):
        for got, expected in zip(
            F.spectral_norm(w, start, n_steps=steps), ref.spectral_norm(*wide(w, start), steps), strict=True
        ):
            np.testing.assert_allclose(got, expected, 1e-5, 1e-6)


def test_axes():
    w, start = weight(0.5), weight(shape=(16,), seed=2)
    first = jnp.moveaxis(w, -1, 0)
    np.testing.assert_allclose(jnp.moveaxis(F.weight_norm(first, G, axis=0), 0, -1), F.weight_norm(w, G), 1e-6)
    np.testing.assert_allclose(
        jnp.moveaxis(F.weight_standardization(first, G, axis=0), 0, -1), F.weight_standardization(w, G), 1e-5, 1e-6
    )
    moved = F.spectral_norm(first, start, axis=0)
    for a, b in zip((jnp.moveaxis(moved[0], 0, -1), *moved[1:]), F.spectral_norm(w, start), strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-6)
    np.testing.assert_allclose(F.weight_norm(w, 3.0, axis=None), 3 * w / np.linalg.norm(w.ravel()), 1e-6)
    np.testing.assert_allclose((F.weight_norm(w, 1.0, axis=(2, 3)) ** 2).sum((0, 1)), 1, 1e-6)
    assert F.weight_norm(w, G.reshape(1, 1, 1, 16)).shape == SHAPE  # as brainstate keeps a gain


@pytest.mark.slow
@pytest.mark.parametrize('op', ['weight_norm', 'weight_standardization', 'spectral_norm'])
def test_derivatives_of_every_kind(op, x64):
    w, g, left = (weight(0.3, s, 'float64') for s in ((3, 3, 4), (4,), (4,)))
    left = F.spectral_norm(w, left, n_steps=2)[1]
    ours, definition = {
        'weight_norm': (F.weight_norm, plain_weight_norm),
        'weight_standardization': (F.weight_standardization, plain_standardization),
        'spectral_norm': (
            lambda w, g: F.spectral_norm(w, left, n_steps=0)[0] * g,
            lambda w, g: plain_spectral_norm(w, left) * g,
        ),
    }[op]
    transforms.check(lambda *a: jnp.sin(ours(*a)).sum(), lambda *a: jnp.sin(definition(*a)).sum(), w, g)


def test_derivative_of_the_largest_singular_value(x64):
    w = weight(shape=(6, 5), dtype='float64')
    left = F.spectral_norm(w, weight(shape=(5,), dtype='float64'), n_steps=2000)[1]
    for ours, exact in (
        (lambda w: F.spectral_norm(w, left)[2], lambda w: jnp.linalg.norm(w, 2)),
        (lambda w: jnp.sin(F.spectral_norm(w, left)[0]).sum(), lambda w: jnp.sin(w / jnp.linalg.norm(w, 2)).sum()),
    ):
        np.testing.assert_allclose(jax.grad(ours)(w), jax.grad(exact)(w), 1e-10, 1e-12)


@pytest.mark.parametrize(
    'w',
    [
        np.diag([1.0, 0.999, 0.99] + [0.5] * 61),
        np.kron(np.diag([1.0, 0.0]), np.ones((9, 9))) + np.diag([0.0] * 9 + [8.9] * 9),
        np.random.default_rng(7).normal(size=(300, 200)) * 1e-17,
    ],
    ids=['close', 'blocks', 'random'],
)
def test_leading_vector(w):
    left = leading_vector(jnp.asarray(w, jnp.float32))
    sigma = F.spectral_norm(jnp.asarray(w, jnp.float32), left, n_steps=0)[2]
    np.testing.assert_allclose(sigma, np.linalg.norm(w, 2), 1e-6)


@pytest.mark.parametrize('number', [jnp.nan, jnp.inf])
def test_a_weight_that_is_not_finite_is_not_made_zero(number):
    w, _, sigma = F.spectral_norm(jnp.array([[number, 1.0], [2.0, 3.0]]), jnp.ones(2))
    assert jnp.isnan(w).all() and jnp.isnan(sigma)


@pytest.mark.parametrize('size', [1e17, 1e-17])
def test_extreme_sizes(size):
    w, start = weight(), weight(shape=(16,), seed=2)
    np.testing.assert_allclose(F.weight_norm(w * size, G), F.weight_norm(w, G), 1e-5)
    np.testing.assert_allclose(
        F.weight_standardization(w * size, epsilon=0.0), F.weight_standardization(w, epsilon=0.0), 1e-5, 1e-6
    )
    for a, b in zip(F.spectral_norm(w * size, start), F.spectral_norm(w, start), strict=True):
        np.testing.assert_allclose(a if a.shape else a / size, b, 1e-4, 1e-6)
    slope = jax.grad(lambda w: (F.spectral_norm(w, start)[0] ** 3).sum())
    np.testing.assert_allclose(slope(w * size) * size, slope(w), 1e-3, 1e-4)


def test_zeros_give_zeros_and_finite_gradients():
    w, start = jnp.zeros(SHAPE), weight(shape=(16,), seed=2)
    some = weight().at[..., 3].set(0.0)  # one output of many
    for f in (
        lambda w: F.weight_norm(w, G),
        lambda w: F.weight_standardization(w, G, epsilon=0.0),
        lambda w: F.spectral_norm(w, start)[0],
    ):
        y, pull = jax.vjp(f, w)
        assert (y == 0).all()
        assert jnp.isfinite(pull(jnp.ones_like(y))[0]).all()
        assert (f(some)[..., 3] == 0).all()
        assert jnp.isfinite(pull(f(some))[0]).all()
    np.testing.assert_allclose(F.spectral_norm(w, start)[1], start / jnp.linalg.norm(start), 1e-6)
    layer = nn.SpectralNorm(brainstate.nn.Linear(5, 4, w_init=jnp.zeros))
    layer.layer.weight.value = {'weight': weight(shape=(5, 4)), 'bias': jnp.zeros(4)}
    assert layer.sigma > 0.5  # a layer of zeros is not lost
    assert jnp.isfinite(F.spectral_norm(w, start * 0)[1]).all()
    assert jnp.isfinite(F.spectral_norm(w.at[0].set(jnp.nan), start)[1]).all()  # a vector survives a bad weight


def test_dtypes_and_residuals():
    w, start = weight(), weight(shape=(16,), seed=2)
    narrow = w.astype(jnp.bfloat16)
    assert F.weight_norm(narrow, G).dtype == F.weight_standardization(narrow).dtype == jnp.bfloat16
    assert [a.dtype for a in F.spectral_norm(narrow, start)] == [jnp.bfloat16, jnp.float32, jnp.float32]
    np.testing.assert_allclose(
        np.asarray(F.weight_norm(narrow, G), np.float64), ref.weight_norm(*wide(narrow, G)), 1.01 * 2.0**-8, 1e-6
    )
    for f in (
        lambda w: F.weight_norm(w, G),
        lambda w: F.weight_standardization(w, G),
        lambda w: F.spectral_norm(w, start)[0],
    ):
        saved = sum(a.nbytes for a in jax.tree.leaves(jax.vjp(f, w)[1]))
        assert saved <= w.nbytes + 4 * (16 + N) + 4 * 3 * 16


def test_units():
    w, start = weight(), weight(shape=(16,), seed=2)
    y = F.weight_norm(w * u.mS, G * u.mS)
    assert y.unit == u.mS
    np.testing.assert_array_equal(y.mantissa, F.weight_norm(w, G))
    np.testing.assert_array_equal(F.weight_standardization(w * u.mS), F.weight_standardization(w))
    normalized, left, sigma = F.spectral_norm(w * u.mS, start)
    assert (isinstance(normalized, jax.Array), isinstance(left, jax.Array), sigma.unit) == (True, True, u.mS)
    layer = nn.WeightNorm(brainstate.nn.Linear(3, 4, w_init=jnp.ones((3, 4)) * u.mS, b_init=None))
    assert layer.effective_weight.unit == u.mS


def test_as_in_torch():
    torch = pytest.importorskip('torch')
    parametrizations = torch.nn.utils.parametrizations
    w, x = weight(shape=(5, 7)), weight(shape=(2, 5), seed=1)
    theirs = torch.nn.Linear(5, 7, bias=False)
    theirs.weight.data = torch.tensor(np.asarray(w.T))
    theirs = parametrizations.spectral_norm(theirs)
    inner = theirs.parametrizations.weight[0]
    left = jnp.asarray(inner._u.numpy())
    inner._v = torch.tensor(np.asarray(F.weight_norm((w @ left)[:, None], 1.0, axis=-1)[:, 0]))
    expected = theirs(torch.tensor(np.asarray(x))).detach().numpy()  # one step, then the call
    normalized, left, _ = F.spectral_norm(w, left)
    np.testing.assert_allclose(x @ normalized, expected, 1e-4, 1e-5)
    np.testing.assert_allclose(left, inner._u.numpy(), 1e-4, 1e-5)
    theirs.eval()
    np.testing.assert_allclose(
        x @ F.spectral_norm(w, left, n_steps=0)[0], theirs(torch.tensor(np.asarray(x))).detach().numpy(), 1e-4, 1e-5
    )
    v = torch.tensor(np.asarray(w.T), requires_grad=True)
    g = torch.tensor(np.asarray(weight(1.0, (7, 1), seed=2)), requires_grad=True)
    torch._weight_norm(v, g, 0).pow(3).sum().backward()
    slopes = jax.grad(lambda v, g: (F.weight_norm(v, g) ** 3).sum(), (0, 1))(w, weight(1.0, (7,), seed=2))
    np.testing.assert_allclose(slopes[0].T, v.grad.numpy(), 1e-4, 1e-5)
    np.testing.assert_allclose(slopes[1], g.grad.numpy()[:, 0], 1e-4, 1e-5)


# ---------------------------------------------------------------------------------------------------------------
# Wrappers.
# ---------------------------------------------------------------------------------------------------------------

IMAGE = weight(shape=(2, 4, 4, 3))
LAYERS = {
    'Linear': (lambda: brainstate.nn.Linear(3, 4), IMAGE, {}),
    'Conv1d': (lambda: brainstate.nn.Conv1d((4, 3), 5, 3), IMAGE[0], {}),
    'Conv2d': (lambda: brainstate.nn.Conv2d((4, 4, 3), 5, 3, b_init=jnp.ones), IMAGE, {}),
    'Conv3d': (lambda: brainstate.nn.Conv3d((2, 4, 4, 3), 2, 1), IMAGE, {}),
    'ConvTranspose2d': (lambda: brainstate.nn.ConvTranspose2d((4, 4, 3), 5, 3), IMAGE, {'axis': -2}),
    'Embedding': (lambda: brainstate.nn.Embedding(5, 3), jnp.arange(4), {'axis': 0}),
    'SignedWLinear': (lambda: brainstate.nn.SignedWLinear(3, 4), IMAGE, {}),
    'LoRA': (lambda: brainstate.nn.LoRA(3, 2, 4), IMAGE, {'weight_name': 'weight.lora_a'}),
    'GRUCell': (lambda: brainstate.nn.GRUCell(3, 4), IMAGE[:, 0, 0], {'weight_name': 'Wh.weight'}),
    'Sequential': (
        lambda: brainstate.nn.Sequential(brainstate.nn.Linear(3, 4), brainstate.nn.ReLU()),
        IMAGE,
        {'weight_name': 'layers.0.weight.weight'},
    ),
}
WRAPPERS = {
    'WeightNorm': nn.WeightNorm,
    'WeightStandardization': nn.WeightStandardization,
    'SpectralNorm': nn.SpectralNorm,
}


#: those that the other wrappers are tried with; the mechanism is one
MORE = ('Conv1d', 'SignedWLinear')


def shapes(module, kind=brainstate.ParamState):
    return {path: jax.tree.map(jnp.shape, state.value) for path, state in module.states(kind).items()}


def fresh(layer, name, x):
    """The output of a layer; a recurrent one starts anew."""
    if name == 'GRUCell':
        brainstate.nn.init_all_states(layer, batch_size=2)
    return layer(x, fit=False) if hasattr(layer, 'merge') else layer(x)


@pytest.mark.parametrize(
    ('wrapper', 'name'),
    [*(('WeightNorm', n) for n in LAYERS if n not in MORE), *((w, n) for w in list(WRAPPERS)[1:] for n in MORE)],
)
def test_wraps_any_layer(wrapper, name):
    make, x, options = LAYERS[name]
    plain = make()
    before = fresh(plain, name, x)
    layer = WRAPPERS[wrapper](copy.deepcopy(plain), **options)
    y = fresh(layer, name, x)
    if wrapper == 'WeightNorm':
        np.testing.assert_allclose(y, before, 1e-5, 1e-6)
    assert y.shape == before.shape
    assert (layer.in_size, layer.out_size) == (plain.in_size, plain.out_size)
    merged = layer.merge()
    assert type(merged) is type(plain)
    assert shapes(merged) == shapes(plain)
    np.testing.assert_array_equal(fresh(merged, name, x), y)
    copies = [copy.deepcopy(layer)]
    if name != 'Embedding':  # which holds a local function, that nothing pickles
        copies.append(pickle.loads(pickle.dumps(layer)))
    for other in copies:
        np.testing.assert_array_equal(fresh(other, name, x), y)
        assert shapes(other, brainstate.State) == shapes(layer, brainstate.State)
    assert wrapper in repr(layer)


def test_what_is_learned():
    layer = nn.WeightNorm(brainstate.nn.Linear(3, 4))
    assert shapes(layer) == {('layer', 'weight'): {'bias': (4,), 'weight_g': (4,), 'weight_v': (3, 4)}}
    embedding = nn.WeightNorm(brainstate.nn.Embedding(5, 3), axis=0)
    assert shapes(embedding) == {('layer', 'weight'): {'weight_g': (5,), 'weight_v': (5, 3)}}
    whole = nn.WeightNorm(brainstate.nn.Linear(3, 4), axis=None)
    assert shapes(whole) == {('layer', 'weight'): {'bias': (4,), 'weight_g': (), 'weight_v': (3, 4)}}
    layer = nn.SpectralNorm(brainstate.nn.Linear(3, 4))
    assert shapes(layer) == {('layer', 'weight'): {'bias': (4,), 'weight': (3, 4)}}
    assert shapes(layer, brainstate.BatchState) == {('u',): (4,)}
    # two weights of one state, one within the other
    both = nn.WeightNorm(
        nn.WeightNorm(brainstate.nn.LoRA(3, 2, 4), weight_name='weight.lora_a'), weight_name='layer.weight.lora_b'
    )
    (entries,) = shapes(both).values()
    assert sorted(entries) == ['lora_a_g', 'lora_a_v', 'lora_b_g', 'lora_b_v']
    np.testing.assert_allclose(both(IMAGE), both.layer.merge() and both.merge()(IMAGE), 1e-6)


@pytest.mark.parametrize('wrapper', list(WRAPPERS))
def test_gradients_flow_to_what_is_learned(wrapper):
    layer = WRAPPERS[wrapper](brainstate.nn.Conv2d((4, 4, 3), 5, 3, b_init=jnp.ones))
    states = layer.states(brainstate.ParamState)

    def loss():
        return (layer(IMAGE, fit=False) ** 3).sum()

    got = brainstate.transform.grad(loss, states)()[('layer', 'weight')]
    kernel = layer.merge()
    entries = dict(layer.layer.weight.value)

    def exact(parts):
        w = {
            'WeightNorm': lambda: plain_weight_norm(parts['weight_v'], parts['weight_g']),
            'WeightStandardization': lambda: plain_standardization(parts['weight'], 1.0),
            'SpectralNorm': lambda: plain_spectral_norm(parts['weight'], layer.u.value),
        }[wrapper]()
        kernel.weight.value = {'weight': w, 'bias': parts['bias']}
        return (kernel(IMAGE) ** 3).sum()

    expected = brainstate.transform.grad(lambda: exact(held.value), held := brainstate.ParamState(entries))()
    assert sorted(got) == sorted(expected)
    for key in got:
        np.testing.assert_allclose(got[key], expected[key], 1e-4, 1e-4 * float(jnp.abs(expected[key]).max()))


@pytest.mark.parametrize('wrapper', list(WRAPPERS))
def test_transformations(wrapper):
    layer, x = WRAPPERS[wrapper](brainstate.nn.Linear(3, 4)), IMAGE[0, 0]
    y = layer(x, fit=False)
    np.testing.assert_allclose(jaxnorm.jit(lambda v: layer(v, fit=False))(x), y, 1e-6, 1e-7)
    np.testing.assert_allclose(jax.vmap(lambda v: layer(v, fit=False))(x), y, 1e-5, 1e-6)
    looped = brainstate.transform.for_loop(lambda v: layer(v, fit=False), x)
    np.testing.assert_allclose(looped, y, 1e-5, 1e-6)
    states = layer.states(brainstate.ParamState)

    @jaxnorm.jit
    def step(v):
        grads = brainstate.transform.grad(lambda: (layer(v) ** 2).sum(), states)()
        for path, state in states.items():
            state.value = jax.tree.map(lambda p, g: p - 0.01 * g, state.value, grads[path])

    before = (layer(x, fit=False) ** 2).sum()
    with brainstate.environ.context(fit=True):
        for _ in range(20):
            step(x)
    assert (layer(x, fit=False) ** 2).sum() < before


def test_spectral_norm_is_right_from_the_first_call_and_moves_while_fitting():
    inner = brainstate.nn.Conv2d((4, 4, 16), 32, 3)
    layer, x = nn.SpectralNorm(inner), jnp.ones((1, 4, 4, 16))
    matrix = lambda: np.asarray(inner.weight.value['weight'], np.float64).reshape(-1, 32)
    largest = lambda: np.linalg.svd(matrix(), compute_uv=False)[0]
    np.testing.assert_allclose(layer.sigma, largest(), 1e-6)
    inner.weight.value = {'weight': weight(shape=(3, 3, 16, 32), seed=5)}
    start = layer.u.value
    layer(x, fit=False)
    with brainstate.environ.context(fit=True):
        layer.frozen = True
        layer(x)
        assert (layer.u.value == start).all()
        layer.frozen = False
        y = layer(x)
    assert not (layer.u.value == start).all()
    np.testing.assert_allclose(layer(x, fit=False), y, 1e-5, 1e-5)  # what was just fitted evaluates the same
    fit = jaxnorm.jit(lambda: layer(x, fit=True))
    for _ in range(300):
        fit()
    np.testing.assert_allclose(layer.sigma, largest(), 1e-4)
    rest, layer.frozen = layer.u.value, True
    with brainstate.environ.context(fit=True):
        apply = jaxnorm.jit(layer)
        inner.weight.value = {'weight': weight(shape=(3, 3, 16, 32), seed=6)}
        apply(x)
        assert (layer.u.value == rest).all()
        layer.frozen = False
        apply(x)  # a jitted call learns of it
        assert not (layer.u.value == rest).all()
    with pytest.raises(ValueError, match='SpectralNorm: fit must say whether'):
        layer(x)
    rest = layer.u.value
    with pytest.raises(ValueError, match='expected input shape'):
        layer(jnp.ones((1, 5, 5, 16)), fit=True)
    assert (layer.u.value == rest).all()  # a call that fails moves nothing
    assert isinstance(inner.weight, brainstate.ParamState)
    inner.weight.value = {'weight': jnp.full((3, 3, 16, 32), jnp.nan)}
    layer(x, fit=True)
    np.testing.assert_allclose(layer.u.value, rest, 1e-6)


def test_as_brainstates_scaled_layers():
    theirs = brainstate.nn.ScaledWSConv2d((4, 4, 3), 5, 3)
    ours = nn.WeightStandardization(brainstate.nn.Conv2d((4, 4, 3), 5, 3), scaled=True, use_gain=True, epsilon=0.0)
    assert shapes(ours)[('layer', 'weight')] == shapes(theirs)[('weight',)]
    ours.layer.weight.value = {**theirs.weight.value, 'gain': theirs.weight.value['gain'] * 1.5}
    theirs.weight.value = ours.layer.weight.value
    np.testing.assert_allclose(ours(IMAGE), theirs(IMAGE), 1e-4, 1e-5)
    merged = ours.merge()
    assert sorted(merged.weight.value) == ['weight']
    np.testing.assert_allclose(merged(IMAGE), theirs(IMAGE), 1e-4, 1e-5)


class Nested(brainstate.nn.Module):
    """A layer that is transformed inside another one."""

    def __init__(self, transform):
        super().__init__()
        self.linear = brainstate.nn.Linear(4, 3)
        self.go = transform(lambda x: self.linear(x))

    def update(self, x):
        return self.go(x)


@pytest.mark.parametrize('wrapper', [nn.WeightNorm, nn.SpectralNorm, nn.WeightStandardization])
@pytest.mark.parametrize('transform', [brainstate.transform.jit, jaxnorm.checkpoint], ids=['jit', 'checkpoint'])
def test_what_is_transformed_inside_sees_the_weight_of_now(wrapper, transform):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    model = wrapper(Nested(transform), weight_name='linear.weight')
    state = model.layer.linear.weight
    with brainstate.environ.context(fit=False):
        first = model(x)
        state.value = {n: v + 0.3 * v**2 if v.ndim == 2 else v for n, v in state.value.items()}
        expected = x @ model.effective_weight + state.value['bias']
        np.testing.assert_allclose(model(x), expected, 1e-4, 1e-5)
        assert not np.allclose(first, expected, 1e-3)
        np.testing.assert_allclose(jaxnorm.jit(lambda x: model(x))(x), expected, 1e-4, 1e-5)
        loss = lambda: (model(x) ** 2).sum()
        gradients = brainstate.transform.grad(loss, model.states(brainstate.ParamState))()
        assert all((jnp.abs(g) > 0).any() for g in jax.tree.leaves(gradients))


def test_a_wrapper_is_called_by_threads():
    class Slow(brainstate.nn.Linear):
        def update(self, x):
            time.sleep(0.02)
            return super().update(x)

    model, x = nn.WeightNorm(Slow(4, 3)), jnp.ones((2, 4))
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(model, [x] * 6))
    np.testing.assert_array_equal(results, [model(x)] * 6)
    assert sorted(model.layer.weight.value) == ['bias', 'weight_g', 'weight_v']


def test_the_phase_of_the_call_reaches_what_is_wrapped():
    class Block(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = brainstate.nn.Linear(4, 3), nn.BatchNorm0d(3)

        def update(self, x, fit=None):
            return self.norm(self.linear(x), fit=fit)

    block, x = Block(), jnp.arange(8.0).reshape(2, 4)
    for model in (
        nn.WeightNorm(block, weight_name='linear.weight'),
        nn.SpectralNorm(Block(), weight_name='linear.weight'),
    ):
        norm = model.layer.norm
        with brainstate.environ.context(fit=True):
            model(x, fit=False)
        assert (norm.running_mean.value == 0).all()
        model(x, fit=True)
        assert (norm.running_mean.value != 0).any()


class Tied(brainstate.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = self.again = brainstate.nn.Linear(4, 4)
        self.tied = self.linear.weight


class Ones(brainstate.nn.init.Initializer):
    def __call__(self, shape, **options):
        return jnp.ones(shape)


def test_pickled_layers_share_what_they_shared():
    model = pickle.loads(pickle.dumps(nn.SpectralNorm(Tied(), weight_name='linear.weight')))
    assert model.layer.linear is model.layer.again
    assert model.layer.tied is model.layer.linear.weight
    layer = nn.WeightNorm(brainstate.nn.Conv2d((4, 4, 2), 3, 3, w_init=Ones()))
    assert isinstance(pickle.loads(pickle.dumps(layer)).layer.w_initializer, Ones)


def test_inside_a_model():
    model = brainstate.nn.Sequential(
        nn.WeightNorm(brainstate.nn.Linear(3, 8)), nn.ReLU(), nn.SpectralNorm(brainstate.nn.Linear(8, 2))
    )
    with brainstate.environ.context(fit=True):
        assert jaxnorm.jit(model)(IMAGE).shape == (2, 4, 4, 2)
    assert model.out_size == (2,)


W = weight()
ERRORS = [
    (lambda: F.spectral_norm(G, jnp.ones(16)), r'spectral_norm: w must have at least two axes, got the shape \(16,\)'),
    (lambda: F.spectral_norm(W, jnp.ones(3)), r'spectral_norm: u must have the shape \(16,\)'),
    (lambda: F.spectral_norm(W, G, n_steps=-1), 'spectral_norm: n_steps must be at least 0, got -1'),
    (lambda: F.spectral_norm(W, G, axis=4), 'spectral_norm: axis must lie in'),
    (lambda: F.weight_norm(G, G), 'weight_norm: v must have an axis beside the output axis -1'),
    (lambda: F.weight_norm(W, jnp.ones(3)), r'weight_norm: g must have the shape \(16,\)'),
    (lambda: F.weight_norm(W, None), 'weight_norm: g must be an array, got None'),
    (lambda: F.weight_standardization(W, epsilon=-1.0), 'weight_standardization: epsilon must be a finite number'),
    (lambda: F.weight_standardization(W, scaled=1), 'weight_standardization: scaled must be True or False'),
    (lambda: nn.SpectralNorm(brainstate.nn.OneToOne(3)), 'spectral_norm: w must have at least two axes'),
    (lambda: nn.SpectralNorm(brainstate.nn.Linear(3, 4), n_steps=0), 'SpectralNorm: n_steps must be at least 1'),
    (lambda: nn.WeightNorm(brainstate.nn.LoRA(3, 2, 4)), "WeightNorm: .* got 'weight'; choose from 'weight.lora_a'"),
    (lambda: nn.WeightNorm(nn.ReLU()), 'WeightNorm: weight_name must name a weight of ReLU'),
    (lambda: nn.WeightNorm(jnp.ones(3)), 'WeightNorm: layer must be a module, got float32'),
    (lambda: nn.WeightNorm(brainstate.nn.Linear(3, 4), axis=2), 'weight_norm: axis must lie in'),
    (
        lambda: nn.WeightStandardization(brainstate.nn.ScaledWSLinear(3, 4)),
        "WeightStandardization: layer must not have a 'gain' already",
    ),
]


@pytest.mark.parametrize(('call', 'words'), ERRORS, ids=[w[:48] for _, w in ERRORS])
def test_errors_are_sentences(call, words):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        call()
    assert str(caught.value).endswith('.')
    assert '; ' in str(caught.value)


def test_a_refused_layer_is_left_as_it_was():
    layer = brainstate.nn.Linear(3, 4)
    state = layer.weight
    with pytest.raises(ValueError):
        nn.WeightNorm(layer, axis=5)
    assert layer.weight is state
