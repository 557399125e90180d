"""The network: two convolutional blocks and a classifier, with a choice of norms and activations."""

import math
from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

import jaxnorm

nn: Any = jaxnorm.nn
Size = tuple[int, int, int]  # height, width, channels


def _averaging(layer: Callable[..., Any], **options: Any) -> Callable[[Size, float], Any]:
    return lambda size, momentum: layer(size, momentum=momentum, **options)


def _in_groups(layer: Callable[..., Any]) -> Callable[[Size, float], Any]:
    return lambda size, _: layer(size, num_groups=math.gcd(32, size[-1]))


def _plain(layer: Callable[..., Any]) -> Callable[[Size, float], Any]:
    return lambda size, _: layer(size)


#: What makes the norm of images of a size, and the share that its running statistics keep.
NORMS: dict[str, Callable[[Size, float], Any]] = {
    'batch': _averaging(nn.BatchNorm2d),
    'ghost': _averaging(nn.GhostBatchNorm, virtual_batch_size=16),
    # its clips open once the running averages have settled; the layer's own schedule is for runs of 40,000 steps
    'batch_renorm': _averaging(nn.BatchRenorm, schedule=(200, 1000, 1600)),
    'group': _in_groups(nn.GroupNorm),
    'layer': _plain(nn.LayerNorm),  # over the channels of a pixel, as in ConvNeXt
    'rms': _plain(nn.RMSNorm),
    'instance': _plain(nn.InstanceNorm),
    'filter_response': _plain(nn.FilterResponseNorm),
    'evonorm_b0': _averaging(nn.EvoNormB0),
    'evonorm_s0': _in_groups(nn.EvoNormS0),
    'dynamic_tanh': _plain(nn.DynamicTanh),
    'local_response': lambda size, momentum: nn.LocalResponseNorm(size=5),
    'none': lambda size, momentum: nn.Identity(),
}
#: Those that subtract the mean of each channel: a bias in front of them would be subtracted again.
CENTRING = ('batch', 'ghost', 'batch_renorm', 'instance')


def activation_layer(name: str, channels: int) -> Any:
    """The module of an activation by its name; what it learns, it learns for each channel.

    Raises
    ------
    ValueError
        If there is no such activation, or it needs more than its input, or changes the shape.
    """
    function: Any = jaxnorm.functional.get(name)
    options = getattr(function, 'keywords', {})  # 'gelu_tanh' is gelu with an option
    made = [layer for layer in vars(nn).values() if getattr(layer, 'fn', None) is getattr(function, 'func', function)]
    if not made:
        raise ValueError(f'{name} is no activation of single elements')
    images = jax.ShapeDtypeStruct((2, 4, 4, channels), jnp.float32)
    with brainstate.environ.context(fit=True):
        try:
            layer = made[0](in_size=channels, **options)
            result: Any = brainstate.transform.eval_shape(layer, images)
        except TypeError:  # arguments are missing
            raise ValueError(f'{name} needs more than its input') from None
    if result.shape != images.shape:
        raise ValueError(f'{name} makes {result.shape[-1]} channels of {channels}')
    return layer


class Conv2d(brainstate.nn.Conv2d):
    """A 3 x 3 convolution that keeps height and width, and learns faster on a CPU than brainstate's own."""

    def __init__(self, in_size: Size, out_channels: int, b_init: Any = None) -> None:
        super().__init__(in_size, out_channels, kernel_size=(3, 3), padding='SAME', b_init=b_init)

    def update(self, x: jax.Array) -> jax.Array:
        """Images (batch, height, width, out_channels) of images (batch, height, width, channels)."""
        values: Any = self.weight.value
        y = convolve(x, values['weight'])
        return y + values['bias'] if 'bias' in values else y

    def plain(self) -> brainstate.nn.Conv2d:
        """Brainstate's own layer, which computes the same: for what knows layers by their type, such as `nn.fold`."""
        size: Any = self.in_size
        layer = brainstate.nn.Conv2d(size, self.out_channels, kernel_size=(3, 3), padding='SAME')
        layer.weight.value = self.weight.value
        return layer


def _window(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, weight, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _blocks(images: jax.Array) -> jax.Array:
    """A batch as (blocks, 8, height, width, channels): what is made of eight images stays in the cache of a CPU."""
    each = math.gcd(len(images), 8)
    if jax.device_count() == 1:
        return images.reshape(-1, each, *images.shape[1:])
    # one of every so many images, so that each device has its share of a block
    return images.reshape(each, -1, *images.shape[1:]).swapaxes(0, 1)


def _together(blocks: jax.Array) -> jax.Array:
    """The batch again."""
    images = blocks if jax.device_count() == 1 else blocks.swapaxes(0, 1)
    return images.reshape(-1, *images.shape[2:])


def _patches(x: jax.Array) -> jax.Array:
    """The 3 x 3 pixels around each pixel, a row each."""
    _, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1).reshape(-1, 9 * channels)


def _products(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The convolution as matrix products."""
    matrix = weight.reshape(-1, weight.shape[-1])
    return _together(jax.lax.map(lambda some: (_patches(some) @ matrix).reshape(*some.shape[:-1], -1), _blocks(x)))


def _products_by_weight(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient by the weight as matrix products.

    XLA makes a convolution of it whose window is a whole image, which takes a CPU twice as long.
    """
    channels, out_channels = x.shape[-1], gradient.shape[-1]
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def add(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        some, back = block
        product = jnp.matmul(back.reshape(-1, out_channels).T, _patches(some), preferred_element_type=dtype)
        return total + product, None

    total, _ = jax.lax.scan(add, jnp.zeros((out_channels, 9 * channels), dtype), (_blocks(x), _blocks(gradient)))
    return total.T.reshape(3, 3, channels, out_channels).astype(x.dtype)


def _window_by_weight(x: jax.Array, gradient: jax.Array) -> jax.Array:
    weight = jax.ShapeDtypeStruct((3, 3, x.shape[-1], gradient.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda weight: _window(x, weight), weight)(gradient)[0]


def _convolve(x: jax.Array, weight: jax.Array) -> jax.Array:
    # in a convolution XLA of jax 0.10 keeps all but one core of a CPU idle
    on_a_cpu = _products if jax.__version_info__ < (0, 12) else _window
    return jax.lax.platform_dependent(x, weight, cpu=on_a_cpu, default=_window)


@jax.custom_vjp
def convolve(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The 3 x 3 convolution of images with a weight (3, 3, channels, out_channels)."""
    return _window(x, weight)  # blocks are for learning: here the size of a batch may be a symbol, as in an export


def _convolve_back(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    turned = weight[::-1, ::-1].swapaxes(2, 3)
    by_weight = jax.lax.platform_dependent(x, gradient, cpu=_products_by_weight, default=_window_by_weight)
    return _convolve(gradient, turned), by_weight


convolve.defvjp(lambda x, weight: (_convolve(x, weight), (x, weight)), _convolve_back)


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of each 2 x 2 pixels; an odd last row or column is left out.

    On a CPU it takes a tenth of the time of a windowed reduction, whose gradient is slow there. As in PyTorch, the
    gradient goes to the first of equal pixels.
    """
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    return _largest(x[:, :height, :width])


def _in_squares(x: jax.Array) -> jax.Array:
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels)


@jax.custom_vjp
def _largest(x: jax.Array) -> jax.Array:
    return _chosen(x)[0]


def _chosen(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest of each square, and its place in it, which is all that the gradient needs: a byte each."""
    squares = _in_squares(x)
    best = squares[:, :, 0, :, 0]
    place = jnp.zeros(best.shape, jnp.uint8)
    for i in 1, 2, 3:
        other = squares[:, :, i // 2, :, i % 2]
        better = (other > best) | jnp.isnan(other)
        best, place = jnp.where(better, other, best), jnp.where(better, jnp.uint8(i), place)
    return best, place


def _spread(place: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    here = jnp.arange(4, dtype=jnp.uint8).reshape(2, 1, 2, 1) == place[:, :, None, :, None]
    squares = jnp.where(here, gradient[:, :, None, :, None], 0)
    n, rows, _, columns, _, channels = squares.shape
    return (squares.reshape(n, 2 * rows, 2 * columns, channels),)


def _chosen_once(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `_chosen`, but nothing that came before is computed again for each of the four pixels, or in the gradient."""
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: jax.tree.map(_together, jax.lax.map(_chosen, _blocks(x))),
        default=lambda x: jax.lax.optimization_barrier(_chosen(x)),
    )


_largest.defvjp(_chosen_once, _spread)


class Dropout(brainstate.nn.Module):
    """Zeros in place of a share of the values while fitting, and the others larger by as much.

    Brainstate's own checks the rate inside the compiled step, by a callback that jax has on a single device only.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def update(self, x: jax.Array) -> jax.Array:
        """Values of the shape of `x`."""
        if not self.rate or not brainstate.environ.get('fit'):
            return x
        kept = jax.random.bernoulli(brainstate.random.split_key(), 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), 0)


class ModernCNN(brainstate.nn.Module):
    """Conv-norm-activation-pool twice, then Linear-LayerNorm-activation-Dropout-Linear.

    Parameters
    ----------
    num_classes : int
        Number of logits.
    width : int
        Channels of the first block; the second has twice as many, the hidden layer four times.
    norm : str
        The norm of the two convolutional blocks, a key of `NORMS`.
    activation : str
        The name of an activation of jaxnorm that keeps the shape.
    dropout : float
        The rate to drop.
    momentum : float
        The share of the running statistics that a batch norm keeps at each step.
    in_size : tuple of int
        Height, width and channels of an image; at least 4 pixels high and wide.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        width: int = 64,
        norm: str = 'batch',
        activation: str = 'gelu',
        dropout: float = 0.5,
        momentum: float = 0.99,
        in_size: Size = (32, 32, 3),
    ) -> None:
        super().__init__()
        height, wide, _ = in_size
        # brainstate's Conv2d has no bias unless asked
        bias = None if norm in CENTRING else brainstate.nn.init.ZeroInit()
        self.conv1 = Conv2d(in_size, width, bias)
        self.bn1 = NORMS[norm]((height, wide, width), momentum)
        self.act1 = activation_layer(activation, width)

        half = height // 2, wide // 2
        self.conv2 = Conv2d((*half, width), 2 * width, bias)
        self.bn2 = NORMS[norm]((*half, 2 * width), momentum)
        self.act2 = activation_layer(activation, 2 * width)

        # this bias stays: a layer norm subtracts the mean over the features, so a bias that differs between them counts
        features = (height // 4) * (wide // 4) * 2 * width
        self.fc1 = brainstate.nn.Linear((features,), (4 * width,))
        self.ln = nn.LayerNorm((4 * width,))
        self.act3 = activation_layer(activation, 4 * width)
        self.dropout = Dropout(dropout)
        self.fc2 = brainstate.nn.Linear((4 * width,), (num_classes,))

    def update(self, x: jax.Array) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, channels)."""
        x = max_pool(self.act1(self.bn1(self.conv1(x))))
        x = max_pool(self.act2(self.bn2(self.conv2(x))))
        x = x.reshape(x.shape[0], -1)
        x = self.act3(self.ln(self.fc1(x)))
        return self.fc2(self.dropout(x))
