"""Bounded curves in place of a norm, as modules."""

from typing import Any

import brainstate

from .. import functional as F
from .._typing import Axes, Result, Size
from ._base import Normalization, default, trailing


class _Dynamic(Normalization, without=['aliases', 'scale_offset']):
    """What the curves have in common: scale and bias along the last axes, and numbers inside the curve."""

    def __init__(
        self,
        in_size: Size | None,
        feature_axes: Axes,
        *,
        inner: dict[str, Any],
        param_type: type = brainstate.ParamState,
        normalized_shape: Size | None = None,
        **options: Any,
    ) -> None:
        feature_axes, aliases = trailing(normalized_shape) or feature_axes, {'normalized_shape': normalized_shape}
        super().__init__(in_size, feature_axes, aliases=aliases, param_type=param_type, **options)
        self._learn(param_type, (), **inner)

    @property
    def _channel_axis(self) -> int:
        return -1

    def _apply(self, x: Any, mask: Any, **options: Any) -> Result:
        self._check_shape(x)
        axes = tuple(a - len(self._size) for a in self.feature_axes)
        return self._result(self._kernel(x, axis=axes, where=mask, **options), mask)


class DynamicTanh(_Dynamic, without=['inner']):
    """Dynamic tanh (DyT): a bounded curve of learned slope in place of a layer norm.

    Parameters
    ----------
    alpha_init : float
        What the input is multiplied with at first, one number.

    Raises
    ------
    ValueError, TypeError
        At construction for a wrong size or axis; at the call for an input of another shape, or with a unit.

    References
    ----------
    Zhu, Chen, He, LeCun & Liu, "Transformers without normalization", 2025, arXiv:2503.10622.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.DynamicTanh(4)
    >>> layer(jnp.ones((2, 3, 4))).shape
    (2, 3, 4)
    """

    _kernel = staticmethod(F.dynamic_tanh)

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axes: Axes = -1,
        *,
        alpha_init: float = default(F.dynamic_tanh, 'alpha'),
        **options: Any,
    ) -> None:
        super().__init__(in_size, feature_axes, inner={'alpha': alpha_init}, **options)


class DynamicErf(_Dynamic, without=['inner']):
    """Dynamic erf (Derf): the error function of learned slope and shift in place of a layer norm.

    Parameters
    ----------
    alpha_init : float
        What the input is multiplied with at first, one number.
    shift_init : float
        What is added to that at first, one number.

    Raises
    ------
    ValueError, TypeError
        At construction for a wrong size or axis; at the call for an input of another shape, or with a unit.

    References
    ----------
    Chen, Lu, Zhu, Sun & Liu, "Stronger normalization-free Transformers", 2025, arXiv:2512.10938.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.DynamicErf(4)
    >>> layer(jnp.ones((2, 3, 4))).shape
    (2, 3, 4)
    """

    _kernel = staticmethod(F.dynamic_erf)

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axes: Axes = -1,
        *,
        alpha_init: float = default(F.dynamic_erf, 'alpha'),
        shift_init: float = default(F.dynamic_erf, 'shift'),
        **options: Any,
    ) -> None:
        super().__init__(in_size, feature_axes, inner={'alpha': alpha_init, 'shift': shift_init}, **options)


#: the name in the paper
Derf = DynamicErf
