"""Stateful modules on brainstate: thin wrappers of `jaxnorm.functional`."""

from ._activations import ELU as ELU
from ._activations import GELU as GELU
from ._activations import SELU as SELU
from ._activations import LeakyReLU as LeakyReLU
from ._activations import LogSigmoid as LogSigmoid
from ._activations import LogSoftmax as LogSoftmax
from ._activations import ReLU as ReLU
from ._activations import ReLU6 as ReLU6
from ._activations import Sigmoid as Sigmoid
from ._activations import SiLU as SiLU
from ._activations import Softmax as Softmax
from ._activations import Softplus as Softplus
from ._activations import Tanh as Tanh
from ._normalization import BatchNorm0d as BatchNorm0d
from ._normalization import BatchNorm1d as BatchNorm1d
from ._normalization import BatchNorm2d as BatchNorm2d
from ._normalization import BatchNorm3d as BatchNorm3d
from ._normalization import GroupNorm as GroupNorm
from ._normalization import InstanceNorm as InstanceNorm
from ._normalization import LayerNorm as LayerNorm
from ._normalization import RMSNorm as RMSNorm
