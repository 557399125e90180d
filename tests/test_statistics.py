"""What is done with the running statistics of a model: accumulate, recalibrate, freeze, fold, convert."""

import builtins
import copy

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm import functional as F
from jaxnorm import nn

FIT = {'fit': True}


def batch(shape=(32, 10), seed=0, mean=3.0):
    return jnp.asarray(np.random.default_rng(seed).normal(mean, 2, shape), jnp.float32)


def running(layer):
    return layer.running_mean.value, layer.running_var.value


def same(a, b, tolerance=1e-6):
    for got, expected in zip(running(a), running(b), strict=True):
        np.testing.assert_allclose(got, expected, tolerance)


class Model(brainstate.nn.Module):
    """Batch norms in an attribute, a list, a dict, a tuple and a Sequential; one of them is shared."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm0d(10, momentum=0.5)
        self.rest = [brainstate.nn.Linear(10, 10), nn.BatchNorm0d(10, momentum=0.5)]
        self.more = {'norm': nn.BatchNorm0d(10, momentum=0.5), 'same': self.norm}
        self.pair = (nn.GELU(), nn.BatchNorm0d(10, momentum=0.5))
        self.last = brainstate.nn.Sequential(brainstate.nn.Linear(10, 4), nn.BatchNorm0d(4), brainstate.nn.Dropout(0.5))

    def update(self, x):
        for layer in (self.norm, *self.rest, self.more['norm'], *self.pair, self.last):
            x = layer(x)
        return x


# ---------------------------------------------------------------------------------------------------------------
# accumulate_statistics
# ---------------------------------------------------------------------------------------------------------------

LAYERS = {
    'plain': lambda **k: nn.BatchNorm(10, **k),
    'cumulative': lambda **k: nn.BatchNorm(10, momentum=None, **k),
    'debias': lambda **k: nn.BatchNorm(10, debias=True, **k),
    'unbiased': lambda **k: nn.BatchNorm(10, unbiased=True, **k),
    'renorm': lambda **k: nn.BatchRenorm(10, **k),
    'ghost': lambda **k: nn.GhostBatchNorm(10, virtual_batch_size=4, **k),
}


@pytest.mark.parametrize('name', list(LAYERS))
def test_micro_batches_are_one_batch(name):
    whole, parts, x = LAYERS[name](), LAYERS[name](), batch()
    states = parts.states().keys()
    for _ in range(2):
        whole(x, fit=True)
        with nn.accumulate_statistics(parts) as model:
            assert model is parts
            before = running(parts)
            for micro in jnp.split(x, (8, 12, 24)):
                np.testing.assert_allclose(parts(micro, fit=True).mean(0), 0, atol=1e-5)
            assert all((a == b).all() for a, b in zip(running(parts), before, strict=True))
        same(parts, whole, 1e-5)
        if whole._counts:
            assert parts.num_batches_tracked.value == whole.num_batches_tracked.value
    assert parts.states().keys() == states


def test_micro_batches_with_masks_units_and_large_means():
    x, keep = batch(mean=0.0), jnp.asarray(np.random.default_rng(1).random((32, 1)) > 0.5).at[:8].set(False)
    whole, parts = nn.BatchNorm0d(10, momentum=0.0), nn.BatchNorm0d(10, momentum=0.0)
    whole(x * u.mV, keep, fit=True)
    with nn.accumulate_statistics(parts):
        for i in range(0, 32, 8):  # the first of them holds nothing
            parts(x[i : i + 8] * u.mV, keep[i : i + 8], fit=True)
    assert parts.running_var.value.unit == u.mV**2
    for a, b in zip(running(parts), running(whole), strict=True):
        np.testing.assert_allclose(a.mantissa, b.mantissa, 1e-5, 1e-6)
    large = x + 2e6
    with nn.accumulate_statistics(nn.BatchNorm0d(10, momentum=0.0)) as parts:
        for micro in jnp.split(large, 8):
            parts(micro, fit=True)
    np.testing.assert_allclose(parts.running_var.value, np.asarray(large, np.float64).var(0), 1e-6)


def test_inside_and_outside_of_jit():
    x = batch()
    layer, whole = nn.BatchNorm0d(10), nn.BatchNorm0d(10)
    count = 0

    @jaxnorm.jit
    def apply(v):
        nonlocal count
        count += 1
        return layer(v)

    with brainstate.environ.context(fit=True):
        apply(x[:8])  # traced before
        whole(x[:8])
        for _ in range(3):
            with nn.accumulate_statistics(layer):
                for micro in jnp.split(x, 4):
                    apply(micro)
            whole(x)
            same(layer, whole)
        apply(x[:8])
        whole(x[:8])
    same(layer, whole)
    assert count == 2

    @jaxnorm.jit
    def step(v):
        with nn.accumulate_statistics(layer):
            brainstate.transform.for_loop(lambda part: layer(part, fit=True), v.reshape(4, 8, 10))

    for _ in range(2):
        step(x)
        whole(x, fit=True)
    same(layer, whole)
    with nn.accumulate_statistics(layer):  # and out of it again
        layer(x[:16], fit=True)
        layer(x[16:], fit=True)
    whole(x, fit=True)
    same(layer, whole)


def test_gradients_are_those_of_the_calls():
    layer, x = nn.BatchNorm0d(10), batch()
    params = layer.states(brainstate.ParamState)
    loss = lambda v: (layer(v, fit=True) ** 3).sum()
    expected = brainstate.transform.grad(loss, params)(x)
    with nn.accumulate_statistics(layer):
        got = brainstate.transform.grad(loss, params)(x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-4)


def test_nothing_is_committed_where_the_body_raises_or_a_batch_is_unsound():
    layer, x = nn.BatchNorm0d(10, count_skipped=True), batch()
    layer(x, fit=True)
    before = running(layer)

    def interrupted():
        with nn.accumulate_statistics(layer):
            layer(x, fit=True)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert all((a == b).all() for a, b in zip(running(layer), before, strict=True))
    with nn.accumulate_statistics(layer):
        pass
    assert layer.num_batches_skipped.value == 0
    with nn.accumulate_statistics(layer):
        layer(x, fit=True)
        layer(x.at[0].set(jnp.nan), fit=True)
    assert layer.num_batches_skipped.value == 1
    apply = brainstate.transform.jit(lambda v: layer(v, fit=True))
    apply(x)
    before = running(layer)

    def traced_before():
        with nn.accumulate_statistics(layer):
            apply(x)

    with pytest.raises(RuntimeError, match='jit the function with jaxnorm'):
        traced_before()
    assert all((a == b).all() for a, b in zip(running(layer), before, strict=True))
    layer(x, fit=True)
    assert not (layer.running_mean.value == before[0]).all()


# ---------------------------------------------------------------------------------------------------------------
# recalibrate, freeze
# ---------------------------------------------------------------------------------------------------------------


def test_recalibrate_pools_a_data_set(capsys):
    model, x = Model(), batch((40, 10))
    weights = [s.value for s in model.states(brainstate.ParamState).values()]
    labelled = [(part, 'label') for part in jnp.split(x, (16, 32))]
    assert nn.recalibrate(model, labelled, progress=True) is model
    assert 'recalibrate' in capsys.readouterr().err
    np.testing.assert_allclose(model.norm.running_mean.value, x.mean(0), 1e-5)
    np.testing.assert_allclose(model.norm.running_var.value, x.var(0), 1e-5)
    # each layer sees what the ones before it make of a batch by the batch's own statistics
    parts = [model.rest[0](F.batch_norm_fit(part)[0]) for part, _ in labelled]
    np.testing.assert_allclose(model.rest[1].running_var.value, jnp.concatenate(parts).var(0), 1e-4)
    assert all(a is b.value for a, b in zip(weights, model.states(brainstate.ParamState).values(), strict=True))
    first = running(model.last[1])
    nn.recalibrate(model, iter(labelled), apply=lambda b: model(b[0]))  # dropout is off, so it is the same again
    for a, b in zip(running(model.last[1]), first, strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-6)


def test_recalibrate_leaves_everything_as_it_was_on_an_error():
    model, x = Model(), batch()
    nn.recalibrate(model, [x])
    before = {k: s.value for k, s in model.states().items()}

    def broken():
        yield x + 1
        raise OSError('the disk is gone')

    for batches, error in ((broken(), OSError), ([x, x.at[0].set(jnp.nan)], ValueError), ([], ValueError)):
        with pytest.raises(error):
            nn.recalibrate(model, batches)
        assert model.states().keys() == before.keys()
        assert all(jax.tree.leaves(s.value)[0] is jax.tree.leaves(before[k])[0] for k, s in model.states().items())


def test_recalibrate_counters_and_frozen_layers():
    layer, frozen, x = nn.BatchNorm0d(10, debias=True), nn.BatchNorm0d(10, frozen=True), batch()
    layer = nn.recalibrate(layer, jnp.split(x, 4))
    assert layer.num_batches_tracked.value == 4
    np.testing.assert_allclose(layer(x, fit=False), F.batch_norm_fit(x)[0], 1e-4, 1e-5)
    nn.recalibrate([layer, frozen], [x], apply=lambda b: frozen(layer(b)))
    assert not frozen.running_mean.value.any()
    renorm, seen = nn.BatchRenorm(10, schedule=None), []
    nn.recalibrate(renorm, [x], apply=lambda b: seen.append(renorm(b)))
    np.testing.assert_allclose(renorm.running_var.value, x.var(0), 1e-5)
    np.testing.assert_allclose(seen[0], F.batch_norm_fit(x)[0], 1e-4, 1e-5)  # not renormalized by what is to be set
    nothing = nn.BatchNorm0d(10, momentum=None)
    nn.recalibrate(nothing, [x], apply=lambda b: nothing(b, jnp.zeros((32, 1), bool)))
    assert nothing.num_batches_tracked.value == 0


def test_tqdm_is_optional(monkeypatch):
    there = builtins.__import__
    refuse = lambda name, *a, **k: there('no_such_module' if name.startswith('tqdm') else name, *a, **k)
    monkeypatch.setattr(builtins, '__import__', refuse)
    with pytest.raises(ImportError, match='recalibrate: progress needs tqdm, which is not installed; run'):
        nn.recalibrate(nn.BatchNorm0d(10), [batch()], progress=True)


def test_recalibrate_without_a_batch_in_any_layer():
    layer, x = nn.BatchNorm0d(3), batch((8, 3))
    with pytest.raises(ValueError, match=r'recalibrate: apply must call the model so that its layers follow'):
        nn.recalibrate(layer, [x], apply=lambda x: layer(x, fit=False))
    with pytest.raises(TypeError, match=r'recalibrate: batches must be an iterable of inputs, got int 5'):
        nn.recalibrate(layer, 5)
    assert (layer.running_mean.value == 0).all()


@pytest.mark.slow
def test_a_function_inside_that_was_jitted_before():
    layer, x = nn.BatchNorm0d(3), batch((8, 3))
    inner = jaxnorm.jit(lambda x: layer(x))
    outer = jaxnorm.jit(lambda x: 2 * inner(x))
    with brainstate.environ.context(fit=True):
        inner(x)
        outer(x)
        nn.freeze(layer)
        before = layer.running_mean.value
        outer(x)
        np.testing.assert_array_equal(layer.running_mean.value, before)
        nn.unfreeze(layer)
        with nn.accumulate_statistics(layer):
            outer(x)
    nn.recalibrate(layer, [x], apply=outer)
    np.testing.assert_allclose(layer.running_mean.value, x.mean(0), 1e-5, 1e-5)


UNITED = {
    'BatchNorm0d': lambda: nn.BatchNorm0d(4),
    'debias': lambda: nn.BatchNorm0d(4, debias=True),
    'IterNorm': lambda: nn.IterNorm(4),
    'EvoNormB0': lambda: nn.EvoNormB0(4),
}


@pytest.mark.parametrize('name', [n if n == 'BatchNorm0d' else pytest.param(n, marks=pytest.mark.slow) for n in UNITED])
def test_the_first_batch_with_a_unit_in_a_jitted_function(name):
    x = batch((6, 4)) * u.mV
    eager, jitted, pooled, lost = (UNITED[name]() for _ in range(4))
    apply = jaxnorm.jit(lambda x: jitted(x, fit=True))
    for given in (x, (2 * x).in_unit(u.volt)):  # the states keep the unit of the first
        np.testing.assert_allclose(apply(given), eager(given, fit=True), 1e-5, 1e-5)
    for one, other in zip(jitted._running, eager._running, strict=True):
        assert one.value.unit == other.value.unit
        np.testing.assert_allclose(one.value.mantissa, other.value.mantissa, 1e-4)
    nn.recalibrate(pooled, [x, x.in_unit(u.volt)])
    assert pooled._running[0].value.unit == jitted._running[0].value.unit
    with pytest.raises(ValueError, match=rf'{type(lost).__name__}: x must not be the first batch with a unit'):
        brainstate.transform.jit(lambda x: lost(x, fit=True))(x)
    assert isinstance(lost._running[0].value, jax.Array)


def test_freeze_is_seen_by_what_was_jitted():
    model, x = Model(), batch()
    count = 0

    @jaxnorm.jit
    def apply(v):
        nonlocal count
        count += 1
        return model(v)

    with brainstate.environ.context(**FIT):
        for _ in range(2):
            apply(x)
            before = running(model.more['norm'])
            assert nn.freeze(model) is model
            apply(x)
            assert all((a == b).all() for a, b in zip(running(model.more['norm']), before, strict=True))
            nn.unfreeze(model)
        apply(x)
    assert count == 2
    assert not (running(model.more['norm'])[0] == before[0]).all()


# ---------------------------------------------------------------------------------------------------------------
# fold, convert
# ---------------------------------------------------------------------------------------------------------------


def trained(norm, mean=2.0):
    """A batch norm with statistics and parameters that are not those of the start."""
    rng = np.random.default_rng(5)
    draw = lambda like, low, high: jnp.asarray(rng.uniform(low, high, like.shape), like.dtype)
    norm.running_mean.value = mean + draw(norm.running_mean.value, -1, 1)
    norm.running_var.value = draw(norm.running_var.value, 0.5, 2)
    if norm.weight is not None:
        norm.weight.value = {n: draw(v, 0.5, 1.5) for n, v in norm.weight.value.items()}
    return norm


Conv1d, Conv2d, Conv3d, Linear = brainstate.nn.Conv1d, brainstate.nn.Conv2d, brainstate.nn.Conv3d, brainstate.nn.Linear
PAIRS = {
    'linear': lambda: (Linear(5, 6), nn.BatchNorm0d(6)),
    'linear masked': lambda: (Linear(5, 6, w_mask=jnp.tri(5, 6), b_init=None), nn.BatchNorm0d(6, affine=False)),
    'conv1d': lambda: (Conv1d((8, 3), 6, 3), nn.BatchNorm1d(6, use_scale=False)),
    'conv2d': lambda: (
        Conv2d((8, 8, 4), 6, 3, groups=2, b_init=brainstate.nn.init.Constant(0.5)),
        nn.BatchNorm2d((8, 8, 6)),
    ),
    'conv2d first': lambda: (
        Conv2d((4, 8, 8), 6, 3, stride=2, channel_first=True),
        nn.BatchNorm2d((6, 4, 4), feature_axis=0),
    ),
    'conv3d': lambda: (Conv3d((4, 4, 4, 2), 3, 3), nn.BatchNorm3d(3)),
    'transposed': lambda: (brainstate.nn.ConvTranspose2d((4, 4, 4), 6, 3, groups=2), nn.BatchNorm2d(6)),
}


@pytest.mark.parametrize('name', [n if 'conv2d' in n else pytest.param(n, marks=pytest.mark.slow) for n in PAIRS])
def test_fold_is_two_layers(name):
    layer, norm = PAIRS[name]()
    trained(norm)
    x = batch((2, *layer.in_size))
    expected = norm(layer(x), fit=False)
    folded = nn.fold(layer, norm)
    assert type(folded) is type(layer)
    np.testing.assert_allclose(folded(x), expected, 1e-4, 1e-5)
    np.testing.assert_array_equal(norm(layer(x), fit=False), expected)  # both are as they were


def test_fold_what_a_wrapper_holds():
    for wrapped in (nn.WeightNorm(Linear(5, 6)), nn.WeightStandardization(Linear(5, 6), use_gain=True)):
        with pytest.raises(ValueError, match=r'fold: layer must hold its weight as it is, got one made of .*merge\(\)'):
            nn.fold(wrapped.layer, nn.BatchNorm0d(6))


def test_convert_hands_over_what_the_new_layer_has():
    norm = trained(nn.BatchNorm2d(6))
    x = batch((8, 4, 4, 6))
    expected = F.group_norm(x, num_groups=2, epsilon=norm.epsilon, **norm.weight.value)
    offset = nn.convert(copy.deepcopy(norm), nn.GroupNorm, num_groups=2, scale_offset=1.0)
    np.testing.assert_allclose(offset(x), expected, 1e-5, 1e-5)
    bare = nn.convert(copy.deepcopy(norm), nn.GroupNorm, num_groups=2, use_bias=False)
    np.testing.assert_allclose(bare(x) + norm.weight.value['bias'], expected, 1e-5, 1e-5)
    split = nn.convert(norm, nn.SplitBatchNorm)
    for domain in (0, 1):
        np.testing.assert_array_equal(split(x, fit=False, domain=domain), norm(x, fit=False))
    assert split.weight is norm.weight and split.aux[0].weight is not norm.weight


def test_convert_is_seen_by_what_was_jitted():
    model, x = brainstate.nn.Sequential(nn.BatchNorm0d(6)), batch((8, 6))
    apply = jaxnorm.jit(lambda x: model(x))
    with brainstate.environ.context(fit=False):
        apply(x)
        nn.convert(model, nn.GroupNorm, num_groups=2)
        np.testing.assert_allclose(apply(x), model(x), 1e-6, 1e-6)


@pytest.mark.parametrize(
    'to', [pytest.param(nn.GroupNorm, marks=pytest.mark.slow), nn.InstanceNorm, nn.GhostBatchNorm, nn.BatchRenorm]
)
def test_convert(to):
    options = {nn.GroupNorm: {'num_groups': 2}, nn.GhostBatchNorm: {'virtual_batch_size': 4}}.get(to, {})
    norms = [
        trained(nn.BatchNorm2d((4, 4, 6), activation='relu', momentum=0.9)),
        trained(nn.BatchNorm2d(6, epsilon=0.1)),
        trained(nn.BatchNorm2d((6, 4, 4), feature_axis=0, use_bias=False)),
        trained(nn.BatchNorm2d(6, feature_axis=0)),
        trained(nn.BatchNorm2d(6, affine=False)),
    ]
    model = nn.convert({'list': norms.copy(), 'tuple': (norms[0], None)}, to, **options)
    assert model['list'][0] is model['tuple'][0]  # shared layers stay shared
    for old, new in zip(norms, model['list'], strict=True):
        assert type(new) is to
        x = jnp.moveaxis(batch((8, 4, 4, 6)), -1, old._channel_axis)
        axis = old._channel_axis
        assert new.weight is old.weight
        kernel = {nn.GroupNorm: F.group_norm, nn.InstanceNorm: F.instance_norm}.get(to)
        given = {'axis': axis, 'epsilon': old.epsilon, **old._affine, **options}
        expected = kernel(x, **given) if kernel else old(x, fit=False)
        expected = jax.nn.relu(expected) if old.activation is not None else expected
        np.testing.assert_allclose(new(x, fit=False), expected, 1e-5, 1e-5)
        if issubclass(to, nn.GhostBatchNorm):
            assert new.running_mean is old.running_mean
            assert new.momentum == old.momentum


def test_convert_a_whole_tree():
    model = Model()
    assert nn.convert(model, nn.GroupNorm) is model
    norms = [model.norm, model.rest[1], model.more['norm'], model.pair[1], model.last[1]]
    assert [type(n).__name__ for n in norms] == ['GroupNorm'] * 5
    assert model.more['same'] is model.norm
    assert [n.num_groups for n in norms] == [2, 2, 2, 2, 4]
    with brainstate.environ.context(fit=False):
        assert model(batch()).shape == (32, 4)
    again = Model()
    with pytest.raises(ValueError, match='GroupNorm: num_groups must divide the 4 channels'):
        nn.convert(again, nn.GroupNorm, num_groups=10)
    assert isinstance(again.norm, nn.BatchNorm0d)  # nothing half done
    assert nn.convert(again, 'frozen').norm.frozen
    assert type(nn.convert(nn.BatchNorm0d(4), nn.GroupNorm)) is nn.GroupNorm


X = batch()
NORM = nn.BatchNorm0d(10)
ERRORS = [
    (
        lambda: nn.fold(Linear(3, 4), nn.BatchNorm(4, dtype=jnp.bfloat16)),
        'fold: batch_norm must have no dtype of its own',
    ),
    (
        lambda: nn.freeze(Linear(2, 3)),
        'freeze: model must hold a layer with running statistics of jaxnorm.nn, got Linear',
    ),
    (lambda: nn.recalibrate(nn.BatchNorm0d(3, track_running_stats=False), [X]), 'recalibrate: model must hold running'),
    (lambda: nn.recalibrate(nn.BatchNorm0d(10, frozen=True), [X]), 'recalibrate: model must hold .* not frozen'),
    (lambda: nn.recalibrate([NORM], [X]), 'recalibrate: apply must say what to do'),
    (lambda: nn.recalibrate(NORM, []), 'recalibrate: batches must hold at least one batch'),
    (lambda: nn.recalibrate(NORM, [X * jnp.nan]), 'recalibrate: batches must give finite values'),
    (lambda: nn.fold(brainstate.nn.ScaledWSLinear((4,), (10,)), NORM), 'fold: layer must be .* got ScaledWSLinear'),
    (lambda: nn.fold(Linear(4, 9), NORM), 'fold: batch_norm must have the 9 channels .* got 10'),
    (lambda: nn.fold(Linear(4, 10), nn.LayerNorm(10)), 'fold: batch_norm must be a batch norm'),
    (
        lambda: nn.fold(Linear(4, 10), nn.BatchNorm0d(10, track_running_stats=False)),
        'fold: batch_norm must have running',
    ),
    (lambda: nn.fold(Linear(4, 10), nn.BatchNorm0d(10, activation='relu')), 'fold: batch_norm must have no activation'),
    (lambda: nn.convert(NORM, nn.LayerNorm), 'convert: to must be GroupNorm, InstanceNorm'),
    (lambda: nn.convert(NORM, nn.InstanceNorm), 'convert: to must not be InstanceNorm for a BatchNorm0d'),
    (
        lambda: nn.recalibrate(nn.SpectralNorm(Linear(2, 3)), [X]),
        'recalibrate: model must hold .* data, got none in Spe',
    ),
    (lambda: nn.convert(nn.EvoNormB0(3), nn.GroupNorm), 'convert: model must hold a batch norm of jaxnorm.nn, got Evo'),
    (lambda: nn.convert(NORM, 'frozen', epsilon=1.0), "convert: options must be left out for 'frozen'"),
]


@pytest.mark.parametrize(('call', 'words'), ERRORS, ids=[w[:40] for _, w in ERRORS])
def test_errors_are_sentences(call, words):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        call()
    text = str(caught.value).split('\n')[0]
    assert text.endswith('.')
    assert '; ' in text


def test_contexts_do_not_nest():
    layer = nn.BatchNorm0d(10)
    with nn.accumulate_statistics(layer):
        with pytest.raises(ValueError, match='model must not be inside accumulate_statistics'):
            nn.recalibrate(layer, [X])
        layer(X, fit=True)
    assert layer.running_mean.value.any()


# ---------------------------------------------------------------------------------------------------------------
# Layers with running statistics that are no batch norms.
# ---------------------------------------------------------------------------------------------------------------

OTHERS = {
    'EvoNormB0': lambda **k: nn.EvoNormB0(10, momentum=0.5, **k),
    'IterNorm': lambda **k: nn.IterNorm(10, num_groups=2, momentum=0.5, **k),
    'SpectralNorm': lambda **k: nn.SpectralNorm(brainstate.nn.Linear(10, 4), init_steps=1, **k),
}
others = pytest.mark.parametrize('name', list(OTHERS))


def moved(layer):
    return [state.value for state in layer._running]


@others
def test_freeze_sees_every_layer_with_running_statistics(name):
    model = brainstate.nn.Sequential(OTHERS[name](), nn.BatchNorm0d(4 if name == 'SpectralNorm' else 10))
    before = moved(model[0])
    nn.freeze(model)
    with brainstate.environ.context(fit=True):
        jaxnorm.jit(model)(X)
    for got, wanted in zip(moved(model[0]), before, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert model[0].frozen and not nn.unfreeze(model)[0].frozen
    assert nn.convert(model[0], 'frozen').frozen


@pytest.mark.slow
@others
def test_micro_batches_of_others_are_one_batch(name):
    one = OTHERS[name]()
    many = copy.deepcopy(one)
    apply = jaxnorm.jit(lambda v: many(v, fit=True))
    one(X + 1e3, fit=True)
    with nn.accumulate_statistics([many]):
        for part in (X[:4], X[4:16], X[16:]):
            apply(part + 1e3)
    for got, wanted in zip(moved(many), moved(one), strict=True):
        np.testing.assert_allclose(got, wanted, 1e-5, 1e-6)
    with nn.accumulate_statistics(many):
        pass
    for got, wanted in zip(moved(many), moved(one), strict=True):
        np.testing.assert_allclose(got, wanted, 1e-5, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['EvoNormB0', 'IterNorm'])
def test_recalibrate_of_others(name):
    layer, settled = OTHERS[name](), OTHERS[name]()
    settled.momentum = 0.0
    settled(X * u.mV, fit=True)
    nn.recalibrate(layer, [part * u.mV for part in (X[:8], X[8:])], apply=layer)
    if name == 'IterNorm':  # epsilon too
        wide, narrow = (nn.IterNorm(10, num_groups=2, epsilon=e) for e in (100.0, 1e-5))
        fitted = nn.IterNorm(10, num_groups=2, epsilon=100.0, momentum=0.0)
        fitted(X, fit=True)
        for other in (wide, narrow):
            nn.recalibrate(other, [X])
        np.testing.assert_allclose(wide.running_whitening.value, fitted.running_whitening.value, 1e-5, 1e-7)
        assert not np.allclose(wide.running_whitening.value, narrow.running_whitening.value, 0.1)
    for got, wanted in zip(moved(layer), moved(settled), strict=True):
        assert u.get_unit(got).dim == u.get_unit(wanted).dim
        np.testing.assert_allclose(u.get_magnitude(got), u.get_magnitude(wanted), 1e-5, 1e-6)


@pytest.mark.parametrize(
    'make', [lambda: nn.BatchNorm(10), *list(OTHERS.values())[:2]], ids=['BatchNorm', *list(OTHERS)[:2]]
)
def test_one_value_a_channel_under_a_mask(make):
    layer, mask = make(), jnp.arange(32)[:, None] == 3
    before = moved(layer)
    with pytest.raises(ValueError, match='x must hold more than one value a channel'):
        layer(X, mask, fit=True)
    y = jaxnorm.jit(lambda v, m: layer(v, m, fit=True))(X, mask)  # which is known when it is too late to raise
    assert jnp.isfinite(y).all() and (y[jnp.arange(32) != 3] == 0).all()
    if not isinstance(layer, nn.EvoNormB0):  # that one is not centred
        assert (y == 0).all()
    for got, wanted in zip(moved(layer), before, strict=True):
        np.testing.assert_array_equal(got, wanted)
