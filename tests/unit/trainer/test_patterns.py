"""Braces in patterns expand as in bash, and the tree's numbers expand to the layers that they stand for."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.planning import patterns
from finetune_trainer.planning.patterns import MAX_EXPANSION, brace_numbers, expand_braces, match_any


def test_docstring_examples() -> None:
    assert doctest.testmod(patterns).failed == 0


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("enc.layer.{0..5}.*", ["enc.layer.0.w", "enc.layer.5.b"], ["enc.layer.6.w", "enc.layer.50.w"]),
        ("enc.layer.{9..11}.*", ["enc.layer.10.w"], ["enc.layer.1.w", "enc.layer.90.w"]),
        ("{0..2,5}", ["0", "2", "5"], ["3", "0..2"]),
        ("*.{q,k}_proj.*", ["a.q_proj.weight"], ["a.v_proj.weight"]),
        ("{bert,roberta}.layer.{2..0}.w", ["bert.layer.1.w", "roberta.layer.2.w"], ["bert.layer.3.w"]),
        ("layer.[01].w", ["layer.0.w"], ["layer.2.w"]),
        ("{a}", ["{a}"], ["a"]),
        ("{", ["{"], [""]),
    ],
)  # fmt: skip
def test_pattern_with_braces(pattern: str, matching: list[str], other: list[str]) -> None:
    assert [name for name in [*matching, *other] if match_any([name], [pattern])] == matching


def test_huge_ranges_are_literal() -> None:
    pattern = f"layer.{{0..{MAX_EXPANSION + 1}}}"
    assert expand_braces(pattern) == (pattern,)


@given(st.sets(st.integers(0, 60), min_size=1))
def test_brace_numbers_expand_to_the_same_numbers(numbers: set[int]) -> None:
    assert expand_braces(brace_numbers(sorted(numbers))) == tuple(map(str, sorted(numbers)))


@given(st.text("ab.*?[]0", max_size=12))
def test_pattern_without_braces_is_not_expanded(pattern: str) -> None:
    assert expand_braces(pattern) == (pattern,)
