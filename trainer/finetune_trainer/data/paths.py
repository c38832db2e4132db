"""Keeps a dataset inside its own folder: its author is not trusted to name other files of the machine."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

MAX_PATH_LENGTH = 4095
"""Limit of Linux; longer text in a column of paths is something else, such as an image as base64."""
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
    if len(path) > MAX_PATH_LENGTH:
        return f"expected a path, found text of {len(path):,} characters: {path[:20]!r}..."
    if not _is_encodable(path):
        return f"{path!r} is not a valid path"
    if "://" in path or "::" in path:
        return f"{path!r} is a URL: {EXPECTED}"
    if PurePosixPath(path).is_absolute():
        return f"{path!r} is an absolute path: {EXPECTED}"
    if ".." in PurePosixPath(path).parts:
        return f"{path!r} is outside the dataset's folder: {EXPECTED}"
    if not is_inside(folder / path, root):
        return f"{path!r} is a symbolic link to a target outside the claim: replace the link with the file"
    return None


def _is_encodable(path: str) -> bool:
    """Whether the file system can have such a path."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON may contain
        return False


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path is inside `root` after all symbolic links are resolved. `root` must be resolved already."""
    return Path(os.path.realpath(path)).is_relative_to(root)
