"""Every parameter has exactly one owner, or there is an error that names it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.modules import Module
from finetune_trainer.errors import UserError
from finetune_trainer.planning.parameters import ParameterInfo, assign_parameters, group_by_prefix
from finetune_trainer.planning.patterns import match_any

NAMES = [
    "vision_model.embeddings.weight",
    "vision_model.layers.0.weight",
    "vision_model.layers.0.bias",
    "visual_projection.weight",
    "text_model.layers.0.weight",
    "text_projection.weight",
    "logit_scale",
]
PARAMETERS = [ParameterInfo((name,), (2, 5)) for name in NAMES]


def module(name: str, *patterns: str, **fields: Any) -> Module:
    optimizer = {} if fields.get("frozen") else {"optimizer": {"type": "SGD", "learningRate": 1.0}}
    return Module.model_validate({"name": name, "parameters": list(patterns), **optimizer, **fields})


def test_globs_cross_dots_and_exclude_removes_matches() -> None:
    everything_else = module("rest", "*", exclude=["text_*", "logit_scale"])
    found = assign_parameters([everything_else, module("text", "text_*"), module("scale", "logit_scale")], PARAMETERS)
    assert found.by_module["rest"] == tuple(NAMES[:4])
    assert found.by_module["text"] == tuple(NAMES[4:6])
    assert found.unmatched == ()


def test_patterns_are_case_sensitive() -> None:
    with pytest.raises(UserError, match=r"'Text_model\.\*' matches no parameter"):
        assign_parameters([module("text", "Text_model.*")], PARAMETERS, "Freeze")


@pytest.mark.parametrize(
    ("pattern", "suggestion"),
    [
        ("visoin_model.*", "did you mean 'vision_model.*'"),
        ("vision_model.layer.*", "'vision_model.layers.*'"),
        ("logit_scales", "did you mean 'logit_scale'"),
        ("vision_model.layers.0.wieght", "'vision_model.layers.0.weight'"),
        ("vision_model.{q,k}.*", "the model has vision_model.embeddings.*, vision_model.layers.*"),
        (
            "encoder.*",
            "the model has vision_model.*, visual_projection.*, text_model.*, text_projection.*, logit_scale",
        ),
    ],
)
def test_unmatched_pattern_is_answered_with_the_nearest(pattern: str, suggestion: str) -> None:
    with pytest.raises(UserError) as raised:
        assign_parameters([module("all", "*"), module("typo", pattern)], PARAMETERS)
    assert f"modules[1].parameters (typo): {pattern!r}" in str(raised.value)
    assert suggestion in str(raised.value)


def test_unmatched_exclude_is_rejected() -> None:
    with pytest.raises(UserError, match=r"modules\[0\]\.exclude \(all\): 'logit_scael'.*did you mean 'logit_scale'"):
        assign_parameters([module("all", "*", exclude=["logit_scael"])], PARAMETERS)


def test_rejects_a_parameter_with_two_owners() -> None:
    with pytest.raises(UserError, match="modules: 'all' and 'scale' match the same 1 parameter: logit_scale"):
        assign_parameters([module("all", "*"), module("scale", "logit_*")], PARAMETERS)


def test_parameters_without_an_owner_are_listed() -> None:
    with pytest.raises(UserError) as raised:
        assign_parameters([module("vision", "vision_model.*")], PARAMETERS)
    message = str(raised.value)
    assert (
        "4 parameters match no module: visual_projection.weight, text_model.layers.0.weight, "
        "text_projection.weight, logit_scale" in message
    )
    assert "unmatched: Freeze" in message


def test_unmatched_freeze_allows_parameters_without_an_owner() -> None:
    found = assign_parameters([module("vision", "vision_model.*")], PARAMETERS, "Freeze")
    assert found.unmatched == tuple(NAMES[3:])


def test_rejects_a_module_that_excludes_all_its_parameters() -> None:
    with pytest.raises(UserError, match=r"modules\[0\]\.exclude \(none\): excludes every parameter"):
        assign_parameters([module("none", "logit_scale", exclude=["logit_*"]), module("all", "*")], PARAMETERS)


def test_tied_weight_has_one_owner_and_matches_by_each_name() -> None:
    tied = [ParameterInfo(("embed.weight", "head.weight"), (2, 2)), ParameterInfo(("body.weight",), (2, 2))]
    assert assign_parameters([module("head", "head.*"), module("rest", "body.*")], tied).by_module["head"] == (
        "embed.weight",
    )
    assert assign_parameters([module("e", "embed.*"), module("rest", "body.*")], tied).by_module["e"] == (
        "embed.weight",
    )
    without = assign_parameters([module("rest", "*", exclude=["head.*"]), module("head", "head.*")], tied)
    assert without.by_module == {"rest": ("body.weight",), "head": ("embed.weight",)}
    with pytest.raises(UserError, match=r"embed\.weight"):
        assign_parameters([module("a", "embed.*", "body.*"), module("b", "head.*")], tied)


words = st.sampled_from(["a", "b", "layers", "0", "1", "weight", "bias"])
names = st.lists(words, min_size=1, max_size=4).map(".".join)
patterns = st.one_of(names, names.map(lambda name: f"{name}*"), names.map(lambda name: f"*{name}"), st.just("*"))


@given(
    st.lists(names, min_size=1, max_size=12, unique=True),
    st.lists(st.lists(patterns, min_size=1, max_size=3), min_size=1, max_size=4),
)
def test_every_parameter_has_one_owner_or_there_is_an_error(found: list[str], globs: list[list[str]]) -> None:
    modules = [module(f"m{number}", *several) for number, several in enumerate(globs)]
    owners = [sum(match_any([name], several) for several in globs) for name in found]
    idle = any(not match_any(found, [glob]) for several in globs for glob in several)
    try:
        result = assign_parameters(modules, [ParameterInfo((name,), (1, 1)) for name in found])
    except UserError:
        assert idle or any(count != 1 for count in owners)
    else:
        assert all(count == 1 for count in owners)
        assert sorted(name for owned in result.by_module.values() for name in owned) == sorted(found)


@given(st.lists(names, min_size=1, max_size=12, unique=True), st.data())
def test_groups_count_each_parameter_once_and_match_no_others(found: list[str], data: st.DataObject) -> None:
    some = data.draw(st.lists(st.sampled_from(found), min_size=1, unique=True))
    groups = group_by_prefix(some, found)
    assert sum(count for _, count in groups) == len(some)
    for glob, count in groups:
        if count > 1:
            assert {name for name in found if match_any([name], [glob])} <= set(some)


def test_message_about_a_tied_parameter_names_all_its_names() -> None:
    parameters = [ParameterInfo(("embed.weight", "head.weight"), (4, 2)), ParameterInfo(("body.weight",), (2, 2))]
    modules = [module("words", "embed.*"), module("rest", "head.*", "body.*")]
    with pytest.raises(UserError, match=r"the same 1 parameter: embed\.weight \(tied to head\.weight\)"):
        assign_parameters(modules, parameters)
