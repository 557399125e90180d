"""Errors of norms where the mean is large beside the deviation, against their definition in float64."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import _measure
from ._measure import AbsentError, Case

#: mean / standard deviation
RATIOS = (1e0, 1e2, 1e4, 1e6)
#: what jaxnorm promises in float32, relative to the largest value
LIMIT = 2e-7
SHAPE = (4, 16, 16, 64)


@dataclass
class Stability:
    """The errors of one library's norm: of the result and of the gradient by the input, one of each a ratio."""

    op: str
    dtype: str
    library: str
    errors: list[tuple[float, float]] = field(default_factory=list)
    note: str = ''


def measure(case: Case, say: Callable[[str], None]) -> Iterator[Stability]:
    """The rows of a norm: each library that has it."""
    inputs = []
    for ratio in RATIOS:
        x, parameters, cotangent = _measure.arguments_of(case, 1)
        arguments = (x + np.asarray(ratio, x.dtype), parameters, cotangent)
        inputs.append((arguments, [_measure.expected(case, phase, arguments)[:1] for phase in _measure.PHASES]))
    for library, factory in case.candidates.items():
        say(f'{case.op} {case.dtype}: {library}')
        row = Stability(case.op, case.dtype, library)
        try:
            layer = factory()
        except AbsentError:
            continue
        except ImportError as error:
            row.note = f'not installed ({error.name or error})'
            yield row
            continue
        kind = _measure.TorchLayer if library == 'torch' else _measure.JaxLayer
        try:
            for arguments, wanted in inputs:
                found = [
                    _measure.error_of(_measure.as_numpy(kind(layer).prepare(phase, arguments)[0]())[:1], exact)
                    for phase, exact in zip(_measure.PHASES, wanted, strict=True)
                ]
                row.errors.append((found[0], found[1]))
        except Exception as error:  # a peer that fails, in whatever way, is a line of the table and not its end
            if library == 'jaxnorm':
                raise
            row.note = f'fails: {type(error).__name__}'
        yield row


def table(rows: Sequence[Stability]) -> str:
    """A line a norm and library, a column a ratio."""
    cells = [['norm', 'library', *(f'{ratio:g}' for ratio in RATIOS)]]
    for row in rows:
        numbers = [f'{value:.1e} / {slope:.1e}' for value, slope in row.errors] if not row.note else [row.note]
        cells.append([row.op, row.library, *numbers, *[''] * (len(RATIOS) - len(numbers))])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return '\n'.join('  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)
