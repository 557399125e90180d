"""What a run shows and leaves behind: bar and lines, metrics.csv, TensorBoard events, pictures and a summary."""

import csv
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from options import Problem, say
from tensorboardX import RecordWriter
from tensorboardX.proto import event_pb2, summary_pb2
from tqdm import tqdm
from training import Epoch, Step

EVENT: Any = event_pb2  # made by a compiler, so that a type checker knows nothing of it
SUMMARY: Any = summary_pb2
RIGHT, WRONG = 'tab:green', 'tab:red'
READABLE = 20  # classes up to which a confusion matrix is written in words and with its percentages


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another path to write to, whose file gets the name when it is complete: no reader ever sees half of it."""
    part = path.with_name(f'.part.{path.name}')
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise Problem(f'can not write {path}: {error.strerror or error}') from error
    finally:
        part.unlink(missing_ok=True)


def write_metrics(path: Path, history: Iterable[Epoch]) -> None:
    """One row an epoch."""
    with whole(path) as part, part.open('w', newline='', encoding='utf-8') as file:
        rows = csv.writer(file)
        rows.writerow(Epoch._fields)
        rows.writerows([f'{value:.6g}' if isinstance(value, float) else value for value in row] for row in history)


class Events:
    """The TensorBoard events of a run.

    tensorboardX's own SummaryWriter writes from a thread, where nobody can say in a sentence that the disk is full.

    Parameters
    ----------
    folder : path
        Made if it isn't there.
    step : int
        After which the run is gone on with: TensorBoard forgets what an interrupted run wrote after it.
    """

    def __init__(self, folder: Path, step: int) -> None:
        # with the step and the process, for another run may have begun in the same second
        name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{step}.{os.getpid()}'
        self._path = folder / name
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter(str(self._path))
        self._write(file_version='brain.Event:2')
        self._write(step=step + 1, session_log=EVENT.SessionLog(status=EVENT.SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """What was seen at a step."""
        shown = [SUMMARY.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=SUMMARY.Summary(value=shown))

    def flush(self) -> None:
        """Let TensorBoard see what there is."""
        with self._told():
            self._file.flush()

    def close(self) -> None:
        """End the file."""
        with self._told():
            self._file.close()

    def _write(self, **parts: Any) -> None:
        with self._told():
            self._file.write(EVENT.Event(wall_time=time.time(), **parts).SerializeToString())

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Problem(f'can not write {self._path}: {error.strerror or error}') from error


class Reporter:
    """Shows a run while it goes on: a bar in a terminal, else a plain line an epoch; and keeps the numbers of it.

    Parameters
    ----------
    folder : path, optional
        Where metrics.csv and the TensorBoard events go; without it nothing is written.
    epochs, steps, batch_size : int
        How many epochs and steps there are, and images a step.
    step : int
        After which the run is gone on with.
    history : iterable of Epoch
        The epochs until there, as they come from a checkpoint: metrics.csv has them and no others.
    quiet : bool
        Show and write nothing, as on all hosts but the first.
    file : file, optional
        Where the bar is drawn if this is a terminal; sys.stderr unless given.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        epochs: int,
        steps: int,
        batch_size: int,
        step: int = 0,
        history: Iterable[Sequence[Any]] = (),
        quiet: bool = False,
        file: TextIO | None = None,
    ) -> None:
        self.epochs, self.batch_size, self.quiet = epochs, batch_size, quiet
        self.history = [Epoch(*row) for row in history]
        self.folder = None if quiet else folder
        stream: Any = file or sys.stderr
        self._bar = tqdm(
            total=steps * batch_size,
            initial=step * batch_size,
            unit='image',
            dynamic_ncols=True,
            file=stream,
            disable=quiet or not stream.isatty(),
        )
        self._events: Events | None = None
        if self.folder is not None:
            write_metrics(self.folder / 'metrics.csv', self.history)
            self._events = Events(self.folder / 'tensorboard', step)

    def __enter__(self) -> 'Reporter':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        if self._events is not None:
            try:
                self._events.close()
            except Problem:
                if kind is None:  # else what ended the run is what the user should read
                    raise

    def step(self, step: Step) -> None:
        """A step was taken."""
        self._bar.set_postfix_str(
            f'loss {step.loss:.3f}, accuracy {step.accuracy:.1%}, learning rate {step.learning_rate:.1e}',
            refresh=False,  # the update draws both, and not more often than an eye can follow
        )
        self._bar.update(self.batch_size)
        if self._events is not None:
            seen = {'loss/step': step.loss, 'accuracy/step': step.accuracy, 'learning_rate/step': step.learning_rate}
            self._events.add(step.step, seen)

    def epoch(self, row: Epoch) -> None:
        """An epoch has ended, and the held-out images are evaluated."""
        self.history.append(row)
        if self.folder is not None:
            write_metrics(self.folder / 'metrics.csv', self.history)
        if self._events is not None:
            seen = {}
            for name, value in zip(Epoch._fields[2:], row[2:], strict=True):
                kind, _, what = name.partition('_')
                seen[f'{what}/{kind}' if kind in ('train', 'test') else name] = value
            self._events.add(row.step, seen)
            self._events.flush()
        left = sum(past.seconds for past in self.history) / len(self.history) * (self.epochs - row.epoch)
        self.say(
            f'epoch {row.epoch:{len(str(self.epochs))}}/{self.epochs}'
            f' · loss {row.train_loss:.4f}, accuracy {row.train_accuracy:.2%}'
            f' · held out: loss {row.test_loss:.4f}, accuracy {row.test_accuracy:.2%}'
            f' · {row.images_per_second:,.0f} images/s' + (f' · {_duration(left)} left' if left else '')
        )
        if row.epoch == self.epochs:
            self._bar.close()  # what is printed from here on has its own lines

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if not self.quiet:
            with tqdm.external_write_mode():
                say(text)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _figure(width: float, height: float) -> Figure:
    """A figure that goes into a file: without pyplot, which keeps every figure and looks for a screen."""
    return Figure((width, height), layout='constrained', dpi=120)


def save_figure(figure: Figure, path: Path) -> None:
    with whole(path) as part:
        figure.savefig(part)


def draw_curves(path: Path, history: Sequence[Epoch]) -> None:
    """Loss, accuracy and learning rate over the epochs."""
    epochs = [row.epoch for row in history]
    figure = _figure(13, 4)
    loss, accuracy, rate = figure.subplots(1, 3)
    for name, color, label in (
        ('train', 'tab:blue', 'training images'),
        ('test', 'tab:orange', 'held-out images'),
    ):
        loss.plot(epochs, [getattr(row, f'{name}_loss') for row in history], color=color, marker='.', label=label)
        percent = [100 * getattr(row, f'{name}_accuracy') for row in history]
        accuracy.plot(epochs, percent, color=color, marker='.', label=label)
    rate.plot(epochs, [row.learning_rate for row in history], color='tab:gray', marker='.')
    loss.set(title='Loss', ylabel='cross-entropy', yscale='log')
    accuracy.set(title='Accuracy', ylabel='right answers, %')
    rate.set(title='Learning rate', ylim=(0, None))
    rate.yaxis.set_major_formatter('{x:.2g}')
    loss.legend(loc='upper right')
    for axes in loss, accuracy, rate:
        over_epochs(axes, len(history))
    save_figure(figure, path)


def over_epochs(axes: Axes, epochs: int) -> None:
    """An axis of whole epochs with a grid."""
    axes.set(xlabel='epoch', xlim=(0.5, epochs + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


def confusion(truth: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """How often each class (row) got which answer (column)."""
    table = np.zeros((classes, classes), int)
    np.add.at(table, (truth, answers), 1)
    return table


def _shares(table: np.ndarray) -> np.ndarray:
    """The rows of a confusion matrix in per cent; nan for a class without images."""
    rows = table.sum(axis=1, keepdims=True)
    return np.divide(100 * table, rows, out=np.full(table.shape, np.nan), where=rows > 0)


def _mistakes(table: np.ndarray) -> list[tuple[int, int, int]]:
    """What was taken for what how often, the most frequent first."""
    wrong = table - np.diag(np.diag(table))
    return sorted(((int(wrong[pair]), *pair) for pair in zip(*np.nonzero(wrong), strict=True)), key=lambda m: -m[0])


def draw_confusion(path: Path, table: np.ndarray, classes: Sequence[str]) -> None:
    """A confusion matrix: right answers in blue, mistakes in red, each with its count.

    The colour is the share of the images of the class; with few classes it is written too.
    """
    many = len(classes) > READABLE
    size = 0.16 if many else 0.75
    longest = max(map(len, classes))
    side = max(3.0, size * len(classes)) + 0.07 * longest
    figure = _figure(side + 2.2, side + 1.2)
    axes = figure.subplots()
    shares, right = _shares(table), np.eye(len(classes), dtype=bool)
    worst = max(1.0, float(np.nanmax(np.where(right | np.isnan(shares), 0, shares))))
    for cells, colors, top, label in (
        (~right & (table > 0), 'Reds', worst, 'mistakes'),
        (right, 'Blues', 100.0, 'right'),
    ):
        picture = axes.imshow(np.ma.array(shares, mask=~cells), cmap=colors, vmin=0, vmax=top)
        figure.colorbar(picture, ax=axes, shrink=0.6, aspect=30, pad=0.01, label=f'{label}, % of the class')
        for row, column in np.argwhere(cells & (table > 0)):
            text = f'{table[row, column]}' if many else f'{table[row, column]}\n{shares[row, column]:.1f}%'
            axes.text(
                column,
                row,
                text,
                ha='center',
                va='center',
                fontsize=4 if many else 9,
                color='white' if shares[row, column] > 0.6 * top else 'black',
            )
    names = {'fontsize': 6 if many else 10, 'parse_math': False}
    axes.set_xticks(range(len(classes)), classes, rotation=90 if longest > 3 else 0, **names)
    axes.set_yticks(range(len(classes)), classes, **names)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(1, len(classes)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(classes)) - 0.5, minor=True)
    axes.grid(which='minor', color='0.9', linewidth=0.4)
    axes.tick_params(which='minor', length=0)
    axes.set(xlabel='answer', ylabel='class')
    total, good = int(table.sum()), int(np.trace(table))
    axes.set_title(f'{good} of {total} held-out images are right ({good / max(total, 1):.2%})')
    save_figure(figure, path)


def draw_samples(
    path: Path,
    x: np.ndarray,
    y: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    rows: int = 4,
    columns: int = 8,
) -> None:
    """Held-out images with the answers: half of them wrong ones, if there are so many, those first, then right ones.

    No cell is empty: of fewer images than there are cells, those are shown that fill rows.
    """
    answers = probabilities.argmax(axis=-1)
    columns = min(columns, len(y))
    rows = min(rows, len(y) // columns)
    cells = rows * columns
    wrong, right = np.flatnonzero(answers != y), np.flatnonzero(answers == y)
    wrong = wrong[: max(cells // 2, cells - len(right))]
    right = right[: cells - len(wrong)]
    figure = _figure(1.5 * columns, 1.9 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis('off')
    for axes, index in zip(grid.flat, np.concatenate([wrong, right]), strict=True):
        answer, truth = int(answers[index]), int(y[index])
        title, color = f'{_short(classes[answer])} ({probabilities[index, answer]:.0%})', RIGHT
        if answer != truth:
            title, color = f'{title}\nis {_short(classes[truth])}', WRONG
        axes.imshow(x[index], cmap='gray', vmin=0)  # a single channel is grey; colours are as they are
        axes.set_title(title, color=color, fontsize=9, parse_math=False)
    good = int(np.sum(answers == y))
    figure.suptitle(f'Held-out images and the answers: {good} of {len(y)} are right ({good / len(y):.2%})')
    save_figure(figure, path)


def _short(name: str, most: int = 14) -> str:
    return name if len(name) <= most else f'{name[: most - 1]}…'


def describe_confusion(table: np.ndarray, classes: Sequence[str], most: int = 8) -> str:
    """How often each class got which answer, where there are few, and the mistakes in words."""
    lines = []
    if len(classes) <= READABLE:
        names = [_short(name, 10) for name in classes]
        widths = [max(4, len(name)) + 1 for name in names]
        margin = max(map(len, names))
        lines.append(' ' * margin + _cells(names, widths) + '   right')
        for name, row, share in zip(names, table, np.diag(_shares(table)), strict=True):
            right = '-' if np.isnan(share) else f'{share:.1f}%'
            lines.append(f'{name:>{margin}}' + _cells([count or '·' for count in row], widths) + f'{right:>8}')
    kinds = _mistakes(table)
    words = [f'{classes[truth]} taken for {classes[answer]}: {count}' for count, truth, answer in kinds[:most]]
    more = f'; and {len(kinds) - most} more kinds' if len(kinds) > most else ''
    lines.append('mistakes: ' + ('; '.join(words) + more if words else 'none'))
    return '\n'.join(lines)


def _cells(cells: Sequence[Any], widths: Sequence[int]) -> str:
    return ''.join(f'{cell:>{width}}' for cell, width in zip(cells, widths, strict=True))


def summary(settings: Mapping[str, Any], history: Sequence[Epoch], parameters: int, devices: str) -> str:
    """The options of a run and what came of it, as a table."""
    last, best = history[-1], max(history, key=lambda row: row.test_accuracy)
    learning = sum(row.seconds for row in history)
    images = sum(row.seconds * row.images_per_second for row in history)
    rows = {
        **{name.replace('_', ' '): value for name, value in settings.items()},
        'parameters': f'{parameters:,}',
        'devices': devices,
        'time of all epochs': f'{_duration(learning)} without the evaluations',
        'images a second': f'{images / learning:,.0f}' if learning else '-',
        'held-out accuracy': f'{last.test_accuracy:.2%} (at best {best.test_accuracy:.2%}, after epoch {best.epoch})',
    }
    width = max(map(len, rows))
    return '\n'.join(f'{name:<{width}}  {value}' for name, value in rows.items())
