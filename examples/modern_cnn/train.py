"""Train ModernCNN on handwritten digits: the command."""

import argparse
import importlib.util
import math
import os
import sys
import tempfile
import time
from pathlib import Path

ALL_IMAGES = 1797
PACKAGES = {  # module -> what to install
    'jaxnorm': 'jaxnorm',
    'optax': 'optax',
    'sklearn': 'scikit-learn',
    'tqdm': 'tqdm',
    'matplotlib': 'matplotlib',
}


def whole(least: int, most: int | None = None):
    """An argparse type: a whole number in a range."""

    def parse(text: str) -> int:
        bounds = f'at least {least}' if most is None else f'between {least} and {most}'
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f'must be a whole number {bounds}, got {text!r}')
        return value

    return parse


def positive(text: str) -> float:
    """An argparse type: a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f'must be a finite number above 0, got {text!r}')
    return value


class Problem(Exception):
    """What the user can put right, in one sentence."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, where argparse puts the usage before it."""

    def error(self, message: str):
        self.exit(2, f'{self.prog}: error: {message} (--help lists all options)\n')


def parser() -> argparse.ArgumentParser:
    """All options of the command."""
    result = Parser(
        prog='train.py',
        description='Train ModernCNN (Conv-BatchNorm-GELU-pool twice, Linear-LayerNorm-GELU-Dropout-Linear) on the '
        '1,797 handwritten digits that come with scikit-learn: 80 %% of them to learn from, 20 %% held out. '
        'Runs on a GPU where jax finds one, else on the CPU.',
        epilog='Into the output folder go metrics.csv (one row an epoch), curves.png (loss and accuracy) and '
        'samples.png (held-out images with the answers, the wrong ones first); files of these names are replaced. '
        'Exit code: 0 when all is written, 2 when an option, the folder or a missing package stands in the way.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add('--epochs', type=whole(1), default=10, metavar='N', help='how often all training images are seen')
    add('--batch-size', type=whole(2), default=64, metavar='N', help='images a step; at most the training images')
    add(
        '--learning-rate',
        type=positive,
        default=1e-3,
        metavar='X',
        help='of AdamW at the start; a cosine takes it to 0',
    )
    add(
        '--seed',
        type=whole(0, 2**32 - 1),
        default=0,
        metavar='N',
        help='of the weights, the dropout and the order of the images; the same seed gives the same numbers on the '
        'same machine. The split into training and held-out images is always the same',
    )
    add('--output', type=Path, default=Path('modern_cnn_run'), metavar='FOLDER', help='made if it is not there')
    add(
        '--width',
        type=whole(1, 1024),
        default=64,
        metavar='N',
        help='channels of the first convolution; the second has 2 N, the hidden layer 4 N. Smaller is faster',
    )
    add(
        '--limit',
        type=whole(100, ALL_IMAGES),
        default=ALL_IMAGES,
        metavar='N',
        help='use the first N images only, for a quick look',
    )
    return result


def check_batch_size(options: argparse.Namespace) -> None:
    """End with a sentence if no batch is full: it depends on two options."""
    most = options.limit - math.ceil(options.limit / 5)
    if options.batch_size > most:
        raise Problem(
            f'argument --batch-size: must be at most {most}, the number of training images, got {options.batch_size}'
        )


def check_packages() -> None:
    """End with a sentence if a package is missing."""
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        names = ', '.join(missing)
        raise Problem(f"this example also needs {names}; install with: pip install 'jaxnorm[examples]'")


def check_folder(folder: Path) -> None:
    """Make the output folder and try to write into it, before minutes are spent on what can't be saved."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name in 'metrics.csv', 'curves.png', 'samples.png':
            target = folder / name
            if target.is_dir() or (target.exists() and not os.access(target, os.W_OK)):
                raise OSError(None, f'its {name} can not be replaced')
    except OSError as error:
        reason = error.strerror or error
        raise Problem(f"argument --output: can not write into '{folder}': {reason}; choose another folder") from None


def run(options: argparse.Namespace) -> None:
    """Check everything, then load, train and report."""
    check_batch_size(options)
    check_packages()
    check_folder(options.output)
    # the order of additions on a GPU is free by default, and the same seed would not give the same numbers
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_deterministic_ops=true'.strip()

    # only here, so that --help and wrong options answer at once, and without these packages
    import jax
    from data import load
    from report import confusion, draw_curves, draw_samples, write_metrics
    from training import fit

    train, test = load(options.limit)
    device = jax.devices()[0]
    print(f'{len(train.y)} training images, {len(test.y)} held out; {device.platform} ({device.device_kind})')
    started = time.perf_counter()
    history, probabilities = fit(
        train,
        test,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        width=options.width,
    )
    seconds = time.perf_counter() - started

    write_metrics(options.output / 'metrics.csv', history)
    draw_curves(options.output / 'curves.png', history)
    draw_samples(options.output / 'samples.png', test, probabilities)
    answers = probabilities.argmax(axis=-1)
    print(confusion(test.y, answers))
    right = int((answers == test.y).sum())
    print(f'held-out accuracy {right / len(answers):.2%} ({right} of {len(answers)}), trained in {seconds:.0f} s')
    print(f'written: metrics.csv, curves.png, samples.png in {options.output}')


def main() -> None:
    """The command."""
    command = parser()
    options = command.parse_args()
    try:
        run(options)
    except Problem as error:
        command.error(str(error))
    except KeyboardInterrupt:
        command.exit(130, f'{command.prog}: stopped; nothing was written\n')


if __name__ == '__main__':
    sys.exit(main())
