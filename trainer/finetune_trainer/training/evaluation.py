"""Decisions from the evaluation history: the best step, early stopping, and when to evaluate. Pure functions.

The history is part of the checkpoint, so a resumed run makes the same decisions as one without interruption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_api.defaults import EffectiveEvaluation
from finetune_api.evaluation import Interval
from finetune_api.schedules import EvalResult


@dataclass(frozen=True)
class HistoryEntry:
    """The metrics of one evaluation, after `step` optimizer steps."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class MetricTracker:
    """Compares evaluations by `evaluation.metric` and `evaluation.direction`.

    The evaluation before the first step is the baseline; it is never the best one. An evaluation whose metric is not
    finite is neither the best one nor an improvement.
    """

    spec: EffectiveEvaluation

    @property
    def metric(self) -> str:
        return self.spec.metric

    def score(self, entry: HistoryEntry) -> float:
        """The value of the metric, negated if lower is better; -inf if it is not finite."""
        value = entry.metrics[self.metric]
        signed = -value if self.spec.direction == "Minimize" else value
        return signed if math.isfinite(signed) else float("-inf")

    def best(self, history: Sequence[HistoryEntry]) -> HistoryEntry | None:
        """The best evaluation so far; the first one of equals."""
        candidates = (entry for entry in history if entry.step and self._is_finite(entry))
        return max(candidates, key=self.score, default=None)

    def is_better_than_before(self, history: Sequence[HistoryEntry]) -> bool:
        """Whether the best evaluation is better than the one before the first step; True if there are not both."""
        if not any(entry.step for entry in history) or history[0].step:
            return True
        best = self.best(history)
        return best is not None and self.score(best) > self.score(history[0])

    def is_never_finite(self, history: Sequence[HistoryEntry]) -> bool:
        """Whether there were evaluations after the first step, and the metric was finite in none of them."""
        evaluations = [entry for entry in history if entry.step]
        return bool(evaluations) and not any(map(self._is_finite, evaluations))

    def _is_finite(self, entry: HistoryEntry) -> bool:
        return math.isfinite(entry.metrics[self.metric])

    def eval_history(self, history: Sequence[HistoryEntry]) -> list[EvalResult]:
        """The history in the form that schedules read: (step, value) pairs, lower is better."""
        return [(entry.step, -self.score(entry)) for entry in history]

    def should_stop_early(self, history: Sequence[HistoryEntry]) -> bool:
        """Whether the last `patience` evaluations did not improve the metric by more than `minDelta`."""
        early_stopping = self.spec.early_stopping
        if early_stopping is None:
            return False
        best, num_bad_evals = float("-inf"), 0
        for score in [self.score(entry) for entry in history if entry.step]:
            is_first = best == float("-inf") and math.isfinite(score)
            is_better = is_first or score > best + early_stopping.min_delta
            best, num_bad_evals = (score, 0) if is_better else (best, num_bad_evals + 1)
        return num_bad_evals >= early_stopping.patience


def describe_nonfinite_metrics(metrics: Mapping[str, float]) -> str:
    """The metrics that are not finite, for a message; empty if there are none."""
    return ", ".join(f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value))


def is_due(every: Interval, step: int, steps_per_epoch: int) -> bool:
    """Whether a periodic action is due after `step` optimizer steps."""
    if every.steps is not None:
        return step % every.steps == 0
    assert every.epochs is not None
    period = every.epochs * steps_per_epoch
    return period <= 1 or (step > 0 and round(max(1, round(step / period)) * period) == step)
