"""How a trainer ends: the exit codes that the trainer returns and the operator reads."""

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


@dataclass(frozen=True)
class Outcome:
    """What an exit code means for the next attempt."""

    reason: str
    retryable: bool
    consumes_retry: bool


SUCCEEDED = Outcome("Succeeded", retryable=False, consumes_retry=False)
CRASHED = Outcome("Crashed", retryable=True, consumes_retry=True)
OUT_OF_MEMORY = Outcome("OutOfMemory", retryable=False, consumes_retry=False)
DISRUPTED = Outcome("Disrupted", retryable=True, consumes_retry=False)

_ENDS = {
    ExitCode.DONE: SUCCEEDED,
    ExitCode.INVALID: Outcome("InvalidJob", retryable=False, consumes_retry=False),
    ExitCode.INTERRUPTED: Outcome("Interrupted", retryable=True, consumes_retry=False),
    ExitCode.STALLED: Outcome("Stalled", retryable=True, consumes_retry=True),
    ExitCode.OUT_OF_GPU_MEMORY: Outcome("OutOfGPUMemory", retryable=False, consumes_retry=False),
}
PERMANENT = tuple(int(code) for code, end in _ENDS.items() if code and not end.retryable)


def outcome_of_exit_code(code: int | None, *, oom_killed: bool = False) -> Outcome:
    """What a container's exit code means; a code that nobody defined is a crash."""
    if oom_killed:
        return OUT_OF_MEMORY
    return _ENDS.get(code, CRASHED) if code is not None else CRASHED  # type: ignore[call-overload]
