"""A run that was stopped, crashed or killed resumes with the same weights and metrics, bit for bit."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VisionTextDualEncoderModel

from finetune_api import FineTuneJob
from finetune_trainer.errors import Interrupted, RunError, UserError
from finetune_trainer.training import resume
from finetune_trainer.training.checkpoint import write_manifest
from finetune_trainer.training.checkpoint.store import find_problem
from finetune_trainer.training.device import DeviceConfig, LossScale
from finetune_trainer.training.run import RunOptions, run
from finetune_trainer.training.versions import package_versions
from harness import forkserver
from unit.trainer import tiny
from unit.trainer.tiny import AfterStep, Recorder

TIMING_FIELDS = ("seconds", "samples_per_second", "estimated_completion_time")


class TerminateInEvaluation(Recorder):
    """Sends SIGTERM during the evaluation after a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_prediction_step(self, done: int, total: int) -> None:
        if self.steps and self.steps[-1].step == self.step and done == 0:
            terminate()


class CrashError(Exception):
    """A bug or a hardware failure."""


def crash() -> None:
    raise CrashError


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def job(**changes: Any) -> FineTuneJob:
    checkpoint = {"everySteps": 2, "keep": 2}
    return tiny.contrastive_job(
        **tiny.merged({"checkpoint": checkpoint, "evaluation": {"every": {"steps": 2}}}, changes)
    )


def go(spec: FineTuneJob, claims: Path, out: Path, recorder: Recorder | None = None, **options: Any) -> Recorder:
    recorder = recorder or Recorder()
    run(spec, RunOptions(claims=tiny.claim_paths(claims, out), **options), recorder)
    return recorder


def digest(recorder: Recorder) -> str | None:
    assert recorder.report is not None and recorder.report.output is not None
    return recorder.report.output.digest


def run_json(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "result" / "run.json").read_text())
    return loaded


def checkpoint_weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    (path,) = out.glob(f"result/.checkpoints/*/step-{step:08d}/weights.safetensors")
    return dict(load_file(path))


def metrics(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "result" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMING_FIELDS} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(claims: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str | None, list[dict[str, Any]]]:
    """Digest and metrics of the same run without interruption."""
    out = tmp_path_factory.mktemp("uninterrupted")
    return digest(go(job(), claims, out)), metrics(out)


@pytest.mark.parametrize("step", range(1, 7))
def test_sigterm_after_each_step(step: int, claims: Path, out: Path, uninterrupted: tuple[str, Any]) -> None:
    recorder = AfterStep(step, terminate)
    with pytest.raises(Interrupted) as raised:
        go(job(), claims, out, recorder)
    assert raised.value.exit_code == 75
    assert recorder.report is not None
    assert recorder.report.reason == "Interrupted"
    assert recorder.report.checkpoint is not None
    assert recorder.report.checkpoint.step == step
    assert recorder.report.checkpoint.path is not None
    assert recorder.report.checkpoint.path.startswith("pvc://out/result/.checkpoints/local-")
    resumed = go(job(), claims, out)
    assert resumed.resumed_step == step
    assert resumed.has_message(f"resuming from step {step} of attempt 1")
    assert (digest(resumed), metrics(out)) == uninterrupted


@pytest.mark.parametrize("step", range(1, 7))
def test_crash_after_each_step(step: int, claims: Path, out: Path, uninterrupted: tuple[str, Any]) -> None:
    recorder = AfterStep(step, crash)
    with pytest.raises(CrashError):
        go(job(), claims, out, recorder)
    assert recorder.report is not None
    assert recorder.report.reason == "Crashed"
    resumed = go(job(), claims, out)
    assert resumed.resumed_step == (step - 1) // 2 * 2
    assert (digest(resumed), metrics(out)) == uninterrupted


def test_sigterm_during_evaluation(claims: Path, out: Path, uninterrupted: tuple[str, Any]) -> None:
    with pytest.raises(Interrupted, match="after step 4"):
        go(job(), claims, out, TerminateInEvaluation(4))
    resumed = go(job(), claims, out)
    assert [record.step for record in resumed.evaluations] == [4, 6]
    assert (digest(resumed), metrics(out)) == uninterrupted


def test_workers_ignore_sigterm(claims: Path, out: Path, uninterrupted: tuple[str, Any]) -> None:
    def terminate_all() -> None:
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGTERM)
        terminate()

    with pytest.raises(Interrupted, match="after step 1"):
        go(job(data={"workers": 2}), claims, out, AfterStep(1, terminate_all))
    assert not multiprocessing.active_children()
    resumed = go(job(data={"workers": 2}), claims, out)
    assert (digest(resumed), metrics(out)) == uninterrupted


def test_sigterm_before_the_first_step(claims: Path, out: Path, uninterrupted: tuple[str, Any]) -> None:
    class TerminateEarly(Recorder):
        def on_message(self, text: str) -> None:
            terminate()

    with pytest.raises(Interrupted, match="before the first step"):
        go(job(), claims, out, TerminateEarly())
    assert digest(go(job(), claims, out)) == uninterrupted[0]


def test_signal_handlers_are_restored(claims: Path, out: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    go(job(), claims, out)
    assert signal.getsignal(signal.SIGTERM) == before


def test_second_interrupt_is_immediate(claims: Path, out: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    recorder = AfterStep(1, twice)
    with pytest.raises(KeyboardInterrupt):
        go(job(), claims, out, recorder)
    assert recorder.report is not None
    assert recorder.report.reason == "Interrupted"


def test_early_stopping_continues_counting(claims: Path, out: Path) -> None:
    stopping = {"every": {"steps": 1}, "metric": "eval/loss", "earlyStopping": {"patience": 3, "minDelta": 100.0}}
    with pytest.raises(Interrupted):
        go(job(evaluation=stopping), claims, out, AfterStep(2, terminate))
    resumed = go(job(evaluation=stopping), claims, out)
    assert [record.step for record in resumed.steps] == [3, 4]


def plateau_job() -> FineTuneJob:
    """No evaluation improves, so rates drop after every second one; one module unfreezes at step 3."""
    plateau = [{"type": "Plateau", "factor": 0.5, "patience": 1, "minDelta": 100.0}]
    modules = [module if module.get("frozen") else {**module, "schedule": plateau} for module in tiny.TWO_MODULES]
    evaluation = {"every": {"steps": 1}, "metric": "eval/loss"}
    return job(modules=modules, training={"epochs": 3}, evaluation=evaluation)


@pytest.mark.parametrize("step", [2, 3, 5, 6, 7])
def test_plateau_schedule_resumes(step: int, claims: Path, tmp_path: Path) -> None:
    complete = go(plateau_job(), claims, tmp_path / "complete")
    visual = [record.learning_rates["visual"] / 1e-2 for record in complete.steps]
    textual = [record.learning_rates["textual"] / 1e-4 for record in complete.steps]
    assert visual == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert textual == [0, 0, 0, 1, 1, 1, 0.5, 0.5, 0.25]
    with pytest.raises(Interrupted):
        go(plateau_job(), claims, tmp_path / "resumed", AfterStep(step, terminate))
    resumed = go(plateau_job(), claims, tmp_path / "resumed")
    assert resumed.resumed_step == step
    assert (digest(resumed), metrics(tmp_path / "resumed")) == (digest(complete), metrics(tmp_path / "complete"))


@pytest.mark.parametrize(
    ("visual", "textual"),
    [("Adagrad", "NAdam"), ("NAdam", "Adagrad"), ("RAdam", "Adafactor"), ("Adafactor", "RAdam"), ("Muon", "Muon")],
)
def test_every_optimizer_resumes(visual: str, textual: str, claims: Path, tmp_path: Path) -> None:
    """The textual module unfreezes at step 3: one checkpoint is before, one after it."""
    modules = [dict(module) for module in tiny.TWO_MODULES]
    modules[0]["optimizer"] = {"type": visual, "learningRate": 1e-2}
    modules[1]["optimizer"] = {"type": textual, "learningRate": 1e-3}
    if visual == "Muon":
        modules[0]["exclude"] = [
            "vision_model.*.bias",
            "*norm*.weight",
            "*_token",
            "*.position_embeddings",
            "*.projection.*",
        ]
        modules[1]["exclude"] = ["text_model.*.bias", "*.LayerNorm.weight"]
        others = [*modules[0]["exclude"], *modules[1]["exclude"]]
        modules.append({"name": "rest", "parameters": others, "optimizer": {"type": "AdamW", "learningRate": 1e-3}})
    complete = digest(go(job(modules=modules), claims, tmp_path / "complete"))
    for step in (2, 4):
        out = tmp_path / f"resumed-{step}"
        with pytest.raises(Interrupted):
            go(job(modules=modules), claims, out, AfterStep(step, terminate))
        assert digest(go(job(modules=modules), claims, out)) == complete, step


@pytest.mark.parametrize("how", ["truncated", "bit flip", "missing", "no manifest"])
def test_corrupt_checkpoint_is_reported_and_the_previous_one_is_used(
    how: str, claims: Path, out: Path, uninterrupted: tuple[str, Any]
) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(5, crash))
    (last,) = out.glob("result/.checkpoints/*/step-00000004")
    weights = last / "weights.safetensors"
    content = weights.read_bytes()
    if how == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    elif how == "bit flip":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (weights if how == "missing" else last / "manifest.json").unlink()
    resumed = go(job(), claims, out)
    assert resumed.has_message(f"checkpoint {last} is corrupt")
    assert resumed.resumed_step == 2
    assert (digest(resumed), metrics(out)) == uninterrupted


@pytest.mark.parametrize(
    "manifest", ["[]", "null", "3", '{"state.json": {"sixe": 3}}', '{"state.json": 1}', '{"/": {"size": 1}']
)
def test_damaged_manifest_is_a_problem_and_no_crash(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "manifest.json").write_text(manifest)
    assert find_problem(tmp_path) == "manifest.json is missing or damaged"


def test_manifest_that_cannot_be_read_now_is_no_reason_to_delete_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError(errno.EIO, "Input/output error")

    write_manifest(tmp_path)
    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(OSError, match="Input/output error"):
        find_problem(tmp_path)


def test_copies_of_checkpoints_are_left_alone(claims: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(5, crash))
    (last,) = out.glob("result/.checkpoints/*/step-00000004")
    shutil.copytree(last, last.with_name("step-00000004.bak"))
    shutil.copytree(last, last.with_name("step-backup"))
    assert go(job(), claims, out).resumed_step == 4


def test_validation_set_that_is_removed_leaves_no_best_step(claims: Path, out: Path, tmp_path: Path) -> None:
    claims = Path(shutil.copytree(claims, tmp_path / "claims"))
    tiny.write_rows(claims / "data" / "held-out", tiny.reviews(9))

    def changed(**data: Any) -> FineTuneJob:
        every = {"checkpoint": {"everySteps": 2}, "evaluation": {"every": {"steps": 2}}} if data else {}
        return tiny.job("bert", "reviews", data=data, output={"dtype": "BF16"}, **every)

    with pytest.raises(CrashError):
        go(changed(validation={"source": "pvc://data/held-out"}), claims, out, AfterStep(5, crash))
    resumed = go(changed(), claims, out, resume=True)
    assert resumed.resumed_step == 4
    assert resumed.has_message("there is no validation set any more")
    metadata = json.loads((out / "result" / "run.json").read_text())
    assert metadata["savedStep"] == metadata["steps"] == 8
    assert metadata["metrics"]["best"] is metadata["metrics"]["final"] is None


@pytest.mark.parametrize(
    ("precision", "stored", "restored"),
    [
        (torch.float16, (512.0, 7), (512.0, 7)),
        (torch.float16, (1.0, 0), (2.0**16, 0)),  # written by a segment without FP16
        (None, (512.0, 7), (1.0, 0)),  # written by a segment with FP16
    ],
)
def test_loss_scale_of_another_precision_is_not_restored(
    precision: torch.dtype | None, stored: tuple[float, int], restored: tuple[float, int]
) -> None:
    scale = LossScale.for_device(DeviceConfig(torch.device("cpu"), precision))
    scale.restore(*stored)
    assert (scale.scale, scale.good_steps) == restored


@pytest.mark.parametrize("part", ["fingerprints", "segments"])
def test_record_of_another_version_is_rejected(part: str, claims: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(5, crash))
    (last,) = out.glob("result/.checkpoints/*/step-00000004")
    state = json.loads((last / "state.json").read_text())
    (state["run"]["segments"][0] if part == "segments" else state["run"][part])["weather"] = "sun"
    (last / "state.json").write_text(json.dumps(state))
    (last / "manifest.json").unlink()
    write_manifest(last)
    with pytest.raises(UserError, match=r"step-00000004 was written by another version .*: weather\)"):
        go(job(), claims, out)


def test_checkpoint_of_another_version_is_rejected(claims: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(5, crash))
    (last,) = out.glob("result/.checkpoints/*/step-00000004")
    state = json.loads((last / "state.json").read_text())
    state["random"] = state.pop("rng_state")
    (last / "state.json").write_text(json.dumps(state))
    (last / "manifest.json").unlink()
    write_manifest(last)
    with pytest.raises(UserError, match=r"step-00000004 was written by another version .*: random, rng_state\)"):
        go(job(), claims, out)
    assert go(job(), claims, out, fresh=True).resumed_step == 0


def test_fresh_starts_over(claims: Path, out: Path, uninterrupted: tuple[str, Any]) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(5, crash))
    again = go(job(), claims, out, fresh=True)
    assert again.resumed_step == 0
    assert (digest(again), metrics(out)) == uninterrupted


def test_another_object_does_not_resume(claims: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(uid="one"), claims, out, AfterStep(5, crash))
    assert go(job(uid="two"), claims, out).resumed_step == 0


def with_rate(rate: float, **changes: Any) -> FineTuneJob:
    """The job with another learning rate of its first module."""
    modules = [dict(module) for module in tiny.TWO_MODULES]
    modules[0]["optimizer"] = {"type": "AdamW", "learningRate": rate}
    return job(modules=modules, **changes)


@pytest.mark.parametrize("uid", ["one", None])
def test_changed_settings_need_the_option_resume(uid: str | None, claims: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(uid=uid), claims, out, AfterStep(5, crash))
    with pytest.raises(UserError, match=r"learningRate: 0.01 -> 0.05.* --resume.* --fresh") as raised:
        go(with_rate(5e-2, uid=uid), claims, out)
    assert raised.value.exit_code == 2
    assert go(job(uid=uid), claims, out).resumed_step == 4, "the checkpoints are kept"


def test_changes_of_the_spec_are_reported_and_applied(claims: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(5, crash))
    resumed = go(with_rate(5e-2), claims, out, resume=True)
    assert resumed.has_message("modules[0].optimizer.learningRate: 0.01 -> 0.05")
    assert resumed.plan is not None
    assert resumed.steps[0].learning_rates["visual"] == resumed.plan.modules[0].learning_rate(4) > 0.01
    segments = run_json(out)["segments"]
    assert [segment["step"] for segment in segments] == [0, 4]
    assert [segment["spec"]["modules"][0]["optimizer"]["learningRate"] for segment in segments] == [1e-2, 5e-2]


def test_segments_survive_a_retry_without_changes(claims: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(3, crash))
    with pytest.raises(CrashError):
        go(with_rate(5e-2), claims, out, AfterStep(5, crash), resume=True)
    resumed = go(with_rate(5e-2), claims, out)
    assert resumed.resumed_step == 4
    assert [segment["step"] for segment in run_json(out)["segments"]] == [0, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"batchSize": 3}}, "training.batchSize: 6 -> 3"),
        ({"training": {"seed": 1}}, "training.seed: 0 -> 1"),
        ({"data": {"validation": {"fraction": 0.2}}}, "data.validation.fraction: 0.3 -> 0.2"),
    ],
)
@pytest.mark.parametrize("use_resume", [True, False])
def test_another_position_is_rejected(
    changes: dict[str, Any], words: str, use_resume: bool, claims: Path, out: Path
) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(5, crash))
    with pytest.raises(UserError, match=words) as raised:
        go(job(**changes), claims, out, resume=use_resume)
    assert "--fresh" in str(raised.value)
    assert "--resume" not in str(raised.value)
    assert go(job(**changes), claims, out, fresh=True).resumed_step == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"workers": 1}},
        {"checkpoint": {"everySteps": 3, "keep": 5}},
        {"retry": {"limit": 9}, "ttlSecondsAfterFinished": 5, "runtime": {"env": [{"name": "A", "value": "b"}]}},
    ],
)
def test_fields_without_an_effect_change_nothing(
    changes: dict[str, Any], claims: Path, out: Path, uninterrupted: tuple[str, Any]
) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(5, crash))
    resumed = go(job(**changes), claims, out)
    assert resumed.resumed_step == 4
    assert (digest(resumed), metrics(out)) == uninterrupted
    assert len(run_json(out)["segments"]) == 1


def test_longer_training_continues_with_the_option_resume(claims: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(5, crash))
    resumed = go(job(training={"epochs": 3}), claims, out, resume=True)
    assert [record.step for record in resumed.steps] == [5, 6, 7, 8, 9]


def test_a_shorter_run_than_the_checkpoint_is_rejected(claims: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(5, crash))
    shorter = job(training={"epochs": 1}, modules=[{**tiny.TWO_MODULES[0], "parameters": ["*"]}])
    with pytest.raises(UserError, match="the checkpoint of step 4 is after the last step of the job, 3"):
        go(shorter, claims, out, resume=True)


def test_another_optimizer_starts_without_state(claims: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(5, crash))
    modules = [dict(module) for module in tiny.TWO_MODULES]
    modules[0]["optimizer"] = {"type": "SGD", "learningRate": 1e-2, "momentum": 0.9}
    resumed = go(job(modules=modules), claims, out, resume=True)
    assert resumed.has_message("module 'visual' starts without the optimizer state of the checkpoint")
    assert not resumed.has_message("module 'textual' starts")


def test_a_module_that_was_frozen_can_be_trained_with_the_option_resume(claims: Path, out: Path) -> None:
    """Its weights are not in the checkpoint; those that were trained before and are frozen now stay as they were."""
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(5, crash))
    modules = [dict(module) for module in tiny.TWO_MODULES]
    modules[2] = {"name": "temperature", "parameters": ["logit_scale"], "optimizer": modules[0]["optimizer"]}
    modules[0] = {"name": "visual", "parameters": modules[0]["parameters"], "frozen": True}
    changed = job(modules=modules, checkpoint={"keepBest": False, "everySteps": 1})
    before = checkpoint_weights(out, 4)
    with pytest.raises(CrashError):
        go(changed, claims, out, AfterStep(6, crash), resume=True)
    go(changed, claims, out)
    after = dict(VisionTextDualEncoderModel.from_pretrained(out / "result").named_parameters())
    pretrained = dict(VisionTextDualEncoderModel.from_pretrained(claims / "models" / "dual").named_parameters())
    trained = [name for name in before if name.startswith("vision_model.") and name in after]
    assert trained and all(torch.equal(before[name], after[name]) for name in trained)
    assert not any(torch.equal(pretrained[name], after[name]) for name in trained if name.endswith("weight"))
    assert not torch.equal(pretrained["logit_scale"], after["logit_scale"])


def test_frozen_weights_of_the_model_that_changed_are_rejected(claims: Path, out: Path, tmp_path: Path) -> None:
    shutil.copytree(claims / "models" / "dual", tmp_path / "models" / "dual")
    claim_paths = tiny.ClaimPaths(claims, {"models": tmp_path / "models", "out": out})
    with pytest.raises(CrashError):
        run(job(), RunOptions(claims=claim_paths), AfterStep(5, crash))
    weights = load_file(tmp_path / "models" / "dual" / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, tmp_path / "models" / "dual" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model.source: .* 1 of 1 frozen parameters differ, e.g. logit_scale \("):
        run(job(), RunOptions(claims=claim_paths), Recorder())


def test_library_versions_that_differ_are_reported(
    claims: Path, out: Path, uninterrupted: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(resume, "package_versions", lambda: {**package_versions(), "torch": "1.0"})
        with pytest.raises(CrashError):
            go(job(), claims, out, AfterStep(5, crash))
    resumed, torch_version = go(job(), claims, out), package_versions()["torch"]
    assert resumed.has_message(f"versions have changed since, so results may differ: torch 1.0 -> {torch_version}")
    assert digest(resumed) == uninterrupted[0]
    assert [segment["versions"]["torch"] for segment in run_json(out)["segments"]] == ["1.0", torch_version]


def test_resume_with_other_data_is_rejected(claims: Path, out: Path, tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "colours", tiny.captioned(30))
    claim_paths = tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out})
    with pytest.raises(CrashError):
        run(job(), RunOptions(claims=claim_paths), AfterStep(5, crash))
    tiny.write_rows(tmp_path / "data" / "colours", tiny.captioned(30, seed=2), "part-1.parquet")
    with pytest.raises(UserError, match="the training set has 42 samples, but had 21"):
        run(job(), RunOptions(claims=claim_paths), Recorder())


def test_older_attempt_cannot_start_after_a_newer_one(claims: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(3, crash), attempt=2)
    with pytest.raises(RunError, match="attempt 1 cannot continue: attempt 2 has started") as raised:
        go(job(), claims, out, attempt=1)
    assert raised.value.exit_code == 1


def test_older_attempt_cannot_write_after_a_newer_one_has_started(claims: Path, out: Path) -> None:
    def overtake() -> None:
        with pytest.raises(CrashError):
            go(job(), claims, out, AfterStep(3, crash), attempt=2)

    with pytest.raises(RunError, match=r"attempt 1 cannot write to .*: attempt 2 has taken over"):
        go(job(), claims, out, AfterStep(3, overtake), attempt=1)


SCRIPT = """
import sys, time
from pathlib import Path
import torch
from finetune_api import FineTuneJob
from finetune_trainer.callbacks import Callback
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.training.run import RunOptions, run
from finetune_trainer.training.versions import package_versions

class Slow(Callback):
    def on_step_end(self, record):
        Path(sys.argv[3]).write_text(str(record.step))
        time.sleep(0.05)

torch.set_num_threads(1)
job = FineTuneJob.model_validate_json(Path(sys.argv[4]).read_text(), strict=True)
run(job, RunOptions(claims=ClaimPaths(Path(sys.argv[1]), {"out": Path(sys.argv[2])})), Slow())
"""


def _read_step(file: Path) -> int:
    """The step in a file that another process writes; 0 while it is missing or being written."""
    return int((file.read_text() if file.exists() else "") or 0)


@pytest.mark.parametrize("workers", [2])
def test_sigkill_at_a_random_step(
    workers: int, claims: Path, out: Path, tmp_path: Path, uninterrupted: tuple[str, Any]
) -> None:
    spec = job(data={"workers": workers})
    manifest = tmp_path / "job.json"
    manifest.write_text(json.dumps(spec.model_dump(mode="json", by_alias=True, exclude_none=True)))
    step_file = out / "step"
    arguments = ["-c", SCRIPT, claims, out, step_file, manifest]
    process = forkserver.start(arguments, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    step = random.randint(1, 5)
    deadline = time.monotonic() + 120
    while _read_step(step_file) < step:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    resumed = go(spec, claims, out)
    assert (digest(resumed), metrics(out)) == uninterrupted, f"killed after step {step}"
