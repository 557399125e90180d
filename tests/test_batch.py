"""Batch norms: running statistics taken and returned, renormalization, ghost and split batches; their modules."""

import contextlib
import copy
import pickle

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

SHAPE = (8, 6, 5)


def inputs(mean=0.0, dtype='float32', shape=SHAPE):
    rng = np.random.default_rng(7)
    x = jnp.asarray(rng.normal(mean, 1, shape), dtype)
    scale, bias = (jnp.asarray(rng.normal(m, 0.2, shape[-1]), dtype) for m in (1, 0))
    running = (
        jnp.asarray(mean + rng.normal(0, 0.5, shape[-1]), dtype),
        jnp.asarray(rng.uniform(0.5, 2, shape[-1]), dtype),
    )
    return x, scale, bias, *running


def wide(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def batch(shape=(32, 10), seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(3, 2, shape), jnp.float32)


#: kernel and definition, of x, scale, bias and running statistics; clips that some of the channels meet
CASES = {
    'update': (
        lambda x, s, b, m, v, w=None, **k: F.batch_norm_update(x, m, v, s, b, fit=True, where=w, **k)[0],
        lambda x, s, b, m, v, w=None: ref.batch_norm_fit(x, s, b, where=w),
    ),
    'renorm': (
        lambda x, s, b, m, v, w=None, **k: F.batch_renorm_fit(x, m, v, s, b, rmax=1.1, dmax=0.4, where=w, **k)[0],
        lambda x, s, b, m, v, w=None: ref.batch_renorm_fit(x, m, v, s, b, 1.1, 0.4, where=w),
    ),
    'ghost': (
        lambda x, s, b, m, v, w=None, **k: F.ghost_batch_norm_fit(x, s, b, virtual_batch_size=4, where=w, **k)[0],
        lambda x, s, b, m, v, w=None: ref.ghost_batch_norm_fit(x, s, b, 4, where=w),
    ),
}
each = pytest.mark.parametrize('name', list(CASES))
#: without those that are batch norm itself, whose derivatives and edges test_norms.py tests
other = pytest.mark.parametrize('name', ['renorm', 'ghost'])


def definition(name, mean, var):
    """The norm in JAX, to be differentiated in float64."""

    def moments(x):
        return x.mean((0, 1)), ((x - x.mean((0, 1))) ** 2).mean((0, 1))

    def plain(x, scale, bias):
        m, v = moments(x)
        return (x - m) / jnp.sqrt(v + 1e-5) * scale + bias

    def renorm(x, scale, bias):
        m, v = moments(x)
        std, running = jnp.sqrt(v + 1e-5), jnp.sqrt(var + 1e-5)
        r, d = jnp.clip(std / running, 1 / 1.1, 1.1), jnp.clip((m - mean) / running, -0.4, 0.4)
        r, d = jax.lax.stop_gradient((r, d))
        return ((x - m) / std * r + d) * scale + bias

    def ghost(x, scale, bias):
        return jnp.concatenate([plain(p, scale, bias) for p in jnp.split(x, len(x) // 4)])

    return {'update': plain, 'renorm': renorm, 'ghost': ghost}[name]


@each
def test_value_and_gradients_at_any_mean(name, x64):
    @jax.jit
    def ours(x, s, b, m, v, g):
        y, pull = jax.vjp(lambda *a: CASES[name][0](*a, m, v), x, s, b)
        return y, *pull(g)

    @jax.jit
    def theirs(x, s, b, m, v, g):
        y, pull = jax.vjp(definition(name, m, v), x, s, b)
        return y, *pull(g)

    g = jnp.asarray(np.random.default_rng(3).normal(size=SHAPE), jnp.float32)
    for mean in (1e0, 1e2, 1e4, 1e6):
        arguments = *inputs(mean), g
        got, expected = ours(*arguments), theirs(*(a.astype(jnp.float64) for a in arguments))
        assert got[0].dtype == jnp.float32
        np.testing.assert_allclose(expected[0], CASES[name][1](*wide(*arguments[:5])), 1e-9, 1e-9)
        for a, e, tolerance in zip(got, expected, (2e-7, 2e-7, 1e-6, 1e-6), strict=True):
            assert np.abs(a - e).max() / np.abs(e).max() <= tolerance, (mean, tolerance)


@pytest.mark.slow
@other
def test_derivatives_of_every_kind(name, x64):
    x, s, b, m, v = inputs(0.5, 'float64', (4, 2, 2)) if name != 'ghost' else inputs(0.5, 'float64', (8, 2, 2))
    transforms.check(
        lambda *a: jnp.sin(CASES[name][0](*a, m, v)).sum(),
        lambda *a: jnp.sin(definition(name, m, v)(*a)).sum(),
        x, s, b,
    )  # fmt: skip


@other
def test_masked_is_sliced_and_nothing_else_is_seen(name):
    x, *rest = inputs(2.0)
    where = jnp.broadcast_to((jnp.arange(SHAPE[1]) < 4)[None, :, None], (*SHAPE[:2], 1))

    @jax.jit
    def both(x, where):
        y, pull = jax.vjp(lambda v: CASES[name][0](v, *rest, where), x)
        return y, pull(y + 1)[0]

    y, dx = both(jnp.where(where, x, jnp.nan), where)
    sliced, dsliced = both(x[:, :4], where[:, :4])
    np.testing.assert_allclose(y[:, :4], sliced, 1e-5, 1e-5)
    np.testing.assert_allclose(dx[:, :4], dsliced, 1e-4, 1e-5)
    np.testing.assert_allclose(y[:, :4], CASES[name][1](*wide(x, *rest), np.asarray(where))[:, :4], 1e-5, 1e-5)
    assert not y[:, 4:].any() and not dx[:, 4:].any()
    y, dx = both(jnp.full_like(x, jnp.nan), jnp.zeros_like(where))
    assert not y.any() and not dx.any()


@other
def test_constant_channels_and_extreme_sizes(name):
    x, s, b, m, v = inputs()

    @jax.jit
    def both(x, *a):
        y, pull = jax.vjp(lambda x: CASES[name][0](x, *a, epsilon=0.0), x)
        return y, pull(jnp.ones_like(y))[0]

    f, df = (lambda *a, i=i: both(*a)[i] for i in (0, 1))
    y = f(jnp.full_like(x, 3.7), s, b, jnp.full_like(m, 3.7), v)
    np.testing.assert_allclose(y, jnp.broadcast_to(b, SHAPE), atol=1e-6)
    assert jnp.isfinite(df(jnp.full_like(x, 3.7), s, b, m, v)).all()
    assert jnp.isfinite(f(x, s, b, m, jnp.zeros_like(v))).all()
    for size in (1e17, 1e-17):
        np.testing.assert_allclose(f(x * size, s, b, m * size, v * size**2), f(x, s, b, m, v), 1e-4, 1e-5)


@each
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_narrow_dtypes_units_and_what_is_saved(name, dtype):
    x, s, b, m, v = inputs(3.0, dtype)
    m, v = m.astype(jnp.float32), v.astype(jnp.float32)
    y = CASES[name][0](x, s, b, m, v)
    assert y.dtype == x.dtype
    tolerance = 1.01 * 2.0**-8 if dtype == 'bfloat16' else 1e-6
    np.testing.assert_allclose(np.asarray(y, np.float64), CASES[name][1](*wide(x, s, b, m, v)), tolerance, 1e-6)
    with_unit = CASES[name][0](x * u.mV, s, b, m * u.mV, v * u.mV**2)
    assert isinstance(with_unit, jax.Array)
    np.testing.assert_array_equal(with_unit, y)
    saved = jax.tree.leaves(jax.vjp(lambda *a: CASES[name][0](*a, m, v), x, s, b)[1])
    channel = 4 * SHAPE[-1]
    assert sum(a.nbytes for a in saved) <= x.nbytes + (2 * 2 + 4) * channel


def test_an_activation_follows_and_nothing_of_it_is_saved():
    x, s, b, m, v = inputs(1.0)
    for name in CASES:
        call = CASES[name][0]
        np.testing.assert_allclose(call(x, s, b, m, v, activation='gelu'), F.gelu(call(x, s, b, m, v)), 1e-6, 1e-6)
        saved = jax.tree.leaves(jax.vjp(lambda x, c=call: c(x, s, b, m, v, activation='gelu'), x)[1])
        assert sum(a.nbytes for a in saved) <= x.nbytes + 10 * 4 * SHAPE[-1]
    np.testing.assert_allclose(
        F.batch_norm(x, m, v, s, b, activation=jax.nn.relu), jax.nn.relu(F.batch_norm(x, m, v, s, b))
    )


# ---------------------------------------------------------------------------------------------------------------
# What each of them is, by what it has to agree with.
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('unbiased', [False, True])
def test_update_moves_running_statistics(unbiased):
    x, s, b, m, v = inputs(2.0)
    y, mean, var = F.batch_norm_update(x, m, v, s, b, fit=True, momentum=0.9, unbiased=unbiased)
    expected = ref.batch_norm_update(*wide(x, m, v, s, b), 0.9, unbiased=unbiased)
    for got, e in zip((y, mean, var), expected, strict=True):
        np.testing.assert_allclose(got, e, 1e-5, 1e-5)
    y, mean, var = F.batch_norm_update(x, m, v, s, b, fit=False)
    np.testing.assert_array_equal(y, F.batch_norm(x, m, v, s, b))
    assert (mean == m).all() and (var == v).all()
    schedule = jax.jit(lambda step: F.batch_norm_update(x, m, v, fit=True, momentum=1 - 1 / step)[1])
    np.testing.assert_allclose(schedule(2.0), (m + x.mean((0, 1))) / 2, 1e-5)
    shaped = F.batch_norm_update(x, m[None], v[None], fit=True)
    assert shaped[1].shape == shaped[2].shape == (1, 5)
    units = F.batch_norm_update(x * u.mV, m * u.mV, v * u.mV**2, fit=True)
    assert (units[1].unit, units[2].unit) == (u.mV, u.mV**2)


@pytest.mark.parametrize('bad', ['nan', 'empty', 'masked', 'one value'])
def test_update_by_an_unsound_batch_moves_nothing(bad):
    x, _, _, m, v = inputs(2.0)
    where = {'masked': jnp.zeros((8, 6, 1), bool), 'one value': jnp.zeros((8, 6, 1), bool).at[2, 3].set(True)}.get(bad)
    x = {'nan': x.at[1, 2, 3].set(jnp.nan), 'empty': x[:0]}.get(bad, x)
    y, mean, var = F.batch_norm_update(x, m, v, fit=True, where=where)
    assert (mean == m).all() and (var == v).all()
    assert bad == 'nan' or jnp.isfinite(y).all()


def test_renorm_lies_between_batch_norm_and_evaluation():
    x, s, b, m, v = inputs(2.0)
    closed, mean, var = F.batch_renorm_fit(x, m, v, s, b, rmax=1.0, dmax=0.0)
    for got, e in zip((closed, mean, var), F.batch_norm_fit(x, s, b), strict=True):
        np.testing.assert_allclose(got, e, 1e-6, 1e-6)
    np.testing.assert_allclose(
        F.batch_renorm_fit(x, m, v, s, b, rmax=100.0, dmax=100.0)[0], F.batch_norm(x, m, v, s, b), 1e-5, 1e-5
    )
    traced = jax.jit(lambda r, d: F.batch_renorm_fit(x, m, v, s, b, rmax=r, dmax=d)[0])  # a schedule
    np.testing.assert_allclose(traced(1.0, 0.0), closed, 1e-6, 1e-6)


@pytest.mark.slow
def test_ghost_batches_do_not_depend_on_the_number_of_devices():
    x, s, b, *_ = inputs(2.0)
    where = jnp.asarray(np.random.default_rng(1).random((8, 6, 1)) > 0.4).at[:2].set(False)
    one = F.batch_norm_fit(x, s, b, where=where)
    for got, e in zip(F.ghost_batch_norm_fit(x, s, b, virtual_batch_size=8, where=where), one, strict=True):
        np.testing.assert_allclose(got, e, 1e-5, 1e-6)
    for size in (2, 4):  # half of what a device holds of eight samples on two, and all of four devices
        whole = F.ghost_batch_norm_fit(x, s, b, virtual_batch_size=size, where=where)
        for devices in (2, 4):
            f = lambda v, w, size=size: F.ghost_batch_norm_fit(v, s, b, virtual_batch_size=size, where=w, axis_name='d')
            parts = jax.vmap(f, axis_name='d')(*(t.reshape(devices, -1, *t.shape[1:]) for t in (x, where)))
            for got, e in zip((parts[0].reshape(SHAPE), parts[1][-1], parts[2][0]), whole, strict=True):
                np.testing.assert_allclose(got, e, 1e-5, 1e-6)


def test_groups_of_devices_have_statistics_of_their_own():
    x, s, b, *_ = inputs(2.0)
    groups = ((0, 1), (2, 3))
    f = lambda v: F.batch_norm_fit(v, s, b, axis_name='d', axis_index_groups=groups)
    y, mean, _ = jax.vmap(f, axis_name='d')(x.reshape(4, 2, 6, 5))
    for i in (0, 1):
        expected = F.batch_norm_fit(x[4 * i : 4 * i + 4], s, b)
        np.testing.assert_allclose(y[2 * i : 2 * i + 2].reshape(4, 6, 5), expected[0], 1e-5, 1e-5)
        np.testing.assert_allclose(mean[2 * i], expected[1], 1e-5)
    mesh = jax.make_mesh((1,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec('d')
    g = jax.shard_map(lambda v: F.batch_norm_fit(v, axis_name='d', axis_index_groups=[[0]])[0], mesh=mesh,
                      in_specs=spec, out_specs=spec)  # fmt: skip
    np.testing.assert_allclose(g(x), F.batch_norm_fit(x)[0], 1e-5, 1e-5)


# ---------------------------------------------------------------------------------------------------------------
# Modules.
# ---------------------------------------------------------------------------------------------------------------

LAYERS = {
    'any rank': lambda **k: nn.BatchNorm(10, **k),
    'renorm': lambda **k: nn.BatchRenorm(10, schedule=(2, 4, 6), **k),
    'ghost': lambda **k: nn.GhostBatchNorm(10, virtual_batch_size=8, **k),
    'split': lambda **k: nn.SplitBatchNorm(10, num_splits=2, **k),
}


@pytest.mark.parametrize('name', list(LAYERS))
def test_module(name):
    layer, x = LAYERS[name](), batch((32, 4, 10))
    y = layer(x, fit=True)
    assert y.shape == x.shape
    assert abs(float(y.mean())) < 1e-5
    assert layer.running_mean.value.dtype == jnp.float32
    assert not jnp.array_equal(layer.running_mean.value, jnp.zeros(10))
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), layer):
        np.testing.assert_array_equal(
            other(x, fit=False), F.batch_norm(x, layer.running_mean.value, layer.running_var.value, *_affine(layer))
        )
    before = layer.running_mean.value
    layer(x.at[0].set(jnp.nan), fit=True)
    if name != 'split':
        np.testing.assert_array_equal(layer.running_mean.value, before)
    # channels in front, a whole shape, a narrow dtype
    first = {'any rank': nn.BatchNorm, 'renorm': nn.BatchRenorm, 'split': nn.SplitBatchNorm}.get(
        name, nn.GhostBatchNorm
    )
    more = {'virtual_batch_size': 8} if name == 'ghost' else {}
    turned = first((10, 4), feature_axis=0, **more)
    z = turned(jnp.moveaxis(x, -1, 1).astype(jnp.bfloat16), fit=True)
    assert z.dtype == jnp.bfloat16
    assert turned.running_var.value.shape == (10, 1)
    assert turned.running_var.value.dtype == jnp.float32
    np.testing.assert_allclose(jnp.moveaxis(z, 1, -1).astype(jnp.float32), y, 0.02, 0.03)


def _affine(layer):
    return layer.weight.value['scale'], layer.weight.value['bias']


def test_defaults_have_the_states_of_before():
    assert set(nn.BatchNorm2d(3).states().keys()) == {('weight',), ('running_mean',), ('running_var',)}
    assert set(nn.BatchNorm(3, momentum=None, count_skipped=True).states().keys()) == {
        ('weight',), ('running_mean',), ('running_var',), ('num_batches_tracked',), ('num_batches_skipped',)
    }  # fmt: skip


def test_scale_and_bias_apart():
    only_scale, only_bias = nn.BatchNorm(10, use_bias=False), nn.BatchNorm(10, affine=False, use_bias=True)
    assert list(only_scale.weight.value) == ['scale']
    assert list(only_bias.weight.value) == ['bias']
    x = batch()
    given = only_scale(x, fit=True, bias=jnp.full(10, 2.0))
    np.testing.assert_allclose(given, only_bias(x, fit=True) + 2, 1e-5, 1e-5)


@pytest.mark.parametrize('momentum', [None, 0.9, 0.0, 1.0])
def test_debiased_and_cumulative_averages_are_exact_from_the_first_step(momentum):
    layer = nn.BatchNorm0d(10, momentum=momentum, debias=True)
    seen = []
    for i in range(4):
        x = batch(seed=i)
        layer(x, fit=True)
        seen.append(F.moments(x, 0))
        if i == 0:
            np.testing.assert_array_equal(layer.running_mean.value, seen[0][0])
            np.testing.assert_array_equal(layer.running_var.value, seen[0][1])
            np.testing.assert_allclose(layer(x, fit=False), F.batch_norm_fit(x)[0], 1e-5, 1e-5)
    kept = 1.0 if momentum is None else momentum
    weights = kept ** np.arange(3, -1, -1.0)
    for state, values in zip((layer.running_mean, layer.running_var), zip(*seen, strict=True), strict=True):
        np.testing.assert_allclose(state.value, np.average(np.stack(values), 0, weights), 1e-5)
    assert layer.num_batches_tracked.value == 4


def test_debias_corrects_the_plain_average(x64):
    plain, debiased = nn.BatchNorm0d(10), nn.BatchNorm0d(10, debias=True)
    for i in range(5):
        for layer in (plain, debiased):
            layer(batch(seed=i).astype(jnp.float64), fit=True)
    left = 0.99**5
    np.testing.assert_allclose(debiased.running_mean.value, plain.running_mean.value / (1 - left), 1e-4)
    np.testing.assert_allclose(debiased.running_var.value, (plain.running_var.value - left) / (1 - left), 1e-4)


@pytest.mark.parametrize('momentum', [0.1, None])
def test_running_statistics_are_those_of_torch(momentum):
    torch = pytest.importorskip('torch')
    theirs = torch.nn.BatchNorm1d(10, momentum=momentum)
    ours = nn.BatchNorm1d(10, momentum=None if momentum is None else 1 - momentum, unbiased=True)
    for i in range(3):
        x = batch(seed=i)
        y = theirs(torch.from_numpy(np.array(x)))
        np.testing.assert_allclose(ours(x, fit=True), y.detach().numpy(), 1e-4, 1e-5)
    np.testing.assert_allclose(ours.running_mean.value, theirs.running_mean.numpy(), 1e-5)
    np.testing.assert_allclose(ours.running_var.value, theirs.running_var.numpy(), 1e-5)
    if momentum is None:
        assert int(ours.num_batches_tracked.value) == int(theirs.num_batches_tracked)


def test_unbiased_counts_what_a_mask_leaves():
    layer, x = nn.BatchNorm0d(10, momentum=0.0, unbiased=True), batch()
    layer(x, (jnp.arange(32) < 12)[:, None], fit=True)
    np.testing.assert_allclose(layer.running_var.value, x[:12].var(0, ddof=1), 1e-5)


def test_skipped_batches_are_counted():
    layer, x = nn.BatchNorm0d(10, count_skipped=True, momentum=None), batch()
    for bad in (x[:0], x.at[0, 0].set(jnp.inf), x):
        layer(bad, fit=True)
    layer(x, jnp.zeros((32, 1), bool), fit=True)
    assert (int(layer.num_batches_skipped.value), int(layer.num_batches_tracked.value)) == (3, 1)
    np.testing.assert_allclose(layer.running_mean.value, x.mean(0), 1e-5)


def test_one_value_a_channel_is_refused_where_it_is_known():
    layer, x = nn.BatchNorm0d(10), batch()
    one = (jnp.arange(32) == 5)[:, None]
    with pytest.raises(ValueError, match='BatchNorm0d: x must hold more than one value a channel'):
        layer(x, one, fit=True)
    with pytest.raises(ValueError, match='x must hold more than one value a channel'):
        jax.vmap(lambda v: F.batch_norm_fit(v, axis_name='d')[0], axis_name='d')(x[None, :1])
    split = jax.vmap(lambda v: F.batch_norm_fit(v, axis_name='d')[0], axis_name='d')(x[:4, None])  # four on all devices
    np.testing.assert_allclose(split[:, 0], F.batch_norm_fit(x[:4])[0], 1e-5, 1e-5)
    before = layer.running_mean.value
    jaxnorm.jit(lambda w: layer(x, w, fit=True))(one)  # not known while tracing: nothing moves
    np.testing.assert_array_equal(layer.running_mean.value, before)


def test_renorm_opens_its_clips():
    layer, plain, x = nn.BatchRenorm(10, schedule=(2, 4, 6), momentum=0.9), nn.BatchNorm(10, momentum=0.9), batch()
    for i in range(8):
        y = layer(x, fit=True)
        expected = plain(x, fit=True)
        if i <= 2:
            np.testing.assert_allclose(y, expected, 1e-4, 1e-4)
    old = plain.running_mean.value  # after eight batches; the layer has normalized with those after seven
    np.testing.assert_allclose(layer.running_mean.value, old, 1e-5)
    y = layer(x, fit=True)
    np.testing.assert_allclose(y, F.batch_renorm_fit(x, old, plain.running_var.value)[0], 1e-4, 1e-4)
    assert nn.BatchRenorm(10, schedule=None).states(brainstate.BatchState).keys() == {
        ('running_mean',),
        ('running_var',),
    }


def test_ghost_running_statistics_are_averages():
    layer, x = nn.GhostBatchNorm(10, virtual_batch_size=8, momentum=0.0), batch()
    layer(x, fit=True)
    np.testing.assert_allclose(layer.running_var.value, x.reshape(4, 8, 10).var(1).mean(0), 1e-5)


def test_a_split_that_is_refused_moves_none_of_its_parts():
    layer = nn.SplitBatchNorm(3)
    mask = jnp.ones((8, 1), bool).at[5:].set(False)  # one value a channel in the second half
    with pytest.raises(ValueError, match='more than one value a channel'):
        layer(jnp.arange(24.0).reshape(8, 3), mask, fit=True)
    assert (layer.running_mean.value == 0).all()
    free, x = nn.SplitBatchNorm(3, affine=False), jnp.arange(24.0).reshape(8, 3)
    np.testing.assert_allclose(free(x, fit=True, scale=x), x * free(x, fit=True), 1e-6)


def test_sizes_may_be_integers_of_numpy():
    for layer in (
        nn.BatchNorm2d(np.int64(4)),
        nn.GroupNorm(np.int64(4), num_groups=2),
        nn.LayerNorm(normalized_shape=np.int64(4)),
    ):
        assert layer(jnp.ones((2, 3, 3, 4)), fit=True).shape == (2, 3, 3, 4)


def test_split_batches_and_domains():
    layer, x = nn.SplitBatchNorm(10, num_splits=2, momentum=0.0), batch()
    y = layer(x, fit=True)
    np.testing.assert_allclose(y[16:], F.batch_norm_fit(x[16:])[0], 1e-5, 1e-5)
    np.testing.assert_allclose(layer.running_mean.value, x[:16].mean(0), 1e-5)
    np.testing.assert_allclose(layer.aux[0].running_mean.value, x[16:].mean(0), 1e-5)
    np.testing.assert_allclose(layer(x[16:], fit=False, domain=1), y[16:], 1e-4, 1e-5)
    np.testing.assert_allclose(layer(x, fit=False), layer(x, fit=False, domain=0))
    mask = (jnp.arange(32) % 2 == 0)[:, None]
    np.testing.assert_allclose(layer(x, mask, fit=True)[16::2], F.batch_norm_fit(x[16::2])[0], 1e-5, 1e-5)
    layer(x, fit=True, domain=1)
    np.testing.assert_allclose(layer.aux[0].running_mean.value, x.mean(0), 1e-5)
    assert len(layer.states(brainstate.ParamState)) == 2


X = batch()
ERRORS = [
    (lambda: F.batch_norm_update(X, X, X, fit=True), 'batch_norm_update: running_mean must hold one value a channel'),
    (lambda: F.batch_norm_update(X, X[0], X[0], fit=1), 'batch_norm_update: fit must be True or False'),
    (lambda: F.batch_norm_update(X, X[0], X[0], fit=True, momentum=2.0), 'batch_norm_update: momentum must be'),
    (lambda: F.batch_renorm_fit(X, X[0], X[0], rmax=0.5), 'batch_renorm_fit: rmax must be .* at least 1'),
    (lambda: F.ghost_batch_norm_fit(X, virtual_batch_size=5), 'ghost_batch_norm_fit: virtual_batch_size must divide'),
    (lambda: F.ghost_batch_norm_fit(X, virtual_batch_size=1), 'ghost_batch_norm_fit: x must hold more than one value'),
    (lambda: F.ghost_batch_norm_fit(X, virtual_batch_size=8, axis=0), 'ghost_batch_norm_fit: axis must not be 0'),
    (
        lambda: jax.vmap(lambda v: F.ghost_batch_norm_fit(v, virtual_batch_size=12, axis_name='d'), axis_name='d')(
            X.reshape(4, 8, 10)
        ),
        'virtual_batch_size must divide the 8 samples of a device',
    ),
    (lambda: F.batch_norm_fit(X, axis_index_groups=((0,),)), 'batch_norm_fit: axis_index_groups must name each'),
    (lambda: nn.BatchRenorm(10, schedule=(1, 2)), 'BatchRenorm: schedule must be three numbers'),
    (lambda: nn.BatchRenorm(10, track_running_stats=False), 'BatchRenorm: track_running_stats must be True'),
    (lambda: nn.GhostBatchNorm(10, virtual_batch_size=4, unbiased=True), 'GhostBatchNorm: unbiased must be left out'),
    (lambda: nn.SplitBatchNorm(10)(X[:7], fit=True), 'SplitBatchNorm: x must hold a multiple of num_splits=2'),
    (lambda: nn.SplitBatchNorm(10)(X, fit=True, domain=2), 'SplitBatchNorm: domain must be at most 1, got 2'),
    (lambda: nn.BatchNorm((4, 10))(X, fit=True), r'BatchNorm: x must .*\(4, 10\)'),
]


@pytest.mark.parametrize(('call', 'words'), ERRORS, ids=[w[:40] for _, w in ERRORS])
def test_errors_are_sentences(call, words):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        call()
    text = str(caught.value).split('\n')[0]
    assert text.endswith('.')
    assert '; ' in text


def test_one_vector_a_device():
    """The batch is all in the named axis, so that nothing of the array itself is reduced."""
    x, mask = batch((10, 5)), jnp.arange(10) < 7
    along = lambda f, *a: jax.vmap(f, axis_name='batch')(*a)
    fit = lambda r, m=None: F.batch_norm_fit(r, axis_name='batch', where=m)
    for got, want in zip(along(fit, x, mask), F.batch_norm_fit(x, where=mask[:, None]), strict=True):
        np.testing.assert_allclose(got, jnp.broadcast_to(want, got.shape), 1e-5, 1e-6)
    got, want = (
        jax.grad(lambda x, f=f: jnp.sin(f(x)[0]).sum())(x) for f in (lambda x: along(fit, x), F.batch_norm_fit)
    )
    np.testing.assert_allclose(got, want, 1e-4, 1e-6)
    layer, whole = nn.BatchNorm0d(5, axis_name='batch'), nn.BatchNorm0d(5)
    y = brainstate.transform.vmap2(lambda r: layer(r, fit=True), axis_name='batch')(x)
    np.testing.assert_allclose(y, whole(x, fit=True), 1e-5, 1e-6)
    np.testing.assert_allclose(layer.running_mean.value, whole.running_mean.value, 1e-5)
    mean, var = along(lambda r: F.moments(r, (), axis_name='batch'), x)
    np.testing.assert_allclose(mean[0], x.mean(0), 1e-5)
    np.testing.assert_allclose(var[0], x.var(0), 1e-5)


GROUPED = {
    'batch_norm_fit': lambda x, **k: F.batch_norm_fit(x, **k)[0],
    'evonorm_b0_fit': lambda x, **k: F.evonorm_b0_fit(x, jnp.ones(3), **k)[0],
    'iterative_norm_fit': lambda x, **k: F.iterative_norm_fit(x, num_groups=1, **k)[0],
}


@pytest.mark.parametrize(
    'name', [n if n == 'batch_norm_fit' else pytest.param(n, marks=pytest.mark.slow) for n in GROUPED]
)
def test_groups_of_devices_may_be_of_any_size(name):
    norm, x, groups = GROUPED[name], batch((4, 4, 3)), [[0], [1, 2, 3]]
    y = jax.vmap(lambda v: norm(v, axis_name='d', axis_index_groups=groups), axis_name='d')(x)
    np.testing.assert_allclose(y[0], norm(x[0]), 1e-5, 1e-5)
    np.testing.assert_allclose(y[1:].reshape(12, 3), norm(x[1:].reshape(12, 3)), 1e-5, 1e-5)
    with pytest.raises(ValueError, match=f'{name}: x must hold more than one value a channel'):
        jax.vmap(lambda v: norm(v, axis_name='d', axis_index_groups=groups), axis_name='d')(x[:, :1])
    if name == 'batch_norm_fit':
        layer = nn.SplitBatchNorm(3, axis_name='d', axis_index_groups=groups)
        with pytest.raises(ValueError, match='SplitBatchNorm: axis_index_groups must be of one size'):
            jax.vmap(lambda v: layer(v, fit=True), axis_name='d')(x)


def test_what_is_refused_changes_nothing():
    x, half = batch((8, 3)), jnp.ones((8, 1), bool).at[5:].set(False)  # one value a channel in the second half

    class Broken(brainstate.nn.Module):
        def update(self, x):
            raise ArithmeticError

    for layer, call in (
        (nn.BatchNorm(3), lambda l: l(x * u.mV, jnp.ones(5, bool), fit=True)),
        (nn.BatchNorm(3), lambda l: l(x[:1] * u.mV, fit=True)),
        (nn.BatchNorm(3, activation=Broken(), momentum=None), lambda l: l(x, fit=True)),
        (nn.IterNorm(3), lambda l: l(x[:, :2] * u.mV, fit=True)),
        (nn.SplitBatchNorm(3, momentum=None, count_skipped=True), lambda l: l(x, half, fit=True)),
    ):
        for pooled in (False, True):

            def values(layer=layer):
                return [s.value for s in layer._moving]

            with nn.accumulate_statistics(layer) if pooled else contextlib.nullcontext():
                before = values()
                with pytest.raises((ValueError, ArithmeticError)):
                    call(layer)
                for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(values()), strict=True):
                    assert old is new


def test_an_average_of_weight_one_forgets_even_nan():
    for layer in (nn.BatchNorm(3, momentum=0.0), nn.BatchNorm(3, debias=True), nn.BatchNorm(3, momentum=None)):
        layer.running_mean.value = jnp.full(3, jnp.nan)
        x = batch((8, 3))
        layer(x, fit=True)
        np.testing.assert_allclose(layer.running_mean.value, x.mean(0), 1e-6)
    layer.running_mean.value = jnp.full(3, jnp.inf)
    np.testing.assert_allclose(nn.recalibrate(layer, [x]).running_mean.value, x.mean(0), 1e-6)


def test_an_average_of_equal_batches_is_what_they_are():
    """The weights 0.999 and 0.001 are rounded in float32, their sum is not one."""
    layer, x = nn.BatchNorm(1, momentum=0.999), jnp.asarray([[-1.0], [1.0]])  # of variance one, as at first
    fit = jaxnorm.jit(lambda: brainstate.transform.for_loop(lambda _: layer(x, fit=True).sum(), jnp.arange(3000)))
    fit()
    np.testing.assert_allclose(layer.running_var.value, 1, 2.0**-23)


def test_a_channel_axis_is_counted_in_a_sample():
    x = batch((2, 3, 4, 3))
    first, last = nn.InstanceNorm(3, 0)(x), nn.InstanceNorm(3)(x)
    for axis in (np.int64(0), (0,), [0], -3, np.int64(-3)):
        np.testing.assert_array_equal(nn.InstanceNorm(3, axis)(x), first)
    assert not np.allclose(first, last)
    one = nn.BatchNorm2d(3, 0)  # which may come without its batch
    np.testing.assert_array_equal(one(x[0], fit=True), nn.BatchNorm2d((3, 4, 3), 0)(x[0], fit=True))
    np.testing.assert_array_equal(one(x, fit=True), nn.BatchNorm2d((3, 4, 3), 0)(x, fit=True))
    for axis, words in ((True, 'must be an integer, got bool'), ((0, 1), 'must be an integer, got tuple')):
        with pytest.raises(TypeError, match=f'InstanceNorm: feature_axis {words}'):
            nn.InstanceNorm(3, axis)
    with pytest.raises(
        ValueError, match=r'GroupNorm: feature_axis must be the axis of .*num_groups=32, num_channels=64'
    ):
        nn.GroupNorm(32, 64)


def test_a_statistic_lies_along_the_channels():
    x = batch((2, 3, 4, 3))
    with pytest.raises(ValueError, match='batch_norm: mean must hold one value a channel'):
        F.batch_norm(x, jnp.ones((1, 1, 1, 3)), jnp.ones(3), axis=1)
    assert F.batch_norm(x, jnp.ones((3, 1, 1)), jnp.ones(3), axis=1).shape == x.shape
