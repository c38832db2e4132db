"""Exit codes of the trainer, and what each means for the next attempt."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `finetune run`."""

    DONE = 0
    FAILED = 1
    INVALID = 2
    INTERRUPTED = 75
    STALLED = 76
    OUT_OF_GPU_MEMORY = 77
    DIVERGED = 78


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Args:
        reason: CamelCase, as in `status.attempts[].reason`.
        retryable: whether another attempt may succeed.
        consumes_retry: whether the next attempt counts towards `spec.retry.limit`.
    """

    reason: str
    retryable: bool
    consumes_retry: bool


SUCCEEDED = Outcome("Succeeded", retryable=False, consumes_retry=False)
CRASHED = Outcome("Crashed", retryable=True, consumes_retry=True)
OUT_OF_MEMORY = Outcome("OutOfMemory", retryable=False, consumes_retry=False)
DISRUPTED = Outcome("Disrupted", retryable=True, consumes_retry=False)

_OUTCOMES: dict[int, Outcome] = {
    ExitCode.DONE: SUCCEEDED,
    ExitCode.INVALID: Outcome("InvalidJob", retryable=False, consumes_retry=False),
    ExitCode.INTERRUPTED: Outcome("Interrupted", retryable=True, consumes_retry=False),
    ExitCode.STALLED: Outcome("Stalled", retryable=True, consumes_retry=True),
    ExitCode.OUT_OF_GPU_MEMORY: Outcome("OutOfGPUMemory", retryable=False, consumes_retry=False),
    ExitCode.DIVERGED: Outcome("Diverged", retryable=False, consumes_retry=False),
}
NON_RETRYABLE = tuple(
    int(code) for code, outcome in _OUTCOMES.items() if code != ExitCode.DONE and not outcome.retryable
)
"""Exit codes of permanent failures."""


def outcome_of_exit_code(code: int | None, *, oom_killed: bool = False) -> Outcome:
    """The outcome of a container; an exit code that is not defined here is a crash."""
    if oom_killed:
        return OUT_OF_MEMORY
    return CRASHED if code is None else _OUTCOMES.get(code, CRASHED)
