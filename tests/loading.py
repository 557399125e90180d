"""How tests get at the files of an example."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / 'examples'
EXAMPLE = EXAMPLES / 'modern_cnn'  # the large one


@contextlib.contextmanager
def files_of(folder: Path) -> Iterator[Callable[[str], Any]]:
    """Imports files of a folder as its commands do, and forgets them: the names are too common to stay."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], '__file__', None) or '.').parent == folder:
            del sys.modules[name]
