"""Activations as modules. A class says what differs and nothing else: its function is its definition."""

from .. import functional as F
from ._base import Activation


class ReLU(Activation, fn=F.relu):
    """Rectified linear unit; see `jaxnorm.functional.relu`."""


class ReLU6(Activation, fn=F.relu6):
    """Rectified linear unit capped at 6; see `jaxnorm.functional.relu6`."""


class LeakyReLU(Activation, fn=F.leaky_relu):
    """Rectified linear unit with a small slope below zero; see `jaxnorm.functional.leaky_relu`."""


class ELU(Activation, fn=F.elu):
    """Exponential linear unit; see `jaxnorm.functional.elu`."""


class SELU(Activation, fn=F.selu):
    """Self-normalizing exponential linear unit; see `jaxnorm.functional.selu`."""


class GELU(Activation, fn=F.gelu):
    """Gaussian error linear unit; see `jaxnorm.functional.gelu`."""


class SiLU(Activation, fn=F.silu):
    """Sigmoid linear unit, also called swish; see `jaxnorm.functional.silu`."""


class Sigmoid(Activation, fn=F.sigmoid):
    """Logistic function; see `jaxnorm.functional.sigmoid`."""


class LogSigmoid(Activation, fn=F.log_sigmoid):
    """Logarithm of the logistic function; see `jaxnorm.functional.log_sigmoid`."""


class Tanh(Activation, fn=F.tanh):
    """Hyperbolic tangent; see `jaxnorm.functional.tanh`."""


class Softplus(Activation, fn=F.softplus):
    """Smooth rectifier; see `jaxnorm.functional.softplus`."""


class Softmax(Activation, fn=F.softmax, aliases={'dim': 'axis'}):
    """Exponentials that sum to one over an axis; see `jaxnorm.functional.softmax`."""


class LogSoftmax(Activation, fn=F.log_softmax, aliases={'dim': 'axis'}):
    """Logarithm of the softmax; see `jaxnorm.functional.log_softmax`."""
