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


def prelu(x, slope):
    return np.where(x > 0, x, slope * x)


def rrelu(x, lower=1 / 8, upper=1 / 3):
    return np.where(x > 0, x, (lower + upper) / 2 * x)


def threshold(x, threshold, value):
    return np.where(x > threshold, x, value)


def tlu(x, threshold):
    return np.maximum(x, threshold)


def squared_relu(x):
    return np.maximum(x, 0) ** 2


def star_relu(x, scale=0.8944, bias=-0.4472):
    return scale * np.maximum(x, 0) ** 2 + bias


def crelu(x, axis=-1):
    return np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], axis)


def maxout(x, num_units):
    """Along the last axis."""
    return x.reshape(*x.shape[:-1], num_units, -1).max(-1)


def identity(x):
    return x


def hard_tanh(x, min_value=-1.0, max_value=1.0):
    return np.clip(x, min_value, max_value)


def approximate_tanh(x):
    """The line through 0, beyond 1 lines of a quarter of its slope, and all of it clipped."""
    outside = np.sign(x) * (1 + 0.25 * (np.abs(x) - 1))
    return np.clip(np.where(np.abs(x) <= 1, x, outside), -1, 1)


def hard_sigmoid(x):
    return np.clip(x + 3, 0, 6) / 6


def hard_silu(x):
    return x * hard_sigmoid(x)


def hard_mish(x):
    return x / 2 * np.clip(x + 2, 0, 2)


def sparse_plus(x):
    return np.where(x <= -1, 0, np.where(x >= 1, x, (x + 1) ** 2 / 4))


def sparse_sigmoid(x):
    return np.clip(x + 1, 0, 2) / 2


def quantized_sigmoid(x, bits=8):
    largest = 2**bits - 1
    return np.floor(sigmoid(x) * largest + 0.5) / largest


def hard_shrink(x, lambd=0.5):
    return np.where(np.abs(x) > lambd, x, 0)


def soft_shrink(x, lambd=0.5):
    return np.sign(x) * np.maximum(np.abs(x) - lambd, 0)


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


def swish(x, beta=1.0):
    return x * sigmoid(beta * x)


def adaptive_swish(x, alpha=1.0, beta=1.0):
    return alpha * x * sigmoid(beta * x)


def quick_gelu(x):
    return x * sigmoid(1.702 * x)


def mish(x):
    return x * np.tanh(np.logaddexp(0, x))


def tanh_exp(x):
    return x * np.tanh(np.exp(x))


def serf(x):
    return x * np.vectorize(math.erf)(np.logaddexp(0, x))


def xielu(x, alpha_p=0.8, alpha_n=0.8, beta=0.5, eps=-1e-6):
    return beta * x + np.where(x > 0, alpha_p * x * x, alpha_n * (np.expm1(np.minimum(x, eps)) - x))


def lisht(x):
    return x * np.tanh(x)


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def tanh(x):
    return np.tanh(x)


def softplus(x, beta=1.0):
    return np.logaddexp(0, beta * x) / beta


def celu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha))


def exponential(x):
    return np.exp(x)


def squareplus(x, b=4.0):
    root = np.sqrt(x * x + b)
    return np.where(x > 0, (x + root) / 2, b / (2 * (root + np.abs(x))))  # (x + root) (root - x) = b


def soft_sign(x):
    return x / (1 + np.abs(x))


def scaled_tanh(x, scale=1.7159, slope=2 / 3):
    return scale * np.tanh(slope * x)


def time_decayed_tanh(x, t, decay_rate=0.1):
    return np.tanh(x) * np.exp(-decay_rate * t)


def gated_tanh(x, h_prev):
    return sigmoid(x + h_prev) * np.tanh(x) + sigmoid(-x - h_prev) * h_prev


def tanh_shrink(x):
    small = x**3 / 3 - 2 * x**5 / 15 + 17 * x**7 / 315 - 62 * x**9 / 2835  # Taylor, where digits would cancel
    return np.where(np.abs(x) < 0.02, small, x - np.tanh(x))


def snake(x, frequency=1.0):
    return x + np.sin(frequency * x) ** 2 / frequency


def sine(x, frequency=1.0):
    return np.sin(frequency * x)


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


def softmin(x, axis=-1):
    return softmax(-x, axis)


def logsumexp(x, axis=-1):
    m = np.max(x, axis, keepdims=True)
    return np.squeeze(m + np.log(np.exp(x - m).sum(axis, keepdims=True)), axis)


def sparsemax(x, axis=-1):
    """By sorting, as in Martins and Astudillo's algorithm 1."""
    axes = (axis,) if isinstance(axis, int) else axis
    moved = np.moveaxis(x, axes, range(-len(axes), 0))
    rows = moved.reshape(*moved.shape[: x.ndim - len(axes)], -1)
    z = -np.sort(-rows, -1)
    total, k = np.cumsum(z, -1), np.arange(1, rows.shape[-1] + 1)
    count = (1 + k * z > total).sum(-1, keepdims=True)
    threshold = (np.take_along_axis(total, count - 1, -1) - 1) / count
    return np.moveaxis(np.maximum(rows - threshold, 0).reshape(moved.shape), range(-len(axes), 0), axes)


def glu(a, b):
    return a * sigmoid(b)


def geglu(a, b, approximate=False):
    return a * gelu(b, approximate)


def reglu(a, b):
    return a * relu(b)


def swiglu(a, b, alpha=1.0, offset=0.0):
    return (a + offset) * b * sigmoid(alpha * b)


def bilinear(a, b):
    return a * b


def gaussian_glu(a, b, mean=0.0, std=1.0):
    return a * np.exp(-(((b - mean) / std) ** 2) / 2)


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


def local_response_norm(x, size, alpha=1e-4, beta=0.75, k=1.0):
    """Along the last axis."""
    channels = x.shape[-1]
    around = [slice(max(c - size // 2, 0), min(c + (size - 1) // 2 + 1, channels)) for c in range(channels)]
    total = np.stack([(x[..., a] ** 2).sum(-1) for a in around], -1)
    return x / (k + alpha / size * total) ** beta


def unit_norm(x, axis=-1, epsilon=1e-12):
    return x / np.maximum(np.sqrt((x * x).sum(axis, keepdims=True)), epsilon)


def scale_norm(x, scale=1.0, axis=-1, epsilon=1e-5):
    return scale * unit_norm(x, axis, epsilon)


def global_response_norm(x, scale=1.0, bias=0.0, epsilon=1e-6):
    """Channels last, as are those below."""
    length = np.sqrt((x * x).sum(tuple(range(1, x.ndim - 1)), keepdims=True))
    return scale * x * length / (length.mean(-1, keepdims=True) + epsilon) + bias + x


def filter_response_norm(x, scale=1.0, bias=0.0, threshold=-np.inf, learned_epsilon=0.0, epsilon=1e-6):
    square = (x * x).mean(tuple(range(1, x.ndim - 1)), keepdims=True)
    return np.maximum(scale * x / np.sqrt(square + epsilon + np.abs(learned_epsilon)) + bias, threshold)


def evonorm_b0(x, var, v, scale=1.0, bias=0.0, epsilon=1e-5):
    instance = moments(x, tuple(range(1, x.ndim - 1)))[1]
    return x / np.maximum(np.sqrt(var + epsilon), v * x + np.sqrt(instance + epsilon)) * scale + bias


def evonorm_b0_fit(x, v, scale=1.0, bias=0.0, epsilon=1e-5):
    return evonorm_b0(x, moments(x, tuple(range(x.ndim - 1)))[1], v, scale, bias, epsilon)


def evonorm_s0(x, v, scale=1.0, bias=0.0, num_groups=1, epsilon=1e-5):
    parts = x.reshape(*x.shape[:-1], num_groups, -1)
    var = moments(parts, tuple(a for a in range(1, parts.ndim) if a != parts.ndim - 2))[1]
    deviation = np.sqrt(np.broadcast_to(var, parts.shape) + epsilon).reshape(x.shape)
    return x * sigmoid(v * x) / deviation * scale + bias


def dynamic_tanh(x, alpha=0.5, scale=1.0, bias=0.0):
    return scale * np.tanh(alpha * x) + bias


def dynamic_erf(x, alpha=0.5, shift=0.0, scale=1.0, bias=0.0):
    return scale * np.vectorize(math.erf)(alpha * x + shift) + bias


def iterative_norm(x, mean, whitening, scale=1.0, bias=0.0):
    groups, size, _ = whitening.shape
    parts = (x - mean).reshape(-1, groups, size)
    return np.einsum('gcd,rgd->rgc', whitening, parts).reshape(x.shape) * scale + bias


def iterative_norm_fit(x, scale=1.0, bias=0.0, num_groups=1, num_iterations=5, epsilon=1e-5):
    """(y, mean, whitening)."""
    size = x.shape[-1] // num_groups
    mean = x.reshape(-1, x.shape[-1]).mean(0)
    parts = (x - mean).reshape(-1, num_groups, size)
    matrices = []
    for group in range(num_groups):
        sigma = parts[:, group].T @ parts[:, group] / len(parts) + epsilon * np.eye(size)
        p = np.eye(size)
        for _ in range(num_iterations):
            p = (3 * p - p @ p @ p @ sigma / np.trace(sigma)) / 2
        matrices.append(p / np.sqrt(np.trace(sigma)))
    return iterative_norm(x, mean, np.stack(matrices), scale, bias), mean, np.stack(matrices)


def batch_norm_update(x, mean, var, scale=1.0, bias=0.0, momentum=0.99, epsilon=1e-5, unbiased=False):
    """While fitting."""
    m, v = (s.ravel() for s in moments(x, tuple(range(x.ndim - 1))))
    n = x.size // x.shape[-1]
    keep = lambda old, new: momentum * old + (1 - momentum) * new
    y = batch_norm_fit(x, scale, bias, epsilon)
    return y, keep(mean, m), keep(var, v * n / (n - 1) if unbiased else v)


def batch_renorm_fit(x, mean, var, scale=1.0, bias=0.0, rmax=3.0, dmax=5.0, epsilon=1e-5, where=None):
    m, v = moments(x, tuple(range(x.ndim - 1)), where)
    std, running = np.sqrt(v + epsilon), np.sqrt(var + epsilon)
    r, d = np.clip(std / running, 1 / rmax, rmax), np.clip((m - mean) / running, -dmax, dmax)
    y = ((x - m) / std * r + d) * scale + bias
    return y if where is None else np.where(where, y, 0)


def ghost_batch_norm_fit(x, scale=1.0, bias=0.0, virtual_batch_size=1, epsilon=1e-5, where=None):
    size = virtual_batch_size
    masks = [None] * len(x) if where is None else np.broadcast_to(where, x.shape)
    parts = [batch_norm_fit(x[i : i + size], scale, bias, epsilon, None if where is None else masks[i : i + size])
             for i in range(0, len(x), size)]  # fmt: skip
    return np.concatenate(parts)


def weight_norm(v, g):
    """Of the outputs along the last axis, as in those below."""
    return g * v / np.sqrt((v * v).sum(tuple(range(v.ndim - 1))))


def weight_standardization(w, gain=1.0, epsilon=1e-6, scaled=False):
    y = standardize(w, tuple(range(w.ndim - 1)), epsilon) * gain
    return y / np.sqrt(w.size / w.shape[-1]) if scaled else y


def spectral_norm(w, u, n_steps=1):
    """(w, u, sigma)."""
    unit = lambda x: x / np.linalg.norm(x)
    matrix = w.reshape(-1, w.shape[-1]).T
    u = unit(u)
    for _ in range(n_steps):
        u = unit(matrix @ unit(matrix.T @ u))
    sigma = u @ matrix @ unit(matrix.T @ u)
    return w / sigma, u, sigma


def film(x, scale, shift):
    return (1 + scale) * x + shift


def ada_layer_norm(x, scale, shift, epsilon=1e-6):
    return film(layer_norm(x, epsilon=epsilon), scale, shift)


def adain(x, style, epsilon=1e-6):
    """Of images (batch, height, width, channel)."""
    mean, var = moments(style, (1, 2))
    return np.sqrt(var + epsilon) * instance_norm(x, epsilon=epsilon) + mean
