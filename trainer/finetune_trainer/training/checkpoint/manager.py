"""The checkpoints of one run: who may write them, which are kept, and writing them while training goes on.

A checkpoint is copied to host memory within the training loop, and written by a background thread. If the copy might
not fit into memory, the loop waits until the checkpoint is written.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune_api.job import FineTuneJob
from finetune_api.names import CHECKPOINTS_FOLDER
from finetune_trainer.callbacks import CheckpointRecord
from finetune_trainer.errors import RunError
from finetune_trainer.training.checkpoint.content import Checkpoint, RunRecord
from finetune_trainer.training.checkpoint.memory import available_memory
from finetune_trainer.training.checkpoint.ownership import OWNER_FILE, write_atomically
from finetune_trainer.training.checkpoint.store import CheckpointStore
from finetune_trainer.training.checkpoint.weights import FrozenWeights


def run_id(job: FineTuneJob) -> str:
    """The name of a run's checkpoint folder: the UID of the object or, outside a cluster, a hash of the spec."""
    return job.metadata.uid or f"local-{job.spec.content_hash()[:12]}"


class CheckpointManager:
    """The checkpoints of one run. At any time, one process owns the folder and may write to it.

    Args:
        folder: folder of the checkpoints.
        attempt: number of this attempt; it can write until a newer attempt acquires the folder.
        keep: number of checkpoints to keep, besides the best one.

    Attributes:
        latest: the last checkpoint that was completed, whether it was polled or not.
    """

    def __init__(self, folder: Path, attempt: int, keep: int) -> None:
        self.folder, self.attempt, self.keep = folder, attempt, keep
        self.store = CheckpointStore(folder)
        self.run: RunRecord | None = None
        self.latest: CheckpointRecord | None = None
        self.frozen = FrozenWeights({})
        self._owner = {"attempt": attempt, "process": uuid.uuid4().hex}
        self._writer = ThreadPoolExecutor(1, "checkpoint-writer")
        self._pending: Future[CheckpointRecord] | None = None

    @classmethod
    def for_job(cls, job: FineTuneJob, destination: Path, attempt: int) -> CheckpointManager:
        return cls(destination / CHECKPOINTS_FOLDER / run_id(job), attempt, job.spec.checkpoint.keep)

    def acquire(self) -> None:
        """Become the owner of the folder, in place of earlier attempts.

        Raises:
            RunError: a newer attempt owns it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        owner = self._read_owner()
        if owner.get("attempt", 0) > self.attempt:
            raise RunError(f"attempt {self.attempt} cannot continue: attempt {owner['attempt']} has started")
        write_atomically(self.folder / OWNER_FILE, json.dumps(self._owner))
        self.store.delete_leftovers()

    def check_owner(self) -> None:
        """Check that this process still owns the folder.

        Raises:
            RunError: another process does.
        """
        owner = self._read_owner()
        if owner != self._owner:
            raise RunError(
                f"attempt {self.attempt} cannot write to {self.folder}: attempt {owner.get('attempt', '?')} has "
                "taken over"
            )

    def start_run(self, run: RunRecord, frozen: FrozenWeights, on_progress: Callable[[], None] = lambda: None) -> None:
        """Set what every checkpoint of this attempt records.

        Args:
            run: the record, without the hashes of the frozen parameters.
            frozen: the parameters that are not stored.
            on_progress: called after each file that was written or read, possibly by another thread.
        """
        self.run, self.frozen, self.store.on_progress = run, frozen, on_progress

    # Writing

    def save(self, checkpoint: Checkpoint, best_step: int | None) -> None:
        """Write a checkpoint, in the background if a copy of it fits into memory, then delete superseded ones.

        Args:
            checkpoint: the checkpoint; its tensors may change after the call.
            best_step: a step whose checkpoint is kept although it is not among the latest ones.

        Raises:
            RunError: this checkpoint or the one before cannot be written, or another process owns the folder.
        """
        self.wait()
        self.check_owner()
        weights = {name: it for name, it in checkpoint.weights.items() if name not in self.frozen.tensors}
        checkpoint = replace(checkpoint, weights=weights)
        size = sum(tensor.nbytes for tensor in _tensors(checkpoint))
        if 2 * size < available_memory():
            self._pending = self._writer.submit(self._write, _copy_to_host(checkpoint), best_step)
        else:
            self._pending = Future()
            self._pending.set_result(self._write(checkpoint, best_step))

    def poll(self) -> CheckpointRecord | None:
        """The checkpoint that was completed since the last call, if there is one.

        Raises:
            RunError: it could not be written.
        """
        return self.wait() if self._pending is not None and self._pending.done() else None

    def wait(self) -> CheckpointRecord | None:
        """Wait for the checkpoint that is being written; like `poll` otherwise."""
        pending, self._pending = self._pending, None
        return pending.result() if pending is not None else None

    def close(self) -> None:
        """Wait until nothing is written any more."""
        self._writer.shutdown(wait=True)

    def _write(self, checkpoint: Checkpoint, best_step: int | None) -> CheckpointRecord:
        assert self.run is not None, "start_run was called"
        checkpoint = replace(checkpoint, run=replace(self.run, frozen=self.frozen.hashes))
        record = self.store.save(checkpoint, self.check_owner)
        self.latest = record
        self._prune(best_step)
        return record

    def _prune(self, best_step: int | None) -> None:
        """Delete all checkpoints but the latest ones and the best one."""
        for step in self.store.steps()[: -self.keep]:
            if step != best_step:
                self.store.delete(step)

    # Reading

    def load_latest(self, log: Callable[[str], None]) -> Checkpoint | None:
        """Load the latest valid checkpoint. Corrupt ones after it are reported to `log` and deleted."""
        for step in reversed(self.store.steps()):
            problem = self.store.find_problem(step)
            if problem is None:
                return self.store.load(step)
            log(f"checkpoint {self.store.path(step)} is corrupt ({problem}); falling back to the previous one")
            self.store.delete(step)
        return None

    def load_weights(self, step: int) -> dict[str, Tensor]:
        """Load the weights of one checkpoint.

        Raises:
            RunError: it is corrupt.
        """
        if problem := self.store.find_problem(step):
            raise RunError(f"checkpoint {self.store.path(step)} is corrupt: {problem}")
        return self.store.load_weights(step)

    def clear(self) -> None:
        """Delete all checkpoints, so that the run starts from the beginning."""
        for step in self.store.steps():
            self.store.delete(step)

    def remove(self) -> None:
        """Delete the folder, and its parent folder if that is empty then."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _read_owner(self) -> dict[str, Any]:
        path = self.folder / OWNER_FILE
        owner: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return owner


def _tensors(checkpoint: Checkpoint) -> Iterator[Tensor]:
    yield from checkpoint.weights.values()
    yield from checkpoint.optimizer.values()


def _copy_to_host(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, weights=_copies(checkpoint.weights), optimizer=_copies(checkpoint.optimizer))


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
