"""Train ModernCNN: the command."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from options import (
    COMPARED,
    FILES,
    FOLDERS,
    Options,
    Problem,
    check_folder,
    check_packages,
    check_size,
    parser,
    read,
    say,
)

if TYPE_CHECKING:
    from data import Dataset
    from training import Epoch, Trainer


def check_activation(name: str, option: str = '--activation') -> None:
    """Refuse what is no activation, or changes the shape, with the nearest names."""
    from model import activation_layer

    try:
        activation_layer(name, 2)
    except ValueError as error:
        raise Problem(f'argument {option}: {name!r} can not be used here: {error}') from error


def train(options: Options, dataset: 'Dataset') -> int:
    """Train, report, and give the exit code."""
    from checkpoint import Checkpoints, StopSignals
    from devices import Devices, agree
    from report import Reporter
    from training import Diverged, Epoch, feed_for, fit, total_steps, trainer_for

    settings, devices = options.settings, Devices()
    devices.check(settings.batch_size, settings.accumulate)
    steps = total_steps(settings, dataset.train)
    trainer, history = trainer_for(settings, dataset, devices), []
    feed = feed_for(trainer, dataset)
    shape = {'classes': dataset.classes, 'in_size': dataset.train.x.shape[1:], 'images': len(dataset.train.y)}
    with (
        Checkpoints(
            options.output / 'checkpoints',
            {**settings.as_dict(), **shape},
            every=options.checkpoint_every,
            resume=options.resume,
        ) as checkpoints,
        StopSignals() as stop,
    ):
        if (found := checkpoints.restore(trainer.state())) is not None:
            _, state, position = found
            trainer.load(state)
            feed.set_state(position['feed'])
            history = [Epoch(*row) for row in position['history']]
        agree({'the step to go on from': trainer.step}, 'let them share the --output folder')
        with Reporter(
            options.output,
            epochs=settings.epochs,
            steps=steps,
            batch_size=settings.batch_size,
            step=trainer.step,
            history=history,
            quiet=devices.process_index > 0,
        ) as reporter:
            for note in checkpoints.notes:
                reporter.say(note)
            reporter.say(f'{len(dataset.train.y)} training images, {len(dataset.test.y)} held out; {devices}')
            if trainer.step:
                reporter.say(f'going on after step {trainer.step} of {steps}')
            started = time.perf_counter()
            try:
                fitted = fit(
                    trainer,
                    dataset,
                    watchers=[reporter],
                    feed=feed,
                    history=history,
                    checkpoints=checkpoints,
                    stop=lambda step: stop.requested(step) or (options.steps is not None and step >= options.steps),
                )
            except Diverged as error:
                checkpoints.wait()  # one may still be on its way
                good = checkpoints.latest()
                saved = 'there is no checkpoint' if good is None else f'the checkpoint of step {good} is good'
                print(f'{parser().prog}: {error}; {saved}', file=sys.stderr)
                return 1
            seconds = time.perf_counter() - started
            if trainer.step < steps or fitted.evaluation is None:
                reporter.say(f'stopped after step {trainer.step} of {steps}; go on with --resume')
                return stop.exit_code if stop.received else 0
            if devices.process_index == 0:
                conclude(options.output, trainer, dataset, fitted.history, fitted.evaluation.probabilities, seconds)
    return 0


def conclude(
    folder: Path, trainer: 'Trainer', dataset: 'Dataset', history: 'list[Epoch]', probabilities: Any, seconds: float
) -> None:
    """The pictures and the closing lines."""
    import report

    test, answers = dataset.test, probabilities.argmax(axis=-1)
    table = report.confusion(test.y, answers, len(dataset.classes))
    report.draw_curves(folder / 'curves.png', history)
    report.draw_confusion(folder / 'confusion.png', table, dataset.classes)
    report.draw_samples(folder / 'samples.png', test.x, test.y, probabilities, dataset.classes)
    say(report.summary(trainer.settings.as_dict(), history, trainer.parameters, str(trainer.devices)))
    say(report.describe_confusion(table, dataset.classes))
    right = int((answers == test.y).sum())
    say(f'held-out accuracy {right / len(answers):.2%} ({right} of {len(answers)}), trained in {seconds:.0f} s')
    say(f'written: {", ".join(FILES + FOLDERS)} in {folder}')


def compare(kind: str, options: Options, dataset: 'Dataset') -> int:
    """Train with each choice and several seeds, and say which is best."""
    import compare
    from devices import Devices
    from training import fit, trainer_for

    from jaxnorm import functional

    names = options.names
    if kind == 'activation':
        for name in names:
            check_activation(name, '--compare')
        # 'swish' and 'silu' are one
        names = tuple({functional.get(name): name for name in names}.values())
    devices = Devices()
    if devices.process_count > 1:
        raise Problem(f'argument --compare: must be run on a single host, got {devices.process_count}; take one')
    devices.check(options.settings.batch_size, options.settings.accumulate)
    results = compare.compare(
        kind,
        names,
        options.seeds,
        options.settings,
        options.output,
        lambda settings: fit(trainer_for(settings, dataset, devices), dataset).history,
    )
    say(compare.table(kind, results))
    return 0


def run(options: Options) -> int:
    """Check everything, then train or compare, and give the exit code."""
    check_packages()
    from data import load

    settings = options.settings
    dataset = load(settings.dataset, options.data_dir, settings.limit)
    check_size(settings, len(dataset.train.y))
    check_folder(options.output, *((COMPARED,) if options.compare else (FILES, FOLDERS)))
    # the order of additions on a GPU is free by default, and the same seed would not give the same numbers
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_deterministic_ops=true'.strip()

    # only here, so that --help and wrong options answer at once, and without these packages
    from devices import agree, connect, on_the_first
    from lock import locked

    connect(options)  # before anything is computed
    run = {'checkpoint_every': options.checkpoint_every, 'resume': options.resume, 'steps': options.steps}
    given = {f'--{name.replace("_", "-")}': value for name, value in {**settings.as_dict(), **run}.items()}
    agree({**given, 'the number of images': len(dataset.train.y)})
    check_activation(settings.activation)
    with on_the_first(locked(options.output)):
        return compare(options.compare, options, dataset) if options.compare else train(options, dataset)


def main() -> int:
    """The command."""
    try:
        return run(read())
    except Problem as error:
        parser().error(str(error))
    except KeyboardInterrupt:
        print(f'{parser().prog}: stopped', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())
