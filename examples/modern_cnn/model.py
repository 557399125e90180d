"""The network: two convolutional blocks and a classifier."""

import brainstate
import jax

import jaxnorm


class ModernCNN(brainstate.nn.Module):
    """Conv-BatchNorm-GELU-pool twice, then Linear-LayerNorm-GELU-Dropout-Linear.

    Parameters
    ----------
    num_classes : int
        Number of logits.
    width : int
        Channels of the first block; the second has twice as many, the hidden layer four times.
    momentum : float
        The share of the running statistics that a batch norm keeps at each step.
    in_size : tuple of int
        Height, width and channels of an image.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        width: int = 64,
        momentum: float = 0.99,
        in_size: tuple[int, int, int] = (32, 32, 3),
    ) -> None:
        super().__init__()
        height, wide, _ = in_size
        # brainstate's Conv2d has no bias unless asked: a batch norm would subtract it again
        self.conv1 = brainstate.nn.Conv2d(in_size, out_channels=width, kernel_size=(3, 3), padding='SAME')
        self.bn1 = jaxnorm.nn.BatchNorm2d((height, wide, width), momentum=momentum)
        self.act1 = jaxnorm.nn.GELU()
        self.pool1 = brainstate.nn.MaxPool2d(kernel_size=(2, 2), stride=(2, 2))

        half = (height // 2, wide // 2, width)
        self.conv2 = brainstate.nn.Conv2d(half, out_channels=2 * width, kernel_size=(3, 3), padding='SAME')
        self.bn2 = jaxnorm.nn.BatchNorm2d((*half[:2], 2 * width), momentum=momentum)
        self.act2 = jaxnorm.nn.GELU()
        self.pool2 = brainstate.nn.MaxPool2d(kernel_size=(2, 2), stride=(2, 2))

        # this bias stays: a layer norm subtracts the mean over the features, so a bias that differs between them counts
        features = (height // 4) * (wide // 4) * 2 * width
        self.fc1 = brainstate.nn.Linear((features,), (4 * width,))
        self.ln = jaxnorm.nn.LayerNorm((4 * width,))
        self.act3 = jaxnorm.nn.GELU()
        self.dropout = brainstate.nn.Dropout(prob=0.5)  # in brainstate the probability to keep
        self.fc2 = brainstate.nn.Linear((4 * width,), (num_classes,))

    def update(self, x: jax.Array) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, channels)."""
        x = self.pool1(self.act1(self.bn1(self.conv1(x))))
        x = self.pool2(self.act2(self.bn2(self.conv2(x))))
        x = x.reshape(x.shape[0], -1)
        x = self.act3(self.ln(self.fc1(x)))
        return self.fc2(self.dropout(x))
