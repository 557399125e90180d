"""Scikit-learn's handwritten digits, as images of the size the network takes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLIT_SEED = 0  # not the seed of the run: every run is measured on the same held-out images


class Images(NamedTuple):
    """Images (n, 32, 32, 3) between 0 and 1, and their digits (n,)."""

    x: np.ndarray
    y: np.ndarray


def load(limit: int | None = None) -> tuple[Images, Images]:
    """The images to train on and the held-out ones, 80 to 20 with all digits alike in both."""
    digits: Any = load_digits()
    x, y = digits.images[:limit].astype(np.float32) / 16, digits.target[:limit].astype(np.int32)
    x = np.asarray(jax.image.resize(x, (len(x), 32, 32), 'bilinear'))
    x = np.repeat(x[..., None], 3, axis=-1)
    train, test = train_test_split(np.arange(len(y)), test_size=0.2, random_state=SPLIT_SEED, stratify=y)
    return Images(x[train], y[train]), Images(x[test], y[test])


def training_batches(images: Images, size: int, rng: np.random.Generator) -> Iterator[Images]:
    """One epoch in a new order. What doesn't fill a batch is left out: another size would be compiled again."""
    order = rng.permutation(len(images.y))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        yield Images(images.x[chosen], images.y[chosen])


def evaluation_batches(images: Images, size: int) -> Iterator[tuple[Images, np.ndarray]]:
    """All images in order, each batch with a mask: the last is filled up with images that don't count."""
    for start in range(0, len(images.y), size):
        position = np.arange(start, start + size)
        chosen = np.minimum(position, len(images.y) - 1)
        yield Images(images.x[chosen], images.y[chosen]), position < len(images.y)
