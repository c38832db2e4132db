"""What goes wrong with the hub, in the words of the manifest; and whether trying again may help."""

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

from finetune_trainer.errors import RunError, UserError

PASSING = {
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
"""Troubles of a disk, a network or a machine that have an end."""

HOW_TO_GET_IN = (
    "accept its licence on its page of the hub, and put a token of yours in HF_TOKEN "
    "(on a cluster: runtime.env with a key of a Secret)"
)


@dataclass(frozen=True)
class Repository:
    """A repository as the manifest names it.

    Args:
        field: the part of the manifest, such as `model` or `data.train`.
        source: `hf://org/repo`.
        revision: the pinned revision, if there is one.
        kind: what the hub calls it.
    """

    field: str
    source: str
    revision: str | None
    kind: Literal["model", "dataset"]

    @property
    def name(self) -> str:
        return self.source.removeprefix("hf://")


def explain(error: BaseException, repository: Repository) -> RunError | None:
    """What a failure to load a repository means for the user; None when the hub has nothing to do with it."""
    chain = list(causes(error))
    said = f"{repository.field}.source: {repository.source}"
    if any(isinstance(cause, RevisionNotFoundError) for cause in chain):
        return UserError(
            f"{repository.field}.revision: {repository.source} has no revision {repository.revision or 'main'!r}; "
            "expected a branch, a tag or a whole commit hash"
        )
    if any(isinstance(cause, GatedRepoError) for cause in chain) or _status(chain) == 403:
        return UserError(f"{said}: this {repository.kind} is gated, and the hub does not let us in: {HOW_TO_GET_IN}")
    if any(isinstance(cause, RepositoryNotFoundError) for cause in chain) or _status(chain) == 401:
        return UserError(
            f"{said}: the hub has no {repository.kind} {repository.name!r} that we may see; check its name, or, "
            f"if it is private or gated: {HOW_TO_GET_IN}"
        )
    missing = any(isinstance(cause, OfflineModeIsEnabled | LocalEntryNotFoundError) for cause in chain)
    if constants.HF_HUB_OFFLINE and missing:
        at = f" at revision {repository.revision!r}" if repository.revision else ""
        return UserError(
            f"{said}: not in the cache ({constants.HF_HUB_CACHE}){at}, and HF_HUB_OFFLINE forbids to download it; "
            "download it once with the network, or unset HF_HUB_OFFLINE"
        )
    if may_pass(error):
        return RunError(f"{said}: the hub ({constants.ENDPOINT}) cannot be reached now: {first_line(chain[-1])}")
    return None


def may_pass(error: BaseException) -> bool:
    """Whether trying again may help: the hub or the disk is in trouble, not the job."""
    chain = list(causes(error))
    # By name: which HTTP library the hub's client uses is its own affair, and changes.
    unreachable = any(kind.__name__ == "TransportError" for cause in chain for kind in type(cause).__mro__)
    status = _status(chain)
    passing = any(
        isinstance(cause, TimeoutError | ConnectionError) or (isinstance(cause, OSError) and cause.errno in PASSING)
        for cause in chain
    )
    return unreachable or status == 429 or status >= 500 or passing


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, the last cause last."""
    seen: set[int] = set()  # errors that are raised again can lead back to themselves
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """What an error says, without what comes after."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _status(chain: list[BaseException]) -> int:
    """The last answer of the hub; 0 for none."""
    found = [getattr(getattr(cause, "response", None), "status_code", 0) for cause in chain]
    return next((status for status in found if status), 0)
