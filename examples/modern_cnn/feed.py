"""How the images get to the model: shuffled batches whose position can be saved, and what changes them on the way."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import dm_pix
import grain
import jax
import jax.numpy as jnp
import numpy as np
from data import Images

PADDING = 4  # pixels on each side that a crop may move by
HOLE = 8  # side of the square that cutout puts out


def steps_until(epoch: int, images: int, batch_size: int) -> int:
    """How many steps it takes until every image has been seen `epoch` times."""
    return -(-epoch * images // batch_size)


def training_feed(
    images: Images, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator[Images]:
    """Batches to learn from, without end; ``get_state()`` and ``set_state(...)`` of it are the position, as JSON.

    Each epoch shows every image once, in an order of its own that depends on the seed alone. All batches are full: the
    one at the end of an epoch goes on with the next, so that none is left out or counted twice. With several
    processes each gets its rows of the batches that a single one would see.

    Parameters
    ----------
    images : Images
        All images, the same in each process.
    batch_size : int
        Images of a batch over all processes, whose number must divide it.
    seed : int
        Of the order.
    process_index, process_count : int
        Which process this is, and how many there are: ``jax.process_index()`` and ``jax.process_count()``.
    """
    share, count = _share(batch_size, process_index, process_count), len(images.y)

    # grain's own shuffle takes 7 us an image, which would keep a fast GPU waiting; a permutation of them all, next to
    # nothing
    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(count)

    def rows(step: int) -> Images:
        epochs, places = np.divmod(step * batch_size + np.arange(batch_size)[share], count)
        chosen = np.concatenate([order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        return Images(images.x[chosen], images.y[chosen])

    # a thread of grain's makes the next batches while the device is at work
    steps = grain.MapDataset.range(sys.maxsize // batch_size).map(rows)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def evaluation_batches(
    images: Images, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[tuple[Images, np.ndarray]]:
    """All images in order, each batch with a mask: the last is filled up with images that don't count."""
    share = _share(batch_size, process_index, process_count)
    for start in range(0, len(images.y), batch_size):
        position = np.arange(start, start + batch_size)[share]
        chosen = np.minimum(position, len(images.y) - 1)
        yield Images(images.x[chosen], images.y[chosen]), position < len(images.y)


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a batch that are this process's."""
    if batch_size % process_count:
        raise ValueError(f'batch_size must be a multiple of the {process_count} processes, got {batch_size}')
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def to_float(x: Any) -> jax.Array:
    """Pixels of 0 to 255 as the model takes them: float32 between 0 and 1."""
    return jnp.asarray(x, jnp.float32) / 255


def augment(key: jax.Array, x: jax.Array, flips: bool) -> jax.Array:
    """Change images at random, inside the jitted step: moved by up to 4 pixels, mirrored, a square of 8x8 put out.

    What comes in from outside and what is put out is black. On two CPU cores a batch of 128 takes 0.3 ms of the step;
    NumPy on the host takes 0.7 ms.

    Parameters
    ----------
    key : jax.Array
        A random key, another one at each step: ``jax.random.fold_in(key, step)``.
    x : jax.Array
        Images (n, height, width, channels) of any dtype.
    flips : bool
        Whether to mirror half of them: not where that makes another thing of them, as of digits.
    """

    def one(key: jax.Array, image: Any) -> jax.Array:
        crop, flip, cut = jax.random.split(key, 3)
        padded = jnp.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
        image = dm_pix.random_crop(crop, padded, image.shape)
        if flips:
            image = dm_pix.random_flip_left_right(flip, image)
        # the middle may lie at the border, so that some squares are cut off there, as in the paper (arXiv:1708.04552)
        row, column = jax.random.randint(cut, (2,), 0, jnp.asarray(x.shape[1:3])) - HOLE // 2
        below, right = jnp.arange(x.shape[1]) - row, jnp.arange(x.shape[2]) - column
        hole = ((below >= 0) & (below < HOLE))[:, None] & ((right >= 0) & (right < HOLE))
        return jnp.where(hole[..., None], jnp.zeros((), image.dtype), image)

    return jax.vmap(one)(jax.random.split(key, len(x)), x)
