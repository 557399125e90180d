"""Activations by name."""

import difflib
import functools
import re
import sys
from collections.abc import Callable
from typing import Any

#: usual names elsewhere: the function's own name here, with options where it needs some
_ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    'linear': ('identity', {}),
    'none': ('identity', {}),
    'gelu_exact': ('gelu', {}),
    'gelu_python': ('gelu', {}),
    'gelu_python_tanh': ('gelu', {'approximate': True}),
    'gelu_tanh': ('gelu', {'approximate': True}),
    'gelu_new': ('gelu', {'approximate': True}),
    'gelu_fast': ('gelu', {'approximate': True}),
    'gelu_approx': ('gelu', {'approximate': True}),
    'gelu_accurate': ('gelu', {'approximate': True}),
    'gelu_pytorch_tanh': ('gelu', {'approximate': True}),
    'gelu_quick': ('quick_gelu', {}),
    'relu2': ('squared_relu', {}),
    'relu_squared': ('squared_relu', {}),
    'sigmoid_linear_unit': ('silu', {}),
    'logistic': ('sigmoid', {}),
    'clipped_relu': ('relu6', {}),
    'exp': ('exponential', {}),
    'sin': ('sine', {}),
    'siren': ('sine', {}),
    'mytanh': ('scaled_tanh', {}),
    'lecun_tanh': ('scaled_tanh', {}),
    'adaptive_silu': ('adaptive_swish', {}),
    'lse': ('logsumexp', {}),
    'thresholded_linear_unit': ('tlu', {}),
    'parametric_relu': ('prelu', {}),
    'randomized_relu': ('rrelu', {}),
}
#: the rooms whose functions are activations
ROOMS = (
    '_exponential', '_gated', '_glu', '_hard', '_periodic', '_rational', '_rectified', '_selfgated', '_shrink',
    '_sigmoidal', '_softmax',
)  # fmt: skip


def _key(name: str) -> str:
    """What is compared of a name: 'HardSwish', 'hard-swish' and 'hard_swish' are one."""
    return re.sub('[^a-z0-9]', '', name.lower())


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """The activations by key, aliases included."""
    public = {
        name: function
        for name, function in vars(sys.modules[__name__.rpartition('.')[0]]).items()
        if not name.startswith('_') and callable(function) and function.__module__.endswith(ROOMS)
    }
    found = {_key(name): function for name, function in public.items()}
    for alias, (name, options) in _ALIASES.items():
        if name in public:
            found.setdefault(_key(alias), functools.partial(public[name], **options) if options else public[name])
    return found


def get(name: str | Callable[..., Any]) -> Callable[..., Any]:
    r"""An activation by its name.

    .. math:: \text{name} \mapsto f

    Parameters
    ----------
    name : str or callable
        The name of a function of `jaxnorm.functional`, or one that is usual elsewhere ('swish', 'gelu_new', 'relu2',
        'hardtanh', 'LeakyReLU'): case, hyphens and underscores do not count. A callable is returned as it is, for
        options that take either.

    Returns
    -------
    callable
        The function; for the name of a variant, with the options that make it.

    Raises
    ------
    TypeError
        If `name` is neither.
    ValueError
        If there is no such activation; the nearest names are listed.

    Notes
    -----
    Norms have hyperparameters that a name does not tell, and are not found here.

    References
    ----------
    The names are those of `jax.nn`, PyTorch and Keras, and those of the ``ACT2FN`` table of Hugging Face's transformers
    that stand for the same function.

    Examples
    --------
    >>> get('SiLU') is get('silu')
    True
    >>> float(get('relu6')(7.0))
    6.0
    """
    if callable(name):
        return name
    if not isinstance(name, str):
        raise TypeError(f'get: name must be a string or a function, got {type(name).__name__} {name!r}; pass for '
                        "example 'gelu'.")  # fmt: skip
    functions = _functions()
    if _key(name) not in functions:
        names = {_key(n): n for n in [*_ALIASES, *(getattr(f, '__name__', '') for f in functions.values())]}
        near = difflib.get_close_matches(_key(name), list(functions), n=4, cutoff=0.5)
        nearest = ', '.join(repr(names.get(key, key)) for key in near) or "'relu', 'gelu', 'silu'"
        raise ValueError(f'get: name must be that of an activation, got {name!r}; the nearest are {nearest}.')
    return functions[_key(name)]
