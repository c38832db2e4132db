"""The files of one split of a dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from datasets import Features

from finetune_api.sources import locate
from finetune_api.suggestions import closest_match
from finetune_trainer import hub
from finetune_trainer.errors import RunError, UserError


@dataclass(frozen=True)
class DataFiles:
    """The files of one split of a dataset.

    Args:
        field: path of the field that names the dataset, such as `data.train`.
        source: `hf://org/repo` or `pvc://claim/path`.
        folder: folder that relative paths start from.
        root: folder that symbolic links must not leave: the claim, or the cache of the Hugging Face Hub, in which files
            are symbolic links.
        format: key of the reader.
        files: the files, in order.
        split: name of the split.
        features: columns declared by the dataset card.
        classes: the class of each file, for a folder of images.
        notes: what is left out, and what may be a mistake, for the user.
    """

    field: str
    source: str
    folder: Path
    root: Path
    format: str
    files: tuple[Path, ...]
    split: str
    features: Features | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def field_path(self) -> str:
        return f"{self.field}.source"

    def display_path(self, file: Path) -> str:
        """The path of a file as shown in messages: inside the repository, or on disk."""
        if locate(self.source).scheme == "hf":
            return f"{self.source}/{file.relative_to(self.folder)}"
        return str(file)

    def error(self, problem: str, cause: BaseException | None = None) -> RunError:
        """A RunError if the cause is transient, else a UserError."""
        kind = RunError if cause is not None and hub.is_transient(cause) else UserError
        return kind(f"{self.field_path}: {self.source}: {problem}")


def check_no_overlap(data_files: DataFiles, train: DataFiles) -> None:
    """Reject an evaluation set that shares files with the training set.

    Raises:
        UserError: a file is in both.
    """
    train_files = dict(zip(_real_paths(train.files), train.files, strict=True))
    for file, path in zip(data_files.files, _real_paths(data_files.files), strict=True):
        if path in train_files:
            raise UserError(
                f"{data_files.field_path}: {data_files.source} reads {data_files.display_path(file)}, which is also "
                f"training data: {train.display_path(train_files[path])} of {train.field_path} ({train.source}); "
                "evaluating on training data overestimates quality: select another split or other files"
            )


def describe_choices(name: str, choices: Sequence[str]) -> str:
    """The valid choices instead of `name`, and the closest one if there is any, as the end of an error message."""
    closest = closest_match(name, choices)
    hint = f"; did you mean {closest!r}?" if closest else ""
    return f"available: {', '.join(choices)}{hint}"


def _real_paths(files: Sequence[Path]) -> list[str]:
    """Paths with all symbolic links resolved."""
    resolve_folder = cache(os.path.realpath)  # one system call per folder: it may contain a million images
    return [
        os.path.realpath(file) if file.is_symlink() else f"{resolve_folder(file.parent)}/{file.name}" for file in files
    ]
