"""The test set is evaluated once, after the last step, with the weights that are exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.cli.console import PlainDisplay
from finetune_trainer.cli.summary import print_summary
from finetune_trainer.errors import Interrupted, OutOfGPUMemory
from finetune_trainer.planning.prepare import prepare
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny
from unit.trainer.tiny import Recorder

UID = "5f0f0000-0000-4000-8000-000000000001"


def job_with_test(**changes: Any) -> Any:
    base = {"data": {"test": {"source": "pvc://data/more-colours"}}, "training": {"epochs": 3}}
    return tiny.contrastive_job(uid=UID, **tiny.merged(base, changes))


def run_job(job: Any, claims: Path, out: Path) -> Recorder:
    recorder = Recorder()
    run(job, RunOptions(claims=tiny.claim_paths(claims, out)), recorder)
    return recorder


def test_metrics_are_reported_everywhere(claims: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_with_test()
    recorder = run_job(job, claims, out)
    (record,) = recorder.tests
    assert record.step == recorder.steps[-1].step
    assert "test/loss" in record.metrics
    assert "test/recall_at_1" in record.metrics
    assert not any(name.startswith("eval/") for name in record.metrics)
    assert recorder.report is not None
    reported = {metric.name: metric.value for metric in recorder.report.metrics}
    assert reported["test/loss"] == pytest.approx(record.metrics["test/loss"], rel=1e-4)
    assert "eval/loss" in reported
    metadata = json.loads((out / "result" / "run.json").read_text())
    assert metadata["metrics"]["test"] == {"step": record.step, **record.metrics}
    lines = [json.loads(line) for line in (out / "result" / "metrics.jsonl").read_text().splitlines()]
    assert [line["metrics"] for line in lines if line["type"] == "test"] == [record.metrics]
    import sys

    print_summary(job, tiny.claim_paths(claims, out), recorder.report, PlainDisplay(sys.stdout))
    shown = capsys.readouterr().out
    assert "Test set" in shown
    assert f"{record.metrics['test/recall_at_1']:.4f}" in shown


@pytest.mark.parametrize("keep_best", [True, False])
def test_uses_the_exported_weights(keep_best: bool, claims: Path, out: Path) -> None:
    # The metric gets worse with each evaluation, so the best weights are those of the first one.
    evaluation = {"metric": "eval/loss", "direction": "Maximize" if keep_best else "Minimize"}
    recorder = run_job(job_with_test(checkpoint={"keepBest": keep_best}, evaluation=evaluation), claims, out)
    source = {"model": {"source": "pvc://out/result"}, "data": {"validation": {"source": "pvc://data/more-colours"}}}
    job = tiny.job("dual", "colours", **source)
    prepared = prepare(job, tiny.claim_paths(claims, out))
    assert prepared.validation is not None
    loss = _evaluate_loss(prepared)
    assert loss == pytest.approx(recorder.tests[0].metrics["test/loss"], rel=1e-5)


def _evaluate_loss(prepared: Any) -> float:
    from finetune_trainer.data import evaluation_batches
    from finetune_trainer.planning import model_loader

    model, _ = model_loader.load_model(prepared.pretrained, prepared.task, prepared.config)
    processors = model_loader.load_processors(prepared.pretrained, prepared.task, prepared.config, None)
    model.eval()
    data = prepared.validation
    order = evaluation_batches(len(data), 6, 0)
    with torch.no_grad():
        collated = [prepared.task.make_batch([data[index] for index in batch], processors) for batch in order]
        return float(prepared.task.evaluate(model, collated)["eval/loss"])


def test_test_set_without_validation_set(claims: Path, out: Path) -> None:
    tiny.write_rows(out / "more-reviews", tiny.reviews(9))
    job = tiny.job("bert", "reviews", data={"test": {"source": "pvc://out/more-reviews"}})
    recorder = run_job(job, claims, out)
    assert recorder.evaluations == []
    assert set(recorder.tests[0].metrics) == {"test/loss", "test/accuracy"}


class TerminateInTest(Recorder):
    """Sends SIGTERM during the test."""

    def on_step_end(self, record: Any) -> None:
        super().on_step_end(record)
        self.is_last = record.step == record.planned_steps

    def on_message(self, text: str) -> None:
        super().on_message(text)
        self.is_saving = text.startswith("saving the weights")

    def on_prediction_step(self, done: int, total: int) -> None:
        if getattr(self, "is_saving", False):
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)


def test_interrupted_test_is_repeated(claims: Path, out: Path, tmp_path: Path) -> None:
    job = job_with_test(checkpoint={"everyEpochs": 100})
    with pytest.raises(Interrupted):
        run(job, RunOptions(claims=tiny.claim_paths(claims, out)), first := TerminateInTest())
    assert first.tests == []
    second = Recorder()
    run(job, RunOptions(claims=tiny.claim_paths(claims, out), attempt=2), second)
    assert second.steps == []
    assert len(second.tests) == 1
    (tmp_path / "complete").mkdir()
    complete = run_job(job, claims, tmp_path / "complete")
    assert second.tests[0].metrics == complete.tests[0].metrics


def test_out_of_gpu_memory_during_the_test(claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr("finetune_trainer.training.trainer.Trainer.test", out_of_memory)
    with pytest.raises(OutOfGPUMemory):
        run_job(job_with_test(), claims, out)


def test_completed_test_is_not_repeated(claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_with_test()
    with monkeypatch.context() as patch:
        patch.setattr("finetune_trainer.training.export.export_model", _no_space)
        with pytest.raises(OSError, match="No space"):
            run(job, RunOptions(claims=tiny.claim_paths(claims, out)), first := Recorder())
    second = Recorder()
    run(job, RunOptions(claims=tiny.claim_paths(claims, out), attempt=2), second)
    assert (len(first.tests), len(second.tests)) == (1, 0)
    assert second.report is not None
    reported = {metric.name: metric.value for metric in second.report.metrics}
    assert reported["test/loss"] == pytest.approx(first.tests[0].metrics["test/loss"], rel=1e-4)
    metadata = json.loads((out / "result" / "run.json").read_text())
    assert metadata["metrics"]["test"]["test/loss"] == first.tests[0].metrics["test/loss"]


@pytest.mark.parametrize("changes", [{"output": {"dtype": "BF16"}}, {"checkpoint": {"keepBest": False}}])
def test_completed_test_is_repeated_with_other_weights(
    changes: dict[str, Any], claims: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"evaluation": {"metric": "eval/loss", "direction": "Maximize"}, "output": {"dtype": "FP32"}}
    with monkeypatch.context() as patch:
        patch.setattr("finetune_trainer.training.export.export_model", _no_space)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                run(job_with_test(**base), RunOptions(claims=tiny.claim_paths(claims, out)), first := Recorder())
            patch.setattr("finetune_trainer.training.failures.read_failure", lambda folder: None)
    changed = job_with_test(**tiny.merged(base, changes))
    run(changed, RunOptions(claims=tiny.claim_paths(claims, out), resume=True), second := Recorder())
    assert (len(first.tests), len(second.tests)) == (0, 1)
    (tmp_path / "complete").mkdir()
    complete = run_job(changed, claims, tmp_path / "complete")
    metadata = json.loads((out / "result" / "run.json").read_text())
    assert metadata["metrics"]["test"] == {"step": second.tests[0].step, **complete.tests[0].metrics}


def _no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")
