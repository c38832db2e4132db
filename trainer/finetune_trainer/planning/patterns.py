"""Patterns over parameter names: shell globs with brace expansion, `encoder.layer.{0..5}.*`.

`*` crosses dots, case matters. Braces follow bash: `{q,k,v}_proj` and `{0..5}`; in addition, ranges may be items of a
list, `{0..2,5}`. The plan's tree prints layers in this form, so that they can be copied into a manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache
from itertools import product

MAX_EXPANSION = 10_000
"""Braces that would expand to more patterns than this are taken literally."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,6})\.\.(\d{1,6})")


def match_any(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches one of the names."""
    globs = [glob for pattern in patterns for glob in expand_braces(pattern)]
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


@cache
def expand_braces(pattern: str) -> tuple[str, ...]:
    """The globs that a pattern expands to.

    >>> expand_braces("layer.{0..2}.{w,b}")
    ('layer.0.w', 'layer.0.b', 'layer.1.w', 'layer.1.b', 'layer.2.w', 'layer.2.b')
    >>> expand_braces("{0..1,5}"), expand_braces("layer.*")
    (('0', '1', '5'), ('layer.*',))
    """
    parts = _BRACES.split(pattern)  # literal text at even positions, the content of braces at odd ones
    choices = [list(_items(part)) if index % 2 else [part] for index, part in enumerate(parts)]
    total = 1
    for choice in choices:
        total *= len(choice)
    return tuple("".join(combination) for combination in product(*choices)) if total <= MAX_EXPANSION else (pattern,)


def _items(content: str) -> Iterator[str]:
    items = content.split(",")
    if len(items) == 1 and not _RANGE.fullmatch(content):
        yield f"{{{content}}}"  # as in bash, braces around a single item are literal
        return
    for item in items:
        if match := _RANGE.fullmatch(item):
            first, last = int(match[1]), int(match[2])
            yield from map(str, range(first, last + 1) if first <= last else range(first, last - 1, -1))
        else:
            yield item


def brace_numbers(numbers: Sequence[int]) -> str:
    """The shortest braces that expand to these numbers.

    >>> brace_numbers([0, 1, 2, 5]), brace_numbers([3, 4]), brace_numbers([7])
    ('{0..2,5}', '{3,4}', '7')
    """
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    items = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return "{" + ",".join(items) + "}"
