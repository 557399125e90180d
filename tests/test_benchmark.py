"""The benchmark: that it is honest, which is what can be tested; times are not."""

import json
import re
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm.benchmark import __main__ as command
from jaxnorm.benchmark import _measure, _modern_cnn, _peers

CASES = _peers.norms((8, 3, 3, 16), 'float32') | _peers.activations((16, 8), 'float32')
PLAN = _measure.Plan(rounds=1, chain=2)


def case(**candidates):
    """Doubling, with jaxnorm and other candidates."""
    layers = {'jaxnorm': lambda: lambda x: x + x} | candidates
    return _measure.Case('double', (4, 8), 'float32', lambda x: 2 * x, layers)


def rows(**candidates):
    return {(row.library, row.phase): row for row in _measure.measure(case(**candidates), PLAN)}


@pytest.mark.parametrize('op', list(CASES))
def test_every_installed_peer_computes_the_same(op):
    arguments = _measure.arguments_of(CASES[op], PLAN.chain)
    wanted = _measure.expected(CASES[op], 'forward+backward', arguments)
    compared = 0
    for library, factory in CASES[op].candidates.items():
        if library == 'torch':  # its own test: two runtimes in one process are slow to start
            continue
        try:
            layer = factory()
        except (ImportError, _measure.AbsentError):
            continue
        run, _ = _measure.JaxLayer(layer).prepare('forward+backward', arguments)
        error = _measure.error_of(_measure.as_numpy(run()), wanted)
        assert error <= _measure.allowed('float32', PLAN.chain), library
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize('op', ['layer_norm', 'batch_norm_fit', 'instance_norm', 'gelu_tanh', 'log_softmax'])
def test_torch_computes_the_same(op):
    pytest.importorskip('torch', reason='PyTorch is not installed')
    arguments = _measure.arguments_of(CASES[op], PLAN.chain)
    run, _ = _measure.TorchLayer(CASES[op].candidates['torch']()).prepare('forward+backward', arguments)
    wanted = _measure.expected(CASES[op], 'forward+backward', arguments)
    assert _measure.error_of(_measure.as_numpy(run()), wanted) <= _measure.allowed('float32', PLAN.chain)


def test_wrong_results_are_not_timed():
    found = rows(wrong=lambda: lambda x: x * 2.01, nan=lambda: lambda x: x * jnp.nan, right=lambda: lambda x: 2 * x)
    for phase in _measure.PHASES:
        for library in ('wrong', 'nan'):
            assert found[library, phase].note == 'wrong, so not timed'
            assert found[library, phase].ratio is None
        assert found['right', phase].ratio > 0


def test_a_peer_that_is_missing_or_fails_is_a_row():
    def missing():
        import no_such_library_of_norms  # type: ignore[import-not-found]  # noqa: F401

    found = rows(missing=missing, failing=lambda: lambda x: x @ x)
    assert found['missing', 'forward'].note == 'not installed (no_such_library_of_norms)'
    assert found['failing', 'forward'].note == 'fails: TypeError'
    with pytest.raises(TypeError, match='no_such_argument'):  # jaxnorm itself may not fail
        rows(jaxnorm=lambda: lambda x: jnp.add(x, x, no_such_argument=1))


def test_control_and_floor_come_first():
    libraries = [row.library for row in _measure.measure(case(), PLAN)]
    assert libraries == ['jaxnorm', 'copy of the same bytes'] * 2


def test_pairs_are_interleaved():
    order = []
    ratios, times = _measure.paired(lambda: order.append('A'), lambda: order.append('B'), rounds=3)
    assert ''.join(order) == 'AB' + 3 * 'ABBA'  # each is called once before, so that nothing is compiled in a round
    assert len(ratios) == 3
    assert len(times) == 6
    slow, _ = _measure.paired(lambda: time.sleep(0.02), lambda: time.sleep(0.01), rounds=3)
    assert 1.5 < np.median(slow) < 2.5


def test_errors_are_relative_and_see_nan():
    wanted = [np.array([1.0, -100.0]), np.zeros(3)]
    assert _measure.error_of([wanted[0] + 1, wanted[1]], wanted) == 0.01
    assert np.isnan(_measure.error_of([wanted[0] * np.nan, wanted[1]], wanted))
    assert _measure.error_of([wanted[0]], wanted) == np.inf
    assert _measure.allowed('float32', 8) == 8 * 100 * 2.0**-24
    assert _measure.allowed('bfloat16', 8) == 0.1


def test_what_is_saved_leaves_parameters_out():
    arguments = _measure.arguments_of(CASES['layer_norm'], 1)
    saved = _measure.JaxLayer(CASES['layer_norm'].candidates['jaxnorm']()).saved(arguments)
    assert saved == 1 + 2 / 16  # the input, and two numbers a row of sixteen


def test_the_command(capsys):
    arguments = ['norms', '--op', 'layer_norm', '--shape', '16,8', '--rounds', '1', '--chain', '2', '--peer', 'flax']
    command.main(arguments)
    text = capsys.readouterr().out
    assert 'layer_norm (16, 8) float32, forward+backward' in text
    assert 'A/A: against a copy of itself' in text
    command.main([*arguments, '--json', '--phase', 'forward'])
    found = json.loads(capsys.readouterr().out)
    assert {row['phase'] for row in found['rows']} == {'forward'}
    assert [row['library'] for row in found['rows']] == ['jaxnorm', 'copy of the same bytes', 'flax']
    assert found['environment']['versions']['jax']
    assert found['rows'][0]['ratio'] > 0


def test_accuracy_sees_what_is_wrong(capsys):
    from jaxnorm.benchmark import _accuracy
    from jaxnorm.benchmark._exact import EXACT

    one = _measure.Case('sigmoid', (1,), 'float32', lambda x: x, {
        'jaxnorm': CASES['sigmoid'].candidates['jaxnorm'],
        'rounded twice': lambda: lambda x: 1 / (1 + jnp.exp(-x)),
        'nan in the tail': lambda: lambda x: jnp.where(x < -40, jnp.nan, CASES['sigmoid'].candidates['jaxnorm']()(x)),
    })  # fmt: skip
    ours, plain, broken = _accuracy.measure(one, EXACT['sigmoid'], {}, points=200)
    assert max(ours.value, ours.slope) <= _accuracy.LIMITS['float32']
    assert plain.slope > 1000  # y (1 - y), from a y that is rounded to 1
    assert broken.value == np.inf
    command.main(['accuracy', '--op', 'sigmoid', '--peer', 'jax.nn'])
    assert re.search(r'^sigmoid +\d\.\d / \d\.\d +\S+ / ', capsys.readouterr().out, re.M)


@pytest.mark.slow
def test_a_training_step_of_the_example(capsys):
    pytest.importorskip('torch', reason='PyTorch is not installed')
    small = ['modern_cnn', '--batch-size', '4', '--width', '2', '--rounds', '1', '--peer', 'flax', '--peer', 'torch']
    command.main([*small, '--json'])
    found = {row['library']: row for row in json.loads(capsys.readouterr().out)['rows']}
    assert list(found) == ['jaxnorm', 'jaxnorm, step of the peers', 'flax', 'torch']
    for row in found.values():
        assert row['error'] <= _modern_cnn.LIMIT
        assert row['ratio'] > 0
    assert all(row['temporary'] > 0 for name, row in found.items() if name != 'torch')


@pytest.mark.slow
def test_temporary_memory_of_a_training_step():
    """At the size that people train, of which no step need be taken; the plain step takes 472 MB."""
    assert _modern_cnn.LEARNERS['jaxnorm'](_modern_cnn.Task()).temporary <= 210e6


def test_a_training_step_needs_the_example(monkeypatch, tmp_path):
    monkeypatch.setattr(_modern_cnn, 'EXAMPLE', tmp_path)
    with pytest.raises(_modern_cnn.MissingError, match='is measured in a checkout, where'):
        _modern_cnn.LEARNERS['jaxnorm'](_modern_cnn.Task(2, 1))


def test_stability_of_norms(capsys):
    command.main(['accuracy', '--op', 'tanh', '--op', 'layer_norm', '--peer', 'jax, two passes'])
    text = capsys.readouterr().out
    assert text.index('worst row of jaxnorm: tanh') < text.index('errors of norms in float32')
    ours, plain = (re.search(rf'^layer_norm +{name} +(.*)$', text, re.M)[1] for name in ('jaxnorm', 'jax, two passes'))
    assert max(map(float, re.findall(r'[\d.]+e-\d+', ours))) <= 2e-7
    assert max(map(float, re.findall(r'[\d.]+e-\d+', plain))) >= 1e-3


def test_accuracy_of_exact_numbers_is_right():
    from jaxnorm.benchmark._accuracy import ulps

    one = np.float32(1)
    assert ulps([one, np.nextafter(one, 2), np.nan, 0.0], [1.0, 1.0, 1.0, 1e-45], 'float32').tolist() == [
        0,
        1,
        np.inf,
        0,
    ]


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['norms', '--dtype', 'float64'], '--dtype: must be float32, bfloat16 or float16 for timings'),
        (['modern_cnn', '--op', 'gelu'], '--op: is not for modern_cnn'),
        (['modern_cnn', '--dtype', 'bfloat16'], '--dtype: must be float32 for modern_cnn'),
        (['modern_cnn', '--peer', 'numpy'], "--peer: must be one of .* got 'numpy'"),
        (['modern_cnn', '--width', '0'], "--width: must be a whole number from 1 on, got '0'"),
        (['speed'], "invalid choice: 'speed'"),
        (['norms', '--op', 'gelu'], "--op: must be one of layer_norm, .* got 'gelu'"),
        (['norms', '--peer', 'numpy'], "--peer: must be one of .* got 'numpy'"),
        (['norms', '--shape', '4,x'], "--shape: must be whole numbers .* got '4,x'"),
        (['norms', '--rounds', '0'], "--rounds: must be a whole number from 1 on, got '0'"),
    ],
)
def test_a_wrong_option_is_one_sentence(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert re.search(words, text), text
