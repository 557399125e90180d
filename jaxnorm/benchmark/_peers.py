"""What is measured: each op's definition, and the same op of every library that has it.

A candidate is a function of no arguments that imports its library and returns the layer, a function of the input
and its parameters; so a library that is not installed costs a row, not the run. Every library is given the same
epsilon. Those that keep parameters in objects build the object while tracing, which costs nothing at run time.
"""

# Peers are measured where they are installed; type checking does without them.
# pyright: reportMissingImports=false

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .. import functional as F
from ._measure import AbsentError, Case, Layer

EPSILON = 1e-5

# --- definitions, which are also what plain autodiff makes of them ---


def _two_pass(x: Any, axes: Any, centred: bool = True) -> Any:
    mean = jnp.mean(x, axes, keepdims=True) if centred else 0
    return (x - mean) / jnp.sqrt(jnp.mean((x - mean) ** 2, axes, keepdims=True) + EPSILON)


def _one_pass(x: Any, scale: Any, bias: Any) -> Any:
    mean, square = jnp.mean(x, -1, keepdims=True), jnp.mean(x * x, -1, keepdims=True)
    return (x - mean) * (jax.lax.rsqrt(square - mean * mean + EPSILON) * scale) + bias


def _layer_norm(x: Any, scale: Any, bias: Any) -> Any:
    return _two_pass(x, -1) * scale + bias


def _rms_norm(x: Any, scale: Any) -> Any:
    return _two_pass(x, -1, centred=False) * scale


def _batch_norm(x: Any, scale: Any, bias: Any) -> Any:
    return _two_pass(x, tuple(range(x.ndim - 1))) * scale + bias


def _group_norm(x: Any, scale: Any, bias: Any, groups: int) -> Any:
    split = x.reshape(*x.shape[:-1], groups, -1)
    axes = tuple(a for a in range(1, split.ndim) if a != split.ndim - 2)
    return _two_pass(split, axes).reshape(x.shape) * scale + bias


# --- layers of the libraries ---


def _keras() -> Any:
    os.environ.setdefault('KERAS_BACKEND', 'jax')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import keras

    if keras.backend.backend() != 'jax':
        raise ImportError('keras runs on another backend than jax', name='keras on jax')
    return keras


def _linen(name: str, **options: Any) -> Layer:
    from flax import linen

    module = getattr(linen, name)(epsilon=EPSILON, **options)

    def layer(x: Any, scale: Any, bias: Any = None) -> Any:
        learned = {'scale': scale} if bias is None else {'scale': scale, 'bias': bias}
        if name != 'BatchNorm':
            return module.apply({'params': learned}, x)
        statistics = {'mean': jnp.zeros(x.shape[-1]), 'var': jnp.ones(x.shape[-1])}
        return module.apply({'params': learned, 'batch_stats': statistics}, x, mutable=['batch_stats'])[0]

    return layer


def _brainstate(name: str, shape: tuple[int, ...], prefix: str = 'init', **options: Any) -> Layer:
    import brainstate

    def layer(x: Any, scale: Any, bias: Any = None) -> Any:
        initial = {f'scale_{prefix}': lambda size: scale.reshape(size)}
        if bias is not None:
            initial[f'bias_{prefix}'] = lambda size: bias.reshape(size)
        with brainstate.environ.context(fit=True):
            return getattr(brainstate.nn, name)(shape, epsilon=EPSILON, **initial, **options)(x)

    return layer


def _equinox(name: str, *sizes: Any) -> Layer:
    import equinox

    options = {'use_bias': False} if name == 'RMSNorm' else {}
    module = getattr(equinox.nn, name)(*sizes, eps=EPSILON, **options)

    def layer(x: Any, scale: Any, bias: Any = None) -> Any:
        if bias is None:
            filled = equinox.tree_at(lambda m: m.weight, module, scale)
        else:
            filled = equinox.tree_at(lambda m: (m.weight, m.bias), module, (scale, bias))
        for _ in x.shape[1:]:  # equinox's are for a single sample
            filled = jax.vmap(filled)
        return filled(x)

    return layer


def _haiku(name: str, *arguments: Any, **options: Any) -> Layer:
    import haiku

    build = haiku.transform(lambda x: getattr(haiku, name)(*arguments, eps=EPSILON, name='norm', **options)(x))
    apply = haiku.without_apply_rng(build).apply

    def layer(x: Any, scale: Any, bias: Any = None) -> Any:
        return apply({'norm': {'scale': scale} if bias is None else {'scale': scale, 'offset': bias}}, x)

    return layer


def _keras_layer(name: str, shape: tuple[int, ...], **options: Any) -> Layer:
    module = getattr(_keras().layers, name)(epsilon=EPSILON, **options)
    module.build((None, *shape[1:]))
    return lambda x, *parameters: module.stateless_call(list(parameters), [], x)[0]


def _torch(make: Callable[[Any, Any], Layer]) -> Callable[[], Layer]:
    def factory() -> Layer:
        import torch

        return make(torch, torch.nn.functional)

    return factory


def _channels_first(layer: Layer) -> Layer:
    """PyTorch's channels are in front: a view of the same memory, which it calls channels last."""
    return lambda x, *rest: layer(x.movedim(-1, 1), *rest).movedim(1, -1)


def norms(shape: tuple[int, ...] | None, dtype: str) -> dict[str, Case]:
    """The norms; rows where they normalize rows, images where they normalize channels."""
    rows = shape or (4096, 1024)
    image = shape or (32, 16, 16, 128)
    width, channels = rows[-1], image[-1]
    groups = max(channels // 4, 1)
    own: Any = {'epsilon': EPSILON}
    cases = [
        Case('layer_norm', rows, dtype, _layer_norm, {
            'jaxnorm': lambda: partial(F.layer_norm, **own),
            'jax, two passes': lambda: _layer_norm,
            'jax, E[x²]-E[x]²': lambda: _one_pass,
            'jax.nn.standardize': lambda: lambda x, s, b: jax.nn.standardize(x, epsilon=EPSILON) * s + b,
            'flax': lambda: _linen('LayerNorm'),
            'brainstate': lambda: _brainstate('LayerNorm', (width,)),
            'equinox': lambda: _equinox('LayerNorm', width),
            'haiku': lambda: _haiku('LayerNorm', -1, True, True, param_axis=-1),
            'keras': lambda: _keras_layer('LayerNormalization', rows),
            'torch': _torch(lambda t, f: lambda x, s, b: f.layer_norm(x, (width,), s, b, EPSILON)),
        }, ((width,), (width,))),
        Case('rms_norm', rows, dtype, _rms_norm, {
            'jaxnorm': lambda: partial(F.rms_norm, **own),
            'jax, as defined': lambda: _rms_norm,
            'flax': lambda: _linen('RMSNorm'),
            'brainstate': lambda: _brainstate('RMSNorm', (width,)),
            'equinox': lambda: _equinox('RMSNorm', width),
            'haiku': lambda: _haiku('RMSNorm', -1),
            'keras': lambda: _keras_layer('RMSNormalization', rows),
            'torch': _torch(lambda t, f: lambda x, s: f.rms_norm(x, (width,), s, EPSILON)),
        }, ((width,),)),
        Case('batch_norm_fit', image, dtype, _batch_norm, {
            'jaxnorm': lambda: lambda x, s, b: F.batch_norm_fit(x, s, b, **own)[0],
            'jax, two passes': lambda: _batch_norm,
            'flax': lambda: _linen('BatchNorm', use_running_average=False),
            'brainstate': lambda: _brainstate(f'BatchNorm{len(image) - 2}d', image[1:], 'initializer'),
            'torch': _torch(lambda t, f: _channels_first(
                lambda x, s, b: f.batch_norm(x, None, None, s, b, True, 0.0, EPSILON))),
        }, ((channels,), (channels,))),
        Case('group_norm', image, dtype, partial(_group_norm, groups=groups), {
            'jaxnorm': lambda: partial(F.group_norm, num_groups=groups, **own),
            'jax, two passes': lambda: partial(_group_norm, groups=groups),
            'flax': lambda: _linen('GroupNorm', num_groups=groups),
            'keras': lambda: _keras_layer('GroupNormalization', image, groups=groups),
            'haiku': lambda: _haiku('GroupNorm', groups),
            'torch': _torch(lambda t, f: _channels_first(lambda x, s, b: f.group_norm(x, groups, s, b, EPSILON))),
        }, ((channels,), (channels,))),
        Case('instance_norm', image, dtype, partial(_group_norm, groups=channels), {
            'jaxnorm': lambda: partial(F.instance_norm, **own),
            'jax, two passes': lambda: partial(_group_norm, groups=channels),
            'flax': lambda: _linen('InstanceNorm'),
            'torch': _torch(lambda t, f: _channels_first(
                lambda x, s, b: f.instance_norm(x, None, None, s, b, True, 0.0, EPSILON))),
        }, ((channels,), (channels,))),
    ]  # fmt: skip
    return {case.op: case for case in cases}


def _logistic(x: Any) -> Any:
    return 1 / (1 + jnp.exp(-x))


def _below(x: Any) -> Any:
    return jnp.expm1(jnp.minimum(x, 0))


#: op: (definition in float64, options of all but PyTorch, name and options in PyTorch; None where it has none)
_ACTIVATIONS: dict[str, tuple[Layer, dict[str, Any], str | None, dict[str, Any]]] = {
    'relu': (lambda x: jnp.maximum(x, 0), {}, 'relu', {}),
    'relu6': (lambda x: jnp.clip(x, 0, 6), {}, 'relu6', {}),
    'leaky_relu': (lambda x: jnp.where(x > 0, x, 0.01 * x), {}, 'leaky_relu', {}),
    'elu': (lambda x: jnp.where(x > 0, x, _below(x)), {}, 'elu', {}),
    'celu': (lambda x: jnp.where(x > 0, x, _below(x)), {}, 'celu', {}),
    'selu': (
        lambda x: 1.0507009873554805 * jnp.where(x > 0, x, 1.6732632423543772 * _below(x)),
        {},
        'selu',
        {},
    ),
    'gelu': (lambda x: x * jax.scipy.special.ndtr(x), {'approximate': False}, 'gelu', {}),
    'gelu_tanh': (
        lambda x: x / 2 * (1 + jnp.tanh((2 / jnp.pi) ** 0.5 * (x + 0.044715 * x**3))),
        {'approximate': True},
        'gelu',
        {'approximate': 'tanh'},
    ),
    'silu': (lambda x: x * _logistic(x), {}, 'silu', {}),
    'mish': (lambda x: x * jnp.tanh(jnp.logaddexp(0, x)), {}, 'mish', {}),
    'sigmoid': (_logistic, {}, 'sigmoid', {}),
    'log_sigmoid': (lambda x: -jnp.logaddexp(0, -x), {}, 'logsigmoid', {}),
    'tanh': (jnp.tanh, {}, 'tanh', {}),
    'softplus': (lambda x: jnp.logaddexp(0, x), {}, 'softplus', {}),
    'squareplus': (lambda x: (x + jnp.sqrt(x * x + 4)) / 2, {}, None, {}),
    'soft_sign': (lambda x: x / (1 + abs(x)), {}, 'softsign', {}),
    'hard_sigmoid': (lambda x: jnp.clip(x + 3, 0, 6) / 6, {}, 'hardsigmoid', {}),
    'hard_silu': (lambda x: x * jnp.clip(x + 3, 0, 6) / 6, {}, 'hardswish', {}),
    'hard_tanh': (lambda x: jnp.clip(x, -1, 1), {}, 'hardtanh', {}),
    'sparse_plus': (lambda x: jnp.where(x < 1, jnp.maximum(x + 1, 0) ** 2 / 4, x), {}, None, {}),
    'sparse_sigmoid': (lambda x: jnp.where(x >= 1, 1, jnp.where(x <= -1, 0, (x + 1) / 2)), {}, None, {}),
    'hard_shrink': (lambda x: jnp.where(abs(x) > 0.5, x, 0), {}, 'hardshrink', {}),
    'soft_shrink': (lambda x: jnp.sign(x) * jnp.maximum(abs(x) - 0.5, 0), {}, 'softshrink', {}),
    'tanh_shrink': (lambda x: x - jnp.tanh(x), {}, 'tanhshrink', {}),
    'softmax': (lambda x: jax.nn.softmax(x), {}, 'softmax', {'dim': -1}),
    'log_softmax': (lambda x: jax.nn.log_softmax(x), {}, 'log_softmax', {'dim': -1}),
    'softmin': (lambda x: jax.nn.softmax(-x), {}, 'softmin', {'dim': -1}),
    'logsumexp': (
        lambda x: jnp.log(jnp.exp(x).sum(-1, keepdims=True)),
        {'axis': -1, 'keepdims': True},
        'logsumexp',
        {'dim': -1, 'keepdim': True},
    ),
    'glu': (lambda x: x[..., : x.shape[-1] // 2] * _logistic(x[..., x.shape[-1] // 2 :]), {}, 'glu', {}),
}
#: what changes the shape, or would carry a chain to its kink, made a layer of a chain; with the library's own `tile`
_LAYERS: dict[str, Callable[[Layer, Any], Layer]] = {
    'glu': lambda f, tile: lambda x: tile(f(x), (1, 2)),
    'logsumexp': lambda f, tile: lambda x: x - f(x),
    'sparse_sigmoid': lambda f, tile: lambda x: f(x) - 0.5,
}


def activations(shape: tuple[int, ...] | None, dtype: str, chained: bool = True) -> dict[str, Case]:
    """The activations, each with the libraries that have it; `chained`: as layers of a chain."""
    cases = {}
    for op, (definition, options, torch_name, torch_options) in _ACTIVATIONS.items():
        name = op.removesuffix('_tanh') if op == 'gelu_tanh' else op
        if not hasattr(F, name):
            continue

        layer = (chained and _LAYERS.get(op)) or (lambda f, tile: f)

        def of(
            module: Callable[[], Any], name: str = name, options: dict[str, Any] = options, layer: Any = layer
        ) -> Callable[[], Layer]:
            def factory() -> Layer:
                function = getattr(module(), name, None)
                if function is None:
                    raise AbsentError
                return layer(partial(function, **options), jnp.tile)

            return factory

        def in_torch(
            t: Any, f: Any, name: str | None = torch_name, options: dict[str, Any] = torch_options, layer: Any = layer
        ) -> Layer:
            if name is None:
                raise AbsentError
            return layer(partial(getattr(f, name, None) or getattr(t, name), **options), t.tile)

        cases[op] = Case(op, shape or (2048, 1024), dtype, layer(definition, jnp.tile), {
            'jaxnorm': of(lambda: F),
            'jax.nn': of(lambda: jax.nn),
            'brainstate': of(_brainstate_nn),
            'flax': of(_flax_nn),
            'keras': of(lambda: _KerasActivations(_keras())),
            'torch': _torch(in_torch),
        })  # fmt: skip
    return cases


def _brainstate_nn() -> Any:
    import brainstate

    return brainstate.nn


def _flax_nn() -> Any:
    from flax import nnx

    return nnx


class _KerasActivations:
    """Keras's activations under the names of the others."""

    def __init__(self, keras: Any) -> None:
        self.gelu, self.leaky_relu = keras.activations.gelu, partial(keras.activations.leaky_relu, negative_slope=0.01)
        self.keras = keras

    def __getattr__(self, name: str) -> Any:
        return getattr(self.keras.activations, name, None)
