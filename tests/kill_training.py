"""Kill a training with SIGKILL again and again, go on each time, and compare with one that nobody disturbed.

``python tests/kill_training.py FOLDER --kills 20`` prints the log; exit code 1 if the weights differ. The moments are
random: while a run starts or reads its checkpoint, at a step, or in the middle of a save. What is run is the command
`examples/modern_cnn/train.py`, in forked processes, so that the packages are imported only once.
"""

import argparse
import csv
import importlib
import mmap
import os
import resource
import signal
import struct
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
from loading import EXAMPLE

sys.path.insert(0, str(EXAMPLE))

# all that the command imports, once for all processes
checkpoint, train, *_ = map(importlib.import_module, ('checkpoint', 'train', 'report', 'training', 'sklearn.datasets'))

RUN = '--dataset synthetic --limit 200 --width 2 --batch-size 20 --epochs 10 --augment --ema 0.9 --checkpoint-every 3'
STEPS = 80
TIMINGS = {'seconds', 'images_per_second'}


class Training:
    """The command in a process of its own, whose steps can be watched."""

    def __init__(self, output: Path) -> None:
        self.checkpoints = output / 'checkpoints'
        self._before = self._half_written()
        self._reached = mmap.mmap(-1, 4)  # memory that both processes see
        self.began = time.monotonic()
        sys.stdout.flush()
        self.process = os.fork()
        if not self.process:
            self._train(output)

    def _train(self, output: Path) -> None:
        code = os.EX_SOFTWARE
        try:
            log = os.open(output.parent / f'{output.name}.txt', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            requested = checkpoint.StopSignals.requested

            def watched(stop, step: int) -> bool:
                self._reached[:] = struct.pack('i', step)
                return requested(stop, step)

            checkpoint.StopSignals.requested = watched
            sys.argv = ['train.py', *RUN.split(), '--output', str(output), '--resume']
            code = train.main()
            sys.stdout.flush()
        finally:
            os._exit(code)

    @property
    def reached(self) -> int:
        """The last step of this process; 0 before its first."""
        return struct.unpack('i', self._reached[:])[0]

    @property
    def saving(self) -> bool:
        """Whether this process has written half of a checkpoint, or deleted half of one."""
        return bool(self._half_written() - self._before)

    def _half_written(self) -> set[int]:
        return {entry.inode() for entry in os.scandir(self.checkpoints) if 'tmp' in entry.name}

    def wait_for(self, what, limit: float = 60) -> None:
        """Look each half millisecond whether something is so, or the process has ended."""
        until = time.monotonic() + limit
        while not what() and time.monotonic() < until and not self.ended():
            time.sleep(0.0005)

    def ended(self) -> bool:
        """Whether the process has ended by itself."""
        return os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        """SIGKILL: nothing in the process gets to know of it."""
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)

    def finish(self) -> int:
        """Wait for the end: the exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def numbers(output: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without the timings."""
    with (output / 'metrics.csv').open(encoding='utf-8') as file:
        return [{name: value for name, value in row.items() if name not in TIMINGS} for row in csv.DictReader(file)]


def weights(output: Path) -> str:
    """SHA-256 of all that was saved at the end: weights, statistics, optimizer, averages, random key."""
    saved = checkpoint.load(output / 'checkpoints')
    return f'step {saved.step}, SHA-256 {checkpoint.fingerprint(saved.arrays)}'


def disturbed(output: Path, kills: int, rng: np.random.Generator) -> None:
    """Train to the end in spite of so many kills, and print a line for each."""
    print('kill  when              after   step reached  half saved  next begins after')
    for kill in range(kills):
        saved = max((int(name) for name in os.listdir(output / 'checkpoints') if name.isdecimal()), default=0)
        run = Training(output)
        # on average so far that all the kills fit in before the end
        target = saved + int(rng.integers(1, max(2, 2 * (STEPS - saved) // (kills - kill))))
        target = min(target, STEPS - 5)
        when = str(rng.choice(['at the start', 'at a step', 'in a save'], p=[0.1, 0.4, 0.5]))
        if when != 'at the start':
            run.wait_for(lambda run=run, target=target: run.reached >= target)
        if when == 'in a save':
            run.wait_for(lambda run=run: run.saving)
        time.sleep(rng.uniform(0, {'at the start': 3.0, 'at a step': 0.03, 'in a save': 0.02}[when]))
        run.kill()
        good = checkpoint._steps(output / 'checkpoints')
        print(
            f'{kill + 1:4}  {when:<16} {time.monotonic() - run.began:5.2f} s  {run.reached or "-":>12}'
            f'  {"yes" if run.saving else "no":>10}  {good[0] if good else "the beginning":>17}'
        )


def seconds() -> float:
    """The CPU time of all processes that have ended."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def main() -> int:
    """The command."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument('folder', type=Path)
    options.add_argument('--kills', type=int, default=20)
    options.add_argument('--seed', type=int, default=0)
    given = options.parse_args()
    warnings.filterwarnings('ignore', 'os.fork', RuntimeWarning)  # JAX has not begun in this process
    folder = given.folder.resolve()
    # what the first run has compiled, the others read
    jax.config.update('jax_compilation_cache_dir', str(folder / 'cache'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    quiet, killed = folder / 'undisturbed', folder / 'killed'
    for output in quiet, killed:
        (output / 'checkpoints').mkdir(parents=True)
    print(f'train.py {RUN}')
    code = Training(quiet).finish()
    print(f'undisturbed: {seconds():.1f} s of CPU')
    disturbed(killed, given.kills, np.random.default_rng(given.seed))
    code = code or Training(killed).finish()
    print(f'all runs together: {seconds():.1f} s of CPU')
    if code:
        print(f'a run ended with exit code {code}')
        return 1
    print(f'undisturbed: {weights(quiet)}\n     killed: {weights(killed)}')
    same = weights(quiet) == weights(killed) and numbers(quiet) == numbers(killed)
    print('the same weights, and the same metrics.csv but for the timings' if same else 'NOT THE SAME')
    return 0 if same else 1


if __name__ == '__main__':
    sys.exit(main())
