"""Checkpoints: everything a run needs to go on as if it had never stopped.

They live in `<destination>/.checkpoints/<uid>/step-00000123/`, so that no other run ever resumes them. One appears
whole or not at all, with a manifest of sizes and hashes; one that was cut in half later is named and passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune_api.job import FineTuneJob
from finetune_api.names import CHECKPOINTS_FOLDER
from finetune_trainer.callbacks import CheckpointRecord
from finetune_trainer.errors import RunError
from finetune_trainer.training.evaluation import Evaluation

MANIFEST, STATE = "manifest.json", "state.json"
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
OWNER = "owner.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint is.

    Args:
        step: optimizer steps done.
        epoch, batch: the same as a position in the data, for a person to read.
        train_samples: size of the training set; the position means nothing in another one.
        history: all evaluations so far; best value and patience follow from them.
        elapsed: seconds of training so far, over all attempts.
        skipped_steps: steps that were skipped because something was not finite.
        loss_scale: the FP16 loss scale and the good steps since it changed.
        random: state of the random generators.
        spec: the effective spec, to tell what changed.
        attempt: which attempt wrote it.
        weights: parameters and buffers, by name.
        optimizer: optimizer state, by `<parameter name>/<what torch calls it>`.
    """

    step: int
    epoch: int
    batch: int
    train_samples: int
    history: tuple[Evaluation, ...]
    elapsed: float
    skipped_steps: int
    loss_scale: tuple[float, int]
    random: Mapping[str, Any]
    spec: Mapping[str, Any]
    attempt: int
    weights: Mapping[str, Tensor] = field(repr=False)
    optimizer: Mapping[str, Tensor] = field(repr=False)

    @property
    def evaluated(self) -> int:
        """The step of the last evaluation; -1 when there was none."""
        return self.history[-1].step if self.history else -1

    def write(self, folder: Path) -> None:
        """Write it to an empty folder."""
        state = asdict(replace(self, weights={}, optimizer={}))
        (folder / STATE).write_text(json.dumps(state))
        save_file(dict(self.weights), folder / WEIGHTS)
        save_file(dict(self.optimizer), folder / OPTIMIZER)

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        state = json.loads((folder / STATE).read_text())
        state["history"] = tuple(Evaluation(**evaluation) for evaluation in state["history"])
        state["loss_scale"] = tuple(state["loss_scale"])
        return cls(**state | {"weights": load_file(folder / WEIGHTS), "optimizer": load_file(folder / OPTIMIZER)})


def run_id(job: FineTuneJob) -> str:
    """Whose checkpoints these are: the object's on a cluster; without one, those of every run of the same spec."""
    return job.metadata.uid or f"local-{job.spec.content_hash()[:12]}"


class Checkpoints:
    """The checkpoints of one run, and who may write them.

    Args:
        folder: where they are.
        attempt: number of this attempt; an older one's writes fail once a newer one has begun.
        keep: how many of the latest are kept.
    """

    def __init__(self, folder: Path, attempt: int, keep: int) -> None:
        self.folder, self.attempt, self.keep = folder, attempt, keep
        self._owner = {"attempt": attempt, "process": uuid.uuid4().hex}

    @classmethod
    def of(cls, job: FineTuneJob, destination: Path, attempt: int) -> Checkpoints:
        return cls(destination / CHECKPOINTS_FOLDER / run_id(job), attempt, job.spec.checkpoint.keep)

    def claim(self) -> None:
        """Take the folder over from all earlier attempts.

        Raises:
            RunError: a newer attempt has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        owner = self._read_owner()
        if owner.get("attempt", 0) > self.attempt:
            raise RunError(f"attempt {owner['attempt']} has begun, so attempt {self.attempt} may not go on")
        _write_whole(self.folder / OWNER, json.dumps(self._owner))
        for leftover in self.folder.glob(".tmp-*"):
            shutil.rmtree(leftover)

    def check_owner(self) -> None:
        """Make sure that the folder is still ours.

        Raises:
            RunError: another process took over.
        """
        owner = self._read_owner()
        if owner != self._owner:
            raise RunError(
                f"attempt {owner.get('attempt', '?')} has taken over, so attempt {self.attempt} writes nothing more"
            )

    def save(self, checkpoint: Checkpoint) -> CheckpointRecord:
        """Write a checkpoint; afterwards it is there whole."""
        self.check_owner()
        draft = self.folder / f".tmp-{checkpoint.step}"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir()
            checkpoint.write(draft)
            _seal(draft)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise RunError(f"cannot write the checkpoint {draft}: {error}") from error
        final = self._path(checkpoint.step)
        shutil.rmtree(final, ignore_errors=True)
        self.check_owner()
        draft.rename(final)
        _sync(self.folder)
        return CheckpointRecord(checkpoint.step, final, datetime.now(UTC))

    def latest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The latest checkpoint that is whole; those after it, which are not, are named and removed."""
        for step in reversed(self.steps()):
            problem = damage(self._path(step))
            if problem is None:
                return Checkpoint.read(self._path(step))
            say(f"checkpoint {self._path(step)} is damaged ({problem}); the one before is used")
            shutil.rmtree(self._path(step))
        return None

    def weights(self, step: int) -> dict[str, Tensor]:
        """The weights of one checkpoint.

        Raises:
            RunError: it is damaged.
        """
        if problem := damage(self._path(step)):
            raise RunError(f"checkpoint {self._path(step)} is damaged: {problem}")
        return dict(load_file(self._path(step) / WEIGHTS))

    def prune(self, best: int | None) -> None:
        """Keep the latest, and the best."""
        for step in self.steps()[: -self.keep]:
            if step != best:
                shutil.rmtree(self._path(step))

    def steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def clear(self) -> None:
        """Remove all checkpoints: the run starts over."""
        for step in self.steps():
            shutil.rmtree(self._path(step))

    def remove(self) -> None:
        """Remove the folder, and the one it is in when that is empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _read_owner(self) -> dict[str, Any]:
        path = self.folder / OWNER
        owner: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return owner


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None when they are as they were written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError):
        return f"{MANIFEST} is missing or cut off"
    for name, expected in manifest.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        if sha256(path) != expected["sha256"]:
            return f"{name} has other contents than were written"
    return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, a tied one once."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights back.

    Raises:
        RunError: they are another model's.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if odd := sorted(tensors.keys() ^ weights.keys()):
        raise RunError(
            f"the checkpoint is of another model: {len(odd)} tensors differ, e.g. {odd[0]}; start over with --fresh"
        )
    for name, tensor in tensors.items():
        tensor.copy_(weights[name])


def optimizer_state(optimizers: Sequence[Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """Optimizer state by parameter name: torch's own is by position, and loads another parameter's in silence."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value.contiguous()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(optimizers: Sequence[Optimizer], model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put optimizer state back; the hyperparameters stay those of the spec."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, what = key.rpartition("/")
        states.setdefault(name, {})[what] = tensor
    for optimizer in optimizers:
        owned = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        state = {position: states[name] for position, name in enumerate(owned) if name in states}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed between two specs, as `path: before -> now`."""
    old, new = dict(_flat(before)), dict(_flat(now))
    paths = [path for path in {**old, **new} if old.get(path) != new.get(path)]
    return [f"{path}: {old.get(path)} -> {new.get(path)}" for path in paths]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{position}]")
    else:
        yield path, value


def _seal(folder: Path) -> None:
    """Write the manifest, and have everything on disk."""
    files = sorted(folder.iterdir())
    manifest = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    draft.write_text(text)
    _sync(draft)
    draft.replace(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
