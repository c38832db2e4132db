"""Translates errors of the Hugging Face Hub into messages about the manifest, and classifies transient errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_trainer.errors import HubUnreachable, NotInHubCache, RunError, UserError

TRANSIENT_ERRNOS = {
    errno.EIO,
    errno.ESTALE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
}
"""Errors of a disk, a network or a machine for which a retry can help."""

ACCESS_HELP = (
    "accept its license on its Hugging Face Hub page, and set HF_TOKEN to an access token "
    "(on a cluster: from a Secret, with runtime.env)"
)


@dataclass(frozen=True)
class Repository:
    """A repository as the manifest names it.

    Args:
        field: path of the field that names it, such as `model` or `data.train`.
        source: `hf://org/repo`.
        revision: the pinned revision, if any.
        kind: type of the repository on the Hugging Face Hub.
    """

    field: str
    source: str
    revision: str | None
    kind: Literal["model", "dataset"]

    @property
    def name(self) -> str:
        return self.source.removeprefix("hf://")


def explain(error: BaseException, repository: Repository) -> RunError | None:
    """The error to show for a repository that could not be loaded.

    Returns:
        A UserError if the manifest or the environment has to change, a RunError if a retry can help, and None if the
        Hugging Face Hub did not cause the error.
    """
    chain = list(exception_chain(error))
    prefix = f"{repository.field}.source: {repository.source}"
    if any(isinstance(cause, RevisionNotFoundError) for cause in chain):
        return UserError(
            f"{repository.field}.revision: {repository.source} has no revision {repository.revision or 'main'!r}; "
            "expected a branch, a tag or a full commit hash"
        )
    if any(isinstance(cause, GatedRepoError) for cause in chain) or _status_code(chain) == 403:
        return UserError(f"{prefix}: this {repository.kind} is gated, and access was denied: {ACCESS_HELP}")
    if any(isinstance(cause, RepositoryNotFoundError) for cause in chain) or _status_code(chain) == 401:
        return UserError(
            f"{prefix}: the {repository.kind} {repository.name!r} was not found on the Hugging Face Hub; check its "
            f"name, or, if it is private or gated: {ACCESS_HELP}"
        )
    is_missing = any(isinstance(cause, OfflineModeIsEnabled | LocalEntryNotFoundError) for cause in chain)
    if constants.HF_HUB_OFFLINE and is_missing:
        revision = f" at revision {repository.revision!r}" if repository.revision else ""
        return NotInHubCache(
            f"{prefix}: not in the cache ({constants.HF_HUB_CACHE}){revision}, and HF_HUB_OFFLINE disables downloads; "
            "download it once with network access, or unset HF_HUB_OFFLINE"
        )
    if is_transient(error):
        return HubUnreachable(
            f"{prefix}: the Hugging Face Hub ({constants.ENDPOINT}) is unreachable: {first_line(chain[-1])}"
        )
    return None


def is_transient(error: BaseException) -> bool:
    """Whether a retry can help: the cause is a network, a disk or the machine, not the job."""
    chain = list(exception_chain(error))
    # By name: the HTTP library of huggingface_hub is an implementation detail and has changed before.
    is_unreachable = any(kind.__name__ == "TransportError" for cause in chain for kind in type(cause).__mro__)
    status = _status_code(chain)
    has_transient_cause = any(
        isinstance(cause, TimeoutError | ConnectionError)
        or (isinstance(cause, OSError) and cause.errno in TRANSIENT_ERRNOS)
        for cause in chain
    )
    return is_unreachable or status == 429 or status >= 500 or has_transient_cause


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, the root cause last."""
    seen: set[int] = set()  # a re-raised error can be its own indirect cause
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """The first line of an error message, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _status_code(chain: list[BaseException]) -> int:
    """The HTTP status of the first error in the chain that has one, or 0."""
    codes = [getattr(getattr(cause, "response", None), "status_code", 0) for cause in chain]
    return next((code for code in codes if code), 0)
