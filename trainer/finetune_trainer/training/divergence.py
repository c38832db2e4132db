"""Decides from the steps that were skipped whether a run has diverged. Pure functions.

A step is skipped if its loss or gradients are not finite. A few are normal; a run that skips many of them trains a
model that nobody should use, and another attempt would do the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from finetune_trainer.formatting import pluralize

MAX_CONSECUTIVE = 50
"""Number of consecutive steps that were not finite after which a run has diverged."""

MAX_FRACTION = 0.1
"""Fraction of all steps that may be not finite."""

MIN_STEPS = 2
"""A single step that was not finite is no divergence, however short the run is."""


@dataclass(frozen=True)
class SkippedSteps:
    """The steps that were skipped so far, over all attempts.

    Args:
        total: all of them.
        overflows: those in which only the scaled FP16 gradients were not finite. This is how the loss scale is found,
            and no sign of divergence: the loss is finite, and the scale can still be halved.
        consecutive: those since the last finite step, without overflows.
    """

    total: int = 0
    overflows: int = 0
    consecutive: int = 0

    def after_step(self, *, is_finite: bool, is_overflow: bool) -> SkippedSteps:
        """The counts after another step."""
        if is_finite:
            return replace(self, consecutive=0)
        return SkippedSteps(
            self.total + 1, self.overflows + is_overflow, self.consecutive if is_overflow else self.consecutive + 1
        )

    @property
    def nonfinite(self) -> int:
        """Skipped steps that count towards divergence."""
        return self.total - self.overflows

    def describe_divergence(self, num_steps: int) -> str | None:
        """What shows that a run of `num_steps` steps has diverged, e.g. "4 of 30 steps were not finite"; else None.

        With the planned steps as `num_steps`, it is certain however the run continues.
        """
        if self.consecutive >= MAX_CONSECUTIVE:
            return f"the last {self.consecutive} steps were not finite"
        if self.nonfinite >= MIN_STEPS and self.nonfinite > MAX_FRACTION * num_steps:
            return f"{self.nonfinite:,} of {num_steps:,} steps were not finite, which is more than {MAX_FRACTION:.0%}"
        return None


def describe_trained_steps(steps: int, skipped: int) -> str:
    """What a run trained.

    >>> describe_trained_steps(30, 0), describe_trained_steps(30, 12)
    ('trained 30 steps', 'trained 18 of 30 steps; 12 skipped because loss or gradients were not finite')
    """
    if not skipped:
        return f"trained {pluralize(steps, 'step')}"
    return (
        f"trained {steps - skipped:,} of {steps:,} steps; {skipped:,} skipped because loss or gradients were not finite"
    )
