"""The training: one compiled step to learn, one to evaluate, and the loop over the epochs.

A third is compiled where averaged weights need batch statistics of their own.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimizer
from data import Dataset, Images
from devices import Devices
from feed import augment, evaluation_batches, steps_until, to_float, training_feed
from model import ModernCNN
from options import Problem, Settings

import jaxnorm

# 0.99, the layer's default, would still hold a tenth of its initial value after all steps on the digits
MOMENTUM = 0.9
RECALIBRATION_IMAGES = 8192  # that the statistics of averaged weights are taken from: plenty for a mean and a variance

ADVICE = 'try a smaller --learning-rate, a --warmup or --clip, or look at the images'

NOTHING_SEEN = {'loss': np.float32(0), 'right': np.float32(0), 'images': np.float32(0)}

Values = dict[str, Any]  # the values of states, by the path of the state: 'bn1/running_mean'


class Diverged(Exception):
    """A loss, the gradient or what came of it is no longer finite: at which step, and in which layer it began."""


class Step(NamedTuple):
    """What a training step came to."""

    step: int
    loss: float
    accuracy: float
    learning_rate: float


class Epoch(NamedTuple):
    """One row of metrics.csv; the last two are timings, so they differ from run to run."""

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    learning_rate: float
    seconds: float
    images_per_second: float


class Evaluation(NamedTuple):
    """The mean loss, and the probabilities of the classes for each image."""

    loss: float
    probabilities: np.ndarray


def model_for(settings: Settings, classes: int, in_size: Sequence[int]) -> ModernCNN:
    """The model of a run, with new weights."""
    brainstate.random.seed(settings.seed)
    height, width, channels = in_size
    return ModernCNN(
        classes,
        width=settings.width,
        norm=settings.norm,
        activation=settings.activation,
        dropout=settings.dropout,
        momentum=MOMENTUM,
        in_size=(height, width, channels),
    )


def states_of(model: Any, kind: type[brainstate.State] = brainstate.State) -> dict[str, brainstate.State]:
    """The states of a model of a kind, by their paths: 'bn1/running_mean'."""
    found: Any = brainstate.graph.states(model, kind)
    return {'/'.join(map(str, path)): state for path, state in found.items()}


def values_of(model: Any, kind: type[brainstate.State] = brainstate.State) -> Values:
    """The values of these states."""
    return {path: state.value for path, state in states_of(model, kind).items()}


def set_values(model: Any, values: Values) -> None:
    """Give states of a model these values; the others keep theirs."""
    states = states_of(model)
    for path, value in values.items():
        states[path].value = value


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """The loss of each image, in float32 whatever the logits are."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def all_finite(*trees: Any) -> jax.Array:
    """Whether no array holds a nan or an infinity."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trees)]))


class Trainer:
    """A model, its optimizer, and the compiled steps.

    All that changes in a run is one tree of arrays, `state()`. The steps are pure functions of it: the memory of the
    old state becomes that of the new one, and what was saved and loaded goes on as if nothing had happened.

    Parameters
    ----------
    settings : Settings
        What decides the numbers.
    classes : int
        How many there are.
    in_size : sequence of int
        Height, width and channels of an image.
    steps : int
        After how many the learning rate is 0.
    flips : bool
        Whether augmentation mirrors images.
    devices : Devices, optional
        By default all there are.

    Raises
    ------
    Problem
        If the batch does not divide, or the warm-up is longer than the run.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        classes: int,
        in_size: Sequence[int],
        steps: int,
        flips: bool = False,
        devices: Devices | None = None,
    ) -> None:
        if settings.warmup >= steps:
            raise Problem(f'argument --warmup: must be below the {steps} steps of the run, got {settings.warmup}')
        self.settings = settings
        self.flips = flips
        self.devices = devices or Devices()
        self.devices.check(settings.batch_size, settings.accumulate)
        self.schedule: Any = optimizer.schedule(settings, steps)
        self.optimizer = optimizer.make(settings, steps)

        self.model = model_for(settings, classes, in_size)
        self._structure, states = brainstate.graph.treefy_split(self.model)
        self._shapes = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), states)
        self._weights = list(states_of(self.model, brainstate.ParamState))
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._weights_in(values_of(self.model))))
        self._averages = any(path.endswith('running_mean') for path in states_of(self.model))
        values = values_of(self.model)
        self._state = self.devices.replicate(
            {
                'model': values,
                'optimizer': self.optimizer.init(self._weights_in(values)),
                'ema': values if settings.ema else {},
                'key': jax.random.key_data(jax.random.key(settings.seed)),
                'step': np.int32(0),
                'epoch': NOTHING_SEEN,
                'sound': np.True_,
            }
        )
        self.step = 0
        self._begun: list[tuple[Images, dict[str, jax.Array]]] = []  # steps that the device may be at work on
        # brainstate's own jit would go on in the phase in which it was first called
        self.train_step = jaxnorm.jit(self._train_step, donate_argnums=0)
        self.evaluate_step = jaxnorm.jit(self._evaluate_step)
        self._recalibration_step = jaxnorm.jit(lambda x: self.model(self._as_input(x)))

    def state(self) -> dict[str, Any]:
        """All there is to save, as arrays: once training goes on, their memory is used for others."""
        for batch, seen in self._begun:
            self._check(batch, seen)
        return self._state

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._state, self.step, self._begun = state, int(state['step']), []

    def train(self, batch: Images) -> Step | None:
        """Begin to learn from this host's part of a batch, and tell what the step before came to.

        The device has the next step to do while this one is looked at, so that it never waits.

        Raises
        ------
        Diverged
            If the step before came to something that is not finite. Nothing has been learned from it, or after it.
        """
        x, y = self.devices.shard(batch)
        # the step sets a key of its own; the one outside goes in and comes out of every jit of brainstate's, and would
        # come back as another kind of array than it was at first, for which the step would be compiled again
        with brainstate.random.seed_context(0):
            self._state, seen = self.train_step(self._state, x, y)
        self._begun.append((batch, seen))
        return self._finished() if len(self._begun) > 1 else None

    def finish(self) -> Step | None:
        """Wait for the last step, and tell what it came to."""
        return self._finished() if self._begun else None

    def epoch_means(self) -> tuple[float, float]:
        """Mean loss and accuracy of the training images since this was last asked for."""
        seen = {name: float(value) for name, value in self.state()['epoch'].items()}
        self._state['epoch'] = self.devices.replicate(NOTHING_SEEN)
        return seen['loss'] / seen['images'], seen['right'] / seen['images']

    def recalibrate(self, images: Images) -> None:
        """Give averaged weights the batch statistics that belong to them: those of training images."""
        if not (self.settings.ema and self._averages):
            return
        size = self.settings.batch_size
        count = min(len(images.y), RECALIBRATION_IMAGES) // size * size
        set_values(self.model, self._in_precision(self.state()['ema']))
        batches = (x for x, _, _ in self._batches(Images(images.x[:count], images.y[:count])))
        jaxnorm.nn.recalibrate(self.model, batches, apply=self._recalibration_step)
        statistics = values_of(self.model, brainstate.BatchState)
        self._state['ema'] = {**self._state['ema'], **self.devices.replicate(statistics)}

    def evaluate(self, images: Images) -> Evaluation:
        """Loss and probabilities of images, by the averaged weights if there are some; `recalibrate` first."""
        state = self.state()
        losses, probabilities = [], []
        for x, y, counts in self._batches(images):
            loss, probability = self.evaluate_step(state['ema'] or state['model'], x, y)
            losses.append(np.asarray(loss)[counts])
            probabilities.append(np.asarray(probability)[counts])
        return Evaluation(float(np.concatenate(losses).mean(dtype=np.float64)), np.concatenate(probabilities))

    def _batches(self, images: Images) -> Iterator[tuple[jax.Array, jax.Array, np.ndarray]]:
        """All images, in batches over all hosts, and which of each batch count."""
        size, rows = self.settings.batch_size, len(images.y)
        devices = self.devices
        parts = evaluation_batches(images, size, devices.process_index, devices.process_count)
        for start, (part, _) in zip(range(0, rows, size), parts, strict=True):
            x, y = devices.shard(part)
            yield x, y, np.arange(start, start + size) < rows

    # the two steps, and what they are made of

    def _train_step(self, state: dict[str, Any], x: jax.Array, y: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state after a batch, and what it came to. Where that is not finite, the state stays as it was."""
        x, key = self._augmented(state, x)
        model = self._with_values(state['model'])
        with brainstate.environ.context(fit=True), brainstate.random.seed_context(key):
            gradients, loss, right = self._gradients(model, x, y)

        weights = self._weights_in(state['model'])
        updates, memory = self.optimizer.update(gradients, state['optimizer'], weights)
        learned: Any = optax.apply_updates(weights, updates)
        values = values_of(model) | learned
        # the norm, for AdamW and --clip square the gradient; and a finite one can still be too large for a weight
        finite = {
            'gradient': all_finite(loss, optax.tree.norm(gradients)),
            'values': {path: all_finite(value) for path, value in values.items()},
        }
        sound = jnp.all(jnp.stack([state['sound'], *jax.tree.leaves(finite)]))
        count = state['step'] + 1
        new = {
            'model': values,
            'optimizer': memory,
            'ema': self._averaged(state['ema'], values, count),
            'key': state['key'],
            'step': count,
            'epoch': jax.tree.map(
                jnp.add, state['epoch'], {'loss': loss * len(y), 'right': right, 'images': jnp.float32(len(y))}
            ),
            'sound': sound,
        }
        kept = jax.tree.map(lambda after, before: jnp.where(sound, after, before), new, state) | {'sound': sound}
        seen = {
            'loss': loss,
            'accuracy': right / len(y),
            'learning_rate': self.schedule(state['step']),
            'sound': sound,
            'finite': finite,
        }
        return jax.lax.with_sharding_constraint((kept, seen), self.devices.everywhere)

    def _evaluate_step(self, values: Values, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The loss and the probabilities of each image."""
        with brainstate.environ.context(fit=False):
            logits = self._with_values(values)(self._as_input(x))
        result = cross_entropy(logits, y), jax.nn.softmax(logits.astype(jnp.float32))
        return jax.lax.with_sharding_constraint(result, self.devices.everywhere)

    def _with_values(self, values: Values) -> Any:
        """The model with these values, in the precision that it computes in; its states are new ones."""
        model = brainstate.graph.treefy_merge(self._structure, self._shapes)
        set_values(model, self._in_precision(values))
        return model

    def _in_precision(self, values: Values) -> Values:
        """Weights in the dtype that the model computes in. Statistics stay as they are."""
        dtype = self.settings.precision
        return values | jax.tree.map(lambda weight: weight.astype(dtype), self._weights_in(values))

    def _weights_in(self, values: Values) -> Values:
        return {path: values[path] for path in self._weights}

    def _as_input(self, x: jax.Array) -> jax.Array:
        """Pixels as the model takes them."""
        return to_float(x).astype(self.settings.precision)

    def _augmented(self, state: dict[str, Any], x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The input of the model, and the key of its dropout. Both depend on the step, not on the devices."""
        ours, models = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(state['key']), state['step']))
        x = augment(ours, x, self.flips) if self.settings.augment else x
        return self._as_input(x), models

    def _gradients(self, model: Any, x: jax.Array, y: jax.Array) -> tuple[Values, jax.Array, jax.Array]:
        """Gradients in float32, the mean loss, and how many answers are right, of a batch or its micro-batches."""
        states = states_of(model, brainstate.ParamState)

        def loss(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = model(x)
            # accuracy comes from this very pass: a second one would count the running statistics twice
            right = jnp.sum(jnp.argmax(logits, axis=-1) == y).astype(jnp.float32)
            return cross_entropy(logits, y, self.settings.label_smoothing).mean(), right

        differentiate: Any = brainstate.transform.grad(loss, states, has_aux=True, return_value=True)

        def micro(total: Any, batch: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            gradients, value, right = differentiate(*batch)
            # in float32: the sum of many small numbers is what bfloat16 is worst at
            found = {path: gradients[path] for path in states}, value, right
            return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, found), None

        parts = self.settings.accumulate
        zeros = jax.tree.map(
            lambda weight: jnp.zeros(weight.shape, jnp.float32), values_of(model, brainstate.ParamState)
        )
        start = zeros, jnp.float32(0), jnp.float32(0)
        if parts == 1:
            return micro(start, (x, y))[0]
        # each micro-batch takes every so many images, so that each device has its share of all of them
        batches = jax.tree.map(lambda v: v.reshape(-1, parts, *v.shape[1:]).swapaxes(0, 1), (x, y))
        with jaxnorm.nn.accumulate_statistics(model) if self._averages else contextlib.nullcontext():
            scan: Any = brainstate.transform.scan
            (gradients, value, right), _ = scan(micro, start, batches)
        return *jax.tree.map(lambda total: total / parts, (gradients, value)), right

    def _averaged(self, old: Values, new: Values, step: jax.Array) -> Values:
        """The moving average of the weights, of shorter memory at first, when there is little worth remembering."""
        if not old:
            return {}
        keep = jnp.minimum(self.settings.ema, (1 + step) / (10 + step))
        weights = jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, self._weights_in(old), self._weights_in(new))
        return new | weights

    # when something is no longer finite

    def _finished(self) -> Step:
        batch, seen = self._begun[0]
        self._check(batch, seen)
        del self._begun[0]
        self.step += 1
        return Step(self.step, *(float(seen[name]) for name in ('loss', 'accuracy', 'learning_rate')))

    def _check(self, batch: Images, seen: dict[str, Any]) -> None:
        if not seen['sound']:
            loss, finite = float(seen['loss']), seen['finite']
            what = 'the gradient is no longer finite' if np.isfinite(loss) else f'the loss is {loss}'
            if finite['gradient']:
                what = 'what was learned is no longer finite'
                where = f'in {next(path for path, fine in finite["values"].items() if not fine)}'
            else:
                where = self._beginning(batch)
            raise Diverged(f'{what} at step {self.step + 1}: it began {where}; {ADVICE}')

    def _beginning(self, batch: Images) -> str:
        """In which layer the first value that is not finite comes up. The state is still that before the batch."""
        state = jax.tree.map(np.asarray, self._state)
        x, key = self._augmented(state, jnp.asarray(batch.x))
        model = self._with_values(state['model'])
        layers = {name: layer for name, layer in vars(model).items() if isinstance(layer, brainstate.nn.Module)}
        outputs: dict[str, jax.Array] = {}
        offsets: dict[str, brainstate.State] = {}
        for name, layer in layers.items():
            setattr(model, name, _watched(name, layer, outputs, offsets))

        def loss() -> jax.Array:
            return cross_entropy(model(x), jnp.asarray(batch.y), self.settings.label_smoothing).mean()

        with brainstate.environ.context(fit=True):
            with brainstate.random.seed_context(key):
                value = loss()
            for name, output in outputs.items():
                if not all_finite(output):
                    return f'in the output of {name}'
            if not jnp.isfinite(value):
                return 'in the loss itself'
            offsets |= {name: brainstate.ParamState(jnp.zeros_like(output)) for name, output in outputs.items()}
            with brainstate.random.seed_context(key):
                differentiate: Any = brainstate.transform.grad(loss, offsets)
                gradients = differentiate()
        for name in reversed(outputs):
            if not all_finite(gradients[name]):
                return f'in the gradient by the output of {name}'
        return 'in the gradient of the weights, or in the part of another host'


def _watched(
    name: str, layer: Callable[..., Any], outputs: dict[str, Any], offsets: dict[str, Any]
) -> Callable[..., Any]:
    """A layer whose output is noted, and moved by an offset by which can be differentiated."""

    def watched(*inputs: Any) -> Any:
        output = layer(*inputs)
        if name in offsets:
            return output + offsets[name].value
        outputs[name] = output
        return output

    return watched


class Watcher(Protocol):
    """What is told how the training goes."""

    def step(self, step: Step) -> None:
        """A step is done."""

    def epoch(self, row: Epoch) -> None:
        """An epoch is done, and the held-out images are evaluated."""


class Checkpointer(Protocol):
    """What `fit` needs of checkpoints."""

    def due(self, step: int) -> bool: ...

    def save(self, step: int, arrays: Any, feed_state: Any, wait: bool = False) -> None: ...


class Fitted(NamedTuple):
    """What a training came to: a row for each epoch, and the last evaluation, None if it was stopped before one."""

    history: list[Epoch]
    evaluation: Evaluation | None


def total_steps(settings: Settings, images: Images) -> int:
    """How many steps the epochs take."""
    return steps_until(settings.epochs, len(images.y), settings.batch_size)


def trainer_for(settings: Settings, dataset: Dataset, devices: Devices | None = None) -> Trainer:
    """A new trainer for a data set."""
    return Trainer(
        settings,
        classes=len(dataset.classes),
        in_size=dataset.train.x.shape[1:],
        steps=total_steps(settings, dataset.train),
        flips=dataset.flips,
        devices=devices,
    )


def feed_for(trainer: Trainer, dataset: Dataset) -> Any:
    """This host's part of the batches to learn from."""
    settings, devices = trainer.settings, trainer.devices
    return training_feed(
        dataset.train, settings.batch_size, settings.seed, devices.process_index, devices.process_count
    )


def fit(
    trainer: Trainer,
    dataset: Dataset,
    *,
    watchers: Sequence[Watcher] = (),
    feed: Any = None,
    history: Sequence[Epoch] = (),
    checkpoints: Checkpointer | None = None,
    stop: Callable[[int], bool] = lambda step: False,
) -> Fitted:
    """Train to the end of the epochs, from wherever the trainer is.

    Parameters
    ----------
    trainer : Trainer
        Where it is says where to begin.
    dataset : Dataset
        The images.
    watchers : sequence of Watcher
        Who is told.
    feed : iterator, optional
        The batches, at the position that belongs to the trainer; by default those of a new run.
    history : sequence of Epoch
        The rows of the epochs before.
    checkpoints : Checkpointer, optional
        Where to save: whenever it is due, and at the end.
    stop : callable
        Asked after each step whether to end there, also after that which is gone on from.

    Raises
    ------
    Diverged
        If a step or the loss of the held-out images is not finite.
    """
    settings, images = trainer.settings, len(dataset.train.y)
    feed = feed_for(trainer, dataset) if feed is None else feed
    rows, evaluation, started, first = list(history), None, time.perf_counter(), trainer.step

    def tell(step: Step | None) -> None:
        if step is not None:
            for watcher in watchers:
                watcher.step(step)

    def save(step: int, wait: bool) -> None:
        tell(trainer.finish())
        if checkpoints is not None:
            position = {'feed': feed.get_state(), 'history': rows}
            checkpoints.save(step, trainer.state(), position, wait=wait)

    last = steps_until(settings.epochs, images, settings.batch_size)
    if 0 < trainer.step < last and stop(trainer.step):
        return Fitted(rows, None)
    for step in range(trainer.step + 1, last + 1):
        tell(trainer.train(next(feed)))
        epoch = len(rows) + 1
        if step == steps_until(epoch, images, settings.batch_size):
            tell(trainer.finish())
            seconds, seen = time.perf_counter() - started, (step - first) * settings.batch_size
            loss, accuracy = trainer.epoch_means()
            trainer.recalibrate(dataset.train)
            evaluation = trainer.evaluate(dataset.test)
            if not np.isfinite(evaluation.loss):
                raise Diverged(f'the loss of the held-out images is {evaluation.loss} after step {step}; {ADVICE}')
            right = float(np.mean(evaluation.probabilities.argmax(axis=-1) == dataset.test.y))
            rate = float(trainer.schedule(step - 1))
            rows.append(Epoch(epoch, step, loss, accuracy, evaluation.loss, right, rate, seconds, seen / seconds))
            for watcher in watchers:
                watcher.epoch(rows[-1])
            started, first = time.perf_counter(), step
        stopped = stop(step)
        if stopped or step == last:
            save(step, wait=True)
            break
        if checkpoints is not None and checkpoints.due(step):
            save(step, wait=False)
    if evaluation is None and trainer.step == last:  # it was gone on with at its end
        evaluation = trainer.evaluate(dataset.test)
    return Fitted(rows, evaluation)
