"""Every mistake a person can make is one clear message on stderr and an exit code, never a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from finetune_api.exit_codes import ExitCode
from finetune_trainer import errors
from finetune_trainer.cli import main
from finetune_trainer.training import run as trainer
from harness import forkserver
from harness.processes import wait_until

MISTAKES = {
    "unknown field": ("cycles: 2", "cycels: 2", "did you mean 'cycles'"),
    "pattern with a typo": ('"bert.*"', '"brt.*"', "did you mean 'bert.*'"),
    "missing claim": ("pvc://tiny/model", "pvc://tny/model", "no claim 'tny'"),
    "missing folder": ("pvc://tiny/train", "pvc://tiny/trian", "it holds model, train"),
    "missing column": ("workers: 0", "columns: {text: txt}", "has no column 'txt'; did you mean 'text'"),
    "module without optimizer": ("optimizer: {type: AdamW, learningRate: 5e-3}", "decayExclude: Nothing", "optimizer"),
    "schedule too long": ("steps: 2}", "steps: 200}", "schedule[0] lasts 200 steps"),
    "bad YAML": ("spec:", "spec: [", "not valid YAML"),
    "batch too large": ("batchSize: 8", "batchSize: 800", "a batch of at most"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(changed: Any, mistake: str) -> None:
    old, new, words = MISTAKES[mistake]
    result = changed(old, new).on_job("run")
    assert result.exit_code == ExitCode.INVALID, result.output
    assert result.stderr.startswith("error: ")
    assert words in result.stderr


@pytest.mark.parametrize("mistake", ["pattern with a typo", "missing column", "missing folder", "schedule too long"])
def test_plan_finds_what_run_would(changed: Any, mistake: str) -> None:
    old, new, words = MISTAKES[mistake]
    result = changed(old, new).on_job("plan")
    assert result.exit_code == ExitCode.INVALID
    assert words in result.stderr


def test_plan_finds_a_pattern_with_a_typo_without_data(changed: Any, work: Any) -> None:
    changed('"bert.*"', '"brt.*"')
    work.write(work.job.read_text().replace("pvc://tiny/train", "pvc://elsewhere/train"))
    result = work.on_job("plan")
    assert result.exit_code == ExitCode.INVALID
    assert "did you mean 'bert.*'" in result.stderr


def test_a_file_that_is_not_there(work: Any) -> None:
    result = work.finetune("run", "nowhere.yaml")
    assert result.exit_code == ExitCode.INVALID
    assert "nowhere.yaml: cannot be read: No such file or directory" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "training.epochs"], "expected path=value"),
        (["--set", "modules.nobody.frozen=true"], "there is body, head"),
        (["--claim", "tiny"], "expected name=dir"),
    ],
)
def test_options_that_do_not_parse(work: Any, arguments: list[str], words: str) -> None:
    result = work.on_job("run", *arguments)
    assert result.exit_code == ExitCode.INVALID
    assert words in result.stderr


def test_in_a_pod_the_mistake_is_in_the_termination_log_too(changed: Any) -> None:
    work = changed("batchSize: 8", "batchSize: 0")
    log = work.folder / "termination.log"
    assert work.on_job("run", "--termination-log", log).exit_code == ExitCode.INVALID
    report = json.loads(log.read_text())
    assert report["reason"] == "InvalidJob"
    assert "spec.training.batchSize" in report["message"]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (errors.RunError("it did not go well"), ExitCode.FAILED, "error: it did not go well"),
        (errors.Interrupted("interrupted after step 3"), ExitCode.INTERRUPTED, "stopped: interrupted after step 3"),
        (errors.OutOfGPUMemory("use smaller batches"), ExitCode.OUT_OF_GPU_MEMORY, "error: use smaller batches"),
        (ZeroDivisionError("oops"), ExitCode.FAILED, "crashed: this is a bug or a crash: ZeroDivisionError: oops"),
    ],
)
def test_ends_have_their_exit_codes(
    work: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, code: ExitCode, words: str
) -> None:
    monkeypatch.setattr(trainer, "run", _raises(error))
    result = work.on_job("run")
    assert result.exit_code == code
    assert words in result.stderr


def test_sigterm_ends_a_run_with_a_checkpoint_and_exit_code_75(work: Any) -> None:
    log, complaint = work.folder / "stdout", work.folder / "stderr"
    with log.open("w") as stdout, complaint.open("w") as stderr:
        arguments = ["run", work.job, *work.claim_paths(), "--set", "training.epochs=100000"]
        running = forkserver.start([forkserver.script("finetune"), *arguments], stdout=stdout, stderr=stderr)
    wait_until("a step", lambda: "  step " in log.read_text(), 120)
    running.terminate()
    assert running.wait(60) == ExitCode.INTERRUPTED
    assert complaint.read_text().startswith("stopped: interrupted after step ")
    assert list(work.folder.glob("claims/out/tiny/.checkpoints/*/step-*"))


@pytest.mark.parametrize("options", [["--debug"], ["--termination-log", "log"]])
def test_tracebacks_are_for_those_who_debug_and_for_the_log_of_a_pod(
    work: Any, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr(trainer, "run", _raises(ZeroDivisionError("oops")))
    result = CliRunner().invoke(main.app, ["run", str(work.job), *options])
    assert result.exit_code == ExitCode.FAILED
    assert "Traceback" in result.stderr


def test_a_run_that_went_well_does_not_fail_for_its_picture(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.cli import plots

    monkeypatch.setattr(plots, "save", _raises(OSError("disk full")))
    result = work.on_job("run")
    assert result.exit_code == ExitCode.DONE
    assert "could not be drawn: OSError: disk full" in result.output
    assert Path(work.folder, "claims", "out", "tiny", "model.safetensors").exists()


def _raises(error: Exception) -> Any:
    def fail(*_: object) -> None:
        raise error

    return fail
