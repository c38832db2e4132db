"""Finds the files of a data set: which format, which splits, and those of the split that is asked for.

A repository of the hub is downloaded into the hub's own cache, and is then a folder like any other: no code of a
repository is ever run, a pinned revision is the one that is read, and without the network the cache will do.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Features
from datasets.data_files import (
    SPLIT_KEYWORDS,
    DataFilesDict,
    EmptyDatasetError,
    get_data_patterns,
    sanitize_patterns,
)
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData, constants, snapshot_download
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import disable_progress_bars

from finetune_api.data import DataSource, Validation
from finetune_api.sources import locate
from finetune_trainer import hub
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data.inside import is_inside, refusal
from finetune_trainer.errors import RunError, UserError

TABLES: Mapping[str, str] = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
}
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
ANY = [f"*{end}" for end in (*TABLES, *IMAGES, *map(str.upper, IMAGES))]
EXPECTED = "parquet, jsonl, json, csv, or a folder of images"

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables beside images; their column `file_name` says which image a row is about."""

ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "README.md", ".huggingface.yaml")
"""Files that tell about data, and hold none."""

DEFAULT_SPLIT = {"data.train": "train", "data.validation": "validation", "data.test": "test"}


@dataclass(frozen=True)
class Layout:
    """The files of one split of a data set.

    Args:
        field: the part of the manifest that names the data set, such as `data.train`.
        source: as it says.
        folder: what paths are relative to.
        root: what no link may lead out of: the claim, or the hub's cache, which itself consists of links.
        format: which of the readers reads the files.
        files: in order.
        split: what they are a split of.
        features: what the repository's card says of the columns.
    """

    field: str
    source: str
    folder: Path
    root: Path
    format: str
    files: tuple[Path, ...]
    split: str
    features: Features | None = None

    @property
    def said(self) -> str:
        return f"{self.field}.source"

    def show(self, file: Path) -> str:
        """A file as a person would look for it."""
        if locate(self.source).scheme == "hf":
            return f"{self.source}/{file.relative_to(self.folder)}"
        return str(file)

    def error(self, problem: str, cause: BaseException | None = None) -> RunError:
        """What is wrong with the files; or, if the cause may pass, with the disk or the machine."""
        kind = RunError if cause is not None and hub.is_transient(cause) else UserError
        return kind(f"{self.said}: {self.source}: {problem}")


def find(source: DataSource | Validation, field: str, claim_paths: ClaimPaths) -> Layout:
    """The files of the split that is asked for.

    Raises:
        UserError: there is no such data set, configuration, revision or split, or nothing in it that can be read.
        RunError: the hub cannot be reached now.
    """
    assert source.source is not None, "a fraction is no source"
    if locate(source.source).scheme == "hf":
        folder = _download(source, field, ["README.md", ".huggingface.yaml"])
        configured = _configured(folder, source, field)
        folder = _download(source, field, _wanted(configured, source, field) if configured else ANY)
        root = Path(constants.HF_HUB_CACHE).resolve()
    else:
        folder = claim_paths.existing(source.source, f"{field}.source")
        root = claim_paths.folder(locate(source.source).name).resolve()
        _check_inside([folder, *(folder / name for name in ABOUT)], root, source, field)
        configured = None if folder.is_file() else _configured(folder, source, field)
    if configured is not None:
        layout = _from_card(folder, root, configured, source, field)
    elif source.config:
        raise UserError(
            f"{field}.config: {source.source} has no configurations, so {source.config!r} is none of them; leave it out"
        )
    else:
        layout = _from_files(folder, root, source, field)
    if layout.format != "images":  # those are rows, and each is looked at as one
        _check_inside(layout.files, root, source, field)
    return layout


def check_apart(layout: Layout, train: Layout) -> None:
    """Refuse to judge a model on what it learned by heart.

    Raises:
        UserError: a file of the training set is one of this data set, too.
    """
    known = dict(zip(_real_paths(train.files), train.files, strict=True))
    for file, path in zip(layout.files, _real_paths(layout.files), strict=True):
        if path in known:
            raise UserError(
                f"{layout.said}: {layout.source} reads {layout.show(file)}, and that is {train.show(known[path])} of "
                f"{train.said} ({train.source}): what was learned by heart would look good; name another split or "
                "other files"
            )


def _real_paths(files: Sequence[Path]) -> list[str]:
    """Where files are, once all links are followed."""
    folder = cache(os.path.realpath)  # there may be a million images in it
    return [os.path.realpath(file) if file.is_symlink() else f"{folder(file.parent)}/{file.name}" for file in files]


def _check_inside(paths: Sequence[Path], root: Path, source: DataSource | Validation, field: str) -> None:
    for path in paths:
        if not is_inside(path, root):
            raise UserError(
                f"{field}.source: {source.source}: {path} is a link that leads out of the claim: put the data "
                "themselves there, or make what it leads to a claim of its own"
            )


def nearest(wanted: str, there: Sequence[str]) -> str:
    """What there is, the nearest first if one is near."""
    near = difflib.get_close_matches(wanted, there, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? It has {', '.join(there)}" if near else f"it has {', '.join(there)}"


# -- the hub


def _download(source: DataSource | Validation, field: str, patterns: list[str]) -> Path:
    assert source.source is not None, "a repository has a source"
    repository = hub.Repository(field, source.source, source.revision, "dataset")
    disable_progress_bars()  # the run has a display of its own
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # a repository without a card is none of the user's troubles
    try:
        return Path(
            snapshot_download(
                repository.name,
                repo_type="dataset",
                revision=source.revision,
                allow_patterns=patterns,
            )
        )
    except Exception as error:
        told = hub.explain(error, repository)
        raise told or RunError(
            f"{field}.source: {source.source}: cannot be downloaded: {type(error).__name__}: {hub.first_line(error)}"
        ) from error


# -- a card that says where the data are


def _configured(folder: Path, source: DataSource | Validation, field: str) -> MetadataConfigs | None:
    """The configurations that a data set's card describes; None when it leaves that to the files."""
    card = folder / "README.md"
    try:
        data = DatasetCard.load(card).data if card.is_file() else DatasetCardData()
        configs = MetadataConfigs.from_dataset_card_data(data)
    except Exception as error:
        end = RunError if hub.is_transient(error) else UserError
        raise end(f"{field}.source: {source.source}: its README.md cannot be read: {hub.first_line(error)}") from error
    described = {name: config for name, config in configs.items() if config.get("data_files") or config.get("data_dir")}
    return MetadataConfigs(described) if described else None


def _config_name(configs: MetadataConfigs, source: DataSource | Validation, field: str) -> str:
    there = list(configs)
    if source.config:
        if source.config not in configs:
            hint = nearest(source.config, there)
            raise UserError(f"{field}.config: {source.source} has no configuration {source.config!r}; {hint}")
        return source.config
    default: str | None = configs.get_default_config_name() or (there[0] if len(there) == 1 else None)
    if default is None:
        raise UserError(f"{field}.config: {source.source} has several configurations; say one of {', '.join(there)}")
    return default


def _wanted(configs: MetadataConfigs, source: DataSource | Validation, field: str) -> list[str]:
    """Patterns of the files that one configuration is made of."""
    config = configs[_config_name(configs, source, field)]
    base = f"{config['data_dir'].strip('/')}/" if config.get("data_dir") else ""
    flat = _patterns(config) or ["**"]
    anywhere = [pattern.removeprefix("**/") for pattern in flat]  # the hub's `**/` wants a folder, the library's none
    return [base + pattern for pattern in dict.fromkeys([*flat, *anywhere])]


def _patterns(config: Mapping[str, Any]) -> list[str]:
    """All patterns of a configuration, whatever splits they are for."""
    files: Any = config.get("data_files") or []
    parts = [files] if isinstance(files, str) else files
    patterns = [part["path"] if isinstance(part, dict) else part for part in parts]
    return [one for pattern in patterns for one in ([pattern] if isinstance(pattern, str) else pattern)]


def _from_card(
    folder: Path, root: Path, configs: MetadataConfigs, source: DataSource | Validation, field: str
) -> Layout:
    """The files of one configuration; those of the others need not be here."""
    name = _config_name(configs, source, field)
    assert source.source is not None, "a fraction is no source"
    config, resolved = configs[name], folder.resolve()
    for path in filter(None, (config.get("data_dir"), *_patterns(config))):
        if refused := refusal(path, folder, root):
            raise UserError(f"{field}.source: {source.source}: configuration {name!r} of its README.md: {refused}")
    base = str(resolved / (config.get("data_dir") or ""))
    try:
        infos = DatasetInfosDict.from_directory(str(folder))
        files = config.get("data_files")
        patterns = sanitize_patterns(files) if files is not None else get_data_patterns(base)
        found = DataFilesDict.from_patterns(patterns, base_path=base)
        splits = {str(split): [folder / Path(it).relative_to(resolved) for it in its] for split, its in found.items()}
    except Exception as error:  # whatever the library makes of what somebody wrote
        end = RunError if hub.is_transient(error) else UserError
        raise end(f"{field}.source: {source.source}: its README.md: {hub.first_line(error)}") from error
    split = _choose(splits, source, field)
    kind = _format(splits[split])
    if kind is None:
        raise UserError(f"{field}.source: {source.source}: expected {EXPECTED}{_instead(splits[split])}")
    features = infos[name].features if name in infos else None
    return Layout(field, source.source, folder, root, kind, _of_format(kind, splits[split]), split, features)


# -- files that speak for themselves


def _from_files(folder: Path, root: Path, source: DataSource | Validation, field: str) -> Layout:
    assert source.source is not None, "a fraction is no source"
    try:
        splits = {"train": [folder]} if folder.is_file() else _splits(folder)
    except (ValueError, OSError) as error:
        end = RunError if hub.is_transient(error) else UserError
        raise end(f"{field}.source: {source.source}: {hub.first_line(error)}") from error
    everything = [file for files in splits.values() for file in files]
    kind = _format(everything)
    if kind is None:
        raise UserError(
            f"{field}.source: {source.source}: no data in {folder}: expected {EXPECTED}{_instead(everything)}"
        )
    chosen = {split: kept for split, files in splits.items() if (kept := _of_format(kind, files))}
    split = _choose(chosen, source, field)
    base = folder.parent if folder.is_file() else folder
    return Layout(field, source.source, base, root, kind, chosen[split], split)


def _splits(folder: Path) -> dict[str, list[Path]]:
    """All files by split, as the names of files and folders tell it."""
    os.scandir(folder).close()  # the library takes a folder that cannot be looked into for an empty one
    try:
        found = DataFilesDict.from_patterns(get_data_patterns(str(folder.resolve())), base_path=str(folder.resolve()))
    except (EmptyDatasetError, FileNotFoundError):
        return {}
    root = folder.resolve()
    # A table of images lies above the splits whose folders it tells about: then it is all one.
    named = {str(split): [folder / Path(file).relative_to(root) for file in files] for split, files in found.items()}
    above = [folder / name for name in METADATA if (folder / name).is_file()]
    if above and len(named) > 1 and not any(set(above) & set(files) for files in named.values()):
        return {"train": above}
    return named


def _format(files: Sequence[Path]) -> str | None:
    """The reader for these: tables before images, because tables can name images, but images no tables."""
    data = [file for file in files if file.name not in ABOUT]
    if any(file.name in METADATA for file in data):
        return "metadata"
    kinds = Counter(TABLES[file.suffix.lower()] for file in data if file.suffix.lower() in TABLES)
    if kinds:
        return kinds.most_common(1)[0][0]
    return "images" if any(file.suffix.lower() in IMAGES for file in data) else None


def _of_format(kind: str, files: Sequence[Path]) -> tuple[Path, ...]:
    def belongs(file: Path) -> bool:
        if kind == "metadata":
            return file.name in METADATA
        if kind == "images":
            return file.suffix.lower() in IMAGES
        return TABLES.get(file.suffix.lower()) == kind and file.name not in ABOUT

    return tuple(file for file in files if belongs(file))


def _instead(files: Sequence[Path]) -> str:
    others = sorted({file.suffix for file in files} - {""})
    return f", found {', '.join(others)} files" if others else "; it is empty"


def _choose(splits: Mapping[str, Any], source: DataSource | Validation, field: str) -> str:
    there = list(splits)
    wanted = source.split or DEFAULT_SPLIT[field]
    if wanted in there:
        return wanted
    if source.split is None and len(there) == 1:
        return there[0]
    hint = nearest(_called(wanted, there), there)
    raise UserError(f"{field}.split: {source.source} has no split {wanted!r}; {hint}")


def _called(wanted: str, there: Sequence[str]) -> str:
    """What the data set calls a split that has many names, such as `dev`, `val` and `validation`."""
    for names in SPLIT_KEYWORDS.values():
        if wanted in names:
            return next((name for name in there if name in names), wanted)
    return wanted
