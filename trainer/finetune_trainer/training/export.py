"""The result of a run: a folder that `from_pretrained` loads, with `run.json` that tells how it came to be.

`run.json` is moved in last: a folder that has one is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from finetune_api.job import FineTuneJob
from finetune_api.status import OutputStatus
from finetune_trainer.callbacks import TestRecord
from finetune_trainer.errors import UserError
from finetune_trainer.plan import RunPlan
from finetune_trainer.reporting.metrics_jsonl import METRICS_FILE
from finetune_trainer.training.checkpoint import Checkpoints, sha256
from finetune_trainer.training.evaluation import Evaluation, Judge
from finetune_trainer.training.trainer import Progress, Setup
from finetune_trainer.training.watchdog import Pulse

RUN = "run.json"
STAGING = "output"
PACKAGES = ("finetune-operator", "torch", "transformers", "safetensors", "datasets", "pyarrow", "numpy")


def existing(job: FineTuneJob, destination: Path, checkpoints: Path) -> OutputStatus | None:
    """The result that is there already, if it is this very job's.

    Args:
        job: the job as it was written.
        destination: the output folder.
        checkpoints: the run's own folder; it tells when the run was interrupted while it moved its result in place.

    Raises:
        UserError: what is there is something else, and may not be overwritten.
    """
    run = _read_run(destination)
    if run is None and ((checkpoints / STAGING).exists() or not (destination / "config.json").exists()):
        return None
    same_run = run is not None and job.metadata.uid is not None and run.get("uid") == job.metadata.uid
    same_spec = run is not None and run.get("contentHash") == job.spec.content_hash()
    if run is not None and (same_run or (same_spec and job.spec.output.if_exists == "Fail")):
        return OutputStatus(destination=job.destination, digest=run.get("digest"))
    if job.spec.output.if_exists == "Fail":
        raise UserError(
            f"output.destination: {job.destination} already holds {_described(run, job)} ({destination}): "
            f"to replace it say output.ifExists: Overwrite; to keep it {_elsewhere(job)}"
        )
    return None


def publish(
    setup: Setup, checkpoints: Checkpoints, destination: Path, facts: Mapping[str, Any], pulse: Pulse
) -> OutputStatus:
    """Write the model beside its checkpoints, then move it in place."""
    staging = checkpoints.folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    setup.model.save_pretrained(staging)
    pulse.beat()
    for processor in setup.processors.members:
        processor.save_pretrained(staging)
    shutil.copyfile(checkpoints.folder / METRICS_FILE, staging / METRICS_FILE)
    digest = _digest(sorted(staging.glob("*.safetensors")))
    pulse.beat()
    files = sorted(path.name for path in staging.iterdir())
    (staging / RUN).write_text(json.dumps({**facts, "digest": digest, "files": files}, indent=2) + "\n")
    for path in staging.rglob("*"):
        # safetensors writes for its owner alone, and who reads a claim is often somebody else
        path.chmod(0o755 if path.is_dir() else 0o644)
    checkpoints.check_owner()
    _replace(destination, staging, [*files, RUN])
    return OutputStatus(destination=setup.plan.job.destination, digest=digest)


def facts(
    job: FineTuneJob, plan: RunPlan, progress: Progress, attempt: int, tested: TestRecord | None = None
) -> dict[str, Any]:
    """What `run.json` tells. `job` is the manifest as it was written, the plan's the effective one."""
    judge, history = Judge(plan.job.spec.evaluation), progress.history
    return {
        "name": job.name,
        "uid": job.metadata.uid,
        "contentHash": job.spec.content_hash(),
        "spec": plan.job.spec.manifest(),
        "seed": job.spec.training.seed,
        "versions": versions(),
        "attempt": attempt,
        "steps": progress.step,
        "skippedSteps": progress.skipped_steps,
        "plannedSteps": plan.planned_steps,
        "stepsPerEpoch": plan.steps_per_epoch,
        "samples": {"train": plan.train_samples, "validation": plan.validation_samples},
        "wallSeconds": round(progress.elapsed, 3),
        "metrics": {
            "first": _row(history[0] if history else None),
            "last": _row(history[-1] if history else None),
            "best": _row(judge.best(history)),
            "test": _row(tested),
        },
    }


def versions() -> dict[str, str]:
    """What computed this."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _row(evaluation: Evaluation | TestRecord | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    # JSON has no word for what is not a number.
    finite = {name: value if math.isfinite(value) else None for name, value in evaluation.metrics.items()}
    return {"step": evaluation.step, **finite}


def _read_run(destination: Path) -> dict[str, Any] | None:
    try:
        run: dict[str, Any] = json.loads((destination / RUN).read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        return {}
    return run


def _described(run: Mapping[str, Any] | None, job: FineTuneJob) -> str:
    if run is None:
        return "a model that no job wrote"
    if run.get("name") == job.name:
        return f"what an earlier job of the same name, {job.name}, made of another spec"
    return f"the result of job {run.get('name', 'unknown')}"


def _elsewhere(job: FineTuneJob) -> str:
    if job.spec.output.destination is None:
        return "give this job another name, or an output.destination of its own"
    return "choose another output.destination"


def _replace(destination: Path, staging: Path, names: Sequence[str]) -> None:
    """Take the files of an earlier result away, and move the new ones in, run.json last."""
    before = _read_run(destination) or {}
    (destination / RUN).unlink(missing_ok=True)
    for name in before.get("files", []):
        if name not in names:
            _remove(destination / Path(name).name)
    for name in names:
        if (staging / name).is_dir() or (destination / name).is_dir():
            _remove(destination / name)  # a folder takes no other's place
        (staging / name).replace(destination / name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _digest(weights: Sequence[Path]) -> str:
    """SHA-256 of the weights; of several files, of their hashes in order."""
    hashes = [sha256(path) for path in weights]
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return f"sha256:{whole}"
