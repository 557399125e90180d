"""Whitening as a module."""

from typing import Any, ClassVar

import brainstate
import brainunit
import jax.numpy as jnp

from .. import _checks, _units
from .. import functional as F
from .._typing import Axes, Result, Size
from ..functional import _whitening
from ._base import default
from ._running import POOLING, _Running


class IterNorm(_Running):
    """Iterative whitening: groups of channels are made uncorrelated, of about variance one.

    While fitting, the batch is centred and multiplied with the inverse root of its covariance, and running averages of
    mean and matrix are kept; while evaluating, these serve. The phase is the argument `fit` of the call, else the
    frozen flag, else ``brainstate.environ.context(fit=...)``, else an error. A batch that is empty, masked out or not
    finite leaves the running averages as they were.

    Parameters
    ----------
    num_groups : int or None
        The number of groups of channels, each whitened by itself; it divides the number of channels.
    group_size : int, optional
        The number of channels in a group, in place of `num_groups`, which is then None.
    num_iterations : int
        The number of steps of Newton's method: with few, directions of small variance stay small.
    epsilon : float
        Added to the variances, in the square of the unit of the input.

    Notes
    -----
    The mask of a call has size 1 along the channels.

    References
    ----------
    Huang, Zhou, Zhu, Liu & Shao, "Iterative normalization: beyond standardization towards efficient whitening", 2019,
    arXiv:1904.03441.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.IterNorm(4, num_groups=2)
    >>> with brainstate.environ.context(fit=True):
    ...     y = layer(jnp.arange(48.0).reshape(12, 4))
    >>> layer.running_whitening.value.shape
    (2, 2, 2)
    """

    _powers: ClassVar[dict[str, int]] = {'running_mean': 1, 'running_whitening': -1}
    _pooling: ClassVar[tuple[str, ...]] = ('count', 'mean', 'offset', 'covariance')
    running_mean: brainstate.State
    running_whitening: brainstate.State

    def __init__(
        self,
        in_size: Size | None = None,
        feature_axis: Axes = -1,
        num_groups: int | None = 1,
        group_size: int | None = None,
        *,
        num_iterations: int = default(F.iterative_norm_fit, 'num_iterations'),
        epsilon: float = default(F.iterative_norm_fit, 'epsilon'),
        mean_type: type = brainstate.BatchState,
        **options: Any,
    ) -> None:
        super().__init__(in_size, feature_axis, epsilon=epsilon, **options)
        channels = self._size[self.feature_axes[0]]
        self.num_groups, self.group_size = _checks.groups('IterNorm', channels, num_groups, group_size)
        self.num_iterations = _checks.integer('IterNorm', 'num_iterations', num_iterations)
        matrices = jnp.broadcast_to(jnp.eye(self.group_size), (self.num_groups, self.group_size, self.group_size))
        self._keep(mean_type, mean=jnp.zeros(channels), whitening=matrices)

    def _compute(self, fits: bool, x: Any, mask: Any, following: dict[str, Any]) -> Result:
        self._check_shape(x)
        options = {'axis': self._channel_axis, 'where': mask, **following}
        if not fits:
            return self._result(
                F.iterative_norm(x, self.running_mean.value, self.running_whitening.value, **options), mask
            )
        count, over = self._count(x, mask), self._over(mask)
        y, mean, whitening = F.iterative_norm_fit(
            x,
            num_groups=self.num_groups,
            num_iterations=self.num_iterations,
            epsilon=self.epsilon,
            **options | over,
        )
        if self in POOLING:
            self._join(_whitening.accumulated, x, **over)
        else:
            self._move(count, mean=mean, whitening=whitening)
        return self._result(y, mask)

    def _nothing(self) -> dict[str, Any]:
        mean = brainunit.math.zeros_like(self.running_mean.value)
        zeros = jnp.zeros_like(_units.number(self.running_whitening.value))
        covariance = _units.attach(zeros, _units.unit_of(mean), 2)
        return {'count': jnp.zeros(1, zeros.dtype), 'mean': mean, 'offset': mean, 'covariance': covariance}

    def _commit(self, seen: dict[str, Any], weight: Any = None) -> None:
        covariance = seen['covariance']
        options = {'num_iterations': self.num_iterations, 'epsilon': self.epsilon}
        whitening = _whitening.whitening_of(_units.number(covariance), **options)
        mean = seen['mean'] + seen['offset']
        self._move(seen['count'], weight, mean=mean, whitening=_units.attach(whitening, _units.unit_of(mean), -1))
