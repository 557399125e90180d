"""What layers have in common that keep running statistics and are no batch norms."""

import inspect
from typing import Any

import brainstate
import jax.numpy as jnp

from .. import _checks, _docs, _units
from .._typing import Array, Axes, AxisGroups, AxisName, Size
from ..functional._batch import _averaged
from ._fit import phase, watch
from ._normalization import _SampleNorm

#: What the docstrings of such layers need not say.
_RUNNING = """Of a layer with running statistics.

Parameters
----------
momentum : float
    The share of the running statistics that is kept at each step (PyTorch gives the share that is replaced).
mean_type : type
    The state class of the running statistics, which are at least float32.
frozen : bool
    Whether the layer evaluates whatever the environment says; the call's `fit` still overrules it.

Raises
------
ValueError, TypeError
    At construction for a wrong size, axis, epsilon or momentum; at the call for an input of another shape, for one
    value a channel while fitting, and where nothing says which phase it is.
"""


class _Running(_SampleNorm):
    """A norm whose statistics while evaluating are running averages, each a state of the name it is given by."""

    def __init_subclass__(cls) -> None:
        cls.__doc__ = _docs.complete(cls.__doc__, inspect.signature(cls.__init__).parameters, _RUNNING)
        super().__init_subclass__()

    def __init__(
        self,
        in_size: Size | None,
        feature_axis: Axes,
        epsilon: float,
        num_features: Size | None,
        axis_name: AxisName | None,
        axis_index_groups: AxisGroups | None,
        *,
        momentum: float,
        frozen: bool,
        **options: Any,
    ) -> None:
        super().__init__(
            in_size, feature_axis, epsilon, num_features, axis_name, axis_index_groups, 'num_features', **options
        )
        self.momentum = _checks.number(type(self).__name__, 'momentum', momentum, at_least=0, at_most=1)
        self.frozen = _checks.flag(type(self).__name__, 'frozen', frozen)

    def _keep(self, mean_type: type, **statistics: Array) -> None:
        """Have running statistics, with these values at first."""
        wide = jnp.promote_types(brainstate.environ.dftype(), jnp.float32)
        for name, value in statistics.items():
            setattr(self, f'running_{name}', mean_type(value.astype(wide)))

    @property
    def _mode(self) -> Any:
        return self.frozen or None

    def _fits(self, fit: bool | None) -> bool:
        watch(self)
        return phase(type(self).__name__, fit, self.frozen)

    def _move(self, **batch: Any) -> None:
        """Move the running statistics towards those of a batch, if they are finite."""
        states = [getattr(self, f'running_{name}') for name in batch]
        old = [_units.like(s.value, b) for s, b in zip(states, batch.values(), strict=True)]
        units = [_units.unit_of(o) for o in old]
        seen = [_units.in_unit(type(self).__name__, 'x', b, u) for b, u in zip(batch.values(), units, strict=True)]
        new, _ = _averaged([_units.number(o) for o in old], seen, 1 - self.momentum, jnp.inf, False)
        for state, value, unit in zip(states, new, units, strict=True):
            state.value = _units.attach(value, unit, 1)
