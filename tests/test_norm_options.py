"""What layer, RMS, group and instance norm can do beside: activations, offsets, casts, parts, segments, sums."""

import copy
import pickle

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transforms

from jaxnorm import functional as F
from jaxnorm import nn

pytestmark = pytest.mark.slow  # many compilations

NORMS = {
    'layer_norm': {},
    'rms_norm': {},
    'group_norm': {'num_groups': 2},
    'instance_norm': {},
}
each = pytest.mark.parametrize('name', NORMS)
BARE = {'use_scale': False, 'use_bias': False}


def norm_of(name):
    kernel = getattr(F, name)
    return lambda x, scale=None, bias=None, **options: kernel(
        x, scale, *(() if name == 'rms_norm' else (bias,)), **NORMS[name], **options
    )


def inputs(dtype='float32', shape=(2, 6, 8)):
    rng = np.random.default_rng(3)
    return tuple(jnp.asarray(rng.normal(m, s, n), dtype) for m, s, n in ((1, 2, shape), (1, 0.2, 8), (0, 0.2, 8)))


def saved(f, *arguments):
    return sum(a.nbytes for a in jax.tree.leaves(jax.vjp(f, *arguments)[1]))


# --- norm followed by an activation ---


@pytest.mark.slow
@pytest.mark.parametrize('name', ['layer_norm', 'group_norm'])  # one that is lean by a rule, and with a reshape
def test_norm_and_activation(name, x64):
    x, scale, bias = inputs('float64')
    norm = norm_of(name)
    apart = lambda *a: F.gelu(norm(*a))
    np.testing.assert_allclose(norm(x, scale, bias, activation=F.gelu), apart(x, scale, bias), 1e-14, 1e-15)
    transforms.check(
        lambda *a: jnp.sin(norm(*a, activation='gelu')).sum(), lambda *a: jnp.sin(apart(*a)).sum(), x, scale, bias
    )


@each
def test_norm_and_activation_save_the_input_and_its_moments(name):
    x, scale, bias = inputs(shape=(16, 64, 8))
    statistics = {'layer_norm': 1024, 'rms_norm': 1024, 'group_norm': 32, 'instance_norm': 128}[name]
    f = lambda *a: norm_of(name)(*a, activation='mish')
    assert saved(f, x, scale, bias) <= x.nbytes + 3 * 4 * statistics + scale.nbytes + bias.nbytes
    assert saved(jax.jit(f), x, scale, bias) <= x.nbytes + 3 * 4 * statistics + scale.nbytes + bias.nbytes


SHAPED = {  # activations that see more than one element at a time
    'softmax': 'softmax',
    'glu': 'glu',
    'crelu': 'crelu',
    'slopes': lambda y: F.prelu(y, jnp.linspace(0.1, 0.5, 8)),
    'along_the_batch': lambda y: jax.nn.softmax(y, 0),
}


@pytest.mark.parametrize('activation', SHAPED.values(), ids=SHAPED)
@pytest.mark.parametrize('name', [*NORMS, 'ghost_batch_norm_fit'])
@pytest.mark.parametrize('where', [None, jnp.arange(6)[:, None, None] < 4], ids=['whole', 'masked'])
def test_an_activation_sees_the_shape_of_the_input(name, activation, where):
    x, *_ = inputs(shape=(6, 4, 8))
    norm = norm_of(name) if name in NORMS else lambda x, **k: F.ghost_batch_norm_fit(x, virtual_batch_size=3, **k)[0]
    follow = F.get(activation) if isinstance(activation, str) else activation
    kept = True if where is None else where
    y, pull = jax.vjp(lambda x: norm(x, where=where, activation=activation), x)
    expected, pull_apart = jax.vjp(lambda x: jnp.where(kept, follow(norm(x, where=where)), 0), x)
    np.testing.assert_allclose(y, expected, 1e-6, 1e-6)
    np.testing.assert_allclose(*(p(jnp.cos(y))[0] for p in (pull, pull_apart)), 1e-4, 1e-5)


def test_activations_that_do_not_fit():
    x, *_ = inputs()
    with pytest.raises(ValueError, match=r'layer_norm: where must broadcast to what the activation returns.*axis'):
        F.layer_norm(x, activation='glu', where=jnp.ones(x.shape, bool))
    with pytest.raises(TypeError, match=r'group_norm: activation must return one array, got tuple'):
        F.group_norm(x, num_groups=2, activation=lambda y: (y, y))


def test_what_is_masked_out_stays_zero():
    x, scale, bias = inputs()
    mask = jnp.arange(8) < 5
    y = F.layer_norm(jnp.where(mask, x, jnp.nan), scale, bias, where=mask, activation='sigmoid')
    assert (y[..., 5:] == 0).all()
    np.testing.assert_allclose(y[..., :5], F.sigmoid(F.layer_norm(x[..., :5], scale[:5], bias[:5])), 1e-6)
    y = F.layer_norm(jnp.where(mask, x, jnp.nan), scale, bias, where=mask, cast='before')
    assert (y[..., 5:] == 0).all()


@pytest.mark.parametrize('activation', ['relu', jnp.tanh, nn.ReLU(), nn.PReLU()])
def test_classes_with_an_activation(activation):
    x, *_ = inputs()
    follow = F.get(activation) if isinstance(activation, str) else activation
    for with_it, plain in (
        (nn.LayerNorm(8, activation=activation), nn.LayerNorm(8)),
        (nn.RMSNorm(8, activation=activation), nn.RMSNorm(8)),
        (nn.GroupNorm(8, num_groups=4, activation=activation), nn.GroupNorm(8, num_groups=4)),
        (nn.InstanceNorm(8, activation=activation), nn.InstanceNorm(8)),
        (nn.BatchNorm1d(8, activation=activation), nn.BatchNorm1d(8)),
    ):
        for fit in (True, False):
            np.testing.assert_allclose(with_it(x, fit=fit), follow(plain(x, fit=fit)), 1e-6, 1e-7)
        assert 'activation' in repr(with_it) and 'activation' not in repr(plain)
    again = pickle.loads(pickle.dumps(nn.LayerNorm(8, activation='relu')))
    assert (copy.deepcopy(again)(x) >= 0).all()


def test_an_activation_that_learns_is_learned():
    layer = nn.LayerNorm(8, activation=nn.PReLU(8))
    x, *_ = inputs()
    states = layer.states(brainstate.ParamState)
    assert len(states) == 2
    grads = brainstate.transform.grad(lambda: (layer(x) ** 2).sum(), states)()
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    before = layer(x)
    layer.activation.weight.value = jnp.zeros(8)
    assert (layer(x) != before).any()


# --- scale as an offset, order of casts, parts, axes ---


@each
def test_scale_as_an_offset_from_one(name):
    x, scale, bias = inputs()
    norm = norm_of(name)
    np.testing.assert_allclose(norm(x, scale - 1, bias, scale_offset=1.0), norm(x, scale, bias), 3e-6, 1e-6)
    narrow = jnp.asarray([2.0**-9] * 8, jnp.bfloat16)  # 1 + 2**-9 is 1 in bfloat16
    y = norm(x, narrow, scale_offset=1.0)
    np.testing.assert_allclose(y, norm(x) * (1 + 2.0**-9), 1e-6)


def test_layers_with_a_scale_offset():
    x, *_ = inputs()
    layer = nn.RMSNorm(8, scale_offset=1.0)
    assert (layer.scale.value['scale'] == 0).all()
    np.testing.assert_array_equal(layer(x), nn.RMSNorm(8)(x))
    assert (nn.RMSNorm(8, scale_offset=1.0, scale_init=1.0).scale.value['scale'] == 1).all()


def test_the_order_of_casts():
    x, scale, bias = inputs('bfloat16')
    before = F.rms_norm(x, scale, cast='before')
    np.testing.assert_array_equal(before, F.rms_norm(x) * scale)
    after = F.rms_norm(x, scale)
    assert before.dtype == after.dtype == jnp.bfloat16
    assert (before != after).any()
    np.testing.assert_array_equal(F.layer_norm(x, scale, bias, cast='before'), F.layer_norm(x) * scale + bias)
    np.testing.assert_array_equal(nn.RMSNorm(8, scale_init=scale, cast='before')(x), before)
    wide, wide_scale = x.astype(jnp.float32), scale.astype(jnp.float32)
    np.testing.assert_allclose(
        F.rms_norm(wide, wide_scale, cast='before'), F.rms_norm(wide, wide_scale), 3e-7
    )  # nothing is rounded there
    statistics = 12 * x[..., 0].size
    assert saved(lambda v: F.layer_norm(v, scale, bias, cast='before'), x) <= x.nbytes + statistics + 2 * scale.nbytes


def test_partial_rms_norm(x64):
    x, scale, _ = inputs('float64')
    expected = x / jnp.sqrt((x[..., :2] ** 2).mean(-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(F.rms_norm(x, scale, partial=0.25), expected, 1e-13)
    np.testing.assert_allclose(nn.RMSNorm(8, partial=0.25, scale_init=scale)(x), expected, 1e-6)
    transforms.check(
        lambda v, s: jnp.sin(F.rms_norm(v, s, partial=0.25)).sum(),
        lambda v, s: jnp.sin(v / jnp.sqrt((v[..., :2] ** 2).mean(-1, keepdims=True) + 1e-6) * s).sum(),
        x,
        scale,
    )
    mask = jnp.asarray([True, False, *[True] * 6])
    only_first = x / jnp.sqrt(x[..., :1] ** 2 + 1e-6) * mask
    np.testing.assert_allclose(F.rms_norm(jnp.where(mask, x, jnp.nan), partial=0.25, where=mask), only_first, 1e-12)


def test_axes_of_statistics_and_of_parameters():
    x, scale, bias = inputs()
    y = F.layer_norm(x, scale, bias, axis=1, feature_axes=-1)
    np.testing.assert_allclose(y, F.layer_norm(x, axis=1) * scale + bias, 1e-6, 1e-6)
    square = inputs(shape=(2, 8, 8))[0]
    np.testing.assert_allclose(
        F.layer_norm(square, scale, axis=1, feature_axes=2), F.layer_norm(square, axis=1) * scale, 1e-6, 1e-6
    )
    with pytest.raises(ValueError, match=r'layer_norm: scale must have the shape \(6,\), got \(8,\); '):
        F.layer_norm(x, scale, axis=-1, feature_axes=1)
    with pytest.raises(ValueError, match='layer_norm: feature_axes must lie in'):
        F.layer_norm(x, scale, feature_axes=3)


def test_groups_by_their_size():
    x, scale, bias = inputs()
    np.testing.assert_array_equal(
        F.group_norm(x, scale, bias, group_size=2), F.group_norm(x, scale, bias, num_groups=4)
    )
    np.testing.assert_array_equal(F.group_norm(x, group_size=1), F.instance_norm(x))


# --- segments of packed sequences ---


PLACES = jnp.asarray(np.sort(np.random.default_rng(1).integers(0, 5, (3, 150)), 1)[:, :, None])
IDS = jnp.asarray([[0, 0, 0, 1, 1, -1], [2, 0, 0, 0, 0, 0]])[:, :, None]


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('instance_norm', {}),
        ('group_norm', {'num_groups': 2}),
        ('layer_norm', {'axis': (1, 2)}),
        ('layer_norm', {'axis': 1}),
        ('rms_norm', {'axis': (1, 2)}),
        ('filter_response_norm', {'threshold': jnp.zeros(8), 'learned_epsilon': jnp.full(8, 0.1)}),
        ('filter_response_norm', {}),
        ('global_response_norm', {'scale': jnp.arange(8.0)}),
        ('evonorm_s0', {'v': jnp.linspace(0.5, 1.5, 8), 'num_groups': 2}),
    ],
)
def test_segments_are_normalized_as_if_alone(name, options, x64):
    x, *_ = inputs('float64')
    norm = lambda v, **more: getattr(F, name)(v, **options, **more)

    def alone(v):
        out = jnp.zeros_like(v)
        for row in range(2):
            for segment in range(3):
                (places,) = np.nonzero(np.asarray(IDS)[row, :, 0] == segment)
                if len(places):
                    out = out.at[row, places].set(norm(v[row : row + 1, places])[0])
        return out

    packed = lambda v: norm(v, segment_ids=IDS)
    np.testing.assert_allclose(packed(x.at[0, 5].set(jnp.nan)), alone(x), 1e-12, 1e-13)
    got = jax.jit(jax.grad(lambda v: jnp.sin(packed(v)).sum()))(x.at[0, 5].set(jnp.nan))
    np.testing.assert_allclose(got, jax.jit(jax.grad(lambda v: jnp.sin(alone(v)).sum()))(x), 1e-9, 1e-12)
    assert (got[0, 5] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    'norm',
    [
        lambda v: F.layer_norm(v, axis=(1, 2), segment_ids=PLACES),
        lambda v: F.evonorm_s0(v, jnp.ones(v.shape[-1], v.dtype), num_groups=4, segment_ids=PLACES),
        lambda v: F.instance_norm(v, segment_ids=PLACES),
        lambda v: F.filter_response_norm(v, segment_ids=PLACES),
        lambda v: F.global_response_norm(v, segment_ids=PLACES),
    ],
    ids=['layer_norm', 'evonorm_s0', 'instance_norm', 'filter_response_norm', 'global_response_norm'],
)
def test_segments_of_large_means(norm, x64):
    both = jax.jit(lambda v, g: (lambda y, pull: (y, *pull(g)))(*jax.vjp(norm, v)))
    rng = np.random.default_rng(0)
    for mean in (1e0, 1e2, 1e4, 1e6):
        x, g = (jnp.asarray(rng.normal(m, 1, (*PLACES.shape[:2], 16)), jnp.float32) for m in (mean, 0))
        for got, wanted in zip(both(x, g), both(*(np.asarray(a, np.float64) for a in (x, g))), strict=True):
            assert got.dtype == jnp.float32
            assert np.abs(np.asarray(got, np.float64) - wanted).max() <= 2e-7 * np.abs(wanted).max()


def test_segments_in_layers():
    x = jnp.asarray(np.random.default_rng(0).normal(1e6, 1, (2, 6, 8)), jnp.float32)
    for layer, norm in (
        (nn.InstanceNorm(8, **BARE), F.instance_norm),
        (nn.LayerNorm((6, 8), (0, 1), **BARE), lambda v, **k: F.layer_norm(v, axis=(1, 2), **k)),
        (nn.FilterResponseNorm(8, use_threshold=False, **BARE), F.filter_response_norm),
        (nn.GlobalResponseNorm(8, **BARE), F.global_response_norm),
        (nn.EvoNormS0(8, num_groups=2, **BARE), lambda v, **k: F.evonorm_s0(v, jnp.ones(8), num_groups=2, **k)),
    ):
        np.testing.assert_array_equal(layer(x, segment_ids=IDS), norm(x, segment_ids=IDS))


def test_segments_of_any_numbers():
    x, *_ = inputs(shape=(2, 3, 4, 8))
    # of features alone, where an id parts nothing; over two axes at once; of numbers that are no places
    tokens = jnp.asarray([[0, 1, 2], [3, 90000, 1]])[:, :, None, None]
    np.testing.assert_allclose(F.layer_norm(x, segment_ids=tokens), F.layer_norm(x), 1e-5, 1e-6)
    corners = jnp.asarray([[7, 7, 1, 1], [2, 2, 90000, 3], [5, 5, 90000, 4]])[None, :, :, None]
    y = F.instance_norm(x, segment_ids=corners)
    np.testing.assert_allclose(y[:, 1:, 2:3], F.instance_norm(x[:, 1:, 2:3]), 1e-4, 1e-5)
    np.testing.assert_allclose(y[:, 2:, :2], F.instance_norm(x[:, 2:, :2]), 1e-4, 1e-5)


def test_a_part_of_the_features_in_segments():
    with pytest.raises(ValueError, match=r'rms_norm: segment_ids must be the same along axis 1 where partial'):
        F.rms_norm(jnp.ones((2, 8)), partial=0.5, segment_ids=jnp.arange(8))


def test_segments_over_a_named_axis():
    x, *_ = inputs()
    numbers = jnp.where(IDS == 2, 5, IDS)  # more than a half has places
    halves, ids = x.reshape(2, 2, 3, 8), numbers.reshape(2, 2, 3, 1)
    f = jax.vmap(lambda v, i: F.instance_norm(v, segment_ids=i, axis_name='part'), (1, 1), 1, axis_name='part')
    np.testing.assert_allclose(f(halves, ids).reshape(x.shape), F.instance_norm(x, segment_ids=IDS), 1e-5, 1e-6)


# --- parameters of the call, and sums ---


def test_scale_and_bias_of_the_call():
    x, *_ = inputs()
    scale, bias = jnp.linspace(0.5, 2, 16).reshape(2, 1, 8), jnp.linspace(-1, 1, 16).reshape(2, 1, 8)
    for layer in (
        nn.LayerNorm(8, use_scale=False, use_bias=False),
        nn.InstanceNorm(8, use_scale=False, use_bias=False),
    ):
        np.testing.assert_allclose(layer(x, scale=scale, bias=bias), layer(x) * scale + bias, 1e-5, 1e-6)
    with pytest.raises(ValueError, match='LayerNorm: scale must be None where the layer has one of its own'):
        nn.LayerNorm(8)(x, scale=scale)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['layer_norm', 'rms_norm'])
def test_sum_and_norm(name, x64):
    x, scale, bias = inputs('float64')
    residual = jnp.cos(x)
    parameters = (scale,) if name == 'rms_norm' else (scale, bias)
    both, norm = getattr(F, f'add_{name}'), getattr(F, name)
    y, total = both(x, residual, *parameters)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_allclose(y, norm(x + residual, *parameters), 1e-14)
    transforms.check(
        lambda *a: sum((jnp.sin(v) * w).sum() for v, w in zip(both(*a), (1.0, 2.0), strict=True)),
        lambda x, r, *a: jnp.sin(norm(x + r, *a)).sum() + 2 * jnp.sin(x + r).sum(),
        x, residual, *parameters,
    )  # fmt: skip
    statistics = 2 * 8 * x[..., 0].size
    assert saved(lambda *a: both(*a, *parameters), x, residual) <= x.nbytes + statistics + 2 * scale.nbytes
    y, total = both(x * u.mV, residual * 1e-3 * u.volt, *parameters)
    np.testing.assert_allclose(y, norm(x + residual, *parameters), 1e-13)
    assert total.unit == u.mV
    with pytest.raises(ValueError, match=f'add_{name}: residual must have the shape and dtype of x'):
        both(x, residual[:1])


@pytest.mark.parametrize('name', ['layer_norm', 'rms_norm'])
def test_sum_and_norm_have_the_options_of_the_norm(name):
    x, scale, bias = inputs()
    both, norm = getattr(F, f'add_{name}'), getattr(F, name)
    ids = jnp.asarray([0, 0, 1, 1, 1, -1])[None, :, None]
    for options in (
        {'axis': (1, 2), 'feature_axes': -1, 'scale': scale, 'bias': bias},
        {'axis': 1, 'segment_ids': ids, 'where': ids != 1},
        {'partial': 0.5} if name == 'rms_norm' else {'scale_offset': 1.0, 'scale': scale},
    ):
        np.testing.assert_array_equal(both(x, jnp.zeros_like(x), **options)[0], norm(x, **options))
    over = jax.vmap(lambda a: both(a, a, axis_name='parts')[0], -2, -2, axis_name='parts')
    parts = lambda f, a: f(a.reshape(2, 6, 2, 4)).reshape(a.shape)
    np.testing.assert_allclose(parts(over, x), norm(2 * x), 1e-6, 1e-6)


def test_class_of_sum_and_norm():
    x, *_ = inputs()
    for norm in (nn.LayerNorm(8), nn.RMSNorm(8, activation='relu'), nn.BatchNorm1d(8)):
        layer = pickle.loads(pickle.dumps(nn.AddNorm(norm)))
        y, total = layer(x, x + 1, fit=True)
        np.testing.assert_array_equal(total, x + (x + 1))
        np.testing.assert_array_equal(y, norm(total, fit=True))
    with pytest.raises(ValueError, match='AddNorm: residual must have the shape and dtype of x'):
        layer(x, x[:1], fit=True)
    with pytest.raises(TypeError, match='AddNorm: norm must be a module'):
        nn.AddNorm(F.layer_norm)


@pytest.mark.parametrize(
    ('call', 'error', 'words'),
    [
        (
            lambda x: F.layer_norm(x, activation=3),
            TypeError,
            'layer_norm: activation must be a function of an array or',
        ),
        (lambda x: F.layer_norm(x, activation='rleu'), ValueError, "'relu'"),
        (lambda x: nn.LayerNorm(8, activation=3), TypeError, 'LayerNorm: activation must be a function of an array'),
        (lambda x: F.layer_norm(x, cast='between'), ValueError, "layer_norm: cast must be one of 'after', 'before'"),
        (lambda x: F.layer_norm(x, scale_offset='one'), TypeError, 'layer_norm: scale_offset must be a finite number'),
        (lambda x: F.rms_norm(x, partial=0.0), ValueError, 'rms_norm: partial must be a finite number above 0'),
        (lambda x: F.rms_norm(x, partial=0.01), ValueError, 'rms_norm: partial must leave at least one of the 8'),
        (lambda x: F.rms_norm(x, partial=0.5, axis=(1, 2)), ValueError, 'rms_norm: axis must be one axis'),
        (lambda x: F.layer_norm(x, segment_ids=x), TypeError, 'layer_norm: segment_ids must hold integers'),
        (lambda x: F.layer_norm(x, segment_ids=jnp.ones(5, int)), ValueError, 'layer_norm: segment_ids must broad'),
        (
            lambda x: F.group_norm(x, num_groups=2, group_size=4),
            ValueError,
            'group_norm: num_groups or group_size must',
        ),
        (lambda x: F.group_norm(x, group_size=3), ValueError, 'group_norm: group_size must divide the 8 channels'),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call(inputs()[0])


def test_a_mask_is_a_mask_where_the_cast_comes_before():
    """The slope of the activation is infinite where a bias of 0 meets what is masked out."""
    x, scale, bias = inputs()
    where = jnp.arange(6)[:, None] < 4
    loss = lambda s, b: F.layer_norm(x, s, b, where=where, cast='before', activation=jnp.cbrt).sum()
    sliced = lambda s, b: F.layer_norm(x[:, :4], s, b, cast='before', activation=jnp.cbrt).sum()
    zero = jnp.zeros_like(bias)
    for got, want in zip(*(jax.grad(f, (0, 1))(scale, zero) for f in (loss, sliced)), strict=True):
        np.testing.assert_allclose(got, want, 1e-5)


def test_the_sum_of_a_norm_and_its_mask():
    x, *_ = inputs()
    mask, condition = jnp.arange(6)[:, None] < 4, jnp.ones((2, 3))
    y, _ = nn.AddNorm(nn.AdaLayerNorm(8, 3))(x, x, mask, condition=condition)
    assert (y[:, 4:] == 0).all() and (y[:, :4] != 0).any()
    with pytest.raises(TypeError, match='residual must be in mV to match the input, got s; convert one'):
        nn.AddNorm(nn.LayerNorm(8))(x * u.mV, x * u.second)
