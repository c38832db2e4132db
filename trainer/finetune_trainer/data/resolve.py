"""Resolves `data.train`, `data.validation` and `data.test` to files.

A repository of the Hugging Face Hub is downloaded into its cache first and is then read like any other folder, so a
pinned revision is honored, and cached files are enough without network access.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from datasets import Features
from huggingface_hub import constants

from finetune_api.data import DataSource, Validation
from finetune_api.sources import locate
from finetune_trainer import hub
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.compat.hf_datasets import MetadataConfigs, split_aliases
from finetune_trainer.data.card import ConfigFiles, config_files, config_patterns, read_configs
from finetune_trainer.data.data_files import DataFiles, describe_choices
from finetune_trainer.data.download import download_repository
from finetune_trainer.data.formats import (
    DESCRIPTION_FILES,
    SUPPORTED_FORMATS,
    describe_other_files,
    detect_format,
    download_patterns,
    files_of_format,
)
from finetune_trainer.data.layout import Layout, describe_left_out, image_classes, infer_layout
from finetune_trainer.data.listing import Listing, list_files
from finetune_trainer.data.paths import is_inside
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.formatting import join_some, pluralize

NO_CONFIG = ConfigFiles("", None, None)
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
        patterns = config_patterns(configs, source, field) if configs else list(download_patterns())
        folder = download_repository(source, field, patterns)
        root = Path(constants.HF_HUB_CACHE).resolve()
    else:
        folder = claim_paths.resolve(source.source, f"{field}.source")
        root = claim_paths.folder(locate(source.source).name).resolve()
        _check_inside([folder, *(folder / name for name in DESCRIPTION_FILES)], root, source, field)
        configs = None if folder.is_file() else read_configs(folder, source, field)
    data_files = _select_files(_find_files(folder, root, configs, source, field), source, field)
    if data_files.format != "images":  # each image is a row, and is checked as one
        _check_inside(data_files.files, root, source, field)
    return data_files


@dataclass(frozen=True)
class _FoundFiles:
    """All files of a dataset, before a split is selected.

    Args:
        folder, root: as in `DataFiles`.
        layout: their splits.
        features: the columns that the dataset card declares.
        listing: what else there is, if the files were found by their names.
        start: folder that the paths of the layout are relative to.
    """

    folder: Path
    root: Path
    layout: Layout
    start: Path
    features: Features | None = None
    listing: Listing = field(default_factory=Listing)


def _find_files(
    folder: Path, root: Path, configs: MetadataConfigs | None, source: DataSource | Validation, field: str
) -> _FoundFiles:
    if configs is None:
        if source.config:
            raise UserError(
                f"{field}.config: {source.source} has no configurations, so {source.config!r} does not exist; "
                "leave it out"
            )
        return _find_by_name(folder, root, source, field)
    found = config_files(folder, root, configs, source, field)
    if found.splits is None:
        return _find_by_name(folder, root, source, field, found)
    splits = {
        split: tuple(file.relative_to(folder).as_posix() for file in files) for split, files in found.splits.items()
    }
    classes = {path: PurePosixPath(path).parts[-2:-1] for paths in splits.values() for path in paths}
    return _FoundFiles(folder, root, Layout(splits, class_folders=classes), folder, found.features)


def _find_by_name(
    folder: Path,
    root: Path,
    source: DataSource | Validation,
    field: str,
    config: ConfigFiles = NO_CONFIG,
) -> _FoundFiles:
    """The files of a folder, or of one configuration, whose names determine the splits; or a single file."""
    start = folder / config.data_dir
    try:
        if folder.is_file():
            listing = Listing([folder.name])
            folder = start = folder.parent
        else:
            listing = list_files(start, root)
        layout = infer_layout(listing.files)
    except (OSError, ValueError) as error:
        kind = RunError if hub.is_transient(error) else UserError
        raise kind(f"{field}.source: {source.source}: {hub.first_line(error)}") from error
    if not layout.splits:
        left_out = {**listing.left_out, **layout.left_out}
        found = describe_other_files([PurePosixPath(path) for path in (*listing.files, *listing.left_out)])
        found += f" ({described})" if (described := describe_left_out(left_out)) else ""
        raise UserError(f"{field}.source: {source.source}: no data in {start}: expected {SUPPORTED_FORMATS}{found}")
    return _FoundFiles(folder, root, layout, start, config.features, listing)


def _select_files(found: _FoundFiles, source: DataSource | Validation, field: str) -> DataFiles:
    """The files of the selected split that have its most common format."""
    assert source.source is not None, "validation by fraction has no source"
    splits = found.layout.splits
    split = _select_split(splits, source, field)
    paths = [PurePosixPath(path) for path in splits[split]]
    format = detect_format(paths)
    if format is None:
        raise UserError(f"{field}.source: {source.source}: expected {SUPPORTED_FORMATS}{describe_other_files(paths)}")
    kept = files_of_format(format, paths)
    files = tuple(found.start / path for path in kept)
    data_files = DataFiles(field, source.source, found.folder, found.root, format, files, split, found.features)
    others = {str(path): f"of another format than {format}" for path in paths if path not in set(kept)}
    notes = _notes(data_files, {**found.listing.left_out, **found.layout.left_out, **others}, found.layout)
    if format != "images":
        return replace(data_files, notes=tuple(notes))
    class_folders = {str(path): found.layout.class_folders[str(path)] for path in kept}
    try:
        classes, class_notes = image_classes(class_folders, found.start.name)
    except ValueError as error:
        raise data_files.error(str(error)) from error
    empty = [f"empty folders are no classes: {join_some(empty)}"] if (empty := found.listing.empty_folders) else []
    all_notes = (*notes, *(f"{field}.source: {source.source}: {note}" for note in (*class_notes, *empty)))
    return replace(data_files, classes=tuple(classes[str(path)] for path in kept), notes=all_notes)


def _notes(data_files: DataFiles, left_out: Mapping[str, str], layout: Layout) -> Iterator[str]:
    """Messages about everything in the folder that is not read."""
    prefix = f"{data_files.field_path}: {data_files.source}: "
    others = {split: files for split, files in layout.splits.items() if split != data_files.split}
    if described := describe_left_out(left_out, others):
        files = pluralize(len(data_files.files), "file")
        yield f"{prefix}reading {files} of split {data_files.split!r}; not read: {described}"
    if layout.num_referenced:
        images = pluralize(layout.num_referenced, "image")
        yield f"{prefix}{images} beside the tables: read only where a row names them"
    yield from (prefix + note for note in layout.notes)


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
