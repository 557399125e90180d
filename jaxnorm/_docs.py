"""Docstrings that say what differs: what a family of ops has in common is written once, and filled in."""

import inspect
import re
from collections.abc import Iterable, Sequence

_ORDER = ('Parameters', 'Returns', 'Raises', 'Notes', 'References', 'Examples')
_HEADING = re.compile(rf'\n\n(?=(?:{"|".join(_ORDER)})\n-+\n)')


def _sections(doc: str) -> tuple[str, dict[str, str]]:
    """What stands before the first section of a numpydoc docstring, and the text of each."""
    summary, *sections = _HEADING.split('\n\n' + inspect.cleandoc(doc))
    return summary.strip(), {s.split('\n', 1)[0]: s.split('\n', 2)[2].rstrip() for s in sections}


def _entries(text: str) -> dict[str, str]:
    """The entries of a section of parameters, by each of the names before the colon."""
    entries = [entry for entry in re.split(r'\n(?=\S)', text) if entry]
    return {name: e for e in entries for name in re.split(', *', re.split(' *:|\n', e, maxsplit=1)[0])}


def complete(doc: str | None, parameters: Iterable[str], *families: str | None, without: Sequence[str] = ()) -> str:
    """`doc` with what it leaves out, from the first of the `families` that has it; those are docstrings themselves.

    What is filled in are entries of parameters and of errors, and the sections of results and of references where they
    are missing; but none of the sections that it goes `without`.
    """
    summary, own = _sections(doc or '')
    described: dict[str, dict[str, str]] = {'Parameters': {}, 'Raises': {}}
    inherited = {}
    for sections in [*(_sections(f)[1] for f in reversed(families) if f), own]:
        inherited |= {name: sections[name] for name in ('Returns', 'References') if name in sections}
        for name, entries in described.items():
            entries.update(_entries(sections.get(name, '')))
    named = dict.fromkeys([*parameters, *_entries(own.get('Parameters', ''))])
    chosen = {
        'Parameters': [described['Parameters'][p] for p in named if p in described['Parameters']],
        'Raises': described['Raises'].values(),
    }
    found = inherited | own | {name: '\n'.join(dict.fromkeys(entries)) for name, entries in chosen.items() if entries}
    found = {name: text for name, text in found.items() if name not in without}
    return '\n\n'.join([summary, *(f'{n}\n{"-" * len(n)}\n{found[n]}' for n in _ORDER if n in found)]) + '\n'
