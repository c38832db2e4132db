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
from finetune_trainer.data.download import download_repository, list_other_files
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
        location = _Location(source, field, folder, root, list_other_files(source, folder))
    else:
        folder = claim_paths.resolve(source.source, f"{field}.source")
        root = claim_paths.folder(locate(source.source).name).resolve()
        _check_inside([folder, *(folder / name for name in DESCRIPTION_FILES)], root, source, field)
        configs = None if folder.is_file() else read_configs(folder, source, field)
        location = _Location(source, field, folder, root)
    data_files = _select_files(_find_files(location, configs), location)
    if data_files.format != "images":  # each image is a row, and is checked as one
        _check_inside(data_files.files, root, source, field)
    return data_files


@dataclass(frozen=True)
class _Location:
    """Where a dataset is on this machine.

    Args:
        source: the dataset as in the manifest.
        field: path of the field that names it.
        folder: its folder, or its only file.
        root: folder that symbolic links must not leave.
        not_downloaded: paths of the files of a repository that are not in the folder.
    """

    source: DataSource | Validation
    field: str
    folder: Path
    root: Path
    not_downloaded: Sequence[str] = ()

    @property
    def prefix(self) -> str:
        """Start of the messages about the dataset."""
        return f"{self.field}.source: {self.source.source}: "

    def error(self, problem: str, cause: BaseException | None = None) -> RunError:
        """A RunError if the cause is transient, else a UserError."""
        kind = RunError if cause is not None and hub.is_transient(cause) else UserError
        return kind(self.prefix + problem)


@dataclass(frozen=True)
class _FoundFiles:
    """All files of a dataset, before a split is selected.

    Args:
        folder: folder that relative paths in the data start from.
        layout: splits, and what is left out because of its name.
        start: folder that the paths of the layout are relative to.
        features: the columns that the dataset card declares.
        listing: what else there is, if the files were found by their names.
    """

    folder: Path
    layout: Layout
    start: Path
    features: Features | None = None
    listing: Listing = field(default_factory=Listing)


def _find_files(location: _Location, configs: MetadataConfigs | None) -> _FoundFiles:
    folder, source = location.folder, location.source
    if configs is None:
        if source.config:
            raise UserError(
                f"{location.field}.config: {source.source} has no configurations, so {source.config!r} does not exist; "
                "leave it out"
            )
        return _find_by_name(location)
    found = config_files(folder, location.root, configs, source, location.field)
    if found.splits is None:
        return _find_by_name(location, found)
    splits = {
        split: tuple(file.relative_to(folder).as_posix() for file in files) for split, files in found.splits.items()
    }
    classes = {path: PurePosixPath(path).parts[-2:-1] for paths in splits.values() for path in paths}
    return _FoundFiles(folder, Layout(splits, class_folders=classes), folder, found.features)


def _find_by_name(location: _Location, config: ConfigFiles = NO_CONFIG) -> _FoundFiles:
    """The files of a folder, or of one configuration, whose names determine the splits; or a single file."""
    folder, start = location.folder, location.folder / config.data_dir
    try:
        if folder.is_file():
            listing = Listing([folder.name])
            folder = start = folder.parent
        else:
            listing = list_files(start, location.root)
        paths = (folder / path for path in location.not_downloaded)
        others = [path.relative_to(start).as_posix() for path in paths if path.is_relative_to(start)]
        layout = infer_layout([*listing.files, *others])
    except (OSError, ValueError) as error:
        raise location.error(hub.first_line(error), error) from error
    if not layout.splits:
        left_out = {**listing.left_out, **layout.left_out}
        found = describe_other_files([PurePosixPath(path) for path in (*listing.files, *left_out)])
        found += f" ({described})" if (described := describe_left_out(left_out)) else ""
        raise location.error(f"no data in {start}: expected {SUPPORTED_FORMATS}{found}")
    return _FoundFiles(folder, layout, start, config.features, listing)


def _select_files(found: _FoundFiles, location: _Location) -> DataFiles:
    """The files of the selected split that have its most common format."""
    layout, source = found.layout, location.source
    assert source.source is not None, "validation by fraction has no source"
    split = _select_split(layout.splits, source, location.field)
    paths = [PurePosixPath(path) for path in layout.splits[split]]
    format = detect_format(paths)
    if format is None:
        raise location.error(f"expected {SUPPORTED_FORMATS}{describe_other_files(paths)}")
    kept = files_of_format(format, paths)
    others = {str(path): f"of another format than {format}" for path in paths if path not in set(kept)}
    data_files = DataFiles(
        location.field,
        source.source,
        found.folder,
        location.root,
        format,
        tuple(found.start / path for path in kept),
        split,
        found.features,
    )
    notes = list(_notes(data_files, {**found.listing.left_out, **layout.left_out, **others}, layout))
    if format == "images":
        classes, class_notes = _find_classes(found, [str(path) for path in kept], location)
        data_files = replace(data_files, classes=classes)
        notes += class_notes
    return replace(data_files, notes=tuple(location.prefix + note for note in notes))


def _find_classes(found: _FoundFiles, paths: Sequence[str], location: _Location) -> tuple[tuple[str, ...], list[str]]:
    """The class of each image, and notes about what may be a mistake."""
    try:
        classes, notes = image_classes({path: found.layout.class_folders[path] for path in paths}, found.start.name)
    except ValueError as error:
        raise location.error(str(error)) from error
    empty = found.listing.empty_folders
    return (
        tuple(classes[path] for path in paths),
        [*notes, *([f"empty folders are no classes: {join_some(empty)}"] if empty else [])],
    )


def _notes(data_files: DataFiles, left_out: Mapping[str, str], layout: Layout) -> Iterator[str]:
    """Messages about everything in the folder that is not read."""
    others = {split: files for split, files in layout.splits.items() if split != data_files.split}
    if described := describe_left_out(left_out, others):
        files = pluralize(len(data_files.files), "file")
        yield f"reading {files} of split {data_files.split!r}; not read: {described}"
    if layout.num_referenced:
        yield f"{pluralize(layout.num_referenced, 'image')} beside the tables: read only where a row names them"
    yield from layout.notes


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
