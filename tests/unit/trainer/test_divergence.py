"""A run that skips too many steps has diverged: exit code 78, at the latest at its end."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainingDiverged
from finetune_trainer.tasks.classification import Classification
from finetune_trainer.training.device import LossScale
from finetune_trainer.training.divergence import MAX_CONSECUTIVE, MIN_STEPS, SkippedSteps, describe_trained_steps
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny


def skip(steps: str) -> SkippedSteps:
    """The counts after steps: "." is finite, "x" is not, and "o" is an overflow of scaled FP16 gradients."""
    skipped = SkippedSteps()
    for step in steps:
        skipped = skipped.after_step(is_finite=step == ".", is_overflow=step == "o")
    return skipped


def test_more_than_a_tenth_of_all_steps() -> None:
    assert skip("x.x.x" + "." * 25).describe_divergence(30) is None
    divergence = skip("x.x.x.x").describe_divergence(30)
    assert divergence == "4 of 30 steps were not finite, which is more than 10%"
    assert skip("x").describe_divergence(3) is None, "one step is no divergence"
    assert skip("xx").describe_divergence(3) is not None


def test_consecutive_steps_however_long_the_run_is() -> None:
    assert skip("x" * (MAX_CONSECUTIVE - 1)).describe_divergence(10**6) is None
    assert skip("x" * 20 + "." + "x" * (MAX_CONSECUTIVE - 1)).describe_divergence(10**6) is None
    divergence = skip("." + "x" * MAX_CONSECUTIVE).describe_divergence(10**6)
    assert divergence == f"the last {MAX_CONSECUTIVE} steps were not finite"


def test_search_for_the_loss_scale_is_no_divergence() -> None:
    assert skip("o" * 16 + "." * 4).describe_divergence(20) is None
    assert skip("o" * 16).total == 16


@given(st.text(".xo", max_size=60))
def test_counts(steps: str) -> None:
    skipped = skip(steps)
    assert (skipped.total, skipped.nonfinite) == (len(steps) - steps.count("."), steps.count("x"))
    is_more_than_a_tenth = skipped.nonfinite >= MIN_STEPS and 10 * skipped.nonfinite > len(steps)
    assert (skipped.describe_divergence(len(steps)) is not None) >= is_more_than_a_tenth


def test_loss_scale_can_be_halved_a_limited_number_of_times() -> None:
    scale = LossScale(2.0**16, is_dynamic=True)
    halved = 0
    while scale.can_be_halved:
        scale.update(is_finite=False)
        halved += 1
    assert halved == 16
    assert not LossScale(2.0**16).can_be_halved


def test_description() -> None:
    assert describe_trained_steps(1, 0) == "trained 1 step"
    assert describe_trained_steps(1200, 0) == "trained 1,200 steps"
    assert describe_trained_steps(30, 2) == (
        "trained 28 of 30 steps; 2 skipped because loss or gradients were not finite"
    )


def train(
    claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch, nan_at: set[int], **spec: Any
) -> tuple[tiny.Recorder, str]:
    """Train 24 steps, some of which are not finite. Returns the events and the message at the end."""
    original, recorder = Classification.loss, tiny.Recorder()

    def loss(self: Any, model: Any, batch: Any) -> torch.Tensor:
        return original(self, model, batch) * (math.nan if len(recorder.steps) + 1 in nan_at else 1.0)

    monkeypatch.setattr(Classification, "loss", loss)
    job = tiny.job("bert", "reviews", training={"batchSize": 6, "epochs": 6}, **spec)
    report = run(job, RunOptions(claims=tiny.claim_paths(claims, out)), recorder)
    return recorder, report.message


def test_run_with_a_few_skipped_steps_says_so(claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, message = train(claims, out, monkeypatch, {3, 9})
    assert message.startswith("trained 22 of 24 steps; 2 skipped because loss or gradients were not finite; ")
    assert [record.step for record in recorder.steps if record.skipped] == [3, 9]
    assert '"skippedSteps": 2' in (out / "result" / "run.json").read_text()
    assert recorder.report is not None and recorder.report.progress is not None
    assert recorder.report.progress.non_finite_steps == 2


def test_run_ends_as_soon_as_divergence_is_certain(claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingDiverged, match=r"3 of 24 steps were not finite.*at step 6") as raised:
        train(claims, out, monkeypatch, {2, 4, 6})
    assert raised.value.exit_code == ExitCode.DIVERGED == 78
    assert not (out / "result" / "run.json").exists()


def test_run_that_stopped_early_is_judged_by_its_own_steps(
    claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = {"every": {"steps": 4}, "metric": "eval/loss", "earlyStopping": {"patience": 2, "minDelta": 100.0}}
    with pytest.raises(TrainingDiverged, match=r"2 of 12 steps were not finite"):
        train(claims, out, monkeypatch, {2, 4}, evaluation=stopping, data={"validation": {"fraction": 0.05}})
