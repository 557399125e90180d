"""A model that was trained here, from the latest checkpoint of its run."""

import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import checkpoint
import numpy as np
from model import ModernCNN
from options import Problem, Settings
from training import model_for, set_values, values_of


class Trained(NamedTuple):
    """A model with the values that the run evaluates with, and what else is needed to use it."""

    model: ModernCNN
    classes: tuple[str, ...]
    in_size: tuple[int, int, int]  # height, width and channels of an image
    step: int
    settings: Settings


def load(run: Path) -> Trained:
    """The model of a run's latest checkpoint: its averaged weights where the run averages them.

    Raises
    ------
    Problem
        If the folder holds none, none that can be read, or one that is not finite.
    """
    folder = run / 'checkpoints'
    if not folder.is_dir():
        raise Problem(f"RUN_FOLDER must be the output folder of train.py, got '{run}' without a folder checkpoints")
    saved = checkpoint.load(folder)
    for step, why in saved.torn.items():
        print(f'the checkpoint of step {step} can not be read ({why}); step {saved.step} is used', file=sys.stderr)
    known = {field.name for field in dataclasses.fields(Settings)}
    try:
        classes, (height, width, channels) = saved.settings['classes'], saved.settings['in_size']
        history = saved.feed_state['history']
        settings = Settings(**{name: value for name, value in saved.settings.items() if name in known})
    except (KeyError, TypeError, ValueError):
        raise Problem(f"the checkpoint in '{folder}' was not saved by train.py") from None
    model = model_for(settings, len(classes), (height, width, channels))
    part = 'ema' if settings.ema else 'model'
    values = values_of(model)
    wrong = [
        name for name, array in saved.arrays.items() if name.startswith(f'{part}/') and not np.isfinite(array).all()
    ]
    if wrong:
        raise Problem(
            f"the checkpoint of step {saved.step} in '{folder}' holds numbers that are not finite, in {wrong[0]}; "
            'train again with a smaller --learning-rate'
        )
    ended = bool(history) and history[-1][1] == saved.step
    if settings.ema and not ended and any(path.endswith('running_mean') for path in values):
        print(
            f'step {saved.step} is in the middle of an epoch: its averaged weights have the batch statistics of the '
            'others, and get their own at the end of the epoch',
            file=sys.stderr,
        )
    set_values(model, checkpoint.fill({part: values}, saved.arrays)[part])
    return Trained(model, tuple(classes), (height, width, channels), saved.step, settings)
