"""The checkpoints of one run: who may write them, which are kept, and writing them while training goes on.

A checkpoint is copied to host memory within the training loop, and written by a background thread. If the copy might
not fit into memory, the loop waits until the checkpoint is written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from finetune_api.job import FineTuneJob
from finetune_api.names import CHECKPOINTS_FOLDER
from finetune_trainer.callbacks import CheckpointRecord
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.training.checkpoint.content import Checkpoint, RunRecord
from finetune_trainer.training.checkpoint.memory import available_memory
from finetune_trainer.training.checkpoint.store import CheckpointStore
from finetune_trainer.training.checkpoint.weights import FrozenWeights
from finetune_trainer.training.lease import Lease, LeaseLock
from finetune_trainer.training.stored_runs import run_id

OWNER_FILE = "owner.json"


class CheckpointManager:
    """The checkpoints of one run, in a destination that this process holds the lease of.

    Args:
        job: the job.
        destination: the output folder.
        attempt: number of this attempt; it can write until a newer attempt takes over.

    Attributes:
        latest: the last checkpoint that was completed, whether it was polled or not.
    """

    def __init__(self, job: FineTuneJob, destination: Path, attempt: int) -> None:
        self.folder = destination / CHECKPOINTS_FOLDER / run_id(job)
        self.attempt, self.keep = attempt, job.spec.checkpoint.keep
        self.store = CheckpointStore(self.folder)
        self.lease = LeaseLock(destination, Lease.create(job.name, run_id(job), attempt))
        self._record: RunRecord | None = None
        self.latest: CheckpointRecord | None = None
        self.frozen = FrozenWeights({})
        self._writer = ThreadPoolExecutor(1, "checkpoint-writer")
        self._pending: Future[CheckpointRecord] | None = None

    def acquire(self, log: Callable[[str], None], raise_if_stopped: Callable[[], None] = lambda: None) -> None:
        """Take the lease of the destination, in place of earlier attempts; see `LeaseLock.acquire`.

        Raises:
            UserError: another run holds the destination.
            RunError: a newer attempt has started.
        """
        if self.folder.is_symlink():
            raise UserError(
                f"output.destination: {self.folder} is a symbolic link: replace it with a folder, or delete it"
            )
        self.lease.acquire(log, raise_if_stopped)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if (newest := self._newest_attempt()) > self.attempt:
                raise RunError(f"attempt {self.attempt} cannot continue: attempt {newest} has started")
            temporary = self.folder / f".{OWNER_FILE}-{os.getpid()}"
            temporary.write_text(json.dumps({"attempt": self.attempt}))
            temporary.replace(self.folder / OWNER_FILE)
        except OSError as error:
            raise RunError(f"output.destination: cannot write to {self.folder}: {error.strerror or error}") from error
        self.store.delete_leftovers()

    def check_owner(self) -> None:
        """Check that this process may still write to the destination.

        Raises:
            UserError: another attempt or another run has taken over.
        """
        if (newest := self._newest_attempt()) > self.attempt:
            raise UserError(f"attempt {self.attempt} cannot write to {self.folder}: attempt {newest} has taken over")
        self.lease.check()

    def _newest_attempt(self) -> int:
        try:
            return int(json.loads((self.folder / OWNER_FILE).read_text())["attempt"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def start_run(self, record: RunRecord, frozen: FrozenWeights) -> None:
        """Set what every checkpoint of this attempt records.

        Args:
            record: the record, without the hashes of the frozen parameters.
            frozen: the parameters that are not stored.
        """
        self._record, self.frozen = record, frozen

    @property
    def record(self) -> RunRecord:
        """What every checkpoint of this attempt records, without the hashes of the frozen parameters."""
        assert self._record is not None, "start_run was called"
        return self._record

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
        """Wait until nothing is written any more, and release the destination."""
        try:
            self._writer.shutdown(wait=True)
            self._remove_if_unused()
        finally:
            self.lease.release()

    def _remove_if_unused(self) -> None:
        """Delete the folder of a run that was refused before it wrote anything."""
        with suppress(OSError, RunError):
            self.check_owner()
            if [path.name for path in self.folder.iterdir()] == [OWNER_FILE]:
                self.remove()

    def _write(self, checkpoint: Checkpoint, best_step: int | None) -> CheckpointRecord:
        checkpoint = replace(checkpoint, run=replace(self.record, frozen=self.frozen.hashes))
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

    def find_latest(self, log: Callable[[str], None]) -> int | None:
        """The step of the latest valid checkpoint. Corrupt ones after it are reported to `log` and deleted."""
        for step in reversed(self.store.steps()):
            problem = self.store.find_problem(step)
            if problem is None:
                return step
            log(f"checkpoint {self.store.path(step)} is corrupt ({problem}); falling back to the previous one")
            self.store.delete(step)
        return None

    def clear(self) -> None:
        """Delete all checkpoints, so that the run starts from the beginning."""
        for step in self.store.steps():
            self.store.delete(step)

    def remove(self) -> None:
        """Delete the folder, and its parent folder if that is empty then."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()


def _tensors(checkpoint: Checkpoint) -> Iterator[Tensor]:
    yield from checkpoint.weights.values()
    yield from checkpoint.optimizer.values()


def _copy_to_host(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, weights=_copies(checkpoint.weights), optimizer=_copies(checkpoint.optimizer))


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
