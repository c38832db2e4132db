"""Every parameter has exactly one owner, or there is an error that names it; windows come out in steps."""

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.defaults import with_defaults
from finetune_api.modules import Freeze, Module
from finetune_trainer.errors import UserError
from finetune_trainer.plan import Window
from finetune_trainer.planning.modules import Parameter, grouped, own, plan_run, window
from unit.trainer import tiny

NAMES = [
    "vision_model.embeddings.weight",
    "vision_model.layers.0.weight",
    "vision_model.layers.0.bias",
    "visual_projection.weight",
    "text_model.layers.0.weight",
    "text_projection.weight",
    "logit_scale",
]
PARAMETERS = [Parameter((name,), 10, 2) for name in NAMES]


def module(name: str, *patterns: str, **fields: Any) -> Module:
    optimizer = {} if fields.get("frozen") else {"optimizer": {"type": "SGD", "learningRate": 1.0}}
    return Module.model_validate({"name": name, "parameters": list(patterns), **optimizer, **fields})


def test_globs_cross_dots_and_excludes_take_out_again() -> None:
    everything_else = module("rest", "*", exclude=["text_*", "logit_scale"])
    found = own([everything_else, module("text", "text_*"), module("scale", "logit_scale")], PARAMETERS)
    assert found.by_module["rest"] == tuple(NAMES[:4])
    assert found.by_module["text"] == tuple(NAMES[4:6])
    assert found.unmatched == ()


def test_case_matters() -> None:
    with pytest.raises(UserError, match=r"'Text_model\.\*' matches no parameter"):
        own([module("text", "Text_model.*")], PARAMETERS, "Freeze")


@pytest.mark.parametrize(
    ("pattern", "suggestion"),
    [
        ("visoin_model.*", "did you mean 'vision_model.*'"),
        ("vision_model.layer.*", "'vision_model.layers.*'"),
        ("logit_scales", "did you mean 'logit_scale'"),
        ("vision_model.layers.0.wieght", "'vision_model.layers.0.weight'"),
        (
            "encoder.*",
            "the model has vision_model.*, visual_projection.*, text_model.*, text_projection.*, logit_scale",
        ),
    ],
)
def test_a_pattern_that_matches_nothing_is_answered_with_the_nearest(pattern: str, suggestion: str) -> None:
    with pytest.raises(UserError) as raised:
        own([module("all", "*"), module("typo", pattern)], PARAMETERS)
    assert f"modules[1].parameters (typo): {pattern!r}" in str(raised.value)
    assert suggestion in str(raised.value)


def test_an_exclude_that_matches_nothing_is_a_typo_too() -> None:
    with pytest.raises(UserError, match=r"modules\[0\]\.exclude \(all\): 'logit_scael'.*did you mean 'logit_scale'"):
        own([module("all", "*", exclude=["logit_scael"])], PARAMETERS)


def test_two_owners_are_refused_and_both_are_named() -> None:
    with pytest.raises(UserError, match="modules 'all' and 'scale' all match 1 parameter: logit_scale"):
        own([module("all", "*"), module("scale", "logit_*")], PARAMETERS)


def test_parameters_without_an_owner_are_summed_up() -> None:
    with pytest.raises(UserError) as raised:
        own([module("vision", "vision_model.*")], PARAMETERS)
    message = str(raised.value)
    assert (
        "4 parameters belong to no module: visual_projection.weight, text_model.layers.0.weight, "
        "text_projection.weight, logit_scale" in message
    )
    assert "unmatched: Freeze" in message


def test_unmatched_freeze_leaves_the_rest_alone() -> None:
    found = own([module("vision", "vision_model.*")], PARAMETERS, "Freeze")
    assert found.unmatched == tuple(NAMES[3:])


def test_a_module_whose_exclude_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="owns nothing"):
        own([module("none", "logit_scale", exclude=["logit_*"]), module("all", "*")], PARAMETERS)


def test_a_tied_weight_has_one_owner_reachable_by_each_name() -> None:
    tied = [Parameter(("embed.weight", "head.weight"), 4, 2), Parameter(("body.weight",), 4, 2)]
    assert own([module("head", "head.*"), module("rest", "body.*")], tied).by_module["head"] == ("embed.weight",)
    assert own([module("e", "embed.*"), module("rest", "body.*")], tied).by_module["e"] == ("embed.weight",)
    without = own([module("rest", "*", exclude=["head.*"]), module("head", "head.*")], tied)
    assert without.by_module == {"rest": ("body.weight",), "head": ("embed.weight",)}
    with pytest.raises(UserError, match=r"embed\.weight"):
        own([module("a", "embed.*", "body.*"), module("b", "head.*")], tied)


words = st.sampled_from(["a", "b", "layers", "0", "1", "weight", "bias"])
names = st.lists(words, min_size=1, max_size=4).map(".".join)
patterns = st.one_of(names, names.map(lambda name: f"{name}*"), names.map(lambda name: f"*{name}"), st.just("*"))


@given(
    st.lists(names, min_size=1, max_size=12, unique=True),
    st.lists(st.lists(patterns, min_size=1, max_size=3), min_size=1, max_size=4),
)
def test_every_parameter_has_exactly_one_owner_or_there_is_an_error(found: list[str], globs: list[list[str]]) -> None:
    modules = [module(f"m{number}", *several) for number, several in enumerate(globs)]
    owners = [sum(any(fnmatchcase(name, glob) for glob in several) for several in globs) for name in found]
    idle = any(not any(fnmatchcase(name, glob) for name in found) for several in globs for glob in several)
    try:
        result = own(modules, [Parameter((name,), 1, 2) for name in found])
    except UserError:
        assert idle or any(count != 1 for count in owners)
    else:
        assert all(count == 1 for count in owners)
        assert sorted(name for owned in result.by_module.values() for name in owned) == sorted(found)


@given(st.lists(names, min_size=1, max_size=12, unique=True), st.data())
def test_groups_count_each_parameter_once_and_match_no_other(found: list[str], data: st.DataObject) -> None:
    some = data.draw(st.lists(st.sampled_from(found), min_size=1, unique=True))
    groups = grouped(some, found)
    assert sum(count for _, count in groups) == len(some)
    for glob, count in groups:
        if count > 1:
            assert {name for name in found if fnmatchcase(name, glob)} <= set(some)


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        (None, Window(0, 100)),
        ({"untilStep": 7}, Window(7, 100)),
        ({"untilEpoch": 1.0}, Window(10, 100)),
        ({"untilEpoch": 0.55}, Window(6, 100)),
        ({"fromEpoch": 2.0}, Window(0, 20)),
        ({"untilStep": 5, "fromEpoch": 3.0}, Window(5, 30)),
        ({"fromStep": 1000}, Window(0, 100)),
    ],
)
def test_freezes_in_steps(freeze: dict[str, Any] | None, expected: Window) -> None:
    spec = Freeze.model_validate(freeze) if freeze else None
    assert window(spec, total=100, steps_per_epoch=10) == expected


def planned(modules: list[dict[str, Any]], samples: int = 60, **training: Any) -> Any:
    job = tiny.job("dual", "colours", modules=modules, training={"batchSize": 6, "epochs": 3, **training})
    return plan_run(with_defaults(job, "Contrastive"), PARAMETERS, samples, 0)


def test_a_schedule_begins_when_its_module_thaws() -> None:
    plan = planned(tiny.TWO_MODULES)
    visual, textual, temperature = plan.modules
    assert (plan.planned_steps, plan.steps_per_epoch) == (30, 10)
    assert (visual.window, textual.window, temperature.window.length) == (Window(0, 30), Window(10, 30), 0)
    assert visual.learning_rate(1) == pytest.approx(0.5e-2)
    assert [textual.learning_rate(step) for step in (0, 9, 10, 29)] == [0, 0, 1e-4, 1e-4]
    assert temperature.learning_rate(5) == 0
    assert (visual.numel, visual.parameters) == (40, tuple(NAMES[:4]))


LAYER = {"linear.weight": 2, "linear.bias": 1, "norm.weight": 1, "conv.weight": 4}


def learner(**fields: Any) -> dict[str, Any]:
    return {"name": "all", "parameters": ["*"], "optimizer": {"type": "SGD", "learningRate": 1.0}, **fields}


def test_a_schedule_longer_than_its_module_trains_names_the_module() -> None:
    with pytest.raises(UserError, match=r"modules 'all': schedule\[0\] lasts 500 steps"):
        planned([learner(schedule=[{"type": "Warmup", "steps": 500}])])


def test_a_module_that_would_never_thaw_is_refused() -> None:
    with pytest.raises(UserError, match="modules 'all': freeze leaves it nothing to train"):
        planned([learner(freeze={"untilEpoch": 4.0})])


def test_steps_at_which_nothing_learns_are_refused() -> None:
    with pytest.raises(UserError, match="every module is frozen at step 0 of 30"):
        planned([learner(freeze={"untilEpoch": 1.0})])


def test_muon_with_anything_but_matrices_is_refused_with_globs_to_exclude() -> None:
    shapes = {"embed.weight": 2, "scale": 0}
    shapes |= {f"layers.{n}.{name}": n_dims for n in range(3) for name, n_dims in LAYER.items()}
    parameters = [Parameter((name,), 10, dimensions) for name, dimensions in shapes.items()]
    muon = {"type": "Muon", "learningRate": 0.1}

    def planned_with(*modules: dict[str, Any]) -> Any:
        job = tiny.job("dual", "colours", modules=list(modules), training={"batchSize": 6, "epochs": 3})
        return plan_run(with_defaults(job, "Contrastive"), parameters, 60, 0)

    with pytest.raises(UserError) as raised:
        planned_with({"name": "all", "parameters": ["*"], "optimizer": muon})
    assert str(raised.value) == (
        "modules[0].optimizer (all): Muon takes matrices only, and 10 parameters of the module are none: "
        "scale, *.bias (3), *.norm.weight (3), *.conv.weight (3); "
        "exclude them here, and put them into a module with another optimizer, e.g. AdamW"
    )
    others = ["scale", "*.bias", "*.norm.weight", "*.conv.weight"]
    plan = planned_with(
        {"name": "matrices", "parameters": ["*"], "exclude": others, "optimizer": muon},
        learner(name="rest", parameters=others),
    )
    assert [len(module.parameters) for module in plan.modules] == [4, 10]


def test_a_run_of_no_step_is_refused() -> None:
    job = tiny.job("dual", "colours", modules=[learner()], training={"batchSize": 6, "epochs": 0.01})
    with pytest.raises(UserError) as raised:
        plan_run(with_defaults(job, "Contrastive"), PARAMETERS, 60, 0)
    assert str(raised.value) == (
        "training.epochs: 0.01 epochs of 10 steps are no whole step, so nothing would be trained: "
        "say at least 0.1, or training.steps: 1"
    )


def test_an_empty_training_set_is_refused() -> None:
    with pytest.raises(UserError, match="the training set is empty"):
        planned([learner()], samples=0)


def test_a_batch_larger_than_the_training_set_is_refused() -> None:
    with pytest.raises(UserError, match=r"batchSize is 6, but the training set has only 5 samples"):
        planned([learner()], samples=5)
