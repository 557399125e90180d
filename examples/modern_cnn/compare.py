"""Which norm, or which activation, works best here: each choice is trained with several seeds."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from checkpoint import differences
from matplotlib import colormaps
from matplotlib.figure import Figure
from options import ACTIVATING, Problem, Settings, check_settings, say
from report import over_epochs, save_figure, whole
from tqdm import tqdm
from training import Diverged, Epoch

CHOICES = {  # that are compared unless others are named
    'norm': ('batch', 'group', 'layer', 'rms', 'instance', 'none'),
    'activation': ('relu', 'leaky_relu', 'elu', 'gelu', 'silu', 'mish', 'tanh', 'sigmoid'),
}
MEANING = '± is the sample standard deviation over the seeds.'


class Result(NamedTuple):
    """The runs of a choice: the epochs of each seed that came to its end, and why the others did not."""

    name: str
    runs: list[list[Epoch]]
    diverged: list[str]

    @property
    def accuracies(self) -> list[float]:
        """The held-out accuracy at the end of each run, in per cent."""
        return [100 * run[-1].test_accuracy for run in self.runs]

    @property
    def mean(self) -> float:
        """Mean accuracy; nan if no run came to its end."""
        return float(np.mean(self.accuracies)) if self.runs else math.nan

    @property
    def spread(self) -> float:
        """Sample standard deviation of the accuracy; nan for a single run, which says nothing about it."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.runs) > 1 else math.nan


def compare(
    kind: str,
    names: Sequence[str],
    seeds: int,
    settings: Settings,
    folder: Path,
    train: Callable[[Settings], Sequence[Epoch]],
) -> list[Result]:
    """Train each choice with several seeds, draw compare.png, and give the results, the best first.

    Each run is kept in compare.json when it is finished: the same comparison, started again, goes on from there.

    Parameters
    ----------
    kind : 'norm' or 'activation'
        Which of the settings is compared.
    names : sequence of str
        The choices; `CHOICES` if there are none.
    seeds : int
        How many seeds each choice is trained with, from that of the settings on.
    settings : Settings
        All the rest, the same for each choice.
    folder : path
        Where the files go.
    train : callable
        Trains with settings, and returns the epochs; that a run diverged is a result too.

    Raises
    ------
    Problem
        If a choice doesn't go with the settings, or the folder holds another comparison.
    """
    numbers = range(settings.seed, settings.seed + seeds)
    runs = [chosen(settings, kind, name, seed) for name in dict.fromkeys(names or CHOICES[kind]) for seed in numbers]
    for run in runs:
        check_settings(run)  # all of them, before the first is trained
    path, same = folder / 'compare.json', {'compare': kind, **settings.as_dict()}
    for name in 'norm', 'activation', 'seed':  # those of a run are its key
        del same[name]
    done, found = read(path, same), {}
    with tqdm(total=len(runs), unit='run', dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
        for index, run in enumerate(runs, 1):
            name, key = getattr(run, kind), f'{run.norm}, {run.activation}, seed {run.seed}'
            how = 'trained before' if key in done else 'trained'
            if key not in done:
                done[key] = _outcome(run, train)
                with whole(path) as part:
                    part.write_text(json.dumps({'settings': same, 'runs': done}), encoding='utf-8')
            found.setdefault(name, []).append(done[key])
            result = _result(name, [done[key]])
            what = f'{result.mean:.2f}% of the held-out images are right' if result.runs else result.diverged[0]
            bar.update()
            with tqdm.external_write_mode():
                say(f'{index}/{len(runs)} {kind} {name}, seed {run.seed}, {how}: {what}')
    results = [_result(name, these) for name, these in found.items()]
    results.sort(key=lambda result: result.mean if result.runs else -math.inf, reverse=True)
    if any(result.runs for result in results):
        draw(folder / 'compare.png', kind, results)
    return results


def chosen(settings: Settings, kind: str, name: str, seed: int) -> Settings:
    """The settings of one run."""
    change = {kind: name, 'seed': seed}
    if name in ACTIVATING:
        change['activation'] = 'identity'
    return dataclasses.replace(settings, **change)


def _outcome(run: Settings, train: Callable[[Settings], Sequence[Epoch]]) -> dict[str, Any]:
    """What came of a run, as JSON."""
    try:
        return {'epochs': list(train(run))}
    except Diverged as error:
        return {'diverged': str(error)}


def read(path: Path, same: Mapping[str, Any]) -> dict[str, Any]:
    """The runs that were finished before, with these settings."""
    try:
        before = json.loads(path.read_text(encoding='utf-8'))
        there, runs = dict(before['settings']), dict(before['runs'])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(f"'{path}' can not be read as a comparison ({error}); choose another folder") from error
    if other := differences(there, json.loads(json.dumps(same))):
        raise Problem(
            f"'{path}' holds a comparison with other settings: {other}; "
            'go on with the same ones, or choose another folder'
        )
    for key, run in runs.items():
        if not _is_outcome(run, same['epochs']):
            raise Problem(f"'{path}' can not be read as a comparison (what it has of {key!r}); choose another folder")
    return runs


def _is_outcome(run: Any, epochs: int) -> bool:
    """Whether this is what `_outcome` makes."""
    match run:
        case {'diverged': str()}:
            return True
        case {'epochs': list(rows)}:
            numbers = [
                isinstance(row, list)
                and len(row) == len(Epoch._fields)
                and all(isinstance(value, int | float) for value in row)
                for row in rows
            ]
            return len(rows) == epochs and all(numbers)
    return False


def _result(name: str, runs: Sequence[Mapping[str, Any]]) -> Result:
    finished = [[Epoch(*row) for row in run['epochs']] for run in runs if 'epochs' in run]
    return Result(name, finished, [run['diverged'] for run in runs if 'diverged' in run])


def table(kind: str, results: Sequence[Result]) -> str:
    """Accuracy, loss and time of each choice, the best first, and what can be said of the differences."""
    rows = [(kind, 'held-out accuracy', 'from', 'to', 'loss', 'time of a run', 'seeds')]
    for result in results:
        count = str(len(result.runs)) + (f' (and {len(result.diverged)} diverged)' if result.diverged else '')
        if not result.runs:
            rows.append((result.name, '-', '-', '-', '-', '-', count))
            continue
        loss = np.mean([run[-1].test_loss for run in result.runs])
        seconds = np.mean([sum(row.seconds for row in run) for run in result.runs])
        accuracies = result.accuracies
        rows.append(
            (
                result.name,
                f'{result.mean:.2f}{_spread(result)}%',
                f'{min(accuracies):.2f}%',
                f'{max(accuracies):.2f}%',
                f'{loss:.4f}',
                f'{seconds:.1f} s',
                count,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ['  '.join(f'{cell:<{width}}' for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return '\n'.join([*lines, verdict(results)])


def _spread(result: Result) -> str:
    return '' if math.isnan(result.spread) else f' ± {result.spread:.2f}'


def verdict(results: Sequence[Result]) -> str:
    """What can be said of the best choice: what it is ahead of by more than two runs of a choice differ anyway."""
    finished = [result for result in results if result.runs]
    if not finished:
        return 'No run came to its end.'
    best, *others = finished
    if any(math.isnan(result.spread) for result in finished):
        return 'One seed says nothing about the spread, so nothing about the differences: take more --seeds.'
    # the spread of the difference of two runs
    apart = {result.name: math.hypot(best.spread, result.spread) for result in others}
    within = [result.name for result in others if best.mean - result.mean <= apart[result.name]]
    beaten = [result.name for result in others if result.name not in within]
    words = [MEANING]
    if within:
        words.append(f'Between {best.name} and {_list(within)} the difference is within the spread: no winner there.')
    if beaten:
        words.append(f'{best.name} is ahead of {_list(beaten)} by more than the spread.')
    if others and min(len(result.runs) for result in finished) < 5:
        words.append('With so few seeds even that is a hint, no proof.' if beaten else 'More seeds may tell.')
    return '\n'.join(words)


def _list(names: Sequence[str]) -> str:
    return ' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))


def draw(path: Path, kind: str, results: Sequence[Result]) -> None:
    """Held-out accuracy over the epochs, mean and spread; and at the end, a point for each seed."""
    shown = [result for result in results if result.runs]
    figure = Figure((12, max(4.0, 0.38 * len(shown) + 1.5)), layout='constrained', dpi=120)
    over_time, at_end = figure.subplots(1, 2)
    most = 1
    for position, result in enumerate(shown):
        curves = 100 * np.array([[row.test_accuracy for row in run] for run in result.runs])
        epochs, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
        most = max(most, len(epochs))
        color = colormaps['tab10' if len(shown) <= 10 else 'tab20'](position)
        over_time.plot(epochs, mean, color=color, marker='.', label=result.name)
        if len(result.runs) > 1:
            spread = curves.std(axis=0, ddof=1)
            over_time.fill_between(epochs, mean - spread, np.minimum(mean + spread, 100), color=color, alpha=0.15, lw=0)
            at_end.errorbar(result.mean, position, xerr=result.spread, color=color, capsize=4, fmt='|', markersize=14)
        at_end.scatter(result.accuracies, [position] * len(result.runs), color=color, alpha=0.7, s=25, zorder=3)
    over_epochs(over_time, most)
    over_time.set(title='Mean over the seeds ± standard deviation', ylabel='held-out images answered right, %')
    over_time.legend(loc='lower right', fontsize=8, ncols=1 + (len(shown) > 8))
    names = [result.name + (f' ({len(result.diverged)} diverged)' if result.diverged else '') for result in shown]
    at_end.set_yticks(range(len(shown)), names)
    at_end.set(title='At the end: each seed, and mean ± standard deviation', xlabel='held-out images answered right, %')
    at_end.invert_yaxis()
    at_end.set_ylabel(kind)
    at_end.margins(y=0.1)
    at_end.grid(alpha=0.3, axis='x')
    save_figure(figure, path)
