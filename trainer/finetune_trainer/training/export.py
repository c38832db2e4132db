"""Exports the model: a folder that `from_pretrained` loads, with a `run.json` that describes the run.

Files are renamed into the destination, which never follows a symbolic link there. `run.json` is moved last, so a
folder that has one is complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from finetune_api.job import FineTuneJob
from finetune_api.status import OutputStatus
from finetune_trainer.callbacks import TestRecord
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.formatting import format_bytes
from finetune_trainer.plan import RunPlan
from finetune_trainer.reporting.metrics_jsonl import METRICS_FILE
from finetune_trainer.training.checkpoint import CheckpointManager, Fingerprints, RunRecord, file_sha256
from finetune_trainer.training.checkpoint.store import describe_free_space, fsync
from finetune_trainer.training.evaluation import HistoryEntry, MetricTracker
from finetune_trainer.training.selection import SelectedWeights
from finetune_trainer.training.state import TrainingContext, TrainState
from finetune_trainer.training.versions import package_versions
from finetune_trainer.training.watchdog import Heartbeat

RUN_FILE = "run.json"
STAGING_FOLDER = "output"
GROWTH_INTERVAL = 1.0
"""Seconds between two looks at the size of the output that is being written."""


@dataclass(frozen=True)
class ExistingOutput:
    """The output of an earlier run of the same object or the same spec.

    Args:
        status: the output as the status reports it.
        is_same_object: whether the same FineTuneJob object wrote it.
        fingerprints: content that it was trained on.
    """

    status: OutputStatus
    is_same_object: bool
    fingerprints: Fingerprints

    def check_same_content(self, job: FineTuneJob, fingerprints: Fingerprints) -> None:
        """Check that the output was trained on the data and the model that the job would read now.

        Raises:
            UserError: it was not.
        """
        if differences := self.fingerprints.describe_differences(fingerprints):
            raise UserError(
                f"output.destination: {job.destination} already has a model with the same spec, but "
                f"{'; '.join(differences.values())} since it was trained: to replace it, set output.ifExists: "
                f"Overwrite; to keep it, {_suggest_destination(job)}"
            )


def find_existing_output(job: FineTuneJob, destination: Path, run_folder: Path) -> ExistingOutput | None:
    """The output of an earlier run of this job, if the destination has it.

    Args:
        job: the job as written by the user.
        destination: the output folder.
        run_folder: the run's checkpoint folder; its staging folder shows that an export was interrupted.

    Returns:
        The output; None if the job has to be run.

    Raises:
        UserError: the destination has another model, and `output.ifExists` does not allow overwriting it.
    """
    run = _read_run_file(destination)
    if run is None and ((run_folder / STAGING_FOLDER).exists() or not (destination / "config.json").exists()):
        return None
    is_same_object = run is not None and job.metadata.uid is not None and run.get("uid") == job.metadata.uid
    # Earlier versions did not record on which data an output was trained, so it cannot be accepted as that of this job.
    has_fingerprints = run is not None and isinstance(run.get("fingerprints"), Mapping)
    is_same_spec = run is not None and has_fingerprints and run.get("contentHash") == job.spec.content_hash()
    if run is not None and (is_same_object or (is_same_spec and job.spec.output.if_exists == "Fail")):
        status = OutputStatus(destination=job.destination, digest=run.get("digest"))
        return ExistingOutput(status, is_same_object, Fingerprints.parse(run.get("fingerprints")))
    if job.spec.output.if_exists == "Fail":
        raise UserError(
            f"output.destination: {job.destination} already has {_describe_output(run, job)} ({destination}): "
            f"to replace it, set output.ifExists: Overwrite; to keep it, {_suggest_destination(job)}"
        )
    return None


def export_model(
    context: TrainingContext,
    checkpoints: CheckpointManager,
    destination: Path,
    run_metadata: Mapping[str, Any],
    heartbeat: Heartbeat,
) -> OutputStatus:
    """Save the model into a staging folder, then move its files into the destination.

    Args:
        context: the model and its processors.
        checkpoints: the run's checkpoint folder, which has the staging folder and `metrics.jsonl`.
        destination: the output folder.
        run_metadata: content of `run.json`.
        heartbeat: receives the progress.

    Raises:
        RunError: it cannot be written.
        UserError: another run or a newer attempt has taken over.
    """
    staging = checkpoints.folder / STAGING_FOLDER
    _remove(staging)
    try:
        digest, files = _write_output(context, checkpoints.folder / METRICS_FILE, staging, run_metadata, heartbeat)
    except (OSError, SafetensorError) as error:
        _remove(staging)
        needed = sum(tensor.nbytes for tensor in (*context.model.base.parameters(), *context.model.base.buffers()))
        raise RunError(
            f"output.destination: {context.plan.job.destination}: cannot save the model in {staging} (it needs about "
            f"{format_bytes(needed)}; {describe_free_space(checkpoints.folder)}): {error}; training is complete and in "
            "the last checkpoint, so the next attempt only saves the model"
        ) from error
    checkpoints.check_owner()
    _replace_output(destination, staging, [*files, RUN_FILE])
    return OutputStatus(destination=context.plan.job.destination, digest=digest)


def _write_output(
    context: TrainingContext, metrics_file: Path, staging: Path, run_metadata: Mapping[str, Any], heartbeat: Heartbeat
) -> tuple[str, list[str]]:
    """Write all files of the output.

    Returns:
        The digest of the weights, and the names of all files but `run.json`.
    """
    staging.mkdir()
    with _beating_while_growing(staging, heartbeat):
        context.model.base.save_pretrained(staging)
    _set_config_dtype(staging / "config.json", context.model.output_dtypes.config)
    heartbeat.beat()
    context.processors.save_pretrained(staging)
    shutil.copyfile(metrics_file, staging / METRICS_FILE)
    digest = _digest(sorted(staging.glob("*.safetensors")), heartbeat)
    files = sorted(path.name for path in staging.iterdir())
    (staging / RUN_FILE).write_text(json.dumps({**run_metadata, "digest": digest, "files": files}, indent=2) + "\n")
    for path in staging.rglob("*"):
        # safetensors creates files with mode 0600, but other users of the claim read them too.
        path.chmod(0o755 if path.is_dir() else 0o644)
        if path.is_file():
            fsync(path)
    return digest, files


def _set_config_dtype(config_file: Path, dtype: torch.dtype) -> None:
    """Name the dtype of most weights in the config; transformers names that of the first one."""
    config, name = json.loads(config_file.read_text()), str(dtype).removeprefix("torch.")
    config["dtype"] = name
    for part in config.values():
        if isinstance(part, dict) and "dtype" in part:
            part["dtype"] = name
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@contextmanager
def _beating_while_growing(folder: Path, heartbeat: Heartbeat) -> Iterator[None]:
    """Count the growth of a folder as progress: `save_pretrained` reports none, and may take long on a slow disk."""
    done = threading.Event()

    def watch() -> None:
        size = 0
        while not done.wait(GROWTH_INTERVAL):
            with suppress(OSError):
                size, before = sum(path.stat().st_size for path in folder.iterdir()), size
                if size > before:
                    heartbeat.beat()

    thread = threading.Thread(target=watch, name="output-growth", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def build_run_metadata(
    job: FineTuneJob,
    record: RunRecord,
    plan: RunPlan,
    state: TrainState,
    weights: SelectedWeights,
    *,
    test: TestRecord | None = None,
    final: HistoryEntry | None = None,
) -> dict[str, Any]:
    """The content of `run.json`, without digest and files.

    Args:
        job: the job as written by the user; the plan has the effective one.
        record: the record of the run.
        plan: the plan of the run.
        state: the state at its end.
        weights: the weights that are saved.
        test: metrics on the test set, if there is one.
        final: metrics of the saved weights on the validation set, if there is one.
    """
    history = state.history
    return {
        "name": job.name,
        "uid": job.metadata.uid,
        "contentHash": job.spec.content_hash(),
        "spec": plan.job.spec.manifest(),
        "seed": job.spec.training.seed,
        "versions": package_versions(),
        "fingerprints": asdict(record.fingerprints),
        "segments": [asdict(segment) for segment in record.segments],
        "attempt": record.attempt,
        "steps": state.step,
        "savedStep": weights.step,
        "notes": list(weights.notes),
        "skippedSteps": state.skipped.total,
        "plannedSteps": plan.planned_steps,
        "stepsPerEpoch": plan.steps_per_epoch,
        "samples": {"train": plan.train_samples, "validation": plan.validation_samples},
        "wallSeconds": round(state.elapsed, 3),
        "metrics": {
            "first": _to_json(history[0] if history else None),
            "last": _to_json(history[-1] if history else None),
            "best": _to_json(MetricTracker(plan.job.spec.evaluation).best(history)),
            "final": _to_json(final),
            "test": _to_json(test),
        },
    }


def _to_json(entry: HistoryEntry | TestRecord | None) -> dict[str, Any] | None:
    """Step and metrics; NaN and infinity become null: JSON has no other value for them."""
    if entry is None:
        return None
    finite = {name: value if math.isfinite(value) else None for name, value in entry.metrics.items()}
    return {"step": entry.step, **finite}


def _read_run_file(destination: Path) -> dict[str, Any] | None:
    """The content of `run.json`: None if there is no such file, empty if no run wrote it."""
    try:
        run = json.loads((destination / RUN_FILE).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return run if isinstance(run, dict) else {}


def _describe_output(run: Mapping[str, Any] | None, job: FineTuneJob) -> str:
    if run is None:
        return "a model that was not written by a job"
    if run.get("name") == job.name and not isinstance(run.get("fingerprints"), Mapping):
        return f"the output of a job with the same name, {job.name!r}, that an earlier version of the trainer wrote"
    if run.get("name") == job.name:
        return f"the output of an earlier job with the same name, {job.name!r}, and a different spec"
    return f"the output of job {run.get('name', 'unknown')!r}"


def _suggest_destination(job: FineTuneJob) -> str:
    if job.spec.output.destination is None:
        return "rename this job, or set output.destination"
    return "choose another output.destination"


def _replace_output(destination: Path, staging: Path, names: Sequence[str]) -> None:
    """Delete the files of an earlier output that are not replaced, and move the new ones into place, run.json last."""
    previous = _read_run_file(destination) or {}
    (destination / RUN_FILE).unlink(missing_ok=True)
    files = previous.get("files")
    for name in map(str, files if isinstance(files, list) else []):
        if name not in names and (name := Path(name).name).strip("."):  # it may come from anywhere
            _remove(destination / name)
    for name in names:
        if (staging / name).is_dir() or (destination / name).is_dir():
            _remove(destination / name)  # rename cannot replace a folder
        (staging / name).replace(destination / name)
    fsync(destination)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _digest(files: Sequence[Path], heartbeat: Heartbeat) -> str:
    """SHA-256 of a file; of several files, of their concatenated hashes."""
    hashes = [file_sha256(path, heartbeat.beat) for path in files]
    digest = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return f"sha256:{digest}"
