"""The file formats of datasets, by file name extension."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import PurePath
from typing import TypeVar

from finetune_trainer.data.images import image_suffixes

PathType = TypeVar("PathType", bound=PurePath)

TABLE_FORMATS: Mapping[str, str] = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
}
SUPPORTED_FORMATS = "parquet, jsonl, json, csv, or a folder of images"

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables next to images; their column `file_name` names the image of each row."""

DESCRIPTION_FILES = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "README.md",
    ".huggingface.yaml",
)
"""Files that describe a dataset and contain no rows."""


def file_format(path: PurePath) -> str | None:
    """The format of a file: `metadata`, `images`, or that of a table; None for a file without rows."""
    if path.name in DESCRIPTION_FILES:
        return None
    if path.name in METADATA_FILES:
        return "metadata"
    suffix = path.suffix.lower()
    return "images" if suffix in image_suffixes() else TABLE_FORMATS.get(suffix)


def detect_format(files: Sequence[PurePath]) -> str | None:
    """The format of a dataset: the most common one of its tables, else images; None without data files.

    Tables take precedence over images, because a table can refer to images but not the other way round.
    """
    counts = Counter(found for file in files if (found := file_format(file)))
    if "metadata" in counts:
        return "metadata"
    tables = [found for found, _ in counts.most_common() if found != "images"]
    return tables[0] if tables else next(iter(counts), None)


def files_of_format(format: str, files: Sequence[PathType]) -> tuple[PathType, ...]:
    """The files that have this format, in order."""
    return tuple(file for file in files if file_format(file) == format)


@cache
def download_patterns() -> tuple[str, ...]:
    """Glob patterns of all data files, in upper and lower case."""
    return tuple(f"*{_any_case(suffix)}" for suffix in sorted({*TABLE_FORMATS, *image_suffixes()}))


def _any_case(suffix: str) -> str:
    return "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in suffix)


def describe_other_files(files: Sequence[PurePath]) -> str:
    """What a folder without data contains, as the end of an error message."""
    if not files:
        return "; it is empty"
    suffixes = sorted({file.suffix for file in files} - {""})
    return f", found {', '.join(suffixes)} files" if suffixes else ", found files without an extension"
