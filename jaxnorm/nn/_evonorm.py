"""EvoNorm as modules."""

from typing import Any, ClassVar

import brainstate
import brainunit
import jax.numpy as jnp

from .. import _checks, _units
from .. import functional as F
from .._typing import Axes, Result, Size
from ..functional import _batch
from ._base import default
from ._normalization import _SampleNorm, _Segmented
from ._running import POOLING, _Running


class EvoNormB0(_Running):
    """EvoNorm B0: by the larger of the batch's deviation and that of each sample with the input, for no activation.

    While fitting, the variance of each channel over the batch is taken, and its running average is kept; while
    evaluating, the running average serves. The phase is the argument `fit` of the call, else the frozen flag, else
    ``brainstate.environ.context(fit=...)``, else an error. A batch that is empty, masked out or not finite leaves the
    running average as it was.

    Parameters
    ----------
    epsilon : float
        Added to both variances, in the square of the unit of the input.
    v_init : callable or array_like
        The weight of the input at first, one for each channel.

    References
    ----------
    Liu, Brock, Simonyan & Le, "Evolving normalization-activation layers", 2020, arXiv:2004.02967.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.EvoNormB0(3)
    >>> with brainstate.environ.context(fit=True):
    ...     y = layer(jnp.arange(48.0).reshape(2, 2, 4, 3))
    >>> layer.running_var.value.shape
    (3,)
    """

    _powers: ClassVar[dict[str, int]] = {'running_var': 2}
    running_var: brainstate.State

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axis: Axes = -1,
        *,
        epsilon: float = default(F.evonorm_b0, 'epsilon'),
        v_init: Any = 1.0,
        param_type: type = brainstate.ParamState,
        mean_type: type = brainstate.BatchState,
        **options: Any,
    ) -> None:
        super().__init__(in_size, feature_axis, epsilon=epsilon, param_type=param_type, **options)
        self._learn(param_type, v=v_init)
        self._keep(mean_type, var=jnp.ones_like(self._affine['v']))

    def _compute(self, fits: bool, x: Any, mask: Any, following: dict[str, Any]) -> Result:
        single, (x, mask) = self._with_batch(x, mask)
        options = {
            'axis': self._channel_axis,
            'epsilon': self.epsilon,
            'where': mask,
            **following,
        }
        if fits:
            count, over = self._count(x, mask), self._over(mask)
            y, var = F.evonorm_b0_fit(x, **options | over)
            if self in POOLING:
                self._join(_batch.accumulated, x, **over)
            else:
                self._move(count, var=var)
        else:
            y = F.evonorm_b0(x, self.running_var.value, **options)
        y = self._result(y, mask)
        return y[0] if single else y

    def _nothing(self) -> dict[str, Any]:
        var = brainunit.math.zeros_like(self.running_var.value)
        mean = brainunit.math.sqrt(var)  # in the unit of the input
        return {'count': jnp.zeros_like(_units.number(mean)), 'mean': mean, 'offset': mean, 'var': var}

    def _commit(self, seen: dict[str, Any], weight: Any = None) -> None:
        self._move(seen['count'], weight, var=seen['var'])


class EvoNormS0(_SampleNorm, _Segmented, without=['aliases', 'scale_offset']):
    """EvoNorm S0: each sample gated as by swish, over the deviation of its groups of channels, for no activation.

    Parameters
    ----------
    num_groups : int or None
        The number of groups, which divides the number of channels.
    group_size : int, optional
        The number of channels in a group, in place of `num_groups`, which is then None.
    epsilon : float
        Added to the variance.
    v_init : callable or array_like
        The sharpness of the gate at first, one for each channel.

    Raises
    ------
    ValueError, TypeError
        At construction for a wrong size, axis or epsilon, and for groups that do not divide the channels; at the
        call for an input of another shape, or with a unit.

    References
    ----------
    Liu, Brock, Simonyan & Le, "Evolving normalization-activation layers", 2020, arXiv:2004.02967.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.EvoNormS0(16, num_groups=4)
    >>> layer(jnp.ones((2, 8, 8, 16))).shape
    (2, 8, 8, 16)
    """

    _kernel = staticmethod(F.evonorm_s0)

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axis: Axes = -1,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: float = default(F.evonorm_s0, 'epsilon'),
        v_init: Any = 1.0,
        param_type: type = brainstate.ParamState,
        num_channels: Size | None = None,
        **options: Any,
    ) -> None:
        aliases = {'num_channels': num_channels}
        super().__init__(in_size, feature_axis, epsilon=epsilon, aliases=aliases, param_type=param_type, **options)
        channels = self._size[self.feature_axes[0]]
        self.num_groups, self.group_size = _checks.groups('EvoNormS0', channels, num_groups, group_size)
        self._learn(param_type, v=v_init)

    @property
    def _options(self) -> dict[str, Any]:
        return {**super()._options, 'num_groups': self.num_groups}
