"""Norms beside those of other libraries, where these follow the definition; one that is not installed is skipped."""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm import functional as F
from jaxnorm import nn

pytestmark = pytest.mark.slow  # imports and compilations of others

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(1, 2, (4, 5, 6, 8)))  # batch, height, width, channels
SCALE, BIAS = np.float32(RNG.normal(1, 0.2, 8)), np.float32(RNG.normal(0, 0.2, 8))
WEIGHT = np.float32(RNG.normal(size=(8, 12)))  # inputs, outputs
U = np.float32(RNG.normal(size=12))
AFFINE = {'scale': jnp.asarray(SCALE), 'bias': jnp.asarray(BIAS)}


def peer(name):
    """A library, or a skipped test."""
    os.environ.setdefault('KERAS_BACKEND', 'jax')
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f'{name} cannot be imported: {error}')


def torch_layer(layer, x=X, *, first=True):
    """What a layer of PyTorch, whose channels come first, gives for channels that come last."""
    torch = peer('torch')
    for parameter, value in (('weight', SCALE), ('bias', BIAS)):
        if getattr(layer, parameter, None) is not None:
            getattr(layer, parameter).data = torch.from_numpy(value)
    y = layer(torch.from_numpy(np.moveaxis(x, -1, 1).copy() if first else x)).detach().numpy()
    return np.moveaxis(y, 1, -1) if first else y


def flax(name, *, train=None, **options):
    linen = peer('flax.linen')
    layer = getattr(linen, name)(epsilon=1e-5, **options)
    keys = ('scale',) if name == 'RMSNorm' else ('scale', 'bias')
    variables = {'params': {n: AFFINE[n] for n in keys}}
    if train is None:
        return layer.apply(variables, X)
    variables['batch_stats'] = {'mean': jnp.zeros(8), 'var': jnp.ones(8)}
    y, moved = layer.apply(variables, X, use_running_average=False, mutable=['batch_stats'])
    return y, moved['batch_stats']['mean'], moved['batch_stats']['var']


def nnx(name, **options):
    module = peer('flax.nnx')
    layer = getattr(module, name)(8, epsilon=1e-5, rngs=module.Rngs(0), **options)
    for n, value in AFFINE.items():
        if getattr(layer, n, None) is not None:
            getattr(layer, n)[...] = value
    return layer(X)


def haiku(make):
    """(result, state) of a haiku layer at the first call."""
    hk = peer('haiku')
    f = hk.without_apply_rng(hk.transform_with_state(lambda x: make(hk)(x)))
    params, state = f.init(jax.random.key(0), X)
    given = {'scale': AFFINE['scale'], 'offset': AFFINE['bias']}
    return f.apply({m: {n: given[n].reshape(v.shape) for n, v in p.items()} for m, p in params.items()}, state, X)


def keras(name, call=None, **options):
    layer = getattr(peer('keras').layers, name)(**options)
    layer.build(X.shape)
    for weight in layer.weights:
        if weight.path.split('/')[-1] in ('gamma', 'scale'):
            weight.assign(SCALE)
        elif weight.path.split('/')[-1] == 'beta':
            weight.assign(BIAS)
    return layer(X, **(call or {}))


def equinox(name, *arguments, mapped=1, **options):
    """A layer of equinox, of one sample with its channels first."""
    eqx = peer('equinox')
    layer = getattr(eqx.nn, name)(*arguments, eps=1e-5, **options)
    leaves = lambda m: (m.weight, m.bias) if getattr(m, 'bias', None) is not None else (m.weight,)
    layer = eqx.tree_at(leaves, layer, tuple(AFFINE.values())[: len(leaves(layer))])
    if mapped == 1:
        return jnp.moveaxis(jax.vmap(layer)(jnp.moveaxis(X, -1, 1)), 1, -1)
    return jax.vmap(jax.vmap(jax.vmap(layer)))(X)


def running(momentum, batches=1, **options):
    """(result of the last batch, running mean and variance) of ours after some batches."""
    layer = nn.BatchNorm2d(8, momentum=momentum, **options)
    layer.weight.value = AFFINE
    for i in range(batches):
        y = layer(X * (1 + i), fit=True)
    return y, layer.running_mean.value, layer.running_var.value


def torch_running(batches=1, **options):
    layer = peer('torch').nn.BatchNorm2d(8, **options)
    for i in range(batches):
        y = torch_layer(layer, X * np.float32(1 + i))
    return y, layer.running_mean.numpy(), layer.running_var.numpy()


def keras_running():
    keras_ = peer('keras')
    layer = keras_.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    layer.build(X.shape)
    layer.gamma.assign(SCALE)
    layer.beta.assign(BIAS)
    y = layer(X, training=True)
    return y, np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)


def haiku_batch_norm():
    y, _ = haiku(lambda hk: lambda x: hk.BatchNorm(True, True, 0.9, eps=1e-5)(x, is_training=True))
    return y


def torch_weight_norm():
    torch = peer('torch')
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 12))
    layer.parametrizations.weight.original1.data = torch.from_numpy(WEIGHT.T.copy())
    layer.parametrizations.weight.original0.data = torch.full((12, 1), 2.0)
    return layer.weight.detach().numpy().T


def torch_spectral_norm():
    torch = peer('torch')
    layer = torch.nn.Linear(8, 12)
    layer.weight.data = torch.from_numpy(WEIGHT.T.copy())
    layer = torch.nn.utils.parametrizations.spectral_norm(layer, n_power_iterations=200)
    return layer.weight.detach().numpy().T


def flax_weight_norm():
    linen = peer('flax.linen')
    layer = linen.WeightNorm(linen.Dense(12, use_bias=False))
    variables = layer.init(jax.random.key(0), jnp.eye(8))
    params = jax.tree.map(
        lambda a: jnp.asarray(WEIGHT) if a.shape == (8, 12) else jnp.full(12, 2.0), variables['params']
    )
    return layer.apply({'params': params}, jnp.eye(8))


def flax_spectral_norm():
    linen = peer('flax.linen')
    layer = linen.SpectralNorm(linen.Dense(12, use_bias=False), n_steps=200)
    variables = layer.init(jax.random.key(0), jnp.eye(8), update_stats=False)
    params = jax.tree.map(lambda a: jnp.asarray(WEIGHT), variables['params'])
    variables = {**variables, 'params': params}
    return layer.apply(variables, jnp.eye(8), update_stats=True, mutable=['batch_stats'])[0]


def haiku_spectral_norm():
    hk = peer('haiku')
    f = hk.without_apply_rng(hk.transform_with_state(lambda w: hk.SpectralNorm(n_steps=200)(w)))
    params, state = f.init(jax.random.key(0), WEIGHT)
    return f.apply(params, state, WEIGHT)[0]


def keras_spectral_norm():
    layers = peer('keras').layers
    layer = layers.SpectralNormalization(layers.Dense(12, use_bias=False), power_iterations=200)
    layer.build((None, 8))
    layer.layer.kernel.assign(WEIGHT)
    return layer(np.eye(8, dtype=np.float32), training=True)


def equinox_spectral_norm():
    eqx = peer('equinox')
    layer = eqx.nn.Linear(8, 12, use_bias=False, key=jax.random.key(0))
    layer = eqx.tree_at(lambda m: m.weight, layer, jnp.asarray(WEIGHT.T))
    layer, state = eqx.nn.make_with_state(eqx.nn.SpectralNorm)(
        layer, 'weight', num_power_iterations=200, key=jax.random.key(1)
    )
    return jax.vmap(lambda row: layer(row, state)[0])(jnp.eye(8))


def spectral():
    return F.spectral_norm(jnp.asarray(WEIGHT), jnp.asarray(U), n_steps=200)[0]


@dataclass(frozen=True)
class Case:
    """A norm of ours and the same of a peer."""

    peer: str
    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    tolerance: float = 2e-5


def torch_nn(name, *arguments, **options):
    return lambda: torch_layer(getattr(peer('torch').nn, name)(*arguments, **options))


layer = lambda: F.layer_norm(X, SCALE, BIAS, epsilon=1e-5)
rms = lambda: F.rms_norm(X, SCALE, epsilon=1e-5)
group = lambda: F.group_norm(X, SCALE, BIAS, num_groups=2, epsilon=1e-5)
instance = lambda: F.instance_norm(X, SCALE, BIAS, epsilon=1e-5)
batch = lambda: F.batch_norm_fit(X, SCALE, BIAS, epsilon=1e-5)[0]
average = lambda: running(0.9)
cumulative = lambda: running(None, 3, unbiased=True)
weight = lambda: F.weight_norm(jnp.asarray(WEIGHT), jnp.full((1, 12), 2.0))
CASES = [
    Case('linen', 'LayerNorm', layer, lambda: flax('LayerNorm')),
    Case('linen', 'RMSNorm', rms, lambda: flax('RMSNorm')),
    Case('linen', 'GroupNorm', group, lambda: flax('GroupNorm', num_groups=2)),
    Case('linen', 'InstanceNorm', instance, lambda: flax('InstanceNorm')),
    Case('linen', 'BatchNorm', average, lambda: flax('BatchNorm', train=True, momentum=0.9)),
    Case('linen', 'WeightNorm', weight, flax_weight_norm),
    Case('linen', 'SpectralNorm', spectral, flax_spectral_norm),
    Case('nnx', 'LayerNorm', layer, lambda: nnx('LayerNorm')),
    Case('nnx', 'RMSNorm', rms, lambda: nnx('RMSNorm')),
    Case('nnx', 'GroupNorm', group, lambda: nnx('GroupNorm', num_groups=2)),
    Case('nnx', 'BatchNorm', batch, lambda: nnx('BatchNorm', use_running_average=False)),
    Case('haiku', 'LayerNorm', layer, lambda: haiku(lambda hk: hk.LayerNorm(-1, True, True, eps=1e-5))[0]),
    Case('haiku', 'RMSNorm', rms, lambda: haiku(lambda hk: hk.RMSNorm(-1, eps=1e-5))[0]),
    Case('haiku', 'BatchNorm', batch, haiku_batch_norm),
    Case('haiku', 'GroupNorm', group, lambda: haiku(lambda hk: hk.GroupNorm(2, eps=1e-5))[0]),
    Case('haiku', 'InstanceNorm', instance, lambda: haiku(lambda hk: hk.InstanceNorm(True, True, eps=1e-5))[0]),
    Case('haiku', 'SpectralNorm', spectral, haiku_spectral_norm),
    Case('keras', 'LayerNormalization', layer, lambda: keras('LayerNormalization', epsilon=1e-5)),
    Case('keras', 'RMSNormalization', rms, lambda: keras('RMSNormalization', epsilon=1e-5)),
    Case('keras', 'GroupNormalization', group, lambda: keras('GroupNormalization', groups=2, epsilon=1e-5)),
    Case('keras', 'BatchNormalization', average, keras_running),
    Case('keras', 'UnitNormalization', lambda: F.unit_norm(X), lambda: keras('UnitNormalization')),
    Case('keras', 'SpectralNormalization', spectral, keras_spectral_norm),
    Case('equinox', 'LayerNorm', layer, lambda: equinox('LayerNorm', 8, mapped=3)),
    Case('equinox', 'RMSNorm', rms, lambda: equinox('RMSNorm', 8, mapped=3, use_bias=False)),
    Case('equinox', 'GroupNorm', group, lambda: equinox('GroupNorm', 2, 8)),
    Case('equinox', 'SpectralNorm', spectral, equinox_spectral_norm),
    Case('torch', 'LayerNorm', layer, lambda: torch_layer(peer('torch').nn.LayerNorm(8), first=False)),
    Case('torch', 'RMSNorm', rms, lambda: torch_layer(peer('torch').nn.RMSNorm(8, eps=1e-5), first=False)),
    Case('torch', 'GroupNorm', group, torch_nn('GroupNorm', 2, 8)),
    Case('torch', 'InstanceNorm2d', instance, torch_nn('InstanceNorm2d', 8, affine=True)),
    Case('torch', 'BatchNorm2d', lambda: running(0.9, unbiased=True), lambda: torch_running(momentum=0.1)),
    Case('torch', 'BatchNorm2d cumulative', cumulative, lambda: torch_running(3, momentum=None)),
    Case(
        'torch',
        'LocalResponseNorm',
        lambda: F.local_response_norm(X, 4, 0.1, 0.6, 2.0),
        torch_nn('LocalResponseNorm', 4, 0.1, 0.6, 2.0),
    ),
    Case('torch', 'weight_norm', weight, torch_weight_norm),
    Case('torch', 'spectral_norm', spectral, torch_spectral_norm),
]  # fmt: skip


@pytest.mark.parametrize('case', CASES, ids=lambda c: f'{c.peer}-{c.name}')
def test_is_that_of_a_peer(case):
    theirs = case.theirs()
    theirs = theirs if isinstance(theirs, tuple) else (theirs,)
    ours = case.ours()
    ours = ours if isinstance(ours, tuple) else (ours,)
    for got, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, np.asarray(wanted).reshape(got.shape), case.tolerance, case.tolerance)
