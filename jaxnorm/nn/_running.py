"""What layers have in common that keep running statistics, and those of them that are no batch norms."""

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import brainstate
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .. import _checks, _units
from .. import functional as F
from .._typing import Array, ArrayLike, Axes, Result, Size
from ..functional import _batch
from ._base import default
from ._fit import UnsettledError, phase, watch
from ._normalization import _SampleNorm


class Pooling(NamedTuple):
    """Where a layer puts what its batches give inside `accumulate_statistics` or `recalibrate`."""

    kind: str
    state: brainstate.State


#: The layers that are inside one, and the states that they have used there: to be used again, for traced functions
#: refer to them. A state belongs to the depth of nested traces in which it was made.
POOLING: weakref.WeakKeyDictionary[Any, Pooling] = weakref.WeakKeyDictionary()
_USED: weakref.WeakKeyDictionary[Any, dict[int, brainstate.State]] = weakref.WeakKeyDictionary()


def whole(update: Callable[..., Any]) -> Callable[..., Any]:
    """A call that moves all statistics or none: what raises, however late, leaves them as they were."""

    @functools.wraps(update)
    def restoring(self: Any, *args: Any, **kwargs: Any) -> Any:
        # the values behind `value`: what is not used is no input of a function that is traced
        before = [(state, state._value) for state in self._moving]
        try:
            return update(self, *args, **kwargs)
        except Exception:
            for state, value in before:
                state._value = value
            raise

    return restoring


class Running:
    """A layer with statistics that move while fitting: what `freeze`, `accumulate_statistics` and the like need of it.

    A subclass says which states these are, what it pools of its batches, and what becomes of that.
    """

    frozen: bool
    #: the states whose values have a unit, and in which power of the input's
    _powers: ClassVar[dict[str, int]] = {}
    #: what is pooled of batches, in the order in which a kernel takes and returns it
    _pooling: ClassVar[tuple[str, ...]] = ('count', 'mean', 'offset', 'var')
    #: whether the statistics are those of data, which `recalibrate` can set
    _of_data: ClassVar[bool] = True

    @property
    def _running(self) -> tuple[brainstate.State, ...]:
        """The states that move."""
        raise NotImplementedError

    @property
    def _moving(self) -> list[Any]:
        """All states that a call may change."""
        own = [v for n, v in vars(self).items() if n.startswith(('running_', 'num_batches_')) and v is not None]
        return own + ([POOLING[self].state] if self in POOLING else [])

    def _nothing(self) -> dict[str, Any]:
        """What is pooled of no batches."""
        raise NotImplementedError

    def _commit(self, seen: dict[str, Any], weight: Any = None) -> None:
        """Move the statistics once by what was pooled: with the weight of a batch, or with this one."""
        raise NotImplementedError

    @property
    def _mode(self) -> Any:
        """What a traced call has taken for constant; None is the usual."""
        pooling = POOLING.get(self)
        return (self.frozen, pooling and pooling.kind) if self.frozen or pooling else None

    def _fits(self, fit: bool | None) -> bool:
        watch(self)
        pooling = POOLING.get(self)
        if fit is None and not self.frozen and self._of_data and pooling is not None and pooling.kind == 'recalibrate':
            return True
        return phase(type(self).__name__, fit, self.frozen)

    def _measured(self, x: Any) -> None:
        """Refuse an input in another unit than that of the statistics."""
        unit = _units.unit_of(x)
        for name, power in self._powers.items():
            own = _units.unit_of(getattr(self, name).value)
            if own is not None and (unit is None or not (unit**power).has_same_dim(own)):
                raise TypeError(
                    f'{type(self).__name__}: x must have the unit of the running statistics, of which {name} is in '
                    f'{own}, got {"a plain array" if unit is None else unit}; convert x, or begin with a new layer.'
                )

    def _settle(self, x: Any) -> None:
        """Give the statistics the unit of what they are of, with the first batch that has one."""
        unit = _units.unit_of(x)
        states = {getattr(self, name): power for name, power in self._powers.items()}
        if unit is None or any(_units.unit_of(s.value) is not None for s in states):
            return
        # inside a function that is traced, states cannot take another form
        if any(s.stack_level != brainstate.BatchState(0).stack_level for s in states):
            raise UnsettledError(
                f'{type(self).__name__}: x must not be the first batch with a unit in a function that is traced, got '
                f'one in {unit}; jit with jaxnorm.jit, or fit one batch before.',
                lambda: self._settle(x),
            )
        for state, power in states.items():
            state.value = _units.attach(state.value, unit, power)
        pooling = POOLING.get(self)
        if pooling is None:
            return
        batches = pooling.state.value['batches']
        # what is pooled in the function that is traced may take any form there
        if not isinstance(batches, jax.core.Tracer) and batches == 0:
            pooling.state.value = self._empty()

    def _empty(self) -> dict[str, Any]:
        return {'batches': jnp.zeros((), jnp.int32), **self._nothing()}

    def _pool(self, kind: str) -> None:
        """Begin to pool: from here on the statistics stay."""
        start = self._empty()
        made = brainstate.BatchState(start)
        state = _USED.setdefault(self, {}).setdefault(made.stack_level, made)
        state.value = start
        POOLING[self] = Pooling(kind, state)

    def _put(self, **seen: Any) -> None:
        """Replace what was pooled by what one more batch makes of it."""
        state = POOLING[self].state
        old = state.value
        state.value = {
            'batches': old['batches'] + 1,
            **{name: _units.like(value, old[name]) for name, value in seen.items()},
        }

    def _pooled(self) -> dict[str, Any]:
        """What was pooled."""
        return POOLING[self].state.value

    def _join(self, accumulated: Callable[..., tuple[Any, ...]], x: Any, **options: Any) -> None:
        """Put one more batch to what was pooled."""
        old = self._pooled()
        new = accumulated(x, *(old[name] for name in self._pooling), **options)
        self._put(**dict(zip(self._pooling, new, strict=True)))

    def _unpool(self) -> None:
        """End it, and keep nothing that may belong to a trace."""
        pooling = POOLING.pop(self, None)
        if pooling is not None:
            pooling.state.value = None


def refuse_one_value(op: str, x: Any, axis: Sequence[int], count: Any, evaluates: bool = True) -> None:
    """Refuse one value a channel as far as it is known before the arrays are.

    A mask may be traced: then such a channel is normalized to zeros, and the running statistics stay as they were.
    """
    if not isinstance(count, jax.core.Tracer):
        fix = 'fit=False' if evaluates else 'a norm of single samples'
        _checks.several(op, 1 if (np.asarray(count) == 1).any() else 0, jnp.shape(x), axis, fix)


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
    value a channel while fitting (under a traced mask none can be raised: the running averages stay as they were), and
    where nothing says which phase it is.
"""


class _Running(Running, _SampleNorm, without=['aliases', 'scale_offset']):
    """A norm whose statistics while evaluating are running averages, each a state of the name it is given by."""

    _families = (_RUNNING,)

    def __init__(
        self,
        in_size: Size | None,
        feature_axis: Axes,
        *,
        momentum: float = default(F.batch_norm_update, 'momentum'),
        frozen: bool = False,
        num_features: Size | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_size, feature_axis, aliases={'num_features': num_features}, **options)
        self.momentum = _checks.number(type(self).__name__, 'momentum', momentum, at_least=0, at_most=1)
        self.frozen = _checks.flag(type(self).__name__, 'frozen', frozen)

    def _keep(self, mean_type: type, **statistics: Array) -> None:
        """Have running statistics, with these values at first."""
        wide = jnp.promote_types(brainstate.environ.dftype(), jnp.float32)
        for name, value in statistics.items():
            setattr(self, f'running_{name}', mean_type(value.astype(wide)))

    @whole
    def update(
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        fit: bool | None = None,
    ) -> Result:
        """Normalize `x`; `mask` says what counts, `fit` overrules frozen flag and environment.

        `scale` and `bias` are those of the call, where the layer has none of its own.
        """
        fits = self._fits(fit)
        self._measured(x)
        if fits:
            self._settle(x)
        return self._compute(fits, x, mask, self._told(scale, bias))

    def _compute(self, fits: bool, x: Any, mask: Any, following: dict[str, Any]) -> Result:
        """The result, by the running statistics or by the batch's own; these move the running ones."""
        raise NotImplementedError

    @property
    def _running(self) -> tuple[brainstate.State, ...]:
        return tuple(v for n, v in vars(self).items() if n.startswith('running_'))

    def _over(self, mask: Any) -> dict[str, Any]:
        """What statistics are taken over."""
        names = {'axis_name': self.axis_name, 'axis_index_groups': self.axis_index_groups}
        return {'where': mask, 'axis': self._channel_axis, **names}

    def _count(self, x: Any, mask: Any) -> Any:
        """How many values there are a channel, under a mask: one is refused where that is known."""
        if mask is None:
            return math.inf  # more than one, or the kernel refuses it
        op = type(self).__name__
        count = _batch.count(op, _units.number(x), **self._over(mask))
        refuse_one_value(op, x, (self._channel_axis,), count)
        return count

    def _move(self, count: Any, weight: Any = None, **batch: Any) -> None:
        """Move the running statistics towards those of a batch of `count` values a channel, if it is sound."""
        states = [getattr(self, f'running_{name}') for name in batch]
        old = [s.value for s in states]
        units = [_units.unit_of(o) for o in old]
        seen = [_units.in_unit(type(self).__name__, 'x', b, u) for b, u in zip(batch.values(), units, strict=True)]
        weight = 1 - self.momentum if weight is None else weight
        new, _ = _batch._averaged([_units.number(o) for o in old], seen, weight, count, False)
        for state, value, unit in zip(states, new, units, strict=True):
            state.value = _units.attach(value, unit, 1)
