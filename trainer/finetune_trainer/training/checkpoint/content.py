"""What a checkpoint contains: the state of the training loop, and the record of the run that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from finetune_trainer.training.checkpoint.fingerprints import Fingerprints
from finetune_trainer.training.evaluation import HistoryEntry


@dataclass(frozen=True)
class Segment:
    """A part of a run that was trained with the same spec and the same versions of the libraries.

    Args:
        step: optimizer steps done when it began.
        spec: the effective spec.
        versions: versions of Python and of the packages that determine the result.
    """

    step: int
    spec: Mapping[str, Any]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class RunRecord:
    """What identifies a run, and does not change while an attempt is running.

    Args:
        job: name of the job.
        attempt: number of the attempt.
        segments: the segments of the run, the current one last.
        fingerprints: content of data, tokenizer and model.
        samples: sizes of the datasets by field, such as `train`.
        frozen: hashes of the parameters that no checkpoint of the run stores, because they are never trained.
    """

    job: str
    attempt: int
    segments: tuple[Segment, ...]
    fingerprints: Fingerprints = field(default_factory=Fingerprints)
    samples: Mapping[str, int] = field(default_factory=dict)
    frozen: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def spec(self) -> Mapping[str, Any]:
        """The effective spec of the current segment."""
        return self.segments[-1].spec


@dataclass(frozen=True)
class Checkpoint:
    """The state of the training loop.

    Args:
        step: optimizer steps done.
        position: position of the data source; valid only for the same training set.
        history: all evaluations so far; the best step and early stopping follow from them.
        elapsed: seconds of training so far, over all attempts.
        skipped_steps: counts of the steps skipped because loss or gradients were not finite, see `SkippedSteps`.
        loss_scale: the loss scale, and the finite steps since it changed.
        rng_state: state of the random number generators.
        weights: parameters and buffers, by name; without frozen parameters in a checkpoint that was loaded.
        optimizer: optimizer state, by `<parameter name>/<key of torch's state>`.
        run: the run that wrote it; set by the checkpoint manager.
    """

    step: int
    position: Mapping[str, Any]
    history: tuple[HistoryEntry, ...]
    elapsed: float
    skipped_steps: Mapping[str, int]
    loss_scale: tuple[float, int]
    rng_state: Mapping[str, Any]
    weights: Mapping[str, Tensor] = field(repr=False)
    optimizer: Mapping[str, Tensor] = field(repr=False)
    run: RunRecord | None = None

    @property
    def last_evaluated_step(self) -> int:
        """The step of the last evaluation, or -1."""
        return self.history[-1].step if self.history else -1
