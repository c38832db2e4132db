"""Nearest valid choice for a misspelled word: `did you mean 'momentum'?`.

One function for the whole code base, with one bound: a wrong guess is worse than none. A word is a misspelling of a
choice when it differs only in case or separators, is a prefix of the choice, or is a few edits away. Similarity ratios,
such as those of difflib, accept words that share a long ending (`TokenClassification`, `ImageClassification`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from rapidfuzz.distance import OSA

MAX_EDITS = 3
LETTERS_PER_EDIT = 4
"""A word may have one edit for every four letters, at most `MAX_EDITS`."""
MIN_LETTERS = 3
"""Shorter words are matched only by case and separators: `l1` is one edit away from `l2`."""


def closest_match(word: str, choices: Iterable[str]) -> str | None:
    """The choice that a word is a misspelling of, or None.

    >>> closest_match("batch_size", ["batchSize", "epochs"])
    'batchSize'
    >>> closest_match("Cosine", ["Constant", "CosineAnnealing"])
    'CosineAnnealing'
    >>> closest_match("TokenClassification", ["ImageClassification"]) is None
    True
    """
    return next(iter(closest_matches(word, choices, 1)), None)


def closest_matches(word: str, choices: Iterable[str], limit: int) -> list[str]:
    """The choices that a word may be a misspelling of, best first, at most `limit` of them."""
    ranked = [(rank, choice) for choice in dict.fromkeys(choices) if (rank := _rank(word, choice)) is not None]
    return [choice for _, choice in sorted(ranked, key=lambda item: item[0])[:limit]]


def normalize(word: str) -> str:
    """A word without case and separators, in which `batch_size`, `batch-size` and `batchSize` are equal."""
    return re.sub(r"[-_ ]", "", word).lower()


def _rank(word: str, choice: str) -> tuple[int, int] | None:
    """Sort key of a choice, lowest for the best; None for a choice that is too far away."""
    left, right = normalize(word), normalize(choice)
    if left == right:
        return (0, 0)
    if min(len(left), len(right)) < MIN_LETTERS:
        return None
    length = max(len(left), len(right))
    max_edits = min(MAX_EDITS, max(1, length // LETTERS_PER_EDIT))
    distance = OSA.distance(left, right, score_cutoff=max_edits)
    if distance <= max_edits:
        return (1, distance)
    return (2, length) if right.startswith(left) else None
