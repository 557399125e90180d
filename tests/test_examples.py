"""The small examples: each runs, draws its picture, and makes its point."""

import re
import subprocess
import sys

import numpy as np
import pytest
from loading import EXAMPLES, files_of

from jaxnorm import nn

NAMES = sorted(path.stem for path in EXAMPLES.glob('[!_]*.py'))


@pytest.fixture
def load():
    """Imports an example."""
    with files_of(EXAMPLES) as load:
        yield load


@pytest.fixture
def run(load, tmp_path, capsys):
    """Runs an example with few steps: what it found, and what it printed."""

    def run(name, *arguments):
        found = load(name).main([*map(str, arguments), '--output', str(tmp_path)])
        assert (tmp_path / f'{name}.png').read_bytes()[:4] == b'\x89PNG'
        assert not list(tmp_path.glob('*.part'))
        return found, capsys.readouterr().out

    return run


def test_every_example_says_what_it_shows_and_is_listed():
    listed = (EXAMPLES / 'README.md').read_text(encoding='utf-8')
    assert re.findall(r'^\| \[`(\w+)\.py`\]\(\1\.py\)', listed, re.MULTILINE) == sorted(
        NAMES, key=lambda name: listed.index(f'[`{name}.py`]')
    )
    for name in NAMES:
        text = (EXAMPLES / f'{name}.py').read_text(encoding='utf-8')
        assert f'python examples/{name}.py' in text.split('"""')[1]


@pytest.mark.slow
def test_xor_as_a_command(tmp_path):
    command = [sys.executable, str(EXAMPLES / 'xor.py'), '--steps', '5', '--seeds', '1', '--output', str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, '')
    assert 'with ReLU' in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ['xor.png']


@pytest.mark.parametrize(
    ('name', 'arguments', 'words'),
    [
        ('xor', ('--steps', '0'), ('--steps', 'between 1 and', "'0'")),
        ('xor', ('--seeds', 'many'), ('--seeds', 'whole number', "'many'")),
        ('xor', ('--seed', '-1'), ('--seed', 'between 0 and')),
        ('xor', ('--step', '3'), ('unrecognized arguments: --step 3',)),
        ('deep_gradients', ('--activations', 'gelo'), ('--activations', "'gelu'")),
        ('deep_gradients', ('--activations', 'glu'), ('--activations', 'keeps the shape', "'glu'")),
        ('deep_gradients', ('--activations', 'gated_tanh'), ('--activations', 'nothing but its input', "'gated_tanh'")),
        ('deep_gradients', ('--activations', 'softmax'), ('--activations', 'each number for itself', "'softmax'")),
        ('recurrent', ('--scale', 'nan'), ('--scale', 'above 0', 'nan')),
    ],
)
def test_a_wrong_option_is_one_sentence(load, tmp_path, capsys, name, arguments, words):
    with pytest.raises(SystemExit) as end:
        load(name).main([*arguments, '--output', str(tmp_path / 'new')])
    said = capsys.readouterr()
    assert (end.value.code, said.out, len(said.err.splitlines())) == (2, '', 1), said
    assert all(word in said.err for word in words), said.err
    assert not (tmp_path / 'new').exists()


def test_a_folder_that_can_not_be_written(load, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit) as end:
        load('xor').main(['--output', str(tmp_path / 'file')])
    said = capsys.readouterr().err
    assert (end.value.code, len(said.splitlines())) == (2, 1)
    assert 'can not write' in said and 'choose another folder' in said


def test_a_picture_is_written_whole_or_not_at_all(load, tmp_path):
    common = load('_common')
    path = tmp_path / 'picture.png'
    path.write_text('before')

    def fails(part):
        part.write_text('half')
        raise OSError('no space left')

    with pytest.raises(OSError, match='no space'):
        common.write_whole(path, fails)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [('picture.png', 'before')]


def test_xor(run):
    outcomes, printed = run('xor', '--steps', 300, '--seeds', 5)
    with_relu, without = outcomes['with ReLU'], outcomes['without']
    assert with_relu[0].right == 4
    np.testing.assert_allclose(with_relu[0].answers, [0, 1, 1, 0], atol=0.01)
    assert max(outcome.right for outcome in without) <= 3
    np.testing.assert_allclose([o.losses[-1] for o in without], 0.25, atol=0.01)  # one half for all is the best it can
    assert re.search(r'with ReLU .* 4/4', printed) and re.search(r'at most \d\.', printed)


@pytest.mark.slow
def test_deep_gradients(run):
    outcomes, printed = run('deep_gradients', '--activations', 'sigmoid', 'relu', 'gelu')
    assert outcomes['sigmoid'].ratio < 1e-4
    assert outcomes['sigmoid'].ratio ** (1 / 9) < 0.5
    for name in 'relu', 'gelu':
        assert 0.1 < outcomes[name].ratio < 10
    assert all(np.all(np.diff(outcomes['sigmoid'].gradients[i : i + 2]) > 0) for i in range(9))
    np.testing.assert_allclose(outcomes['sigmoid'].slopes.max(), 0.25, atol=1e-4)
    assert set(outcomes['relu'].slopes) == {0, 1}
    assert re.search(r'Hardly anything reaches .*: sigmoid\.', printed)
    assert re.search(r'of use with: relu, gelu\.', printed)


@pytest.mark.slow
def test_adaptive_activation(run):
    outcomes, printed = run('adaptive_activation', '--steps', 80, '--hidden', 8)
    for outcome in outcomes.values():
        assert outcome.losses[-1] < outcome.losses[0]
    adaptive = outcomes['adaptive']
    assert adaptive.losses[-1] < 0.5 * adaptive.losses[0]
    assert adaptive.alpha.shape == adaptive.beta.shape == (8,)
    assert np.ptp(adaptive.alpha) > 0.1 and np.abs(adaptive.beta - 1).max() > 0.01  # they learned, each for itself
    assert outcomes['silu'].alpha.size == 0
    assert 'for new points' in printed


@pytest.mark.slow
def test_recurrent(run):
    outcomes, printed = run('recurrent', '--length', 40)
    for outcome in outcomes.values():
        assert outcome.states.shape == (40, 32, 20)
        assert np.abs(outcome.states).max() <= 1
    decayed = outcomes['time-decayed tanh'].states
    assert np.all(np.abs(decayed).max(axis=(1, 2)) <= np.exp(-0.1 * np.arange(40)) * (1 + 1e-6))
    assert outcomes['gated tanh'].states[-1].std() > 10 * decayed[-1].std()
    assert 'time-decayed tanh: the state fades' in printed


def test_attention(run):
    outcomes, printed = run('attention')
    tiny, usual, large = outcomes.values()
    for outcome in outcomes.values():
        assert outcome.weights.shape == (16, 10, 10)
        assert np.all(outcome.weights > 0)
        np.testing.assert_allclose(outcome.weights.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(tiny.weights, 0.1, atol=2e-3)  # all positions alike
    assert tiny.entropy > usual.entropy > large.entropy
    assert 'tiny (0.01): attention looks at all positions alike.' in printed


@pytest.mark.slow
def test_generative(run):
    outcomes, printed = run('generative')
    for (_, name), outcome in outcomes.items():
        assert outcome.output.shape == (64, 256)
        if name == 'softplus':
            assert outcome.output.min() > 0
        if name == 'scaled tanh':
            assert np.abs(outcome.output).max() <= 1.7159
        if name in ('scaled tanh', 'gaussian glu'):
            assert abs(outcome.output.mean()) < 0.1 * outcome.output.std()
    assert outcomes['He', 'prelu'].gradient > outcomes['small', 'prelu'].gradient
    assert printed.count('Centred on zero') == 2


@pytest.mark.slow
def test_from_scratch(run):
    measured, printed = run('from_scratch')
    for ways in measured.values():
        assert max(*ways['jaxnorm'].value, *ways['jaxnorm'].slope) < 1e-6
    assert measured['softplus']['textbook'].value[-1] == np.inf
    assert measured['sigmoid']['textbook'].slope[-1] == 1
    assert 'textbook: loses digits in sigmoid, selu, softplus.' in printed
    assert 'its slope [0. 0. 0. 1. 1.]' in printed


@pytest.mark.slow
def test_cheap_activations(run):
    outcomes, printed = run('cheap_activations', '--repeats', 2)
    assert outcomes['quantized sigmoid'].apart <= 0.5 / 255 + 1e-6
    byte = outcomes['quantized sigmoid, uint8']
    assert (byte.dtype, byte.bytes) == ('uint8', 1_000_000)
    assert byte.apart <= 0.5 / 255 + 1e-6
    np.testing.assert_allclose(outcomes['approximate tanh'].apart, 1 - np.tanh(1), atol=1e-4)
    assert 'Smaller: quantized sigmoid, uint8.' in printed


@pytest.mark.slow
def test_iris(run, load, monkeypatch):
    monkeypatch.setattr(load('iris'), 'ACTIVATIONS', {'none': nn.Identity, 'relu': nn.ReLU})
    outcomes, printed = run('iris', '--steps', 100, '--seeds', 2)
    for outcome in outcomes.values():
        assert np.mean(outcome.test) > 0.85
        assert set(np.unique(outcome.regions)) <= {0, 1, 2}
    best = max(outcomes, key=lambda name: np.mean(outcomes[name].test))
    assert ('without activation is as good as any' if best == 'none' else f'{best} is best') in printed


def test_one_split_has_no_verdict(load):
    iris = load('iris')
    outcomes = {name: iris.Outcome([share], [share], np.zeros(1)) for name, share in (('none', 0.5), ('relu', 0.9))}
    assert iris.verdict(outcomes, 'relu').startswith('One split says nothing about the spread')


def test_who_looks_back_farthest(load):
    verdict = load('recurrent').verdict
    assert verdict({'a': 3, 'b': 3}).startswith('All look back as far: 3 inputs')
    assert re.match(r'a and c look back farthest: 3 .* \(b: 2\)\.', verdict({'a': 3, 'b': 2, 'c': 3}))
    assert re.match(r'a looks back farthest: 3 .* \(b: 2\)\.', verdict({'a': 3, 'b': 2}))


@pytest.mark.slow
def test_decision_regions(run, tmp_path):
    outcomes, printed = run('decision_regions', '--steps', 240, '--activations', 'identity', 'relu')
    straight, bent = outcomes['identity'][-1], outcomes['relu'][-1]
    assert bent.right > straight.right + 0.05
    for stages in outcomes.values():  # the border in the plane is the straight line in the bent one
        view = stages[-1]
        weights, bias = view.border
        np.testing.assert_allclose(view.bent @ weights + bias, view.logits, rtol=1e-4, atol=1e-4)
    assert 'the border is straight' in printed
    page = (tmp_path / 'decision_regions.html').read_text(encoding='utf-8')
    assert len(re.findall(r'"iVBOR[\w+/=]+"', page)) == len(outcomes['relu']) == 7
    assert 'http' not in page


@pytest.mark.slow
def test_which_activation(run):
    outcomes, printed = run('which_activation', '--epochs', 4, '--seeds', 2, '--activations', 'relu', 'identity')
    for outcome in outcomes.values():
        assert outcome.losses.shape == (2, 4)
        assert np.all(outcome.losses[:, -1] < 0.5 * outcome.losses[:, 0])
        assert np.all(outcome.held_out > 0.85)
    best = max(outcomes, key=lambda name: outcomes[name].held_out.mean())
    assert f'most new samples are right with {best}' in printed


@pytest.mark.slow
def test_custom_activation(run, load):
    (checked, outcomes), printed = run('custom_activation', '--epochs', 3, '--seeds', 1)
    lacks = {name: {quality for quality, (_, good) in found.items() if not good} for name, found in checked.items()}
    assert lacks == {
        'bounce': set(),
        'relu': {'differentiable', 'slope far out'},
        'parabola_softplus': {'continuous', 'differentiable', 'slope far out'},
    }
    assert {name: outcome.losses.shape for name, outcome in outcomes.items()} == dict.fromkeys(lacks, (1, 3))
    assert 'bounce has all that is wanted.' in printed
    bounce = load('custom_activation').bounce
    x = np.linspace(-50, 50, 1001)
    np.testing.assert_allclose(bounce(x), 0.375 * x + 0.625 * (np.sqrt(1 + x**2) - 1), atol=1e-5)


@pytest.mark.slow
def test_dying_relu(run, load, monkeypatch):
    networks = load('dying_relu').NETWORKS
    monkeypatch.setattr(load('dying_relu'), 'NETWORKS', {name: networks[name] for name in ('relu', 'leaky_relu')})
    outcomes, printed = run('dying_relu', '--steps', 100)
    dead = {key: outcome.dead for key, outcome in outcomes.items()}
    assert dead['relu', 'far too large'] > 0.05
    assert dead['relu', 'usual'] == dead['leaky_relu', 'far too large'] == 0
    assert 0.4 < outcomes['relu', 'usual'].active < 0.6
    assert re.search(r'far too large: dead units in relu \(\d+%\)', printed)
