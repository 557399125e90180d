"""The training: one compiled step to learn, one to evaluate, and the loop over the epochs."""

import time
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
from data import Images, evaluation_batches, training_batches
from model import ModernCNN
from tqdm import tqdm

import jaxnorm

# 0.99, the layer's default, would still hold a tenth of its initial value after all 220 steps, and evaluate too low
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-2


class Epoch(NamedTuple):
    """One row of metrics.csv; the last two are timings, so they differ from run to run."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    images_per_second: float


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of each image."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


class Trainer:
    """A model, its optimizer, and the two compiled steps."""

    def __init__(self, model: ModernCNN, steps: int, learning_rate: float) -> None:
        self.model = model
        self.weights: Any = model.states(brainstate.ParamState)
        values = self._values()
        self.optimizer = optax.adamw(
            optax.cosine_decay_schedule(learning_rate, steps),
            weight_decay=WEIGHT_DECAY,
            # biases and scales don't decay: pulling a norm's scale to zero only fights the layer after it
            mask=jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'weight', values),
        )
        self.memory = brainstate.LongTermState(self.optimizer.init(values))
        # brainstate's own jit would go on in the phase in which it was first called
        self.train_step = jaxnorm.jit(self._train_step)
        self.evaluate_step = jaxnorm.jit(self._evaluate_step)

    def _values(self) -> dict[Any, Any]:
        return {name: state.value for name, state in self.weights.items()}

    def _train_step(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        def loss() -> tuple[jax.Array, jax.Array]:
            logits = self.model(x)
            return cross_entropy(logits, y).mean(), logits

        # accuracy comes from the logits of this very pass: a second one would count the running statistics twice
        differentiate: Any = brainstate.transform.grad(loss, self.weights, has_aux=True, return_value=True)
        gradients, value, logits = differentiate()
        values = self._values()
        updates, self.memory.value = self.optimizer.update(dict(gradients), self.memory.value, values)
        new: Any = optax.apply_updates(values, updates)
        for name, state in self.weights.items():
            state.value = new[name]
        return value, jnp.mean(jnp.argmax(logits, axis=-1) == y)

    def _evaluate_step(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = self.model(x)
        return cross_entropy(logits, y), jax.nn.softmax(logits)

    def train(self, batch: Images) -> tuple[float, float]:
        """Learn from a batch: its loss and accuracy."""
        with brainstate.environ.context(fit=True):
            loss, accuracy = self.train_step(*batch)
        return float(loss), float(accuracy)

    def evaluate(self, images: Images, batch_size: int) -> tuple[float, np.ndarray]:
        """The mean loss, and the probabilities of the classes for each image."""
        losses, probabilities = [], []
        with brainstate.environ.context(fit=False):
            for batch, counts in evaluation_batches(images, batch_size):
                loss, probability = self.evaluate_step(*batch)
                losses.append(np.asarray(loss)[counts])
                probabilities.append(np.asarray(probability)[counts])
        return float(np.concatenate(losses).mean()), np.concatenate(probabilities)


def fit(
    train: Images, test: Images, *, epochs: int, batch_size: int, learning_rate: float, seed: int, width: int
) -> tuple[list[Epoch], np.ndarray]:
    """Train a new model: what each epoch came to, and the probabilities for the held-out images at the end."""
    brainstate.random.seed(seed)  # weights and dropout
    rng = np.random.default_rng(seed)  # the order of the images
    steps = len(train.y) // batch_size
    trainer = Trainer(ModernCNN(width=width, momentum=MOMENTUM), epochs * steps, learning_rate)
    history: list[Epoch] = []
    probabilities = np.empty(0)
    with tqdm(total=epochs * steps * batch_size, unit='image', dynamic_ncols=True) as bar:
        for epoch in range(1, epochs + 1):
            started, seen = time.perf_counter(), []
            bar.set_description(f'epoch {epoch}/{epochs}')
            for batch in training_batches(train, batch_size, rng):
                seen.append(trainer.train(batch))
                # set before the bar moves on, which draws both at once
                bar.set_postfix(loss=f'{seen[-1][0]:.3f}', accuracy=f'{seen[-1][1]:.1%}', refresh=False)
                bar.update(batch_size)
            seconds = time.perf_counter() - started
            test_loss, probabilities = trainer.evaluate(test, batch_size)
            loss, accuracy = np.mean(seen, axis=0).tolist()
            test_accuracy = float(np.mean(probabilities.argmax(axis=-1) == test.y))
            history.append(
                Epoch(epoch, loss, accuracy, test_loss, test_accuracy, seconds, steps * batch_size / seconds)
            )
            bar.write(
                f'epoch {epoch:3d}: loss {loss:.4f}, accuracy {accuracy:.2%}'
                f' · held out: loss {test_loss:.4f}, accuracy {test_accuracy:.2%}'
            )
    return history, probabilities
