"""Which phase a layer is in, and a jit that knows it."""

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import brainstate
import jax.core
import numpy as np


def phase(op: str, fit: Any = None, frozen: bool = False) -> bool:
    """Whether a layer fits: the argument of the call, else its frozen flag, else the environment, else an error."""
    source = 'fit'
    if fit is None and frozen:
        return False
    if fit is None:
        fit, source = brainstate.environ.get('fit', None), 'environ.context(fit=...)'
    if fit is None:
        raise ValueError(
            f'{op}: fit must say whether the layer fits or evaluates, got neither an argument nor a context; write '
            "'with brainstate.environ.context(fit=True):' around the call, or pass fit=True."
        )
    if isinstance(fit, jax.core.Tracer) or not isinstance(fit, bool | np.bool_):
        raise TypeError(
            f'{op}: {source} must be True or False known before tracing, got {type(fit).__name__} {fit!r}; '
            'pass a Python bool, as a static argument where the function is jitted.'
        )
    return bool(fit)


class UnsettledError(ValueError):
    """A layer whose states are to take another form first, which they can't while a function is traced."""

    def __init__(self, message: str, settle: Callable[[], None]) -> None:
        super().__init__(message)
        #: gives them that form, or raises this error again where another function is being traced
        self.settle = settle


class _Tracing(threading.local):
    """The jitted functions that are being traced in this thread."""

    def __init__(self) -> None:
        self.now: list[Phased] = []


_TRACING = _Tracing()


class _Replaced:
    """How often layers of models have been replaced by others, which traced functions can't see."""

    times = 0


def replaced() -> None:
    """Make every function with layers in it be traced again."""
    _Replaced.times += 1


def watch(layer: Any) -> None:
    """Tell the functions that are being traced of a layer whose `_mode`, a constant of the trace, may change."""
    for function in _TRACING.now:
        function.watch(layer)


class Phased:
    """A function transformed once for each phase: what `jaxnorm.jit` and `jaxnorm.checkpoint` return.

    It is traced again where a layer in it has been frozen or replaced since, or is inside `accumulate_statistics`.

    Everything else is asked of the function of the current phase, a result of brainstate's transform: of a jitted one
    `lower`, `trace`, `compile`, `eval_shape`, `stateful_fun`, `jitted_fun`, `origin_fun`.
    """

    def __init__(self, transform: Callable[..., Any], fun: Callable[..., Any], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, fun)
        self._transform = transform

        @functools.wraps(fun)
        def traced(*args: Any, **kwargs: Any) -> Any:
            _TRACING.now.append(self)
            try:
                return fun(*args, **kwargs)
            finally:
                _TRACING.now.pop()

        self._fun = traced
        self._options = options
        self._phases: dict[Any, Any] = {}
        self._layers: list[list[Any]] = []  # those seen while tracing, each beside its last mode
        self._current()  # wrong options are told where they are written

    def watch(self, layer: Any) -> None:
        """Make the mode of a layer a part of the key."""
        if all(seen() is not layer for seen, _ in self._layers):
            self._layers.append([weakref.ref(layer), layer._mode])

    def _key(self) -> Any:
        for entry in self._layers:
            layer = entry[0]()
            if layer is not None:
                entry[1] = layer._mode
        fit = brainstate.environ.get('fit', None)
        fit = bool(fit) if isinstance(fit, bool | np.bool_) else None  # others are refused by the layers
        return fit, _Replaced.times if self._layers else 0, *(mode for _, mode in self._layers)

    def _current(self) -> Any:
        key = self._key()
        if key not in self._phases:
            self._phases[key] = self._transform(self._fun, **self._options)
        return self._phases[key]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key, function, seen = self._key(), self._current(), len(self._layers)
        try:
            result = function(*args, **kwargs)
        except UnsettledError as error:
            if _TRACING.now:
                raise
            error.settle()
            self._phases.pop(key, None)
            return self(*args, **kwargs)
        if len(self._layers) > seen:  # of which the key did not know yet
            self._phases.pop(key, None)  # another thread, or a call of itself, may have been before
            self._phases[self._key()] = function
        # those around it have not seen the layers where this one was traced before
        for layer, _ in self._layers if _TRACING.now else ():
            found = layer()
            if found is not None:
                watch(found)
        return result

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or '_phases' not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._current(), name)

    def clear_cache(self) -> None:
        """Forget what was compiled, for every phase."""
        for function in self._phases.values():
            if hasattr(function, 'clear_cache'):
                function.clear_cache()
        self._phases.clear()


def _phased(name: str, fun: Any, options: dict[str, Any]) -> Any:
    """A function under a transform of brainstate, for each phase; without a function, a decorator."""
    if fun is None:
        return lambda fun: _phased(name, fun, options)
    if not callable(fun):
        raise TypeError(f'{name}: fun must be callable, got {type(fun).__name__}; pass the function itself.')
    return Phased(getattr(brainstate.transform, name), fun, options)


def jit(fun: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """`brainstate.transform.jit` with the phase in its cache key.

    A function jitted by brainstate is traced once, so a model traced under ``fit=True`` goes on training when it is
    called under ``fit=False``. This one is traced once for each phase. What brainstate has traced before goes on in its
    first phase inside it too: make a `brainstate.transform.grad` in the function, and use `jaxnorm.checkpoint`.

    Parameters
    ----------
    fun : callable, optional
        The function; without it a decorator is returned.
    **options
        All options of `brainstate.transform.jit`: static_argnums, donate_argnums, in_shardings, …

    Returns
    -------
    Phased
        A function with the attributes of a brainstate one (`lower`, `compile`, `clear_cache`, …), which refer to the
        phase in which they are asked for.

    Raises
    ------
    TypeError
        If `fun` is not callable.

    References
    ----------
    brainstate's documentation of ``brainstate.transform.jit`` and ``brainstate.environ.context``.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.BatchNorm0d(3)
    >>> apply = jaxnorm.jit(layer)
    >>> x = jnp.arange(12.0).reshape(4, 3)
    >>> with brainstate.environ.context(fit=True):
    ...     fitted = apply(x)
    >>> with brainstate.environ.context(fit=False):
    ...     evaluated = apply(x)
    >>> bool(jnp.allclose(fitted, evaluated))
    False
    """
    return _phased('jit', fun, options)


def checkpoint(fun: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """`brainstate.transform.checkpoint` with the phase in its cache key: what is inside is computed again backwards.

    A function that brainstate has traced once for `checkpoint` goes on in the phase of its first call, inside
    `jaxnorm.jit` too. This one is traced once for each phase.

    Parameters
    ----------
    fun : callable, optional
        The function; without it a decorator is returned.
    **options
        All options of `brainstate.transform.checkpoint`: policy, prevent_cse, static_argnums.

    Returns
    -------
    Phased
        The function, of which nothing but its arguments and states is saved for the backward pass.

    Raises
    ------
    TypeError
        If `fun` is not callable.

    References
    ----------
    Chen, Xu, Zhang & Guestrin, "Training deep nets with sublinear memory cost", 2016, arXiv:1604.06174.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.BatchNorm0d(3)
    >>> block = jaxnorm.checkpoint(layer)
    >>> x = jnp.arange(12.0).reshape(4, 3)
    >>> with brainstate.environ.context(fit=True):
    ...     fitted = block(x)
    >>> with brainstate.environ.context(fit=False):
    ...     evaluated = block(x)
    >>> bool(jnp.allclose(fitted, evaluated))
    False
    """
    return _phased('checkpoint', fun, options)
