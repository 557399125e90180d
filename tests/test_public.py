"""The house itself: layers, names, docstrings, rows, defaults."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import pytest

import jaxnorm
from jaxnorm import functional as F
from jaxnorm import nn

ROOT = Path(jaxnorm.__file__).parent
FUNCTIONS = {n: f for n, f in vars(F).items() if not n.startswith('_') and callable(f)}
CLASSES = {n: c for n, c in vars(nn).items() if not n.startswith('_') and isinstance(c, type)}

#: what the files of each room may import of the house, in the order of the house
MAY_IMPORT = {
    '_typing': set(),
    '_checks': {'_typing'},
    '_units': set(),
    '_docs': set(),
    'functional/_linear': {'_typing'},
    'functional': {'_typing', '_checks', '_units', '_docs', 'functional'},
    '_activation': {'_checks', 'functional', 'nn'},
    'nn': {'_typing', '_checks', '_units', '_docs', 'functional', 'nn'},
    'benchmark': {'_typing', '_checks', '_units', 'functional', 'nn', 'benchmark'},
}


def imported(path: Path) -> set[str]:
    """The rooms of jaxnorm, and the foreign packages, that a file imports anywhere."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {'!' + a.name.split('.')[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add('!' + (node.module or '').split('.')[0])
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - (node.level - 1)]
            parts = (*base, *(node.module or '').split('.')) if node.module else base
            found |= {parts[0]} if parts else {a.name for a in node.names}
    return found


@pytest.mark.parametrize('path', sorted(ROOT.rglob('*.py')), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    name = str(path.relative_to(ROOT).with_suffix(''))
    room = name if name in MAY_IMPORT else name.split('/')[0]
    found = imported(path)
    ours = {f for f in found if not f.startswith('!')}
    if name != '__init__':
        assert ours <= MAY_IMPORT[room], f'{name} imports {sorted(ours - MAY_IMPORT[room])}'
    if room.split('/')[0] in ('functional', '_typing', '_checks', '_units'):
        assert '!brainstate' not in found, f'{name} imports brainstate; kernels are for any JAX code'


def test_every_function_has_a_row_and_every_row_a_function():
    rows = {c.name for c in [*cases.ACTIVATIONS, *cases.OVER_AXIS, *cases.NORMS]} | cases.OTHERS | set(cases.ALIASES)
    assert rows == set(FUNCTIONS)
    for alias, name in cases.ALIASES.items():
        assert FUNCTIONS[alias] is FUNCTIONS[name]


def test_every_class_has_a_row_and_every_row_a_class():
    rows = {c.module for c in [*cases.ACTIVATIONS, *cases.OVER_AXIS]} | {m for c in cases.NORMS for m in c.modules}
    assert rows | cases.OTHER_CLASSES == set(CLASSES)


def documented(doc):
    """The names in the section of parameters of a docstring."""
    section = re.search(r'^Parameters\n-+\n(.*?)(?=\n\n|\Z)', doc, re.M | re.S)
    entries = re.findall(r'^\S.*', section[1], re.M) if section else []
    return [name.strip() for entry in entries for name in entry.split(' : ')[0].split(',')]


@pytest.mark.parametrize('name', sorted(FUNCTIONS))
def test_function_docstring_has_its_sections(name):
    doc = inspect.getdoc(FUNCTIONS[name]) or ''
    for section in ('Parameters', 'Returns', 'Raises', 'Notes', 'References', 'Examples'):
        assert re.search(rf'^{section}\n-+$', doc, re.M), f'{name}: no section {section}'
    assert '.. math::' in doc
    assert '>>>' in doc
    assert documented(doc) == list(inspect.signature(FUNCTIONS[name]).parameters)


@pytest.mark.parametrize('name', sorted(CLASSES))
def test_class_docstring_describes_every_argument(name):
    doc = inspect.getdoc(CLASSES[name]) or ''
    assert sorted(documented(doc)) == sorted(inspect.signature(CLASSES[name]).parameters)


def test_defaults_are_decided_once():
    for case in [*cases.ACTIVATIONS, *cases.OVER_AXIS]:
        function = {n: p.default for n, p in inspect.signature(case.function).parameters.items() if n != 'where'}
        module = {n: p.default for n, p in inspect.signature(case.cls).parameters.items()}
        for name, value in list(function.items())[1:]:
            if value is not inspect.Parameter.empty or name not in (*case.cls._learned, *case.inputs):
                assert module[name] == value
    for case in cases.NORMS:
        for name in case.modules:
            assert inspect.signature(CLASSES[name]).parameters['epsilon'].default == case.epsilon
        assert inspect.signature(case.function).parameters['epsilon'].default == case.epsilon


def test_kernels_keep_their_signature():
    assert str(inspect.signature(F.layer_norm)).startswith('(x: ')
    assert F.layer_norm.__name__ == 'layer_norm'
    assert F.gelu.__module__ == 'jaxnorm.functional._gated'


@pytest.mark.parametrize('case', [*cases.ACTIVATIONS, *cases.OVER_AXIS], ids=cases.id_of)
def test_class_is_the_function(case):
    x = jnp.linspace(-3, 3, 12).reshape(3, 4)
    inputs = {n: v for n, v in case.arguments.items() if n in case.inputs}
    module = case.cls(**{n: v for n, v in case.arguments.items() if n not in inputs})
    learned = module.weight.value if case.cls._learned else {}
    learned = learned if isinstance(learned, dict) else {case.cls._learned[0]: learned}  # one that stands alone
    assert jnp.array_equal(module(x, **inputs), case.function(x, **{**case.arguments, **learned}))


def test_import_is_light():
    # in a process of its own: nothing optional may come with it
    code = (
        'import sys, brainstate; before = set(sys.modules); import jaxnorm; '
        "new = {m for m in set(sys.modules) - before if m.split('.')[0] != 'jaxnorm' or 'benchmark' in m}; "
        "assert all('.' in m or m in sys.stdlib_module_names for m in new), new"
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


def test_one_trace_a_shape():
    count = 0

    @jax.jit
    def apply(x):
        nonlocal count
        count += 1
        return F.gelu(F.layer_norm(x))

    for _ in range(3):
        apply(jnp.ones((2, 4)))
    assert count == 1
    apply(jnp.ones((3, 4)))
    assert count == 2
