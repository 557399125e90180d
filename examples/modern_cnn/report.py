"""What a run leaves behind: a table, two pictures, and a few lines on the terminal."""

import csv
from pathlib import Path

import matplotlib
import numpy as np
from data import Images
from training import Epoch

matplotlib.use('Agg')  # pictures go into files, so no screen is needed
import matplotlib.pyplot as plt

RIGHT, WRONG = 'tab:green', 'tab:red'


def write_metrics(path: Path, history: list[Epoch]) -> None:
    """One row an epoch."""
    with path.open('w', newline='', encoding='utf-8') as file:
        rows = csv.writer(file)
        rows.writerow(Epoch._fields)
        rows.writerows([row.epoch, *(f'{value:.6g}' for value in row[1:])] for row in history)


def draw_curves(path: Path, history: list[Epoch]) -> None:
    """Loss and accuracy over the epochs, on the training and the held-out images."""
    epochs = [row.epoch for row in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for name, color in ('train', 'tab:blue'), ('test', 'tab:orange'):
        label = 'training images (with dropout)' if name == 'train' else 'held-out images'
        losses = [getattr(row, f'{name}_loss') for row in history]
        accuracies = [100 * getattr(row, f'{name}_accuracy') for row in history]
        left.plot(epochs, losses, color=color, marker='.', label=label)
        right.plot(epochs, accuracies, color=color, marker='.', label=label)
    left.set(title='Loss', xlabel='epoch', ylabel='cross-entropy', yscale='log')
    right.set(title='Accuracy', xlabel='epoch', ylabel='right answers, %')
    for axes in left, right:
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_samples(path: Path, images: Images, probabilities: np.ndarray, rows: int = 3, columns: int = 8) -> None:
    """Held-out images with the answers: the wrong ones first, then the right ones in the order of the set."""
    answers = probabilities.argmax(axis=-1)
    wrong = np.flatnonzero(answers != images.y)[: rows * columns // 2]
    right = np.flatnonzero(answers == images.y)[: rows * columns - len(wrong)]
    figure, grid = plt.subplots(rows, columns, figsize=(1.4 * columns, 1.75 * rows), layout='constrained')
    for axes in grid.flat:
        axes.axis('off')
    for axes, index in zip(grid.flat, np.concatenate([wrong, right]), strict=False):
        answer, truth = answers[index], images.y[index]
        said = f'{answer} ({probabilities[index, answer]:.0%})'
        axes.imshow(images.x[index, ..., 0], cmap='gray_r', vmin=0, vmax=1)
        if answer == truth:
            axes.set_title(said, color=RIGHT, fontsize=10)
        else:
            axes.set_title(f'{said}, is {truth}', color=WRONG, fontsize=10)
    figure.suptitle(f'Held-out digits and the answers: {np.mean(answers == images.y):.1%} of {len(answers)} are right')
    figure.savefig(path, dpi=120)
    plt.close(figure)


def confusion(truth: np.ndarray, answers: np.ndarray) -> str:
    """How often each digit got which answer, and the mistakes in words."""
    table = np.zeros((10, 10), int)
    np.add.at(table, (truth, answers), 1)
    lines = ['digit   answers' + ' ' * 39 + 'right', ' ' * 6 + ''.join(f'{answer:5d}' for answer in range(10))]
    for digit, row in enumerate(table):
        share = f'{row[digit] / row.sum():7.1%}' if row.sum() else '      -'
        lines.append(f'{digit:5d} ' + ''.join(f'{count:5d}' if count else '    ·' for count in row) + share)
    wrong = table - np.diag(np.diag(table))
    mistakes = [
        f'{digit} taken for {answer}: {wrong[digit, answer]}'
        for digit, answer in sorted(np.argwhere(wrong).tolist(), key=lambda pair: -wrong[tuple(pair)])
    ]
    more = f'; and {len(mistakes) - 8} more kinds' if len(mistakes) > 8 else ''
    lines.append('mistakes: ' + ('; '.join(mistakes[:8]) + more if mistakes else 'none'))
    return '\n'.join(lines)
