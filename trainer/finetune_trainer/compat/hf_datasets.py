"""Internals of `datasets`: how file names map to splits, how a dataset card describes files, and types of columns.

Used as of datasets 5.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
from datasets.data_files import (
    SPLIT_KEYWORDS,
    DataFilesDict,
    sanitize_patterns,
)
from datasets.features.features import generate_from_arrow_type
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

__all__ = [
    "Feature",
    "MetadataConfigs",
    "cache_folder",
    "card_features",
    "cast_table",
    "feature_from_arrow",
    "read_card_configs",
    "resolve_splits",
    "split_aliases",
]

Feature: TypeAlias = Any
"""The type of a column: `Value`, `ClassLabel`, `Image` and so on, or a mapping or list of them."""


def resolve_splits(base_path: Path, data_files: Any) -> dict[str, list[Path]]:
    """The files of each split of a dataset card.

    Args:
        base_path: folder that patterns are relative to.
        data_files: patterns as in the card.

    Raises:
        FileNotFoundError: there are no data files.
    """
    resolved = DataFilesDict.from_patterns(sanitize_patterns(data_files), base_path=str(base_path))
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


def feature_from_arrow(type: pa.DataType) -> Feature:
    """The feature for values of an Arrow type.

    Raises:
        ValueError: `datasets` has none.
    """
    return generate_from_arrow_type(type)


def cast_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Cast the columns of a table, including extension types such as images.

    Raises:
        ValueError, TypeError, KeyError, pa.ArrowException: a column cannot have that type.
    """
    return datasets.table.table_cast(table, schema)


def cache_folder() -> Path:
    """The cache of `datasets`, by default in HF_HOME."""
    return Path(datasets.config.HF_DATASETS_CACHE)
