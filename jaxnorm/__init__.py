"""Activations and normalization for JAX that can be trusted without checking."""

from importlib.metadata import PackageNotFoundError, version

from . import functional as functional
from . import nn as nn
from ._activation import activation as activation
from .nn._fit import checkpoint as checkpoint
from .nn._fit import jit as jit

try:
    __version__ = version('jaxnorm')
except PackageNotFoundError:  # imported from a source tree that is not installed
    __version__ = '0.0.0'
