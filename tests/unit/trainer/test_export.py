"""What a run leaves behind, and what happens when something is there already."""

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


def test_run_json_tells_how_the_model_came_to_be(claims: Path, out: Path) -> None:
    job = tiny.contrastive_job()
    recorder, report = go(job, claims, out)
    told = run_json(out)
    assert told["contentHash"] == job.spec.content_hash()
    assert told["spec"]["training"]["microBatchSize"] == 6, "the effective spec"
    assert told["versions"].keys() >= {"python", "torch", "transformers"}
    assert (told["seed"], told["steps"], told["attempt"]) == (0, 6, 1)
    assert told["metrics"]["first"] == {"step": 0, **recorder.evaluations[0].metrics}
    assert told["metrics"]["last"] == {"step": 6, **recorder.evaluations[-1].metrics}
    assert told["metrics"]["best"]["step"] in (3, 6)
    assert told["wallSeconds"] > 0
    weights = (out / "result" / "model.safetensors").read_bytes()
    assert report.output is not None
    assert report.output.digest == told["digest"] == f"sha256:{hashlib.sha256(weights).hexdigest()}"
    assert sorted(told["files"]) == sorted(path.name for path in (out / "result").iterdir() if path.name != "run.json")


def test_the_same_job_counts_as_done(claims: Path, out: Path) -> None:
    _, first = go(tiny.contrastive_job(), claims, out)
    before = run_json(out)
    recorder, report = go(tiny.contrastive_job(), claims, out)
    assert report.reason == "OutputAlreadyExists"
    assert report.output == first.output
    assert recorder.steps == []
    assert run_json(out) == before


def test_another_job_is_refused(claims: Path, out: Path) -> None:
    go(tiny.contrastive_job(name="earlier"), claims, out)
    with pytest.raises(
        UserError,
        match=r"pvc://out/result already holds the result of job earlier .*Overwrite; .*another export.destination",
    ):
        go(tiny.contrastive_job(training={"seed": 1}), claims, out)


def test_another_job_of_the_same_name_is_told_so(claims: Path, tmp_path: Path) -> None:
    claim_paths = tiny.ClaimPaths(claims, {"tiny-output": tmp_path})
    jobs = [tiny.job("dual", "colours", output={"destination": None}, training={"seed": seed}) for seed in (0, 1)]
    run(jobs[0], RunOptions(claims=claim_paths), Recorder())
    with pytest.raises(UserError) as raised:
        run(jobs[1], RunOptions(claims=claim_paths), Recorder())
    said = str(raised.value)
    assert "already holds what an earlier job of the same name, tiny, made of another spec" in said
    assert "to replace it say export.ifExists: Overwrite" in said
    assert "to keep it give this job another name" in said


def test_a_model_that_no_run_made_is_refused_too(claims: Path, out: Path) -> None:
    (out / "result").mkdir()
    (out / "result" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="already holds a model that no job wrote"):
        go(tiny.contrastive_job(), claims, out)
    assert (out / "result" / "config.json").read_text() == "{}"


def test_overwrite_replaces_what_a_run_wrote_and_nothing_else(claims: Path, out: Path) -> None:
    overwrite = {"destination": "pvc://out/result", "ifExists": "Overwrite"}
    go(tiny.contrastive_job(), claims, out)
    told = run_json(out)
    told["files"].append("model-00002-of-00002.safetensors")
    (out / "result" / "run.json").write_text(json.dumps(told))
    (out / "result" / "model-00002-of-00002.safetensors").write_text("of a larger model")
    (out / "result" / "notes.txt").write_text("mine")
    recorder, report = go(tiny.contrastive_job(output=overwrite, training={"seed": 1}), claims, out)
    assert report.reason == "Succeeded"
    assert len(recorder.steps) == 6
    assert run_json(out)["seed"] == 1
    assert not (out / "result" / "model-00002-of-00002.safetensors").exists()
    assert (out / "result" / "notes.txt").read_text() == "mine"


def test_the_same_object_never_trains_twice_even_when_it_may_overwrite(claims: Path, out: Path) -> None:
    job = tiny.contrastive_job(uid="u", output={"destination": "pvc://out/result", "ifExists": "Overwrite"})
    go(job, claims, out)
    assert go(job, claims, out)[1].reason == "OutputAlreadyExists"


def test_a_run_killed_while_it_moved_its_result_in_place_finishes_that(
    claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(destination: Path, staging: Path, names: list[str]) -> None:
        (staging / "config.json").replace(destination / "config.json")
        raise KeyboardInterrupt

    whole = export._replace
    monkeypatch.setattr(export, "_replace", half)
    with pytest.raises(KeyboardInterrupt):
        go(tiny.contrastive_job(), claims, out)
    monkeypatch.setattr(export, "_replace", whole)
    recorder, report = go(tiny.contrastive_job(), claims, out)
    assert report.reason == "Succeeded"
    assert recorder.resumed_step == 6
    assert not (out / "result" / ".checkpoints").exists()


def test_folders_of_the_result_are_opened_to_others_and_replaced(claims: Path, out: Path, tmp_path: Path) -> None:
    """A tokenizer with several chat templates is saved with a folder of them."""
    llm = tiny.write_language_model(tmp_path / "models" / "llm")
    claim_paths = tiny.ClaimPaths(claims, {"models": tmp_path / "models", "data": tmp_path, "out": out})
    tiny.write_rows(tmp_path / "chats", tiny.chats(12))

    def trained(seed: int, templates: tuple[str, ...]) -> Path:
        tokenizer = tiny.byte_tokenizer()
        tokenizer.chat_template = dict.fromkeys(templates, tiny.CHATML)
        shutil.rmtree(llm / "additional_chat_templates", ignore_errors=True)
        tokenizer.save_pretrained(llm)
        job = tiny.job("llm", "chats", output={"ifExists": "Overwrite"}, training={"seed": seed, "epochs": 1})
        run(job, RunOptions(claims=claim_paths), Recorder())
        return out / "result" / "additional_chat_templates"

    folder = trained(0, ("default", "tool_use"))
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "tool_use.jinja").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in trained(1, ("default", "other")).iterdir()] == ["other.jinja"]
    assert not trained(2, ("default",)).exists()


def test_others_may_read_it(claims: Path, out: Path) -> None:
    go(tiny.contrastive_job(), claims, out)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (out / "result").iterdir())
