"""The end of a run: a durable state before the output, damaged checkpoints, full disks, links, existing outputs."""

import hashlib
import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_api import FineTuneJob
from finetune_api.defaults import with_defaults
from finetune_trainer.cli.describe import describe_job
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.training import disk_space, export
from finetune_trainer.training.checkpoint import CheckpointManager, store
from finetune_trainer.training.run import RunOptions, run
from finetune_trainer.training.watchdog import Heartbeat
from unit.trainer import tiny
from unit.trainer.tiny import AfterStep, Recorder


class AtMessage(Recorder):
    """Calls a function at a message."""

    def __init__(self, start: str, action: Callable[[], None]) -> None:
        super().__init__()
        self.start, self.action = start, action

    def on_message(self, text: str) -> None:
        super().on_message(text)
        if text.startswith(self.start):
            self.action()


class CrashError(Exception):
    pass


def crash() -> None:
    raise CrashError


def go(job: FineTuneJob, claims: Path, out: Path, recorder: Recorder | None = None, **options: Any) -> Recorder:
    recorder = recorder or Recorder()
    run(job, RunOptions(claims=tiny.claim_paths(claims, out), **options), recorder)
    return recorder


def run_json(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "result" / "run.json").read_text())
    return loaded


def saved_checkpoint(out: Path, step: int) -> Path:
    """The checkpoint of a step, which may still be being written."""
    deadline = time.monotonic() + 30
    while not list(out.glob(f"result/.checkpoints/*/step-{step:08d}")) and time.monotonic() < deadline:
        time.sleep(0.01)
    (folder,) = out.glob(f"result/.checkpoints/*/step-{step:08d}")
    return folder


@contextmanager
def maximum_file_size(size: int) -> Iterator[None]:
    """Every write beyond this size fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# A durable end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [{"everyEpochs": 100}, {"everySeconds": 1000}, {"everySteps": 4}])
def test_only_the_export_is_repeated_after_the_output_could_not_be_written(
    checkpoint: dict[str, Any], claims: Path, out: Path
) -> None:
    job = tiny.contrastive_job(checkpoint={**checkpoint, "keepBest": False})
    with maximum_file_size(100_000_000), pytest.raises(RunError) as raised:
        limit = AtMessage("saving", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY)))
        go(job, claims, out, limit)
    assert raised.value.exit_code == 1
    message = str(raised.value)
    assert message.startswith("output.destination: pvc://out/result: cannot save the model")
    assert "it needs about" in message and "free)" in message and "only saves the model" in message
    assert not (saved_checkpoint(out, 6).parent / "output").exists(), "its space is given back"
    second = go(job, claims, out)
    assert (second.resumed_step, second.steps) == (6, [])
    assert second.report is not None and second.report.reason == "Succeeded"


def test_checkpoint_that_cannot_be_written_in_the_background_ends_the_run(claims: Path, out: Path) -> None:
    job = tiny.contrastive_job(checkpoint={"everySteps": 1, "keepBest": False})
    with (
        maximum_file_size(10_000),
        pytest.raises(RunError, match=r"cannot write the checkpoint .*step-0000000\d \(.* free\)"),
    ):
        go(job, claims, out)
    assert go(job, claims, out).resumed_step == 0


def test_checkpoints_by_time(claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.training.timer.StepTimer.elapsed", property(lambda timer: 10.0 * timer._step))
    job = tiny.contrastive_job(checkpoint={"everySeconds": 25, "keepBest": False})
    recorder = go(job, claims, out)
    assert [record.step for record in recorder.checkpoints] == [3, 6]


# Damaged checkpoints ---------------------------------------------------------------------------------------------


def damage_best(claims: Path, out: Path, *steps: int) -> tuple[Recorder, dict[int, dict[str, torch.Tensor]]]:
    """Run with the worst evaluations as the best, so that step 1 is the best, and damage checkpoints before the end."""
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def damage() -> None:
        for step in range(1, 6):
            weights[step] = dict(load_file(saved_checkpoint(out, step) / "weights.safetensors"))
        for step in steps:
            file = saved_checkpoint(out, step) / "weights.safetensors"
            file.write_bytes(file.read_bytes()[:-1] + b"x")

    evaluation = {"every": {"steps": 1}, "metric": "eval/loss", "direction": "Maximize"}
    job = tiny.contrastive_job(evaluation=evaluation, checkpoint={"everySteps": 1, "keep": 100})
    return go(job, claims, out, AfterStep(6, damage)), weights


def ranking(recorder: Recorder) -> list[int]:
    evaluations = [record for record in recorder.evaluations if record.step]
    return [it.step for it in sorted(evaluations, key=lambda it: -it.metrics["eval/loss"])]


@pytest.mark.parametrize("damaged", [1, 2])
def test_next_best_checkpoint_is_used_if_the_best_is_damaged(
    damaged: int, claims: Path, out: Path, tmp_path: Path
) -> None:
    order = ranking(damage_best(claims, tmp_path / "first")[0])
    assert 6 not in order[: damaged + 1], "the loss decreases"
    recorder, weights = damage_best(claims, out, *order[:damaged])
    for step in order[:damaged]:
        assert recorder.has_message(f"the checkpoint of step {step} cannot be used for the output")
    assert recorder.report is not None and recorder.report.reason == "Succeeded"
    assert f"step {order[damaged]}, the best that is intact" in recorder.report.message
    metadata = run_json(out)
    assert metadata["savedStep"] == order[damaged]
    assert len(metadata["notes"]) == damaged and "does not match its SHA-256" in metadata["notes"][0]
    saved = load_file(out / "result" / "model.safetensors")
    same = [torch.equal(saved[name], it) for name, it in weights[order[damaged]].items() if name in saved]
    assert same and all(same)


def test_last_weights_are_used_if_every_better_checkpoint_is_damaged(claims: Path, out: Path) -> None:
    recorder, _ = damage_best(claims, out, 1, 2, 3, 4, 5)
    assert run_json(out)["savedStep"] == 6
    assert recorder.report is not None and "step 6" in recorder.report.message


def test_best_checkpoint_without_the_weights_of_a_module_that_was_trained_later(claims: Path, out: Path) -> None:
    """It was frozen in the first segment, so its weights at that step are no longer in the model."""
    evaluation = {"every": {"steps": 1}, "metric": "eval/loss", "direction": "Maximize"}
    checkpoint = {"everySteps": 1, "keep": 100}
    with pytest.raises(CrashError):
        go(tiny.contrastive_job(evaluation=evaluation, checkpoint=checkpoint), claims, out, AfterStep(4, crash))
    optimizer = {"type": "SGD", "learningRate": 1e-3}
    modules = [*tiny.TWO_MODULES[:2], {"name": "temperature", "parameters": ["logit_scale"], "optimizer": optimizer}]
    job = tiny.contrastive_job(evaluation=evaluation, checkpoint=checkpoint, modules=modules)
    recorder = go(job, claims, out, resume=True)
    assert recorder.has_message("it has no weights of 1 parameter that was frozen then and is trained now")
    assert run_json(out)["savedStep"] > 3
    assert run_json(out)["segments"][1]["step"] == 3


# Disk space ------------------------------------------------------------------------------------------------------


def free_space(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(disk_space, "get_free_bytes", lambda folder: size)


def test_destination_that_is_too_small_is_refused_before_the_first_step(
    claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_space(monkeypatch, 30_000)
    recorder = Recorder()
    with pytest.raises(
        UserError, match=r"output.destination: pvc://out/result: 29.* KiB are free in .* needs at least"
    ) as raised:
        go(tiny.contrastive_job(), claims, out, recorder)
    assert recorder.steps == []
    assert "checkpoints of" in str(raised.value) and "the output of" in str(raised.value)
    free_space(monkeypatch, None)
    go(tiny.contrastive_job(), claims, out)


@pytest.mark.parametrize("dtype", ["FP32", "BF16"])
def test_space_estimate_is_that_of_the_files(
    dtype: str, claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimates = []
    original = disk_space.estimate_space
    monkeypatch.setattr(disk_space, "estimate_space", lambda *args: estimates.append(original(*args)) or estimates[0])
    monkeypatch.setattr(CheckpointManager, "remove", lambda self: None)
    recorder = go(tiny.contrastive_job(output={"dtype": dtype}), claims, out)
    files = saved_checkpoint(out, 6).glob("*.safetensors")
    assert estimates[0].checkpoint == pytest.approx(sum(path.stat().st_size for path in files), rel=0.35)
    saved = load_file(out / "result" / "model.safetensors")
    assert estimates[0].output == pytest.approx(sum(tensor.nbytes for tensor in saved.values()), rel=0.2)
    assert not recorder.has_message("disk space")


@pytest.mark.parametrize(("free", "is_reported"), [(7_000, False), (6_999, True), (3_000, True)])
def test_space_that_may_not_suffice_is_reported(
    free: int, is_reported: bool, claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_space, "estimate_space", lambda *_: disk_space.RequiredSpace(1000, 1000, 6))
    monkeypatch.setattr(Path, "rglob", lambda *_: iter(()))  # what the run has written already counts as free
    free_space(monkeypatch, free)
    assert go(tiny.contrastive_job(), claims, out).has_message("disk space may not suffice") == is_reported


# Links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["result", "a", "result/.checkpoints"])
def test_destination_outside_the_claim_is_refused(link: str, claims: Path, out: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (out / link).parent.mkdir(exist_ok=True)
    (out / link).symlink_to(outside)
    destination = "pvc://out/a/b/c" if link == "a" else "pvc://out/result"
    with pytest.raises(
        UserError, match=r"output.destination: .* is a symbolic link to .*outside, outside the claim 'out'"
    ):
        go(tiny.contrastive_job(output={"destination": destination}), claims, out)
    assert not list(outside.iterdir())


def test_dangling_link_is_refused(claims: Path, out: Path, tmp_path: Path) -> None:
    (out / "result").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a symbolic link"):
        go(tiny.contrastive_job(), claims, out)
    assert not (tmp_path / "nowhere").exists()


def test_link_within_the_claim_is_followed(claims: Path, out: Path) -> None:
    (out / "large").mkdir()
    (out / "result").symlink_to(out / "large")
    go(tiny.contrastive_job(), claims, out)
    assert (out / "large" / "run.json").exists()


def test_claim_that_is_a_link_is_followed(claims: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(out)
    go(tiny.contrastive_job(), claims, tmp_path / "link")
    assert (out / "result" / "run.json").exists()


def test_links_in_the_destination_are_replaced_and_their_targets_are_not(
    claims: Path, out: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    (out / "result").mkdir()
    for name in ("model.safetensors", "config.json", "metrics.jsonl"):
        (out / "result" / name).symlink_to(outside / "mine")
    (out / "result" / "tokenizer.json").symlink_to(outside)
    (out / "result" / "run.json").write_text(
        json.dumps({"name": "x", "files": ["..", "../outside", ".", "", "a/../.."]})
    )
    go(tiny.contrastive_job(output={"ifExists": "Overwrite"}), claims, out)
    assert [path.read_text() for path in outside.iterdir()] == ["mine"]
    assert not any(path.is_symlink() for path in (out / "result").iterdir())


# Existing outputs ------------------------------------------------------------------------------------------------


def copy_claims(claims: Path, folder: Path) -> Path:
    shutil.copytree(claims, folder)
    return folder


def test_output_of_the_same_spec_with_other_data_is_not_accepted(claims: Path, out: Path, tmp_path: Path) -> None:
    job, copied = tiny.contrastive_job(), copy_claims(claims, tmp_path / "claims")
    go(job, copied, out)
    tiny.write_rows(copied / "data" / "colours", tiny.captioned(30, seed=5))
    with pytest.raises(
        UserError, match=r"same spec, but data.train: the content of the training set has changed \(\w{12} -> \w{12}\)"
    ):
        go(job, copied, out)
    tiny.write_rows(copied / "data" / "colours", tiny.captioned(30))
    assert go(job, copied, out).report.reason == "OutputAlreadyExists"  # type: ignore[union-attr]


def test_output_of_the_same_spec_with_another_model_is_not_accepted(claims: Path, out: Path, tmp_path: Path) -> None:
    job, copied = tiny.contrastive_job(), copy_claims(claims, tmp_path / "claims")
    go(job, copied, out)
    config = copied / "models" / "dual" / "config.json"
    config.write_text(config.read_text().replace('"logit_scale_init_value": 2.6592', '"logit_scale_init_value": 2.5'))
    with pytest.raises(UserError, match=r"same spec, but model.source: the content of the model has changed"):
        go(job, copied, out)


def test_output_of_an_earlier_version_is_refused_by_name(claims: Path, out: Path) -> None:
    go(tiny.contrastive_job(), claims, out)
    metadata = run_json(out)
    del metadata["fingerprints"], metadata["segments"]
    metadata["contentHash"] = "0" * 64
    (out / "result" / "run.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="the same name, 'tiny', that an earlier version of the trainer wrote"):
        go(tiny.contrastive_job(), claims, out)


@pytest.mark.parametrize("fingerprints", [{}, {"fingerprints": None}])
def test_output_of_the_same_spec_without_fingerprints_is_not_accepted(
    fingerprints: dict[str, Any], claims: Path, out: Path
) -> None:
    job = tiny.contrastive_job()
    metadata = {"name": "tiny", "contentHash": job.spec.content_hash(), **fingerprints}
    (out / "result").mkdir()
    (out / "result" / "run.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="output of a job with the same name, 'tiny', that an earlier version"):
        go(job, claims, out)


def test_fingerprints_that_only_a_later_version_knows_are_not_compared(claims: Path, out: Path) -> None:
    go(tiny.contrastive_job(), claims, out)
    metadata = run_json(out)
    metadata["fingerprints"]["weather"] = "sun"
    (out / "result" / "run.json").write_text(json.dumps(metadata))
    assert go(tiny.contrastive_job(), claims, out).report.reason == "OutputAlreadyExists"  # type: ignore[union-attr]


@pytest.mark.parametrize("content", [b"[]", b"null", b'"x"', b"{", b"\xff\xfe{", b'{"files": null}', b'{"files": [1]}'])
def test_run_file_that_no_run_wrote(content: bytes, claims: Path, out: Path) -> None:
    (out / "result").mkdir()
    (out / "result" / "run.json").write_bytes(content)
    with pytest.raises(UserError, match="already has the output of job 'unknown'"):
        go(tiny.contrastive_job(), claims, out)
    go(tiny.contrastive_job(output={"ifExists": "Overwrite"}), claims, out)
    assert run_json(out)["name"] == "tiny"


def test_refused_run_leaves_no_folder(claims: Path, out: Path) -> None:
    with pytest.raises(UserError):
        go(tiny.contrastive_job(data={"train": {"source": "pvc://data/nothing"}}), claims, out)
    assert not list((out / "result").iterdir())


# Size ------------------------------------------------------------------------------------------------------------


def test_checkpoint_of_a_model_that_is_mostly_frozen_is_small(
    claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointManager, "remove", lambda self: None)
    modules = [
        {"name": "head", "parameters": ["visual_projection.*"], "optimizer": {"type": "AdamW", "learningRate": 1e-3}}
    ]
    go(tiny.contrastive_job(modules=modules, unmatched="Freeze"), claims, out)
    names = set(load_file(saved_checkpoint(out, 6) / "weights.safetensors"))
    assert {name for name in names if not name.endswith("_ids")} == {"visual_projection.weight"}
    state = json.loads((saved_checkpoint(out, 6) / "state.json").read_text())
    assert "vision_model.embeddings.cls_token" in state["run"]["frozen"]


def test_large_sets_of_tensors_are_split_into_files(claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_FILE_BYTES", 8_000)
    job = tiny.contrastive_job(checkpoint={"everySteps": 2})
    with pytest.raises(CrashError):
        go(job, claims, out, AfterStep(5, crash))
    assert len(list(saved_checkpoint(out, 4).glob("weights-*-of-*.safetensors"))) > 2
    resumed = go(job, claims, out)
    complete = go(job, claims, out.parent / "complete")
    assert resumed.resumed_step == 4
    assert resumed.report.output.digest == complete.report.output.digest  # type: ignore[union-attr]


def test_checkpoint_is_written_in_the_loop_if_memory_is_short(
    claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.training.checkpoint.manager.available_memory", lambda: 0)
    job = tiny.contrastive_job(checkpoint={"everySteps": 2})
    with pytest.raises(CrashError):
        go(job, claims, out, AfterStep(5, crash))
    assert go(job, claims, out).resumed_step == 4


def test_parts_of_files_count_as_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PROGRESS_BYTES", 1000)
    (tmp_path / "file").write_bytes(bytes(3500))
    beats: list[int] = []
    assert store.file_sha256(tmp_path / "file", lambda: beats.append(1)) == hashlib.sha256(bytes(3500)).hexdigest()
    assert len(beats) == 4


def test_growth_of_the_output_counts_as_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "GROWTH_INTERVAL", 0.02)
    heartbeat = Heartbeat()
    with export._beating_while_growing(tmp_path, heartbeat):
        time.sleep(0.1)
        assert heartbeat.count == 0
        (tmp_path / "model.safetensors").write_bytes(bytes(1000))
        time.sleep(0.1)
        assert heartbeat.count == 1


def test_plan_shows_the_interval_in_seconds() -> None:
    job = with_defaults(tiny.contrastive_job(checkpoint={"everySeconds": 90}), "Contrastive")
    assert dict(describe_job(job))["checkpoint"] == "every 90 seconds, keeping the last 2 and the best"
    assert "everyEpochs" not in job.spec.manifest()["checkpoint"]
