"""The one decorator of the library: what every kernel has in common, said once.

A public kernel is a plain function with a docstring and one to six lines. `kernel` makes of it

- a jitted function with the same signature: numbers, strings, tuples and None are compile-time constants,
  arrays are traced (so a learned slope is an array and a fixed one costs nothing);
- that takes a `brainunit.Quantity` where the op has a meaning for it;
- that refuses what is not a real array with a sentence.

`elementwise` adds, for activations,

- the compute dtype: at least float32 inside, the input's dtype outside;
- a lean derivative: the closed form given by `.derivative`, saving the input (or the residual named there);
- the docstring's entries that all of them have in common.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from .. import _checks, _docs, _units
from .._typing import Array
from ._linear import linear

P = ParamSpec('P')
R = TypeVar('R')
R_co = TypeVar('R_co', covariant=True)

# What becomes a constant of the compiled kernel when it is given for anything but the first argument; so do functions.
_CONSTANT = (bool, int, float, str, type(None), tuple, np.generic)


#: The powers of the input's unit that results have, or a function that returns them.
_Powers = int | tuple[int, ...] | None | Callable[..., int | None]


#: What an activation's docstring need not say.
_DIMENSIONLESS = """Of an activation.

Parameters
----------
x : array of any shape
    Dimensionless.

Returns
-------
array
    Same shape and dtype as `x`.

Raises
------
TypeError
    If an argument is not an array of real numbers, or has a unit.
"""
_WITH_UNIT = """Of an activation that keeps the unit of its input.

Parameters
----------
x : array of any shape, or Quantity
    A unit is kept.

Returns
-------
array
    Same shape, dtype and unit as `x`.

Raises
------
TypeError
    If an argument is not an array of real numbers.
"""


def compute_dtype(dtype: Any) -> Any:
    """The dtype of the arithmetic inside a kernel: at least float32."""
    # not by promotion, which JAX refuses for the narrowest formats, and for all when it is strict
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def computed_once(*arrays: Array) -> tuple[Array, ...]:
    """The same arrays, which XLA:CPU would compute in every consumer: the numbers of a row for each element of it."""
    return jax.lax.platform_dependent(*arrays, cpu=_not_fused, default=lambda *a: a)


def _not_fused(first: Array, *others: Array) -> tuple[Array, ...]:
    if jax.__version_info__ >= (0, 12):
        # one for each: JAX can not transpose a barrier of tangents some of which are constant
        return tuple(map(jax.lax.optimization_barrier, (first, *others)))
    # older ones drop a barrier before they fuse, but what a branch returns they leave alone
    never = jax.lax.optimization_barrier(False)
    return jax.lax.cond(never, lambda a, *rest: (a + 0, *rest), lambda *a: a, first, *others)


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, list | tuple | range) else value


def _array(value: Any) -> Any:
    """The array that another library's parameter stands for, even if that can be called."""
    convert = getattr(value, '__jax_array__', None)
    return value if convert is None else convert()


def _door(
    fun: Callable[..., Any],
    body: Callable[..., Any],
    unit_in: Mapping[str, int] | None = None,
    unit_out: _Powers = None,
    family: str | None = None,
) -> Callable[..., Any]:
    """A jitted `body` behind the signature of `fun`."""
    op = fun.__name__
    signature = inspect.signature(fun)
    names = tuple(signature.parameters)
    first = names[0]
    known = set(names)
    required = {n for n, p in signature.parameters.items() if p.default is p.empty}
    positional = sum(p.kind is not p.KEYWORD_ONLY for p in signature.parameters.values())

    def traced(constants: tuple[tuple[str, Any], ...], arrays: dict[str, Any]) -> Any:
        powers = unit_out(**dict(constants)) if callable(unit_out) else unit_out
        plain, unit = _units.strip(op, arrays, first, unit_in or {}, powers is not None)
        x = _checks.floating(op, first, plain.pop(first))
        with jax.named_scope(op):
            return _units.dress(body(x, **dict(constants), **plain), unit, powers)

    traced.__name__ = traced.__qualname__ = op
    jitted = jax.jit(traced, static_argnums=0)

    @functools.wraps(fun)
    def door(*args: Any, **kwargs: Any) -> Any:
        values = dict(zip(names, args, strict=False))
        values.update(kwargs)
        if len(values) < len(args) + len(kwargs) or len(args) > positional or not required <= values.keys() <= known:
            try:
                values = dict(signature.bind(*args, **kwargs).arguments)
            except TypeError as error:
                raise TypeError(f'{op}: {error}; the signature is {op}{signature}.') from None
        constants, arrays = [], {first: _array(values.pop(first))}
        for name in names:
            if name in values:
                value = values[name]
                if isinstance(value, list | range):
                    value = _freeze(value)
                value = _array(value)
                if isinstance(value, _CONSTANT) or callable(value):
                    constants.append((name, value))
                else:
                    arrays[name] = value
        try:
            return jitted(tuple(constants), arrays)
        except (TypeError, ValueError, OverflowError):
            _checks.takes(op, dict(constants), arrays)  # what JAX says of them names no argument
            raise

    if family:
        door.__doc__ = _docs.complete(fun.__doc__, names, family)
    return door


class Kernel(Protocol[P, R_co]):
    """What `kernel` returns: the function itself, jitted."""

    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


@overload
def kernel(fun: Callable[P, R], /) -> Kernel[P, R]: ...
@overload
def kernel(
    *,
    unit_in: Mapping[str, int] | None = None,
    unit_out: _Powers = None,
    family: str | None = None,
) -> Callable[[Callable[P, R]], Kernel[P, R]]: ...
def kernel(
    fun: Any = None,
    /,
    *,
    unit_in: Mapping[str, int] | None = None,
    unit_out: _Powers = None,
    family: str | None = None,
) -> Any:
    """Make a public kernel of a function whose first argument is the input array.

    Parameters
    ----------
    unit_out : int or tuple of int, optional
        The power of the input's unit that the result (or each of several) has: 1 keeps it, 0 is dimensionless.
        None: the op has no meaning for an input with a unit, and says so. A function is given the constants among the
        arguments, and returns one of these.
    unit_in : mapping of str to int, optional
        The power of the input's unit in which other arguments are measured; all not named are dimensionless.
    family : str, optional
        A docstring of what a family of kernels has in common, from which that of `fun` is completed.
    """
    if fun is None:
        return functools.partial(kernel, unit_in=unit_in, unit_out=unit_out, family=family)
    return _door(fun, fun, unit_in, unit_out, family)


class Elementwise(Kernel[P, R_co], Protocol[P, R_co]):
    """What `elementwise` returns: a kernel whose derivative is given in closed form."""

    def derivative(
        self, fun: Callable[..., Any] | None = None, /, *, residual: Any = None, by: str | None = None
    ) -> Any: ...


@dataclass(frozen=True)
class _Rule:
    """Formula and derivative of an elementwise op, with the hyperparameters that are constants."""

    formula: Callable[..., Array]
    slope: Callable[..., Array] | None
    residual: Callable[..., Array] | None
    constants: tuple[tuple[str, Any], ...]
    partials: tuple[tuple[str, Callable[..., Array]], ...] = ()  # derivatives by hyperparameters

    def value(self, x: Array, arrays: Mapping[str, Array]) -> Array:
        return self.of(self.formula, x, arrays, compute_dtype(x.dtype)).astype(x.dtype)

    def of(self, function: Callable[..., Array], x: Array, arrays: Mapping[str, Array], wide: Any) -> Array:
        """A function of the input, or of a mask, and the hyperparameters, all in the dtype of the arithmetic."""
        given = {n: a.astype(wide) for n, a in arrays.items()}
        return function(x if x.dtype == jnp.bool_ else x.astype(wide), **dict(self.constants), **given)


def _spread(value: Array, x: Array) -> Array:
    """`value` in the shape of `x`, and laid out over devices like it where types say so (explicit sharding)."""
    layout = getattr(jax.typeof(x), 'sharding', None)
    explicit = layout is not None and any(part is not None for part in layout.spec)
    return jnp.broadcast_to(value, x.shape, **({'out_sharding': layout} if explicit else {}))


@dataclass(frozen=True)
class _Slope:
    """Multiplication by the derivative: a diagonal map, so its own transpose."""

    rule: _Rule
    names: tuple[str, ...]

    def __call__(self, residuals: Sequence[Array], operands: Sequence[Array | None]) -> list[Array]:
        kept, *arrays = residuals
        tangent = cast(Array, operands[0])
        wide = compute_dtype(tangent.dtype)  # that of the input, of which a mask does not tell
        assert self.rule.slope is not None  # only rules that have one come here
        slope = self.rule.of(self.rule.slope, kept, dict(zip(self.names, arrays, strict=True)), wide)
        if slope.dtype == jnp.bool_:  # a step: select, so that an infinite tangent meets no 0 * inf
            return [jnp.where(slope, tangent, jnp.zeros_like(tangent))]
        return [(tangent.astype(wide) * slope.astype(wide)).astype(tangent.dtype)]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _evaluate(rule: _Rule, x: Array, arrays: dict[str, Array]) -> Array:
    return rule.value(x, arrays)


def _evaluate_jvp(rule: _Rule, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    x, arrays = primals
    dx, darrays = tangents
    parts = []
    if not isinstance(dx, SymbolicZero):
        kept = x
        if rule.residual is not None:  # of the input as the formula sees it: 0.1 is another number in bfloat16
            kept = rule.of(rule.residual, x, arrays, compute_dtype(x.dtype))
        slope = _Slope(rule, tuple(arrays))
        parts += linear(slope, slope, [kept, *arrays.values()], [dx])
    learned = {n: d for n, d in darrays.items() if not isinstance(d, SymbolicZero)}
    for name, partial in rule.partials:
        if name in learned:  # a diagonal map too, once the tangent has the shape of the input
            moving = _spread(learned.pop(name), x).astype(compute_dtype(x.dtype))
            slope = _Slope(replace(rule, slope=partial), tuple(arrays))
            parts.append(linear(slope, slope, [x, *arrays.values()], [moving])[0].astype(x.dtype))
    if learned:  # other hyperparameters: ordinary differentiation, the input held fixed
        fixed = {n: a for n, a in arrays.items() if n not in learned}
        at = {n: arrays[n] for n in learned}
        parts.append(jax.jvp(lambda moving: rule.value(x, {**fixed, **moving}), (at,), (learned,))[1])
    out = _evaluate(rule, x, arrays)
    return out, sum(parts[1:], start=parts[0]) if parts else jnp.zeros_like(out)


_evaluate.defjvp(_evaluate_jvp, symbolic_zeros=True)


@overload
def elementwise(fun: Callable[P, R], /) -> Elementwise[P, R]: ...
@overload
def elementwise(
    *, unit_in: Mapping[str, int] | None = None, unit_out: int | None = None
) -> Callable[[Callable[P, R]], Elementwise[P, R]]: ...
def elementwise(fun: Any = None, /, *, unit_in: Mapping[str, int] | None = None, unit_out: int | None = None) -> Any:
    """Make a public kernel of an activation `fun(x, *hyperparameters)`.

    The formula and the derivative see arrays of at least float32; the result has the input's dtype.
    The derivative stands directly below the function::

        @relu.derivative(residual=lambda x: x > 0)
        def _relu_slope(positive): return positive

    `fun(residual, *hyperparameters) -> slope`; the residual is the input unless `residual` computes another
    one (a mask for piecewise linear functions, whose slope may then be a boolean: select, not multiply).
    `@relu.derivative(by='name')` gives the derivative by a hyperparameter, from the input: where it is an array, no
    more than the input and it are saved. Without one, the formula is differentiated.
    """
    if fun is None:
        return functools.partial(elementwise, unit_in=unit_in, unit_out=unit_out)
    rule = _Rule(fun, None, None, ())

    def body(x: Array, **hyper: Any) -> Array:
        arrays = {}
        for name in [n for n, v in hyper.items() if isinstance(v, jax.Array | np.ndarray)]:
            arrays[name] = _checks.floating(fun.__name__, name, hyper.pop(name))
            if not _checks.broadcasts(arrays[name].shape, x.shape):
                raise ValueError(
                    f'{fun.__name__}: {name} must broadcast to the input shape {x.shape}, got {arrays[name].shape}; '
                    'give it the size of the last axis, or 1 where it is shared.'
                )
        filled = replace(rule, constants=tuple(hyper.items()))
        return filled.value(x, arrays) if rule.slope is None else _evaluate(filled, x, arrays)

    def derivative(slope: Any = None, /, *, residual: Any = None, by: str | None = None) -> Any:
        nonlocal rule
        if slope is None:
            return functools.partial(derivative, residual=residual, by=by)
        if by is None:
            rule = replace(rule, slope=slope, residual=residual)
        else:
            rule = replace(rule, partials=(*rule.partials, (by, slope)))
        return slope

    door = cast(Any, _door(fun, body, unit_in, unit_out, _DIMENSIONLESS if unit_out is None else _WITH_UNIT))
    door.derivative = derivative
    return door
