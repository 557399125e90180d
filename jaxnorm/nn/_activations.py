"""Activations as modules. A class says what differs and nothing else: its function is its definition."""

from typing import Any, cast

import brainstate
import jax.numpy as jnp

from .. import _checks
from .. import functional as F
from .._typing import ArrayLike, Result
from ._base import Activation, Applied, default
from ._fit import phase


class ReLU(Activation, fn=F.relu):
    """Rectified linear unit; see `jaxnorm.functional.relu`."""


class ReLU6(Activation, fn=F.relu6):
    """Rectified linear unit capped at 6; see `jaxnorm.functional.relu6`."""


class LeakyReLU(Activation, fn=F.leaky_relu):
    """Rectified linear unit with a small slope below zero; see `jaxnorm.functional.leaky_relu`."""


class PReLU(
    Activation,
    fn=F.prelu,
    learned={'slope': default(F.prelu, 'slope')},
    bare=True,
    aliases={'num_parameters': 'in_size', 'init': 'slope'},
):
    """Rectified linear unit with a learned slope below zero; see `jaxnorm.functional.prelu`."""


class RReLU(Activation, fn=F.rrelu):
    """Rectified linear unit with random slopes below zero while fitting; see `jaxnorm.functional.rrelu`.

    The key comes from `brainstate.random`; when the layer evaluates, the slope is the midpoint of the bounds.
    """

    def update(self, x: ArrayLike, mask: ArrayLike | None = None, *, fit: bool | None = None) -> Result:
        """Apply the function to `x`, with slopes that are drawn where the layer fits."""
        drawn = phase(type(self).__name__, fit)
        return self._apply(x, mask, key=brainstate.random.split_key() if drawn else None)


class Threshold(Activation, fn=F.threshold):
    """A constant in place of all that does not exceed a threshold; see `jaxnorm.functional.threshold`."""


class TLU(Activation, fn=F.tlu, learned={'threshold': 0.0}, aliases={'num_parameters': 'in_size'}):
    """Rectified linear unit with a learned threshold; see `jaxnorm.functional.tlu`."""


class SquaredReLU(Activation, fn=F.squared_relu):
    """Square of the positive part; see `jaxnorm.functional.squared_relu`."""


class StarReLU(Activation, fn=F.star_relu, learned={n: default(F.star_relu, n) for n in ('scale', 'bias')}):
    """Square of the positive part with learned scale and bias; see `jaxnorm.functional.star_relu`."""


class _Resizing(Applied):
    """A function whose result has another size along `axis` than its input."""

    axis: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        size: list[int] = list(cast(Any, self.in_size) or ())
        axis = self.axis if isinstance(self.axis, int) else 0  # what is no axis is refused in the call
        at = axis - (axis > 0)  # `in_size` has no batch, which comes first
        if axis and -len(size) <= at < len(size):
            size[at] = self._resized(size[at])
            self.out_size = tuple(size)

    def _resized(self, size: int) -> int:
        raise NotImplementedError


class CReLU(_Resizing, fn=F.crelu, aliases={'dim': 'axis'}):
    """Positive and negative part side by side; see `jaxnorm.functional.crelu`."""

    def _resized(self, size: int) -> int:
        return 2 * size


class Maxout(_Resizing, fn=F.maxout, aliases={'dim': 'axis'}):
    """The greatest of each group of features; see `jaxnorm.functional.maxout`."""

    num_units: int

    def _resized(self, size: int) -> int:
        return self.num_units


class Identity(Activation, fn=F.identity):
    """The input as it is; see `jaxnorm.functional.identity`."""


class Hardtanh(Activation, fn=F.hard_tanh, aliases={'min_val': 'min_value', 'max_val': 'max_value'}):
    """The input, held between two bounds; see `jaxnorm.functional.hard_tanh`."""


class ApproximateTanh(Activation, fn=F.approximate_tanh):
    """Piecewise linear approximation of the hyperbolic tangent; see `jaxnorm.functional.approximate_tanh`."""


class Hardsigmoid(Activation, fn=F.hard_sigmoid):
    """Piecewise linear version of the logistic function; see `jaxnorm.functional.hard_sigmoid`."""


class Hardswish(Activation, fn=F.hard_silu):
    """Piecewise quadratic version of `SiLU`; see `jaxnorm.functional.hard_silu`."""


class HardMish(Activation, fn=F.hard_mish):
    """Piecewise quadratic version of mish; see `jaxnorm.functional.hard_mish`."""


class SparsePlus(Activation, fn=F.sparse_plus):
    """Piecewise quadratic version of `Softplus`; see `jaxnorm.functional.sparse_plus`."""


class SparseSigmoid(Activation, fn=F.sparse_sigmoid):
    """Piecewise linear version of the logistic function; see `jaxnorm.functional.sparse_sigmoid`."""


class QuantizedSigmoid(Activation, fn=F.quantized_sigmoid):
    """Logistic function, rounded to few bits; see `jaxnorm.functional.quantized_sigmoid`."""


class Hardshrink(Activation, fn=F.hard_shrink):
    """Zero in place of what is small; see `jaxnorm.functional.hard_shrink`."""


class Softshrink(Activation, fn=F.soft_shrink):
    """Moved towards zero, and zero in place of what is small; see `jaxnorm.functional.soft_shrink`."""


class ELU(Activation, fn=F.elu):
    """Exponential linear unit; see `jaxnorm.functional.elu`."""


class CELU(Activation, fn=F.celu):
    """Continuously differentiable exponential linear unit; see `jaxnorm.functional.celu`."""


class SELU(Activation, fn=F.selu):
    """Self-normalizing exponential linear unit; see `jaxnorm.functional.selu`."""


class GELU(Activation, fn=F.gelu):
    """Gaussian error linear unit; see `jaxnorm.functional.gelu`."""


class SiLU(Activation, fn=F.silu):
    """Sigmoid linear unit, also called swish; see `jaxnorm.functional.silu`."""


class Swish(Activation, fn=F.swish):
    """Self-gated unit with a gate of given sharpness; see `jaxnorm.functional.swish`."""


class AdaptiveSwish(
    Activation, fn=F.adaptive_swish, learned={'alpha': 1.0, 'beta': 1.0}, aliases={'num_features': 'in_size'}
):
    """Swish of learned height and sharpness; see `jaxnorm.functional.adaptive_swish`."""


class QuickGELU(Activation, fn=F.quick_gelu):
    """Approximation of `GELU` by a sigmoid gate; see `jaxnorm.functional.quick_gelu`."""


class Mish(Activation, fn=F.mish):
    """Self-regularized unit; see `jaxnorm.functional.mish`."""


class TanhExp(Activation, fn=F.tanh_exp):
    """Tanh exponential unit; see `jaxnorm.functional.tanh_exp`."""


class Serf(Activation, fn=F.serf):
    """Error function of the softplus, times the input; see `jaxnorm.functional.serf`."""


class LiSHT(Activation, fn=F.lisht):
    """Linearly scaled hyperbolic tangent; see `jaxnorm.functional.lisht`."""


class XIELU(Activation, fn=F.xielu, learned={n: default(F.xielu, n) for n in ('alpha_p', 'alpha_n')}):
    """Expanded integral of the exponential linear unit, learned; see `jaxnorm.functional.xielu`.

    The state holds numbers of any sign: `alpha_p` is the softplus of its own, and `alpha_n` is `beta` plus that of its.
    """

    beta: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        beta = _checks.number('XIELU', 'beta', self.beta, at_least=0)
        lowest = {'alpha_p': 0.0, 'alpha_n': beta}
        self.weight.value = {n: _before_softplus(n, v, lowest[n]) for n, v in self.weight.value.items()}

    def _apply(self, x: ArrayLike, mask: ArrayLike | None, **more: Any) -> Result:
        learned = {n: F.softplus(v.reshape(()) if v.shape == (1,) else v) for n, v in self.weight.value.items()}
        return super()._apply(x, mask, alpha_p=learned['alpha_p'], alpha_n=self.beta + learned['alpha_n'], **more)


def _before_softplus(name: str, value: Any, low: float) -> Any:
    """The numbers whose softplus is `value - low`."""
    if not bool(jnp.all(value > low)):
        raise ValueError(f'XIELU: {name} must be above {low:g}, got {_checks.describe(value)}; choose a larger one.')
    return value - low + jnp.log(-jnp.expm1(low - value))


class Sigmoid(Activation, fn=F.sigmoid):
    """Logistic function; see `jaxnorm.functional.sigmoid`."""


class LogSigmoid(Activation, fn=F.log_sigmoid):
    """Logarithm of the logistic function; see `jaxnorm.functional.log_sigmoid`."""


class Tanh(Activation, fn=F.tanh):
    """Hyperbolic tangent; see `jaxnorm.functional.tanh`."""


class ScaledTanh(Activation, fn=F.scaled_tanh):
    """Hyperbolic tangent with a scale for each axis; see `jaxnorm.functional.scaled_tanh`."""


class TimeDecayedTanh(Activation, fn=F.time_decayed_tanh, inputs=('t',)):
    """Hyperbolic tangent that fades with time; see `jaxnorm.functional.time_decayed_tanh`."""

    # a further input, not a mask, is what comes second
    def update(self, x: ArrayLike, t: ArrayLike, mask: ArrayLike | None = None) -> Result:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Apply the function to `x` at time `t`."""
        return self._apply(x, mask, t=t)


class GatedTanh(Activation, fn=F.gated_tanh, inputs=('h_prev',)):
    """Hyperbolic tangent mixed with the state before; see `jaxnorm.functional.gated_tanh`."""

    # a further input, not a mask, is what comes second
    def update(self, x: ArrayLike, h_prev: ArrayLike, mask: ArrayLike | None = None) -> Result:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Apply the function to `x` and the state before."""
        return self._apply(x, mask, h_prev=h_prev)


class Tanhshrink(Activation, fn=F.tanh_shrink):
    """What the hyperbolic tangent takes from its argument; see `jaxnorm.functional.tanh_shrink`."""


class Softsign(Activation, fn=F.soft_sign):
    """Sigmoid without exponentials; see `jaxnorm.functional.soft_sign`."""


class Squareplus(Activation, fn=F.squareplus):
    """Smooth rectifier without exponentials; see `jaxnorm.functional.squareplus`."""


class Exponential(Activation, fn=F.exponential):
    """Exponential function; see `jaxnorm.functional.exponential`."""


class Snake(Activation, fn=F.snake):
    """The identity with waves; see `jaxnorm.functional.snake`."""


class Sine(Activation, fn=F.sine, aliases={'w0': 'frequency', 'omega': 'frequency'}):
    """Sine, the activation of SIREN; see `jaxnorm.functional.sine`."""


class Softplus(Activation, fn=F.softplus):
    """Smooth rectifier; see `jaxnorm.functional.softplus`."""


class Softmax(Activation, fn=F.softmax, aliases={'dim': 'axis'}):
    """Exponentials that sum to one over an axis; see `jaxnorm.functional.softmax`."""


class LogSoftmax(Activation, fn=F.log_softmax, aliases={'dim': 'axis'}):
    """Logarithm of the softmax; see `jaxnorm.functional.log_softmax`."""


class Softmin(Activation, fn=F.softmin, aliases={'dim': 'axis'}):
    """Softmax of the negative input; see `jaxnorm.functional.softmin`."""


class Softmax2d(Activation, fn=F.softmax, aliases={'dim': 'axis'}):
    """Softmax over the channels of an image, (H, W, C) or (N, H, W, C); see `jaxnorm.functional.softmax`."""

    def update(self, x: ArrayLike, mask: ArrayLike | None = None) -> Result:
        """Apply the function to `x`, one image or a batch."""
        if jnp.ndim(x) not in (3, 4):
            raise ValueError(
                f'Softmax2d: x must have rank 3 or 4, an image or a batch of them, got the shape {jnp.shape(x)}; '
                'use Softmax for anything else.'
            )
        return self._apply(x, mask)


class Sparsemax(Activation, fn=F.sparsemax, aliases={'dim': 'axis'}):
    """Nearest point of the probability simplex, with exact zeros; see `jaxnorm.functional.sparsemax`."""


class GumbelSoftmax(Activation, fn=F.gumbel_softmax, aliases={'dim': 'axis', 'tau': 'temperature'}):
    """Differentiable sample of a category while fitting; see `jaxnorm.functional.gumbel_softmax`.

    The key comes from `brainstate.random`; when the layer evaluates there is no noise.
    """

    def update(self, x: ArrayLike, mask: ArrayLike | None = None, *, fit: bool | None = None) -> Result:
        """Apply the function to `x`, with noise that is drawn where the layer fits."""
        drawn = phase(type(self).__name__, fit)
        return self._apply(x, mask, key=brainstate.random.split_key() if drawn else None)


class _Gate(_Resizing):
    """A function of two arrays, or of the halves of one, whose size is `in_size`."""

    def _resized(self, size: int) -> int:
        return size if size % 2 else size // 2  # that of one of two arrays, where there are no halves

    # a further input, not a mask, is what comes second
    def update(self, x: ArrayLike, other: ArrayLike | None = None, mask: ArrayLike | None = None) -> Result:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Apply the function to the halves of `x`, or to `x` and `other`."""
        return self._apply(x, mask, other=other)


class GLU(_Gate, fn=F.glu, inputs=('other',), aliases={'dim': 'axis'}):
    """Gated linear unit; see `jaxnorm.functional.glu`."""


class GEGLU(_Gate, fn=F.geglu, inputs=('other',), aliases={'dim': 'axis'}):
    """Gated linear unit with `GELU`; see `jaxnorm.functional.geglu`."""


class ReGLU(_Gate, fn=F.reglu, inputs=('other',), aliases={'dim': 'axis'}):
    """Gated linear unit with `ReLU`; see `jaxnorm.functional.reglu`."""


class SwiGLU(_Gate, fn=F.swiglu, inputs=('other',), aliases={'dim': 'axis'}):
    """Gated linear unit with `SiLU`; see `jaxnorm.functional.swiglu`."""


class BilinearGLU(_Gate, fn=F.bilinear, inputs=('other',), aliases={'dim': 'axis'}):
    """Gated linear unit without a function of the gate; see `jaxnorm.functional.bilinear`."""


class GaussianGLU(_Gate, fn=F.gaussian_glu, inputs=('other',), aliases={'dim': 'axis'}):
    """Gated linear unit with a bell curve; see `jaxnorm.functional.gaussian_glu`."""
