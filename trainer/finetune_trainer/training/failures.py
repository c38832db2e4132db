"""Recognizes an exception that another attempt would only repeat.

An attempt records its exception beside the checkpoints. If the next one fails after the same step with the same
exception, the failure is permanent: it is reported as such instead of being retried.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from finetune_trainer.errors import RunError, UserError

FAILURE_FILE = "failure.json"
MAX_MESSAGE_LENGTH = 500
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


@dataclass(frozen=True)
class Failure:
    """An exception that ended an attempt.

    Args:
        type: name of its class.
        message: its message, without memory addresses.
        step: optimizer steps done before it.
    """

    type: str
    message: str
    step: int

    @classmethod
    def of(cls, error: Exception, step: int) -> Failure:
        text = _ADDRESS.sub("0x…", " ".join(str(error).split()))
        return cls(type(error).__name__, text[:MAX_MESSAGE_LENGTH], step)


def is_caused_by_input(error: Exception) -> bool:
    """Whether an exception may be raised by what is computed, and not by a disk, a network, a GPU or too little memory.

    An assertion on a GPU checks an index, and so the input.
    """
    if isinstance(error, (OSError, MemoryError, torch.OutOfMemoryError)):
        return False
    return not isinstance(error, torch.AcceleratorError) or "device-side assert" in str(error)


@contextmanager
def detecting_repeated_failures(folder: Path, get_step: Callable[[], int]) -> Iterator[None]:
    """Record an exception within the context, and refuse to retry it when it is the one of the attempt before.

    Args:
        folder: folder of the checkpoints.
        get_step: returns the optimizer steps done.

    Raises:
        UserError: the attempt before failed with the same exception after the same step.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        failure = Failure.of(error, get_step())
        if not is_caused_by_input(error):
            raise
        if read_failure(folder) == failure:
            raise UserError(
                f"two attempts failed after step {failure.step} with the same exception, so another one would too: "
                f"{failure.type}: {failure.message}"
            ) from error
        with suppress(OSError):
            (folder / FAILURE_FILE).write_text(json.dumps(asdict(failure)))
        raise


def read_failure(folder: Path) -> Failure | None:
    """The exception of the attempt before, if it was recorded."""
    try:
        return Failure(**json.loads((folder / FAILURE_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def forget_failure(folder: Path) -> None:
    """Delete the record, for a run that starts over."""
    (folder / FAILURE_FILE).unlink(missing_ok=True)
