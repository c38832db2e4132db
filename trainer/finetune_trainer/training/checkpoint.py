"""Checkpoints: everything that a run needs to resume as if it had never been interrupted.

They are stored in `<destination>/.checkpoints/<run id>/step-00000123/`, so no other run resumes from them. A checkpoint
is written to a temporary folder and then renamed, with a manifest of sizes and hashes: a corrupt one is detected,
reported and skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune_api.job import FineTuneJob
from finetune_api.names import CHECKPOINTS_FOLDER
from finetune_trainer.callbacks import CheckpointRecord
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.training.evaluation import HistoryEntry

MANIFEST_FILE, STATE_FILE = "manifest.json", "state.json"
WEIGHTS_FILE, OPTIMIZER_FILE = "weights.safetensors", "optimizer.safetensors"
OWNER_FILE = "owner.json"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Args:
        step: optimizer steps done.
        position: position of the data source; valid only for the same training set.
        train_samples: size of the training set.
        history: all evaluations so far; the best step and early stopping follow from them.
        elapsed: seconds of training so far, over all attempts.
        skipped_steps: counts of the steps skipped because loss or gradients were not finite, see `SkippedSteps`.
        loss_scale: the loss scale, and the finite steps since it changed.
        rng_state: state of the random number generators.
        spec: the effective spec, to report what changed since then.
        attempt: number of the attempt that wrote it.
        weights: parameters and buffers, by name.
        optimizer: optimizer state, by `<parameter name>/<key of torch's state>`.
    """

    step: int
    position: Mapping[str, Any]
    train_samples: int
    history: tuple[HistoryEntry, ...]
    elapsed: float
    skipped_steps: Mapping[str, int]
    loss_scale: tuple[float, int]
    rng_state: Mapping[str, Any]
    spec: Mapping[str, Any]
    attempt: int
    weights: Mapping[str, Tensor] = field(repr=False)
    optimizer: Mapping[str, Tensor] = field(repr=False)

    @property
    def last_evaluated_step(self) -> int:
        """The step of the last evaluation, or -1."""
        return self.history[-1].step if self.history else -1

    def save(self, folder: Path) -> None:
        """Write the checkpoint to an empty folder."""
        state = asdict(replace(self, weights={}, optimizer={}))
        (folder / STATE_FILE).write_text(json.dumps(state))
        save_file(dict(self.weights), folder / WEIGHTS_FILE)
        save_file(dict(self.optimizer), folder / OPTIMIZER_FILE)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            UserError: another version wrote it, with other fields.
        """
        state = json.loads((folder / STATE_FILE).read_text())
        if different := sorted(state.keys() ^ {item.name for item in fields(cls)}):
            raise UserError(
                f"checkpoint {folder} was written by another version of the trainer (different fields: "
                f"{', '.join(different)}): resume with that version, delete it, or start over with --fresh "
                "(on a cluster: recreate the job)"
            )
        state["history"] = tuple(HistoryEntry(**entry) for entry in state["history"])
        state["loss_scale"] = tuple(state["loss_scale"])
        tensors = {"weights": load_file(folder / WEIGHTS_FILE), "optimizer": load_file(folder / OPTIMIZER_FILE)}
        return cls(**state | tensors)


def run_id(job: FineTuneJob) -> str:
    """The name of a run's checkpoint folder: the UID of the object or, outside a cluster, a hash of the spec."""
    return job.metadata.uid or f"local-{job.spec.content_hash()[:12]}"


class CheckpointManager:
    """The checkpoints of one run. At any time, one process owns the folder and may write to it.

    Args:
        folder: folder of the checkpoints.
        attempt: number of this attempt; it can write until a newer attempt acquires the folder.
        keep: number of checkpoints to keep, besides the best one.
    """

    def __init__(self, folder: Path, attempt: int, keep: int) -> None:
        self.folder, self.attempt, self.keep = folder, attempt, keep
        self._owner = {"attempt": attempt, "process": uuid.uuid4().hex}

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
        _write_atomically(self.folder / OWNER_FILE, json.dumps(self._owner))
        for leftover in self.folder.glob(".tmp-*"):
            shutil.rmtree(leftover)

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

    def save(self, checkpoint: Checkpoint) -> CheckpointRecord:
        """Write a checkpoint atomically.

        Raises:
            RunError: another process owns the folder, or the checkpoint cannot be written.
        """
        self.check_owner()
        temporary = self.folder / f".tmp-{checkpoint.step}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            checkpoint.save(temporary)
            write_manifest(temporary)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RunError(f"cannot write the checkpoint {temporary}: {error}") from error
        final = self._path(checkpoint.step)
        shutil.rmtree(final, ignore_errors=True)
        self.check_owner()
        temporary.rename(final)
        _fsync(self.folder)
        return CheckpointRecord(checkpoint.step, final, datetime.now(UTC))

    def load_latest(self, log: Callable[[str], None]) -> Checkpoint | None:
        """Load the latest valid checkpoint. Corrupt ones after it are reported to `log` and deleted."""
        for step in reversed(self.steps()):
            problem = verify(self._path(step))
            if problem is None:
                return Checkpoint.load(self._path(step))
            log(f"checkpoint {self._path(step)} is corrupt ({problem}); falling back to the previous one")
            shutil.rmtree(self._path(step))
        return None

    def load_weights(self, step: int) -> dict[str, Tensor]:
        """Load the weights of one checkpoint.

        Raises:
            RunError: it is corrupt.
        """
        if problem := verify(self._path(step)):
            raise RunError(f"checkpoint {self._path(step)} is corrupt: {problem}")
        return dict(load_file(self._path(step) / WEIGHTS_FILE))

    def prune(self, best_step: int | None) -> None:
        """Delete all checkpoints but the latest ones and the best one."""
        for step in self.steps()[: -self.keep]:
            if step != best_step:
                shutil.rmtree(self._path(step))

    def steps(self) -> list[int]:
        """The steps of all checkpoints, ascending."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def clear(self) -> None:
        """Delete all checkpoints, so that the run starts from the beginning."""
        for step in self.steps():
            shutil.rmtree(self._path(step))

    def remove(self) -> None:
        """Delete the folder, and its parent folder if that is empty then."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _read_owner(self) -> dict[str, Any]:
        path = self.folder / OWNER_FILE
        owner: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return owner


def write_manifest(folder: Path) -> None:
    """Write sizes and hashes of all files of a checkpoint, and flush everything to disk."""
    files = sorted(folder.iterdir())
    manifest = {path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)} for path in files}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1))
    for path in (*folder.iterdir(), folder):
        _fsync(path)


def verify(folder: Path) -> str | None:
    """Compare the files of a checkpoint with its manifest.

    Returns:
        The first difference, or None if the checkpoint is valid.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
    except (OSError, json.JSONDecodeError):
        return f"{MANIFEST_FILE} is missing or truncated"
    for name, expected in manifest.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size:,} bytes, expected {expected['size']:,}"
        if file_sha256(path) != expected["sha256"]:
            return f"{name} does not match its SHA-256 hash"
    return None


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def get_model_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name. A tied weight occurs once."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def set_model_state_dict(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights from `get_model_state_dict` into the model.

    Raises:
        RunError: they belong to another model.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if different := sorted(tensors.keys() ^ weights.keys()):
        raise RunError(
            f"the checkpoint belongs to another model: {len(different)} tensors differ, e.g. {different[0]}; "
            "start over with --fresh"
        )
    for name, tensor in tensors.items():
        tensor.copy_(weights[name])


def diff_specs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences between two specs, as `path: old -> new`."""
    old_values, new_values = dict(_flatten(old)), dict(_flatten(new))
    paths = [path for path in {**old_values, **new_values} if old_values.get(path) != new_values.get(path)]
    return [f"{path}: {old_values.get(path)} -> {new_values.get(path)}" for path in paths]


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _flatten(inner, f"{path}[{position}]")
    else:
        yield path, value


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_text(text)
    _fsync(temporary)
    temporary.replace(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
