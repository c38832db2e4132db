"""`finetune clean`: removes checkpoints that no run will resume from. Imports no torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune_api.job import FineTuneJob
from finetune_api.names import CHECKPOINTS_FOLDER
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.formatting import format_bytes, pluralize
from finetune_trainer.training.lease import Lease, LeaseLock
from finetune_trainer.training.stored_runs import StoredRun, list_stored_runs, run_id


def find_removable(job: FineTuneJob, claim_paths: ClaimPaths, *, include_own: bool) -> list[StoredRun]:
    """The runs with checkpoints in the destination of a job, without the job's own unless they are included.

    Raises:
        UserError: the destination is outside its claim.
    """
    runs = list_stored_runs(claim_paths.locate_destination(job.destination) / CHECKPOINTS_FOLDER)
    return [run for run in runs if include_own or run.folder.name != run_id(job)]


def describe(runs: Sequence[StoredRun]) -> str:
    """A line for each run, and their total size."""
    lines = [f"  {run.describe()}" for run in runs]
    total = format_bytes(sum(run.size for run in runs))
    return "\n".join([*lines, f"{pluralize(len(runs), 'run')}, {total} in {runs[0].folder.parent}"])


def remove(job: FineTuneJob, runs: Sequence[StoredRun], log: Callable[[str], None]) -> None:
    """Remove the checkpoints of runs. The destination is held meanwhile, so that no run starts in it.

    Raises:
        UserError: a run is using the destination.
    """
    checkpoints = runs[0].folder.parent
    lease = LeaseLock(checkpoints.parent, Lease.create(job.name, "clean", 1))
    lease.acquire(log)
    try:
        for run in runs:
            shutil.rmtree(run.folder)
        _remove_if_empty(checkpoints)
    finally:
        lease.release()


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
