"""A whole training step of the ModernCNN example beside the same network in other libraries.

Ours are the example's own step, with all that it does beside learning, and its network in the step that all JAX
libraries get here: forward, backward, AdamW and the running statistics, compiled, the old state's memory used again.
Before it is timed, one step without dropout is compared with a plain definition in float64: its loss, and its gradient,
which the first moments of AdamW hold.
"""

# Peers are measured where they are installed; type checking does without them.
# pyright: reportMissingImports=false

import contextlib
import importlib
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from . import _measure
from ._measure import Plan, Row

EXAMPLE = Path(__file__).parents[2] / 'examples' / 'modern_cnn'
PIXELS, CLASSES = 32, 10
RATE, DECAY, KEEP = 1e-3, 1e-2, 0.9  # of learning, of the weights, and what running statistics keep
FIRST = 0.1  # the share of a gradient in AdamW's first moments after a step
EPSILON, ROW_EPSILON = 1e-5, 1e-6  # of batch norms and of the layer norm
#: from where on a loss or a gradient of ours is wrong and not merely rounded, and one of a peer: there one pixel of a
#: million that is chosen otherwise moves most of the gradient of the layers before it by some 5e-4; see `error_of`
OUR_LIMIT, LIMIT = 1e-5, 2e-3

Arrays = dict[str, Any]
#: (weights, statistics, images, key) -> (logits, statistics)
Network = Callable[[Arrays, Arrays, Any, Any], tuple[Any, Arrays]]


class MissingError(Exception):
    """What the benchmark needs is not there: one sentence."""


@dataclass(frozen=True)
class Task:
    """What all have to do."""

    batch_size: int = 128
    width: int = 64
    dropout: float = 0.5

    @property
    def channels(self) -> tuple[int, int, int]:
        """Of the first block, the second, and the hidden layer."""
        return self.width, 2 * self.width, 4 * self.width

    def weights(self) -> Arrays:
        """New ones, in the layout of jax: (height, width, in, out)."""
        one, two, hidden = self.channels
        flat = (PIXELS // 4) ** 2 * two
        rng = np.random.default_rng(0)

        def matrix(*shape: int) -> Any:
            return rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape).astype(np.float32)

        return {
            'conv1': matrix(3, 3, 3, one), 'scale1': np.ones(one, np.float32), 'bias1': np.zeros(one, np.float32),
            'conv2': matrix(3, 3, one, two), 'scale2': np.ones(two, np.float32), 'bias2': np.zeros(two, np.float32),
            'fc1': matrix(flat, hidden), 'offset1': np.zeros(hidden, np.float32),
            'scale3': np.ones(hidden, np.float32), 'bias3': np.zeros(hidden, np.float32),
            'fc2': matrix(hidden, CLASSES), 'offset2': np.zeros(CLASSES, np.float32),
        }  # fmt: skip

    def statistics(self) -> Arrays:
        sizes = enumerate(self.channels[:2], 1)
        return {f'{n}{i}': np.full(c, v, np.float32) for i, c in sizes for n, v in (('mean', 0), ('var', 1))}

    def batch(self) -> tuple[Any, Any]:
        """Pixels and labels."""
        rng = np.random.default_rng(1)
        x = rng.integers(0, 256, (self.batch_size, PIXELS, PIXELS, 3), np.uint8)
        return x, rng.integers(0, CLASSES, self.batch_size, np.int32)


class Learner(NamedTuple):
    """One library's step: a call learns once from the same batch and returns the loss, when all of it is done."""

    step: Callable[[], float]
    gradient: Callable[[], Arrays]  # what the first moments came to, after the first step
    temporary: int | None = None


# --- the step that all JAX libraries get ---


def cross_entropy(logits: Any, labels: Any) -> Any:
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _learner(network: Network, task: Task) -> Learner:
    import optax

    rule = optax.adamw(RATE, weight_decay=DECAY)

    def learn(state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        weights, seen, memory, key = state
        key, now = jax.random.split(key)
        x = x.astype(jnp.float32) / 255

        def loss(weights: Arrays) -> tuple[Any, Arrays]:
            logits, after = network(weights, seen, x, now)
            return cross_entropy(logits, y), after

        (value, seen), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
        updates, memory = rule.update(gradient, memory, weights)
        return (optax.apply_updates(weights, updates), seen, memory, key), value

    weights = jax.tree.map(jnp.asarray, task.weights())
    start = weights, jax.tree.map(jnp.asarray, task.statistics()), rule.init(weights), jax.random.key(0)
    return _compiled(learn, start, task, lambda state: jax.tree.map(np.asarray, optax.tree.get(state, 'mu')))


def _compiled(learn: Any, start: Any, task: Task, moments: Callable[[Any], Arrays]) -> Learner:
    """The learner of a function (state, x, y) -> (state, loss), or of one that can be lowered as if it were jitted."""
    batch = [jnp.asarray(a) for a in task.batch()]
    jitted = learn if hasattr(learn, 'lower') else jax.jit(learn, donate_argnums=0)
    analysis = jitted.lower(start, *batch).compile().memory_analysis()
    state = [start]

    def step() -> float:
        state[0], loss = jitted(state[0], *batch)
        jax.block_until_ready(state[0])
        return float(loss['loss'] if isinstance(loss, dict) else loss)

    def gradient() -> Arrays:
        return {name: moment / FIRST for name, moment in moments(state[0]).items()}

    return Learner(step, gradient, getattr(analysis, 'temp_size_in_bytes', None))


# --- the example ---


@contextlib.contextmanager
def _example() -> Iterator[Callable[[str], Any]]:
    """Imports the example's files as its command does, and forgets them: the names are too common to stay."""
    if not (EXAMPLE / 'model.py').is_file():
        raise MissingError(f'modern_cnn is measured in a checkout, where {EXAMPLE} holds the example; clone jaxnorm')
    before = set(sys.modules)
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield importlib.import_module
    except ImportError as error:
        raise MissingError(
            f"the example needs {error.name}, which is missing; pip install 'jaxnorm[examples]'"
        ) from None
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], '__file__', None) or '.').parent == EXAMPLE:
                del sys.modules[name]


#: where brainstate's modules keep what is called so here
_PLACES = {
    'conv1/weight': {'weight': 'conv1'}, 'bn1/weight': {'scale': 'scale1', 'bias': 'bias1'},
    'conv2/weight': {'weight': 'conv2'}, 'bn2/weight': {'scale': 'scale2', 'bias': 'bias2'},
    'fc1/weight': {'weight': 'fc1', 'bias': 'offset1'}, 'ln/weight': {'scale': 'scale3', 'bias': 'bias3'},
    'fc2/weight': {'weight': 'fc2', 'bias': 'offset2'},
    'bn1/running_mean': 'mean1', 'bn1/running_var': 'var1', 'bn2/running_mean': 'mean2', 'bn2/running_var': 'var2',
}  # fmt: skip


def _placed(values: Arrays, like: Arrays) -> Arrays:
    """Our arrays as values of states, in their shapes."""

    def place(name: Any, old: Any) -> Any:
        return (
            {k: place(n, old[k]) for k, n in name.items()}
            if isinstance(name, dict)
            else values[name].reshape(old.shape)
        )

    return {path: place(name, like[path]) for path, name in _PLACES.items()}


def _named(states: Arrays) -> Arrays:
    """What `_placed` placed, by our names."""
    found: Arrays = {}
    for path, value in states.items():
        name = _PLACES[path]
        found |= {n: value[k] for k, n in name.items()} if isinstance(name, dict) else {name: value}
    return found


def _example_step(task: Task) -> Learner:
    import optax

    with _example() as load:
        settings = load('options').Settings(
            batch_size=task.batch_size,
            width=task.width,
            dropout=task.dropout,
            learning_rate=RATE,
            weight_decay=DECAY,
            augment=False,  # which no peer does
        )
        trainer = load('training').Trainer(settings, classes=CLASSES, in_size=(PIXELS, PIXELS, 3), steps=10**6)
    state = trainer.state()
    state['model'] |= _placed(jax.tree.map(jnp.asarray, task.weights() | task.statistics()), state['model'])
    return _compiled(
        trainer.train_step,
        state,
        task,
        lambda s: _named(jax.tree.map(np.asarray, optax.tree.get(s['optimizer'], 'mu'))),
    )


def _brainstate_network(make: Callable[[], Any]) -> Network:
    """A module of brainstate as a function of the values of its states."""
    import brainstate

    graph, states = brainstate.graph.treefy_split(make())

    def network(weights: Arrays, seen: Arrays, x: Any, key: Any) -> tuple[Any, Arrays]:
        model: Any = brainstate.graph.treefy_merge(graph, states)
        found = {'/'.join(map(str, path)): state for path, state in cast(Any, brainstate.graph.states(model)).items()}
        for path, value in _placed(weights | seen, {path: state.value for path, state in found.items()}).items():
            found[path].value = value
        model.key = key
        with brainstate.environ.context(fit=True):
            logits = model(x)
        after = _named({path: state.value for path, state in found.items()})
        return logits, {name: after[name].reshape(old.shape) for name, old in seen.items()}

    return network


def _dropped(x: Any, key: Any, rate: float) -> Any:
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def _ours(task: Task) -> Learner:
    with _example() as load:
        of = load('model').ModernCNN

    class Network(of):
        def update(self, x: Any) -> Any:
            self.dropout = lambda x: _dropped(x, self.key, task.dropout)  # no random state in a bare `jax.jit`
            return super().update(x)

    return _learner(_brainstate_network(lambda: Network(CLASSES, width=task.width, momentum=KEEP)), task)


# --- the peers: the same network, written as their users would ---


def _conv(x: Any, weight: Any) -> Any:
    return jax.lax.conv_general_dilated(x, weight, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _pool(x: Any) -> Any:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')


def _standardized(x: Any, axes: Any, epsilon: float) -> tuple[Any, Any, Any]:
    mean, var = x.mean(axes), x.var(axes)
    if axes == -1:
        return (x - mean[:, None]) / jnp.sqrt(var[:, None] + epsilon), mean, var
    return (x - mean) / jnp.sqrt(var + epsilon), mean, var


def _definition(dropout: float) -> Network:
    def network(w: Arrays, seen: Arrays, x: Any, key: Any) -> tuple[Any, Arrays]:
        after = {}
        for i in '12':
            h, mean, var = _standardized(_conv(x, w[f'conv{i}']), (0, 1, 2), EPSILON)
            x = _pool(jax.nn.gelu(h * w[f'scale{i}'] + w[f'bias{i}'], approximate=False))
            for name, value in ('mean', mean), ('var', var):
                after[name + i] = KEEP * seen[name + i] + (1 - KEEP) * value
        h, _, _ = _standardized(x.reshape(len(x), -1) @ w['fc1'] + w['offset1'], -1, ROW_EPSILON)
        h = jax.nn.gelu(h * w['scale3'] + w['bias3'], approximate=False)
        return _dropped(h, key, dropout) @ w['fc2'] + w['offset2'], after

    return network


def _brainstate(task: Task) -> Learner:
    from brainstate import nn

    one, two, hidden = task.channels

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            half, quarter = PIXELS // 2, PIXELS // 4
            self.conv1 = nn.Conv2d((PIXELS, PIXELS, 3), one, (3, 3))
            self.bn1 = nn.BatchNorm2d((PIXELS, PIXELS, one), momentum=KEEP)
            self.conv2 = nn.Conv2d((half, half, one), two, (3, 3))
            self.bn2 = nn.BatchNorm2d((half, half, two), momentum=KEEP)
            self.pool = nn.MaxPool2d(2, 2, channel_axis=-1)
            self.fc1 = nn.Linear(quarter * quarter * two, hidden)
            self.ln = nn.LayerNorm((hidden,))
            self.fc2 = nn.Linear(hidden, CLASSES)

        def update(self, x: Any) -> Any:
            def gelu(x: Any) -> Any:
                return nn.gelu(x, approximate=False)

            x = self.pool(gelu(self.bn1(self.conv1(x))))
            x = self.pool(gelu(self.bn2(self.conv2(x))))
            x = gelu(self.ln(self.fc1(x.reshape(len(x), -1))))
            return self.fc2(_dropped(x, cast(Any, self).key, task.dropout))

    return _learner(_brainstate_network(Network), task)


def _flax(task: Task) -> Learner:
    from flax import nnx

    one, two, hidden = task.channels
    rngs = nnx.Rngs(0)
    layers = {
        'conv1': nnx.Conv(3, one, (3, 3), use_bias=False, rngs=rngs),
        'conv2': nnx.Conv(one, two, (3, 3), use_bias=False, rngs=rngs),
        'bn1': nnx.BatchNorm(one, momentum=KEEP, epsilon=EPSILON, use_running_average=False, rngs=rngs),
        'bn2': nnx.BatchNorm(two, momentum=KEEP, epsilon=EPSILON, use_running_average=False, rngs=rngs),
        'fc1': nnx.Linear((PIXELS // 4) ** 2 * two, hidden, rngs=rngs),
        'ln': nnx.LayerNorm(hidden, epsilon=ROW_EPSILON, rngs=rngs),
        'fc2': nnx.Linear(hidden, CLASSES, rngs=rngs),
    }
    parts = {name: nnx.split(layer) for name, layer in layers.items()}

    def gelu(x: Any) -> Any:
        return nnx.gelu(x, approximate=False)

    def network(w: Arrays, seen: Arrays, x: Any, key: Any) -> tuple[Any, Arrays]:
        m: Any = {name: nnx.merge(graph, jax.tree.map(jnp.asarray, state)) for name, (graph, state) in parts.items()}
        places = {
            'conv1': (m['conv1'], 'kernel'), 'scale1': (m['bn1'], 'scale'), 'bias1': (m['bn1'], 'bias'),
            'conv2': (m['conv2'], 'kernel'), 'scale2': (m['bn2'], 'scale'), 'bias2': (m['bn2'], 'bias'),
            'fc1': (m['fc1'], 'kernel'), 'offset1': (m['fc1'], 'bias'), 'scale3': (m['ln'], 'scale'),
            'bias3': (m['ln'], 'bias'), 'fc2': (m['fc2'], 'kernel'), 'offset2': (m['fc2'], 'bias'),
            'mean1': (m['bn1'], 'mean'), 'var1': (m['bn1'], 'var'),
            'mean2': (m['bn2'], 'mean'), 'var2': (m['bn2'], 'var'),
        }  # fmt: skip
        for name, value in (w | seen).items():
            layer, attribute = places[name]
            getattr(layer, attribute)[...] = value
        for i in '12':
            x = nnx.max_pool(gelu(m[f'bn{i}'](m[f'conv{i}'](x))), (2, 2), (2, 2))
        x = gelu(m['ln'](m['fc1'](x.reshape(len(x), -1))))
        x = nnx.Dropout(task.dropout, deterministic=False)(x, rngs=nnx.Rngs(key))
        return m['fc2'](x), {name: getattr(*places[name])[...] for name in seen}

    return _learner(network, task)


def _haiku(task: Task) -> Learner:
    import haiku as hk

    one, two, hidden = task.channels

    def forward(x: Any) -> Any:
        def norm(i: str) -> Any:
            return hk.BatchNorm(True, True, KEEP, EPSILON, name='bn' + i)

        def gelu(x: Any) -> Any:
            return jax.nn.gelu(x, approximate=False)

        for i, channels in ('1', one), ('2', two):
            x = gelu(norm(i)(hk.Conv2D(channels, 3, with_bias=False, name='conv' + i)(x), True))
            x = hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')
        x = hk.Linear(hidden, name='fc1')(x.reshape(len(x), -1))
        x = gelu(hk.LayerNorm(-1, True, True, ROW_EPSILON, name='ln')(x))
        x = hk.dropout(hk.next_rng_key(), task.dropout, x)
        return hk.Linear(CLASSES, name='fc2')(x)

    transformed = hk.transform_with_state(forward)
    image = jnp.zeros((2, PIXELS, PIXELS, 3))
    _, state = transformed.init(jax.random.key(0), image)

    def row(a: Any) -> Any:
        return a.reshape(1, 1, 1, -1)

    def network(w: Arrays, seen: Arrays, x: Any, key: Any) -> tuple[Any, Arrays]:
        weights = {
            'conv1': {'w': w['conv1']}, 'bn1': {'scale': row(w['scale1']), 'offset': row(w['bias1'])},
            'conv2': {'w': w['conv2']}, 'bn2': {'scale': row(w['scale2']), 'offset': row(w['bias2'])},
            'fc1': {'w': w['fc1'], 'b': w['offset1']}, 'ln': {'scale': w['scale3'], 'offset': w['bias3']},
            'fc2': {'w': w['fc2'], 'b': w['offset2']},
        }  # fmt: skip
        kept = {module: dict(values) for module, values in state.items()}
        places = {f'{n}{i}': f'bn{i}/~/{n}_ema' for i in '12' for n in ('mean', 'var')}
        for name, place in places.items():
            shape = kept[place]['average'].shape
            kept[place] |= {'hidden': seen[name].reshape(shape), 'average': seen[name].reshape(shape)}
        logits, after = transformed.apply(weights, kept, key, x)
        return logits, {n: after[place]['hidden'].reshape(seen[n].shape) for n, place in places.items()}

    return _learner(network, task)


def _torch(task: Task) -> Learner:
    """Eager, on the CPU, channels last, with as many threads as it takes by itself."""
    import torch
    from torch import nn

    one, two, hidden = task.channels
    w = task.weights()
    layers = {
        'conv1': nn.Conv2d(3, one, 3, padding=1, bias=False), 'bn1': nn.BatchNorm2d(one, EPSILON, 1 - KEEP),
        'gelu1': nn.GELU(), 'pool1': nn.MaxPool2d(2),
        'conv2': nn.Conv2d(one, two, 3, padding=1, bias=False), 'bn2': nn.BatchNorm2d(two, EPSILON, 1 - KEEP),
        'gelu2': nn.GELU(), 'pool2': nn.MaxPool2d(2), 'flat': nn.Flatten(),
        'fc1': nn.Linear((PIXELS // 4) ** 2 * two, hidden), 'ln': nn.LayerNorm(hidden, ROW_EPSILON),
        'gelu3': nn.GELU(), 'dropout': nn.Dropout(task.dropout), 'fc2': nn.Linear(hidden, CLASSES),
    }  # fmt: skip
    model = cast(Any, nn.Sequential(*layers.values())).to(memory_format=torch.channels_last)
    names = {
        'conv1': 'conv1.weight', 'scale1': 'bn1.weight', 'bias1': 'bn1.bias', 'conv2': 'conv2.weight',
        'scale2': 'bn2.weight', 'bias2': 'bn2.bias', 'fc1': 'fc1.weight', 'offset1': 'fc1.bias',
        'scale3': 'ln.weight', 'bias3': 'ln.bias', 'fc2': 'fc2.weight', 'offset2': 'fc2.bias',
    }  # fmt: skip
    parameters = {name: layers[p.split('.')[0]].get_parameter(p.split('.')[1]) for name, p in names.items()}

    def turned(name: str, a: Any, back: bool = False) -> Any:
        """Torch's layout: out, in, height, width; and what it flattens has the channels in front."""
        if name == 'fc1':
            size, side = (hidden, PIXELS // 4), two
            shape = (size[0], side, size[1], size[1]) if back else (size[1], size[1], side, size[0])
            a = a.reshape(shape).transpose((2, 3, 1, 0) if back else (3, 2, 0, 1))
            return a.reshape(-1, hidden) if back else a.reshape(hidden, -1)
        return a.transpose((2, 3, 1, 0) if back else (3, 2, 0, 1)) if a.ndim == 4 else a.T

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(turned(name, w[name]))))
    rule = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    pixels, labels = task.batch()
    x, y = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels).long()

    def step() -> float:
        rule.zero_grad()
        loss = nn.functional.cross_entropy(model(x.float() / 255), y)
        loss.backward()
        rule.step()
        return float(loss.detach())

    def gradient() -> Arrays:
        return {n: turned(n, rule.state[p]['exp_avg'].numpy(), back=True) / FIRST for n, p in parameters.items()}

    return Learner(step, gradient)


LEARNERS: dict[str, Callable[[Task], Learner]] = {
    'jaxnorm': _example_step,
    'jaxnorm, step of the peers': _ours,
    'jax, as defined': lambda task: _learner(_definition(task.dropout), task),
    'flax': _flax,
    'brainstate': _brainstate,
    'haiku': _haiku,
    'torch': _torch,
}


PEERS = [library for library in LEARNERS if not library.startswith('jaxnorm')]


def expected(task: Task) -> tuple[float, Arrays]:
    """Loss and gradient without dropout, in float64."""
    with jax.enable_x64(True):
        weights, seen = (
            jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), t) for t in (task.weights(), task.statistics())
        )
        x, y = (jnp.asarray(a) for a in task.batch())

        def loss(weights: Arrays) -> Any:
            network = _definition(0.0)
            return cross_entropy(network(weights, seen, x.astype(jnp.float64) / 255, jax.random.key(0))[0], y)

        value, gradient = jax.jit(jax.value_and_grad(loss))(weights)
        return float(value), jax.tree.map(np.asarray, gradient)


def error_of(learner: Learner, wanted: tuple[float, Arrays]) -> float:
    """The error of the first step's loss, or the median error in an array of its gradient, whichever is largest.

    Relative to the largest value of the array. The median, for the gradient of a maximum jumps: of two pixels that are
    equal but for roundings either may get it, which moves the gradient of a channel by a percent.
    """
    loss, gradient = wanted
    found = [abs(learner.step() / loss - 1)]
    got = learner.gradient()
    found += [np.median(abs(got[name].reshape(e.shape) - e)) / abs(e).max() for name, e in gradient.items()]
    return float(np.max(found))  # nan if there is one


def measure(task: Task, plan: Plan, peers: list[str] | None = None) -> Iterator[Row]:
    """All rows: the example's step against itself, its network in the step of the peers, and each peer."""
    exact = Task(task.batch_size, task.width, 0.0)
    wanted = expected(exact)
    shape = (task.batch_size, PIXELS, PIXELS, 3)
    ours: Any = None
    for library, factory in LEARNERS.items():
        if peers and library in PEERS and library not in peers:
            continue
        plan.say(f'modern_cnn {shape} float32: {library}')
        row = Row('modern_cnn', shape, 'float32', 'training step', library)
        try:
            row.error = error_of(factory(exact), wanted)
            learner = factory(task)
        except MissingError:
            raise
        except ImportError as error:
            row.note = f'not installed ({error.name or error})'
            yield row
            continue
        except Exception as error:  # a peer that fails, in whatever way, is a line of the table and not its end
            if library not in PEERS:
                raise
            row.note = f'fails: {type(error).__name__}'
            yield row
            continue
        row.temporary = learner.temporary
        if not row.error <= (LIMIT if ours else OUR_LIMIT):
            row.note = 'wrong, so not timed'
            yield row
            if ours is None:
                return  # nothing to hold the others against
            continue
        if ours is None:
            ours, learner = learner.step, factory(task)
            row.note = 'A/A: the step of the example against a copy of itself'
        ratios, times = _measure.paired(ours, learner.step, plan.rounds)
        row.seconds, row.ratio = statistics.median(times), statistics.median(ratios)
        lower, upper = np.quantile(ratios, [0.25, 0.75])
        row.quartiles = (float(lower), float(upper))
        yield row
