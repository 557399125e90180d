"""What is done with the running statistics of a whole model, and with its batch norms."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import brainstate
import brainunit
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .. import functional as F
from ._batch import _BatchNorm
from ._fit import jit, replaced
from ._normalization import GroupNorm, InstanceNorm
from ._running import POOLING, Running

T = TypeVar('T')


def _replaced(tree: Any, visit: Callable[[Any], Any], seen: dict[int, Any]) -> Any:
    """`tree` with `visit(layer)` for each layer with running statistics; modules, lists and dicts are changed."""
    if id(tree) in seen:
        return seen[id(tree)][1]
    # the key is beside its value, so that no other object gets its id meanwhile
    if isinstance(tree, Running):
        new = visit(tree)
        seen[id(tree)] = tree, new
        if new is not tree:
            return new
    if isinstance(tree, brainstate.graph.Node):
        seen[id(tree)] = tree, tree
        for name, value in list(vars(tree).items()):
            new = _replaced(value, visit, seen)
            if new is not value:
                setattr(tree, name, new)
    elif isinstance(tree, list | dict):
        seen[id(tree)] = tree, tree
        for name, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            new = _replaced(value, visit, seen)
            if new is not value:
                tree[name] = new
    elif isinstance(tree, tuple):
        parts = [_replaced(value, visit, seen) for value in tree]
        if any(new is not value for new, value in zip(parts, tree, strict=True)):
            return type(tree)(*parts) if hasattr(tree, '_fields') else type(tree)(parts)
    return tree


def _layers(op: str, model: Any, kind: Any = Running, what: str = 'a layer with running statistics') -> list[Any]:
    """The layers of a kind in a model, each once."""
    found: list[Any] = []

    def visit(layer: Any) -> Any:
        found.extend([layer] if isinstance(layer, kind) else [])
        return layer

    _replaced(model, visit, {})
    if not found:
        raise ValueError(
            f'{op}: model must hold {what} of jaxnorm.nn, got {type(model).__name__} without one; pass the module that '
            'holds them.'
        )
    return found


def _tracking(op: str, model: Any, of_data: bool = False) -> list[Running]:
    """Those with running statistics, or with such that are of data."""
    layers = _layers(op, model)
    found = [layer for layer in layers if layer._running and (layer._of_data or not of_data)]
    if not found:
        raise ValueError(
            f'{op}: model must hold running statistics{" of data" if of_data else ""}, got none in '
            f'{", ".join(sorted({type(layer).__name__ for layer in layers}))}; construct a batch norm with them.'
        )
    if any(layer in POOLING for layer in found):
        raise ValueError(
            f'{op}: model must not be inside accumulate_statistics or recalibrate already, got one that is; leave '
            'the outer one first.'
        )
    return found


@contextlib.contextmanager
def _pooled(op: str, layers: list[Running]) -> Iterator[list[tuple[Running, dict[str, Any]]]]:
    """Pool what batches give to the layers inside; they are in the list after it, which stays empty where it raises."""
    states = [state for layer in layers for state in layer._running]
    before = [state.value for state in states]
    results: list[tuple[Running, dict[str, Any]]] = []
    try:
        for layer in layers:
            layer._pool(op)
        yield results
        moved = not all(map(_same, [state.value for state in states], before))
        results += [(layer, layer._pooled()) for layer in layers]
    finally:
        for layer in layers:
            layer._unpool()
        for state, value in zip(states, before, strict=True):
            state.value = value
    if moved:
        raise RuntimeError(
            f'{op}: running statistics must not move inside it, got some that did, in a function that was traced '
            'before; jit the function with jaxnorm.jit, which traces it again.'
        )


def _same(a: Any, b: Any) -> bool:
    """Whether two running statistics are one; traced ones are where they are the same object."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    if any(isinstance(v, jax.core.Tracer) for pair in pairs for v in pair):
        return all(x is y for x, y in pairs)
    return a is b or all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)


@contextlib.contextmanager
def accumulate_statistics(model: T) -> Iterator[T]:
    """Inside, the micro-batches of gradient accumulation move running statistics as one large batch would, at the end.

    Each micro-batch is normalized by its own moments, as ever. These are merged as count, mean and variance, and the
    running statistics move once, when the context is left; not at all if it is left by an exception.

    Parameters
    ----------
    model : brainstate.nn.Module
        A layer with running statistics (of batch norm's family, EvoNormB0, IterNorm or SpectralNorm), or a module, list
        or dict that holds some.

    Yields
    ------
    module
        The model itself.

    Raises
    ------
    ValueError
        If the model holds no running statistics, or is inside such a context already.
    RuntimeError
        If running statistics moved inside, because a function was traced before by another jit than `jaxnorm.jit`.

    Notes
    -----
    The calls may be jitted by `jaxnorm.jit`, inside or outside of which the context may be. A micro-batch that is empty
    or masked out has no weight; one that is not finite leaves the running statistics as they were, as the large batch
    would. The statistics of ghost batch norms are averaged over virtual batches, as in one call. The singular vector of
    a SpectralNorm rests inside, and moves once.

    References
    ----------
    Chan, Golub & LeVeque, "Algorithms for computing the sample variance", The American Statistician 37, 1983.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer, x = jaxnorm.nn.BatchNorm0d(1, momentum=0.0), jnp.arange(8.0)[:, None]
    >>> with jaxnorm.nn.accumulate_statistics(layer):
    ...     for part in jnp.split(x, 4):
    ...         y = layer(part, fit=True)
    >>> layer.running_mean.value.tolist(), layer.running_var.value.tolist()
    ([3.5], [5.25])
    """
    with _pooled('accumulate_statistics', _tracking('accumulate_statistics', model)) as results:
        yield model
    for layer, seen in results:
        layer._settle(seen.get('mean'))
        layer._commit(seen)


def recalibrate(
    model: T,
    batches: Iterable[Any],
    *,
    apply: Callable[[Any], Any] | None = None,
    progress: bool = False,
) -> T:
    """Set the running statistics to those of a data set: its pooled mean and variance, exactly.

    What a running average cannot give after weights were averaged (SWA, EMA), pruned or quantized, or where it lags.

    Parameters
    ----------
    model : brainstate.nn.Module
        A batch norm, EvoNormB0 or IterNorm, or a module that holds some; frozen ones keep what they have.
    batches : iterable
        The inputs, a batch each; of a tuple or list the first element, as data loaders give inputs and labels.
    apply : callable, optional
        What is done with a batch as it comes; by default ``model(batch)``, jitted.
    progress : bool
        Whether to show a progress bar; this needs tqdm.

    Returns
    -------
    module
        The model itself.

    Raises
    ------
    ValueError
        If the model holds no running statistics that are not frozen, there are no batches, one is not finite, or none
        comes to a layer of the model.
    ImportError
        If a progress bar is asked for and tqdm is not installed.

    Notes
    -----
    These layers normalize by the batch meanwhile, as while fitting; everything else evaluates, dropout for one. Nothing
    but running statistics changes, and nothing at all if something raises. A layer to which no batch comes keeps what
    it has.

    References
    ----------
    Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021, arXiv:2105.07576, section 3; Izmailov et al., "Averaging
    weights leads to wider optima and better generalization", 2018, arXiv:1803.05407.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer, x = jaxnorm.nn.BatchNorm0d(1), jnp.arange(8.0)[:, None]
    >>> layer = jaxnorm.nn.recalibrate(layer, jnp.split(x, 4))
    >>> layer.running_mean.value.tolist(), layer.running_var.value.tolist()
    ([3.5], [5.25])
    """
    op = 'recalibrate'
    if not isinstance(batches, Iterable):
        raise TypeError(
            f'{op}: batches must be an iterable of inputs, got {_checks.describe(batches)}; put it in a list.'
        )
    layers = [layer for layer in _tracking(op, model, of_data=True) if not layer.frozen]
    if not layers:
        raise ValueError(f'{op}: model must hold a batch norm that is not frozen, got none; unfreeze it first.')
    if progress:
        batches = _with_progress(op, batches)
    if apply is None:
        if not callable(model):
            raise TypeError(f'{op}: apply must say what to do with a batch, got a {type(model).__name__} that cannot '
                            'be called; pass a function.')  # fmt: skip
        whole = jit(lambda x: model(x))

        def of_inputs(batch: Any) -> Any:
            return whole(batch[0] if isinstance(batch, tuple | list) else batch)

        apply = of_inputs
    states = list({id(s): s for s in _states(model)}.values())
    before = [state.value for state in states]
    number = 0
    try:
        with _pooled(op, layers) as results, brainstate.environ.context(fit=False):
            for batch in batches:
                apply(batch)
                number += 1
    finally:
        for state, value in zip(states, before, strict=True):
            state.value = value
    if not number:
        raise ValueError(f'{op}: batches must hold at least one batch, got none; an iterator is used up after one run.')
    pooled = [(layer, seen) for layer, seen in results if int(seen['batches'])]
    if not pooled:
        raise ValueError(
            f'{op}: apply must call the model so that its layers follow the context, got no batch in any of them; '
            'leave fit out of the call, and jit it with jaxnorm.jit.'
        )
    for layer, seen in pooled:
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(seen)):
            raise ValueError(
                f'{op}: batches must give finite values, got others in a {type(layer).__name__}; look for them in the '
                'inputs and weights.'
            )
    for layer, seen in pooled:
        layer._settle(seen.get('mean'))
        layer._commit(seen, weight=1.0)
    return model


def _states(model: Any) -> Iterator[brainstate.State]:
    if isinstance(model, brainstate.graph.Node):
        yield from cast(Any, brainstate.graph.states(model)).values()
    elif isinstance(model, dict | list | tuple):
        for part in model.values() if isinstance(model, dict) else model:
            yield from _states(part)


def _with_progress(op: str, batches: Iterable[Any]) -> Iterable[Any]:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(f"{op}: progress needs tqdm, which is not installed; run 'pip install tqdm'.") from error
    return tqdm(batches, desc=op, unit='batch')


def freeze(model: T) -> T:
    """Freeze the running statistics of a model: its layers evaluate whatever the environment says.

    Parameters
    ----------
    model : brainstate.nn.Module
        A layer with running statistics (of batch norm's family, EvoNormB0, IterNorm, or SpectralNorm with its singular
        vector), or a module, list or dict that holds some.

    Returns
    -------
    module
        The model itself.

    Raises
    ------
    ValueError
        If the model holds no layer with running statistics.

    Notes
    -----
    Scale and bias go on learning; leave them out of what the optimizer is given to stop them. The call's `fit` still
    overrules the flag. What `jaxnorm.jit` has traced follows; other jits go on with what they have traced.

    References
    ----------
    The flag is detectron2's FrozenBatchNorm and Keras' ``trainable = False``, of the statistics alone.

    Examples
    --------
    >>> import jaxnorm
    >>> layer = jaxnorm.nn.freeze(jaxnorm.nn.BatchNorm0d(3))
    >>> layer.frozen
    True
    """
    for layer in _layers('freeze', model):
        layer.frozen = True
    return model


def unfreeze(model: T) -> T:
    """Let the layers with running statistics of a model follow the environment again.

    Parameters
    ----------
    model : brainstate.nn.Module
        A layer with running statistics, or a module, list or dict that holds some.

    Returns
    -------
    module
        The model itself.

    Raises
    ------
    ValueError
        If the model holds no layer with running statistics.

    Notes
    -----
    The inverse of `freeze`.

    References
    ----------
    As for `freeze`.

    Examples
    --------
    >>> import jaxnorm
    >>> layer = jaxnorm.nn.unfreeze(jaxnorm.nn.BatchNorm0d(3, frozen=True))
    >>> layer.frozen
    False
    """
    for layer in _layers('unfreeze', model):
        layer.frozen = False
    return model


#: What is folded, and the output axis of its weight.
_FOLDED = {
    brainstate.nn.Linear: -1,
    **{getattr(brainstate.nn, f'Conv{n}d'): -1 for n in (1, 2, 3)},
    **{getattr(brainstate.nn, f'ConvTranspose{n}d'): -2 for n in (1, 2, 3)},
}


def fold(layer: T, batch_norm: Any) -> T:
    """One layer that computes what a linear one and the batch norm behind it do while evaluating.

    Parameters
    ----------
    layer : brainstate.nn.Linear, Conv1d, Conv2d, Conv3d, or a transposed one
        Masked weights stay masked.
    batch_norm : BatchNorm, of any rank
        With running statistics.

    Returns
    -------
    module
        A new layer of the same class, with a bias; the two are left as they are.

    Raises
    ------
    TypeError
        For other layers: standardized or signed weights would undo the scaling.
    ValueError
        For a batch norm without running statistics, of other channels than those of the layer, or with an
        activation or a dtype, and for running statistics with a unit.

    Notes
    -----
    The weights are multiplied by scale / sqrt(var + epsilon), and the bias is what the batch norm makes of that of the
    layer, in at least float32, rounded to the dtype of the weights.

    References
    ----------
    Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference", 2018,
    arXiv:1712.05877, section 3.2.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, jaxnorm
    >>> linear, norm = brainstate.nn.Linear(3, 2), jaxnorm.nn.BatchNorm0d(2)
    >>> x = jnp.arange(12.0).reshape(4, 3)
    >>> both = jaxnorm.nn.fold(linear, norm)
    >>> bool(jnp.allclose(both(x), norm(linear(x), fit=False), atol=1e-5))
    True
    """
    op = 'fold'
    if type(layer) not in _FOLDED:
        raise TypeError(
            f'{op}: layer must be a Linear, a convolution or a transposed one of brainstate.nn, got '
            f'{type(layer).__name__}; other weights do not scale with the output.'
        )
    if not isinstance(batch_norm, _BatchNorm):
        raise TypeError(
            f'{op}: batch_norm must be a batch norm of jaxnorm.nn, got {type(batch_norm).__name__}; others have no '
            'statistics to fold.'
        )
    if not batch_norm.track_running_stats:
        raise ValueError(
            f'{op}: batch_norm must have running statistics, got track_running_stats=False; it normalizes by the batch.'
        )
    if batch_norm.activation is not None:
        raise ValueError(
            f'{op}: batch_norm must have no activation, got one; apply it to the output of the folded layer.'
        )
    if batch_norm.dtype is not None:
        raise ValueError(
            f'{op}: batch_norm must have no dtype of its own, got {batch_norm.dtype}; convert the output of the folded '
            'layer.'
        )
    linear = cast(Any, layer)  # brainstate hides the attributes from checkers
    rank = len(linear.out_size) + 1
    first = getattr(layer, 'channel_first', False)
    axes = tuple(a % rank for a in batch_norm._channel_axes)
    channels = linear.out_size[0 if first else -1]
    statistics = batch_norm.running_mean.value, batch_norm.running_var.value
    if axes != (1 if first else rank - 1,) or np.size(statistics[0]) != channels:
        raise ValueError(
            f'{op}: batch_norm must have the {channels} channels of the layer on its axis {1 if first else rank - 1}, '
            f'got {np.size(statistics[0])} on {axes}; fold a layer with the norm that follows it.'
        )
    params = dict(linear.weight.value)
    others = sorted(params.keys() - {'bias'})
    if others != ['weight']:
        raise ValueError(
            f'{op}: layer must hold its weight as it is, got one made of {others}; fold what merge() of its wrapper '
            'returns.'
        )
    if any(isinstance(v, brainunit.Quantity) for v in (*statistics, *params.values())):
        raise ValueError(
            f'{op}: batch_norm and layer must have values without a unit, got running means {statistics[0]}; divide '
            'the input by its unit.'
        )
    mean, var = (s.reshape(channels) for s in statistics)
    affine = {n: v.reshape(channels) for n, v in batch_norm._affine.items()}
    weight = params['weight']
    bias = params['bias'].reshape(channels) if 'bias' in params else jnp.zeros(channels, weight.dtype)
    wide = jnp.promote_types(weight.dtype, jnp.float32)
    rate = F.batch_norm(jnp.ones(channels, wide), jnp.zeros_like(mean), var, affine.get('scale'), axis=0,
                        epsilon=batch_norm.epsilon)  # fmt: skip
    shift = F.batch_norm(bias.astype(wide), mean, var, **affine, axis=0, epsilon=batch_norm.epsilon)
    shape = (channels,) if rank == 2 or isinstance(layer, brainstate.nn.Linear) else (1,) * (rank - 2) + (channels,)
    shape = (1, channels) + (1,) * (rank - 2) if first else shape
    folded = copy.deepcopy(layer)
    rate = rate.reshape(-1, *(1,) * (-1 - _FOLDED[type(layer)]))
    cast(Any, folded).weight = type(linear.weight)(
        {'weight': (weight * rate).astype(weight.dtype), 'bias': shift.reshape(shape).astype(weight.dtype)}
    )
    return folded


def convert(model: T, to: Any, **options: Any) -> T:
    """Put other norms in the place of all batch norms of a model, with their scales and biases.

    Parameters
    ----------
    model : brainstate.nn.Module
        A batch norm, or a module, list or dict that holds some, at any depth; it is changed.
    to : GroupNorm, InstanceNorm, a class of batch norms, or 'frozen'
        The class of `jaxnorm.nn` to convert to. Batch norms keep their running statistics; 'frozen' is `freeze`.
    **options
        Options of the new layers. Where a group norm is told neither `num_groups` nor `group_size`, it has 32 groups,
        or the largest power of two that divides the channels.

    Returns
    -------
    module
        The model itself, or the new layer where it is a batch norm.

    Raises
    ------
    TypeError, ValueError
        If `to` is something else, the model holds no batch norm, or a new layer cannot be made; the model is then as
        it was.

    Notes
    -----
    States are handed over, not copied, so that an optimizer goes on with the same ones, unless the new layers go
    without scale or bias or learn the scale as an offset. Epsilon and activation stay. Layers that are shared stay
    shared. The parts of a split batch norm begin as copies; of one that is converted, the first is what is kept. Other
    layers with running statistics (EvoNormB0, IterNorm, SpectralNorm) are not what is converted, and stay as they are.
    What `jaxnorm.jit` has traced is traced again.

    References
    ----------
    Wu & He, "Group normalization", 2018, arXiv:1803.08494.

    Examples
    --------
    >>> import brainstate, jaxnorm
    >>> model = brainstate.nn.Sequential(brainstate.nn.Linear(3, 8), jaxnorm.nn.BatchNorm0d(8))
    >>> model = jaxnorm.nn.convert(model, jaxnorm.nn.GroupNorm, num_groups=4)
    >>> type(model[1]).__name__, model[1].num_groups
    ('GroupNorm', 4)
    """
    op = 'convert'
    if to == 'frozen':
        if options:
            raise TypeError(f"{op}: options must be left out for 'frozen', got {sorted(options)}; it makes no layers.")
        return freeze(model)
    if not isinstance(to, type) or not issubclass(to, _BatchNorm | GroupNorm | InstanceNorm):
        raise TypeError(
            f"{op}: to must be GroupNorm, InstanceNorm, a batch norm of jaxnorm.nn or 'frozen', "
            f'got {_checks.describe(to)}; pass for example jaxnorm.nn.GroupNorm.'
        )
    # all of them first, so that the model stays as it is where one cannot be made
    made = {layer: _converted(op, layer, to, options) for layer in _layers(op, model, _BatchNorm, 'a batch norm')}
    replaced()
    return _replaced(model, lambda layer: made.get(layer, layer), {})


def _converted(op: str, layer: Any, to: Any, options: dict[str, Any]) -> Any:
    """A layer of the class `to` with what belongs to a batch norm."""
    # a number of channels says nothing of other axes: there `feature_axis` is the input's, the batch not counted
    any_axis = layer._axis
    size = layer._size if any_axis is None else layer._size[0]
    axes = layer.feature_axes if any_axis is None else (any_axis - (any_axis > 0),)
    given = layer._affine
    arguments = {
        'epsilon': layer.epsilon,
        'activation': layer.activation,
        'dtype': layer.dtype,
        'use_scale': 'scale' in given,
        'use_bias': 'bias' in given,
        'axis_name': None,
    }
    keeps = issubclass(to, _BatchNorm) and layer.track_running_stats
    if issubclass(to, _BatchNorm):
        same = ('momentum', 'track_running_stats', 'frozen', 'debias', 'unbiased', 'count_skipped', 'axis_name')
        arguments |= {n: getattr(layer, n) for n in (*same, 'axis_index_groups')}
    elif to is InstanceNorm and layer.num_spatial_dims == 0:
        raise ValueError(
            f'{op}: to must not be InstanceNorm for a {type(layer).__name__}, which has no axis to reduce but the '
            'batch, got it; take a GroupNorm.'
        )
    elif issubclass(to, GroupNorm) and not {'num_groups', 'group_size'} & options.keys():
        arguments['num_groups'] = math.gcd(32, math.prod(layer._size[a] for a in layer.feature_axes))
    elif 'group_size' in options:
        arguments['num_groups'] = None
    new: Any = to(size, axes[0] if len(axes) == 1 else axes, **(arguments | options))
    _hand_over(layer, new, keeps)
    # the other parts of a split batch norm begin as copies of the first
    for part in getattr(new, 'aux', ()):
        _hand_over(copy.deepcopy(layer), part, keeps)
    return new


def _hand_over(layer: Any, new: Any, keeps: bool) -> None:
    """Scale and bias, and running statistics where both have some, from one layer to another."""
    given, offset = layer._affine, getattr(new, 'scale_offset', 0.0)
    if given and new._affine.keys() == given.keys() and not offset:
        new.weight = layer.weight  # an optimizer goes on with the same state
    elif new._affine:
        known = {n: v.reshape(new._affine[n].shape) for n, v in given.items() if n in new._affine}
        if 'scale' in known:
            known['scale'] = known['scale'] - offset
        new.weight.value = {**new.weight.value, **known}
    if keeps and new.track_running_stats:
        for name in ('running_mean', 'running_var', 'num_batches_tracked', 'num_batches_skipped'):
            if hasattr(layer, name) and hasattr(new, name):
                setattr(new, name, getattr(layer, name))
