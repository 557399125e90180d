"""One run at a time in an output folder: two would write over each other's files."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from options import Problem

try:
    import fcntl
except ImportError:  # on Windows, where nothing is locked
    fcntl = None

NAME = '.lock'


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, or refuse the one that another run holds.

    The lock is the system's, on an empty file: it goes with the process, however that ends, so that nothing has to be
    cleared away before a run that was killed is gone on with.

    Raises
    ------
    Problem
        If another run holds it.
    """
    try:
        file = (folder / NAME).open('a')
    except OSError as error:
        raise Problem(
            f"argument --output: can not write into '{folder}': {error.strerror or error}; choose another folder"
        ) from None
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                # the rest are file systems that have no locks
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise Problem(
                        f"argument --output: '{folder}' is being written by another run; wait until it is done, or "
                        'choose another folder'
                    ) from None
        yield
