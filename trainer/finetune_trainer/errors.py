"""Ends of a run that a person has to hear about, each with its exit code. Everything else is a bug or a crash."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode


class RunError(Exception):
    """A run that cannot go on. The message is one sentence a person can act on."""

    exit_code = ExitCode.FAILED
    reason = "Failed"


class UserError(RunError):
    """The spec, the model or the data is wrong; the message names field or file, value, expectation, nearest choice."""

    exit_code = ExitCode.INVALID
    reason = "InvalidJob"


class Interrupted(RunError):  # noqa: N818 - not an error: the run will go on elsewhere
    """SIGTERM or Ctrl-C: the step was finished and a checkpoint was written."""

    exit_code = ExitCode.INTERRUPTED
    reason = "Interrupted"


class OutOfGPUMemory(RunError):  # noqa: N818
    """The GPU's memory does not hold the run; the message says what would help."""

    exit_code = ExitCode.OUT_OF_GPU_MEMORY
    reason = "OutOfGPUMemory"
