"""Steps, windows and schedules of a run, and the errors of jobs that cannot be planned."""

from typing import Any

import pytest

from finetune_api.defaults import with_defaults
from finetune_api.modules import Freeze
from finetune_trainer.errors import UserError
from finetune_trainer.plan import Window
from finetune_trainer.planning.parameters import ParameterInfo
from finetune_trainer.planning.run_plan import RunLength, plan_run, trainable_window
from unit.trainer import tiny
from unit.trainer.test_parameters import NAMES, PARAMETERS


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
def test_window_of_a_freeze_in_steps(freeze: dict[str, Any] | None, expected: Window) -> None:
    spec = Freeze.model_validate(freeze) if freeze else None
    assert trainable_window(spec, RunLength(100, 10)) == expected


def planned(modules: list[dict[str, Any]], samples: int = 60, **training: Any) -> Any:
    job = tiny.job("dual", "colours", modules=modules, training={"batchSize": 6, "epochs": 3, **training})
    return plan_run(with_defaults(job, "Contrastive"), PARAMETERS, samples, 0)


def test_schedule_starts_with_the_window_of_its_module() -> None:
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


def test_rejects_a_schedule_longer_than_its_window() -> None:
    with pytest.raises(UserError, match=r"modules\[0\] \(all\): schedule\[0\] lasts 500 steps"):
        planned([learner(schedule=[{"type": "Warmup", "steps": 500}])])


def test_rejects_a_module_that_is_never_trainable() -> None:
    with pytest.raises(UserError, match=r"modules\[0\]\.freeze \(all\): the module is never trainable"):
        planned([learner(freeze={"untilEpoch": 4.0})])


def test_rejects_steps_with_every_module_frozen() -> None:
    with pytest.raises(UserError, match="every module is frozen at step 0 of 30"):
        planned([learner(freeze={"untilEpoch": 1.0})])


def test_muon_rejects_other_than_2d_parameters_and_lists_globs_to_exclude() -> None:
    shapes = {"embed.weight": 2, "scale": 0}
    shapes |= {f"layers.{n}.{name}": n_dims for n in range(3) for name, n_dims in LAYER.items()}
    parameters = [ParameterInfo((name,), (2,) * ndim) for name, ndim in shapes.items()]
    muon = {"type": "Muon", "learningRate": 0.1}

    def planned_with(*modules: dict[str, Any]) -> Any:
        job = tiny.job("dual", "colours", modules=list(modules), training={"batchSize": 6, "epochs": 3})
        return plan_run(with_defaults(job, "Contrastive"), parameters, 60, 0)

    with pytest.raises(UserError) as raised:
        planned_with({"name": "all", "parameters": ["*"], "optimizer": muon})
    assert str(raised.value) == (
        "modules[0].optimizer (all): Muon supports 2-D parameters only, not 10 parameters of the module: "
        "scale, *.bias (3), *.norm.weight (3), *.conv.weight (3); "
        "exclude them, and put them in a module with another optimizer, e.g. AdamW"
    )
    others = ["scale", "*.bias", "*.norm.weight", "*.conv.weight"]
    plan = planned_with(
        {"name": "matrices", "parameters": ["*"], "exclude": others, "optimizer": muon},
        learner(name="rest", parameters=others),
    )
    assert [len(module.parameters) for module in plan.modules] == [4, 10]


def test_rejects_a_run_without_a_step() -> None:
    job = tiny.job("dual", "colours", modules=[learner()], training={"batchSize": 6, "epochs": 0.01})
    with pytest.raises(UserError) as raised:
        plan_run(with_defaults(job, "Contrastive"), PARAMETERS, 60, 0)
    assert str(raised.value) == (
        "training.epochs: 0.01 epochs of 10 steps are less than one optimizer step; "
        "expected at least 0.1, or training.steps: 1"
    )


def test_rejects_an_empty_training_set() -> None:
    with pytest.raises(UserError, match="the training set is empty"):
        planned([learner()], samples=0)


def test_rejects_a_batch_larger_than_the_training_set() -> None:
    with pytest.raises(UserError, match=r"training\.batchSize: 6 is more than the 5 samples of the training set"):
        planned([learner()], samples=5)
