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
class End:
    """What an exit code means for the next attempt."""

    reason: str
    retried: bool
    counts: bool


SUCCEEDED = End("Succeeded", retried=False, counts=False)
CRASHED = End("Crashed", retried=True, counts=True)
OUT_OF_MEMORY = End("OutOfMemory", retried=False, counts=False)
DISRUPTED = End("Disrupted", retried=True, counts=False)

_ENDS = {
    ExitCode.DONE: SUCCEEDED,
    ExitCode.INVALID: End("InvalidJob", retried=False, counts=False),
    ExitCode.INTERRUPTED: End("Interrupted", retried=True, counts=False),
    ExitCode.STALLED: End("Stalled", retried=True, counts=True),
    ExitCode.OUT_OF_GPU_MEMORY: End("OutOfGPUMemory", retried=False, counts=False),
}
PERMANENT = tuple(int(code) for code, end in _ENDS.items() if code and not end.retried)


def end_of(code: int | None, *, oom_killed: bool = False) -> End:
    """What a container's exit code means; a code that nobody defined is a crash."""
    if oom_killed:
        return OUT_OF_MEMORY
    return _ENDS.get(code, CRASHED) if code is not None else CRASHED  # type: ignore[call-overload]
