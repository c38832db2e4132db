"""The commands as a user runs them: their output, the files they write, and their exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from finetune_api.loading import check_manifests
from finetune_api.names import ATTEMPT_ENV
from finetune_trainer.cli.main import app

HEAVY = ("torch", "transformers", "matplotlib", "pyarrow", "datasets")


def count_colors(plot: Path) -> int:
    with Image.open(plot) as image:
        return len(image.convert("RGB").getcolors(1 << 24) or ())


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["--version"], ["version"], ["validate", "JOB"], ["clean", "JOB"]]
)
def test_light_commands_import_no_heavy_library(work: Any, arguments: list[str]) -> None:
    arguments = [str(work.job) if argument == "JOB" else argument for argument in arguments]
    code = (
        "import sys; from finetune_trainer.cli.main import main\n"
        f"try: sys.argv = ['finetune', *{arguments!r}]; main()\n"
        f"except SystemExit as end: assert not end.code, end.code\n"
        f"found = sys.modules.keys() & {set(HEAVY)!r}; assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_help_has_an_example(work: Any) -> None:
    for command in ("run", "plan", "plot", "validate", "clean"):
        assert f"finetune {command}" in work.finetune(command, "--help").output


def test_attempt_is_read_from_the_environment(work: Any) -> None:
    assert ATTEMPT_ENV in work.finetune("run", "--help").output


# run


def test_run_trains_and_prints_where_the_results_are(work: Any) -> None:
    result = work.on_job("run")
    assert result.exit_code == 0, result.output
    out = work.folder / "claims" / "out" / "tiny"
    for path in (out, out / "metrics.jsonl", out / "training.png"):
        assert str(path) in result.output
        assert path.exists()
    assert count_colors(out / "training.png") > 50
    assert re.search(r"body +\d+(\.\d)?K? .* SGD .* 0.01 +warmup 2 steps, then cosine ×2 +from epoch 1", result.output)
    assert re.search(r"eval/accuracy +0\.\d{4} +[01]\.\d{4} +[+-]\d\.\d{4}", result.output)
    assert len(re.findall(r"^\d{4}-.*Z  evaluation at step", result.output, re.M)) == 3


def test_repeated_run_keeps_the_existing_output(work: Any) -> None:
    work.on_job("run")
    result = work.on_job("run")
    assert result.exit_code == 0
    assert "nothing was trained" in result.output


def test_run_on_a_terminal_shows_progress(work: Any) -> None:
    result = CliRunner().invoke(app, ["run", str(work.job), *work.claim_paths(), "--no-plain"])
    assert result.exit_code == 0, result.output
    assert "\x1b[" in result.output
    assert "best so far" in result.output
    assert "step 10/10" in result.output


def test_set_changes_the_effective_job(work: Any) -> None:
    result = work.on_job("plan", "--set", "modules.head.optimizer.learningRate=1e-4", "--output", "json")
    head = json.loads(result.stdout)["job"]["spec"]["modules"][1]
    assert head["optimizer"]["learningRate"] == 1e-4


@pytest.mark.parametrize(
    ("environment", "spin_count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_openmp_spinning_is_limited_before_torch_is_imported(
    work: Any, environment: dict[str, str], spin_count: str | None
) -> None:
    code = (
        "import os, sys; from finetune_trainer.cli.main import main\n"
        "sys.modules['torch'] = None  # OpenMP reads its settings when torch is imported\n"
        f"sys.argv = ['finetune', 'run', {str(work.job)!r}]\n"
        "try: main()\n"
        "except SystemExit: print(os.environ.get('GOMP_SPINCOUNT'))\n"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "GOMP_"))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=inherited | environment, check=True, capture_output=True, text=True, timeout=60)
    assert "torch is not installed" in done.stderr
    assert done.stdout.strip() == str(spin_count)


# plan


def test_plan_shows_the_owner_of_each_parameter(work: Any) -> None:
    result = work.on_job("plan")
    assert result.exit_code == 0, result.output
    assert re.search(r"── bert +39 .* body\n", result.output)
    assert re.search(r"── classifier +2 .* head\n", result.output)
    assert "from epoch 1 (step 5)" in result.output
    assert "10 steps (2 epochs of 5 steps)" in result.output
    assert re.search(r"splitSeed: 0 +# default", result.output)
    assert not re.search(r"seed: 1 +# default", result.output)


def test_plan_without_the_claims_reports_what_is_missing(work: Any) -> None:
    result = work.on_job("plan", claims=False)
    assert result.exit_code == 0, result.output
    assert "unknown: which parameters each module owns (model.source: pvc://tiny/model" in result.output
    assert "unknown: the number of steps (data.train.source" in result.output
    assert re.search(r"head +\? +AdamW", result.output)


def test_plan_without_the_data_shows_the_parameters(changed: Any) -> None:
    work = changed("pvc://tiny/train", "pvc://elsewhere/train")
    result = work.on_job("plan", "--output", "json")
    found = json.loads(result.stdout)
    assert [module["elements"] > 0 for module in found["modules"]] == [True, True]
    assert "classifier.weight" in found["modules"][1]["parameters"]
    assert found["plannedSteps"] is None
    assert "elsewhere" in found["unknown"][0]


@pytest.mark.usefixtures("empty_hub")
def test_plan_without_the_model_shows_the_steps(changed: Any) -> None:
    work = changed("pvc://tiny/model", "hf://nobody/nothing")
    found = json.loads(work.on_job("plan", "--output", "json").stdout)
    assert (found["plannedSteps"], found["stepsPerEpoch"]) == (10, 5)
    assert found["modules"][0]["window"] == {"start": 5, "end": 10}
    assert found["modules"][0]["parameters"] is None


@pytest.mark.parametrize("claims", [True, False])
def test_effective_yaml_is_a_valid_job(work: Any, claims: bool) -> None:
    result = work.on_job("plan", "--output", "yaml", claims=claims)
    (document,) = check_manifests(result.stdout, "effective.yaml")
    assert (document.kind, document.name, document.issues) == ("FineTuneJob", "tiny", ())


# plot


@pytest.mark.parametrize("known", [["--samples", "800"], ["--steps-per-epoch", "100"]])
def test_plot_needs_neither_model_nor_data(work: Any, known: list[str]) -> None:
    result = work.on_job("plot", "-o", "rates.png", *known, claims=False)
    assert result.exit_code == 0, result.output
    assert count_colors(work.folder / "rates.png") > 50


def test_plot_counts_the_samples_of_available_data(work: Any) -> None:
    assert work.on_job("plot").exit_code == 0
    assert (work.folder / "tiny.png").exists()


def test_plot_without_data_asks_for_samples(work: Any) -> None:
    result = work.on_job("plot", claims=False)
    assert result.exit_code == 2
    assert "--samples N" in result.stderr


def test_plot_rejects_a_module_that_is_never_trainable(changed: Any) -> None:
    result = changed("untilEpoch: 1", "untilEpoch: 2").on_job("plot", "--samples", "800", claims=False)
    assert result.exit_code == 2
    assert "modules[0].freeze (body): the module is never trainable" in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("optimizer: {type: AdamW, learningRate: 5e-3}\n      clipGradNorm: 1.0", "frozen: true", "at step 0 of 200"),
        ("clipGradNorm: 1.0", "freeze: {fromStep: 50}", "at step 50 of 200"),
    ],
)
def test_plot_rejects_steps_with_every_module_frozen(changed: Any, old: str, new: str, words: str) -> None:
    result = changed(old, new).on_job("plot", "--steps-per-epoch", "100", claims=False)
    assert result.exit_code == 2
    assert f"every module is frozen {words}" in result.stderr


def test_plot_rejects_an_unknown_format(work: Any) -> None:
    result = work.on_job("plot", "--samples", "800", "-o", "rates.doc")
    assert result.exit_code == 2
    assert "rates.doc" in result.stderr


# validate


def test_validate_reports_every_document(work: Any) -> None:
    several = work.write(
        f"{work.job.read_text()}---\nkind: Service\napiVersion: v1\nmetadata: {{name: web}}\n", "all.yaml"
    )
    result = work.finetune("validate", several)
    assert result.exit_code == 0
    assert "FineTuneJob tiny is valid" in result.output
    assert "Service web skipped: kind is Service, not FineTuneJob" in result.output


def test_validate_reports_file_line_column_and_field(changed: Any) -> None:
    work = changed("momentum: 0.9", "momentun: 0.9")
    result = work.finetune("validate", work.job)
    assert result.exit_code == 2
    location = re.escape(f"{work.job}:16:")
    assert re.search(rf"{location}\d+: spec.modules\[0\].optimizer.momentun: .*did you mean 'momentum'", result.output)


def test_validate_prints_json(changed: Any) -> None:
    work = changed("batchSize: 8", "batchSize: 0")
    result = work.finetune("validate", work.job, "--output", "json")
    assert result.exit_code == 2
    (document,) = json.loads(result.stdout)
    assert document["valid"] is False
    assert document["issues"][0]["path"] == "spec.training.batchSize"


def test_validate_reads_stdin(work: Any) -> None:
    result = CliRunner().invoke(app, ["validate", "-"], input=work.job.read_text())
    assert result.exit_code == 0
    assert "FineTuneJob tiny is valid" in result.output


def test_validate_continues_after_an_invalid_file(work: Any) -> None:
    bad = work.write("a: [1\n", "bad.yaml")
    result = work.finetune("validate", bad, work.job, work.folder / "nowhere.yaml")
    assert result.exit_code == 2
    assert f"{bad}:" in result.output
    assert "is valid" in result.output
    assert "nowhere.yaml: cannot be read" in result.output
