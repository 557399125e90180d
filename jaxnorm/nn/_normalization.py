"""Norms as modules: parameters, running statistics and phases round the kernels."""

import math
from typing import Any, ClassVar

import brainstate
import brainunit
import jax.numpy as jnp

from .. import _checks, _units
from .. import functional as F
from .._typing import ArrayLike, Axes, AxisGroups, AxisName, Result, Size
from ._base import Normalization, default
from ._fit import phase


class _AxisNorm(Normalization):
    """What layer norm and RMS norm share: axes to reduce, counted from the end."""

    def __init__(
        self,
        in_size: Size | None,
        reduction_axes: Axes,
        feature_axes: Axes,
        normalized_shape: Size | None,
        epsilon: float,
        axis_name: AxisName | None,
        axis_index_groups: AxisGroups | None,
        **options: Any,
    ) -> None:
        if normalized_shape is not None and not isinstance(normalized_shape, int):
            # PyTorch's name comes with PyTorch's meaning: all of these axes, for statistics and parameters
            reduction_axes = feature_axes = tuple(range(-len(normalized_shape), 0))
        super().__init__(in_size, feature_axes, aliases={'normalized_shape': normalized_shape}, **options)
        op, rank = type(self).__name__, len(self._size)
        self.reduction_axes = tuple(a - rank for a in _checks.axes(op, 'reduction_axes', reduction_axes, rank))
        self.epsilon = _checks.number(op, 'epsilon', epsilon, at_least=0)
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups

    @property
    def _channel_axis(self) -> int:
        return -1

    @property
    def _options(self) -> dict[str, Any]:
        return dict(
            axis=self.reduction_axes,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            **self._affine,
        )


class LayerNorm(_AxisNorm):
    """Layer normalization: each sample by the mean and variance over its features.

    References
    ----------
    Ba, Kiros & Hinton, "Layer normalization", 2016, arXiv:1607.06450.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.LayerNorm((10,))
    >>> layer(jnp.arange(20.0).reshape(2, 10)).shape
    (2, 10)
    """

    def __init__(
        self,
        in_size: Size | None = None,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        *,
        epsilon: float = default(F.layer_norm, 'epsilon'),
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Any = 0.0,
        scale_init: Any = 1.0,
        axis_name: AxisName | None = None,
        axis_index_groups: AxisGroups | None = None,
        use_fast_variance: bool = True,
        dtype: Any = None,
        param_type: type = brainstate.ParamState,
        normalized_shape: Size | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            in_size,
            reduction_axes,
            feature_axes,
            normalized_shape,
            epsilon,
            axis_name,
            axis_index_groups,
            use_bias=use_bias,
            use_scale=use_scale,
            bias_init=bias_init,
            scale_init=scale_init,
            dtype=dtype,
            param_type=param_type,
            name=name,
        )

    def update(self, x: ArrayLike, mask: ArrayLike | None = None, *, fit: bool | None = None) -> Result:
        """Normalize `x`; `mask` says what counts. Both phases are the same, so `fit` has no effect."""
        self._check_shape(x)
        return self._result(F.layer_norm(x, where=mask, **self._options))


class RMSNorm(_AxisNorm):
    """RMS normalization: each sample by the root of its mean square, without centring.

    Parameters
    ----------
    epsilon : float
        Added to the mean square, in the square of the unit of the input.

    References
    ----------
    Zhang & Sennrich, "Root mean square layer normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.RMSNorm(4)
    >>> layer(jnp.ones((2, 3, 4))).shape
    (2, 3, 4)
    """

    _parameters = 'scale'

    def __init__(
        self,
        in_size: Size | None = None,
        *,
        epsilon: float = default(F.rms_norm, 'epsilon'),
        dtype: Any = None,
        use_scale: bool = True,
        scale_init: Any = 1.0,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: AxisName | None = None,
        axis_index_groups: AxisGroups | None = None,
        use_fast_variance: bool = True,
        param_type: type = brainstate.ParamState,
        normalized_shape: Size | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            in_size,
            reduction_axes,
            feature_axes,
            normalized_shape,
            epsilon,
            axis_name,
            axis_index_groups,
            use_bias=False,
            use_scale=use_scale,
            scale_init=scale_init,
            dtype=dtype,
            param_type=param_type,
            name=name,
        )

    def update(self, x: ArrayLike, mask: ArrayLike | None = None, *, fit: bool | None = None) -> Result:
        """Normalize `x`; `mask` says what counts. Both phases are the same, so `fit` has no effect."""
        self._check_shape(x)
        return self._result(F.rms_norm(x, where=mask, **self._options))


class _ChannelNorm(Normalization):
    """What batch, group and instance norm share: parameters along the channels, the batch in front."""

    def __init__(
        self, in_size: Size | None, feature_axis: Axes, epsilon: float, aliases: dict[str, Any], **options: Any
    ) -> None:
        size = next((s for s in (in_size, *aliases.values()) if s is not None), 0)
        # a number of channels says nothing of the axes between it and the batch, so there the axis is the input's; a
        # shape of one axis, as brainstate has it, is the last one
        self._axis = None
        if isinstance(size, int) and isinstance(feature_axis, int):
            self._axis, feature_axis = feature_axis + (feature_axis >= 0), 0
        super().__init__(in_size, feature_axis, aliases=aliases, **options)
        self.any_resolution = isinstance(size, int) or len(size) == 1
        self.epsilon = _checks.number(type(self).__name__, 'epsilon', epsilon, at_least=0)

    @property
    def _channel_axis(self) -> int:
        return self._channel_axes[0]

    @property
    def _channel_axes(self) -> tuple[int, ...]:
        """The channel axes of an input, batch included."""
        return tuple(a - len(self._size) for a in self.feature_axes) if self._axis is None else (self._axis,)


_BATCH_NORM = """Batch normalization of inputs with a batch, {spatial} and channels.

While fitting, each channel is normalized by the mean and variance of the batch, and their running averages are
kept; while evaluating, by the running averages. The phase is the argument `fit` of the call, else the frozen
flag, else ``brainstate.environ.context(fit=...)``, else an error. A batch that is empty, masked out or not
finite leaves the running averages as they were.

Parameters
----------
track_running_stats : bool
    Whether there are running averages; without them both phases normalize by the batch.
momentum : float
    The share of the running averages that is kept at each step (PyTorch gives the share that is replaced).
affine : bool
    Whether there are a scale and a bias.
bias_initializer, scale_initializer : callable or array_like
    Their initial value, or a function of the shape.
mean_type : type
    The state class of the running averages, which are at least float32.
frozen : bool
    Whether the layer evaluates whatever the environment says; the call's `fit` still overrules it.

Raises
------
ValueError, TypeError
    At construction for a wrong size, axis, epsilon or momentum; at the call for an input of another shape, for
    one value a channel while fitting, and where nothing says which phase it is.

References
----------
Ioffe & Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate
shift", 2015, arXiv:1502.03167.

Examples
--------
>>> import brainstate, jax.numpy as jnp, jaxnorm
>>> layer = jaxnorm.nn.{name}(3)
>>> x = jnp.arange({count}.0).reshape({shape})
>>> with brainstate.environ.context(fit=True):
...     y = layer(x)
>>> bool(jnp.abs(y.mean()) < 1e-6)
True
"""


class _BatchNorm(_ChannelNorm):
    """The one batch norm; its public names differ in the number of spatial axes."""

    num_spatial_dims: ClassVar[int]

    def __init_subclass__(cls, spatial: int) -> None:
        cls.num_spatial_dims = spatial
        shape = (4, *(2,) * spatial, 3)
        words = ('no spatial axes', 'one spatial axis', 'two spatial axes', 'three spatial axes')[spatial]
        cls.__doc__ = _BATCH_NORM.format(
            spatial=words, name=cls.__name__, shape=', '.join(map(str, shape)), count=12 * 2**spatial
        )
        super().__init_subclass__()

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axis: Axes = -1,
        *,
        track_running_stats: bool = True,
        epsilon: float = default(F.batch_norm, 'epsilon'),
        momentum: float = 0.99,
        affine: bool = True,
        bias_initializer: Any = 0.0,
        scale_initializer: Any = 1.0,
        axis_name: AxisName | None = None,
        axis_index_groups: AxisGroups | None = None,
        use_fast_variance: bool = True,
        name: str | None = None,
        dtype: Any = None,
        param_type: type = brainstate.ParamState,
        mean_type: type = brainstate.BatchState,
        num_features: Size | None = None,
        frozen: bool = False,
    ) -> None:
        op, dims = type(self).__name__, self.num_spatial_dims
        super().__init__(
            in_size,
            feature_axis,
            epsilon,
            {'num_features': num_features},
            use_scale=affine,
            use_bias=affine,
            scale_init=scale_initializer,
            bias_init=bias_initializer,
            param_type=param_type,
            dtype=dtype,
            name=name,
        )
        if not self.any_resolution and len(self._size) != dims + 1:
            raise ValueError(
                f'{op}: in_size must be the number of channels or a shape of rank {dims + 1}, got {self.in_size}; '
                'leave the batch out of it.'
            )
        self.momentum = _checks.number(op, 'momentum', momentum, at_least=0, at_most=1)
        self.track_running_stats = _checks.flag(op, 'track_running_stats', track_running_stats)
        self.frozen = _checks.flag(op, 'frozen', frozen)
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        if self.track_running_stats:
            shape = tuple(s if a in self.feature_axes else 1 for a, s in enumerate(self._size))
            wide = jnp.promote_types(brainstate.environ.dftype(), jnp.float32)
            self.running_mean = mean_type(jnp.zeros(shape, wide))
            self.running_var = mean_type(jnp.ones(shape, wide))

    def update(self, x: ArrayLike, mask: ArrayLike | None = None, *, fit: bool | None = None) -> Result:
        """Normalize `x`; `mask` says what counts, `fit` overrules frozen flag and environment."""
        dims = self.num_spatial_dims
        self._check_shape(x, (dims + 1, dims + 2))
        axis = tuple(a % jnp.ndim(x) for a in self._channel_axes)
        options = {'axis': axis, 'epsilon': self.epsilon, **self._affine}
        if self.track_running_stats and not phase(type(self).__name__, fit, self.frozen):
            y = F.batch_norm(x, self.running_mean.value, self.running_var.value, where=mask, **options)
        else:
            if mask is None and self.axis_name is None:
                count = jnp.size(x) // math.prod(jnp.shape(x)[a] for a in axis)
                _checks.several(type(self).__name__, count, jnp.shape(x), axis, 'fit=False')
            names = {'axis_name': self.axis_name, 'axis_index_groups': self.axis_index_groups}
            y, mean, var = F.batch_norm_fit(x, where=mask, **names, **options)
            if self.track_running_stats:
                self._keep(mean, var)
        return self._result(y)

    def _keep(self, mean: Any, var: Any) -> None:
        """Move the running averages towards the batch's moments, which are not finite if it was empty or unsound."""
        sound = jnp.isfinite(_units.number(mean)).all() & jnp.isfinite(_units.number(var)).all()
        for state, batch in ((self.running_mean, mean), (self.running_var, var)):
            old = _units.like(state.value, batch)
            new = self.momentum * old + (1 - self.momentum) * batch.reshape(old.shape).astype(old.dtype)
            state.value = brainunit.math.where(sound, new, old)


class BatchNorm0d(_BatchNorm, spatial=0):
    pass


class BatchNorm1d(_BatchNorm, spatial=1):
    pass


class BatchNorm2d(_BatchNorm, spatial=2):
    pass


class BatchNorm3d(_BatchNorm, spatial=3):
    pass


class _SampleNorm(_ChannelNorm):
    """What group and instance norm share: each sample for itself, over all axes but its channels."""

    def __init__(
        self,
        in_size: Size | None,
        feature_axis: Axes,
        epsilon: float,
        num_channels: Size | None,
        axis_name: AxisName | None,
        axis_index_groups: AxisGroups | None,
        alias: str,
        **options: Any,
    ) -> None:
        super().__init__(in_size, feature_axis, epsilon, {alias: num_channels}, **options)
        if len(self.feature_axes) != 1:
            raise ValueError(
                f'{type(self).__name__}: feature_axis must be one axis, got {feature_axis!r}; pass a single int.'
            )
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups

    def _apply(self, kernel: Any, x: Any, mask: Any, **options: Any) -> Result:
        self._check_shape(x)
        single = not self.any_resolution and jnp.ndim(x) == len(self._size)
        if single:  # a sample without its batch
            x, mask = x[None], None if mask is None else jnp.broadcast_to(mask, jnp.shape(x))[None]
        y = kernel(
            x,
            axis=self._channel_axis,
            epsilon=self.epsilon,
            where=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            **self._affine,
            **options,
        )
        return self._result(y[0] if single else y)


class GroupNorm(_SampleNorm):
    """Group normalization: each sample by the mean and variance of groups of its channels.

    Parameters
    ----------
    num_groups : int or None
        The number of groups, which divides the number of channels.
    group_size : int, optional
        The number of channels in a group, in place of `num_groups`, which is then None.
    reduction_axes : int or tuple of int, optional
        The axes of the input to reduce, the channels among them; by default all but the batch.

    Raises
    ------
    ValueError, TypeError
        At construction for a wrong size, axis or epsilon, and for groups that do not divide the channels; at the
        call for an input of another shape.

    References
    ----------
    Wu & He, "Group normalization", 2018, arXiv:1803.08494.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.GroupNorm(num_groups=4, num_channels=16)
    >>> layer(jnp.ones((2, 8, 8, 16))).shape
    (2, 8, 8, 16)
    """

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axis: Axes = -1,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: float = default(F.group_norm, 'epsilon'),
        dtype: Any = None,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Any = 0.0,
        scale_init: Any = 1.0,
        reduction_axes: Axes | None = None,
        axis_name: AxisName | None = None,
        axis_index_groups: AxisGroups | None = None,
        use_fast_variance: bool = True,
        param_type: type = brainstate.ParamState,
        num_channels: Size | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            in_size,
            feature_axis,
            epsilon,
            num_channels,
            axis_name,
            axis_index_groups,
            'num_channels',
            use_bias=use_bias,
            use_scale=use_scale,
            bias_init=bias_init,
            scale_init=scale_init,
            dtype=dtype,
            param_type=param_type,
            name=name,
        )
        channels = self._size[self.feature_axes[0]]
        if (num_groups is None) == (group_size is None):
            raise ValueError(
                f'GroupNorm: num_groups or group_size must be given, got {num_groups} and {group_size}; '
                'pass num_groups=None beside a group_size.'
            )
        argument, value = ('num_groups', num_groups) if num_groups is not None else ('group_size', group_size)
        if channels % _checks.integer('GroupNorm', argument, value):
            divisors = [n for n in range(1, channels + 1) if channels % n == 0]
            raise ValueError(
                f'GroupNorm: {argument} must divide the {channels} channels, got {value}; choose one of {divisors}.'
            )
        self.num_groups = num_groups if group_size is None else channels // group_size
        self.group_size = channels // self.num_groups  # type: ignore[operator]
        self.reduction_axes = reduction_axes

    def update(self, x: ArrayLike, mask: ArrayLike | None = None, *, fit: bool | None = None) -> Result:
        """Normalize `x`; `mask` says what counts. Both phases are the same, so `fit` has no effect."""
        return self._apply(F.group_norm, x, mask, num_groups=self.num_groups, reduction_axes=self.reduction_axes)


class InstanceNorm(_SampleNorm):
    """Instance normalization: each channel of each sample by its own mean and variance.

    References
    ----------
    Ulyanov, Vedaldi & Lempitsky, "Instance normalization: the missing ingredient for fast stylization", 2016,
    arXiv:1607.08022.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.InstanceNorm(16)
    >>> layer(jnp.ones((2, 8, 8, 16))).shape
    (2, 8, 8, 16)
    """

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axis: Axes = -1,
        *,
        epsilon: float = default(F.instance_norm, 'epsilon'),
        dtype: Any = None,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Any = 0.0,
        scale_init: Any = 1.0,
        axis_name: AxisName | None = None,
        axis_index_groups: AxisGroups | None = None,
        use_fast_variance: bool = True,
        param_type: type = brainstate.ParamState,
        num_features: Size | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            in_size,
            feature_axis,
            epsilon,
            num_features,
            axis_name,
            axis_index_groups,
            'num_features',
            use_bias=use_bias,
            use_scale=use_scale,
            bias_init=bias_init,
            scale_init=scale_init,
            dtype=dtype,
            param_type=param_type,
            name=name,
        )

    def update(self, x: ArrayLike, mask: ArrayLike | None = None, *, fit: bool | None = None) -> Result:
        """Normalize `x`; `mask` says what counts. Both phases are the same, so `fit` has no effect."""
        return self._apply(F.instance_norm, x, mask)
