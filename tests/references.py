"""References in float64, written from the definitions; nothing of jaxnorm comes in here."""

import math

import numpy as np


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def relu(x):
    return np.maximum(x, 0)


def relu6(x):
    return np.minimum(np.maximum(x, 0), 6)


def leaky_relu(x, negative_slope=0.01):
    return np.where(x > 0, x, negative_slope * x)


def elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def selu(x):
    return 1.0507009873554805 * elu(x, 1.6732632423543772)


def gelu(x, approximate=False):
    if approximate:
        return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))  # (1 + tanh u) / 2 = sigmoid(2 u)
    return x * 0.5 * np.vectorize(lambda v: math.erfc(-v / math.sqrt(2)))(x)


def silu(x):
    return x * sigmoid(x)


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def tanh(x):
    return np.tanh(x)


def softplus(x, beta=1.0):
    return np.logaddexp(0, beta * x) / beta


def softmax(x, axis=-1, where=None):
    where = np.ones_like(x, bool) if where is None else np.broadcast_to(where, x.shape)
    e = np.where(where, np.exp(x - np.max(x, axis, keepdims=True)), 0)
    return e / np.maximum(e.sum(axis, keepdims=True), 1e-300)


def log_softmax(x, axis=-1):
    m = np.max(x, axis, keepdims=True)
    others = (
        np.exp(x - m).sum(axis, keepdims=True) - 1
        if (x == m).sum() != 1
        else np.where(x == m, 0, np.exp(x - m)).sum(axis, keepdims=True)
    )
    return (x - m) - np.log1p(others)


def moments(x, axis, where=None):
    """(mean, variance) over `axis`, kept."""
    weight = np.ones_like(x) if where is None else np.broadcast_to(where, x.shape).astype(x.dtype)
    count = np.maximum(weight.sum(axis, keepdims=True), 1)
    kept = np.where(weight > 0, x, 0)
    mean = kept.sum(axis, keepdims=True) / count
    return mean, (weight * (kept - mean) ** 2).sum(axis, keepdims=True) / count


def normalize(x, mean, var, scale, bias, epsilon, where=None):
    y = (x - mean) / np.sqrt(var + epsilon) * scale + bias
    return y if where is None else np.where(where, y, 0)


def standardize(x, axis=-1, epsilon=1e-5, where=None):
    return normalize(x, *moments(x, axis, where), 1.0, 0.0, epsilon, where)


def layer_norm(x, scale=1.0, bias=0.0, axis=-1, epsilon=1e-6, where=None):
    return normalize(x, *moments(x, axis, where), scale, bias, epsilon, where)


def rms_norm(x, scale=1.0, axis=-1, epsilon=1e-6, where=None):
    mean, var = moments(x, axis, where)
    return normalize(x, 0.0, var + mean**2, scale, 0.0, epsilon, where)


def group_norm(x, scale=1.0, bias=0.0, num_groups=1, epsilon=1e-6, where=None):
    """Channels last."""
    parts = (*x.shape[:-1], num_groups, x.shape[-1] // num_groups)
    mask = None if where is None else np.broadcast_to(where, x.shape).reshape(parts)
    axes = tuple(a for a in range(1, len(parts)) if a != len(parts) - 2)
    y = normalize(x.reshape(parts), *moments(x.reshape(parts), axes, mask), 1.0, 0.0, epsilon)
    y = y.reshape(x.shape) * scale + bias
    return y if where is None else np.where(where, y, 0)


def instance_norm(x, scale=1.0, bias=0.0, epsilon=1e-6, where=None):
    return group_norm(x, scale, bias, x.shape[-1], epsilon, where)


def batch_norm(x, mean, var, scale=1.0, bias=0.0, epsilon=1e-5):
    return normalize(x, mean, var, scale, bias, epsilon)


def batch_norm_fit(x, scale=1.0, bias=0.0, epsilon=1e-5, where=None):
    mean, var = moments(x, tuple(range(x.ndim - 1)), where)
    return normalize(x, mean, var, scale, bias, epsilon, where)
