"""Reads and writes checkpoints: named tensors in safetensors files, the state as JSON, and a manifest of hashes.

A checkpoint is written to a temporary folder and then renamed. Its manifest has the size and hash of each file, so a
corrupt one is detected. Large sets of tensors are split into several files, which bounds the memory of writing them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_trainer.callbacks import CheckpointRecord
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.formatting import format_bytes
from finetune_trainer.training.checkpoint.content import Checkpoint, RunRecord, Segment
from finetune_trainer.training.checkpoint.fingerprints import Fingerprints
from finetune_trainer.training.evaluation import HistoryEntry

MANIFEST_FILE, STATE_FILE = "manifest.json", "state.json"
WEIGHTS, OPTIMIZER = "weights", "optimizer"
MAX_FILE_BYTES = 2**30
"""Size of the files that tensors are split into; safetensors holds the content of one file in memory to write it."""

PROGRESS_BYTES = 2**24
"""Bytes that are read at once, and count as progress."""

TEMPORARY_PREFIX = ".tmp-"


class CheckpointStore:
    """The checkpoints in one folder.

    Args:
        folder: folder of the checkpoints.
        on_progress: called after each file, or part of a large one, that was written or read.
    """

    def __init__(self, folder: Path, on_progress: Callable[[], None] = lambda: None) -> None:
        self.folder, self.on_progress = folder, on_progress

    def steps(self) -> list[int]:
        """The steps of all checkpoints, ascending."""
        numbers = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted(int(number) for number in numbers if number.isdecimal())  # not a copy, such as step-00000005.bak

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, checkpoint: Checkpoint, before_commit: Callable[[], None] = lambda: None) -> CheckpointRecord:
        """Write a checkpoint atomically.

        Args:
            before_commit: called just before the checkpoint becomes visible; it may raise.

        Raises:
            RunError: it cannot be written.
        """
        temporary = self.folder / f"{TEMPORARY_PREFIX}{checkpoint.step}-{uuid.uuid4().hex[:8]}"
        try:
            temporary.mkdir()
            self._write(checkpoint, temporary)
            before_commit()
            final = self.path(checkpoint.step)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            fsync(self.folder)
        except (OSError, SafetensorError) as error:
            raise RunError(self._describe_write_error(checkpoint, error)) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return CheckpointRecord(checkpoint.step, final, datetime.now(UTC))

    def load(self, step: int) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            UserError: another version wrote it, with other fields.
        """
        tensors = self._load_tensors(self.path(step), OPTIMIZER)
        return replace(self.load_state(step), weights=self.load_weights(step), optimizer=tensors)

    def load_state(self, step: int) -> Checkpoint:
        """Read a checkpoint without its tensors.

        Raises:
            UserError: another version wrote it, with other fields.
        """
        return read_state(self.path(step))

    def load_weights(self, step: int) -> dict[str, Tensor]:
        """Read the weights of a checkpoint."""
        return self._load_tensors(self.path(step), WEIGHTS)

    def find_problem(self, step: int) -> str | None:
        """Compare the files of a checkpoint with its manifest.

        Returns:
            The first difference, or None if the checkpoint is valid.
        """
        return find_problem(self.path(step), self.on_progress)

    def delete(self, step: int) -> None:
        """Delete a checkpoint. It is renamed first: one that is deleted in part is not mistaken for a corrupt one."""
        temporary = self.folder / f"{TEMPORARY_PREFIX}deleted-{step}-{uuid.uuid4().hex[:8]}"
        self.path(step).rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)  # `delete_leftovers` repeats it

    def delete_leftovers(self) -> None:
        """Delete what an interrupted write or deletion left."""
        for leftover in self.folder.glob(f"{TEMPORARY_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _write(self, checkpoint: Checkpoint, folder: Path) -> None:
        state = asdict(replace(checkpoint, weights={}, optimizer={}))
        (folder / STATE_FILE).write_text(json.dumps(state))
        self._save_tensors(checkpoint.weights, folder, WEIGHTS)
        self._save_tensors(checkpoint.optimizer, folder, OPTIMIZER)
        write_manifest(folder, self.on_progress)

    def _save_tensors(self, tensors: Mapping[str, Tensor], folder: Path, name: str) -> None:
        for file, members in _split_into_files(tensors, name).items():
            save_file({member: tensors[member].contiguous() for member in members}, folder / file)
            self.on_progress()

    def _load_tensors(self, folder: Path, name: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for path in sorted(folder.glob(f"{name}*.safetensors")):
            tensors |= load_file(path)
            self.on_progress()
        return tensors

    def _describe_write_error(self, checkpoint: Checkpoint, error: Exception) -> str:
        needed = sum(tensor.nbytes for tensor in (*checkpoint.weights.values(), *checkpoint.optimizer.values()))
        return (
            f"cannot write the checkpoint {self.path(checkpoint.step)} ({format_bytes(needed)}; "
            f"{describe_free_space(self.folder)}): {error}"
        )


def _split_into_files(tensors: Mapping[str, Tensor], name: str) -> dict[str, list[str]]:
    """The names of the tensors of each file; a single file is named `<name>.safetensors`."""
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=f"{name}{{suffix}}.safetensors", max_shard_size=MAX_FILE_BYTES
    )
    return split.filename_to_tensors or {f"{name}.safetensors": []}


def read_state(folder: Path) -> Checkpoint:
    """A checkpoint without its tensors.

    Raises:
        UserError: another version wrote it, with other fields.
    """
    state = json.loads((folder / STATE_FILE).read_text())
    _check_fields(folder, state, Checkpoint)
    _check_fields(folder, state["run"], RunRecord)
    _check_fields(folder, state["run"]["fingerprints"], Fingerprints)
    for segment in state["run"]["segments"]:
        _check_fields(folder, segment, Segment)
    state |= {WEIGHTS: {}, OPTIMIZER: {}}
    state["history"] = tuple(HistoryEntry(**entry) for entry in state["history"])
    state["loss_scale"] = tuple(state["loss_scale"])
    state["run"]["segments"] = tuple(Segment(**segment) for segment in state["run"]["segments"])
    state["run"]["fingerprints"] = Fingerprints(**state["run"]["fingerprints"])
    return Checkpoint(**state | {"run": RunRecord(**state["run"])})


def _check_fields(folder: Path, state: Mapping[str, Any], kind: type[Any]) -> None:
    if different := sorted(state.keys() ^ {item.name for item in fields(kind)}):
        raise UserError(
            f"checkpoint {folder} was written by another version of the trainer (different fields: "
            f"{', '.join(different)}): resume with that version, delete it, or start over with --fresh "
            "(on a cluster: recreate the job)"
        )


def write_manifest(folder: Path, on_progress: Callable[[], None] = lambda: None) -> None:
    """Write sizes and hashes of all files of a checkpoint, and flush everything to disk."""
    manifest: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.iterdir()):
        manifest[path.name] = {"size": path.stat().st_size, "sha256": file_sha256(path, on_progress)}
        fsync(path)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1))
    fsync(folder / MANIFEST_FILE)
    fsync(folder)


def find_problem(folder: Path, on_progress: Callable[[], None] = lambda: None) -> str | None:
    """Compare the files of a checkpoint with its manifest; see `CheckpointStore.find_problem`."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        expected = [(str(name), int(entry["size"]), str(entry["sha256"])) for name, entry in manifest.items()]
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError, KeyError, TypeError):
        return f"{MANIFEST_FILE} is missing or damaged"
    for name, size, sha256 in expected:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, expected {size:,}"
        if file_sha256(path, on_progress) != sha256:
            return f"{name} does not match its SHA-256 hash"
    return None


def file_sha256(path: Path, on_progress: Callable[[], None] = lambda: None) -> str:
    """SHA-256 (hex) of a file. `on_progress` is called after each `PROGRESS_BYTES`."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(PROGRESS_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            on_progress()
    return digest.hexdigest()


def describe_free_space(folder: Path) -> str:
    """The free bytes of a file system, for an error message."""
    try:
        return f"{format_bytes(shutil.disk_usage(folder).free)} free"
    except OSError as error:
        return f"free space unknown: {error.strerror}"


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
