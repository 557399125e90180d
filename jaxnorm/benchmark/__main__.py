"""The command: ``python -m jaxnorm.benchmark norms``, ``… activations``, ``… accuracy`` or ``… modern_cnn``."""

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import _measure, _modern_cnn, _peers
from ._measure import Case, Plan, Row
from ._modern_cnn import Task


def _measured_exactly(shape: tuple[int, ...] | None, dtype: str) -> dict[str, Case]:
    from . import _accuracy, _stability  # only here and in `accuracy`, for it needs mpmath

    activations = _accuracy.cases(_peers.activations(shape, dtype, chained=False), dtype)
    return activations | _peers.norms(shape or _stability.SHAPE, dtype)


BENCHMARKS = {'norms': _peers.norms, 'activations': _peers.activations, 'accuracy': _measured_exactly}
LIBRARIES = ('jax', 'jaxlib', 'brainstate', 'flax', 'equinox', 'dm-haiku', 'keras', 'torch')


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> Any:
        self.exit(2, f'{self.prog}: error: {message} (--help lists all options)\n')


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(','))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f'must be whole numbers from 1 on with commas between, got {text!r}')
    return sizes


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number from 1 on, got {text!r}')
    return int(text)


def parser() -> argparse.ArgumentParser:
    """All options of the command."""
    result = Parser(
        prog='python -m jaxnorm.benchmark',
        description='jaxnorm beside the installed peers. Each peer is timed in turn with jaxnorm (A B B A) over a '
        'chain of layers inside one jit; a ratio is the time of jaxnorm divided by that of the peer, so below 1 '
        'jaxnorm is faster. Its spread is the quartiles of the rounds; the A/A row shows the noise of the machine. '
        'What a peer computes is first compared with the definition in float64. `accuracy` instead measures the worst '
        'errors of activations and of their slopes, in units of the last place, against mpmath, and those of norms '
        'where the mean is large beside the deviation. `modern_cnn` times a whole training step of the example beside '
        'the same network in the peers.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add('benchmark', choices=[*BENCHMARKS, 'modern_cnn'], help='what to measure')
    add('--op', action='append', metavar='NAME', help='only this op; may be repeated')
    add('--peer', action='append', metavar='NAME', help='only this library beside jaxnorm; may be repeated')
    add('--shape', type=_shape, metavar='N,N,…', help='of the input; by default one that suits the op')
    add(
        '--dtype',
        choices=('float32', 'bfloat16', 'float16', 'float64'),
        default='float32',
        help='of the input; float64 for accuracy only',
    )
    add('--phase', choices=_measure.PHASES, help='only this phase')
    add('--chain', type=_count, default=Plan.chain, metavar='N', help='layers in one jit')
    add('--rounds', type=_count, default=Plan.rounds, metavar='N', help='A B B A rounds a peer')
    add('--batch-size', type=_count, default=Task.batch_size, metavar='N', help='images in a step of modern_cnn')
    add('--width', type=_count, default=Task.width, metavar='N', help='channels of the first block of modern_cnn')
    add('--json', action='store_true', help='print JSON in place of tables')
    return result


def chosen(options: argparse.Namespace) -> dict[str, Case]:
    """The cases that were asked for, with the libraries that were."""
    cases = BENCHMARKS[options.benchmark](options.shape, options.dtype)
    found = {op: cases[op] for op in options.op or cases}
    for op, case in found.items():
        keep = {'jaxnorm', *(options.peer or case.candidates)}
        found[op] = replace(case, candidates={n: layer for n, layer in case.candidates.items() if n in keep})
    return found


def accuracy(options: argparse.Namespace, plan: Plan) -> None:
    """Print the worst errors of each library."""
    from . import _accuracy, _stability

    norms = _peers.norms(_stability.SHAPE, options.dtype).keys()
    cases = chosen(options)
    found = [row for op, case in cases.items() if op not in norms for row in _accuracy.of_case(case, plan.say)]
    stable = [row for op, case in cases.items() if op in norms for row in _stability.measure(case, plan.say)]
    if options.json:
        rows = [asdict(row) for row in [*found, *stable]]
        print(json.dumps({'environment': environment(), 'rows': rows}, indent=1))
        return
    if found:
        limit = _accuracy.LIMITS[options.dtype]
        print(f'worst errors in ulp of {options.dtype}, value / slope, against mpmath; jaxnorm promises {limit:g}')
        print(_accuracy.table(found))
        own = [row for row in found if row.library == 'jaxnorm']
        worst = max(own, key=lambda row: max(row.value or 0, row.slope or 0))
        print(f'worst row of jaxnorm: {worst.op}, {worst.value:.2f} / {worst.slope:.2f}')
    if found and stable:
        print()
    if stable:
        promise = f'; jaxnorm promises {_stability.LIMIT:g}' if options.dtype == 'float32' else ''
        print(f'errors of norms in {options.dtype} by mean/std, relative to the largest value, against float64: '
              f'result / gradient by the input{promise}')  # fmt: skip
        print(_stability.table(stable))


def rows(options: argparse.Namespace, plan: Plan) -> Iterator[Row]:
    """All rows that were asked for."""
    for case in chosen(options).values():
        yield from _measure.measure(case, plan)


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    import jax

    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        'python': platform.python_version(),
        'machine': platform.machine(),
        'cores': os.cpu_count(),
        'device': f'{device.platform} ({device.device_kind})',
        'versions': versions,
    }


def _cells(row: Row) -> list[str]:
    def show(value: float | None, text: str) -> str:
        return '' if value is None else format(value, text)

    spread = '' if row.quartiles is None else '{:.2f}–{:.2f}'.format(*row.quartiles)
    temporary = None if row.temporary is None else row.temporary / 2**20
    milliseconds = None if row.seconds is None else row.seconds * 1e3
    numbers = [show(milliseconds, '.2f'), show(row.ratio, '.2f'), spread, show(temporary, '.1f')]
    return [row.library, *numbers, show(row.saved, '.2f'), show(row.error, '.1e'), row.note]


HEADINGS = ['library', 'ms', 'ratio', 'quartiles', 'temp MiB', 'saved', 'error', 'note']


def table(group: Sequence[Row]) -> str:
    """The rows of one case and phase, and who is the fastest of JAX's."""
    cells = [HEADINGS, *(_cells(row) for row in group)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        left = [
            line[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(line[1:-1], widths[1:-1], strict=True)),
            line[-1],
        ]
        lines.append('  '.join(left).rstrip())
    first = group[0]
    lines.insert(0, f'{first.op} {first.shape} {first.dtype}, {first.phase}')
    peers = [r for r in group[2:] if r.ratio is not None and r.library != 'torch' and 'jaxnorm' not in r.library]
    if peers:
        best = max(peers, key=lambda r: r.ratio or 0)  # by the pairs, for the machine drifts from row to row
        lines.append(f'{best.ratio:.2f} of the time of the fastest JAX peer, {best.library}')
    return '\n'.join(lines)


def modern_cnn(command: argparse.ArgumentParser, options: argparse.Namespace, plan: Plan) -> None:
    """Print the training steps of all libraries."""
    for option in 'op', 'shape', 'phase':
        if getattr(options, option) is not None:
            command.error(f'argument --{option}: is not for modern_cnn, which is one network of one shape')
    if options.dtype != 'float32':
        command.error(f'argument --dtype: must be float32 for modern_cnn, got {options.dtype}')
    task, about, found = Task(options.batch_size, options.width), environment(), list[Row]()
    try:
        found += _modern_cnn.measure(task, plan, options.peer)
    except _modern_cnn.MissingError as error:
        command.error(str(error))
    if options.json:
        print(json.dumps({'environment': about, 'plan': {'rounds': plan.rounds}, 'task': asdict(task),
                          'rows': [asdict(row) for row in found]}, indent=1))  # fmt: skip
        return
    _print_environment(about)
    print(f'{plan.rounds} rounds of A B B A, width {task.width}; ratio: time of the step of the example / its own')
    print('error: of loss and gradient of a step without dropout, against float64')
    print(f'\n{table(found)}')


def _print_environment(about: dict[str, Any]) -> None:
    versions = ', '.join(f'{name} {number}' for name, number in about['versions'].items())
    print(f'Python {about["python"]}, {about["cores"]} cores ({about["machine"]}), {about["device"]}; {versions}')


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command = parser()
    options = command.parse_args(arguments)
    if options.benchmark == 'accuracy' and importlib.util.find_spec('mpmath') is None:
        command.error("accuracy is measured against mpmath, which is missing; pip install 'jaxnorm[benchmark]'")
    cnn = options.benchmark == 'modern_cnn'
    known = {} if cnn else BENCHMARKS[options.benchmark](options.shape, options.dtype)
    for op in options.op or ():
        if op not in known and not cnn:
            command.error(f'argument --op: must be one of {", ".join(known)}, got {op!r}')
    peers = _modern_cnn.PEERS if cnn else {name for case in known.values() for name in case.candidates}
    for peer in options.peer or ():
        if peer not in peers:
            command.error(f'argument --peer: must be one of {", ".join(sorted(peers))}, got {peer!r}')

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f'\r{text[:100]:<100}\r', end='', file=sys.stderr, flush=True)

    phases = (options.phase,) if options.phase else _measure.PHASES
    plan = Plan(options.rounds, options.chain, phases, say)
    if cnn:
        modern_cnn(command, options, plan)
        return
    if options.benchmark == 'accuracy':
        accuracy(options, plan)
        return
    if options.dtype == 'float64':
        command.error('argument --dtype: must be float32, bfloat16 or float16 for timings, got float64')
    about = environment()
    found: list[Row] = []
    if not options.json:
        _print_environment(about)
        print(f'{plan.rounds} rounds of A B B A, chains of {plan.chain} in one jit; ratio: time of jaxnorm / its own')
        print('saved: for the backward pass of one layer, in sizes of its input; error: against float64')
    for row in rows(options, plan):
        if not options.json and found and (found[-1].op, found[-1].phase) != (row.op, row.phase):
            print(f'\n{table(found)}', flush=True)
            found.clear()
        found.append(row)
    if options.json:
        print(json.dumps({'environment': about, 'plan': {'rounds': plan.rounds, 'chain': plan.chain},
                          'rows': [asdict(row) for row in found]}, indent=1))  # fmt: skip
    else:
        print(f'\n{table(found)}')


if __name__ == '__main__':
    main()
