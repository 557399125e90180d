"""The notebooks run from a clean kernel, and what is stored in them is what they print.

`python tests/test_notebooks.py` executes them all and stores their outputs anew. A cell tagged ``varies`` prints what
depends on versions (the repr of a module) or is rounding noise: that it prints is checked, what it prints is not.
"""

import asyncio
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / 'notebooks').glob('*.ipynb'))
VARIES = 'varies'
SECONDS = 120
METADATA = {
    'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
    'language_info': {'name': 'python'},
}
NUMBER = re.compile(r'[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?')
# a folder of somebody's machine, or an address in its memory
PRIVATE = re.compile(r'(?<![\w.:/])/(?:home|root|tmp|work|usr|opt|Users|private|mnt)\b|[A-Z]:\\|0x[0-9a-f]{6,}')

notebooks = pytest.mark.parametrize('path', NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def executed(path: Path) -> Any:
    """The notebook with fresh outputs and nothing else that a run leaves behind."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name='python3',
            record_timing=False,
            coalesce_streams=True,
            resources={'metadata': {'path': folder}},
        )
        environment = os.environ | {
            'IPYTHONDIR': folder,  # no settings of the user
            'JAX_PLATFORMS': 'cpu',
            'MPLBACKEND': 'module://matplotlib_inline.backend_inline',
            'PYTHONWARNINGS': '',
        }
        asyncio.run(asyncio.wait_for(client.async_execute(env=environment), SECONDS))
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def texts(cell: Any) -> Iterator[str]:
    """What a cell prints, without what goes to stderr: that is up to the machine."""
    for output in cell.outputs:
        if output.output_type == 'stream' and output.name == 'stdout':
            yield output.text
        elif 'text/plain' in output.get('data', {}):
            yield output.data['text/plain']


def pictures(cell: Any) -> int:
    return sum('image/png' in output.get('data', {}) for output in cell.outputs)


def words_and_numbers(text: str) -> tuple[str, list[float]]:
    """A text with its numbers taken out, and the numbers; how an array is spaced depends on its last digits."""
    words = re.sub(r'\s+', ' ', NUMBER.sub('#', text))
    return re.sub(r' ?([\[\]]) ?', r'\1', words).strip(), [float(number) for number in NUMBER.findall(text)]


def test_there_are_notebooks():
    assert NOTEBOOKS


@notebooks
def test_what_is_stored(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_500_000
    assert notebook.metadata == METADATA
    first = notebook.cells[0]
    assert first.cell_type == 'markdown' and first.source.startswith('# ')

    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert {output.output_type for output in cell.outputs} <= {'stream', 'display_data', 'execute_result'}, cell.id
        assert all(output.get('name') != 'stderr' for output in cell.outputs), cell.id
        assert pictures(cell) == cell.source.count('plt.show()'), cell.id
        assert 'print(' not in cell.source or any(texts(cell)), cell.id
    for cell in notebook.cells:
        assert 'execution' not in cell.metadata, cell.id
        printed = [] if cell.cell_type == 'markdown' else texts(cell)
        for text in [cell.source, *printed]:
            assert not PRIVATE.search(text), (cell.id, PRIVATE.search(text))


@pytest.mark.slow
@notebooks
def test_it_runs_and_prints_what_is_stored(path):
    stored = code_cells(nbformat.read(path, as_version=4))
    fresh = code_cells(executed(path))  # an error in a cell is raised
    for old, new in zip(stored, fresh, strict=True):
        before, after = list(texts(old)), list(texts(new))
        assert (len(before), pictures(old)) == (len(after), pictures(new)), old.id
        if VARIES in old.metadata.get('tags', []):
            continue
        for was, now in zip(before, after, strict=True):
            words, numbers = words_and_numbers(was)
            new_words, new_numbers = words_and_numbers(now)
            assert new_words == words, old.id
            np.testing.assert_allclose(new_numbers, numbers, rtol=1e-3, atol=1e-6, err_msg=old.id)


if __name__ == '__main__':
    for path in NOTEBOOKS:
        nbformat.write(executed(path), path)
        print(path.name)
