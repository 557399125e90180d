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
    residual: str = 'input'  # what is saved for the backward pass: 'input', 'mask' or 'nothing'
    inputs: tuple[str, ...] = ()  # those of the arguments that a module takes when it is called

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
    Activation('prelu', (-inf, inf), 'PReLU', (0.25, 1), {0.0: 0.25}, {'slope': 0.25}, True, 'mask'),
    Activation('threshold', (7, inf), 'Threshold', (0, 1), {0.5: 0.0}, {'threshold': 0.5, 'value': 7.0}, True, 'mask'),
    Activation('tlu', (0, inf), 'TLU', (0, 1), {0.0: 0.0}, {'threshold': 0.0}, True, 'mask'),
    Activation('tlu', (-1.5, inf), 'TLU', (0, 1), {-1.5: 0.0}, {'threshold': -1.5}, True, 'mask'),
    Activation('squared_relu', (0, inf), 'SquaredReLU', (0, inf)),
    Activation('star_relu', (-0.4472, inf), 'StarReLU', (0, inf)),
    Activation('star_relu', (0.5, inf), 'StarReLU', (0, inf), arguments={'scale': 1.5, 'bias': 0.5}),
    Activation('identity', (-inf, inf), 'Identity', (1, 1), keeps_unit=True, residual='nothing'),
    Activation('hard_tanh', (-1, 1), 'Hardtanh', (0, 0), {-1.0: 0.0, 1.0: 0.0}, {}, True, 'mask'),
    Activation('hard_tanh', (0, 1), 'Hardtanh', (0, 0), {0.0: 0.0, 1.0: 0.0}, {'min_value': 0.0}, True, 'mask'),
    Activation('approximate_tanh', (-1, 1), 'ApproximateTanh', (0, 0), {-1.0: 0.0, 1.0: 0.0}, residual='mask'),
    Activation('hard_sigmoid', (0, 1), 'Hardsigmoid', (0, 0), {-3.0: 0.0, 3.0: 0.0}, residual='mask'),
    Activation('hard_silu', (0, inf), 'Hardswish', kinks={-3.0: 0.0, 3.0: 1.0}),
    Activation('hard_mish', (0, inf), 'HardMish', kinks={-2.0: 0.0}),
    Activation('sparse_plus', (0, inf), 'SparsePlus'),
    Activation('sparse_sigmoid', (0, 1), 'SparseSigmoid', (0, 0), {-1.0: 0.0, 1.0: 0.0}, residual='mask'),
    Activation('hard_shrink', (-inf, inf), 'Hardshrink', (1, 1), {-0.5: 0.0, 0.5: 0.0}, {}, True, 'mask'),
    Activation('soft_shrink', (-inf, inf), 'Softshrink', (1, 1), {-0.5: 0.0, 0.5: 0.0}, {}, True, 'mask'),
    Activation('soft_shrink', (-inf, inf), 'Softshrink', (1, 1), {-2.0: 0.0, 2.0: 0.0}, {'lambd': 2.0}, True, 'mask'),
    Activation('elu', (-1, inf), 'ELU', kinks={0.0: 1.0}),
    Activation('elu', (-2.5, inf), 'ELU', arguments={'alpha': 2.5}),
    Activation('celu', (-1, inf), 'CELU', kinks={0.0: 1.0}),
    Activation('celu', (-2.5, inf), 'CELU', arguments={'alpha': 2.5}),
    Activation('selu', (-1.7580993408473766, inf), 'SELU'),
    Activation('gelu', (0, inf), 'GELU'),
    Activation('gelu', (0, inf), 'GELU', arguments={'approximate': True}),
    Activation('silu', (0, inf), 'SiLU'),
    Activation('swish', (0, inf), 'Swish'),
    Activation('swish', (0, inf), 'Swish', arguments={'beta': 1.5}),
    Activation('adaptive_swish', (0, inf), 'AdaptiveSwish'),
    Activation('adaptive_swish', (0, inf), 'AdaptiveSwish', (0, 0.5), arguments={'alpha': 0.5, 'beta': 1.5}),
    Activation('adaptive_swish', (-inf, 0), 'AdaptiveSwish', (2.0, 0), arguments={'alpha': 2.0, 'beta': -0.75}),
    Activation('quick_gelu', (0, inf), 'QuickGELU'),
    Activation('mish', (0, inf), 'Mish'),
    Activation('tanh_exp', (0, inf), 'TanhExp'),
    Activation('serf', (0, inf), 'Serf'),
    Activation('lisht', (inf, inf), 'LiSHT', (-1, 1)),
    Activation('sigmoid', (0, 1), 'Sigmoid', (0, 0)),
    Activation('log_sigmoid', (-inf, 0), 'LogSigmoid', (1, 0)),
    Activation('tanh', (-1, 1), 'Tanh', (0, 0)),
    Activation('softplus', (0, inf), 'Softplus'),
    Activation('softplus', (0, inf), 'Softplus', arguments={'beta': 2.0}),
    Activation('exponential', (0, inf), 'Exponential', (0, inf)),
    Activation('squareplus', (0, inf), 'Squareplus'),
    Activation('squareplus', (0, inf), 'Squareplus', arguments={'b': 0.3}),
    Activation('soft_sign', (-1, 1), 'Softsign', (0, 0), {0.0: 1.0}),
    Activation('scaled_tanh', (-1.7159, 1.7159), 'ScaledTanh', (0, 0)),
    Activation('scaled_tanh', (-2, 2), 'ScaledTanh', (0, 0), arguments={'scale': 2.0, 'slope': 0.7}),
    Activation('tanh_shrink', (-inf, inf), 'Tanhshrink', (1, 1)),
    Activation('snake', (-inf, inf), 'Snake', (1, 1)),  # the mean of a slope that has no limit
    Activation('snake', (-inf, inf), 'Snake', (1, 1), arguments={'frequency': 1.75}),
    Activation('sine', (0, 0), 'Sine', (0, 0)),  # likewise
    Activation('sine', (0, 0), 'Sine', (0, 0), arguments={'frequency': 1.75}),
    Activation('time_decayed_tanh', (-0.7408182, 0.7408182), 'TimeDecayedTanh', (0, 0), {}, {'t': 3.0}, inputs=('t',)),
    Activation('gated_tanh', (0, 1), 'GatedTanh', (0, 0), arguments={'h_prev': 0.0}, inputs=('h_prev',)),
]
OVER_AXIS = [
    Activation('softmax', (0, 1), 'Softmax'),
    Activation('log_softmax', (-inf, 0), 'LogSoftmax'),
    Activation('softmin', (1, 0), 'Softmin'),
    Activation('sparsemax', (0, 1), 'Sparsemax', residual='mask'),
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

#: functions, and classes, whose own tests stand in test_norms.py, test_custom.py and test_piecewise.py
OTHERS = {'moments', 'batch_norm', 'get', 'crelu', 'maxout', 'quantized_sigmoid', 'rrelu', 'xielu'}
OTHER_CLASSES = {'CReLU', 'Maxout', 'QuantizedSigmoid', 'RReLU', 'XIELU'}
#: what has its tests in test_norm_options.py
OTHERS |= {'add_layer_norm', 'add_rms_norm'}
OTHER_CLASSES |= {'AddNorm'}
#: two-input gates, whose tests stand in test_glu.py
GATES = {
    'glu': 'GLU',
    'geglu': 'GEGLU',
    'reglu': 'ReGLU',
    'swiglu': 'SwiGLU',
    'bilinear': 'BilinearGLU',
    'gaussian_glu': 'GaussianGLU',
}
#: what has its tests in test_over_axis.py
OTHERS |= {'gumbel_softmax', 'logsumexp', *GATES}
OTHER_CLASSES |= {'GumbelSoftmax', 'Softmax2d', *GATES.values()}
#: what has its tests in test_batch.py
OTHERS |= {'batch_norm_update', 'batch_renorm_fit', 'ghost_batch_norm_fit'}
OTHER_CLASSES |= {'BatchNorm', 'BatchRenorm', 'GhostBatchNorm', 'SplitBatchNorm'}
#: what has its tests in test_reparametrization.py and test_conditional.py
OTHERS |= {'weight_norm', 'weight_standardization', 'spectral_norm'}
OTHER_CLASSES |= {'WeightNorm', 'WeightStandardization', 'SpectralNorm'}
OTHER_CLASSES |= {'AdaLayerNorm', 'AdaRMSNorm', 'FiLM', 'AdaIN', 'SPADE', 'QKNorm'}
#: what has its tests in test_other_norms.py
OTHERS |= {'local_response_norm', 'unit_norm', 'scale_norm', 'global_response_norm', 'filter_response_norm'}
OTHERS |= {'evonorm_b0', 'evonorm_b0_fit', 'evonorm_s0', 'dynamic_tanh', 'dynamic_erf'}
OTHERS |= {'iterative_norm', 'iterative_norm_fit'}
OTHER_CLASSES |= {'LocalResponseNorm', 'UnitNorm', 'ScaleNorm', 'GlobalResponseNorm', 'FilterResponseNorm'}
OTHER_CLASSES |= {'EvoNormB0', 'EvoNormS0', 'DynamicTanh', 'DynamicErf', 'Derf', 'IterNorm'}
ALIASES = {'hard_swish': 'hard_silu'}


def id_of(case: Any) -> str:
    """A name for the test report."""
    extra = ''.join(f'-{k}={v}' for k, v in getattr(case, 'arguments', {}).items())
    return case.name + extra
