"""Internals of `datasets`: how file names map to splits, how a dataset card describes files, and the builders.

Used as of datasets 5.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.data_files import (
    SPLIT_KEYWORDS,
    DataFilesDict,
    DataFilesList,
    EmptyDatasetError,
    get_data_patterns,
    sanitize_patterns,
)
from datasets.exceptions import DatasetGenerationError
from datasets.info import DatasetInfosDict
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

__all__ = [
    "DatasetGenerationError",
    "EmptyDatasetError",
    "MetadataConfigs",
    "build_table",
    "cache_folder",
    "card_features",
    "cast_table",
    "read_card_configs",
    "resolve_splits",
    "split_aliases",
]

BUILDERS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "parquet": (Parquet, {}),
    "json": (Json, {"parse_agent_traces": False}),
    "arrow": (Arrow, {}),
    "images": (ImageFolder, {"drop_labels": False}),
}
"""By format: the builder class and the arguments of its config."""


def resolve_splits(base_path: Path, data_files: Any = None) -> dict[str, list[Path]]:
    """The files of each split.

    Args:
        base_path: folder that patterns are relative to.
        data_files: patterns as in a dataset card; None infers the splits from the names of files and folders.

    Raises:
        EmptyDatasetError: there are no data files.
    """
    patterns = get_data_patterns(str(base_path)) if data_files is None else sanitize_patterns(data_files)
    resolved = DataFilesDict.from_patterns(patterns, base_path=str(base_path))
    return {str(split): [Path(file) for file in files] for split, files in resolved.items()}


def split_aliases() -> list[list[str]]:
    """Groups of split names with the same meaning, such as `dev`, `val`, `valid` and `validation`."""
    return list(SPLIT_KEYWORDS.values())


def read_card_configs(card: DatasetCardData) -> MetadataConfigs:
    """The configurations in the YAML header of a dataset card."""
    return MetadataConfigs.from_dataset_card_data(card)


def card_features(folder: Path, config: str) -> datasets.Features | None:
    """The columns that the dataset card in a folder declares for a configuration, if it does."""
    infos = DatasetInfosDict.from_directory(str(folder))
    return infos[config].features if config in infos else None


def build_table(
    format: str, files: Sequence[Path], split: str, features: datasets.Features | None, fingerprint: str
) -> tuple[pa.Table, datasets.Features]:
    """Read files into a memory-mapped Arrow table in the cache, or take it from there.

    Args:
        format: key of `BUILDERS`.
        files: absolute paths, in order.
        split: name of the split.
        features: expected columns; None infers them.
        fingerprint: key of the cache entry; has to change when a file changes.

    Raises:
        Exception: any that a builder raises on malformed files.
    """
    builder_class, options = BUILDERS[format]
    paths = DataFilesList([str(file) for file in files], [(fingerprint,)])
    builder = builder_class(
        dataset_name=format,
        data_files=DataFilesDict({split: paths}),
        features=features,
        hash=fingerprint,
        **options,
    )
    builder.download_and_prepare()
    if not builder.info.splits.total_num_examples:
        return pa.table({}), datasets.Features()
    dataset = builder.as_dataset(split=split)
    return dataset.data.table, dataset.features


def cast_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Cast the columns of a table, including extension types such as images.

    Raises:
        ValueError, TypeError, KeyError, pa.ArrowException: a column cannot have that type.
    """
    return datasets.table.table_cast(table, schema)


def cache_folder() -> Path:
    """The cache of `datasets`, by default in HF_HOME."""
    return Path(datasets.config.HF_DATASETS_CACHE)
