"""Keeps a data set to its own folder: whoever wrote its files is not whoever runs the job, and names no other files."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

EXPECTED = "expected a path inside the data set's folder, from there, without '..'"


def refusal(path: str, folder: Path, root: Path) -> str | None:
    """Why a path that a data set names is not followed; None where it may be.

    Args:
        path: as the data set names it.
        folder: the data set's.
        root: what no link may lead out of, as `Layout` has it.
    """
    if "://" in path or "::" in path:
        return f"{path!r} is a URL: {EXPECTED}"
    if PurePosixPath(path).is_absolute():
        return f"{path!r} is an absolute path: {EXPECTED}"
    if ".." in PurePosixPath(path).parts:
        return f"{path!r} leads out of its folder: {EXPECTED}"
    if not is_inside(folder / path, root):
        return f"{path!r} is a link that leads out of the claim: put the file itself there"
    return None


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path is in `root` once all links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(root)
