"""What the evaluations so far mean: which was the best, and whether to stop. Pure functions of the history.

The history is part of the checkpoint, so a resumed run decides as it would have without the interruption.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_api.defaults import EffectiveEvaluation
from finetune_api.evaluation import Interval
from finetune_api.schedules import EvalResult
from finetune_trainer.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """The metrics after `step` optimizer steps."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Judge:
    """Compares evaluations, as the effective `evaluation` says.

    The evaluation before the first step is where the run starts from; it never is the best.
    """

    spec: EffectiveEvaluation

    @property
    def metric(self) -> str:
        return self.spec.metric

    def value(self, evaluation: Evaluation) -> float:
        """Higher is better; not-a-number is worse than anything."""
        value = evaluation.metrics[self.metric]
        signed = -value if self.spec.direction == "Minimize" else value
        return signed if math.isfinite(signed) else float("-inf")

    def best(self, history: Sequence[Evaluation]) -> Evaluation | None:
        """The best so far; of equals, the first."""
        judged = (it for it in history if it.step and math.isfinite(it.metrics[self.metric]))
        return max(judged, key=self.value, default=None)

    def eval_history(self, history: Sequence[Evaluation]) -> list[EvalResult]:
        """The history in the form that schedules read: (step, value) pairs, lower is better."""
        return [(it.step, -self.value(it)) for it in history]

    def is_exhausted(self, history: Sequence[Evaluation]) -> bool:
        """Whether patience is at an end."""
        stopping = self.spec.early_stopping
        if stopping is None:
            return False
        reached, waited = float("-inf"), 0
        for value in [self.value(it) for it in history if it.step]:
            better = value > reached + stopping.min_delta or reached == float("-inf")
            reached, waited = (value, 0) if better else (reached, waited + 1)
        return waited >= stopping.patience


def check_metric(judge: Judge, metrics: Sequence[str]) -> None:
    """Refuse a metric that this task does not measure.

    Raises:
        UserError: it does not; the nearest is named.
    """
    if judge.metric not in metrics:
        near = difflib.get_close_matches(judge.metric, metrics, n=1)
        hint = f"did you mean {near[0]!r}? Measured are" if near else "measured are"
        raise UserError(f"evaluation.metric: {judge.metric!r} is not measured here; {hint} {', '.join(metrics)}")


def is_due(every: Interval, step: int, steps_per_epoch: int) -> bool:
    """Whether something that happens so often happens after `step` optimizer steps."""
    if every.steps is not None:
        return step % every.steps == 0
    assert every.epochs is not None
    period = every.epochs * steps_per_epoch
    return period <= 1 or (step > 0 and round(max(1, round(step / period)) * period) == step)
