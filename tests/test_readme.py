"""The README says what the code does. `python tests/test_readme.py` writes its tables of what there is anew."""

import inspect
import re
from pathlib import Path

import pytest

import jaxnorm
from jaxnorm import functional, nn
from jaxnorm.functional._get import ROOMS

README = Path(jaxnorm.__file__).parents[1] / 'README.md'
if not README.exists():
    pytest.skip('the package is tested without its source tree', allow_module_level=True)
TEXT = README.read_text(encoding='utf-8')
START, END = '<!-- written by tests/test_readme.py -->\n', '<!-- end of what is written -->\n'


def public(module):
    return {name: value for name, value in vars(module).items() if not name.startswith('_') and callable(value)}


def activations():
    """The functions by their first name, each with its aliases and classes."""
    found = {}
    for name, function in public(functional).items():
        if function.__module__.endswith(ROOMS):
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


def activation_rows():
    import cases

    yield '| function | class | formula | range | slope at kinks |'
    kinks = {}
    for case in [*cases.ACTIVATIONS, *cases.OVER_AXIS]:
        if not case.arguments:
            kinks[case.name] = ', '.join(f'{slope:g} at {at:g}' for at, slope in case.kinks.items())
    for function, names, classes in activations():
        doc = inspect.getdoc(function) or ''
        found = re.search(r'; in ([\[(].*?[\])])', ' '.join(doc.split()))
        yield row(names, classes, formula(doc), found[1] if found else '', kinks.get(function.__name__, ''))


def norm_rows():
    """All else: functions with the classes that are named like them, and then what stands in `nn` alone."""
    yield '| norm or other function | class | what it is | formula |'
    named = {function.__name__ for function, _, _ in activations()}
    left = {n: c for n, c in public(nn).items() if getattr(getattr(c, 'fn', None), '__name__', '') not in named}
    for name, function in public(functional).items():
        if function.__name__ in named:
            continue
        classes = [n for n in left if key(n) == key(name)]
        doc = inspect.getdoc(function) or ''
        yield row([name], classes, first_line(doc), formula(doc))
        left = {n: c for n, c in left.items() if n not in classes}
    for name, value in left.items():
        yield row([], [name], first_line(inspect.getdoc(value) or ''), '')


def key(name):
    """What a class and its function have in common."""
    return (
        re.sub(r'\dd$|_|_fit$|_update$', '', re.sub(r'_(fit|update)$', '', name)).lower().replace('iterative', 'iter')
    )


def first_line(doc):
    return ' '.join(doc.split('\n\n')[0].split()).rstrip('.')


def row(names, classes, *cells):
    quoted = [', '.join(f'`{n}`' for n in some) for some in (names, classes)]
    return '| ' + ' | '.join([*quoted, *(c.replace('|', r'\|') for c in cells)]) + ' |'


def table():
    blocks = ([*rows, ''] for rows in (activation_rows(), norm_rows()))
    lines = []
    for head, *rest in blocks:
        lines += [head, '|---' * (head.count('|') - 1) + '|', *rest]
    return '\n'.join(lines)


def test_the_tables_are_those_of_the_code():
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
    rows = re.findall(r'^\| (.*?) \|$', what_there_is, re.M)
    named = {name for row in rows for cell in row.split(' | ')[:2] for name in re.findall(r'`(\w+)`', cell)}
    assert named == public(functional).keys() | public(nn).keys()


def test_two_commands_of_one_line():
    commands = re.findall(r'```sh\n(.*?)\n```', TEXT, re.S)
    assert len([c for c in commands if c.startswith('python -m venv')]) == 2
    assert all('\n' not in c for c in commands)


if __name__ == '__main__':
    before, rest = TEXT.split(START)
    README.write_text(before + START + table() + END + rest.split(END)[1], encoding='utf-8')
