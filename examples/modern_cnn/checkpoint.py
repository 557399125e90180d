"""Checkpoints that survive anything: written in the background, whole or not at all, checked when they are read."""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from options import Problem

# orbax and its threads log the traceback of every failure; the sentence of a CheckpointError says the same
for logger in 'absl', 'asyncio':
    logging.getLogger(logger).setLevel(logging.CRITICAL)


def _unraisable(what: Any) -> None:
    """Print what can not be raised, but not that the threads of tensorstore have nobody to tell of further failures.

    Of several writes that fail together, that is all but the first, with which orbax stops to listen.
    """
    if str(what.exc_value) != 'Event loop is closed':
        _print_unraisable(what)


_print_unraisable, sys.unraisablehook = sys.unraisablehook, _unraisable

Arrays = dict[str, np.ndarray]


class CheckpointError(Problem):
    """What is wrong with a folder of checkpoints, and what to do, in one sentence."""


class Saved(NamedTuple):
    """One checkpoint: its step, its arrays by path (`model/conv1/weight`), and what was saved beside them."""

    step: int
    arrays: Arrays
    feed_state: Any
    settings: dict[str, Any]
    torn: dict[int, str]  # newer steps that can't be read, and why


def flatten(tree: Any) -> Arrays:
    """Copies of all arrays of a tree on the host, by path; a random key becomes its data."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # a copy, for the next training step may write into this memory
    return {_name(path): np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for path, leaf in leaves}


def fill(template: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """A tree like the template, on its devices, with the arrays of these paths; arrays it doesn't have are left out."""

    def place(path: Any, leaf: Any) -> Any:
        name, like = _name(path), jax.random.key_data(leaf) if _is_key(leaf) else leaf
        if name not in arrays:
            raise CheckpointError(f'the checkpoint has no {name}; it was saved by another version of this program')
        value, shape, dtype = arrays[name], np.shape(like), np.dtype(getattr(like, 'dtype', type(like)))
        if (value.shape, value.dtype) != (shape, dtype):
            raise CheckpointError(
                f'{name} is {value.dtype}{list(value.shape)} in the checkpoint and {dtype}{list(shape)} here; '
                'it was saved by another version of this program'
            )
        if not isinstance(like, jax.Array):
            return value
        # also where the devices belong to several processes, each of which has read all the values
        value = jax.make_array_from_callback(shape, like.sharding, lambda index: value[index])
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else value

    return jax.tree_util.tree_map_with_path(place, template)


def fingerprint(arrays: Mapping[str, np.ndarray], *more: Any) -> str:
    """SHA-256 of arrays with their names, types and shapes, and of more that can be written as JSON."""
    result = hashlib.sha256(json.dumps(more, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        result.update(f'\n{name} {array.dtype} {array.shape}\n'.encode())
        result.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return result.hexdigest()


class Checkpoints:
    """The checkpoints of one run, in a folder of their own: the last few, each a whole state of the training.

    A checkpoint is written under another name in the background and gets its own when it is complete, so a run that
    is killed leaves the last good one as it was. Its SHA-256 is compared when it is read. A run on several hosts
    needs a folder that all of them share, and calls everything on all of them at the same step.

    Parameters
    ----------
    folder : path
        Made if it isn't there.
    settings : dict
        All that decides the numbers of the run, as JSON; a checkpoint with other settings isn't gone on from.
    every : int
        `due(step)` is true each so many steps; 0 is never.
    keep : int
        How many of the latest checkpoints stay.
    resume : bool
        A folder that holds checkpoints is refused unless they are gone on from.

    Raises
    ------
    CheckpointError
        With a sentence for the user, also from every method.

    Examples
    --------
    ::

        with Checkpoints(folder, settings, every=100, resume=True) as checkpoints, StopSignals() as stop:
            found = checkpoints.restore(trainer.state())  # None: there is nothing yet to go on from
            ...
            for step in ...:
                ...
                if checkpoints.due(step):
                    checkpoints.save(step, trainer.state(), feed.get_state())
                if stop.requested(step):
                    checkpoints.save(step, trainer.state(), feed.get_state(), wait=True)
                    sys.exit(stop.exit_code)
    """

    def __init__(
        self, folder: str | Path, settings: Mapping[str, Any], *, every: int = 0, keep: int = 3, resume: bool = False
    ) -> None:
        self.folder = Path(folder).resolve()
        self.settings = json.loads(json.dumps(dict(settings)))  # as they come back from a file
        self.every = every
        self.notes: list[str] = []  # what the user should know about the folder
        steps = _steps(self.folder)
        if steps and not resume:
            raise CheckpointError(
                f'{self.folder} already holds a checkpoint, of step {steps[0]}; '
                'go on from it with --resume, or choose another folder'
            )
        try:
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, cleanup_tmp_directories=True, lightweight_initialize=True
                ),
            )
        except OSError as error:
            raise CheckpointError(f'can not write checkpoints into {self.folder}: {_reason(error)}') from error
        self._writing: int | None = None  # the step that is being written, perhaps
        self._failed = False

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        try:
            self.close()
        except CheckpointError:
            if kind is None:  # else what ended the run is what the user should read
                raise

    def due(self, step: int) -> bool:
        """Whether to save after this step."""
        return self.every > 0 and step % self.every == 0

    def latest(self) -> int | None:
        """The latest step that is complete in the folder."""
        return next(iter(_steps(self.folder)), None)

    def save(self, step: int, arrays: Any, feed_state: Any, wait: bool = False) -> None:
        """Save a tree of arrays, and whatever else goes on from here as JSON; the writing happens in the background.

        The arrays are copied before this returns, so their memory may be donated. A failure to write is raised here
        if `wait`, else by the next call.
        """
        if step != self._writing:
            self.wait()  # one at a time, and so that a failure is told of the step that it belongs to
            values = flatten(arrays)
            beside = json.loads(json.dumps({'feed_state': feed_state, 'settings': self.settings}))
            forms = {name: [str(value.dtype), *value.shape] for name, value in values.items()}
            record = {**beside, 'arrays': forms, 'sha256': fingerprint(values, beside)}
            parts = ocp.args.Composite(
                # orbax refuses arrays without elements; their form says it all
                arrays=ocp.args.PyTreeSave({name: value for name, value in values.items() if value.size}),
                record=ocp.args.JsonSave(record),
            )
            self._writing = step
            self._try(lambda: self._manager.save(step, args=parts, force=True))
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written."""
        self._try(self._manager.wait_until_finished)

    def restore(self, template: Any) -> tuple[int, Any, Any] | None:
        """Step, arrays in the form of the template, and feed state of the latest good checkpoint.

        None if the folder holds none. One that can't be read is put aside as `<step>.torn` and told of in `notes`.
        """
        if self.latest() is None:
            return None
        saved = load(self.folder)
        if other := differences(saved.settings, self.settings):
            raise CheckpointError(
                f'the checkpoint in {self.folder} was made with other settings: {other}; '
                'go on with the same ones, or choose another folder'
            )
        arrays = fill(template, saved.arrays)
        for step, why in saved.torn.items():
            self.notes.append(f'the checkpoint of step {step} can not be read ({why}); the one before is used')
            if jax.process_index() == 0:
                # put aside, not deleted: who knows why it can't be read
                shutil.rmtree(self.folder / f'{step}.torn', ignore_errors=True)
                (self.folder / str(step)).rename(self.folder / f'{step}.torn')
        if saved.torn:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices('torn checkpoints are put aside')
            self._manager.reload()
        self._writing = saved.step
        return saved.step, arrays, saved.feed_state

    def close(self) -> None:
        """Wait for what is being written, and end the threads that write."""
        if not self._failed:
            self.wait()
            self._manager.close()

    def _try(self, action: Any) -> None:
        """Do something that writes, and say in a sentence why it failed."""
        try:
            action()
        except Exception as error:  # from the threads of orbax come errors of all kinds
            self._failed = True
            if jax.process_index() == 0:
                for rest in self.folder.glob(f'{self._writing}.orbax-checkpoint-tmp*'):
                    shutil.rmtree(rest, ignore_errors=True)
            good = self.latest()
            raise CheckpointError(
                f'the checkpoint of step {self._writing} could not be written into {self.folder}: {_reason(error)}; '
                + ('there is none before it' if good is None else f'the last good one is of step {good}')
            ) from error


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Which settings differ, in words; nothing if none do."""
    missing = object()
    return ', '.join(
        f'{name} ({there.get(name, "nothing")!r} there, {here.get(name, "nothing")!r} here)'
        for name in {**there, **here}
        if there.get(name, missing) != here.get(name, missing)
    )


def load(folder: str | Path) -> Saved:
    """The latest checkpoint in a folder that can be read whole."""
    folder = Path(folder).resolve()
    torn: dict[int, str] = {}
    for step in _steps(folder):
        try:
            return _read(folder, step, torn)
        except Exception as error:  # whatever orbax meets in a damaged folder
            torn[step] = _reason(error)
    if torn:
        step, why = next(iter(torn.items()))
        raise CheckpointError(
            f'none of the {len(torn)} checkpoints in {folder} can be read (step {step}: {why}); '
            'start again in another folder'
        )
    raise CheckpointError(f'{folder} holds no checkpoint')


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _steps(folder: Path) -> list[int]:
    """The steps in a folder, the latest first. What is being written has another name."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f'can not look for checkpoints in {folder}: {_reason(error)}') from error
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _read(folder: Path, step: int, torn: dict[int, str]) -> Saved:
    """The checkpoint of one step, compared with its SHA-256."""
    path = folder / str(step)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        record: Any = reader.restore(path, args=ocp.args.Composite(record=ocp.args.JsonRestore()))['record']
        arrays: Arrays = {}
        # one at a time: where several fail together, all but one of the errors come as tracebacks from other threads
        for name, (dtype, *shape) in record['arrays'].items():
            arrays[name] = np.empty(shape, dtype)
            if arrays[name].size:
                part = ocp.args.PyTreeRestore({name: arrays[name]}, partial_restore=True)
                arrays[name] = reader.restore(path, args=ocp.args.Composite(arrays=part))['arrays'][name]
    beside = {'feed_state': record['feed_state'], 'settings': record['settings']}
    if fingerprint(arrays, beside) != record['sha256']:
        raise CheckpointError('its SHA-256 is another than when it was saved')
    return Saved(step, arrays, record['feed_state'], record['settings'], torn)


def _reason(error: BaseException) -> str:
    """The cause of a failed read or write in a few words: what the system says, where it says something."""
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    if found := re.search(r"os_error_code='(\d+)'", text):  # how tensorstore hands it on
        number = int(found[1])
    if number == errno.ENOSPC:
        return 'the disk is full'
    if number:
        return os.strerror(number)
    if isinstance(error, FileNotFoundError | KeyError) or text.startswith('NOT_FOUND'):
        return 'a part of it is missing'
    if isinstance(error, json.JSONDecodeError) or text.startswith(('OUT_OF_RANGE', 'DATA_LOSS')):
        return 'a part of it is cut short or damaged'
    return ' '.join(text.split())[:200] or type(error).__name__


class StopSignals:
    """Turns the first SIGTERM or SIGINT (Ctrl-C) into a wish to stop after the step; the second ends at once.

    On several hosts a signal to one of them stops them all after the same step: JAX agrees on it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> 'StopSignals':
        # several hosts: JAX's own handler of SIGTERM tells the others
        mine = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else (signal.SIGINT,)
        self._before = {number: signal.signal(number, self._receive) for number in mine}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; on several hosts all of them ask after every step."""
        if jax.process_count() == 1:
            return self.received is not None
        stop = multihost_utils.reached_preemption_sync_point(step)
        if stop and self.received is None:
            self.received = signal.SIGTERM
        return stop

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal has ended: 143 or 130."""
        return 128 + (self.received or 0)
