"""The README says what the code does."""

import re
from pathlib import Path

import pytest

import jaxnorm
from jaxnorm import functional, nn

README = Path(jaxnorm.__file__).parents[1] / 'README.md'
if not README.exists():
    pytest.skip('the package is tested without its source tree', allow_module_level=True)
TEXT = README.read_text()


def test_the_example_runs(capsys):
    (code,) = re.findall(r'```python\n(.*?)```', TEXT, re.S)
    names: dict[str, object] = {}
    exec(code, names)
    assert names['y'].shape == (8, 16)  # type: ignore[attr-defined]
    assert len(code.strip().splitlines()) <= 12


def test_every_public_name_stands_in_the_table():
    table = {name for row in re.findall(r'^\| (`.*?) \|', TEXT, re.M) for name in re.findall(r'`(\w+)`', row)}
    table |= {name for row in re.findall(r'^\| `.*? \| (`.*?) \|', TEXT, re.M) for name in re.findall(r'`(\w+)`', row)}
    public = {n for module in (functional, nn) for n in vars(module) if not n.startswith('_')}
    assert table == public


def test_two_commands_of_one_line():
    commands = re.findall(r'```sh\n(.*?)\n```', TEXT, re.S)
    assert len(commands) == 2
    assert all('\n' not in c and c.startswith('python -m venv') for c in commands)
