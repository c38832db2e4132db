"""The file formats of datasets, by file name extension."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

TABLE_FORMATS: Mapping[str, str] = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
}
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
DATA_PATTERNS = [f"*{suffix}" for suffix in (*TABLE_FORMATS, *IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))]
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


def detect_format(files: Sequence[Path]) -> str | None:
    """The format of a dataset: the most common one of its tables, else images; None without data files.

    Tables take precedence over images, because a table can refer to images but not the other way round.
    """
    data_files = [file for file in files if file.name not in DESCRIPTION_FILES]
    if any(file.name in METADATA_FILES for file in data_files):
        return "metadata"
    suffixes = [file.suffix.lower() for file in data_files]
    counts = Counter(TABLE_FORMATS[suffix] for suffix in suffixes if suffix in TABLE_FORMATS)
    if counts:
        return counts.most_common(1)[0][0]
    return "images" if any(suffix in IMAGE_SUFFIXES for suffix in suffixes) else None


def files_of_format(format: str, files: Sequence[Path]) -> tuple[Path, ...]:
    """The files that have this format, in order."""

    def has_format(file: Path) -> bool:
        if format == "metadata":
            return file.name in METADATA_FILES
        if format == "images":
            return file.suffix.lower() in IMAGE_SUFFIXES
        return TABLE_FORMATS.get(file.suffix.lower()) == format and file.name not in DESCRIPTION_FILES

    return tuple(file for file in files if has_format(file))


def describe_other_files(files: Sequence[Path]) -> str:
    """What a folder without data contains, as the end of an error message."""
    suffixes = sorted({file.suffix for file in files} - {""})
    return f", found {', '.join(suffixes)} files" if suffixes else "; it is empty"
