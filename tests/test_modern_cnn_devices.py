"""The ModernCNN example on several devices and hosts: the same numbers as on one, and what if one is missing."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from loading import EXAMPLE

SECONDS = 240  # after which a process that hangs is ended
# trains some steps, evaluates, and prints the numbers; arguments: steps, then what Options has of hosts, or nothing
WORKER = """
import json, sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
import numpy as np
from devices import Devices, connect
if len(sys.argv) > 2:
    connect(SimpleNamespace(coordinator=sys.argv[2], num_processes=2, process_id=int(sys.argv[3]), timeout=60))
import jax
jax.config.update('jax_disable_most_optimizations', True)
from data import Dataset, Images
from options import Settings
import training
settings = Settings(width=4, batch_size=16, epochs=2, optimizer='sgd', learning_rate=0.01, augment=True, dropout=0.3)
rng = np.random.default_rng(0)
x, y = rng.integers(0, 255, (44, 8, 8, 3), np.uint8), (np.arange(44) % 4).astype(np.int32)
images = Dataset(Images(x[:32], y[:32]), Images(x[32:], y[32:]), tuple('abcd'), True)
counts = [jax.device_count()] if len(sys.argv) > 2 else [1, jax.device_count()]
for count in counts:
    trainer = training.trainer_for(settings, images, Devices(jax.devices()[:count]))
    losses = []
    watcher = SimpleNamespace(step=lambda step: losses.append(step.loss), epoch=lambda row: None)
    evaluation = training.fit(trainer, images, watchers=[watcher]).evaluation
    values = trainer.state()['model']
    print(json.dumps({
        'count': count, 'losses': losses, 'evaluation': evaluation.loss,
        'statistics': {k: np.ravel(v).tolist() for k, v in values.items() if 'running' in k},
    }), flush=True)
"""


def start(*arguments, devices=1):
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(('SLURM', 'OMPI'))},
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
        'JAX_PLATFORMS': 'cpu',
    }
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def ended(*processes):
    """Exit code and output of processes, all of which are at an end after this."""
    try:
        return [(process.communicate(timeout=SECONDS), process.returncode) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def free_port():
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def numbers(result):
    (output, errors), code = result
    assert code == 0, errors
    return [json.loads(line) for line in output.splitlines() if line.startswith('{')]  # gloo prints too


def same(left, right):
    np.testing.assert_allclose(left['losses'], right['losses'], rtol=0, atol=1e-5)
    np.testing.assert_allclose(left['evaluation'], right['evaluation'], rtol=0, atol=1e-5)
    assert left['statistics'].keys() == right['statistics'].keys()
    for name, value in left['statistics'].items():
        np.testing.assert_allclose(value, right['statistics'][name], rtol=0, atol=1e-5, err_msg=name)


@pytest.fixture(scope='module')
def on_one_and_eight():
    return numbers(*ended(start('-c', WORKER, EXAMPLE, devices=8)))


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(on_one_and_eight):
    one, eight = on_one_and_eight
    assert (one['count'], eight['count'], len(one['losses'])) == (1, 8, 4)
    assert len(set(one['losses'])) == 4
    same(one, eight)


@pytest.mark.slow
def test_two_hosts_give_the_numbers_of_one(on_one_and_eight):
    address = f'127.0.0.1:{free_port()}'
    results = ended(*(start('-c', WORKER, EXAMPLE, address, process, devices=2) for process in (0, 1)))
    (first,), (second,) = (numbers(result) for result in results)
    assert first == second
    assert first['count'] == 4
    same(on_one_and_eight[0], first)


def test_a_batch_that_does_not_divide():
    code = (
        f'import sys; sys.path.insert(0, {str(EXAMPLE)!r})\n'
        'from devices import Devices\nfrom options import Problem\n'
        'for batch, parts in (64, 1), (16, 4), (20, 1):\n'
        '    try:\n        Devices().check(batch, parts)\n    except Problem as error:\n        print(error)'
    )
    (output, errors), _ = ended(start('-c', code, devices=8))[0]
    first, second = output.splitlines()
    assert '--batch-size: must be a multiple of 32 (8 devices times --accumulate 4), got 16; take 32' in first, errors
    assert '--batch-size: must be a multiple of 8 (8 devices), got 20; take 16' in second


@pytest.mark.slow
@pytest.mark.parametrize('process', [0, 1])
def test_a_host_that_never_comes(tmp_path, process):
    address = f'127.0.0.1:{free_port()}'
    hosts = ('--coordinator', address, '--num-processes', 2, '--process-id', process, '--timeout', 2)
    (output, errors), code = ended(start(EXAMPLE / 'train.py', '--output', tmp_path, *hosts))[0]
    assert code == 2, errors
    assert output == ''
    assert len(errors.splitlines()) == 1, errors
    for word in (address, 'within 2 s', 'start the same command on each'):
        assert word in errors


def test_hosts_with_other_settings(tmp_path):
    small = ('--dataset', 'synthetic', '--limit', 100, '--width', 2, '--batch-size', 20, '--output', tmp_path)
    hosts = ('--coordinator', f'127.0.0.1:{free_port()}', '--num-processes', 2, '--process-id')
    first = start(EXAMPLE / 'train.py', *small, *hosts, 0)
    second = start(EXAMPLE / 'train.py', *small, '--learning-rate', 0.1, '--seed', 3, *hosts, 1)
    for (_, errors), code in ended(first, second):
        assert code == 2, errors
        (line,) = [line for line in errors.splitlines() if line.startswith('train.py')]
        for words in 'same', '--learning-rate (0.001 on host 0, 0.1 on host 1)', '--seed (0 on host 0, 3 on host 1)':
            assert words in line
        assert 'width' not in line


@pytest.mark.slow
def test_what_the_first_host_refuses_all_refuse(example, tmp_path):
    small = ('--dataset', 'synthetic', '--limit', 100, '--width', 2, '--batch-size', 20, '--output', tmp_path)
    hosts = ('--coordinator', f'127.0.0.1:{free_port()}', '--num-processes', 2, '--process-id')
    with example('lock').locked(tmp_path):
        both = [start(EXAMPLE / 'train.py', *small, *hosts, process) for process in (0, 1)]
        for (_, errors), code in ended(*both):
            assert (code, 'is being written by another run' in errors) == (2, True), errors
