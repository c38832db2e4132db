"""Lists the files of a dataset's folder, including what cannot be read, so that nothing is left out in silence."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from finetune_trainer.data.paths import is_inside

BROKEN_LINK, OUTSIDE_LINK = "broken symbolic links", "links to folders outside the claim"
REPEATED_LINK, SPECIAL_FILE = "links to folders that are read anyway", "no regular files"
"""Reasons to leave an entry of a folder out."""


@dataclass
class Listing:
    """The entries of a folder and its subfolders, as paths relative to it.

    Args:
        files: regular files, and symbolic links to some.
        left_out: entries that are not read, with the reason.
        empty_folders: folders without any entry.
    """

    files: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    empty_folders: list[str] = field(default_factory=list)


def list_files(folder: Path, root: Path) -> Listing:
    """All files in a folder and its subfolders. Linked folders are followed if they are inside the claim.

    Args:
        folder: folder of the dataset.
        root: folder that symbolic links must not leave, resolved.

    Raises:
        OSError: a folder cannot be read.
    """
    listing = Listing()
    pending, real_folder = [""], os.path.realpath(folder)
    while pending:
        parent = pending.pop()
        entries = sorted(os.scandir(folder / parent), key=lambda entry: entry.name)
        if not entries:
            listing.empty_folders.append(parent.rstrip("/"))
        for entry in entries:
            path = f"{parent}{entry.name}"
            if reason := _reason_to_leave_out(entry, root, real_folder):
                listing.left_out[path] = reason
            elif entry.is_dir():
                pending.append(f"{path}/")
            else:
                listing.files.append(path)
    listing.files.sort()
    return listing


def _reason_to_leave_out(entry: os.DirEntry[str], root: Path, real_folder: str) -> str | None:
    if not entry.is_symlink():
        return None if entry.is_file() or entry.is_dir() else SPECIAL_FILE
    if entry.is_file():  # a link out of the claim is an error, or a bad row: see resolve and images
        return None
    if not entry.is_dir():
        return BROKEN_LINK
    if not is_inside(Path(entry.path), root):
        return OUTSIDE_LINK
    return REPEATED_LINK if _overlaps(os.path.realpath(entry.path), real_folder) else None


def _overlaps(target: str, real_folder: str) -> bool:
    """Whether a folder is in the dataset's folder, or contains it."""
    return os.path.commonpath([target, real_folder]) in (target, real_folder)
