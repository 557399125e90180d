"""What norms do where a batch is split over devices, or over processes: run by test_devices.py in its own processes.

``python on_devices.py eight`` wants eight devices; ``python on_devices.py pair HOST:PORT 0`` and ``… 1`` are two
processes of one device each. Every check prints a line.
"""

import sys

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm
from jaxnorm import functional as F
from jaxnorm import nn

RNG = np.random.default_rng(0)
#: a batch of 16, far from zero, where the mean of the devices' variances would be wrong
X = np.float32(RNG.normal(3, 2, (16, 6, 8)) + np.arange(16)[:, None, None])
SCALE, BIAS = np.float32(RNG.normal(1, 0.2, 8)), np.float32(RNG.normal(0, 0.2, 8))
#: uneven, and nothing at all on the first two rows
MASK = (RNG.random((16, 6, 1)) > 0.4) & (np.arange(16) > 1)[:, None, None]


def mesh(devices=None):
    return jax.make_mesh((len(devices or jax.devices()),), ('devices',), axis_types=(AxisType.Auto,), devices=devices)


def same(what, got, wanted, tolerance=2e-6):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        w = np.asarray(w)
        error = np.max(np.abs(np.asarray(g) - w)) / max(np.max(np.abs(w)), 1e-30)
        if not error <= tolerance:
            raise SystemExit(f'{what}: error {error:.1e}')
    print(f'{what}: right')


def reference(mask=None):
    """(y, mean, var) of the whole batch in float64."""
    weight = np.ones((16, 6, 1)) if mask is None else mask * 1.0
    x = np.asarray(X, np.float64)
    count = weight.sum((0, 1))
    mean = (x * weight).sum((0, 1)) / count
    var = (weight * (x - mean) ** 2).sum((0, 1)) / count
    return ((x - mean) / np.sqrt(var + 1e-5) * SCALE + BIAS) * (weight > 0), mean, var


def gradient(function):
    return jax.jit(jax.grad(lambda x: jnp.sin(function(x)).sum()))


def plain_jit():
    """The batch lies on all devices, and nothing is said of it: the compiler makes the sums global."""
    rows = NamedSharding(mesh(), P('devices'))
    x = jax.device_put(X, rows)
    whole = lambda v: F.batch_norm_fit(v, SCALE, BIAS)[0]
    same('batch_norm_fit under plain jit', jax.jit(lambda v: F.batch_norm_fit(v, SCALE, BIAS))(x), reference())
    same('its gradient', gradient(whole)(x), gradient(whole)(X))
    layer, alone = nn.BatchNorm1d(8, momentum=0.5), nn.BatchNorm1d(8, momentum=0.5)
    apply = jaxnorm.jit(layer)
    with brainstate.environ.context(fit=True):
        y = apply(x)
        same('BatchNorm1d under jaxnorm.jit', y, alone(X))
    assert y.sharding.is_equivalent_to(rows, 3), y.sharding
    states = ('running_mean', 'running_var')
    same('its running averages', [getattr(layer, n).value for n in states], [getattr(alone, n).value for n in states])
    with brainstate.environ.context(fit=False):
        same('its evaluation', apply(x), alone(X))


def explicit():
    """The type of a batch says where it lies, as by default in meshes of `jax.make_mesh`."""
    devices = jax.make_mesh((8,), ('devices',))
    x = jax.device_put(X, NamedSharding(devices, P('devices')))
    norms = {
        'layer_norm': lambda v: F.layer_norm(v, SCALE, BIAS, where=MASK),
        'group_norm': lambda v: F.group_norm(v, SCALE, BIAS, num_groups=2, activation='gelu'),
        'batch_norm_fit': lambda v: F.batch_norm_fit(v, SCALE, BIAS)[0],
    }
    for name, norm in norms.items():
        both = jax.jit(lambda v, norm=norm: (lambda y, pull: (y, *pull(jnp.cos(y))))(*jax.vjp(norm, v)))
        wanted = both(X)
        with jax.set_mesh(devices):
            same(f'{name} of an explicit sharding', both(x), wanted, 1e-5)
    for name, curve in (('dynamic_tanh', lambda v, s: F.dynamic_tanh(v, 0.5, s)), ('prelu', F.prelu)):
        slope = lambda v, curve=curve: jax.grad(lambda s: curve(v, s).sum())(SCALE)
        wanted = slope(X)
        with jax.set_mesh(devices):
            same(f'{name} by its array, of an explicit sharding', slope(x), wanted, 1e-5)


def nothing_moves():
    """Norms of single samples and activations over an axis need nothing of other devices."""
    x = jax.device_put(X, NamedSharding(mesh(), P('devices')))
    function = lambda v: F.log_softmax(F.instance_norm(F.layer_norm(v))).sum() + F.logsumexp(v, axis=-1).sum()
    program = jax.jit(jax.grad(function)).lower(x).compile().as_text()
    moves = [
        name for name in ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute') if f' {name}(' in program
    ]
    if moves:
        raise SystemExit(f'single samples: {moves} between devices')
    print('single samples, nothing moves: right')


def named_axis():
    """One shard a call; statistics are pooled by name."""
    split = lambda f, n=1: jax.jit(
        jax.shard_map(f, mesh=mesh(), in_specs=(P('devices'),) * n, out_specs=(P('devices'), P(), P()))
    )
    fit = lambda v, w=None: F.batch_norm_fit(v, SCALE, BIAS, where=w, axis_name='devices')
    same('batch_norm_fit in shard_map', split(fit)(X), reference())
    same('with an uneven mask and an empty shard', split(fit, 2)(X, MASK), reference(MASK))
    one = lambda v: F.batch_norm_fit(v, SCALE, BIAS, where=MASK)[0]
    many = lambda v: split(fit, 2)(v, jnp.asarray(MASK))[0]
    same('its gradient', gradient(many)(X), gradient(one)(X))

    mapped = jax.vmap(fit, axis_name='devices')(X.reshape(8, 2, 6, 8), MASK.reshape(8, 2, 6, 1))
    same('batch_norm_fit in vmap', (mapped[0].reshape(X.shape), mapped[1][5], mapped[2][5]), reference(MASK))

    features = jax.shard_map(
        lambda v: F.layer_norm(v, axis_name='devices'), mesh=mesh(), in_specs=P(None, None, 'devices'),
        out_specs=P(None, None, 'devices'),
    )  # fmt: skip
    same('layer_norm of split features', jax.jit(features)(X), F.layer_norm(X))
    far = X + np.float32(1e6)
    wide = np.asarray(far, np.float64)
    exact = (wide - wide.mean((0, 1))) / np.sqrt(wide.var((0, 1)) + 1e-5) * SCALE + BIAS
    same('at a mean of a million', split(fit)(far)[0], exact, 2e-7)


def ghosts():
    """A virtual batch is two shards, or four: the same as without devices."""
    for size in (4, 8):
        one = F.ghost_batch_norm_fit(X, SCALE, BIAS, virtual_batch_size=size)
        many = jax.shard_map(
            lambda v, n=size: F.ghost_batch_norm_fit(v, SCALE, BIAS, virtual_batch_size=n, axis_name='devices')[0],
            mesh=mesh(), in_specs=P('devices'), out_specs=P('devices'),
        )  # fmt: skip
        same(f'ghost_batch_norm_fit of {size} over devices', jax.jit(many)(X), one[0])


def splits():
    """A split is of the whole batch, whether a device holds part of one or several."""

    def run(number, v, mask, axis_name=None):
        layer = nn.SplitBatchNorm(8, num_splits=number, momentum=0.5, axis_name=axis_name)
        y = layer(v, mask, fit=True)
        return y, [s.value for norm in (layer, *layer.aux) for s in (norm.running_mean, norm.running_var)]

    for number, mask in ((2, MASK), (16, MASK | True)):
        many = jax.shard_map(
            lambda v, w, n=number: run(n, v, w, 'devices'),
            mesh=mesh(), in_specs=(P('devices'),) * 2, out_specs=(P('devices'), P()),
        )  # fmt: skip
        same(f'SplitBatchNorm of {number} over devices', jax.jit(many)(X, mask), run(number, X, mask))


def replicated():
    """What is the same on all devices has the gradient of all."""
    whole = lambda s: jnp.sin(F.layer_norm(X, s)).sum()
    split = jax.shard_map(F.layer_norm, mesh=mesh(), in_specs=(P('devices'), P()), out_specs=P('devices'))
    got = jax.jit(jax.grad(lambda s: jnp.sin(split(X, s)).sum()))(SCALE)
    same('the gradient of a scale that all devices have', got, jax.jit(jax.grad(whole))(SCALE))
    fit = lambda f, **k: lambda v: f(v, num_groups=2, **k)[0]
    many = jax.shard_map(
        fit(F.iterative_norm_fit, axis_name='devices'), mesh=mesh(), in_specs=P('devices'), out_specs=P('devices')
    )
    same('the gradient of iterative_norm_fit', gradient(many)(X), gradient(fit(F.iterative_norm_fit))(X))


def groups():
    """Four devices each have statistics of their own."""
    halves = [[0, 1, 2, 3], [4, 5, 6, 7]]
    fit = lambda v: F.batch_norm_fit(v, axis_name='devices', axis_index_groups=halves)[0]
    got = jax.vmap(fit, axis_name='devices')(X.reshape(8, 2, 6, 8)).reshape(X.shape)
    same('axis_index_groups', got, np.concatenate([F.batch_norm_fit(part)[0] for part in (X[:8], X[8:])]))


def unknown_name():
    words = "axis_name must be bound by a surrounding jax.vmap or jax.shard_map, got 'device'; 'devices' is bound"
    with pytest.raises(ValueError, match=words):
        jax.vmap(lambda v: F.batch_norm_fit(v, axis_name='device')[0], axis_name='devices')(X)
    print('an unknown name: refused')


def eight():
    assert jax.device_count() == 8, jax.devices()
    plain_jit()
    explicit()
    nothing_moves()
    named_axis()
    ghosts()
    splits()
    replicated()
    groups()
    unknown_name()


def pair(address, index):
    """Each process holds half of the batch."""
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(address, 2, index, initialization_timeout=60)
    assert jax.process_count() == 2
    rows = NamedSharding(mesh(), P('devices'))
    here = slice(8 * index, 8 * index + 8)
    x, mask = (jax.make_array_from_process_local_data(rows, a[here]) for a in (X, MASK))

    def local(y):
        return np.concatenate([np.asarray(s.data) for s in y.addressable_shards])

    fit = jax.jit(lambda v, w=None: F.batch_norm_fit(v, SCALE, BIAS, where=w))
    for arrays, wanted in (((x,), reference()), ((x, mask), reference(MASK))):
        name = 'batch_norm_fit with a mask' if len(arrays) == 2 else 'batch_norm_fit'
        same(f'{name} on two processes', [local(a) for a in fit(*arrays)], (wanted[0][here], *wanted[1:]))
    named = jax.shard_map(
        lambda v, w: F.batch_norm_fit(v, SCALE, BIAS, where=w, axis_name='devices'), mesh=mesh(),
        in_specs=(P('devices'), P('devices')), out_specs=(P('devices'), P(), P()),
    )  # fmt: skip
    same('in shard_map on two processes', local(jax.jit(named)(x, mask)[0]), reference(MASK)[0][here])
    layer = nn.BatchNorm1d(8, momentum=0.0)
    with brainstate.environ.context(fit=True):
        jaxnorm.jit(layer)(x)
    moments = [local(layer.running_mean.value), local(layer.running_var.value)]
    same('running averages on two processes', moments, reference()[1:])
    jax.distributed.shutdown()


if __name__ == '__main__':
    if sys.argv[1] == 'eight':
        eight()
    else:
        pair(sys.argv[2], int(sys.argv[3]))
