"""The exported output, and what happens when the destination has one already."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_api import FineTuneJob
from finetune_api.status import Report
from finetune_trainer.errors import UserError
from finetune_trainer.training import export
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny
from unit.trainer.tiny import Recorder


def go(job: FineTuneJob, claims: Path, out: Path) -> tuple[Recorder, Report]:
    recorder = Recorder()
    return recorder, run(job, RunOptions(claims=tiny.claim_paths(claims, out)), recorder)


def run_json(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "result" / "run.json").read_text())
    return loaded


def test_run_json_describes_the_run(claims: Path, out: Path) -> None:
    job = tiny.contrastive_job()
    recorder, report = go(job, claims, out)
    metadata = run_json(out)
    assert metadata["contentHash"] == job.spec.content_hash()
    assert metadata["spec"]["training"]["microBatchSize"] == 6, "the effective spec"
    assert metadata["versions"].keys() >= {"python", "torch", "transformers"}
    assert (metadata["seed"], metadata["steps"], metadata["attempt"]) == (0, 6, 1)
    assert metadata["metrics"]["first"] == {"step": 0, **recorder.evaluations[0].metrics}
    assert metadata["metrics"]["last"] == {"step": 6, **recorder.evaluations[-1].metrics}
    assert metadata["metrics"]["best"]["step"] in (3, 6)
    assert metadata["wallSeconds"] > 0
    weights = (out / "result" / "model.safetensors").read_bytes()
    assert report.output is not None
    assert report.output.digest == metadata["digest"] == f"sha256:{hashlib.sha256(weights).hexdigest()}"
    assert sorted(metadata["files"]) == sorted(
        path.name for path in (out / "result").iterdir() if path.name != "run.json"
    )


def test_same_job_is_complete(claims: Path, out: Path) -> None:
    _, first = go(tiny.contrastive_job(), claims, out)
    before = run_json(out)
    recorder, report = go(tiny.contrastive_job(), claims, out)
    assert report.reason == "OutputAlreadyExists"
    assert report.output == first.output
    assert recorder.steps == []
    assert run_json(out) == before


def test_output_of_another_job_is_not_overwritten(claims: Path, out: Path) -> None:
    go(tiny.contrastive_job(name="earlier"), claims, out)
    with pytest.raises(
        UserError,
        match=r"pvc://out/result already has the output of job 'earlier' .*Overwrite; .*another output.destination",
    ):
        go(tiny.contrastive_job(training={"seed": 1}), claims, out)


def test_output_of_a_job_with_the_same_name_is_not_overwritten(claims: Path, tmp_path: Path) -> None:
    claim_paths = tiny.ClaimPaths(claims, {"tiny-output": tmp_path})
    jobs = [tiny.job("dual", "colours", output={"destination": None}, training={"seed": seed}) for seed in (0, 1)]
    run(jobs[0], RunOptions(claims=claim_paths), Recorder())
    with pytest.raises(UserError) as raised:
        run(jobs[1], RunOptions(claims=claim_paths), Recorder())
    message = str(raised.value)
    assert "already has the output of an earlier job with the same name, 'tiny', and a different spec" in message
    assert "to replace it, set output.ifExists: Overwrite" in message
    assert "to keep it, rename this job" in message


def test_model_of_unknown_origin_is_not_overwritten(claims: Path, out: Path) -> None:
    (out / "result").mkdir()
    (out / "result" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="already has a model that was not written by a job"):
        go(tiny.contrastive_job(), claims, out)
    assert (out / "result" / "config.json").read_text() == "{}"


def test_overwrite_replaces_only_files_of_a_run(claims: Path, out: Path) -> None:
    overwrite = {"destination": "pvc://out/result", "ifExists": "Overwrite"}
    go(tiny.contrastive_job(), claims, out)
    metadata = run_json(out)
    metadata["files"].append("model-00002-of-00002.safetensors")
    (out / "result" / "run.json").write_text(json.dumps(metadata))
    (out / "result" / "model-00002-of-00002.safetensors").write_text("shard of a larger model")
    (out / "result" / "notes.txt").write_text("mine")
    recorder, report = go(tiny.contrastive_job(output=overwrite, training={"seed": 1}), claims, out)
    assert report.reason == "Succeeded"
    assert len(recorder.steps) == 6
    assert run_json(out)["seed"] == 1
    assert not (out / "result" / "model-00002-of-00002.safetensors").exists()
    assert (out / "result" / "notes.txt").read_text() == "mine"


def test_same_object_never_trains_twice(claims: Path, out: Path) -> None:
    job = tiny.contrastive_job(uid="u", output={"destination": "pvc://out/result", "ifExists": "Overwrite"})
    go(job, claims, out)
    assert go(job, claims, out)[1].reason == "OutputAlreadyExists"


def test_interrupted_export_is_completed(claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace_one_file(destination: Path, staging: Path, names: list[str]) -> None:
        (staging / "config.json").replace(destination / "config.json")
        raise KeyboardInterrupt

    original = export._replace_output
    monkeypatch.setattr(export, "_replace_output", replace_one_file)
    with pytest.raises(KeyboardInterrupt):
        go(tiny.contrastive_job(), claims, out)
    monkeypatch.setattr(export, "_replace_output", original)
    recorder, report = go(tiny.contrastive_job(), claims, out)
    assert report.reason == "Succeeded"
    assert recorder.resumed_step == 6
    assert not (out / "result" / ".checkpoints").exists()


def test_folders_of_the_output_are_readable_and_replaced(claims: Path, out: Path, tmp_path: Path) -> None:
    """A tokenizer with several chat templates is saved with a folder."""
    llm = tiny.write_language_model(tmp_path / "models" / "llm")
    claim_paths = tiny.ClaimPaths(claims, {"models": tmp_path / "models", "data": tmp_path, "out": out})
    tiny.write_rows(tmp_path / "chats", tiny.chats(12))

    def train(seed: int, templates: tuple[str, ...]) -> Path:
        tokenizer = tiny.byte_tokenizer()
        tokenizer.chat_template = dict.fromkeys(templates, tiny.CHATML)
        shutil.rmtree(llm / "additional_chat_templates", ignore_errors=True)
        tokenizer.save_pretrained(llm)
        job = tiny.job("llm", "chats", output={"ifExists": "Overwrite"}, training={"seed": seed, "epochs": 1})
        run(job, RunOptions(claims=claim_paths), Recorder())
        return out / "result" / "additional_chat_templates"

    folder = train(0, ("default", "tool_use"))
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "tool_use.jinja").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in train(1, ("default", "other")).iterdir()] == ["other.jinja"]
    assert not train(2, ("default",)).exists()


def test_output_is_readable_by_other_users(claims: Path, out: Path) -> None:
    go(tiny.contrastive_job(), claims, out)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (out / "result").iterdir())
