"""Pure jitted kernels: arrays in, arrays out."""

from ._exponential import elu as elu
from ._exponential import selu as selu
from ._exponential import softplus as softplus
from ._gated import gelu as gelu
from ._gated import silu as silu
from ._gated import swish as swish
from ._get import get as get
from ._normalization import batch_norm as batch_norm
from ._normalization import batch_norm_fit as batch_norm_fit
from ._normalization import group_norm as group_norm
from ._normalization import instance_norm as instance_norm
from ._normalization import layer_norm as layer_norm
from ._normalization import moments as moments
from ._normalization import rms_norm as rms_norm
from ._normalization import standardize as standardize
from ._rectified import leaky_relu as leaky_relu
from ._rectified import relu as relu
from ._rectified import relu6 as relu6
from ._sigmoidal import log_sigmoid as log_sigmoid
from ._sigmoidal import sigmoid as sigmoid
from ._sigmoidal import tanh as tanh
from ._softmax import log_softmax as log_softmax
from ._softmax import softmax as softmax
