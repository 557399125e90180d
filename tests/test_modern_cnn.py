"""The ModernCNN example: its model, its command, and what the command says when something is wrong."""

import csv
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import brainstate
import jax
import numpy as np
import pytest
from jax import export, lax
from loading import EXAMPLE

TRAIN = str(EXAMPLE / 'train.py')
TIMINGS = {'seconds', 'images_per_second'}
TINY = ('--epochs', '2', '--limit', '200', '--width', '4', '--batch-size', '32')
WRITTEN = {'metrics.csv', 'curves.png', 'confusion.png', 'samples.png', 'tensorboard', 'checkpoints', '.lock'}
TUTORIAL_LOGITS = [
    3.3256447, -1.429272, 0.7167457, 1.7075744, 0.22491284, -1.362806, -0.27098486, -0.27673492, -1.0504798, -1.4831724,
]  # fmt: skip


def command(
    *arguments: object, python: tuple[str, ...] = (TRAIN,), compiled: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command; several that run the same steps need not compile them again where they share a folder for that."""
    cache = {'JAX_COMPILATION_CACHE_DIR': str(compiled), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    arguments = (sys.executable, *python, *arguments)
    return subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, env=os.environ | (cache if compiled else {})
    )


def numbers(folder: Path) -> list[dict[str, str]]:
    with (folder / 'metrics.csv').open(encoding='utf-8') as file:
        return [{name: value for name, value in row.items() if name not in TIMINGS} for row in csv.DictReader(file)]


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ''
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


def test_logits_of_the_tutorial(example):
    brainstate.random.seed(0)
    model = example('model').ModernCNN(num_classes=10)
    x = brainstate.random.randn(4, 32, 32, 3)
    with brainstate.environ.context(fit=True):
        logits = model(x)
    np.testing.assert_allclose(logits[0], TUTORIAL_LOGITS, rtol=0, atol=1e-4)


def test_no_bias_in_front_of_a_batch_norm(example):
    model = example('model').ModernCNN(width=2)
    assert set(model.conv1.weight.value) == set(model.conv2.weight.value) == {'weight'}


def test_the_convolution(example):
    convolve = example('model').convolve
    rng = np.random.default_rng(0)
    # 12 images are three blocks of four
    x, w, g = (rng.normal(size=s).astype(np.float32) for s in ((12, 6, 5, 3), (3, 3, 3, 4), (12, 6, 5, 4)))

    def plain(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    def learned(f):
        y, back = jax.vjp(f, x, w)
        return y, *back(g)

    # sums of 27 products of magnitude 1, of 36, and of 360: some roundings each
    for got, wanted in zip(jax.jit(learned, static_argnums=0)(convolve), learned(plain), strict=True):
        np.testing.assert_allclose(got, wanted, 1e-5, 1e-4)
    shape = jax.ShapeDtypeStruct((*export.symbolic_shape('n'), 6, 5, 3), np.float32)
    exported = export.export(jax.jit(lambda x: convolve(x, w)))(shape)
    np.testing.assert_allclose(exported.call(x[:5]), plain(x[:5], w), 1e-5, 1e-5)


@pytest.mark.slow
def test_stopped_and_resumed_it_gives_the_numbers_of_a_whole_run(tmp_path):
    options = ('--ema', '0.9', '--accumulate', '2', '--optimizer', 'sgd', '--activation', 'prelu', *TINY)
    run = partial(command, compiled=tmp_path / 'compiled')
    whole = run('--output', tmp_path / 'whole', *options)
    stopped = run('--output', tmp_path / 'part', '--steps', '6', *options)
    again = run('--output', tmp_path / 'part', *options)
    past = run('--output', tmp_path / 'part', '--resume', '--steps', '5', *options)  # it is there already
    assert past.returncode == 0 and 'stopped after step 6 of 10' in past.stdout, past.stderr
    resumed = run('--output', tmp_path / 'part', '--resume', *options)
    assert whole.returncode == stopped.returncode == resumed.returncode == 0, resumed.stderr
    assert 'stopped after step 6 of 10; go on with --resume' in stopped.stdout
    refused(again, 'already holds a checkpoint', '--resume')
    assert 'going on after step 6 of 10' in resumed.stdout
    assert [row['epoch'] for row in numbers(tmp_path / 'whole')] == ['1', '2']
    assert numbers(tmp_path / 'whole') == numbers(tmp_path / 'part')
    assert {file.name for file in (tmp_path / 'whole').iterdir()} == WRITTEN
    assert all((tmp_path / 'whole' / name).read_bytes()[:4] == b'\x89PNG' for name in WRITTEN if name.endswith('png'))
    # the lines of the epochs, the summary, the confusion and the closing lines; no bar where nobody looks
    assert 'image/s' not in whole.stderr
    for word in ('160 training images, 40 held out', 'epoch 2/2', 'learning rate', 'mistakes:', 'held-out accuracy'):
        assert word in whole.stdout
    other = command('--output', tmp_path / 'part', '--resume', *options, '--width', '3')
    refused(other, 'other settings: width (4 there, 3 here)')


@pytest.mark.slow
def test_a_loss_that_is_not_finite(tmp_path):
    wild = ('--learning-rate', '1e30', '--optimizer', 'sgd', '--norm', 'none', '--checkpoint-every', '1', *TINY)
    result = command('--output', tmp_path, *wild)
    assert result.returncode == 1, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for word in ('at step 2: it began in', 'the checkpoint of step 1 is good'):
        assert word in result.stderr


@pytest.mark.slow
def test_weights_that_are_not_finite(tmp_path):
    """The step itself is sound, and what it makes of the weights is not; it is the last one, too."""
    few = ('--limit', '200', '--width', '2', '--batch-size', '160', '--epochs', '1')
    huge = ('--optimizer', 'sgd', '--learning-rate', '3e38', '--checkpoint-every', '1')
    result = command('--dataset', 'synthetic', '--output', tmp_path, *few, *huge)
    assert result.returncode == 1, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for word in ('no longer finite at step 1: it began in', '/weight', '--learning-rate', 'there is no checkpoint'):
        assert word in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason='needs a lock of the system')
def test_a_folder_is_written_by_one_run_at_a_time(tmp_path):
    lock = f'import sys; sys.path.insert(0, {str(EXAMPLE)!r})\n'
    lock += f'from pathlib import Path; from lock import locked; path = Path({str(tmp_path)!r})\n'
    held = lock + 'with locked(path): print("held", flush=True); sys.stdin.read()'
    with subprocess.Popen(
        [sys.executable, '-c', held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == 'held\n'
        refused(command('--output', tmp_path, *TINY), str(tmp_path), 'written by another run', 'choose another')
        first.kill()
    # the lock of a process that was killed is gone
    assert command(python=('-c', lock + 'with locked(path): pass')).returncode == 0


def test_it_goes_on_where_nobody_reads(example, tmp_path):
    code = (
        f'import sys; sys.path.insert(0, {str(EXAMPLE)!r})\nfrom options import say\n'
        'for number in range(5): say(str(number) * 100_000)\nprint("done", file=sys.stderr)'
    )
    with subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.read(1)
        run.stdout.close()
        assert (run.stderr.read(), run.wait(10)) == ('done\n', 0)


def test_help_names_every_option_without_jax(tmp_path):
    code = (
        'import runpy, sys\n'
        'for name in "jax", "brainstate", "jaxnorm", "numpy": sys.modules[name] = None\n'
        f'sys.path.insert(0, {str(EXAMPLE)!r}); runpy.run_path({TRAIN!r}, run_name="__main__")'
    )
    result = command('--help', python=('-c', code))
    assert result.returncode == 0, result.stderr
    for option in (
        'dataset', 'data-dir', 'limit', 'augment', 'norm', 'activation', 'width', 'dropout', 'epochs', 'batch-size',
        'accumulate', 'optimizer', 'learning-rate', 'warmup', 'weight-decay', 'clip', 'label-smoothing', 'ema',
        'precision', 'seed', 'output', 'checkpoint-every', 'resume', 'steps', 'compare', 'seeds', 'coordinator',
        'num-processes', 'process-id', 'timeout',
    ):  # fmt: skip
        assert f'--{option} ' in result.stdout
    refused(command('--epochs', '0', python=('-c', code)), '--epochs')


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('--epoch', '3'), ('unrecognized arguments: --epoch 3',)),
        (('--epochs', '0'), ('--epochs', 'at least 1', "'0'")),
        (('--epochs', 'two'), ('--epochs', 'whole number', "'two'")),
        (('--batch-size', '1'), ('--batch-size', 'at least 2')),
        (('--batch-size', '1438'), ('--batch-size', 'at most 1437', '1438')),
        (('--batch-size', '128', '--limit', '100'), ('--batch-size', 'at most 80')),
        (('--learning-rate', 'nan'), ('--learning-rate', 'above 0', "'nan'")),
        (('--learning-rate', '-1'), ('--learning-rate', 'above 0')),
        (('--seed', '-1'), ('--seed', 'between 0')),
        (('--limit', '5000'), ('--limit', '1797')),
        (('--norm', 'bach'), ('--norm', "'bach'", "'batch' is the nearest")),
        (('--dataset', 'mnist'), ('--dataset', 'digits, cifar10')),
        (('--dropout', '1'), ('--dropout', 'below 1')),
        (('--ema', '1'), ('--ema', 'below 1')),
        (('--clip', '0'), ('--clip', 'above 0')),
        (('--accumulate', '3'), ('--accumulate', 'divide --batch-size 64')),
        (('--norm', 'ghost', '--batch-size', '24'), ('--norm', 'multiple of 16')),
        (('--precision', 'float16'), ('--precision', 'float32, bfloat16')),
        (('--compare', 'width'), ('--compare', 'norm or activation')),
        (('--compare', 'norm', 'bach'), ('--compare', "'bach'", "'batch' is the nearest")),
        (('--epochs', '9' * 20), ('--epochs', 'at most', 'steps')),
        (('--timeout', '3000000000'), ('--timeout', 'between 1 and')),
        (('--dataset', 'synthetic', '--limit', '10000000000000'), ('--limit', 'at most 100000')),
        (('--compare', 'norm', '--resume'), ('--compare', 'without --resume')),
        (('--coordinator', 'here'), ('--coordinator', 'HOST:PORT')),
        (('--coordinator', 'here:1'), ('--coordinator', '--num-processes and --process-id')),
        (
            ('--coordinator', 'here:1', '--num-processes', '2', '--process-id', '2'),
            ('--process-id', 'below --num-processes 2'),
        ),
        (('--dataset', 'cifar10', '--data-dir', '/nowhere'), ('/nowhere',)),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path, arguments, words):
    refused(command('--output', tmp_path / 'new', *arguments), *words)
    assert not (tmp_path / 'new').exists()


@pytest.mark.slow
def test_an_unknown_activation(tmp_path):
    refused(
        command('--output', tmp_path, '--activation', 'geluu'), '--activation', "'geluu'", 'the nearest are', "'gelu'"
    )


@pytest.mark.slow
def test_an_activation_of_more_than_its_input(tmp_path):
    refused(command('--output', tmp_path, '--activation', 'gated_tanh'), "'gated_tanh'", 'needs more than its input')


def test_what_is_compared(example):
    read = example('options').read
    options = read(['--norm', 'filter_response', '--compare', 'norm', 'Batch', 'filter-response', 'batch'])
    assert (options.names, options.settings.activation) == (('batch', 'filter_response'), 'gelu')
    options = read(['--norm', 'filter_response', '--compare', 'activation', 'Hard-Swish', 'hard_swish'])
    assert (options.names, options.settings.activation) == (('hard_swish',), 'identity')


def test_files_in_the_place_of_folders(example, tmp_path):
    options = example('options')
    (tmp_path / 'tensorboard').write_text('')
    (tmp_path / 'compare.png').mkdir()
    for arguments, name in (((options.FILES, options.FOLDERS), 'tensorboard'), ((options.COMPARED,), 'compare.png')):
        with pytest.raises(options.Problem, match=f'can not write into .* its {name}'):
            options.check_folder(tmp_path, *arguments)


@pytest.mark.slow
def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    refused(command('--output', tmp_path / 'file' / 'sub'), '--output', 'can not write', 'choose another')
    refused(command('--output', tmp_path / 'file'), '--output', 'can not write')
    (tmp_path / 'confusion.png').mkdir()
    refused(command('--output', tmp_path), '--output', 'confusion.png')


def test_a_missing_package(tmp_path):
    code = (
        'import runpy, sys; sys.modules["optax"] = sys.modules["sklearn"] = None; '
        f'sys.path.insert(0, {str(EXAMPLE)!r}); runpy.run_path({TRAIN!r}, run_name="__main__")'
    )
    result = command('--output', tmp_path / 'new', python=('-c', code))
    refused(result, 'optax, scikit-learn', "pip install 'jaxnorm[examples]'")
    assert not (tmp_path / 'new').exists()


@pytest.mark.slow
def test_98_percent_of_the_held_out_images(tmp_path):
    result = command('--output', tmp_path)
    assert result.returncode == 0, result.stderr
    assert float(numbers(tmp_path)[-1]['test_accuracy']) >= 0.98
