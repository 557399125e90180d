"""An activation of one's own: a formula becomes a kernel and a module."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from . import _checks
from .functional._kernel import elementwise
from .nn._base import Activation

#: where a derivative is compared with that of automatic differentiation: no point at which a formula is likely to bend
_GRID = np.concatenate([s * np.geomspace(1e-3, 30.1, 41) * (1 + 0.01 * s) for s in (-1, 1)]).astype(np.float32)
#: how far they may be apart, beside the largest derivative between zero (or one) and there, for in a tail automatic
#: differentiation is itself no better: an ulp, magnified by as much as the square of the grid's end
_TOLERANCE = 2.0**10 * float(np.finfo(np.float32).eps)


class CustomActivation:
    """What `activation` returns: a kernel, and the class of its modules as `Module`."""

    Module: type[Activation]

    def __init__(self, kernel: Any, check: Callable[..., None] | None) -> None:
        self._kernel = kernel
        self._check = check
        for name in ('__module__', '__name__', '__qualname__', '__doc__', '__wrapped__'):
            setattr(self, name, getattr(kernel, name))
        self.__signature__ = inspect.signature(kernel)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._check is not None:
            self._check(*args, **kwargs)
            self._check = None  # once is enough
        return self._kernel(*args, **kwargs)

    def __reduce__(self) -> str:
        return cast(Any, self).__qualname__  # found again by its name, as a function is

    def __repr__(self) -> str:
        return f'<activation {cast(Any, self).__name__}{self.__signature__}>'


def activation(
    formula: Callable[..., Any] | None = None,
    /,
    derivative: Callable[..., Any] | None = None,
    *,
    learned: Mapping[str, Any] | None = None,
    keeps_unit: bool = False,
    name: str | None = None,
) -> Any:
    r"""Make an activation of a formula: jitted, with the dtypes, units and lean derivative of those of the library.

    .. math:: y_i = f(x_i; \theta)

    Parameters
    ----------
    formula : callable
        ``formula(x, **hyperparameters)``, written for arrays with `jax.numpy`, each element for itself. Inside, `x` is
        an array of at least float32; the result has the dtype of the input. Without it a decorator is returned.
    derivative : callable, optional
        ``derivative(x, **hyperparameters)``, the derivative by `x` in closed form. The first call compares it with
        automatic differentiation of the formula. With it, the backward pass keeps the input and nothing else; without
        it, what the formula's operations keep.
    learned : mapping of str to number, optional
        The hyperparameters that a module learns, and their initial values.
    keeps_unit : bool
        Whether the formula is homogeneous, so that a `brainunit.Quantity` goes through it with its unit. Otherwise the
        input must be dimensionless.
    name : str, optional
        A name for error messages and representations; by default that of the formula.

    Returns
    -------
    CustomActivation
        A function ``f(x, **hyperparameters)`` whose attribute `Module` is the class of its modules: hyperparameters
        are constructor arguments, as in `jaxnorm.nn`, and those that are learned are states.

    Raises
    ------
    TypeError
        If the formula is no function of an array, the derivative none of the same arguments, or `learned` no mapping of
        hyperparameters of the formula.
    ValueError
        At the first call, if the derivative differs from that of the formula, for the hyperparameters of the call or
        for others.

    Notes
    -----
    Hyperparameters given as numbers are constants of the compiled function, those given as arrays broadcast to `x` and
    can be differentiated with respect to.

    References
    ----------
    Griewank and Walther, "Evaluating derivatives", SIAM 2008, chapter 3.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxnorm
    >>> @jaxnorm.activation(learned={'steepness': 1.0})
    ... def bump(x, steepness=1.0):
    ...     return jnp.exp(-steepness * x**2)
    >>> float(bump(0.0)), float(jax.grad(bump)(0.0))
    (1.0, 0.0)
    >>> bump.Module(in_size=3, steepness=2.0).weight.value['steepness'].shape
    (3,)
    """
    if formula is None:
        return lambda formula: activation(formula, derivative, learned=learned, keeps_unit=keeps_unit, name=name)
    if not callable(formula):
        raise TypeError(
            f'activation: formula must be a function of an array, got {_checks.describe(formula)}; pass for example '
            'lambda x: x / (1 + abs(x)).'
        )
    op = name or getattr(formula, '__name__', 'activation')
    op = op if op.isidentifier() else 'activation'  # a lambda has no name
    signature = inspect.signature(formula)
    first, *hyper = signature.parameters or (None,)
    if first is None:
        raise TypeError(
            f'{op}: formula must take an array as its first argument, got a function of none; '
            'write for example lambda x: x / (1 + abs(x)).'
        )
    if derivative is not None:
        _takes_the_same(op, derivative, first, hyper)
    if not isinstance(learned, Mapping | None):
        raise TypeError(
            f'{op}: learned must be a dict of hyperparameters and their initial values, got '
            f"{_checks.describe(learned)}; write for example {{'k': 1.0}}."
        )
    strange = sorted(set(learned or ()) - set(hyper))
    if strange:
        raise TypeError(
            f'{op}: learned must name hyperparameters of the formula, got {", ".join(map(repr, strange))}; '
            f'the formula has {", ".join(map(repr, hyper)) or "none"}.'
        )

    def body(*args: Any, **kwargs: Any) -> Any:
        y = formula(*args, **kwargs)
        x = signature.bind(*args, **kwargs).arguments[first]
        if jnp.shape(y) != jnp.shape(x):
            raise ValueError(
                f'{op}: the formula must return an array of the shape of {first}, {jnp.shape(x)}, got {jnp.shape(y)}; '
                'it is to work on each element for itself.'
            )
        return jnp.asarray(y)

    described = cast(Any, body)
    described.__name__, described.__module__ = op, formula.__module__
    described.__qualname__ = getattr(formula, '__qualname__', op)
    described.__doc__ = inspect.getdoc(formula) or f'{op}, an activation.'
    described.__signature__ = signature
    kernel = cast(Any, elementwise)(body, unit_out=1 if keeps_unit else None)
    check = None
    defaults = {n: p.default for n, p in signature.parameters.items() if p.default is not p.empty}
    if derivative is not None:
        kernel.derivative(lambda x, **given: jnp.asarray(derivative(x, **(defaults | given)), x.dtype))
        check = functools.partial(_compare, op, formula, derivative, signature)
    made = cast(Any, CustomActivation(kernel, check))
    class_name = ''.join(part.capitalize() for part in op.split('_'))
    members = {'__doc__': f'{op} as a module.', '__module__': formula.__module__}
    made.Module = cast(Any, type(Activation))(class_name, (Activation,), members, fn=made, learned=learned)
    made.Module.__qualname__ = f'{made.__qualname__}.Module'
    return made


def _compare(op: str, formula: Any, derivative: Any, signature: inspect.Signature, *args: Any, **kwargs: Any) -> None:
    """Compare a derivative with that of automatic differentiation, for the hyperparameters of a call and for others."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    _, *given = bound.arguments.items()
    hyper = {name: _representative(value) for name, value in given}
    _compare_at(op, formula, derivative, hyper)
    moved = {name: _moved(value) for name, value in hyper.items()}
    if moved != hyper:  # a derivative may be right for 1 alone
        try:
            jax.eval_shape(lambda x: formula(x, **moved), jax.ShapeDtypeStruct(_GRID.shape, _GRID.dtype))
        except (TypeError, ValueError):
            return  # the formula has bounds of its own
        _compare_at(op, formula, derivative, moved)


def _compare_at(op: str, formula: Any, derivative: Any, hyper: Mapping[str, Any]) -> None:
    with jax.ensure_compile_time_eval():
        x = jnp.asarray(_GRID)
        wanted = jax.jvp(lambda v: formula(v, **hyper), (x,), (jnp.ones_like(x),))[1]
        got = jnp.broadcast_to(jnp.asarray(derivative(x, **hyper), x.dtype), x.shape)
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    # automatic differentiation may have no value where the formula overflows on its way
    known = np.isfinite(wanted)
    size = np.where(known, np.abs(wanted), 0)
    near = size[np.abs(_GRID) <= 1].max()
    outward = np.concatenate([np.maximum.accumulate(s) for s in np.split(size, 2)])  # each half of the grid starts at 0
    with np.errstate(invalid='ignore'):
        apart = np.where(known, np.abs(got - wanted), 0)
    excess = np.nan_to_num(apart, nan=np.inf) - _TOLERANCE * np.maximum(outward, near)
    worst = int(np.argmax(excess))
    if excess[worst] > 0:
        values = ', '.join(f'{n} = {v}' for n, v in hyper.items())
        raise ValueError(
            f'{op}: derivative must be that of the formula, got {got[worst]:.6g} at x = {_GRID[worst]:.6g}'
            f'{values and f" and {values}"}, where automatic differentiation gives {wanted[worst]:.6g}; correct it, '
            'or leave it out.'
        )


def _takes_the_same(op: str, derivative: Any, first: str, hyper: Sequence[str]) -> None:
    """Refuse a derivative that is no function of what the formula is one of."""
    arguments = ', '.join([first, *hyper])
    try:
        if callable(derivative):
            inspect.signature(derivative).bind(None, **dict.fromkeys(hyper))
            return
        problem = f'got {_checks.describe(derivative)}'
    except TypeError as error:
        problem = f'got one that is not ({error})'
    except ValueError:  # a built-in function that does not tell its signature
        return
    raise TypeError(
        f'{op}: derivative must be a function of the arguments of the formula, {arguments}, {problem}; '
        f'write for example def derivative({arguments}).'
    )


def _moved(value: Any) -> Any:
    """Another hyperparameter near a number, and on the same side of zero; what is no number stays."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return value + 1 if isinstance(value, int) else 0.75 * value or 0.25


def _representative(value: Any) -> Any:
    """A number in place of an array: the first element, or 1 where it is not known yet."""
    if isinstance(value, jax.core.Tracer):
        return 1.0
    return np.asarray(value).ravel()[0].item() if hasattr(value, 'shape') and np.size(value) else value
