"""Argument checks. Each failure is one sentence: op, argument, what came, what to do."""

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from ._typing import Array


def describe(value: Any) -> str:
    """Say in a few words what came: dtype and shape of an array, else type and value."""
    if hasattr(value, 'shape') and hasattr(value, 'dtype'):
        return f'{value.dtype}{list(value.shape)}'
    text = repr(value)
    return f'{type(value).__name__} {text if len(text) <= 60 else text[:57] + "..."}'


def takes(op: str, constants: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Refuse what no compiled function takes: a constant that has no hash, or an array that is none."""
    for argument, value in constants.items():
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f'{op}: {argument} must be a number or an array, got {describe(value)}; '
                f'convert it with jnp.asarray({argument}) first.'
            ) from None
    for argument, value in arrays.items():
        if isinstance(value, list) or not _does(jax.jit(lambda a: None), value):
            fix = 'pass it as a float' if isinstance(value, int) else 'pass numbers, or an array of them'
            if _does(jnp.asarray, value):
                fix = f'convert it with jnp.asarray({argument}) first'
            raise TypeError(f'{op}: {argument} must be an array, got {describe(value)}; {fix}.') from None


def _does(function: Callable[[Any], Any], value: Any) -> bool:
    """Whether JAX takes `value`."""
    try:
        function(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def is_int(value: Any) -> bool:
    """Whether `value` is an integer of Python or numpy, which a bool is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def floating(op: str, argument: str, value: Any) -> Array:
    """Return `value` as a real floating array; integers become the default float."""
    if isinstance(value, list | tuple | dict | set | str | bytes) or value is None:
        raise TypeError(
            f'{op}: {argument} must be an array, got {describe(value)}; convert it with jnp.asarray({argument}) first.'
        )
    try:
        array = jnp.asarray(value)
    except TypeError as error:
        raise TypeError(
            f'{op}: {argument} must be an array, got {describe(value)}; convert it with jnp.asarray({argument}) first.'
        ) from error
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(jax.dtypes.canonicalize_dtype(float))
    fix = 'pass its real and imaginary parts separately' if jnp.iscomplexobj(array) else 'use .astype(jnp.float32)'
    raise TypeError(f'{op}: {argument} must hold real numbers, got {describe(array)}; {fix}.')


def number(
    op: str,
    argument: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> float:
    """Return `value` as a Python float inside the given bounds."""
    bounds = [
        f'{word} {limit:g}'
        for word, limit in (('above', above), ('at least', at_least), ('at most', at_most), ('below', below))
        if math.isfinite(limit)
    ]
    must = ' '.join(['a finite number', ' and '.join(bounds)]).strip()
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f'{op}: {argument} must be {must} known before tracing, got a traced array; pass a Python float.'
        )
    if isinstance(value, bool | np.bool_) or not (
        isinstance(value, numbers.Real) or (isinstance(value, np.ndarray | jax.Array) and value.ndim == 0)
    ):
        raise TypeError(f'{op}: {argument} must be {must}, got {describe(value)}; pass a Python float.')
    result = float(value)
    if not (math.isfinite(result) and above < result < below and at_least <= result <= at_most):
        raise ValueError(f'{op}: {argument} must be {must}, got {result!r}; choose a value in that range.')
    return result


def integer(op: str, argument: str, value: Any, *, at_least: int = 1, at_most: int | None = None) -> int:
    """Return `value` as a Python int inside the given bounds."""
    if not is_int(value):
        raise TypeError(f'{op}: {argument} must be an integer, got {describe(value)}; pass a Python int.')
    if value < at_least:
        raise ValueError(f'{op}: {argument} must be at least {at_least}, got {value}; choose a larger one.')
    if at_most is not None and value > at_most:
        raise ValueError(f'{op}: {argument} must be at most {at_most}, got {value}; choose a smaller one.')
    return int(value)


def floating_dtype(op: str, argument: str, value: Any) -> Any:
    """Return `value` if it is a dtype of real numbers, or the name of one."""
    try:
        real = jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        real = False
    if not real:
        raise TypeError(
            f'{op}: {argument} must be a dtype of real numbers, got {describe(value)}; pass for example jnp.bfloat16.'
        )
    return value


def flag(op: str, argument: str, value: Any) -> bool:
    """Return `value` as a Python bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f'{op}: {argument} must be True or False, got {describe(value)}; pass a Python bool.')
    return bool(value)


def axes(op: str, argument: str, axis: Any, ndim: int, empty: bool = False) -> tuple[int, ...]:
    """Return `axis` as a sorted tuple of distinct non-negative axes of an array of rank `ndim`."""
    chosen = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    if empty and not chosen:
        return ()
    if not ndim:
        raise ValueError(f'{op}: x must have an axis to work on, got a single number; pass an array of rank 1 or more.')
    if not chosen:
        raise ValueError(f'{op}: {argument} must name at least one axis, got {axis!r}; pass for example -1.')
    for a in chosen:
        if not is_int(a):
            raise TypeError(
                f'{op}: {argument} must be an int or a tuple of ints, got {describe(axis)}; pass for example -1.'
            )
        if not -ndim <= a < ndim:
            raise ValueError(
                f'{op}: {argument} must lie in [{-ndim}, {ndim - 1}] for an input of rank {ndim}, got {axis!r}; '
                'choose an axis that the input has.'
            )
    distinct = sorted({int(a) % ndim for a in chosen})
    if len(distinct) < len(chosen):
        raise ValueError(f'{op}: {argument} must name each axis once, got {axis!r}; remove the repeated one.')
    return tuple(distinct)


def one_axis(op: str, argument: str, axis: Any, ndim: int) -> int:
    """Return `axis` as one non-negative axis of an array of rank `ndim`."""
    found = axes(op, argument, axis, ndim)
    if len(found) != 1:
        raise ValueError(f'{op}: {argument} must be one axis, got {axis!r}; pass a single int.')
    return found[0]


def mask(op: str, argument: str, where: Any, shape: Sequence[int]) -> Array | None:
    """Return `where` as a bool array that broadcasts to `shape`."""
    if where is None:
        return None
    try:
        array = jnp.asarray(where)
    except (TypeError, ValueError):
        array = where  # a string, or lists of several lengths
    if getattr(array, 'dtype', None) != jnp.bool_:
        raise TypeError(
            f'{op}: {argument} must hold booleans, got {describe(array)}; write for example {argument} != 0.'
        )
    if not broadcasts(array.shape, shape):
        raise ValueError(
            f'{op}: {argument} must broadcast to the input shape {tuple(shape)}, got {array.shape}; '
            'give it the same rank, with 1 where it is shared.'
        )
    return array.reshape((1,) * (len(shape) - array.ndim) + array.shape)


def segment_ids(op: str, ids: Any, shape: Sequence[int]) -> Array | None:
    """Return `ids` as an array of integers in the rank of `shape`, to which it broadcasts."""
    if ids is None:
        return None
    try:
        array = jnp.asarray(ids)
    except (TypeError, ValueError):
        array = ids  # a string, or lists of several lengths
    if not jnp.issubdtype(getattr(array, 'dtype', bool), jnp.integer):
        raise TypeError(f'{op}: segment_ids must hold integers, got {describe(array)}; number the segments from 0 on.')
    if not broadcasts(array.shape, shape):
        raise ValueError(
            f'{op}: segment_ids must broadcast to the input shape {tuple(shape)}, got {array.shape}; '
            'give it the same rank, with 1 where it is shared.'
        )
    return array.reshape((1,) * (len(shape) - array.ndim) + array.shape)


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether an array of `shape` broadcasts to exactly `to`."""
    missing = len(to) - len(shape)
    return missing >= 0 and all(s in (1, t) for s, t in zip(shape, tuple(to)[missing:], strict=True))


def several(op: str, count: Any, shape: Sequence[int], channel: Sequence[int], fix: str) -> None:
    """Refuse a batch of one value a channel; `count` is how many there are on all devices."""
    if count == 1:
        raise ValueError(
            f'{op}: x must hold more than one value a channel, got the shape {tuple(shape)} with channels on '
            f'{tuple(channel)}; one value has no variance: use a larger batch, or {fix}.'
        )


def groups(op: str, channels: int, num_groups: Any, group_size: Any) -> tuple[int, int]:
    """Return the number of groups of channels and the size of each, of which one is given and the other is None."""
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            f'{op}: num_groups or group_size must be given, got {num_groups} and {group_size}; '
            'pass one of the two, and None for the other.'
        )
    argument, given = ('num_groups', num_groups) if group_size is None else ('group_size', group_size)
    n = integer(op, argument, given)
    if channels % n:
        raise ValueError(
            f'{op}: {argument} must divide the {channels} channels, got {n}; '
            f'choose one of {[d for d in range(1, channels + 1) if channels % d == 0]}.'
        )
    return (n, channels // n) if group_size is None else (channels // n, n)


def one_of(op: str, argument: str, value: Any, choices: Iterable[Any]) -> Any:
    """Return `value` if it is among `choices`."""
    choices = list(choices)
    if value not in choices:
        listed = ', '.join(repr(c) for c in choices)
        raise ValueError(f'{op}: {argument} must be one of {listed}, got {value!r}; choose one of them.')
    return value


def hyperparameter(op: str, argument: str, value: Any, **bounds: float) -> Any:
    """Return `value`: an array as it is, and a number, which has to be inside the given bounds, as a Python float."""
    return value if isinstance(value, jax.Array) else number(op, argument, value, **bounds)


def random_key(op: str, argument: str, key: Any) -> Array:
    """Return `key` if it is one random key, new-style or raw."""
    dtype = getattr(key, 'dtype', None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return key
    elif dtype == jnp.uint32 and key.shape in ((2,), (4,)):
        return key
    raise TypeError(
        f'{op}: {argument} must be one JAX random key, got {describe(key)}; '
        'pass for example jax.random.key(0), or one of those that jax.random.split returns.'
    )


def axis_name(op: str, name: Any) -> Any:
    """Return `name` if it is bound by a surrounding vmap or shard_map."""
    if name is None:
        return None
    names = (name,) if isinstance(name, str) else name
    if not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise TypeError(
            f'{op}: axis_name must be the name of a mapped axis, or several, got {describe(name)}; '
            "pass for example 'batch'."
        )
    try:
        jax.lax.psum(1, name)
    except NameError as error:
        bound = f'{", ".join(map(repr, _bound_axis_names())) or "no name"} is bound'
        raise ValueError(
            f'{op}: axis_name must be bound by a surrounding jax.vmap or jax.shard_map, got {name!r}; {bound}: '
            f'run the call inside one with axis_name={name!r}, or pass None where the batch is not split.'
        ) from error
    return name


def _bound_axis_names() -> list[Any]:
    """The names that are bound here; for a message, which does without them should JAX no longer tell."""
    names = getattr(jax.extend.core, 'unsafe_get_axis_names_DO_NOT_USE', list)
    return list(names())


def axis_index_groups(op: str, groups: Any, name: Any) -> Any:
    """Return `groups` if they name each device of the axis once."""
    if groups is None:
        return None
    devices = 0 if name is None else jax.lax.psum(1, name)
    nested = isinstance(groups, Sequence) and all(isinstance(g, Sequence) for g in groups)
    named: list[Any] = [i for g in groups for i in g] if nested else []
    if not devices or not all(map(is_int, named)) or sorted(named) != list(range(devices)):
        raise ValueError(
            f'{op}: axis_index_groups must name each of the {devices} devices of axis_name={name!r} once, '
            f'got {groups}; pass for example [[0, 1], [2, 3]] beside the name of an axis of four.'
        )
    return groups
