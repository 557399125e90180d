"""Modules: construction, states, phases, jit, brainstate's transformations, pickling, errors."""

import copy
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor

import brainstate
import brainunit as u
import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm import functional as F
from jaxnorm import nn
from jaxnorm.nn._base import Normalization

NORMS = {
    'BatchNorm0d': (nn.BatchNorm0d((10,)), (32, 10)),
    'BatchNorm1d': (nn.BatchNorm1d(num_features=10), (32, 10)),
    'BatchNorm2d': (nn.BatchNorm2d((4, 5, 6)), (3, 4, 5, 6)),
    'BatchNorm2d first': (nn.BatchNorm2d((6, 4, 5), feature_axis=0), (3, 6, 4, 5)),
    'BatchNorm3d': (nn.BatchNorm3d(6), (3, 2, 4, 5, 6)),
    'LayerNorm': (nn.LayerNorm((10,)), (2, 3, 10)),
    'LayerNorm torch': (nn.LayerNorm(normalized_shape=(10,)), (10,)),
    'RMSNorm': (nn.RMSNorm(10), (4, 10)),
    'GroupNorm': (nn.GroupNorm(num_groups=4, num_channels=16), (2, 8, 8, 16)),
    'GroupNorm size': (nn.GroupNorm((8, 8, 16), num_groups=None, group_size=4), (2, 8, 8, 16)),
    # a shape of one axis is the last one, as in brainstate
    'GroupNorm brainstate': (nn.GroupNorm((16,), 0, 4, reduction_axes=(1, 2, -1)), (4, 8, 8, 16)),
    'InstanceNorm first': (nn.InstanceNorm((16, 8, 8), feature_axis=0), (2, 16, 8, 8)),
}
every = pytest.mark.parametrize('name', list(NORMS))


def batch(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(3, 2, shape), jnp.float32)


@every
def test_norm_is_a_brainstate_module(name):
    layer, shape = copy.deepcopy(NORMS[name][0]), NORMS[name][1]
    x = batch(shape)
    y = layer(x, fit=True)
    assert y.shape == shape
    assert float((y**2).mean()) == pytest.approx(1, abs=1e-3)
    assert layer.in_size == layer.out_size
    assert len(layer.states(brainstate.ParamState)) == 1
    assert type(layer).__name__ in repr(layer)
    assert layer.in_size[-1] >= 1
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        np.testing.assert_array_equal(other(x, fit=False), layer(x, fit=False))
        assert {k: jax.tree.map(jnp.shape, s.value) for k, s in other.states().items()} == {
            k: jax.tree.map(jnp.shape, s.value) for k, s in layer.states().items()
        }


@pytest.mark.parametrize('case', [*cases.ACTIVATIONS, *cases.OVER_AXIS], ids=cases.id_of)
def test_activation_is_a_brainstate_module(case):
    settings = {n: v for n, v in case.arguments.items() if n not in case.inputs}
    more = {n: v for n, v in case.arguments.items() if n in case.inputs}
    layer = case.cls(**settings)
    x = batch((3, 4))
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), case.cls.desc(**settings)()):
        np.testing.assert_array_equal(other(x, **more), layer(x, **more))
    assert case.cls.__name__ in repr(layer)


def test_states_are_those_of_brainstate():
    ours = (nn.BatchNorm2d((4, 5, 6)), nn.LayerNorm((4, 6)), nn.RMSNorm((6,)), nn.GroupNorm((6,), num_groups=3),
            nn.PReLU(6))  # fmt: skip
    theirs = (brainstate.nn.BatchNorm2d((4, 5, 6)), brainstate.nn.LayerNorm((4, 6)), brainstate.nn.RMSNorm((6,)),
              brainstate.nn.GroupNorm((6,), num_groups=3), brainstate.nn.PReLU(6))  # fmt: skip
    for a, b in zip(ours, theirs, strict=True):
        shapes = [{k: jax.tree.map(jnp.shape, s.value) for k, s in m.states().items()} for m in (a, b)]
        assert shapes[0] == shapes[1]


def test_sequential_and_descriptions():
    parts = (brainstate.nn.Linear(10, 8), nn.BatchNorm0d.desc(), nn.ReLU(), nn.LayerNorm.desc(), nn.GELU.desc())
    model = brainstate.nn.Sequential(*parts)
    with brainstate.environ.context(fit=True):
        assert model(batch((4, 10))).shape == (4, 8)
    assert model.out_size == (8,)


def test_running_averages():
    layer, x = nn.BatchNorm0d(10, momentum=0.9), batch((32, 10))
    layer(x, fit=True)
    np.testing.assert_allclose(layer.running_mean.value, 0.1 * x.mean(0), 1e-5)
    np.testing.assert_allclose(layer.running_var.value, 0.9 + 0.1 * x.var(0), 1e-5)
    before = layer.running_mean.value
    np.testing.assert_allclose(layer(x, fit=False), F.batch_norm(x, before, layer.running_var.value), 1e-4, 1e-5)
    assert (layer.running_mean.value == before).all()


@pytest.mark.parametrize('bad', ['nan', 'inf', 'empty', 'masked'])
def test_unsound_batches_leave_running_averages_alone(bad):
    layer, x = nn.BatchNorm0d(10), batch((32, 10))
    layer(x, fit=True)
    before = [layer.running_mean.value, layer.running_var.value]
    if bad == 'masked':
        assert (layer(x, jnp.zeros((32, 1), bool), fit=True) == 0).all()
    else:
        layer({'nan': x.at[3, 4].set(jnp.nan), 'inf': x.at[3, 4].set(jnp.inf), 'empty': x[:0]}[bad], fit=True)
    for state, value in zip((layer.running_mean, layer.running_var), before, strict=True):
        np.testing.assert_array_equal(state.value, value)


def test_statistics_stay_float32_in_narrow_models():
    layer = nn.BatchNorm0d(10)
    y = layer(batch((32, 10)).astype(jnp.bfloat16), fit=True)
    assert y.dtype == jnp.bfloat16
    assert layer.running_mean.value.dtype == jnp.float32


def test_running_averages_carry_the_unit():
    layer, x = nn.BatchNorm0d(10), batch((32, 10))
    layer(x * u.mV, fit=True)
    assert layer.running_mean.value.unit == u.mV
    assert layer.running_var.value.unit == u.mV**2
    assert isinstance(layer(x * u.mV, fit=False), jax.Array)


def test_phase_order():
    layer, x = nn.BatchNorm0d(10), batch((32, 10))
    fitted, evaluated = layer(x, fit=True), None
    with brainstate.environ.context(fit=True):
        evaluated = layer(x, fit=False)  # the argument overrules the context
        np.testing.assert_array_equal(layer(x), fitted)
        layer.frozen = True
        before = layer.running_mean.value
        layer(x)
        assert (layer.running_mean.value == before).all()  # the flag overrules it too
        assert not jnp.array_equal(layer(x, fit=True), layer(x))  # and the argument the flag
    assert not jnp.array_equal(fitted, evaluated)
    layer.frozen = False
    with pytest.raises(
        ValueError, match=r"BatchNorm0d: fit must say .* 'with brainstate.environ.context\(fit=True\):'"
    ):
        layer(x)
    with pytest.raises(TypeError, match='BatchNorm0d: fit must be True or False known before tracing'):
        jax.jit(lambda f: layer(x, fit=f))(True)


def test_without_running_statistics_both_phases_use_the_batch():
    layer, x = nn.BatchNorm0d(10, track_running_stats=False), batch((32, 10))
    np.testing.assert_array_equal(layer(x), layer(x, fit=False))
    np.testing.assert_allclose(layer(x).std(0), 1, 1e-4)


def test_jit_knows_the_phase():
    layer, x, count = nn.BatchNorm0d(10), batch((32, 10)), 0

    @jaxnorm.jit
    def apply(v):
        nonlocal count
        count += 1
        return layer(v)

    results = []
    for fit in (True, False, True, False):
        with brainstate.environ.context(fit=fit):
            before = layer.running_mean.value
            results.append(apply(x))
            assert bool((layer.running_mean.value == before).all()) is not fit
    assert count == 2
    np.testing.assert_array_equal(results[0], results[2])
    assert not jnp.array_equal(results[0], results[1])
    with brainstate.environ.context(fit=False):
        assert 'stablehlo' in apply.lower(x).as_text() or 'hlo' in apply.lower(x).as_text()
    apply.clear_cache()
    with brainstate.environ.context(fit=True):
        apply(x)
    assert count == 3


def test_checkpoint_knows_the_phase():
    layer, x = nn.BatchNorm0d(10), batch((32, 10))
    block = jaxnorm.checkpoint(lambda x: layer(x))
    apply = jaxnorm.jit(lambda x: block(x))
    with brainstate.environ.context(fit=True):
        apply(x)
        gradient = brainstate.transform.grad(lambda: (block(x) ** 2).sum(), layer.states(brainstate.ParamState))
        assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient()))
    before = layer.running_mean.value
    with brainstate.environ.context(fit=False):
        np.testing.assert_allclose(apply(x), layer(x), 1e-5, 1e-5)
    np.testing.assert_array_equal(layer.running_mean.value, before)
    with pytest.raises(TypeError, match=r'checkpoint: fun must be callable, got int'):
        jaxnorm.checkpoint(3)


def test_a_jitted_function_that_calls_itself_or_is_called_by_threads():
    layer, x = nn.BatchNorm0d(10), batch((32, 10))

    @jaxnorm.jit(static_argnums=1)
    def apply(x, n):
        return layer(x) if n == 0 else apply(x, n - 1)

    with brainstate.environ.context(fit=False):
        np.testing.assert_allclose(apply(x, 2), layer(x), 1e-6, 1e-6)
    fresh = jaxnorm.jit(lambda x: layer(x, fit=False))
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(fresh, [x] * 8):
            np.testing.assert_allclose(y, layer(x, fit=False), 1e-6, 1e-6)


def test_jit_takes_all_options_and_methods():
    @jaxnorm.jit(static_argnums=1)
    def power(x, n):
        return x**n

    assert power(jnp.asarray(3.0), 2) == 9

    class Model:
        @jaxnorm.jit(static_argnums=0)
        def double(self, x):
            return 2 * x

    assert Model().double(jnp.asarray(2.0)) == 4
    with pytest.raises(TypeError, match='jit: fun must be callable, got int'):
        jaxnorm.jit(3)


def test_gradients_through_states():
    layer, x = nn.BatchNorm0d(10), batch((32, 10))
    states = layer.states(brainstate.ParamState)
    grads = brainstate.transform.grad(lambda: (layer(x, fit=True) ** 3).sum(), states)()
    assert jax.tree.leaves(grads)[0].shape == (10,)
    assert layer.running_mean.value.shape == (10,)


def test_for_loop_and_shard_map():
    layer, x = nn.BatchNorm0d(10), batch((32, 10))
    y = brainstate.transform.for_loop(lambda v: layer(v, fit=True), x.reshape(4, 8, 10))
    assert y.shape == (4, 8, 10)
    other = nn.BatchNorm0d(10)
    for part in x.reshape(4, 8, 10):
        other(part, fit=True)
    np.testing.assert_allclose(layer.running_var.value, other.running_var.value, 1e-6)
    mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec('data')
    f = jax.shard_map(lambda v: F.batch_norm_fit(v, axis_name='data')[0], mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_allclose(jax.jit(f)(x), F.batch_norm_fit(x)[0], 1e-5, 1e-6)


X = batch((32, 10))
ERRORS = [
    (lambda: nn.BatchNorm0d(10)(X[0], fit=True), 'BatchNorm0d: x must hold more than one value a channel'),
    (lambda: nn.BatchNorm0d(10)(X[:1], fit=True), 'BatchNorm0d: x must hold .* or fit=False'),
    (lambda: F.batch_norm_fit(X[:1]), 'batch_norm_fit: x must hold more than one value a channel'),
    (lambda: F.group_norm(X, num_groups=2, reduction_axes=0), 'group_norm: reduction_axes must hold the channels'),
    (lambda: nn.BatchNorm0d(10, momentum=1.5), 'BatchNorm0d: momentum must be a finite number .* got 1.5'),
    (lambda: nn.BatchNorm0d(10, epsilon=-1), 'BatchNorm0d: epsilon must be a finite number at least 0, got -1.0'),
    (lambda: nn.BatchNorm2d((3, 4)), 'BatchNorm2d: in_size must be the number of channels or a shape of rank 3'),
    (lambda: nn.BatchNorm0d(0), 'BatchNorm0d: in_size must be at least 1, got 0'),
    (lambda: nn.BatchNorm0d(3)(X, fit=True), 'BatchNorm0d: x must have 3 channels on axis -1, got the shape'),
    (lambda: nn.BatchNorm2d(10)(X, fit=True), 'BatchNorm2d: x must have rank 3 or 4, got the shape'),
    (lambda: nn.LayerNorm(), 'LayerNorm: in_size or normalized_shape must be given once, got none'),
    (lambda: nn.LayerNorm(3, normalized_shape=3), 'LayerNorm: in_size or normalized_shape must be given once'),
    (lambda: nn.LayerNorm(4.5), 'LayerNorm: in_size must be an integer, got float 4.5'),
    (lambda: nn.LayerNorm((4, 5))(X), 'LayerNorm: x must end in the shape'),
    (lambda: nn.LayerNorm(4, epsilon='a'), "LayerNorm: epsilon must be a finite number at least 0, got str 'a'"),
    (lambda: nn.LayerNorm(4, reduction_axes=2), 'LayerNorm: reduction_axes must lie in'),
    (lambda: nn.GroupNorm(16, num_groups=3), 'GroupNorm: num_groups must divide the 16 channels, got 3'),
    (lambda: nn.GroupNorm(16, group_size=4), 'GroupNorm: num_groups or group_size must be given'),
    (lambda: nn.LeakyReLU(foo=1), "LeakyReLU: got an unexpected keyword argument 'foo'"),
    (lambda: nn.BatchNorm(4)(X, training=True), 'BatchNorm: the call has no argument training; write fit=True or fit='),
    (lambda: nn.LayerNorm(4)(X, where=True), 'LayerNorm: the call has no argument where; pass what counts as mask'),
    (
        lambda: nn.SplitBatchNorm(4)(X, fitt=True),
        'SplitBatchNorm: the call has no argument fitt; its arguments are x, ',
    ),
    (lambda: nn.AdaLayerNorm(4, 3)(X), 'AdaLayerNorm: the call must have condition, got none; its arguments are x'),
    (lambda: nn.GhostBatchNorm(4), "GhostBatchNorm: missing a required .*argument: 'virtual_batch_size'; its argume"),
    (lambda: nn.BatchNorm(4, dtype='foo'), "BatchNorm: dtype must be a dtype of real numbers, got str 'foo'; pass for"),
    (lambda: nn.LayerNorm(4, dtype=jnp.int32), 'LayerNorm: dtype must be a dtype of real numbers, got '),
    (
        lambda: F.layer_norm(X, activation='foo'),
        "layer_norm: activation must be a function or the name of one, got 'fo",
    ),
    (lambda: F.layer_norm(X, where=[[True], [True, False]]), 'layer_norm: where must hold booleans, got tuple'),
    (lambda: F.layer_norm(X, segment_ids='ab'), "layer_norm: segment_ids must hold integers, got str 'ab'"),
    (lambda: F.layer_norm(X, axis_name=3), 'layer_norm: axis_name must be the name of a mapped axis, or several, got'),
    (lambda: F.layer_norm(X, axis_index_groups=[0, 1]), 'layer_norm: axis_index_groups must name each of the 0 devic'),
    (
        lambda: nn.GroupNorm((4, 4, 8), num_groups=2)(jnp.ones((4, 4, 8)), jnp.ones(3, bool)),
        r'GroupNorm: mask must broadcast to the input shape \(4, 4, 8\), got \(3,\)',
    ),
    (lambda: nn.BatchNorm(10)(X, jnp.ones(10), fit=True), 'BatchNorm: mask must hold booleans, got float32'),
    (lambda: nn.LayerNorm(4, scal_init=1), "LayerNorm: got an unexpected keyword argument 'scal_init'"),
    (lambda: nn.EvoNormS0(32, cast='before'), "EvoNormS0: got an unexpected keyword argument 'cast'"),
    (lambda: nn.ReLU()(X, X > 0), 'ReLU: mask must be None'),
    (lambda: F.relu([1, 2]), 'relu: x must be an array, got list'),
    (lambda: F.relu(X * 1j), 'relu: x must hold real numbers, got complex64'),
    (lambda: F.layer_norm(X > 0), 'layer_norm: x must hold real numbers, got bool'),
    (lambda: F.layer_norm(X, axis=2), r'layer_norm: axis must lie in \[-2, 1\] for an input of rank 2, got 2'),
    (lambda: F.layer_norm(X, axis=(0, 0)), 'layer_norm: axis must name each axis once'),
    (lambda: F.layer_norm(X, jnp.ones(4)), r'layer_norm: scale must have the shape \(10,\) or broadcast'),
    (lambda: F.layer_norm(X, where=jnp.ones((2, 10), bool)), 'layer_norm: where must broadcast to the input shape'),
    (lambda: F.layer_norm(X, where=jnp.ones(10)), 'layer_norm: where must hold booleans'),
    (lambda: F.group_norm(X, num_groups=3), 'group_norm: num_groups must divide the 10 channels, got 3'),
    (lambda: F.group_norm(X), 'group_norm: num_groups or group_size must be given, got None and None; '),
    (lambda: F.instance_norm(X, axis=0), 'instance_norm: axis must not be 0, which is the batch'),
    (lambda: F.batch_norm_fit(X, axis_name='k'), "batch_norm_fit: axis_name must be bound by .* got 'k'"),
    (lambda: F.softmax(X, axis=3), 'softmax: axis must lie in'),
    (lambda: jax.jit(lambda e: F.layer_norm(X, epsilon=e))(1.0), 'layer_norm: epsilon must be .* known before tracing'),
]


@pytest.mark.parametrize(('call', 'words'), ERRORS, ids=[w[:48] for _, w in ERRORS])
def test_errors_are_sentences(call, words):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        call()
    text = str(caught.value)
    assert text.endswith('.')
    assert '; ' in text  # what came; what to do


def test_a_refused_batch_leaves_nothing_half_written():
    layer = nn.BatchNorm0d(10)
    layer(X, fit=True)
    before = layer.running_mean.value
    with pytest.raises(ValueError):
        layer(X[:1], fit=True)
    assert (layer.running_mean.value == before).all()


def test_every_norm_takes_an_activation():
    """Those that are wrappers give it to what they hold: AddNorm and QKNorm, SPADE too where it is given a norm."""
    norms = [c for n, c in vars(nn).items() if isinstance(c, type) and issubclass(c, Normalization)]
    assert len(norms) > 20
    assert [c.__name__ for c in norms if 'activation' not in inspect.signature(c).parameters] == []


def test_initializers_of_others():
    """Of JAX and flax with a key, of haiku with a dtype, of brainstate and numpy with a shape alone."""
    key_first = nn.LayerNorm(
        5, scale_init=jax.nn.initializers.normal(), bias_init=jax.nn.initializers.ones
    ).weight.value
    assert np.unique(key_first['scale']).size == 5
    assert (key_first['bias'] == 1).all()
    after = nn.LayerNorm(5, scale_init=lambda shape, dtype: jnp.full(shape, 2, dtype), bias_init=np.ones).weight.value
    assert (after['scale'] == 2).all() and (after['bias'] == 1).all()
    assert (nn.RMSNorm(5, use_bias=True, bias_init=brainstate.nn.init.Constant(3.0)).scale.value['bias'] == 3).all()


def test_the_mask_holds_after_a_module():
    x, mask = batch((6, 4)), jnp.arange(6)[:, None] < 4
    for layer in (nn.LayerNorm(4, activation=nn.Sigmoid()), nn.GroupNorm(4, num_groups=2, activation=nn.Sigmoid())):
        y = layer(x, mask.tolist())
        assert (y[:4] != 0).all() and (y[4:] == 0).all()


SPLIT = {
    'LayerNorm': lambda **k: nn.LayerNorm(4, reduction_axes=-1, **k),
    'RMSNorm': lambda **k: nn.RMSNorm(4, **k),
    'ScaleNorm': lambda **k: nn.ScaleNorm(4, **k),
    'GroupNorm': lambda **k: nn.GroupNorm(4, num_groups=2, **k),
    'InstanceNorm': lambda **k: nn.InstanceNorm(4, **k),
    'FilterResponseNorm': lambda **k: nn.FilterResponseNorm(4, **k),
}


@pytest.mark.parametrize(
    'name', [n if n in ('LayerNorm', 'GroupNorm') else pytest.param(n, marks=pytest.mark.slow) for n in SPLIT]
)
def test_a_layer_over_a_named_axis_is_the_layer_of_the_whole(name):
    """Features of rows, or positions of images, that lie on two devices."""
    rows = name in ('LayerNorm', 'RMSNorm', 'ScaleNorm')
    x = batch((3, 8) if rows else (3, 6, 4))
    options = {'scale_init': 1.0} if name == 'ScaleNorm' else {}
    whole = SPLIT[name](**options) if not rows else type(SPLIT[name]())(8, **options)
    axis = 1
    parts = jnp.stack(jnp.split(x, 2, axis))
    y = jax.vmap(SPLIT[name](axis_name='parts', **options), axis_name='parts')(parts)
    np.testing.assert_allclose(jnp.concatenate(list(y), axis), whole(x), 1e-5, 1e-6)


def test_group_norm_reduces_what_it_is_told():
    x = batch((2, 3, 5, 4))
    layer = nn.GroupNorm(4, num_groups=2, reduction_axes=(2, 3))
    np.testing.assert_allclose(layer(x)[:, 1], nn.GroupNorm(4, num_groups=2)(x[:, 1]), 1e-5, 1e-6)
