"""Every error of the user is one message on stderr and an exit code, never a traceback."""

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

ERRORS = {
    "unknown field": ("cycles: 2", "cycels: 2", "did you mean 'cycles'"),
    "pattern with a typo": ('"bert.*"', '"brt.*"', "did you mean 'bert.*'"),
    "missing claim": ("pvc://tiny/model", "pvc://tny/model", "claim 'tny' not found"),
    "missing folder": ("pvc://tiny/train", "pvc://tiny/trian", "it contains model, train; did you mean 'train'?"),
    "missing column": ("workers: 0", "columns: {text: txt}", "has no column 'txt'; available: "),
    "module without optimizer": ("optimizer: {type: AdamW, learningRate: 5e-3}", "decayExclude: Nothing", "optimizer"),
    "schedule too long": ("steps: 2}", "steps: 200}", "modules[0] (body): schedule[0] lasts 200 steps"),
    "bad YAML": ("spec:", "spec: [", "not valid YAML"),
    "batch too large": ("batchSize: 8", "batchSize: 800", "training.batchSize: 800 is more than the"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_user_error_is_one_message_and_exit_code_2(changed: Any, error: str) -> None:
    old, new, words = ERRORS[error]
    result = changed(old, new).on_job("run")
    assert result.exit_code == ExitCode.INVALID, result.output
    assert result.stderr.startswith("error: ")
    assert words in result.stderr


@pytest.mark.parametrize("error", ["pattern with a typo", "missing column", "missing folder", "schedule too long"])
def test_plan_reports_the_errors_of_run(changed: Any, error: str) -> None:
    old, new, words = ERRORS[error]
    result = changed(old, new).on_job("plan")
    assert result.exit_code == ExitCode.INVALID
    assert words in result.stderr


def test_plan_reports_an_unmatched_pattern_without_data(changed: Any, work: Any) -> None:
    changed('"bert.*"', '"brt.*"')
    work.write(work.job.read_text().replace("pvc://tiny/train", "pvc://elsewhere/train"))
    result = work.on_job("plan")
    assert result.exit_code == ExitCode.INVALID
    assert "did you mean 'bert.*'" in result.stderr


def test_missing_file_is_reported(work: Any) -> None:
    result = work.finetune("run", "nowhere.yaml")
    assert result.exit_code == ExitCode.INVALID
    assert "nowhere.yaml: cannot be read: No such file or directory" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "training.epochs"], "expected path=value"),
        (["--set", "modules.nobody.frozen=true"], "spec.modules has no item 'nobody'; available: 0 (body), 1 (head)"),
        (["--claim", "tiny"], "expected name=dir"),
    ],
)
def test_rejects_invalid_options(work: Any, arguments: list[str], words: str) -> None:
    result = work.on_job("run", *arguments)
    assert result.exit_code == ExitCode.INVALID
    assert words in result.stderr


def test_error_is_written_to_the_termination_log(changed: Any) -> None:
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
        (errors.TrainingDiverged("lower the rate"), ExitCode.DIVERGED, "error: lower the rate"),
        (errors.OutOfGPUMemory("use smaller batches"), ExitCode.OUT_OF_GPU_MEMORY, "error: use smaller batches"),
        (ZeroDivisionError("oops"), ExitCode.FAILED, "crashed: unexpected ZeroDivisionError: oops"),
    ],
)
def test_each_error_has_its_exit_code(
    work: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, code: ExitCode, words: str
) -> None:
    monkeypatch.setattr(trainer, "run", _raises(error))
    result = work.on_job("run")
    assert result.exit_code == code
    assert words in result.stderr


def test_sigterm_writes_a_checkpoint_and_exits_with_75(work: Any) -> None:
    log, errors_log = work.folder / "stdout", work.folder / "stderr"
    with log.open("w") as stdout, errors_log.open("w") as stderr:
        arguments = ["run", work.job, *work.claim_paths(), "--set", "training.epochs=100000"]
        running = forkserver.start([forkserver.script("finetune"), *arguments], stdout=stdout, stderr=stderr)
    wait_until("a step", lambda: "  step " in log.read_text(), 120)
    running.terminate()
    assert running.wait(60) == ExitCode.INTERRUPTED
    assert errors_log.read_text().startswith("stopped: interrupted after step ")
    assert list(work.folder.glob("claims/out/tiny/.checkpoints/*/step-*"))


@pytest.mark.parametrize("options", [["--debug"], ["--termination-log", "log"]])
def test_traceback_is_printed_with_debug_and_in_a_pod(
    work: Any, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr(trainer, "run", _raises(ZeroDivisionError("oops")))
    result = CliRunner().invoke(main.app, ["run", str(work.job), *options])
    assert result.exit_code == ExitCode.FAILED
    assert "Traceback" in result.stderr


def test_run_succeeds_without_its_plot(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.cli import plots

    monkeypatch.setattr(plots, "save_figure", _raises(OSError("disk full")))
    result = work.on_job("run")
    assert result.exit_code == ExitCode.DONE
    assert "plot     not saved: OSError: disk full" in result.output
    assert Path(work.folder, "claims", "out", "tiny", "model.safetensors").exists()


def _raises(error: Exception) -> Any:
    def fail(*_: object) -> None:
        raise error

    return fail
