"""Conditional norms: scale and shift come with each call, from a condition, a style or a map; and norms of pairs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import brainstate
import jax
import jax.numpy as jnp

from .. import _checks, _units
from .. import functional as F
from .._typing import Activation as ActivationLike
from .._typing import Array, ArrayLike, Result, Size
from ..functional._kernel import compute_dtype
from ._base import Picklable, default, described
from ._batch import BatchNorm2d
from ._normalization import InstanceNorm, LayerNorm, RMSNorm, _ChannelNorm


class _Projection(Picklable, brainstate.nn.Linear):
    """A linear map of a condition to scale, shift and more, each of them in the rank of an input."""

    def __init__(
        self, op: str, condition_size: int, channels: int, count: int, activation: Any, **options: Any
    ) -> None:
        size = _checks.integer(op, 'condition_size', condition_size)
        super().__init__(size, channels * count, **options)
        self.op = op
        self.count = count
        self.activation = None if activation is None else F.get(activation)

    def parts(self, condition: Any, shape: tuple[int, ...], axis: int) -> list[Array]:
        """Scale, shift and what else there is, for an input of this shape with its channels on `axis`."""
        op = self.op
        condition = _checks.floating(op, 'condition', _units.dimensionless(op, 'condition', condition))
        wanted = cast(Any, self.in_size)[-1]
        if condition.shape[-1:] != (wanted,):
            raise ValueError(
                f'{op}: condition must have {wanted} features on its last axis, got the shape {condition.shape}; '
                'change condition_size.'
            )
        y = cast(Array, self(condition if self.activation is None else self.activation(condition)))
        return [_spread(op, 'condition', part, shape, axis) for part in jnp.split(y, self.count, -1)]


def _spread(op: str, argument: str, value: Array, shape: tuple[int, ...], axis: int) -> Array:
    """A value with its channels last in the rank of an input with them on `axis`: the same along all axes between."""
    others = tuple(s for a, s in enumerate(shape) if a != axis % len(shape))
    lead = value.shape[:-1]
    if len(lead) > len(others) or any(s not in (1, t) for s, t in zip(lead, others, strict=False)):
        raise ValueError(
            f'{op}: {argument} must have the first axes of x, which without its channels are {others}, before its '
            f'features, got {lead}; give one for each sample.'
        )
    missing = (1,) * (len(others) - len(lead))
    return jnp.moveaxis(value.reshape(*lead, *missing, value.shape[-1]), -1, axis)


def _zeros(shape: Any) -> Array:
    """Zeros in the dtype that brainstate gives parameters."""
    return jnp.zeros(shape, brainstate.environ.dftype())


def _one_plus(scale: Array) -> Array:
    """A scale that is given as its offset from one."""
    return 1 + scale.astype(compute_dtype(scale.dtype))


#: What a norm need not be told whose scale and shift come with the call.
_GIVEN = ['use_scale', 'use_bias', 'scale_init', 'bias_init', 'scale_offset']
#: What the docstrings of adaptive norms need not say.
_ADAPTIVE = """Of a norm whose scale and shift are a linear map of a condition.

Parameters
----------
condition_size : int
    The number of features of the condition.
gate : bool
    Whether to return a gate as well.
condition_activation : str or callable, optional
    What the condition goes through before the linear map; ``'silu'`` in DiT.
w_init : callable or array
    Weight of the linear map at first, or a function of the shape; zeros by default, so that this is the plain norm.
b_init : callable or array
    Its bias, likewise.

Raises
------
ValueError, TypeError
    At construction for a wrong size or option; at the call for an input or a condition of another shape.
"""


class _Adaptive:
    """A norm over features whose scale, and shift and gate if there are such, are a linear map of a condition."""

    _families = (_ADAPTIVE,)

    def _project(self, condition_size: int, activation: Any, shift: bool, gate: bool, **options: Any) -> None:
        op, self_ = type(self).__name__, cast(Any, self)
        self.shift, self.gate = _checks.flag(op, 'shift', shift), _checks.flag(op, 'gate', gate)
        count = 1 + self.shift + self.gate
        self.linear = _Projection(op, condition_size, self_._size[-1], count, activation, **options)

    def update(
        self, x: ArrayLike, condition: ArrayLike, mask: ArrayLike | None = None, *, fit: bool | None = None
    ) -> Any:
        """Normalize `x`; `mask` says what counts. Both phases are the same, so `fit` has no effect."""
        cast(Any, self)._check_shape(x)
        scale, *more = self.linear.parts(condition, jnp.shape(x), -1)
        shift = {'bias': more.pop(0)} if self.shift else {}
        y = cast(Any, super()).update(x, mask, scale=_one_plus(scale), **shift)
        return (y, *more) if self.gate else y


# a further input, not a mask, is what comes second
class AdaLayerNorm(_Adaptive, LayerNorm, without=_GIVEN):  # pyright: ignore[reportIncompatibleMethodOverride]
    r"""Adaptive layer normalization (AdaLN): scale and shift are a linear map of a condition.

    .. math:: y = (1 + \gamma(c)) \, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta(c)

    The call takes the input and the condition, whose axes are the first ones of the input, then its features: one
    condition a sample, or one a position. With `gate` it returns a gate α(c) as well, by which the block that follows
    is multiplied before it is added to its input. Zeros at first, it makes the whole block the identity (AdaLN-Zero).
    The linear map gives the scale first, then shift and gate; in checkpoints of DiT the shift comes before the scale.

    References
    ----------
    Peebles & Xie, "Scalable diffusion models with transformers", 2023, arXiv:2212.09748.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.AdaLayerNorm(8, 3, gate=True)
    >>> y, gate = layer(jnp.ones((2, 5, 8)), jnp.ones((2, 3)))
    >>> y.shape, gate.shape
    ((2, 5, 8), (2, 1, 8))
    """

    def __init__(
        self,
        in_size: Size,
        condition_size: int,
        *,
        gate: bool = False,
        epsilon: float = default(F.layer_norm, 'epsilon'),
        condition_activation: str | Callable[..., Any] | None = None,
        w_init: Any = _zeros,
        b_init: Any = _zeros,
        param_type: type = brainstate.ParamState,
        **options: Any,
    ) -> None:
        super().__init__(in_size, epsilon=epsilon, use_scale=False, use_bias=False, **options)
        self._project(condition_size, condition_activation, True, gate, w_init=w_init, b_init=b_init,
                      param_type=param_type)  # fmt: skip


# a further input, not a mask, is what comes second
class AdaRMSNorm(_Adaptive, RMSNorm, without=_GIVEN):  # pyright: ignore[reportIncompatibleMethodOverride]
    r"""Adaptive RMS normalization: the scale, and a shift if there is one, are a linear map of a condition.

    .. math:: y = (1 + \gamma(c)) \, \frac{x}{\sqrt{\frac{1}{n} \sum_i x_i^2 + \epsilon}} + \beta(c)

    The call takes the input and the condition, whose axes are the first ones of the input, then its features. With
    `gate` it returns a gate α(c) as well, by which the block that follows is multiplied, as `AdaLayerNorm` does.

    Parameters
    ----------
    shift : bool
        Whether there is a shift β as well.
    epsilon : float
        Added to the mean square, in the square of the unit of the input.
    partial : float
        The share of the features, from the first on, of which the mean square is taken.

    References
    ----------
    Zhang & Sennrich, "Root mean square layer normalization", 2019, arXiv:1910.07467. Peebles & Xie, "Scalable diffusion
    models with transformers", 2023, arXiv:2212.09748.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.AdaRMSNorm(8, 3, shift=True)
    >>> layer(jnp.ones((2, 5, 8)), jnp.ones((2, 3))).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        in_size: Size,
        condition_size: int,
        *,
        shift: bool = False,
        gate: bool = False,
        epsilon: float = default(F.rms_norm, 'epsilon'),
        condition_activation: str | Callable[..., Any] | None = None,
        w_init: Any = _zeros,
        b_init: Any = _zeros,
        param_type: type = brainstate.ParamState,
        **options: Any,
    ) -> None:
        super().__init__(in_size, epsilon=epsilon, use_scale=False, **options)
        self._project(condition_size, condition_activation, shift, gate, w_init=w_init, b_init=b_init,
                      param_type=param_type)  # fmt: skip


class FiLM(_ChannelNorm, without=[*_GIVEN, 'aliases', 'epsilon']):
    r"""Feature-wise linear modulation: scale and shift of each channel are a linear map of a condition.

    .. math:: y = (1 + \gamma(c)) \, x + \beta(c)

    There is no norm in it: as a rule it follows one without parameters of its own. The call takes the input and the
    condition, whose axes are the first ones of the input without its channels, then its features. An input with a unit
    keeps it, the shift counts in it, and an activation has to know what to do with it.

    Parameters
    ----------
    condition_size : int
        The number of features of the condition.
    condition_activation : str or callable, optional
        What the condition goes through before the linear map.
    w_init, b_init : callable or array
        Weight and bias of the linear map at first, or functions of the shape; zeros by default, so that it is the
        identity at first.

    Raises
    ------
    ValueError, TypeError
        At construction for a wrong size or axis; at the call for an input or a condition of another shape.

    References
    ----------
    Perez, Strub, de Vries, Dumoulin & Courville, "FiLM: visual reasoning with a general conditioning layer", 2018,
    arXiv:1709.07871.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.FiLM(16, 3)
    >>> x = jnp.ones((2, 8, 8, 16))
    >>> bool((layer(x, jnp.ones((2, 3))) == x).all())
    True
    """

    def __init__(
        self,
        in_size: Size,
        condition_size: int,
        feature_axis: int = -1,
        *,
        condition_activation: str | Callable[..., Any] | None = None,
        w_init: Any = _zeros,
        b_init: Any = _zeros,
        param_type: type = brainstate.ParamState,
        **options: Any,
    ) -> None:
        super().__init__(in_size, feature_axis, epsilon=0.0, aliases={}, use_scale=False, use_bias=False, **options)
        del self.epsilon
        channels = self._size[self.feature_axes[0]]
        options = {'w_init': w_init, 'b_init': b_init, 'param_type': param_type}
        self.linear = _Projection('FiLM', condition_size, channels, 2, condition_activation, **options)

    # a further input, not a mask, is what comes second
    def update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: ArrayLike, condition: ArrayLike, *, fit: bool | None = None
    ) -> Result:
        """Scale and shift `x`. Both phases are the same, so `fit` has no effect."""
        self._check_shape(x)
        scale, shift = self.linear.parts(condition, jnp.shape(x), self._channel_axis)
        values, unit = _checks.floating('FiLM', 'x', _units.number(x)), _units.unit_of(x)

        @jax.checkpoint  # nothing is saved for what follows
        def modulate(values: Array, scale: Array, shift: Array) -> Result:
            y = _units.attach((_one_plus(scale) * values + shift).astype(values.dtype), unit, 1)
            return y if self._function is None else self._function(y)

        return self._result(modulate(values, scale, shift))


class AdaIN(InstanceNorm, without=_GIVEN):
    r"""Adaptive instance normalization: each channel gets the mean and the standard deviation of a style.

    .. math:: y = \sigma(s) \, \frac{x - \mu(x)}{\sigma(x)} + \mu(s), \qquad \sigma^2 = \mathrm{var} + \epsilon

    The call takes the input and a style of any resolution, whose moments are taken a sample and a channel, or `scale`
    and `shift` themselves, one a channel or one a sample and channel. The result has the unit of the style. A style
    that is fully masked counts as zeros.

    References
    ----------
    Huang & Belongie, "Arbitrary style transfer in real-time with adaptive instance normalization", 2017,
    arXiv:1703.06868.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.AdaIN(3)
    >>> x, style = jnp.arange(24.0).reshape(1, 2, 4, 3), 5 * jnp.arange(12.0).reshape(1, 2, 2, 3)
    >>> y = layer(x, style)
    >>> bool(jnp.allclose(y.mean((1, 2)), style.mean((1, 2)), 1e-5))
    True
    """

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axis: int = -1,
        *,
        epsilon: float = default(F.instance_norm, 'epsilon'),
        **options: Any,
    ) -> None:
        super().__init__(in_size, feature_axis, epsilon=epsilon, use_scale=False, use_bias=False, **options)

    # a further input, not a mask, is what comes second
    def update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: ArrayLike,
        style: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        *,
        style_mask: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        shift: ArrayLike | None = None,
        fit: bool | None = None,
    ) -> Result:
        """Normalize `x`; `mask` and `style_mask` say what counts. Both phases are the same, so `fit` has no effect."""
        if (style is None) == (scale is None and shift is None):
            raise TypeError(
                f'AdaIN: style, or scale and shift, must be given, got {"neither" if style is None else "both"}; '
                'pass one of the two.'
            )
        self._check_shape(x)
        if style is not None:
            unit = _units.unit_of(style)
            if unit is not None and self.activation is not None:
                raise TypeError(
                    f'AdaIN: style must be dimensionless where an activation follows, got a Quantity in {unit}; '
                    f'divide it by a reference value first, for example by 1 {unit}.'
                )
            std, mean = self._moments(style, style_mask)
            return _units.attach(super().update(x, mask, scale=std, bias=mean), unit, 1)
        given = {'scale': scale, 'shift': shift}
        for argument, value in given.items():
            if value is not None:
                value = _checks.floating('AdaIN', argument, _units.dimensionless('AdaIN', argument, value))
                given[argument] = _spread('AdaIN', argument, value, jnp.shape(x), self._channel_axis)
        return super().update(x, mask, scale=given['scale'], bias=given['shift'])

    def _moments(self, style: Any, mask: Any) -> tuple[Array, Array]:
        """Standard deviation and mean of each channel of each sample, as numbers in the unit of the style."""
        shape, channel, channels = jnp.shape(style), self._channel_axis, self._size[self.feature_axes[0]]
        if len(shape) <= abs(channel) - (channel < 0) or shape[channel] != channels:
            raise ValueError(
                f'AdaIN: style must have {channels} channels on axis {channel}, got the shape {shape}; '
                'move its channels there.'
            )
        batch = 0 if not self.any_resolution and len(shape) == len(self._size) else 1
        axes = tuple(a for a in range(batch, len(shape)) if a != channel % len(shape))
        if not axes:
            raise ValueError(
                f'AdaIN: style must have an axis beside batch and channels, of which moments are taken, got the shape '
                f'{shape}; pass its mean and deviation as shift and scale.'
            )
        over = {'axis_name': self.axis_name, 'axis_index_groups': self.axis_index_groups}
        moments = partial(F.moments, axis=axes, where=mask, keepdims=True, **over)
        mean, var = map(_units.number, moments(style))
        if mask is not None:
            nothing = jnp.isnan(moments(jnp.ones(shape))[0])  # is counted there, on any device
            mean, var = jnp.where(nothing, 0, mean), jnp.where(nothing, 0, var)
        var = var + self.epsilon
        return jnp.where(var > 0, jnp.sqrt(jnp.where(var > 0, var, 1)), 0), mean


class SPADE(Picklable, brainstate.nn.Module):
    r"""Spatially adaptive normalization: scale and shift at each place come from a segmentation map.

    .. math:: y = (1 + \gamma(m)) \, \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta(m)

    Two convolutions make γ and β of the map, with a ReLU between them. The call takes the input and the map, one-hot or
    of any numbers, of any resolution: the nearest of its pixels counts. The phase matters to a batch norm alone, where
    it is the argument `fit` of the call, else ``brainstate.environ.context(fit=...)``, else an error.

    Parameters
    ----------
    in_size : tuple of int
        The shape of the input without its batch: height, width and channels.
    label_channels : int
        The number of channels of the map.
    hidden_channels : int
        The number of channels between the convolutions.
    kernel_size : int or tuple of int
        That of both convolutions.
    norm : {'batch', 'instance'} or module
        The norm, which has no parameters of its own.
    channel_first : bool
        Whether the channels come first, as in brainstate's convolutions.
    activation : str, callable or module, optional
        What follows. Of a name or a function nothing is saved for the backward pass; a module is called after. That of
        a norm which is given as a module is its own.
    w_init : callable or array, optional
        The weights of the convolutions at first; by default as in brainstate.
    param_type : type
        The state class of the parameters.
    name : str, optional
        The name of the module.

    Raises
    ------
    ValueError, TypeError
        At construction for a wrong size or option; at the call for an input, a map or a mask that does not fit.

    References
    ----------
    Park, Liu, Wang & Zhu, "Semantic image synthesis with spatially-adaptive normalization", 2019, arXiv:1903.07291.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.SPADE((8, 8, 4), label_channels=3, hidden_channels=16, norm='instance')
    >>> labels = jax.nn.one_hot(jnp.zeros((2, 16, 16), int), 3)
    >>> layer(jnp.ones((2, 8, 8, 4)), labels).shape
    (2, 8, 8, 4)
    """

    def __init__(
        self,
        in_size: Sequence[int],
        label_channels: int,
        *,
        hidden_channels: int = 128,
        kernel_size: int | Sequence[int] = 3,
        norm: Any = 'batch',
        channel_first: bool = False,
        activation: ActivationLike | None = None,
        w_init: Any = None,
        param_type: type = brainstate.ParamState,
        name: str | None = None,
    ) -> None:
        if not isinstance(in_size, Sequence) or len(in_size) != 3:
            raise ValueError(
                f'SPADE: in_size must be a height, a width and a number of channels, got {_checks.describe(in_size)}; '
                'pass for example (32, 32, 64).'
            )
        size = tuple(_checks.integer('SPADE', 'in_size', s) for s in in_size)
        channel = 0 if _checks.flag('SPADE', 'channel_first', channel_first) else -1
        if not isinstance(norm, brainstate.nn.Module):
            norm = _checks.one_of('SPADE', 'norm', norm, ('batch', 'instance'))
            norm = {
                'batch': lambda: BatchNorm2d(size, channel, affine=False, activation=activation),
                'instance': lambda: InstanceNorm(size, channel, use_scale=False, use_bias=False, activation=activation),
            }[norm]()
        elif activation is not None:
            raise ValueError(
                f'SPADE: activation must be None where norm is a module, got {_checks.describe(activation)}; '
                'give it to that norm.'
            )
        cast(Any, super()).__init__(name=name)
        self.norm = norm
        self.in_size = self.out_size = size
        self.channel_first = channel_first
        spatial = size[1:] if channel_first else size[:-1]
        options = {'channel_first': channel_first, 'param_type': param_type, 'b_init': _zeros}
        options |= {} if w_init is None else {'w_init': w_init}

        def convolution(argument: str, channels: int, results: int) -> Any:
            channels = _checks.integer('SPADE', argument, channels)
            shape = (channels, *spatial) if channel_first else (*spatial, channels)
            return brainstate.nn.Conv2d(shape, results, cast(Any, kernel_size), **options)

        self.shared = convolution('label_channels', label_channels, hidden_channels)
        self.modulation = convolution('hidden_channels', hidden_channels, 2 * size[channel])

    def update(
        self, x: ArrayLike, segmentation: ArrayLike, mask: ArrayLike | None = None, *, fit: bool | None = None
    ) -> Result:
        """Normalize `x`; `mask` says what counts, `fit` overrules the environment."""
        labels = _checks.floating('SPADE', 'segmentation', segmentation)
        channel = -3 if self.channel_first else -1
        shape = cast(Any, self.shared.in_size)
        if labels.ndim != jnp.ndim(x) or labels.shape[channel] != shape[channel]:
            raise ValueError(
                f'SPADE: segmentation must have the rank of x, {jnp.ndim(x)}, and {shape[channel]} channels, '
                f'got the shape {labels.shape}; make it one-hot, or change label_channels.'
            )
        labels = labels.astype(cast(Any, self.shared).weight.value['weight'].dtype)
        for axis in {-3, -2, -1} - {channel}:  # the nearest pixel, as PyTorch takes it
            there = labels.shape[axis]
            labels = jnp.take(labels, jnp.arange(shape[axis]) * there // shape[axis], axis)
        hidden = F.relu(self.shared(labels))
        scale, shift = jnp.split(self.modulation(hidden), 2, channel)
        return self.norm(x, mask, scale=_one_plus(scale), bias=shift, fit=fit)


class QKNorm(Picklable, brainstate.nn.Module):
    r"""Normalization of queries and keys, so that the logits of attention stay in bounds.

    .. math:: \hat q = \mathrm{norm}(q) \, \gamma_q, \qquad \hat k = \mathrm{norm}(k) \, \gamma_k

    Each head is normalized over its features, which come last. The call returns both.

    Parameters
    ----------
    in_size : int or tuple of int
        The number of features of a head, or a shape without the batch; ``(heads, features)`` with
        ``feature_axes=(0, 1)`` has a scale for each head.
    norm : {'rms', 'layer'} or class
        RMS norm (Gemma, ...), layer norm (ViT-22B, with ``use_bias=False``), or a class of norms.
    options : any
        Further arguments of that class, for both norms.
    name : str, optional
        The name of the module.

    Raises
    ------
    ValueError, TypeError
        At construction for a wrong size or option; at the call for an input or a mask that does not fit.

    References
    ----------
    Henry, Dachapally, Pawar & Chen, "Query-key normalization for transformers", 2020, arXiv:2010.04245. Dehghani et
    al., "Scaling vision transformers to 22 billion parameters", 2023, arXiv:2302.05442.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.QKNorm(16)
    >>> q, k = layer(jnp.ones((2, 10, 4, 16)), jnp.ones((2, 12, 4, 16)))
    >>> q.shape, k.shape
    ((2, 10, 4, 16), (2, 12, 4, 16))
    """

    def __init__(self, in_size: Size, *, norm: Any = 'rms', name: str | None = None, **options: Any) -> None:
        cast(Any, super()).__init__(name=name)
        if not isinstance(norm, type):
            kinds = {'rms': RMSNorm, 'layer': LayerNorm}
            norm = kinds[_checks.one_of('QKNorm', 'norm', norm, kinds)]
        self.q_norm, self.k_norm = norm(in_size, **options), norm(in_size, **options)
        self.in_size = self.out_size = self.q_norm.in_size

    def update(
        self,
        q: ArrayLike,
        k: ArrayLike,
        mask: ArrayLike | None = None,
        k_mask: ArrayLike | None = None,
        *,
        fit: bool | None = None,
    ) -> tuple[Result, Result]:
        """Normalize queries and keys; `mask` says what counts of the queries, `k_mask` of the keys."""
        return self.q_norm(q, mask, fit=fit), self.k_norm(k, k_mask, fit=fit)


for _cls in (SPADE, QKNorm):
    described(_cls)
