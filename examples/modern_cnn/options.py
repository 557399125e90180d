"""The options of the training command: what they are, and every check that needs neither jax nor the data."""

import argparse
import dataclasses
import difflib
import importlib.util
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

DATASETS = ('digits', 'cifar10', 'cifar100', 'synthetic')
NORMS = (
    'batch', 'ghost', 'batch_renorm', 'group', 'layer', 'rms', 'instance', 'filter_response', 'evonorm_b0',
    'evonorm_s0', 'dynamic_tanh', 'local_response', 'none',
)  # fmt: skip
ACTIVATING = ('filter_response', 'evonorm_b0', 'evonorm_s0')  # norms that were made to need no activation after them
ALL_DIGITS = 1797
SMALLEST = 100  # images that --limit leaves, so that each of ten classes is there; of CIFAR-100's not all are
MOST_SYNTHETIC = 100_000  # images that are made up at most: 300 MB
MOST_STEPS = 2**31 - 1  # they are counted in an int32
VIRTUAL_BATCH = 16  # images that a ghost batch norm takes together
FILES = ('metrics.csv', 'curves.png', 'confusion.png', 'samples.png')  # in the output folder, at the end
FOLDERS = ('tensorboard', 'checkpoints')  # beside them
COMPARED = ('compare.json', 'compare.png')  # in the output folder of a comparison
PACKAGES = {  # module -> what to install
    'jaxnorm': 'jaxnorm',
    'optax': 'optax',
    'orbax.checkpoint': 'orbax-checkpoint',
    'grain': 'grain',
    'dm_pix': 'dm-pix',
    'sklearn': 'scikit-learn',
    'PIL': 'pillow',
    'tqdm': 'tqdm',
    'matplotlib': 'matplotlib',
    'tensorboardX': 'tensorboardX',
}


class Problem(Exception):
    """What the user can put right, in one sentence: the command ends with exit code 2."""


def say(text: str) -> None:
    """Print a line. Where nobody reads any more, as behind `| head`, the program goes on without a word."""
    try:
        print(text, flush=True)  # a log that is followed shows it now
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides the numbers of a run. A checkpoint that was made with other settings is not gone on from."""

    dataset: str = 'digits'
    limit: int | None = None  # how many images of the data set; None is all
    norm: str = 'batch'
    activation: str = 'gelu'
    width: int = 64
    dropout: float = 0.5  # the rate to drop
    epochs: int = 10
    batch_size: int = 64
    accumulate: int = 1  # micro-batches that a batch is made of
    optimizer: str = 'adamw'
    learning_rate: float = 1e-3
    warmup: int = 0  # steps
    weight_decay: float = 1e-2
    clip: float | None = None  # the largest norm of the gradient
    label_smoothing: float = 0.0
    ema: float = 0.0  # the share that averaged weights keep at each step; 0 is no average
    augment: bool = True
    precision: str = 'float32'
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to do with the settings: where to read and write, when to stop, on which machines."""

    settings: Settings
    output: Path
    data_dir: Path | None
    checkpoint_every: int
    resume: bool
    steps: int | None
    compare: str | None
    names: tuple[str, ...]
    seeds: int
    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    timeout: int


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
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


def number(words: str, allowed: Callable[[float], bool]) -> Callable[[str], float]:
    """An argparse type: a finite number of which something holds, which the words say."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and allowed(value)):
            raise argparse.ArgumentTypeError(f'must be a finite number {words}, got {text!r}')
        return value

    return parse


def plain(name: str) -> str:
    """A name as it is listed: case and hyphens do not count."""
    return name.lower().replace('-', '_')


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """An argparse type: a name of a list, with the nearest ones where it is none of them."""

    def parse(text: str) -> str:
        name = plain(text)
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            raise argparse.ArgumentTypeError(
                f'must be one of {", ".join(names)}, got {text!r}' + (f'; {near[0]!r} is the nearest' if near else '')
            )
        return name

    return parse


above_0 = number('above 0', lambda value: value > 0)
at_least_0 = number('of at least 0', lambda value: value >= 0)
below_1 = number('from 0 to below 1', lambda value: 0 <= value < 1)


def address(text: str) -> str:
    """An argparse type: a host and a port."""
    host, _, port = text.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise argparse.ArgumentTypeError(f'must be HOST:PORT, for example 10.0.0.1:1234, got {text!r}')
    return text


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, where argparse puts the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message} (--help lists all options)\n')


def parser() -> argparse.ArgumentParser:
    """All options of the command. Those of the settings have their defaults from `Settings`."""
    result = Parser(
        prog='train.py',
        description='Train ModernCNN (convolution-norm-activation-pool twice, linear-LayerNorm-activation-dropout-'
        'linear): on the 1,797 handwritten digits that come with scikit-learn, or on CIFAR from files. Runs on all '
        'GPUs or TPUs that jax finds, else on the CPU.',
        epilog='Into the output folder go metrics.csv (one row an epoch), TensorBoard events, checkpoints, and at the '
        'end curves.png, confusion.png and samples.png. Exit code: 0 when all is written; 1 when the loss became '
        'nan or infinite; 2 when an option, a file, a folder, a missing package or a missing host stands in the way; '
        '130 or 143 when it was stopped by Ctrl-C or SIGTERM, after a checkpoint.',
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=100),
        allow_abbrev=False,
    )
    defaults = Settings()

    def add(to: Any, name: str, help: str, **options: Any) -> None:
        default = getattr(defaults, name[2:].replace('-', '_'), options.pop('default', None))
        if default not in (None, False):
            help += f' (default: {"on" if default is True else default})'
        to.add_argument(name, default=default, help=help, **options)

    data = result.add_argument_group('data')
    add(data, '--dataset', f'{", ".join(DATASETS)}', type=one_of(DATASETS), metavar='NAME')
    add(data, '--data-dir', 'where the files of CIFAR are; nothing is downloaded', type=Path, metavar='FOLDER')
    add(data, '--limit', 'use this many images only, for a quick look', type=whole(SMALLEST), metavar='N')
    add(
        data,
        '--augment',
        'whether to change the training images at random: moved, a square put out, and mirrored where that keeps the '
        'class',
        action=argparse.BooleanOptionalAction,
    )

    model = result.add_argument_group('model')
    add(model, '--norm', f'after the convolutions: {", ".join(NORMS)}', type=one_of(NORMS), metavar='NAME')
    model.add_argument(
        '--activation',
        type=plain,
        metavar='NAME',
        help='any activation of jaxnorm that keeps the shape: relu, silu, mish, prelu, … (default: gelu; identity '
        f'with {", ".join(ACTIVATING)}, which need none)',
    )
    add(
        model,
        '--width',
        'channels of the first convolution; the second has 2 N, the hidden layer 4 N',
        type=whole(1, 4096),
        metavar='N',
    )
    add(model, '--dropout', 'the rate to drop before the last layer', type=below_1, metavar='X')

    training = result.add_argument_group('training')
    add(training, '--epochs', 'how often all training images are seen', type=whole(1), metavar='N')
    add(training, '--batch-size', 'images a step, over all devices', type=whole(2), metavar='N')
    add(
        training,
        '--accumulate',
        'compute each batch as this many micro-batches, one after the other, to save memory',
        type=whole(1),
        metavar='N',
    )
    add(
        training,
        '--optimizer',
        'adamw, or sgd with Nesterov momentum 0.9',
        type=one_of(('adamw', 'sgd')),
        metavar='NAME',
    )
    add(training, '--learning-rate', 'at its highest; a cosine takes it to 0', type=above_0, metavar='X')
    add(training, '--warmup', 'steps in which the learning rate rises to that', type=whole(0), metavar='N')
    add(
        training,
        '--weight-decay',
        'of the weights; norms, biases and activations do not decay',
        type=at_least_0,
        metavar='X',
    )
    add(training, '--clip', 'scale gradients with a larger norm down to this', type=above_0, metavar='X')
    add(training, '--label-smoothing', 'share of a label that goes to all classes alike', type=below_1, metavar='X')
    add(
        training,
        '--ema',
        'evaluate with a moving average of the weights that keeps this share at each step, 0.999 for example, and '
        'with batch statistics recalibrated for it; 0 is off',
        type=below_1,
        metavar='X',
    )
    add(
        training,
        '--precision',
        'float32, or bfloat16 for activations and gradients; weights, statistics, loss and optimizer stay float32',
        type=one_of(('float32', 'bfloat16')),
        metavar='NAME',
    )
    add(
        training,
        '--seed',
        'of weights, dropout, augmentation and the order of the images; the same seed gives the same numbers on the '
        'same machine. Which images are held out is always the same',
        type=whole(0, 2**32 - 1),
        metavar='N',
    )

    run = result.add_argument_group('run')
    add(run, '--output', 'made if it is not there', type=Path, default=Path('modern_cnn_run'), metavar='FOLDER')
    add(
        run,
        '--checkpoint-every',
        'save all that is needed to go on, each N steps; 0 is only at the end and when the run is stopped',
        type=whole(0),
        default=0,
        metavar='N',
    )
    add(run, '--resume', 'go on from the last checkpoint in the output folder', action='store_true', default=False)
    add(run, '--steps', 'stop after this step, as if the run were stopped from outside', type=whole(1), metavar='N')
    add(
        run,
        '--compare',
        'train with each norm or each activation of those named, by default a selection, with several seeds each, and '
        'draw mean and spread',
        nargs='+',
        metavar=('norm|activation', 'NAME'),
    )
    add(run, '--seeds', 'how many seeds each choice is compared with', type=whole(1, 100), default=3, metavar='N')

    hosts = result.add_argument_group(
        'several hosts',
        'the same command on each; under Slurm, Open MPI or Kubernetes (indexed Job or JobSet) jax finds these itself',
    )
    add(hosts, '--coordinator', 'address of the first host, and a free port on it', type=address, metavar='HOST:PORT')
    add(hosts, '--num-processes', 'how many hosts there are', type=whole(1, 10**6), metavar='N')
    add(hosts, '--process-id', 'which one this is, from 0', type=whole(0), metavar='N')
    add(hosts, '--timeout', 'seconds to wait for the others', type=whole(1, 10**6), default=300, metavar='N')
    return result


def read(arguments: Sequence[str] | None = None) -> Options:
    """The options of the command line, checked as far as they can be without jax and the data.

    Raises
    ------
    Problem
        In one sentence, where options don't go together; what is wrong with a single one ends the program.
    """
    given = vars(parser().parse_args(arguments))
    compare, *names_compared = given.pop('compare') or ('',)
    if given['activation'] is None:
        # norms that are compared have each their own
        alone = given['norm'] in ACTIVATING and compare != 'norm'
        given['activation'] = 'identity' if alone else Settings.activation
    names = {field.name for field in dataclasses.fields(Settings)}
    settings = Settings(**{name: given[name] for name in names})
    options = Options(
        settings=settings,
        compare=compare or None,
        names=_choices(compare, names_compared),
        **{name: value for name, value in given.items() if name not in names},
    )
    check_settings(settings)
    _check_together(options)
    return options


def check_settings(settings: Settings) -> None:
    """Refuse settings that don't go together, in one sentence."""
    if settings.dataset == 'digits':
        images = ALL_DIGITS if settings.limit is None else settings.limit
        if images > ALL_DIGITS:
            raise Problem(f'argument --limit: must be at most {ALL_DIGITS}, the number of digits, got {images}')
        check_size(settings, images - math.ceil(images / 5))
    if settings.dataset == 'synthetic' and (settings.limit or 0) > MOST_SYNTHETIC:
        raise Problem(f'argument --limit: must be at most {MOST_SYNTHETIC} for synthetic images, got {settings.limit}')
    micro, rest = divmod(settings.batch_size, settings.accumulate)
    if rest or micro < 2:
        raise Problem(
            f'argument --accumulate: must divide --batch-size {settings.batch_size} into micro-batches of at least 2 '
            f'images, got {settings.accumulate}'
        )
    if settings.norm == 'ghost' and micro % VIRTUAL_BATCH:
        raise Problem(
            f'argument --norm: ghost needs a multiple of {VIRTUAL_BATCH} images in a (micro-)batch, got {micro}; '
            'change --batch-size or --accumulate'
        )
    for option, value in ('accumulate', settings.accumulate > 1), ('ema', settings.ema):
        if settings.norm == 'evonorm_b0' and value:
            raise Problem(
                f'argument --{option}: has no exact statistics with --norm evonorm_b0; take evonorm_s0, or leave it out'
            )


def check_size(settings: Settings, images: int) -> None:
    """Refuse a batch of more than all training images, and more steps than can be counted."""
    if settings.batch_size > images:
        raise Problem(
            f'argument --batch-size: must be at most {images}, the number of training images, got {settings.batch_size}'
        )
    most = MOST_STEPS * settings.batch_size // images
    if settings.epochs > most:
        raise Problem(
            f'argument --epochs: must be at most {most}, which are {MOST_STEPS} steps of {settings.batch_size} images, '
            f'got {settings.epochs}'
        )


def _choices(compare: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names that are compared, each once; which activations there are is asked when jax is there."""
    try:
        chosen = map(one_of(NORMS) if compare == 'norm' else plain, names)
        return tuple(dict.fromkeys(chosen))
    except argparse.ArgumentTypeError as error:
        raise Problem(f'argument --compare: {error}') from None


def _check_together(options: Options) -> None:
    if options.compare not in (None, 'norm', 'activation'):
        raise Problem(f'argument --compare: must be norm or activation, got {options.compare!r}')
    if options.compare and (options.resume or options.steps or options.checkpoint_every or options.coordinator):
        raise Problem('argument --compare: goes without --resume, --steps, --checkpoint-every and --coordinator')
    several = {
        '--coordinator': options.coordinator,
        '--num-processes': options.num_processes,
        '--process-id': options.process_id,
    }
    missing = [name for name, value in several.items() if value is None]
    if 0 < len(missing) < len(several):
        given = ', '.join(name for name in several if name not in missing)
        raise Problem(f'argument {given}: needs {" and ".join(missing)} too')
    if not missing and (options.process_id or 0) >= (options.num_processes or 0):
        raise Problem(
            f'argument --process-id: must be below --num-processes {options.num_processes}, got {options.process_id}'
        )


def check_packages(packages: Mapping[str, str] = PACKAGES) -> None:
    """Refuse to begin if a package is missing."""

    def there(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except (ModuleNotFoundError, ValueError):  # its parent is missing, or it is None in sys.modules
            return False

    missing = [package for module, package in packages.items() if not there(module)]
    if missing:
        names = ', '.join(missing)
        raise Problem(f"this example also needs {names}; install with: pip install 'jaxnorm[examples]'")


def check_folder(folder: Path, files: Sequence[str], folders: Sequence[str] = ()) -> None:
    """Make the output folder and try to write into it, before minutes are spent on what can't be saved."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name in files:
            target = folder / name
            if target.is_dir() or (target.exists() and not os.access(target, os.W_OK)):
                raise OSError(None, f'its {name} can not be replaced')
        for name in folders:
            target = folder / name
            if target.exists() and not (target.is_dir() and os.access(target, os.W_OK)):
                raise OSError(None, f'its {name} is no folder that can be written into')
    except OSError as error:
        reason = error.strerror or error
        raise Problem(f"argument --output: can not write into '{folder}': {reason}; choose another folder") from None
