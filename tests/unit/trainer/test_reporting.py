"""What Prometheus scrapes, what the termination message holds, and what `metrics.jsonl` keeps."""

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
from finetune_trainer.reporting.metrics_jsonl import MetricsFile, cut_back, read
from finetune_trainer.reporting.tracker import Exporter, Tracker, serving
from finetune_trainer.training.run import RunOptions, plan, run
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
def planned(claims: Path, out: Path) -> RunPlan:
    return plan(tiny.contrastive_job(), tiny.claim_paths(claims, out))


@pytest.fixture
def tracker(planned: RunPlan) -> Tracker:
    """A run in the middle."""
    tracker = Tracker()
    tracker.on_plan(planned, 2)
    tracker.on_step(step(3))
    tracker.on_evaluation(EvaluationRecord(3, 1.0, {"eval/loss": 1.5, "eval/recall_at_1": 0.25}, best=True))
    tracker.on_step(step(4, math.nan, skipped=True))
    return tracker


def samples(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_metrics_have_the_names_that_the_operator_reads(tracker: Tracker) -> None:
    registry = CollectorRegistry()
    registry.register(Exporter(tracker))
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


def test_module_that_trains_from_the_start_is_not_frozen_before_the_first_step(planned: RunPlan) -> None:
    tracker = Tracker()
    tracker.on_plan(planned, 0)
    frozen = {module.name: module.frozen for module in tracker.report("Failed", "").modules}
    assert frozen == {"visual": False, "textual": True, "temperature": True}, "textual is frozen in the first epoch"


def test_before_there_is_a_plan_there_is_nothing_to_scrape() -> None:
    registry = CollectorRegistry()
    registry.register(Exporter(Tracker()))
    assert generate_latest(registry) == b""


def test_it_is_served_while_the_run_goes_on_and_no_longer(tracker: Tracker) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    with serving(tracker, port), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert samples(answer.read().decode())[names.STEP, ""] == 4
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("", port))
        taken.listen()
        with pytest.raises(UserError, match=f"--metrics-port {port}: Address already in use"), serving(tracker, port):
            pass


def test_the_report_speaks_the_words_of_the_status(tracker: Tracker) -> None:
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


def test_the_termination_message_fits_however_much_there_is_to_say(claims: Path, out: Path) -> None:
    parameters = ["vision_model.*", "text_model.*", "visual_projection.*", "text_projection.*", "logit_scale"]
    optimizer = {"type": "AdamW", "learningRate": 0.1}
    modules = [
        {"name": f"{'long-' * 10}{number}", "parameters": [pattern], "optimizer": optimizer}
        for number, pattern in enumerate(parameters)
    ]
    tracker = Tracker()
    tracker.on_plan(plan(tiny.contrastive_job(modules=modules), tiny.claim_paths(claims, out)), 0)
    tracker.on_evaluation(EvaluationRecord(0, 0, {f"eval/metric_{n}": 1 / 3 for n in range(60)}, best=False))
    message = tracker.report("Failed", "x" * 5000).termination_message()
    assert len(message.encode()) <= TERMINATION_MESSAGE_BYTES
    assert Report.model_validate_json(message).reason == "Failed"


@pytest.mark.parametrize("fails", [False, True])
def test_it_is_written_however_the_run_ends(fails: bool, claims: Path, out: Path, tmp_path: Path) -> None:
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


def test_a_file_keeps_every_record(tmp_path: Path) -> None:
    records = [step(1), EvaluationRecord(1, 0.3, {"eval/loss": 1.0}, best=True), step(2, skipped=True)]
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for record in records:
        file.on_evaluation(record) if isinstance(record, EvaluationRecord) else file.on_step(record)
    file.flush()
    assert list(read(file.path)) == records
    file.close()
    assert [json.loads(line)["type"] for line in file.path.read_text().splitlines()] == ["step", "evaluation", "step"]


def test_what_is_not_finite_is_null_in_the_file(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.on_step(step(1, math.inf, gradient_norms={"visual": math.nan}))
    file.close()
    row = json.loads(file.path.read_text())
    assert row["loss"] is None
    (record,) = read(file.path)
    assert isinstance(record, StepRecord)
    assert math.isnan(record.loss) and math.isnan(record.gradient_norms["visual"])


def test_it_is_cut_back_to_what_a_checkpoint_knows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for number in range(1, 5):
        file.on_step(step(number))
        file.on_evaluation(EvaluationRecord(number, number / 3, {"eval/loss": 1.0}, best=False))
    file.close()
    path.write_text(path.read_text() + '{"type": "st')
    cut_back(path, step=3, evaluated=2)
    kept = [(type(record).__name__, record.step) for record in read(path)]
    assert [number for kind, number in kept if kind == "StepRecord"] == [1, 2, 3]
    assert [number for kind, number in kept if kind == "EvaluationRecord"] == [1, 2]
