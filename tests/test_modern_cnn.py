"""The ModernCNN example: its model, its command, and what the command says when something is wrong."""

import csv
import importlib
import subprocess
import sys
from pathlib import Path

import brainstate
import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[1] / 'examples' / 'modern_cnn'
TRAIN = str(EXAMPLE / 'train.py')
TIMINGS = {'seconds', 'images_per_second'}
TINY = ('--epochs', '2', '--limit', '200', '--width', '4', '--batch-size', '32')
TUTORIAL_LOGITS = [
    3.3256447, -1.429272, 0.7167457, 1.7075744, 0.22491284, -1.362806, -0.27098486, -0.27673492, -1.0504798, -1.4831724,
]  # fmt: skip


def command(*arguments: object, python: tuple[str, ...] = (TRAIN,)) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *python, *map(str, arguments)], capture_output=True, text=True)


def numbers(folder: Path) -> list[dict[str, str]]:
    with (folder / 'metrics.csv').open(encoding='utf-8') as file:
        return [{name: value for name, value in row.items() if name not in TIMINGS} for row in csv.DictReader(file)]


@pytest.fixture
def example(monkeypatch):
    """Imports a file of the example as the command does, and forgets it: the names are too common to stay."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], '__file__', None) or '.').parent == EXAMPLE:
            del sys.modules[name]


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


def test_a_step_counts_the_statistics_once_and_traces_once_a_phase(example):
    training, images = example('training'), example('data').Images
    brainstate.random.seed(0)
    model = example('model').ModernCNN(width=4, momentum=training.MOMENTUM)
    trainer = training.Trainer(model, steps=3, learning_rate=1e-3)
    traces = []
    update = model.update
    model.update = lambda x: traces.append(brainstate.environ.get('fit')) or update(x)

    rng = np.random.default_rng(0)
    batch = images(rng.random((8, 32, 32, 3), np.float32), np.arange(8, dtype=np.int32))
    seen = np.asarray(model.conv1(batch.x), np.float64)
    before = np.asarray(model.bn1.running_mean.value, np.float64).ravel()
    trainer.train(batch)
    after = np.asarray(model.bn1.running_mean.value).ravel()
    np.testing.assert_allclose(after, 0.9 * before + 0.1 * seen.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6)

    trainer.train(batch)
    kept = np.asarray(model.bn1.running_mean.value).ravel()
    loss, probabilities = trainer.evaluate(images(batch.x[:5], batch.y[:5]), batch_size=3)
    np.testing.assert_array_equal(np.asarray(model.bn1.running_mean.value).ravel(), kept)
    assert traces == [True, False]

    # the image that only fills up the last batch doesn't count
    assert probabilities.shape == (5, 10)
    np.testing.assert_allclose(loss, -np.log(probabilities[np.arange(5), batch.y[:5]]).mean(), rtol=1e-4)


def test_the_split_is_fixed_and_stratified(example):
    data = example('data')
    train, test = data.load()
    assert train.x.shape == (1437, 32, 32, 3)
    assert test.x.shape == (360, 32, 32, 3)
    assert train.x.dtype == np.float32
    assert 0 <= train.x.min() <= train.x.max() <= 1
    np.testing.assert_allclose(np.bincount(test.y) / np.bincount(train.y), 0.25, atol=0.02)
    np.testing.assert_array_equal(data.load()[1].y, test.y)
    epoch = list(data.training_batches(train, 64, np.random.default_rng(0)))
    assert {len(batch.y) for batch in epoch} == {64}
    assert len(epoch) == 22


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(tmp_path):
    result, again = (command('--output', tmp_path / name, '--seed', '3', *TINY) for name in 'ab')
    assert result.returncode == again.returncode == 0, result.stderr + again.stderr
    assert {file.name for file in (tmp_path / 'a').iterdir()} == {'metrics.csv', 'curves.png', 'samples.png'}
    assert all((tmp_path / 'a' / name).read_bytes()[:4] == b'\x89PNG' for name in ('curves.png', 'samples.png'))
    first = numbers(tmp_path / 'a')
    assert [row['epoch'] for row in first] == ['1', '2']
    assert first == numbers(tmp_path / 'b')
    # the bar, the confusion and the closing lines
    for word in ('loss=', 'accuracy=', 'image/s'):
        assert word in result.stderr
    for word in ('160 training images, 40 held out', 'mistakes:', 'held-out accuracy'):
        assert word in result.stdout


def test_help_names_every_option():
    result = command('--help')
    assert result.returncode == 0
    for option in ('epochs', 'batch-size', 'learning-rate', 'seed', 'output', 'width', 'limit'):
        assert f'--{option}' in result.stdout


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
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path, arguments, words):
    refused(command('--output', tmp_path / 'new', *arguments), *words)
    assert not (tmp_path / 'new').exists()


def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    refused(command('--output', tmp_path / 'file' / 'sub'), '--output', 'can not write', 'choose another')
    refused(command('--output', tmp_path / 'file'), '--output', 'can not write')
    (tmp_path / 'metrics.csv').mkdir()
    refused(command('--output', tmp_path), '--output', 'metrics.csv')


def test_a_missing_package(tmp_path):
    code = (
        'import runpy, sys; sys.modules["optax"] = sys.modules["sklearn"] = None; '
        f'runpy.run_path({TRAIN!r}, run_name="__main__")'
    )
    result = command('--output', tmp_path / 'new', python=('-c', code))
    refused(result, 'optax, scikit-learn', "pip install 'jaxnorm[examples]'")
    assert not (tmp_path / 'new').exists()


@pytest.mark.slow
def test_98_percent_of_the_held_out_images(tmp_path):
    result = command('--output', tmp_path)
    assert result.returncode == 0, result.stderr
    assert float(numbers(tmp_path)[-1]['test_accuracy']) >= 0.98
