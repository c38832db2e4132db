"""Prometheus metrics, termination message and `metrics.jsonl`."""

import json
import math
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from finetune_api import trainer_metrics as names
from finetune_api.status import TERMINATION_MESSAGE_BYTES, BestEvaluation, Report
from finetune_trainer.callbacks import EvaluationRecord, StepRecord
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.plan import RunPlan
from finetune_trainer.planning.prepare import prepare
from finetune_trainer.reporting.metrics_jsonl import MetricsWriter, read_records, truncate
from finetune_trainer.reporting.prometheus import StatusCollector, serve_metrics
from finetune_trainer.reporting.tracker import StatusTracker
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny


def step(number: int, loss: float = 0.5, **changes: Any) -> StepRecord:
    modules = ("visual", "textual", "temperature")
    fields: dict[str, Any] = {
        "step": number,
        "planned_steps": 6,
        "epoch": number / 3,
        "loss": loss,
        "learning_rates": dict.fromkeys(modules, 0.1),
        "gradient_norms": dict.fromkeys(modules, 2.0),
        "frozen": {"visual": False, "textual": False, "temperature": True},
        "samples_per_second": 12.5,
        "seconds": 0.48,
        "estimated_completion_time": datetime(2030, 1, 1, tzinfo=UTC),
    }
    return StepRecord(**fields | changes)


@pytest.fixture
def run_plan(claims: Path, out: Path) -> RunPlan:
    return prepare(tiny.contrastive_job(), tiny.claim_paths(claims, out)).plan


@pytest.fixture
def tracker(run_plan: RunPlan) -> StatusTracker:
    """The state after step 4 of 6, resumed from step 2."""
    tracker = StatusTracker()
    tracker.on_train_begin(run_plan, 2)
    tracker.on_step_end(step(3))
    tracker.on_evaluate(EvaluationRecord(3, 1.0, {"eval/loss": 1.5, "eval/recall_at_1": 0.25}, best=True))
    tracker.on_step_end(step(4, math.nan, skipped=True))
    return tracker


def samples(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_collector_exports_the_metric_names_that_the_operator_reads(tracker: StatusTracker) -> None:
    registry = CollectorRegistry()
    registry.register(StatusCollector(tracker))
    found = samples(generate_latest(registry).decode())
    assert found[names.STEP, ""] == 4
    assert found[names.PLANNED_STEPS, ""] == 6
    assert found[names.EPOCH, ""] == pytest.approx(4 / 3)
    assert math.isnan(found[names.LOSS, ""])
    assert found[names.EVALUATION, "recall_at_1"] == 0.25
    assert found[names.BEST_EVALUATION, "recall_at_1"] == 0.25
    assert found[names.BEST_EVALUATION_STEP, "recall_at_1"] == 3
    assert found[names.LEARNING_RATE, "visual"] == 0.1
    assert found[names.GRADIENT_NORM, "textual"] == 2.0
    assert found[names.MODULE_PARAMETERS, "visual"] == 3272
    assert found[names.MODULE_TRAINABLE, "temperature"] == 0
    assert found[names.MODULE_INFO, "textual,RMSprop"] == 1
    assert found[names.SAMPLES_PER_SECOND, ""] == 12.5
    assert found[names.SAMPLES, ""] == 12
    assert found[names.STEPS_EXECUTED, ""] == 2
    assert found[names.NONFINITE_STEPS, ""] == 1
    assert found[names.ESTIMATED_COMPLETION_TIME, ""] == datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    assert found[names.LAST_STEP_TIME, ""] > 0


def test_module_that_trains_from_the_start_is_not_frozen_before_the_first_step(run_plan: RunPlan) -> None:
    tracker = StatusTracker()
    tracker.on_train_begin(run_plan, 0)
    frozen = {module.name: module.frozen for module in tracker.report("Failed", "").modules}
    assert frozen == {"visual": False, "textual": True, "temperature": True}, "textual is frozen in the first epoch"


def test_collector_exports_nothing_before_training_begins() -> None:
    registry = CollectorRegistry()
    registry.register(StatusCollector(StatusTracker()))
    assert generate_latest(registry) == b""


def test_metrics_are_served_only_within_the_context(tracker: StatusTracker) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    with serve_metrics(tracker, port), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        assert samples(response.read().decode())[names.STEP, ""] == 4
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")
    with socket.socket() as occupied:
        occupied.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        occupied.bind(("", port))
        occupied.listen()
        with (
            pytest.raises(UserError, match=f"--metrics-port {port}: Address already in use"),
            serve_metrics(tracker, port),
        ):
            pass


def test_report_has_the_fields_of_the_status(tracker: StatusTracker) -> None:
    report = tracker.report("Failed", "something " * 1000)
    assert len(report.message) <= 1024
    assert report.progress is not None
    assert (report.progress.step, report.progress.planned_steps, report.progress.percentage) == (4, 6, 66.67)
    assert report.progress.summary == "4/6 (66%)"
    assert report.best == BestEvaluation(metric="eval/recall_at_1", value=0.25, step=3)
    assert {metric.name: metric.value for metric in report.metrics} == {
        "eval/loss": 1.5,
        "eval/recall_at_1": 0.25,
    }
    visual = report.modules[0]
    assert (visual.name, visual.trainable, visual.optimizer, visual.learning_rate) == ("visual", 3272, "AdamW", 0.1)


def test_termination_message_is_limited_in_size(claims: Path, out: Path) -> None:
    parameters = ["vision_model.*", "text_model.*", "visual_projection.*", "text_projection.*", "logit_scale"]
    optimizer = {"type": "AdamW", "learningRate": 0.1}
    modules = [
        {"name": f"{'long-' * 10}{number}", "parameters": [pattern], "optimizer": optimizer}
        for number, pattern in enumerate(parameters)
    ]
    tracker = StatusTracker()
    tracker.on_train_begin(prepare(tiny.contrastive_job(modules=modules), tiny.claim_paths(claims, out)).plan, 0)
    tracker.on_evaluate(EvaluationRecord(0, 0, {f"eval/metric_{n}": 1 / 3 for n in range(60)}, best=False))
    message = tracker.report("Failed", "x" * 5000).termination_message()
    assert len(message.encode()) <= TERMINATION_MESSAGE_BYTES
    assert Report.model_validate_json(message).reason == "Failed"


@pytest.mark.parametrize("fails", [False, True])
def test_termination_message_is_written_on_success_and_failure(
    fails: bool, claims: Path, out: Path, tmp_path: Path
) -> None:
    log = tmp_path / "termination-log"
    job = tiny.contrastive_job(data={"columns": {"text": "txet"}}) if fails else tiny.contrastive_job()
    options = RunOptions(claims=tiny.claim_paths(claims, out), termination_log=log)
    recorder = tiny.Recorder()
    if fails:
        with pytest.raises(RunError):
            run(job, options, recorder)
    else:
        run(job, options, recorder)
    report = Report.model_validate_json(log.read_text())
    assert report == recorder.report
    assert report.reason == ("InvalidJob" if fails else "Succeeded")
    assert recorder.closed == 1


def test_records_survive_a_round_trip(tmp_path: Path) -> None:
    records = [step(1), EvaluationRecord(1, 0.3, {"eval/loss": 1.0}, best=True), step(2, skipped=True)]
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for record in records:
        writer.on_evaluate(record) if isinstance(record, EvaluationRecord) else writer.on_step_end(record)
    writer.flush()
    assert list(read_records(writer.path)) == records
    writer.close()
    assert [json.loads(line)["type"] for line in writer.path.read_text().splitlines()] == ["step", "evaluation", "step"]


def test_non_finite_numbers_are_written_as_null(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.on_step_end(step(1, math.inf, gradient_norms={"visual": math.nan}))
    writer.close()
    row = json.loads(writer.path.read_text())
    assert row["loss"] is None
    (record,) = read_records(writer.path)
    assert isinstance(record, StepRecord)
    assert math.isnan(record.loss) and math.isnan(record.gradient_norms["visual"])


def test_truncate_drops_rows_newer_than_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    for number in range(1, 5):
        writer.on_step_end(step(number))
        writer.on_evaluate(EvaluationRecord(number, number / 3, {"eval/loss": 1.0}, best=False))
    writer.close()
    path.write_text(path.read_text() + '{"type": "st')
    truncate(path, step=3, last_evaluated_step=2)
    kept = [(type(record).__name__, record.step) for record in read_records(path)]
    assert [number for kind, number in kept if kind == "StepRecord"] == [1, 2, 3]
    assert [number for kind, number in kept if kind == "EvaluationRecord"] == [1, 2]


@pytest.mark.parametrize("path", ["nowhere/metrics.jsonl", "/dev/full"])
def test_metrics_that_cannot_be_written_do_not_block(tmp_path: Path, path: str) -> None:
    writer = MetricsWriter(tmp_path / path)
    for _ in range(3):
        writer.on_step_end(step(1))
        with pytest.raises(RunError, match=r"cannot write .*(No such file|No space left).*; the next attempt resumes"):
            writer.flush()
    assert writer.problem is not None
    writer.close()


def test_row_that_is_not_json_does_not_block(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.on_evaluate(EvaluationRecord(1, 0.3, {"eval/loss": object()}, best=False))  # type: ignore[dict-item]
    with pytest.raises(RunError, match="not JSON serializable"):
        writer.flush()
    writer.close()


def test_skipped_steps_of_earlier_attempts_are_counted(tmp_path: Path, run_plan: RunPlan) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.on_step_end(step(1, skipped=True))
    writer.close()
    tracker = StatusTracker()
    tracker.on_train_begin(run_plan, 1)
    tracker.restore(writer.path)
    tracker.on_step_end(step(2, skipped=True))
    progress = tracker.report("Failed", "").progress
    assert progress is not None and progress.non_finite_steps == 2
    registry = CollectorRegistry()
    registry.register(StatusCollector(tracker))
    found = samples(generate_latest(registry).decode())
    assert (found[names.SKIPPED_STEPS, ""], found[names.NONFINITE_STEPS, ""]) == (2, 1)
