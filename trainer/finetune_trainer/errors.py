"""Errors that end a run, each with the exit code and the reason that the operator reads.

    RunError                exit code 1, Failed
    ├── UserError           exit code 2, InvalidJob
    ├── Interrupted         exit code 75, Interrupted
    ├── OutOfGPUMemory      exit code 77, OutOfGPUMemory
    └── TrainingDiverged    exit code 78, Diverged

Every other exception is a bug or a crash.
"""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode


class RunError(Exception):
    """A run that cannot continue. The message is one sentence with the cause and the remedy."""

    exit_code = ExitCode.FAILED
    reason = "Failed"


class UserError(RunError):
    """An invalid spec, model or dataset.

    The message names the field or file, the value, what was expected, and the nearest valid choice.
    """

    exit_code = ExitCode.INVALID
    reason = "InvalidJob"


class Interrupted(RunError):  # noqa: N818 - not an error: the next attempt resumes the run
    """A stop was requested by a signal. After the first step, the step was finished and a checkpoint was written."""

    exit_code = ExitCode.INTERRUPTED
    reason = "Interrupted"


class OutOfGPUMemory(RunError):  # noqa: N818
    """The run does not fit into GPU memory. The message names the settings that need less."""

    exit_code = ExitCode.OUT_OF_GPU_MEMORY
    reason = "OutOfGPUMemory"


class TrainingDiverged(RunError):  # noqa: N818
    """Too many steps had a loss or gradients that were not finite. Another attempt with the same spec would, too."""

    exit_code = ExitCode.DIVERGED
    reason = "Diverged"


class HubUnreachable(RunError):  # noqa: N818
    """The Hugging Face Hub cannot be reached; a retry can help."""


class NotInHubCache(UserError):  # noqa: N818
    """A repository of the Hugging Face Hub is not in the cache, and downloads are disabled."""


OUT_OF_REACH = (HubUnreachable, NotInHubCache)
"""What is wrong with this machine rather than with the job, which another machine may run."""
