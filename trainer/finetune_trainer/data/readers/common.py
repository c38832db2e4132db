"""What the readers share: empty files, and errors of the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from finetune_trainer.data.data_files import DataFiles
from finetune_trainer.errors import RunError

UTF8_BOM = b"\xef\xbb\xbf"

ProgressCallback: TypeAlias = Callable[[int, int], None]
"""Receives how many bytes have been read, of how many. It may raise, to interrupt."""


@contextmanager
def os_errors(data_files: DataFiles) -> Iterator[None]:
    """Report an OSError as one of the dataset."""
    try:
        yield
    except OSError as error:
        raise data_files.error(f"cannot be read: {error}", error) from error


def empty_error(data_files: DataFiles) -> RunError:
    files = ", ".join(map(data_files.display_path, data_files.files[:3]))
    return data_files.error(f"the dataset is empty: no rows in {files}")


def without_empty_files(data_files: DataFiles) -> DataFiles:
    """The files that are not blank: empty shards of a dataset are common.

    Raises:
        UserError: all of them are blank.
    """
    if files := tuple(file for file in data_files.files if not _is_blank(file)):
        return replace(data_files, files=files)
    raise empty_error(data_files)


def _is_blank(file: Path) -> bool:
    """Whether a file contains only whitespace, or an empty JSON list."""
    content = b""
    with file.open("rb") as opened:
        while len(content) <= len(UTF8_BOM + b"[]") and (chunk := opened.read(1 << 16)):
            content += b"".join(chunk.split())
    return content.removeprefix(UTF8_BOM) in (b"", b"[]")
