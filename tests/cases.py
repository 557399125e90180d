"""The table: one row an op. A public function without a row, or a row without a function, fails a test."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import references as ref

from jaxnorm import functional as F
from jaxnorm import nn


@dataclass(frozen=True)
class Activation:
    """An elementwise op, or one over an axis."""

    name: str
    limits: tuple[float, float]  # at -inf and +inf
    module: str
    slope_limits: tuple[float, float] = (0.0, 1.0)
    kinks: dict[float, float] = field(default_factory=dict)  # where: the slope there
    arguments: dict[str, Any] = field(default_factory=dict)
    keeps_unit: bool = False
    residual: str = 'input'  # what is saved for the backward pass: 'input' or 'mask'

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(F, self.name)

    @property
    def reference(self) -> Callable[..., Any]:
        return getattr(ref, self.name)

    @property
    def cls(self) -> Any:
        return getattr(nn, self.module)


inf = float('inf')
ACTIVATIONS = [
    Activation('relu', (0, inf), 'ReLU', kinks={0.0: 0.0}, keeps_unit=True, residual='mask'),
    Activation('relu6', (0, 6), 'ReLU6', (0, 0), {0.0: 0.0, 6.0: 0.0}, residual='mask'),
    Activation('leaky_relu', (-inf, inf), 'LeakyReLU', (0.01, 1), {0.0: 0.01}, keeps_unit=True, residual='mask'),
    Activation('leaky_relu', (-inf, inf), 'LeakyReLU', (0.2, 1), {0.0: 0.2}, {'negative_slope': 0.2}, True, 'mask'),
    Activation('elu', (-1, inf), 'ELU', kinks={0.0: 1.0}),
    Activation('elu', (-2.5, inf), 'ELU', arguments={'alpha': 2.5}),
    Activation('selu', (-1.7580993408473766, inf), 'SELU'),
    Activation('gelu', (0, inf), 'GELU'),
    Activation('gelu', (0, inf), 'GELU', arguments={'approximate': True}),
    Activation('silu', (0, inf), 'SiLU'),
    Activation('sigmoid', (0, 1), 'Sigmoid', (0, 0)),
    Activation('log_sigmoid', (-inf, 0), 'LogSigmoid', (1, 0)),
    Activation('tanh', (-1, 1), 'Tanh', (0, 0)),
    Activation('softplus', (0, inf), 'Softplus'),
    Activation('softplus', (0, inf), 'Softplus', arguments={'beta': 2.0}),
]
OVER_AXIS = [
    Activation('softmax', (0, 1), 'Softmax'),
    Activation('log_softmax', (-inf, 0), 'LogSoftmax'),
]


@dataclass(frozen=True)
class Norm:
    """A norm of inputs (batch, position, channel) with its reference; `call` gets x, scale, bias, where."""

    name: str
    modules: tuple[str, ...]
    call: Callable[..., Any]
    reference: Callable[..., Any]
    epsilon: float
    biased: bool = True

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(F, self.name)


NORMS = [
    Norm(
        'layer_norm',
        ('LayerNorm',),
        lambda x, s, b, w=None, **k: F.layer_norm(x, s, b, where=w, **k),
        lambda x, s, b, w=None, **k: ref.layer_norm(x, s, b, where=w, **k),
        1e-6,
    ),
    Norm(
        'rms_norm',
        ('RMSNorm',),
        lambda x, s, b, w=None, **k: F.rms_norm(x, s, where=w, **k),
        lambda x, s, b, w=None, **k: ref.rms_norm(x, s, where=w, **k),
        1e-6,
        biased=False,
    ),
    Norm(
        'group_norm',
        ('GroupNorm',),
        lambda x, s, b, w=None, **k: F.group_norm(x, s, b, num_groups=4, where=w, **k),
        lambda x, s, b, w=None, **k: ref.group_norm(x, s, b, 4, where=w, **k),
        1e-6,
    ),
    Norm(
        'instance_norm',
        ('InstanceNorm',),
        lambda x, s, b, w=None, **k: F.instance_norm(x, s, b, where=w, **k),
        lambda x, s, b, w=None, **k: ref.instance_norm(x, s, b, where=w, **k),
        1e-6,
    ),
    Norm(
        'batch_norm_fit',
        ('BatchNorm0d', 'BatchNorm1d', 'BatchNorm2d', 'BatchNorm3d'),
        lambda x, s, b, w=None, **k: F.batch_norm_fit(x, s, b, where=w, **k)[0],
        lambda x, s, b, w=None, **k: ref.batch_norm_fit(x, s, b, where=w, **k),
        1e-5,
    ),
    Norm(
        'standardize',
        (),
        lambda x, s, b, w=None, **k: F.standardize(x, where=w, **k) * s + b * (1 if w is None else w),
        lambda x, s, b, w=None, **k: ref.standardize(x, where=w, **k) * s + b * (1 if w is None else w),
        1e-5,
    ),
]

#: functions whose own tests stand in test_norms.py and test_custom.py
OTHERS = {'moments', 'batch_norm', 'get'}
ALIASES = {'swish': 'silu'}


def id_of(case: Any) -> str:
    """A name for the test report."""
    extra = ''.join(f'-{k}={v}' for k, v in getattr(case, 'arguments', {}).items())
    return case.name + extra
