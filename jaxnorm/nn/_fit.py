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


class _Tracing(threading.local):
    """The jitted functions that are being traced in this thread."""

    def __init__(self) -> None:
        self.now: list[Jitted] = []


_TRACING = _Tracing()


def watch(layer: Any) -> None:
    """Tell the functions that are being traced of a layer whose `_mode`, a constant of the trace, may change."""
    for jitted in _TRACING.now:
        jitted.watch(layer)


class Jitted:
    """A function jitted once for each phase: what `jaxnorm.jit` returns.

    It is traced again where a layer in it has been frozen since, or is inside `accumulate_statistics`.

    Everything else is asked of the function of the current phase, a `brainstate.transform.jit` result:
    `lower`, `trace`, `compile`, `eval_shape`, `stateful_fun`, `jitted_fun`, `origin_fun`.
    """

    def __init__(self, fun: Callable[..., Any], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, fun)

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
        return None if fit is None else bool(fit), *(mode for _, mode in self._layers)

    def _current(self) -> Any:
        key = self._key()
        if key not in self._phases:
            self._phases[key] = brainstate.transform.jit(self._fun, **self._options)
        return self._phases[key]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key, jitted, seen = self._key(), self._current(), len(self._layers)
        result = jitted(*args, **kwargs)
        if len(self._layers) > seen:  # of which the key did not know yet
            self._phases[self._key()] = self._phases.pop(key)
        return result

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or '_phases' not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._current(), name)

    def clear_cache(self) -> None:
        """Forget what was compiled, for every phase."""
        for jitted in self._phases.values():
            jitted.clear_cache()


def jit(fun: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """`brainstate.transform.jit` with the phase in its cache key.

    A function jitted by brainstate is traced once, so a model traced under ``fit=True`` goes on training when it is
    called under ``fit=False``. This one is traced once for each phase.

    Parameters
    ----------
    fun : callable, optional
        The function; without it a decorator is returned.
    **options
        All options of `brainstate.transform.jit`: static_argnums, donate_argnums, in_shardings, …

    Returns
    -------
    Jitted
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
    if fun is None:
        return functools.partial(jit, **options)
    if not callable(fun):
        raise TypeError(f'jit: fun must be callable, got {type(fun).__name__}; pass the function itself.')
    return Jitted(fun, options)
