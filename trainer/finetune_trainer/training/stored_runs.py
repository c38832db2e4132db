"""The runs that have checkpoints in a destination, for messages and for `finetune clean`; imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.job import FineTuneJob
from finetune_trainer.errors import UserError
from finetune_trainer.formatting import format_bytes


def run_id(job: FineTuneJob) -> str:
    """The name of a run's checkpoint folder: the UID of the object or, outside a cluster, the name of the job.

    It does not depend on the spec: a run whose spec has changed finds its checkpoints, and is resumed or refused.
    """
    return job.metadata.uid or f"local-{job.name}"


@dataclass(frozen=True)
class StoredRun:
    """A folder of checkpoints.

    Args:
        folder: the folder; its name is the ID of the run.
        size: bytes of all its files.
        modified: when it was last written to.
        step: step of its latest checkpoint; None without one.
        state: content of the `state.json` of that checkpoint.
    """

    folder: Path
    size: int
    modified: datetime
    step: int | None
    state: Mapping[str, Any]

    @property
    def has_earlier_format(self) -> bool:
        """Whether its latest checkpoint was written before runs had a record."""
        return self.step is not None and bool(self.state) and "run" not in self.state

    @property
    def job(self) -> str | None:
        """The name of its job, if a checkpoint has it."""
        run = self.state.get("run")
        return run.get("job") if isinstance(run, dict) else None

    def describe(self) -> str:
        step = "no checkpoint" if self.step is None else f"step {self.step}"
        job = f"job {self.job!r}, " if self.job else ""
        return f"{self.folder.name} ({job}{step}, {format_bytes(self.size)}, {self.modified:%Y-%m-%d})"


def list_stored_runs(folder: Path) -> list[StoredRun]:
    """The runs in `<destination>/.checkpoints`, the latest first. Symbolic links are left out."""
    if not folder.is_dir():
        return []
    runs = [_read(path) for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    return sorted(runs, key=lambda run: run.modified, reverse=True)


def check_no_earlier_format(folder: Path) -> None:
    """Check that a destination has no checkpoints of an earlier version, which named runs by a hash of their spec.

    Raises:
        UserError: it has; whether they belong to the job cannot be seen.
    """
    runs = [run for run in list_stored_runs(folder) if run.folder.name.startswith("local-") and run.has_earlier_format]
    if runs:
        raise UserError(
            f"checkpoint {runs[0].folder}/step-{runs[0].step:08d} was written by another version of the trainer: "
            "resume with that version, delete it with `finetune clean`, or start over with --fresh"
        )


def _read(folder: Path) -> StoredRun:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    stats = [path.stat() for path in files]
    modified = max((it.st_mtime for it in stats), default=folder.stat().st_mtime)
    steps = sorted(path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit())
    state: dict[str, Any] = {}
    with suppress(OSError, ValueError, IndexError):
        state = json.loads((steps[-1] / "state.json").read_text())
    return StoredRun(
        folder,
        sum(it.st_size for it in stats),
        datetime.fromtimestamp(modified, UTC),
        int(steps[-1].name.removeprefix("step-")) if steps else None,
        state if isinstance(state, dict) else {},
    )
