"""Keeps a dataset inside its own folder: its author is not trusted to name other files of the machine."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

EXPECTED = "expected a path relative to the dataset's folder, without '..'"


def check_path(path: str, folder: Path, root: Path) -> str | None:
    """Check a path that a dataset names.

    Args:
        path: as the dataset names it.
        folder: folder of the dataset.
        root: folder that symbolic links must not leave, as in `DataFiles.root`.

    Returns:
        Why the path is rejected, or None if it is allowed.
    """
    if "://" in path or "::" in path:
        return f"{path!r} is a URL: {EXPECTED}"
    if PurePosixPath(path).is_absolute():
        return f"{path!r} is an absolute path: {EXPECTED}"
    if ".." in PurePosixPath(path).parts:
        return f"{path!r} is outside the dataset's folder: {EXPECTED}"
    if not is_inside(folder / path, root):
        return f"{path!r} is a symbolic link to a target outside the claim: replace the link with the file"
    return None


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path is inside `root` after all symbolic links are resolved. `root` must be resolved already."""
    return Path(os.path.realpath(path)).is_relative_to(root)
