"""Norms as modules: parameters, running statistics and phases round the kernels."""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import brainstate
import jax.numpy as jnp

from .. import _checks
from .. import functional as F
from .._typing import ArrayLike, Axes, AxisGroups, AxisName, Result, Size
from ..functional._normalization import add_norm
from ._base import Normalization, Picklable, default, described, trailing


class _Segmented(Normalization):
    """What the norms of samples share: statistics of packed sequences."""

    def update(
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        segment_ids: ArrayLike | None = None,
        fit: bool | None = None,
    ) -> Result:
        """Normalize `x`; `mask` says what counts.

        `scale` and `bias` are those of the call, where the layer has none of its own; `segment_ids` parts packed
        sequences. Both phases are the same, so `fit` has no effect.
        """
        return self._apply(x, mask, segment_ids=segment_ids, **self._told(scale, bias))


class _Casting(_Segmented):
    """And an order of casts and an offset of the scale."""

    cast: str

    @property
    def _options(self) -> dict[str, Any]:
        return {**super()._options, 'cast': self.cast, 'scale_offset': self.scale_offset}


class _AxisNorm(_Casting, without=['aliases']):
    """What layer norm and RMS norm share: axes to reduce, counted from the end."""

    def __init__(
        self,
        in_size: Size | None,
        reduction_axes: Axes,
        feature_axes: Axes,
        *,
        epsilon: float,
        axis_name: AxisName | None = None,
        axis_index_groups: AxisGroups | None = None,
        cast: str = 'after',
        use_fast_variance: bool = True,
        normalized_shape: Size | None = None,
        **options: Any,
    ) -> None:
        named = trailing(normalized_shape)
        reduction_axes, feature_axes = named or reduction_axes, named or feature_axes
        super().__init__(in_size, feature_axes, aliases={'normalized_shape': normalized_shape}, **options)
        op, rank = type(self).__name__, len(self._size)
        self.reduction_axes = tuple(a - rank for a in _checks.axes(op, 'reduction_axes', reduction_axes, rank))
        self.epsilon = _checks.number(op, 'epsilon', epsilon, at_least=0)
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.cast = _checks.one_of(op, 'cast', cast, ('after', 'before'))

    @property
    def _channel_axis(self) -> int:
        return -1

    def _apply(self, x: Any, mask: Any, **options: Any) -> Result:
        self._check_shape(x)
        y = self._kernel(
            x,
            axis=self.reduction_axes,
            epsilon=self.epsilon,
            where=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            **options,
        )
        return self._result(y, mask)


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

    _kernel = staticmethod(F.layer_norm)

    def __init__(
        self,
        in_size: Size | None = None,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        *,
        epsilon: float = default(F.layer_norm, 'epsilon'),
        **options: Any,
    ) -> None:
        super().__init__(in_size, reduction_axes, feature_axes, epsilon=epsilon, **options)


class RMSNorm(_AxisNorm):
    """RMS normalization: each sample by the root of its mean square, without centring.

    Parameters
    ----------
    epsilon : float
        Added to the mean square, in the square of the unit of the input.
    partial : float
        The share of the features, from the first on, of which the mean square is taken: pRMSNorm.
    use_bias : bool
        Whether there is a bias; in the paper there is none.

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

    _kernel = staticmethod(F.rms_norm)
    _parameters = 'scale'

    def __init__(
        self,
        in_size: Size | None = None,
        *,
        epsilon: float = default(F.rms_norm, 'epsilon'),
        partial: float = 1.0,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        use_bias: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_size, reduction_axes, feature_axes, epsilon=epsilon, use_bias=use_bias, **options)
        self.partial = _checks.number('RMSNorm', 'partial', partial, above=0, at_most=1)

    @property
    def _options(self) -> dict[str, Any]:
        return {**super()._options, 'partial': self.partial}


#: No input has more: what is larger was meant for a number of channels.
_MOST_AXES = 16


class _ChannelNorm(Normalization):
    """What batch, group and instance norm share: parameters along the channels, the batch in front."""

    #: None is any
    num_spatial_dims: ClassVar[int | None] = None

    def __init__(
        self, in_size: Size | None, feature_axis: Axes, *, epsilon: float, aliases: dict[str, Any], **options: Any
    ) -> None:
        size = next((s for s in (in_size, *aliases.values()) if s is not None), 0)
        # a number of channels says nothing of the axes between it and the batch, so there the axis is the input's; a
        # shape of one axis, as brainstate has it, is the last one
        self._axis, channels = None, not isinstance(size, Sequence)
        if channels:
            self._axis, feature_axis = self._axis_of_input(feature_axis), 0
        super().__init__(in_size, feature_axis, aliases=aliases, **options)
        self.any_resolution = channels or len(cast(Any, size)) == 1
        self.epsilon = _checks.number(type(self).__name__, 'epsilon', epsilon, at_least=0)

    def _axis_of_input(self, feature_axis: Any) -> int:
        """The channel axis of an input, given as that of a sample whose rank is known only from `num_spatial_dims`."""
        op, dims = type(self).__name__, self.num_spatial_dims
        if dims is not None:  # from the end, for a sample may come without its batch
            return _checks.one_axis(op, 'feature_axis', feature_axis, dims + 1) - (dims + 1)
        (axis,) = feature_axis if isinstance(feature_axis, Sequence) and len(feature_axis) == 1 else (feature_axis,)
        axis = _checks.integer(op, 'feature_axis', axis, at_least=-_MOST_AXES, at_most=_MOST_AXES)
        return axis + (axis >= 0)

    @property
    def _channel_axis(self) -> int:
        return self._channel_axes[0]

    @property
    def _channel_axes(self) -> tuple[int, ...]:
        """The channel axes of an input, batch included."""
        return tuple(a - len(self._size) for a in self.feature_axes) if self._axis is None else (self._axis,)

    def _with_batch(self, x: Any, *masks: Any) -> tuple[bool, list[Any]]:
        """Whether `x` is a sample without its batch, and it and its masks with one."""
        self._check_shape(x)
        if self.any_resolution or jnp.ndim(x) != len(self._size):
            return False, [x, *masks]
        op, shape = type(self).__name__, jnp.shape(x)
        mask, *ids = masks
        masks = _checks.mask(op, 'mask', mask, shape), *(_checks.segment_ids(op, i, shape) for i in ids)
        return True, [x[None], *(None if m is None else m[None] for m in masks)]


class _SampleNorm(_ChannelNorm):
    """What group and instance norm share with others: each sample for itself, over all axes but its channels."""

    def __init__(
        self,
        in_size: Size | None,
        feature_axis: Axes,
        *,
        axis_name: AxisName | None = None,
        axis_index_groups: AxisGroups | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_size, feature_axis, **options)
        if len(self.feature_axes) != 1:
            raise ValueError(
                f'{type(self).__name__}: feature_axis must be one axis, got {feature_axis!r}; pass a single int.'
            )
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups

    def _apply(self, x: Any, mask: Any, **options: Any) -> Result:
        single, (x, mask, ids) = self._with_batch(x, mask, options.pop('segment_ids', None))
        y = self._kernel(
            x,
            axis=self._channel_axis,
            epsilon=self.epsilon,
            where=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            **options if ids is None else {**options, 'segment_ids': ids},
        )
        y = self._result(y, mask)
        return y[0] if single else y


class _CastingNorm(_SampleNorm, _Casting):
    """What group and instance norm share with each other."""

    def __init__(
        self,
        in_size: Size | None,
        feature_axis: Axes,
        *,
        cast: str = 'after',
        use_fast_variance: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(in_size, feature_axis, **options)
        self.cast = _checks.one_of(type(self).__name__, 'cast', cast, ('after', 'before'))


class GroupNorm(_CastingNorm, without=['aliases']):
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

    _kernel = staticmethod(F.group_norm)

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axis: Axes = -1,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: float = default(F.group_norm, 'epsilon'),
        reduction_axes: Axes | None = None,
        num_channels: Size | None = None,
        **options: Any,
    ) -> None:
        if _checks.is_int(feature_axis) and cast(int, feature_axis) > _MOST_AXES:
            raise ValueError(
                f'GroupNorm: feature_axis must be the axis of the channels, got {feature_axis}; '
                f"name what comes in PyTorch's order: num_groups={in_size}, num_channels={feature_axis}."
            )
        super().__init__(in_size, feature_axis, epsilon=epsilon, aliases={'num_channels': num_channels}, **options)
        channels = self._size[self.feature_axes[0]]
        self.num_groups, self.group_size = _checks.groups('GroupNorm', channels, num_groups, group_size)
        self.reduction_axes = reduction_axes

    @property
    def _options(self) -> dict[str, Any]:
        return {**super()._options, 'num_groups': self.num_groups, 'reduction_axes': self.reduction_axes}


class InstanceNorm(_CastingNorm, without=['aliases']):
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

    _kernel = staticmethod(F.instance_norm)

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axis: Axes = -1,
        *,
        epsilon: float = default(F.instance_norm, 'epsilon'),
        num_features: Size | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_size, feature_axis, epsilon=epsilon, aliases={'num_features': num_features}, **options)


class AddNorm(Picklable, brainstate.nn.Module):
    """A residual addition and the norm of the sum, both of which a block goes on with.

    Parameters
    ----------
    norm : Module
        Any norm; with its activation, if it has one.
    name : str, optional
        The name of the module.

    Raises
    ------
    TypeError
        If `norm` is no module.
    ValueError
        At the call, if the two inputs differ in shape, dtype or kind of unit.

    References
    ----------
    He, Zhang, Ren & Sun, "Identity mappings in deep residual networks", 2016, arXiv:1603.05027.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> block = jaxnorm.nn.AddNorm(jaxnorm.nn.RMSNorm(4))
    >>> y, total = block(jnp.ones((2, 4)), jnp.ones((2, 4)))
    >>> total.tolist()[0]
    [2.0, 2.0, 2.0, 2.0]
    """

    def __init__(self, norm: Any, name: str | None = None) -> None:
        cast(Any, super()).__init__(name=name)
        if not isinstance(norm, brainstate.nn.Module):
            raise TypeError(
                f'AddNorm: norm must be a module, got {_checks.describe(norm)}; pass for example RMSNorm(64).'
            )
        self.norm = norm
        self.in_size = self.out_size = cast(Any, norm).in_size

    def update(self, x: ArrayLike, residual: ArrayLike, mask: ArrayLike | None = None, **options: Any) -> Any:
        """(norm of the sum, sum) of `x` and `residual`; `options` are those of the norm's call."""
        total = add_norm(x, residual)  # of it the norm keeps nothing but itself, and it is a result anyhow
        return self.norm(total, **options if mask is None else {**options, 'mask': mask}), total


described(AddNorm, Normalization.__doc__)
