"""Batch norms as modules: running statistics, and what decides which ones are used."""

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import brainstate
import brainunit
import jax.numpy as jnp

from .. import _checks, _units
from .. import functional as F
from .._typing import Activation, ArrayLike, Axes, AxisGroups, AxisName, Result, Size
from ..functional import _batch
from ._base import default
from ._normalization import _ChannelNorm
from ._running import POOLING, Running, refuse_one_value, whole

_BATCH_NORM = """Batch normalization of inputs with a batch, {spatial} and channels.

While fitting, each channel is normalized by the mean and variance of the batch, and their running averages are
kept; while evaluating, by the running averages. The phase is the argument `fit` of the call, else the frozen
flag, else ``brainstate.environ.context(fit=...)``, else an error. A batch that is empty, masked out or not
finite leaves the running averages as they were.

Parameters
----------
track_running_stats : bool
    Whether there are running averages; without them both phases normalize by the batch.
momentum : float or None
    The share of the running averages that is kept at each step (PyTorch gives the share that is replaced). None
    averages all batches alike.
affine : bool
    Whether there are a scale and a bias.
use_scale, use_bias : bool, optional
    Whether there is a scale, and a bias, each for itself; by default as `affine` says.
bias_initializer, scale_initializer : callable or array_like
    Their initial value, or a function of the shape.
mean_type : type
    The state class of the running averages, which are at least float32.
frozen : bool
    Whether the layer evaluates whatever the environment says; the call's `fit` still overrules it.
debias : bool
    Whether the running averages are corrected for their start: after the first batch they are its moments, whatever
    they were at first.
unbiased : bool
    Whether the running variance is that of n - 1 degrees of freedom, as in PyTorch.
count_skipped : bool
    Whether the state ``num_batches_skipped`` counts the batches that left the running averages as they were.

Raises
------
ValueError, TypeError
    At construction for a wrong size, axis, epsilon or momentum; at the call for an input of another shape, for
    one value a channel while fitting (under a traced mask, where none can be raised, the result is zeros and the
    bias, and the running averages stay), and where nothing says which phase it is.

Notes
-----
With `momentum` None or `debias` there is a further state, ``num_batches_tracked``. Running averages are as exact as
float32 is, not more: from a mean/std of some 1e4 on, what is evaluated by them is off by hundredths of a standard
deviation and more, the less the larger the share of a batch.

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


class _BatchNorm(Running, _ChannelNorm):
    """The one batch norm; its public names differ in the number of spatial axes, and in what they do while fitting."""

    _families = (_BATCH_NORM,)
    _powers: ClassVar[dict[str, int]] = {'running_mean': 1, 'running_var': 2}

    def __init_subclass__(cls, spatial: int | None = None, without: Sequence[str] = ()) -> None:
        if spatial is not None:
            cls.num_spatial_dims = spatial
        if cls.__doc__ is None:
            words = ('no spatial axes', 'one spatial axis', 'two spatial axes', 'three spatial axes', 'any others')
            n = 4 if spatial is None else spatial
            shape = (4, *(2,) * (n % 4), 3)
            cls.__doc__ = _BATCH_NORM.format(
                spatial=words[n], name=cls.__name__, shape=', '.join(map(str, shape)), count=math.prod(shape)
            )
        super().__init_subclass__(without)

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axis: Axes = -1,
        *,
        track_running_stats: bool = True,
        epsilon: float = default(F.batch_norm, 'epsilon'),
        momentum: float | None = default(F.batch_norm_update, 'momentum'),
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
        use_scale: bool | None = None,
        use_bias: bool | None = None,
        debias: bool = False,
        unbiased: bool = False,
        count_skipped: bool = False,
        activation: Activation | None = None,
    ) -> None:
        op, dims = type(self).__name__, self.num_spatial_dims
        super().__init__(
            in_size,
            feature_axis,
            epsilon=epsilon,
            aliases={'num_features': num_features},
            use_scale=affine if use_scale is None else use_scale,
            use_bias=affine if use_bias is None else use_bias,
            scale_init=scale_initializer,
            bias_init=bias_initializer,
            activation=activation,
            param_type=param_type,
            dtype=dtype,
            name=name,
        )
        if dims is not None and not self.any_resolution and len(self._size) != dims + 1:
            raise ValueError(
                f'{op}: in_size must be the number of channels or a shape of rank {dims + 1}, got {self.in_size}; '
                'leave the batch out of it.'
            )
        self.momentum = None if momentum is None else _checks.number(op, 'momentum', momentum, at_least=0, at_most=1)
        self.track_running_stats = _checks.flag(op, 'track_running_stats', track_running_stats)
        self.frozen = _checks.flag(op, 'frozen', frozen)
        self.debias = _checks.flag(op, 'debias', debias)
        self.unbiased = _checks.flag(op, 'unbiased', unbiased)
        self.count_skipped = _checks.flag(op, 'count_skipped', count_skipped)
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        if self.track_running_stats:
            shape = tuple(s if a in self.feature_axes else 1 for a, s in enumerate(self._size))
            wide = jnp.promote_types(brainstate.environ.dftype(), jnp.float32)
            self.running_mean = mean_type(jnp.zeros(shape, wide))
            self.running_var = mean_type(jnp.ones(shape, wide))
            if self._counts:
                self.num_batches_tracked = mean_type(jnp.zeros((), jnp.int32))
            if self.count_skipped:
                self.num_batches_skipped = mean_type(jnp.zeros((), jnp.int32))

    @property
    def _counts(self) -> bool:
        """Whether what is done depends on how many batches there were."""
        return self.momentum is None or self.debias

    @property
    def _running(self) -> tuple[brainstate.State, ...]:
        return (self.running_mean, self.running_var) if self.track_running_stats else ()

    @whole
    def update(
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        fit: bool | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
    ) -> Result:
        """Normalize `x`; `mask` says what counts, `fit` overrules frozen flag and environment.

        `scale` and `bias` are those of the call, where the layer has none of its own.
        """
        op, dims, rank = type(self).__name__, self.num_spatial_dims, len(self._size)
        here = None if self.any_resolution else (rank, rank + 1)
        self._check_shape(x, here if dims is None else (dims + 1, dims + 2))
        axis = tuple(a % jnp.ndim(x) for a in self._channel_axes)
        options = {'where': mask, 'axis': axis, 'epsilon': self.epsilon, **self._told(scale, bias)}
        if self.track_running_stats:
            self._measured(x)
        if self.track_running_stats and not self._fits(fit):
            return self._result(F.batch_norm(x, self.running_mean.value, self.running_var.value, **options), mask)
        if self.track_running_stats:
            self._settle(x)
        over = {'where': mask, 'axis': axis, 'axis_name': self.axis_name, 'axis_index_groups': self.axis_index_groups}
        count = None if mask is None and not self.unbiased else _batch.count(op, _units.number(x), **over)
        if mask is not None:
            refuse_one_value(op, x, axis, count, self.track_running_stats)
        elif self.axis_name is None:
            count_here = jnp.size(x) // math.prod(jnp.shape(x)[a] for a in axis)
            refuse_one_value(op, x, axis, count_here, self.track_running_stats)
        y, mean, var = self._normalize(x, options | over)
        if self.track_running_stats:
            if self in POOLING:
                self._join(_batch.accumulated, x, within=self._within(var), **over)
            else:
                self._move(mean, var, math.inf if count is None else count)
        return self._result(y, mask)

    def _normalize(self, x: Any, options: dict[str, Any]) -> tuple[Any, Any, Any]:
        """The result while fitting, and the batch's moments."""
        return F.batch_norm_fit(x, **options)

    def _move(self, mean: Any, var: Any, count: Any, seen: Any = True, weight: Any = None) -> Any:
        """Move the running averages towards the moments of a batch, if it is sound: whether it is."""
        step = self.num_batches_tracked.value + 1 if self._counts else None
        if weight is None:
            weight = _batch.average_weight(self.momentum, step, self.debias)
        old = self.running_mean.value, self.running_var.value
        mean, var = (_units.like(b, o) for b, o in zip((mean, var), old, strict=True))
        self.running_mean.value, self.running_var.value, sound = _batch.running_average(
            mean, var, *old, weight=weight, count=count, unbiased=self.unbiased
        )
        if step is not None:
            self.num_batches_tracked.value = jnp.where(sound, step, step - 1)
        if self.count_skipped:
            skipped = self.num_batches_skipped
            skipped.value = skipped.value + jnp.where(sound | jnp.logical_not(seen), 0, 1)
        return sound

    # what `accumulate_statistics` and `recalibrate` do

    def _nothing(self) -> dict[str, Any]:
        mean, var = (brainunit.math.zeros_like(s.value) for s in self._running)
        return {'count': jnp.zeros_like(_units.number(mean)), 'mean': mean, 'offset': mean, 'var': var}

    def _commit(self, seen: dict[str, Any], weight: Any = None) -> None:
        before: Any = self.num_batches_tracked.value if self._counts else None
        sound = self._move(seen['mean'] + seen['offset'], seen['var'], seen['count'], seen['batches'] > 0, weight)
        if weight is not None and self._counts:
            self.num_batches_tracked.value = jnp.where(sound, seen['batches'], before)

    def _within(self, var: Any) -> Any:
        """A variance that is to be averaged over batches; None where theirs is that of all elements."""
        return None

    def __pretty_repr_item__(self, name: str, value: Any) -> Any:
        # options that are off, of which there are many
        off = ('debias', 'unbiased', 'count_skipped')
        return None if name in off and not value else super().__pretty_repr_item__(name, value)


class BatchNorm(_BatchNorm):
    pass


class BatchNorm0d(_BatchNorm, spatial=0):
    pass


class BatchNorm1d(_BatchNorm, spatial=1):
    pass


class BatchNorm2d(_BatchNorm, spatial=2):
    pass


class BatchNorm3d(_BatchNorm, spatial=3):
    pass


class BatchRenorm(_BatchNorm):
    """Batch renormalization of inputs with a batch and channels: small or mixed batches train as they evaluate.

    While fitting, the batch's moments are corrected towards the running averages within clips, so that the layer
    computes nearly what it will while evaluating.

    Parameters
    ----------
    rmax : float
        The clip of the ratio of standard deviations, at the end of the schedule.
    dmax : float
        The clip of the difference of means in standard deviations, at the end of the schedule.
    schedule : tuple of three int, or None
        After how many batches the clips begin to open (until then this is batch norm), after how many `dmax` is
        reached, and `rmax`; between them they open linearly. None: they are open from the start.

    Notes
    -----
    With `momentum` None, `debias` or a schedule there is a further state, ``num_batches_tracked``.

    References
    ----------
    Ioffe, "Batch renormalization: towards reducing minibatch dependence in batch-normalized models", 2017,
    arXiv:1702.03275; the default schedule is that of section 4.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.BatchRenorm(3, schedule=(10, 20, 30))
    >>> layer(jnp.arange(12.0).reshape(4, 3), fit=True).shape
    (4, 3)
    """

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axis: Axes = -1,
        *,
        rmax: float = default(F.batch_renorm_fit, 'rmax'),
        dmax: float = default(F.batch_renorm_fit, 'dmax'),
        schedule: tuple[int, int, int] | None = (5000, 25000, 40000),
        **options: Any,
    ) -> None:
        op = type(self).__name__
        self.rmax = _checks.number(op, 'rmax', rmax, at_least=1)
        self.dmax = _checks.number(op, 'dmax', dmax, at_least=0)
        if schedule is not None and (not isinstance(schedule, Sequence) or len(schedule) != 3):
            raise ValueError(
                f'{op}: schedule must be three numbers of batches, got {_checks.describe(schedule)}; '
                'pass when the clips begin to open, when that of d is reached, and that of r.'
            )
        steps = None if schedule is None else [_checks.integer(op, 'schedule', s, at_least=0) for s in schedule]
        self.schedule = None if steps is None else cast('tuple[int, int, int]', tuple(steps))
        super().__init__(in_size, feature_axis, **options)
        if not self.track_running_stats:
            raise ValueError(
                f'{op}: track_running_stats must be True, got False; the running averages are what it corrects to.'
            )

    @property
    def _counts(self) -> bool:
        return super()._counts or self.schedule is not None

    def _normalize(self, x: Any, options: dict[str, Any]) -> tuple[Any, Any, Any]:
        pooling = POOLING.get(self)
        if pooling is not None and pooling.kind == 'recalibrate':  # the averages of which are to be replaced
            return F.batch_norm_fit(x, **options)
        step = self.num_batches_tracked.value if self._counts else None
        rmax, dmax = _batch.renorm_clips(self.rmax, self.dmax, self.schedule, step)
        averages = self.running_mean.value, self.running_var.value
        return F.batch_renorm_fit(x, *averages, rmax=rmax, dmax=dmax, **options)


class GhostBatchNorm(_BatchNorm):
    """Ghost batch normalization of inputs with a batch and channels: a large batch trains as small ones.

    While fitting, each virtual batch is normalized by its own mean and variance; the running averages are those of
    their average.

    Parameters
    ----------
    virtual_batch_size : int
        Samples of a virtual batch, of the global batch: the result does not depend on the number of devices.
    axis_name : optional
        A mapped axis over which the batch is split, in order.
    axis_index_groups : None
        The groups of devices follow from `virtual_batch_size`.
    unbiased : bool
        False: the running variance is the average of those of the virtual batches.

    Raises
    ------
    ValueError, TypeError
        As for batch norm, and at the call for a batch that is not made of whole virtual ones.

    References
    ----------
    Hoffer, Hubara & Soudry, "Train longer, generalize better: closing the generalization gap in large batch training
    of neural networks", 2017, arXiv:1705.08741.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.GhostBatchNorm(3, virtual_batch_size=4)
    >>> layer(jnp.arange(24.0).reshape(8, 3), fit=True).shape
    (8, 3)
    """

    def __init__(
        self, in_size: Size | None = None, feature_axis: Axes = -1, *, virtual_batch_size: int, **options: Any
    ) -> None:
        op = type(self).__name__
        self.virtual_batch_size = _checks.integer(op, 'virtual_batch_size', virtual_batch_size)
        super().__init__(in_size, feature_axis, **options)
        if self.unbiased or self.axis_index_groups is not None:
            name, value = ('unbiased', True) if self.unbiased else ('axis_index_groups', self.axis_index_groups)
            raise ValueError(f'{op}: {name} must be left out, got {value}; virtual_batch_size says what is pooled.')

    def _normalize(self, x: Any, options: dict[str, Any]) -> tuple[Any, Any, Any]:
        options = {n: v for n, v in options.items() if n != 'axis_index_groups'}
        return F.ghost_batch_norm_fit(x, virtual_batch_size=self.virtual_batch_size, **options)

    def _within(self, var: Any) -> Any:
        return var


class SplitBatchNorm(_BatchNorm):
    """Split batch normalization: each part of a batch, or each domain, has statistics and parameters of its own.

    While fitting, the batch, of all devices together, is split in equal parts along its first axis, and each goes
    through its own batch norm (a clean and an augmented half, say), on whatever devices it lies; while evaluating, all
    of it goes through the first. With `domain` at the call, all of the batch goes through that one in both phases.

    Parameters
    ----------
    num_splits : int
        How many batch norms there are: this one, and those in the list ``aux``.
    axis_name, axis_index_groups : optional
        A mapped axis over which the batch is split, in order, and groups of its devices with a batch each.

    Raises
    ------
    ValueError, TypeError
        As for batch norm, and at the call for a batch that does not split, or a domain that there is not.

    References
    ----------
    Xie et al., "Adversarial examples improve image recognition", 2019, arXiv:1911.09665; Chang et al., "Domain-specific
    batch normalization for unsupervised domain adaptation", 2019, arXiv:1906.03950.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.SplitBatchNorm(3, num_splits=2)
    >>> x = jnp.arange(24.0).reshape(8, 3)
    >>> layer(x, fit=True).shape, layer(x, fit=False, domain=1).shape
    ((8, 3), (8, 3))
    """

    def __init__(
        self, in_size: Size | None = None, feature_axis: Axes = -1, *, num_splits: int = 2, **options: Any
    ) -> None:
        self.num_splits = _checks.integer(type(self).__name__, 'num_splits', num_splits)
        super().__init__(in_size, feature_axis, **options)
        self.aux = [BatchNorm(in_size, feature_axis, **options) for _ in range(self.num_splits - 1)]

    @property
    def _moving(self) -> list[Any]:
        return [*super()._moving, *(state for layer in self.aux for state in layer._moving)]

    # scale and bias, and what else a batch norm takes, are handed on
    @whole
    def update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        fit: bool | None = None,
        domain: int | None = None,
        **parameters: Any,
    ) -> Result:
        """Normalize `x`; `mask` says what counts, `fit` overrules frozen flag and environment, `domain` the split."""
        op = type(self).__name__
        if domain is None and self.track_running_stats and not self._fits(fit):
            domain = 0
        updates = [super().update, *(layer.update for layer in self.aux)]
        if domain is not None:
            return updates[_checks.integer(op, 'domain', domain, at_least=0, at_most=self.num_splits - 1)](
                x, mask, fit=fit, **parameters
            )
        x = x if hasattr(x, 'shape') else jnp.asarray(x)
        here = jnp.shape(x)[0] if jnp.ndim(x) else 0
        total, first = _batch.place(op, here, self.axis_name, self.axis_index_groups)
        size, rest = divmod(total, self.num_splits)
        if rest:
            raise ValueError(
                f'{op}: x must hold a multiple of num_splits={self.num_splits} samples, got {total} in the shape '
                f'{jnp.shape(x)} on each device; use another batch size, or say with domain= whose statistics it has.'
            )
        if self.axis_name is not None:  # a part may lie on any devices: each goes through them all, the others masked
            part = ((first + jnp.arange(here)) // max(size, 1)).reshape(-1, *(1,) * (jnp.ndim(x) - 1))
            masks = [part == i if mask is None else (part == i) & mask for i in range(self.num_splits)]
            results = [u(x, m, fit=fit, **parameters) for u, m in zip(updates, masks, strict=True)]
            return functools.reduce(jnp.add, results)  # each is 0 where another one is not

        def of(part: slice, value: Any) -> Any:
            shared = value is None or jnp.ndim(value) < jnp.ndim(x) or jnp.shape(value)[0] == 1
            return value if shared else cast(Any, value)[part]

        results = []
        for i, apply in enumerate(updates):
            part = slice(i * size, (i + 1) * size)
            more = {name: of(part, value) for name, value in parameters.items()}
            results.append(apply(x[part], of(part, mask), fit=fit, **more))
        return jnp.concatenate(results)
