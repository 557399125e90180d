"""Norms by the size of a response, as modules."""

import math
from typing import Any

import brainstate

from .. import _checks
from .. import functional as F
from .._typing import ArrayLike, Axes, AxisGroups, AxisName, Result, Size
from ._base import Activation, Normalization, default, trailing
from ._normalization import _SampleNorm, _Segmented


class _Stateless(Activation):
    """A norm without parameters, made from its function."""

    def update(self, x: ArrayLike, mask: ArrayLike | None = None, *, fit: bool | None = None) -> Result:
        """Normalize `x`; `mask` says what counts. Both phases are the same, so `fit` has no effect."""
        return self._apply(x, mask)


class LocalResponseNorm(_Stateless, fn=F.local_response_norm):
    """Each channel by the mean square of the channels round it; see `jaxnorm.functional.local_response_norm`."""


class UnitNorm(_Stateless, fn=F.unit_norm, aliases={'dim': 'axis', 'eps': 'epsilon'}):
    """Each vector by its length; see `jaxnorm.functional.unit_norm`."""


class ScaleNorm(Normalization, without=['aliases', 'use_scale', 'use_bias', 'bias_init', 'scale_offset']):
    """Scale norm: each vector by its length, times one learned number.

    Parameters
    ----------
    in_size : int or tuple of int
        The number of features, or the shape of the input without its batch (checked).
    reduction_axes : int or tuple of int
        The axes of `in_size` along which the vectors lie.
    epsilon : float
        The least length, in the unit of the input.
    scale_init : float, optional
        The number at first; by default the root of the size of a vector.
    normalized_shape : int or tuple of int, optional
        PyTorch's name and meaning: the size, with vectors along all its axes.

    References
    ----------
    Nguyen & Salazar, "Transformers without tears: improving the normalization of self-attention", 2019,
    arXiv:1910.05895.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.ScaleNorm(4)
    >>> layer(jnp.ones((1, 4))).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    _parameters = 'scale'

    def __init__(
        self,
        in_size: Size | None = None,
        *,
        epsilon: float = default(F.scale_norm, 'epsilon'),
        use_scale: bool = True,
        scale_init: Any = None,
        reduction_axes: Axes = -1,
        axis_name: AxisName | None = None,
        axis_index_groups: AxisGroups | None = None,
        param_type: type = brainstate.ParamState,
        normalized_shape: Size | None = None,
        **options: Any,
    ) -> None:
        aliases = {'normalized_shape': normalized_shape}
        super().__init__(in_size, aliases=aliases, use_scale=False, use_bias=False, **options)
        rank = len(self._size)
        axes = _checks.axes('ScaleNorm', 'reduction_axes', trailing(normalized_shape) or reduction_axes, rank)
        length = math.prod(self._size[a] for a in axes) ** 0.5
        if _checks.flag('ScaleNorm', 'use_scale', use_scale):
            self._learn(param_type, (), scale=length if scale_init is None else scale_init)
        self.reduction_axes = tuple(a - rank for a in axes)
        self.epsilon = _checks.number('ScaleNorm', 'epsilon', epsilon, at_least=0)
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups

    @property
    def _channel_axis(self) -> int:
        return -1

    # a length has no bias
    def update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        scale: ArrayLike | None = None,
        fit: bool | None = None,
    ) -> Result:
        """Normalize `x`; `mask` says what counts.

        `scale` is that of the call, where the layer has none of its own. Both phases are the same, so `fit` has no
        effect.
        """
        self._check_shape(x)
        y = F.scale_norm(
            x,
            axis=self.reduction_axes,
            epsilon=self.epsilon,
            where=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            **self._told(scale),
        )
        return self._result(y, mask)


class GlobalResponseNorm(_SampleNorm, _Segmented, without=['aliases', 'scale_offset']):
    """Global response normalization: each channel weighed by its share of the response, added to the input.

    Parameters
    ----------
    epsilon : float
        Added to the mean length of the channels, in the unit of the input.
    bias_init, scale_init : callable or array_like
        Bias and scale at first, or functions of the shape; with zeros the layer is the identity.

    References
    ----------
    Woo et al., "ConvNeXt V2: co-designing and scaling ConvNets with masked autoencoders", 2023, arXiv:2301.00808.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.GlobalResponseNorm(16)
    >>> layer(jnp.ones((2, 8, 8, 16))).shape
    (2, 8, 8, 16)
    """

    _kernel = staticmethod(F.global_response_norm)

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axis: Axes = -1,
        *,
        epsilon: float = default(F.global_response_norm, 'epsilon'),
        scale_init: Any = 0.0,
        num_channels: Size | None = None,
        **options: Any,
    ) -> None:
        aliases = {'num_channels': num_channels}
        super().__init__(in_size, feature_axis, epsilon=epsilon, aliases=aliases, scale_init=scale_init, **options)


class FilterResponseNorm(_SampleNorm, _Segmented, without=['aliases', 'scale_offset']):
    """Filter response normalization with its thresholded linear unit, for no activation.

    Parameters
    ----------
    epsilon : float
        Added to the mean square, in the square of the unit of the input.
    use_threshold : bool
        Whether the result is bounded from below by a learned threshold.
    threshold_init : callable or array_like
        The threshold at first, one for each channel.
    learn_epsilon : bool
        Whether a learned number for each channel, by its magnitude, is added to `epsilon`: for channels of few
        elements, or one.
    epsilon_init : callable or array_like
        That number at first.

    References
    ----------
    Singh & Krishnan, "Filter response normalization layer: eliminating batch dependence in the training of deep neural
    networks", 2019, arXiv:1911.09737.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.FilterResponseNorm(16)
    >>> layer(jnp.ones((2, 8, 8, 16))).shape
    (2, 8, 8, 16)
    """

    _kernel = staticmethod(F.filter_response_norm)

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axis: Axes = -1,
        *,
        epsilon: float = default(F.filter_response_norm, 'epsilon'),
        use_threshold: bool = True,
        threshold_init: Any = 0.0,
        learn_epsilon: bool = False,
        epsilon_init: Any = 1e-4,
        param_type: type = brainstate.ParamState,
        num_channels: Size | None = None,
        **options: Any,
    ) -> None:
        aliases = {'num_channels': num_channels}
        super().__init__(in_size, feature_axis, epsilon=epsilon, aliases=aliases, param_type=param_type, **options)
        if _checks.flag('FilterResponseNorm', 'use_threshold', use_threshold):
            self._learn(param_type, threshold=threshold_init)
        if _checks.flag('FilterResponseNorm', 'learn_epsilon', learn_epsilon):
            self._learn(param_type, learned_epsilon=epsilon_init)
