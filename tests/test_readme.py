"""The README says what the code does. `python tests/test_readme.py` writes its table of activations anew."""

import inspect
import re
from pathlib import Path

import pytest

import jaxnorm
from jaxnorm import functional, nn

README = Path(jaxnorm.__file__).parents[1] / 'README.md'
if not README.exists():
    pytest.skip('the package is tested without its source tree', allow_module_level=True)
TEXT = README.read_text(encoding='utf-8')
START, END = '<!-- activations: written by tests/test_readme.py -->\n', '<!-- end of activations -->\n'


def public(module):
    return {name: value for name, value in vars(module).items() if not name.startswith('_') and callable(value)}


def activations():
    """The functions by their first name, each with its aliases and classes."""
    found = {}
    for name, function in public(functional).items():
        if not function.__module__.endswith(('_normalization', '_get')):
            found.setdefault(function.__name__, (function, []))[1].append(name)
    classes = {}
    for name, cls in public(nn).items():
        function = getattr(cls, 'fn', None)
        if function is not None:
            classes.setdefault(function.__name__, []).append(name)
    order = {name: i for i, name in enumerate(dict.fromkeys(f.__name__ for f, _ in found.values()))}
    return [(f, names, classes.get(name, [])) for name, (f, names) in sorted(found.items(), key=lambda i: order[i[0]])]


def formula(doc):
    """The formula of a docstring, for a table."""
    math = re.search(r'\.\. math::\s*(.*?)\n\n', doc, re.S)
    text = ' '.join(math[1].split()) if math else ''
    return '$`' + text.replace(r'\|', r'\Vert ').replace('|', r'\vert ') + '`$' if text else ''


def table():
    import cases

    rows = ['| function | class | formula | range | slope at kinks |', '|---|---|---|---|---|']
    kinks = {}
    for case in [*cases.ACTIVATIONS, *cases.OVER_AXIS]:
        if not case.arguments:
            kinks[case.name] = ', '.join(f'{slope:g} at {at:g}' for at, slope in case.kinks.items())
    for function, names, classes in activations():
        doc = inspect.getdoc(function) or ''
        found = re.search(r'; in ([\[(].*?[\])])', ' '.join(doc.split()))
        cells = [', '.join(f'`{n}`' for n in names), ', '.join(f'`{n}`' for n in classes), formula(doc)]
        cells += [found[1] if found else '', kinks.get(function.__name__, '')]
        rows.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(rows) + '\n'


def test_the_table_of_activations_is_that_of_the_code():
    written = TEXT[TEXT.index(START) + len(START) : TEXT.index(END)]
    assert written == table(), 'python tests/test_readme.py writes it anew'


def test_the_example_runs(capsys):
    (code,) = re.findall(r'```python\n(.*?)```', TEXT, re.S)
    names: dict[str, object] = {}
    exec(code, names)
    assert names['y'].shape == (8, 16)  # type: ignore[attr-defined]
    assert len(code.strip().splitlines()) <= 12


def test_every_public_name_stands_in_a_table():
    what_there_is = TEXT[TEXT.index('## What there is') : TEXT.index('## Defaults')]
    rows = re.findall(r'^\| (`.*?) \|$', what_there_is, re.M)
    named = {name for row in rows for cell in row.split(' | ')[:2] for name in re.findall(r'`(\w+)`', cell)}
    assert named == public(functional).keys() | public(nn).keys()


def test_two_commands_of_one_line():
    commands = re.findall(r'```sh\n(.*?)\n```', TEXT, re.S)
    assert len([c for c in commands if c.startswith('python -m venv')]) == 2
    assert all('\n' not in c for c in commands)


if __name__ == '__main__':
    before, rest = TEXT.split(START)
    README.write_text(before + START + table() + END + rest.split(END)[1], encoding='utf-8')
