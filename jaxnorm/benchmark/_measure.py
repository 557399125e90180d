"""Honest measuring: pairs in turn, medians of ratios, the same work for all, checked before it is timed.

- Two functions are timed in turn, A B B A, so that a drift of the machine meets both alike; a round gives one
  ratio, and the median of many is reported with its quartiles.
- An A/A row times jaxnorm against a second copy of itself: what differs from 1 there is noise.
- A function is one jitted chain of layers, forward or forward and backward, so that dispatch and the allocation of
  fresh outputs don't drown the figure.
- Before it is timed, its results are compared with the definition in float64; what is wrong is not timed.
- A copy of the same bytes is the floor: no implementation can be faster than what it has to read and write.
"""

# Peers are measured where they are installed; type checking does without them.
# pyright: reportMissingImports=false

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PHASES = ('forward', 'forward+backward')
#: how often a layer has to read or write an array of the input's size: x, y; and x, the cotangent, its own cotangent
PASSES = {'forward': 2, 'forward+backward': 5}

Layer = Callable[..., Any]


class AbsentError(Exception):
    """A library that is installed does not have the op: no row."""


@dataclass(frozen=True)
class Case:
    """One line of a benchmark: an op at a shape, what defines it, and who has it.

    `parameters` are the shapes of what a layer takes beside its input; `candidates` map a library to a function of
    no arguments that returns its layer, or raises ImportError where the library is not installed.
    """

    op: str
    shape: tuple[int, ...]
    dtype: str
    definition: Layer
    candidates: dict[str, Callable[[], Layer]]
    parameters: tuple[tuple[int, ...], ...] = ()


@dataclass
class Row:
    """What was found of one library in one phase of a case; times in seconds, ratios are jaxnorm's time by its own."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    phase: str
    library: str
    error: float | None = None
    seconds: float | None = None
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    temporary: int | None = None  # bytes that the compiled chain needs beside arguments and results
    saved: float | None = None  # what one layer keeps for the backward pass, in sizes of its input
    note: str = ''


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    rounds: int = 15
    chain: int = 8
    phases: Sequence[str] = PHASES
    say: Callable[[str], None] = field(default=lambda text: None)


class JaxLayer:
    """A layer of any JAX library, as compiled chains."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def chain(self, phase: str) -> Any:
        def forward(x: Any, parameters: Any) -> Any:
            for p in parameters:
                x = self.layer(x, *p)
            return x

        def loss(x: Any, parameters: Any, cotangent: Any) -> Any:
            return jnp.vdot(forward(x, parameters), cotangent)

        if phase == 'forward':
            return jax.jit(lambda x, parameters, cotangent: forward(x, parameters))
        return jax.jit(jax.grad(loss, (0, 1)))

    def prepare(self, phase: str, arguments: Sequence[Any]) -> tuple[Callable[[], Any], int | None]:
        """(what to time, temporary bytes)."""
        compiled = self.chain(phase).lower(*arguments).compile()
        memory = compiled.memory_analysis()
        return lambda: jax.block_until_ready(compiled(*arguments)), getattr(memory, 'temp_size_in_bytes', None)

    def saved(self, arguments: Sequence[Any]) -> float:
        """What one layer keeps for the backward pass, in sizes of its input, its parameters left out."""
        x, parameters, _ = arguments
        kept = jax.tree.leaves(jax.vjp(self.layer, x, *parameters[0])[1])

        def is_parameter(a: Any) -> bool:
            return any(a.size == p.size and bool((a.ravel() == p.ravel()).all()) for p in parameters[0])

        return sum(a.nbytes for a in kept if hasattr(a, 'nbytes') and not is_parameter(a)) / x.nbytes


class TorchLayer:
    """A layer of PyTorch, eager, on the CPU and with as many threads as it takes by itself."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def prepare(self, phase: str, arguments: Sequence[Any]) -> tuple[Callable[[], Any], int | None]:
        import torch

        backward = phase != 'forward'

        def tensor(a: Any, learned: bool = True) -> Any:
            narrow = a.dtype == jnp.bfloat16  # numpy has none
            t = torch.from_numpy(np.array(a, np.float32) if narrow else np.array(a))
            return (t.bfloat16() if narrow else t).requires_grad_(learned and backward)

        x, cotangent = tensor(arguments[0]), tensor(arguments[2], learned=False)
        parameters = [[tensor(p) for p in layer] for layer in arguments[1]]

        def run() -> Any:
            y = x
            for p in parameters:
                y = self.layer(y, *p)
            if not backward:
                return y
            leaves = [x, *(p for layer in parameters for p in layer)]
            found = iter(torch.autograd.grad(y, leaves, cotangent))
            return next(found), [[next(found) for _ in layer] for layer in parameters]

        return run, None


def as_numpy(result: Any) -> list[np.ndarray]:
    """All arrays of a result in float64."""
    return [np.asarray(a.detach().float() if hasattr(a, 'detach') else a, np.float64) for a in jax.tree.leaves(result)]


def arguments_of(case: Case, chain: int) -> tuple[Any, Any, Any]:
    """(input, parameters of each layer, cotangent) of a case: random, and the same at each call."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(0.5, 1, case.shape), case.dtype)
    parameters = [
        tuple(jnp.asarray(rng.normal(1 - i, 0.2, s), case.dtype) for i, s in enumerate(case.parameters))
        for _ in range(chain)
    ]
    return x, parameters, jnp.asarray(rng.normal(0, 1, case.shape), case.dtype)


def expected(case: Case, phase: str, arguments: Any) -> list[np.ndarray]:
    """What the definition gives in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), arguments)
        return as_numpy(JaxLayer(case.definition).chain(phase)(*wide))


def error_of(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """The largest error, relative to the largest value: of all arrays, for some are zero but for roundings."""
    if [g.shape for g in got] != [w.shape for w in wanted]:
        return float('inf')
    errors = [np.max(np.abs(g - w)) for g, w in zip(got, wanted, strict=True)]
    return float(np.max(errors) / max(np.max(np.abs(w)) for w in wanted))  # nan if there is one


def allowed(dtype: str, chain: int) -> float:
    """From where on a result is wrong and not merely rounded: a hundred roundings in each layer."""
    return min(100 * chain * float(jnp.finfo(dtype).eps) / 2, 0.1)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def paired(a: Callable[[], Any], b: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    """(ratios of a's time by b's, one a round; times of b), in the order A B B A, without the garbage collector."""
    a()
    b()
    ratios, times = [], []
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            a1, b1, b2, a2 = seconds(a), seconds(b), seconds(b), seconds(a)
            ratios.append((a1 + a2) / (b1 + b2))
            times += [b1, b2]
    finally:
        if collecting:
            gc.enable()
    return ratios, times


def floor(case: Case, phase: str, chain: int) -> Callable[[], Any]:
    """A copy of the bytes that a chain has to read and write at least."""
    x = arguments_of(case, 0)[0]
    passes = PASSES[phase] * chain // 2  # a copy is one read and one write
    copies = jax.jit(lambda x: jax.lax.fori_loop(0, passes, lambda i, x: -x, x))
    return lambda: copies(x).block_until_ready()


def measure(case: Case, plan: Plan) -> Iterator[Row]:
    """All rows of a case: jaxnorm against itself, the floor, and each peer."""
    arguments = arguments_of(case, plan.chain)
    for phase in plan.phases:
        wanted = expected(case, phase, arguments)

        def row(library: str, phase: str = phase) -> Row:
            plan.say(f'{case.op} {case.shape} {case.dtype} {phase}: {library}')
            return Row(case.op, case.shape, case.dtype, phase, library)

        def time_against_ours(ours: Any, theirs: Any, into: Row) -> Row:
            ratios, times = paired(ours, theirs, plan.rounds)
            into.seconds, into.ratio = statistics.median(times), statistics.median(ratios)
            lower, upper = np.quantile(ratios, [0.25, 0.75])
            into.quartiles = (float(lower), float(upper))
            return into

        ours = None
        for library, factory in case.candidates.items():
            found = row(library)
            try:
                layer = factory()
            except AbsentError:
                continue
            except ImportError as error:
                found.note = f'not installed ({error.name or error})'
                yield found
                continue
            kind = TorchLayer if library == 'torch' else JaxLayer
            try:
                run, found.temporary = kind(layer).prepare(phase, arguments)
                found.error = error_of(as_numpy(run()), wanted)
                if kind is JaxLayer and phase != 'forward':
                    found.saved = JaxLayer(layer).saved(arguments)
            except Exception as error:  # a peer that fails, in whatever way, is a line of the table and not its end
                if library == 'jaxnorm':
                    raise
                found.note = f'fails: {type(error).__name__}'
                yield found
                continue
            if not found.error <= allowed(case.dtype, plan.chain):
                found.note = 'wrong, so not timed'
                yield found
                if ours is None:
                    break  # nothing to hold the others against
            elif ours is None:
                ours = run
                again, _ = kind(layer).prepare(phase, arguments)
                found.note = 'A/A: against a copy of itself'
                yield time_against_ours(ours, again, found)
                yield time_against_ours(ours, floor(case, phase, plan.chain), row('copy of the same bytes'))
            else:
                yield time_against_ours(ours, run, found)
