"""The ModernCNN example never loses work: its checkpoints, what they say when something is wrong, and signals."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loading import EXAMPLE

SETTINGS = {'norm': 'batch', 'batch_size': 64, 'classes': ('a', 'b')}


@pytest.fixture
def checkpoint(example):
    """The file of the example."""
    return example('checkpoint')


def tree(step):
    """All kinds of arrays that a training has."""
    rng = np.random.default_rng(step)
    return {
        'model': {'conv1/weight': {'weight': jnp.asarray(rng.normal(size=(3, 4)), jnp.bfloat16)}},
        'optimizer': (jnp.array(step), [np.float32(step), jnp.zeros((0, 3))]),
        'key': jax.random.key(step),
        'raw': jax.random.PRNGKey(step),
        'sound': np.True_,
    }


def same(checkpoint, a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and (
        checkpoint.fingerprint(checkpoint.flatten(a)) == checkpoint.fingerprint(checkpoint.flatten(b))
    )


def filled(checkpoint, folder, steps=(2, 4, 6, 8)):
    with checkpoint.Checkpoints(folder, SETTINGS) as checkpoints:
        for step in steps:
            checkpoints.save(step, tree(step), {'position': step, 'history': [[1, 0.1 + 0.2]]})
    return folder


def test_everything_comes_back(checkpoint, tmp_path):
    filled(checkpoint, tmp_path / 'new' / 'checkpoints')
    with checkpoint.Checkpoints(tmp_path / 'new' / 'checkpoints', SETTINGS, resume=True) as checkpoints:
        assert checkpoints.latest() == 8
        step, arrays, feed = checkpoints.restore(tree(0))
        assert (step, feed) == (8, {'position': 8, 'history': [[1, 0.1 + 0.2]]})
        assert same(checkpoint, arrays, tree(8))
        assert arrays['key'].dtype == tree(0)['key'].dtype
        assert isinstance(arrays['raw'], jax.Array) and not isinstance(arrays['sound'], jax.Array)
        assert checkpoints.notes == []
    # the last three are kept, and what is read without a template is by path
    assert sorted(path.name for path in (tmp_path / 'new' / 'checkpoints').iterdir()) == ['4', '6', '8']
    saved = checkpoint.load(tmp_path / 'new' / 'checkpoints')
    assert saved.settings == {**SETTINGS, 'classes': ['a', 'b']}
    assert 'model/conv1/weight/weight' in saved.arrays and saved.arrays['optimizer/1/1'].shape == (0, 3)
    part = checkpoint.fill({'raw': jnp.zeros(2, jnp.uint32)}, saved.arrays)
    np.testing.assert_array_equal(part['raw'], tree(8)['raw'])


def test_memory_may_be_donated_while_it_is_written(checkpoint, tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(300_000)
    with checkpoint.Checkpoints(tmp_path, {}) as checkpoints:
        for number in range(1, 4):
            x = step(x)
            checkpoints.save(number, {'x': x}, None)
            for _ in range(5):
                x = step(x)
    np.testing.assert_array_equal(checkpoint.load(tmp_path).arrays['x'], 13)


def test_when_it_is_due_and_that_a_step_is_saved_once(checkpoint, tmp_path):
    with checkpoint.Checkpoints(tmp_path / 'a', {}, every=3) as checkpoints:
        assert [step for step in range(1, 10) if checkpoints.due(step)] == [3, 6, 9]
        assert checkpoints.latest() is None and checkpoints.restore({}) is None
        for _ in range(2):
            checkpoints.save(3, {'x': np.ones(2)}, 0, wait=True)
        assert checkpoints.latest() == 3
    with checkpoint.Checkpoints(tmp_path / 'b', {}) as checkpoints:
        assert not any(checkpoints.due(step) for step in range(10))


def test_a_folder_with_a_checkpoint_is_not_written_over(checkpoint, tmp_path):
    filled(checkpoint, tmp_path, [5])
    with pytest.raises(checkpoint.CheckpointError, match=r'already holds a checkpoint, of step 5; .* --resume'):
        checkpoint.Checkpoints(tmp_path, SETTINGS)
    assert same(checkpoint, checkpoint.fill(tree(0), checkpoint.load(tmp_path).arrays), tree(5))


def test_other_settings_are_named(checkpoint, tmp_path):
    filled(checkpoint, tmp_path, [5])
    other = {'norm': 'group', 'classes': ('a', 'b'), 'ema': 0.9}
    with (
        checkpoint.Checkpoints(tmp_path, other, resume=True) as checkpoints,
        pytest.raises(checkpoint.CheckpointError) as error,
    ):
        checkpoints.restore(tree(0))
    for words in "norm ('batch' there, 'group' here)", 'batch_size (64 there', 'ema (', 'go on with the same ones':
        assert words in str(error.value)
    assert 'classes' not in str(error.value)


def test_arrays_of_another_program(checkpoint, tmp_path):
    filled(checkpoint, tmp_path, [5])
    arrays = checkpoint.load(tmp_path).arrays
    with pytest.raises(checkpoint.CheckpointError, match='has no more; it was saved by another version'):
        checkpoint.fill({'more': jnp.ones(2)}, arrays)
    with pytest.raises(checkpoint.CheckpointError, match=r'raw is uint32\[2\] in the checkpoint and float32\[3\] here'):
        checkpoint.fill({'raw': jnp.ones(3)}, arrays)


def missing(path):
    path.unlink()


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def emptied(path):
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.parametrize(
    ('damage', 'file', 'why'),
    [
        (missing, 'arrays/manifest.ocdbt', 'missing'),
        (missing, 'arrays/d/*', 'missing'),
        (missing, 'record/metadata', 'missing'),
        (truncated, 'arrays/manifest.ocdbt', 'cut short or damaged'),
        (truncated, 'arrays/d/*', 'cut short or damaged'),
        (truncated, 'record/metadata', 'cut short or damaged'),
        (flipped, 'arrays/d/*', 'damaged'),
        (emptied, '.', 'missing'),
        (emptied, 'arrays', 'missing'),
    ],
)
def test_a_torn_folder(checkpoint, tmp_path, capfd, damage, file, why):
    filled(checkpoint, tmp_path)
    damage(next((tmp_path / '8').glob(file)) if file != '.' else tmp_path / '8')
    with checkpoint.Checkpoints(tmp_path, SETTINGS, resume=True) as checkpoints:
        step, arrays, feed = checkpoints.restore(tree(0))
        assert (step, feed['position']) == (6, 6)
        assert same(checkpoint, arrays, tree(6))
        (note,) = checkpoints.notes
        assert 'step 8 can not be read' in note and why in note
        # the training comes to that step again, and the torn one is put aside, not thrown away
        checkpoints.save(8, tree(8), {'position': 8}, wait=True)
    assert checkpoint.load(tmp_path).step == 8
    assert (tmp_path / '8.torn').is_dir()
    assert capfd.readouterr().err == ''


def test_nothing_but_torn_folders(checkpoint, tmp_path):
    filled(checkpoint, tmp_path, [2, 4])
    for step in '2', '4':
        truncated(tmp_path / step / 'record' / 'metadata')
    sentence = r'none of the 2 checkpoints in .* can be read \(step 4: .*\); start again in another folder'
    checkpoints = checkpoint.Checkpoints(tmp_path, SETTINGS, resume=True)
    with checkpoints, pytest.raises(checkpoint.CheckpointError, match=sentence):
        checkpoints.restore(tree(0))
    assert (tmp_path / '2').is_dir() and (tmp_path / '4').is_dir()
    with pytest.raises(checkpoint.CheckpointError, match='holds no checkpoint'):
        checkpoint.load(tmp_path / 'nowhere')


def test_a_value_that_was_changed_is_noticed(checkpoint, tmp_path):
    filled(checkpoint, tmp_path, [2, 4])
    path = tmp_path / '4' / 'record' / 'metadata'
    record = json.loads(path.read_text())
    record['feed_state']['position'] = 3
    path.write_text(json.dumps(record))
    saved = checkpoint.load(tmp_path)
    assert saved.step == 2 and 'SHA-256' in saved.torn[4]


@pytest.mark.parametrize('wait', [True, False])
def test_a_disk_that_is_full(checkpoint, tmp_path, wait, capfd):
    """As far as one can be had without being root: no file may grow beyond a size."""
    filled(checkpoint, tmp_path, [2])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = {'x': np.random.default_rng(0).normal(size=100_000)}

    def run():
        with checkpoint.Checkpoints(tmp_path, SETTINGS, resume=True) as checkpoints:
            checkpoints.restore(tree(0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
            checkpoints.save(3, large, 0, wait=wait)
            checkpoints.save(4, large, 0)  # without waiting, the failure is told of here

    try:
        with pytest.raises(checkpoint.CheckpointError) as error:
            run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f'the checkpoint of step 3 could not be written into {tmp_path}: File too large' in str(error.value)
    assert 'the last good one is of step 2' in str(error.value)
    # nothing half-written stays, and the run can be gone on with
    assert [path.name for path in tmp_path.iterdir()] == ['2']
    assert checkpoint.load(tmp_path).step == 2
    assert capfd.readouterr().err == ''


def test_many_writes_that_fail_together_are_one_sentence(tmp_path):
    code = (
        f'import resource, sys; sys.path.insert(0, {str(EXAMPLE)!r})\n'
        'import numpy as np\nfrom checkpoint import CheckpointError, Checkpoints\n'
        'arrays = {f"array {i}": np.random.default_rng(i).normal(size=20_000) for i in range(40)}\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, -1))\n'
        'try:\n'
        f'    with Checkpoints({str(tmp_path)!r}, {{}}) as checkpoints: checkpoints.save(1, arrays, 0)\n'
        'except CheckpointError as error: print(error)'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, '')
    assert 'the checkpoint of step 1 could not be written' in result.stdout


def test_the_words_for_a_full_disk(checkpoint, tmp_path, monkeypatch):
    no_space = OSError(28, os.strerror(28))
    with checkpoint.Checkpoints(tmp_path, SETTINGS) as checkpoints:

        def fail(*_, **__):
            raise no_space

        monkeypatch.setattr(checkpoints._manager, 'save', fail)
        with pytest.raises(checkpoint.CheckpointError, match='the disk is full; there is none before it'):
            checkpoints.save(1, tree(1), 0)
    # as tensorstore writes it
    assert checkpoint._reason(ValueError("RESOURCE_EXHAUSTED: … [os_error_code='28']")) == 'the disk is full'


def test_a_folder_that_can_not_be_made(checkpoint, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(checkpoint.CheckpointError, match=r'can not .* checkpoints in(to)? '):
        checkpoint.Checkpoints(tmp_path / 'file' / 'checkpoints', SETTINGS)


LOOP = """
import sys, time
sys.path.insert(0, {example!r})
from checkpoint import StopSignals
with StopSignals() as stop:
    for step in range(1, 1000):
        print(step, flush=True)
        time.sleep(0.2)
        if stop.requested(step) and {obey}:
            print('after', step, stop.received.name, flush=True)
            sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_the_step(number, code):
    with subprocess.Popen(
        [sys.executable, '-c', LOOP.format(example=str(EXAMPLE), obey=True)], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None and run.stdout.readline() == '1\n'
        run.send_signal(number)
        assert run.stdout.read() == f'after 1 {number.name}\n'
        assert run.wait(10) == code


def test_a_second_signal_ends_it_at_once():
    with subprocess.Popen(
        [sys.executable, '-c', LOOP.format(example=str(EXAMPLE), obey=False)], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None and run.stdout.readline() == '1\n'
        run.send_signal(signal.SIGINT)
        assert run.stdout.readline() == '2\n'
        run.send_signal(signal.SIGTERM)
        assert run.wait(10) == -signal.SIGTERM


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    """SIGKILL at random moments, also in the middle of a save: the weights are those of an undisturbed run."""
    script = Path(__file__).with_name('kill_training.py')
    result = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    log = result.stdout.splitlines()
    assert sum('in a save' in line for line in log) >= 5
    assert log[-1] == 'the same weights, and the same metrics.csv but for the timings'
