"""Resolves `data.train`, `data.validation` and `data.test` to files.

A repository of the Hugging Face Hub is downloaded into its cache first and is then read like any other folder, so a
pinned revision is honored, and cached files are enough without network access.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from finetune_api.data import DataSource, Validation
from finetune_api.sources import locate
from finetune_trainer import hub
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.compat.hf_datasets import EmptyDatasetError, MetadataConfigs, resolve_splits, split_aliases
from finetune_trainer.data.card import config_files, config_patterns, read_configs
from finetune_trainer.data.data_files import DataFiles, describe_choices
from finetune_trainer.data.download import download_repository
from finetune_trainer.data.formats import (
    DATA_PATTERNS,
    DESCRIPTION_FILES,
    METADATA_FILES,
    SUPPORTED_FORMATS,
    describe_other_files,
    detect_format,
    files_of_format,
)
from finetune_trainer.data.paths import is_inside
from finetune_trainer.errors import RunError, UserError

DEFAULT_SPLIT = {"data.train": "train", "data.validation": "validation", "data.test": "test"}


def resolve_files(source: DataSource | Validation, field: str, claim_paths: ClaimPaths) -> DataFiles:
    """The files of the selected split.

    Args:
        source: the dataset, its configuration, revision and split.
        field: path of the field that names it, such as `data.train`.
        claim_paths: folders of the claims.

    Raises:
        UserError: there is no such dataset, configuration, revision or split, or it has no readable files.
        RunError: the Hugging Face Hub is unreachable.
    """
    assert source.source is not None, "validation by fraction has no source"
    if locate(source.source).scheme == "hf":
        folder = download_repository(source, field, ["README.md", ".huggingface.yaml"])
        configs = read_configs(folder, source, field)
        patterns = config_patterns(configs, source, field) if configs else DATA_PATTERNS
        folder = download_repository(source, field, patterns)
        root = Path(constants.HF_HUB_CACHE).resolve()
    else:
        folder = claim_paths.resolve(source.source, f"{field}.source")
        root = claim_paths.folder(locate(source.source).name).resolve()
        _check_inside([folder, *(folder / name for name in DESCRIPTION_FILES)], root, source, field)
        configs = None if folder.is_file() else read_configs(folder, source, field)
    data_files = _resolve(folder, root, configs, source, field)
    if data_files.format != "images":  # each image is a row, and is checked as one
        _check_inside(data_files.files, root, source, field)
    return data_files


def _resolve(
    folder: Path, root: Path, configs: MetadataConfigs | None, source: DataSource | Validation, field: str
) -> DataFiles:
    if configs is not None:
        return _from_card(folder, root, configs, source, field)
    if source.config:
        raise UserError(
            f"{field}.config: {source.source} has no configurations, so {source.config!r} does not exist; leave it out"
        )
    return _from_file_names(folder, root, source, field)


def _from_card(
    folder: Path, root: Path, configs: MetadataConfigs, source: DataSource | Validation, field: str
) -> DataFiles:
    """The files of one configuration; those of the others may be missing."""
    assert source.source is not None, "validation by fraction has no source"
    splits, features = config_files(folder, root, configs, source, field)
    split = _select_split(splits, source, field)
    format = detect_format(splits[split])
    if format is None:
        found = describe_other_files(splits[split])
        raise UserError(f"{field}.source: {source.source}: expected {SUPPORTED_FORMATS}{found}")
    files = files_of_format(format, splits[split])
    return DataFiles(field, source.source, folder, root, format, files, split, features)


def _from_file_names(folder: Path, root: Path, source: DataSource | Validation, field: str) -> DataFiles:
    assert source.source is not None, "validation by fraction has no source"
    try:
        splits = {"train": [folder]} if folder.is_file() else _infer_splits(folder)
    except (ValueError, OSError) as error:
        kind = RunError if hub.is_transient(error) else UserError
        raise kind(f"{field}.source: {source.source}: {hub.first_line(error)}") from error
    all_files = [file for files in splits.values() for file in files]
    format = detect_format(all_files)
    if format is None:
        found = describe_other_files(all_files)
        raise UserError(f"{field}.source: {source.source}: no data in {folder}: expected {SUPPORTED_FORMATS}{found}")
    of_format = {split: kept for split, files in splits.items() if (kept := files_of_format(format, files))}
    split = _select_split(of_format, source, field)
    base = folder.parent if folder.is_file() else folder
    return DataFiles(field, source.source, base, root, format, of_format[split], split)


def _infer_splits(folder: Path) -> dict[str, list[Path]]:
    """All files by split, inferred from the names of files and folders."""
    os.scandir(folder).close()  # raises for an unreadable folder, which datasets treats as empty
    resolved_folder = folder.resolve()
    try:
        resolved = resolve_splits(resolved_folder)
    except (EmptyDatasetError, FileNotFoundError):
        return {}
    splits = {
        split: [folder / file.relative_to(resolved_folder) for file in files] for split, files in resolved.items()
    }
    # A metadata file at the top of a folder describes the images of all split folders: they are one split.
    metadata = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if metadata and len(splits) > 1 and not any(set(metadata) & set(files) for files in splits.values()):
        return {"train": metadata}
    return splits


def _check_inside(paths: Sequence[Path], root: Path, source: DataSource | Validation, field: str) -> None:
    for path in paths:
        if not is_inside(path, root):
            raise UserError(
                f"{field}.source: {source.source}: {path} is a symbolic link to a target outside the claim: copy the "
                "data into the claim, or mount the target as a claim of its own"
            )


def _select_split(splits: Mapping[str, Any], source: DataSource | Validation, field: str) -> str:
    names = list(splits)
    split = source.split or DEFAULT_SPLIT[field]
    if split in names:
        return split
    if source.split is None and len(names) == 1:
        return names[0]
    hint = describe_choices(_find_alias(split, names), names)
    raise UserError(f"{field}.split: {source.source} has no split {split!r}; {hint}")


def _find_alias(split: str, names: Sequence[str]) -> str:
    """The name among these with the same meaning as `split`, e.g. `dev` for `validation`; else `split` itself."""
    for aliases in split_aliases():
        if split in aliases:
            return next((name for name in names if name in aliases), split)
    return split
