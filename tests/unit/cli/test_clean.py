"""`finetune clean` and the options that decide about existing checkpoints."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from finetune_trainer.cli.main import app
from finetune_trainer.training.lease import LEASE_FILE, Lease
from finetune_trainer.training.run import RunOptions


def write_run(work: Any, name: str, step: int | None = 40, job: str | None = None) -> Path:
    """A folder of checkpoints as a run leaves it."""
    folder: Path = work.folder / "claims" / "out" / "tiny" / ".checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("x" * 1024)
    if step is not None:
        (folder / f"step-{step:08d}").mkdir()
        (folder / f"step-{step:08d}" / "weights.safetensors").write_bytes(b"x" * 2**20)
        (folder / f"step-{step:08d}" / "state.json").write_text(
            json.dumps({"run": {"job": job}} if job else {"step": 40})
        )
    return folder


def clean(work: Any, *arguments: str, answer: str = "") -> Any:
    return CliRunner().invoke(app, ["clean", str(work.job), *work.claim_paths(), *arguments], input=answer)


def test_lists_runs_with_sizes_and_removes_them_when_confirmed(work: Any) -> None:
    other, own = write_run(work, "local-earlier", job="earlier"), write_run(work, "local-tiny", job="tiny")
    (other.parent.parent / "model.safetensors").write_text("output")
    result = clean(work, answer="y\n")
    assert result.exit_code == 0, result.output
    assert "local-earlier (job 'earlier', step 40, 1 MiB, " in result.output
    assert "local-tiny" not in result.output
    assert "1 run, 1 MiB in" in result.output
    assert not other.exists()
    assert own.exists(), "the job resumes from it"
    assert (other.parent.parent / "model.safetensors").exists()
    assert not (other.parent.parent / LEASE_FILE).exists()


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_nothing_is_removed_without_confirmation(answer: str, work: Any) -> None:
    other = write_run(work, "local-earlier")
    result = clean(work, answer=answer)
    assert result.exit_code == 2
    assert "nothing was removed" in result.output
    assert "--yes" in result.output
    assert other.exists()


def test_all_includes_the_own_checkpoints(work: Any) -> None:
    folders = [write_run(work, "local-tiny"), write_run(work, "9a1c-uid", step=None)]
    result = clean(work, "--all", "--yes")
    assert "9a1c-uid (no checkpoint, 1 KiB, " in result.output
    assert not any(folder.exists() for folder in folders)
    assert not folders[0].parent.exists()


def test_nothing_to_remove(work: Any) -> None:
    result = clean(work)
    assert (result.exit_code, "no checkpoints to remove" in result.output) == (0, True)
    assert not (work.folder / "claims" / "out").exists(), "it creates no folder"


def test_refuses_while_a_run_uses_the_destination(work: Any) -> None:
    other = write_run(work, "local-earlier")
    lease = other.parent.parent / LEASE_FILE
    lease.write_text(replace(Lease.create("busy", "local-busy", 1)).to_json())
    result = clean(work, "--yes")
    assert result.exit_code == 2
    assert "is in use by job 'busy'" in result.output
    assert other.exists()


def test_symbolic_links_are_neither_listed_nor_followed(work: Any) -> None:
    other = write_run(work, "local-earlier")
    (work.folder / "precious").mkdir()
    (work.folder / "precious" / "file").write_text("mine")
    (other.parent / "local-link").symlink_to(work.folder / "precious")
    (other / "link").symlink_to(work.folder / "precious")
    result = clean(work, "--yes")
    assert "local-link" not in result.output
    assert (work.folder / "precious" / "file").read_text() == "mine"


def test_help_teaches_what_is_kept(work: Any) -> None:
    text = " ".join(work.finetune("clean", "--help").output.replace("│", " ").split())
    assert "It keeps those that finetune run JOB.yaml would resume from" in text
    assert "UID" in text


def test_resume_and_fresh_exclude_each_other(work: Any) -> None:
    result = work.on_job("run", "--resume", "--fresh")
    assert result.exit_code == 2
    assert "either --resume or --fresh" in result.output


@pytest.mark.parametrize("option", ["resume", "fresh"])
def test_options_reach_the_run(option: str, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[RunOptions] = []

    def run(job: Any, options: RunOptions, display: Any) -> None:
        received.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune_trainer.training.run.run", run)
    work.on_job("run", f"--{option}")
    assert (received[0].resume, received[0].fresh) == (option == "resume", option == "fresh")
