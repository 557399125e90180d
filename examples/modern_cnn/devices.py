"""All devices of all hosts, and how a batch is spread over them."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from options import Options, Problem

#: What launchers tell their processes: how many there are, and where; jax reads the rest
LAUNCHERS = {'SLURM_STEP_NUM_TASKS': 'SLURM_STEP_NODELIST', 'OMPI_COMM_WORLD_SIZE': 'OMPI_MCA_orte_hnp_uri'}


def connect(options: Options) -> None:
    """Join the other hosts, if there are others: those of the options, or those that jax finds from the launcher.

    The program ends here, with a sentence and exit code 2, if they do not all come in time.
    """
    launchers = [place for count, place in LAUNCHERS.items() if int(os.environ.get(count, 1)) > 1]
    if 'JOB_COMPLETION_INDEX' in os.environ:  # an indexed Job of Kubernetes, or a JobSet
        launchers.append('HOSTNAME')
    if options.coordinator is None and not launchers:
        return
    told = (f'{place}={os.environ.get(place)}' for place in launchers)
    where = options.coordinator or f'the address that jax took from {", ".join(told)}'

    def give_up() -> None:
        # from another thread: jax waits in code of its own, and ends the process with a stack trace where time is up
        message = (
            f'not all hosts met at {where} within {options.timeout} s; start the same command on each of them, with '
            '--process-id from 0 up, and let them reach this port'
        )
        print(f'train.py: error: argument --coordinator: {message}', file=sys.stderr, flush=True)
        os._exit(2)

    alarm = threading.Timer(options.timeout, give_up)
    alarm.daemon = True
    alarm.start()
    # on CPUs processes talk to each other by gloo
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.num_processes,
            options.process_id,
            initialization_timeout=options.timeout + 60,
        )
    except (RuntimeError, ValueError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise Problem(
            f'argument --coordinator: can not join the other hosts at {where}: {reason}; give --coordinator, '
            '--num-processes and --process-id'
        ) from error
    finally:
        alarm.cancel()


def gathered(text: str) -> list[str]:
    """The texts of all hosts, on each of them. Like all that hosts do together, it has to be called on every one."""
    if jax.process_count() == 1:
        return [text]
    given = text.encode()
    # only arrays of one shape are gathered
    size = int(np.max(multihost_utils.process_allgather(np.int32(len(given)))))
    rows = multihost_utils.process_allgather(np.frombuffer(given.ljust(size), np.uint8))
    return [bytes(row).decode().rstrip() for row in rows]


def agree(given: Mapping[str, Any], advice: str = 'start the same command on each of them') -> None:
    """Refuse on all hosts what is not the same on all: they would train together, and each another thing."""
    first, *others = (json.loads(text) for text in gathered(json.dumps(given)))
    different = [
        f'{name} ({first[name]!r} on host 0, {other[name]!r} on host {host})'
        for host, other in enumerate(others, 1)
        for name in first
        if other[name] != first[name]
    ]
    if different:
        raise Problem(f'all hosts must be given the same, got {", ".join(different)}; {advice}')


@contextlib.contextmanager
def on_the_first(context: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """A context that is entered on the first host only; what is refused there is refused on all."""
    with contextlib.ExitStack() as stack:
        refused = ''
        try:
            if jax.process_index() == 0:
                stack.enter_context(context)
        except Problem as problem:
            refused = str(problem)
        for reason in filter(None, gathered(refused)):
            raise Problem(reason)
        yield


class Devices:
    """A mesh of all devices: a batch is split over them, everything else is on each.

    With that a plain jit is data parallel: it computes what one device would, batch statistics included.

    Parameters
    ----------
    devices : list of jax.Device, optional
        By default all of them.
    """

    def __init__(self, devices: list[Any] | None = None) -> None:
        devices = jax.devices() if devices is None else devices
        self.count = len(devices)
        self.process_index, self.process_count = jax.process_index(), jax.process_count()
        # without it the axes are explicit, and every reshape of a batch would have to say how it is to be split
        mesh = jax.make_mesh((self.count,), ('batch',), axis_types=(AxisType.Auto,), devices=devices)
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.split = NamedSharding(mesh, PartitionSpec('batch'))

    def __str__(self) -> str:
        kind = jax.devices()[0].device_kind
        hosts = f' on {self.process_count} hosts' if self.process_count > 1 else ''
        return f'{self.count} {jax.default_backend()} device{"s" * (self.count > 1)}{hosts} ({kind})'

    def check(self, batch_size: int, accumulate: int = 1) -> None:
        """Refuse a batch that does not divide into equal parts."""
        if batch_size % (self.count * accumulate):
            parts = f'{self.count} devices' + (f' times --accumulate {accumulate}' if accumulate > 1 else '')
            least = self.count * accumulate
            raise Problem(
                f'argument --batch-size: must be a multiple of {least} ({parts}), got {batch_size}; '
                f'take {max(batch_size // least, 1) * least}'
            )

    def shard(self, part: Any) -> Any:
        """This host's rows of a batch, as its part of the batch of all hosts."""
        return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(self.split, np.asarray(rows)), part)

    def replicate(self, tree: Any) -> Any:
        """Values that are the same on all hosts, in the memory of every device."""
        return jax.tree.map(lambda v: jax.make_array_from_process_local_data(self.everywhere, np.array(v)), tree)
