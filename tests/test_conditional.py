"""Conditional norms: AdaLN, FiLM, AdaIN, SPADE and QK norm against their definitions."""

import copy
import pickle

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references as ref

import jaxnorm
from jaxnorm import functional as F
from jaxnorm import nn

pytestmark = pytest.mark.slow  # many compilations


def data(*shape, mean=1.0, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(mean, 2, shape), jnp.float32)


def wide(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def close(got, expected, tolerance=2e-6):
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, tolerance, tolerance * np.abs(expected).max())


def normal(shape):
    return data(*shape, mean=0.0, seed=9) * 0.3


TOKENS, CONDITION = data(2, 5, 8), data(2, 3, seed=1)
IMAGE, STYLE = data(2, 4, 4, 6), data(2, 3, 5, 6, mean=-2.0, seed=2)
LABELS = jax.nn.one_hot(np.random.default_rng(3).integers(0, 3, (2, 8, 8)), 3)


def projected(layer, condition, parts):
    weight, bias = wide(layer.linear.weight.value['weight'], layer.linear.weight.value['bias'])
    return np.split(np.asarray(condition, np.float64) @ weight + bias, parts, -1)


def test_ada_layer_norm():
    layer = nn.AdaLayerNorm(8, 3, gate=True, w_init=normal, b_init=normal)
    y, gate = layer(TOKENS, CONDITION)
    scale, shift, wanted = (p[:, None] for p in projected(layer, CONDITION, 3))
    close(y, ref.ada_layer_norm(*wide(TOKENS), scale, shift))
    close(gate, wanted)
    each = data(2, 5, 3, seed=4)  # a condition for each position
    scale, shift, wanted = projected(layer, each, 3)
    y, gate = layer(TOKENS, each)
    close(y, ref.ada_layer_norm(*wide(TOKENS), scale, shift))
    close(gate, wanted)
    active = nn.AdaLayerNorm((5, 8), 3, condition_activation='silu', w_init=normal)
    scale, shift = (p[:, None] for p in projected(active, jax.nn.silu(CONDITION), 2))
    close(active(TOKENS, CONDITION), ref.ada_layer_norm(*wide(TOKENS), scale, shift))


def test_ada_rms_norm():
    rms = lambda x, scale, shift: ref.rms_norm(x) * (1 + scale) + shift
    plain = nn.AdaRMSNorm(8, 3, w_init=normal, b_init=normal)
    (scale,) = (p[:, None] for p in projected(plain, CONDITION, 1))
    close(plain(TOKENS, CONDITION), rms(*wide(TOKENS), scale, 0))
    layer = nn.AdaRMSNorm((5, 8), 3, shift=True, gate=True, w_init=normal, b_init=normal)
    scale, shift, wanted = (p[:, None] for p in projected(layer, CONDITION, 3))
    y, gate = layer(TOKENS, CONDITION)
    close(y, rms(*wide(TOKENS), scale, shift))
    close(gate, wanted)
    close(nn.AdaRMSNorm(8, 3)(TOKENS, CONDITION), ref.rms_norm(*wide(TOKENS)))
    where = jnp.arange(5)[:, None] < 3
    y, _ = layer(jnp.where(where, TOKENS, jnp.nan), CONDITION, where)
    close(y[:, :3], rms(*wide(TOKENS), scale, shift)[:, :3])
    assert (y[:, 3:] == 0).all()


def test_zero_at_first():
    y, gate = nn.AdaLayerNorm(8, 3, gate=True)(TOKENS, CONDITION)
    close(y, ref.layer_norm(*wide(TOKENS)))
    assert (gate == 0).all()  # so that the block that it gates is the identity
    assert (nn.FiLM(8, 3)(TOKENS, CONDITION) == TOKENS).all()


def test_film():
    layer = nn.FiLM(6, 3, w_init=normal, b_init=normal)
    scale, shift = (p[:, None, None] for p in projected(layer, CONDITION, 2))
    expected = ref.film(*wide(IMAGE), scale, shift)
    close(layer(IMAGE, CONDITION), expected)
    for size in (6, (6, 4, 4)):
        first = nn.FiLM(size, 3, feature_axis=0, w_init=normal, b_init=normal)
        close(first(jnp.moveaxis(IMAGE, -1, 1), CONDITION), np.moveaxis(expected, -1, 1))
    y = layer(IMAGE * u.mV, CONDITION)
    assert y.unit == u.mV
    np.testing.assert_array_equal(y.mantissa, layer(IMAGE, CONDITION))


def test_adain():
    layer = nn.AdaIN(6)
    y = layer(IMAGE, STYLE)
    close(y, ref.adain(*wide(IMAGE, STYLE)))
    close(layer(IMAGE, IMAGE), wide(IMAGE)[0])
    first = nn.AdaIN((6, 4, 4), feature_axis=0)
    close(first(jnp.moveaxis(IMAGE, -1, 1), jnp.moveaxis(STYLE, -1, 1)), np.moveaxis(wide(y)[0], -1, 1))
    close(nn.AdaIN((4, 4, 6))(IMAGE[0], STYLE[0]), y[0])  # without a batch
    scale, shift = data(2, 6, seed=5), data(6, seed=6)
    expected = np.asarray(scale, np.float64)[:, None, None] * ref.instance_norm(*wide(IMAGE)) + wide(shift)[0]
    close(layer(IMAGE, scale=scale, shift=shift), expected)
    mixed = layer(IMAGE * u.mV, STYLE * u.mS)
    assert mixed.unit == u.mS
    close(mixed.mantissa, y)


def test_adain_at_the_edges():
    layer = nn.AdaIN(6, epsilon=0.0)
    flat = jnp.broadcast_to(jnp.arange(6.0), STYLE.shape)
    y, pull = jax.vjp(layer, IMAGE, flat)
    close(y, np.broadcast_to(np.arange(6.0), IMAGE.shape))
    assert all(jnp.isfinite(g).all() for g in pull(y))
    assert jnp.isfinite(layer(IMAGE, STYLE.astype(jnp.bfloat16) * 1e17)).all()
    close(layer(IMAGE, STYLE * 1e-17) * 1e17, layer(IMAGE, STYLE), 1e-5)
    offset = STYLE + 1e4
    close(layer(IMAGE, offset).astype(float) - 1e4, layer(IMAGE, offset - 1e4), 1e-3)


def kernel(convolution):
    return wide(convolution.weight.value['weight'], convolution.weight.value['bias'])


def convolved(x, convolution):
    """A 3x3 convolution with zeros around."""
    weight, bias = kernel(convolution)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    parts = (padded[:, i : i + height, j : j + width] @ weight[i, j] for i in range(3) for j in range(3))
    return sum(parts) + bias


@pytest.mark.parametrize('norm', ['batch', 'instance'])
def test_spade(norm):
    layer = nn.SPADE((4, 4, 6), 3, hidden_channels=5, norm=norm)
    y = layer(IMAGE, LABELS, fit=True)
    hidden = np.maximum(convolved(wide(LABELS)[0][:, ::2, ::2], layer.shared), 0)
    scale, shift = np.split(convolved(hidden, layer.modulation), 2, -1)
    normalized = {
        'batch': lambda: ref.batch_norm_fit(*wide(IMAGE)),
        'instance': lambda: ref.instance_norm(*wide(IMAGE)),
    }[norm]()
    close(y, ref.film(normalized, scale, shift))
    first = nn.SPADE((6, 4, 4), 3, hidden_channels=5, norm=norm, channel_first=True)
    for ours, theirs in ((first.shared, layer.shared), (first.modulation, layer.modulation)):
        ours.weight.value = {**theirs.weight.value, 'bias': jnp.moveaxis(theirs.weight.value['bias'], -1, -3)}
    got = first(jnp.moveaxis(IMAGE, -1, 1), jnp.moveaxis(LABELS, -1, 1), fit=True)
    close(jnp.moveaxis(got, 1, -1), wide(y)[0], 1e-5)


def test_spade_has_the_phase_of_its_norm():
    layer = nn.SPADE((4, 4, 6), 3, hidden_channels=5, kernel_size=1)
    before = layer.norm.running_mean.value
    layer(IMAGE, LABELS, fit=False)
    assert (layer.norm.running_mean.value == before).all()
    with brainstate.environ.context(fit=True):
        layer(IMAGE, LABELS)
    assert not (layer.norm.running_mean.value == before).all()
    with pytest.raises(ValueError, match='fit must say'):
        layer(IMAGE, LABELS)
    given = nn.SPADE(
        (4, 4, 6), 3, hidden_channels=5, norm=nn.GroupNorm(6, num_groups=2, use_scale=False, use_bias=False)
    )
    assert given(IMAGE, LABELS).shape == IMAGE.shape


def test_qk_norm():
    q, k = data(2, 5, 4, 8), data(2, 7, 4, 8, seed=1)
    layer = nn.QKNorm(8, scale_init=lambda s: data(*s, seed=7))
    scale = np.asarray(layer.q_norm.scale.value['scale'], np.float64)
    for got, x in zip(layer(q, k), (q, k), strict=True):
        close(got, ref.rms_norm(*wide(x), scale))
    heads = nn.QKNorm((4, 8), norm='layer', feature_axes=(0, 1), use_bias=False)
    assert {s.value['scale'].shape for s in heads.states(brainstate.ParamState).values()} == {(4, 8)}
    assert len(heads.states(brainstate.ParamState)) == 2
    for got, x in zip(heads(q, k), (q, k), strict=True):
        close(got, ref.layer_norm(*wide(x)))
    keep = jnp.arange(7)[:, None, None] < 4
    masked = layer(q, jnp.where(keep, k, jnp.nan), k_mask=keep)[1]
    close(masked[:, :4], layer(q, k)[1][:, :4])
    assert (masked[:, 4:] == 0).all()
    assert isinstance(layer(q * u.mV, k * u.mV)[1], jax.Array)
    assert nn.QKNorm(8, norm=nn.LayerNorm)(q, k)[0].shape == q.shape


def masked_calls():
    keep = jnp.arange(4)[:, None, None] < 3  # rows of the image
    ada = nn.AdaLayerNorm(8, 3, w_init=normal, b_init=normal)
    some = jnp.arange(8) < 6
    batch = nn.BatchNorm2d(6, affine=False, track_running_stats=False)
    spade = {n: nn.SPADE((4, 4, 6), 3, hidden_channels=5, norm=n) for n in (batch, 'instance')}
    adain = nn.AdaIN(6)
    return {
        'AdaLayerNorm': (lambda x: ada(x, CONDITION, some), TOKENS, some),
        'AdaIN': (lambda x: adain(x, STYLE, keep), IMAGE, keep),
        'AdaIN style': (lambda s: adain(IMAGE, s, style_mask=keep), data(2, 4, 5, 6), keep),
        'SPADE batch': (lambda x: spade[batch](x, LABELS, keep), IMAGE, keep),
        'SPADE instance': (lambda x: spade['instance'](x, LABELS, keep), IMAGE, keep),
    }


@pytest.mark.parametrize('name', ['AdaLayerNorm', 'AdaIN', 'AdaIN style', 'SPADE batch', 'SPADE instance'])
def test_what_is_masked_touches_nothing(name):
    call, x, keep = masked_calls()[name]
    y, pull = jax.vjp(call, jnp.where(keep, x, jnp.nan))
    (slope,) = pull(y)
    clean, clean_pull = jax.vjp(call, jnp.where(keep, x, 7.0))
    np.testing.assert_array_equal(y, clean)
    np.testing.assert_array_equal(slope, clean_pull(clean)[0])
    assert jnp.isfinite(slope).all()
    assert (jnp.where(keep, 0, slope) == 0).all()
    if name != 'AdaIN style':
        assert (jnp.where(keep, 0, y) == 0).all()


def test_masked_style_is_a_sliced_one():
    layer, style = nn.AdaIN(6), data(2, 4, 5, 6)
    keep = jnp.arange(4)[:, None, None] < 3
    close(layer(IMAGE, style, style_mask=keep), layer(IMAGE, style[:, :3]))
    nothing = layer(IMAGE, style, style_mask=jnp.zeros((1, 1, 1, 1), bool))
    assert float(jnp.abs(nothing).max()) < 0.01  # a style of zeros: the root of epsilon


LAYERS = {
    'AdaLayerNorm': (lambda: nn.AdaLayerNorm(8, 3, gate=True, w_init=normal, b_init=normal), (TOKENS, CONDITION)),
    'AdaRMSNorm': (lambda: nn.AdaRMSNorm(8, 3, shift=True, w_init=normal, b_init=normal), (TOKENS, CONDITION)),
    'FiLM': (lambda: nn.FiLM(6, 3, w_init=normal, condition_activation='gelu'), (IMAGE, CONDITION)),
    'AdaIN': (lambda: nn.AdaIN(6), (IMAGE, STYLE)),
    # weights that are the same each time: a difference across the kink of a ReLU would be no derivative
    'SPADE': (lambda: nn.SPADE((4, 4, 6), 3, hidden_channels=5, norm='instance', w_init=normal), (IMAGE, LABELS)),
    'QKNorm': (lambda: nn.QKNorm(8), (TOKENS, TOKENS[:, :2])),
}


@pytest.mark.parametrize('name', list(LAYERS))
def test_is_a_module_whose_gradients_reach_everything(name, x64):
    make, inputs = LAYERS[name]
    layer = make()
    results = layer(*inputs)
    assert all(r.dtype == jnp.float32 for r in jax.tree.leaves(results)[:1])
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        jax.tree.map(np.testing.assert_array_equal, other(*inputs), results)
    assert name in repr(layer)
    held = [brainstate.ParamState(a.astype(float)) for a in inputs]
    named = {'.'.join(path): state for path, state in layer.states(brainstate.ParamState).items()}
    states = {**named, 'first': held[0], 'second': held[1]}
    for state in states.values():
        state.value = jax.tree.map(lambda a: a.astype(float), state.value)

    def loss():
        return sum(jnp.sin(r).sum() for r in jax.tree.leaves(layer(*(h.value for h in held))))

    grads = jaxnorm.jit(brainstate.transform.grad(loss, states))()
    rng = np.random.default_rng(0)
    for key, state in states.items():  # against a difference along a random direction
        start = state.value
        along = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), start)
        ends = []
        for step in (1e-5, -1e-5):
            state.value = jax.tree.map(lambda a, d, s=step: a + s * d, start, along)
            ends.append(loss())
        state.value = start
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads[key], along)))
        assert slope != 0
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, 1e-4, 1e-7)


FOLLOWED = {
    'AdaLayerNorm': (lambda **k: nn.AdaLayerNorm(8, 3, w_init=normal, **k), (TOKENS, CONDITION)),
    'AdaRMSNorm': (lambda **k: nn.AdaRMSNorm(8, 3, shift=True, w_init=normal, **k), (TOKENS, CONDITION)),
    'FiLM': (lambda **k: nn.FiLM(6, 3, w_init=normal, **k), (IMAGE, CONDITION)),
    'AdaIN': (lambda **k: nn.AdaIN(6, **k), (IMAGE, STYLE)),
    'SPADE': (lambda **k: nn.SPADE((4, 4, 6), 3, hidden_channels=5, norm='instance', **k), (IMAGE, LABELS)),
}


@pytest.mark.parametrize('name', list(FOLLOWED))
def test_an_activation_follows(name):
    make, inputs = FOLLOWED[name]
    plain = make(w_init=normal) if name == 'SPADE' else make()
    for activation in ('exponential', nn.Exponential()):
        followed = make(activation=activation, w_init=normal) if name == 'SPADE' else make(activation=activation)
        np.testing.assert_allclose(followed(*inputs), jnp.exp(plain(*inputs)), 2e-6)


def test_an_activation_of_what_has_a_unit():
    np.testing.assert_array_equal(nn.FiLM(6, 3, activation='relu')(-IMAGE * u.mV, CONDITION) / u.mV, F.relu(-IMAGE))
    with pytest.raises(TypeError, match='gelu: x must be dimensionless'):
        nn.FiLM(6, 3, activation='gelu')(IMAGE * u.mV, CONDITION)
    with pytest.raises(TypeError, match='AdaIN: style must be dimensionless where an activation follows'):
        nn.AdaIN(6, activation='relu')(IMAGE, STYLE * u.mV)


def test_a_style_over_devices_is_one_style():
    layer, whole = nn.AdaIN(6, axis_name='rows'), nn.AdaIN(6)
    mask = jnp.ones((2, 4, 4, 1), bool).at[0, :2].set(False)
    rows = lambda a: jnp.moveaxis(a.reshape(2, 2, a.shape[1] // 2, *a.shape[2:]), 1, 0)
    y = jax.vmap(lambda x, s, m: layer(x, s, style_mask=m), axis_name='rows')(*map(rows, (IMAGE, -IMAGE, mask)))
    close(jnp.moveaxis(y, 0, 1).reshape(IMAGE.shape), whole(IMAGE, -IMAGE, style_mask=mask))


def test_narrow_dtypes_round_once():
    layer = nn.AdaLayerNorm(8, 3, w_init=normal, b_init=normal)
    x = TOKENS.astype(jnp.bfloat16)
    y = layer(x, CONDITION)
    assert y.dtype == jnp.bfloat16
    scale, shift = (p[:, None] for p in projected(layer, CONDITION, 2))
    np.testing.assert_allclose(wide(y)[0], ref.ada_layer_norm(*wide(x), scale, shift), 1.01 * 2.0**-8, 1e-5)
    assert nn.FiLM(8, 3)(x, CONDITION).dtype == nn.AdaIN(8)(x, x).dtype == jnp.bfloat16
    assert nn.AdaLayerNorm(8, 3, dtype=jnp.float32)(x, CONDITION).dtype == jnp.float32


ERRORS = [
    (lambda: nn.AdaLayerNorm(8, 3)(TOKENS, TOKENS), 'AdaLayerNorm: condition must have 3 features on its last axis'),
    (lambda: nn.AdaLayerNorm(8, 3)(TOKENS, data(5, 3)), 'AdaLayerNorm: condition must have the first axes of x'),
    (lambda: nn.AdaLayerNorm(8, 3)(IMAGE, CONDITION), 'AdaLayerNorm: x must have 8 channels on axis -1'),
    (lambda: nn.AdaLayerNorm(8, 3)(TOKENS, CONDITION * u.mV), 'AdaLayerNorm: condition must be dimensionless'),
    (lambda: nn.AdaLayerNorm(8, 0), 'AdaLayerNorm: condition_size must be at least 1, got 0'),
    (lambda: nn.AdaRMSNorm(8, 3, shift=1), 'AdaRMSNorm: shift must be True or False'),
    (lambda: nn.AdaLayerNorm(8, 3, gate=1), 'AdaLayerNorm: gate must be True or False'),
    (lambda: nn.FiLM(8, 3)(IMAGE, CONDITION), 'FiLM: x must have 8 channels on axis -1'),
    (lambda: nn.FiLM(6, 3)(IMAGE, data(2, 4, 4, 1, 3)), 'FiLM: condition must have the first axes of x'),
    (lambda: nn.AdaIN(6)(IMAGE), 'AdaIN: style, or scale and shift, must be given, got neither'),
    (lambda: nn.AdaIN(6)(IMAGE, STYLE, scale=1.0), 'AdaIN: style, or scale and shift, must be given, got both'),
    (lambda: nn.AdaIN(6)(IMAGE, STYLE[..., :5]), 'AdaIN: style must have 6 channels on axis -1'),
    (lambda: nn.AdaIN(6)(IMAGE, scale=data(3, 6)), 'AdaIN: scale must have the first axes of x'),
    (lambda: nn.SPADE(6, 3), 'SPADE: in_size must be a height, a width and a number of channels'),
    (lambda: nn.SPADE((4, 4, 6), 3, norm='group'), "SPADE: norm must be one of 'batch', 'instance', got 'group'"),
    (
        lambda: nn.SPADE((4, 4, 6), 3, hidden_channels=5)(IMAGE, IMAGE, fit=True),
        'SPADE: segmentation must have the rank of x, 4, and 3',
    ),
    (
        lambda: nn.SPADE((4, 4, 6), 3, norm=nn.InstanceNorm(6), activation='relu'),
        'SPADE: activation must be None where norm is a module',
    ),
    (lambda: nn.QKNorm(8, norm='group'), "QKNorm: norm must be one of 'rms', 'layer', got 'group'"),
]


@pytest.mark.parametrize(('call', 'words'), ERRORS, ids=[w[:48] for _, w in ERRORS])
def test_errors_are_sentences(call, words):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        call()
    assert str(caught.value).endswith('.')
    assert '; ' in str(caught.value)
