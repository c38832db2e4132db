"""Finds out whether the cells of a TSV file are quoted.

By its registration (IANA, text/tab-separated-values), TSV has no quoting: a quote is a character like any other, and a
cell contains neither tabs nor newlines. But pandas, Python, R and spreadsheets quote cells of TSV files as in CSV. The
text of a cell that is quoted depends on this, so it is decided by the whole file, and reported whenever it matters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune_trainer.data.cache import cache_key, remember
from finetune_trainer.data.fingerprints import content_hash
from finetune_trainer.data.readers.text_files import UTF8_BOM

CELL = re.compile(r'(?:\A|(?<=\t))("(?:[^"]|"")*"(?=\t|\Z)|[^\t]*)')
NUMBER = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?|")
ALL_WRITERS = 0b111


def is_quoted(file: Path, parse_as_quoted: Callable[[], Iterator[str | None]]) -> bool:
    """Whether a file can only be the output of a program that quotes cells as in CSV.

    Args:
        file: the file.
        parse_as_quoted: parses the file in this way; yields its records as text, None for a malformed one.
    """
    return bool(_examine(file, parse_as_quoted)["quoted"])


def notes(file: Path, quoted: bool) -> Iterator[str]:
    """How the quotes of a file are read, if it has a cell that begins with one."""
    line = _examine(file, lambda: iter(()))["line"]
    if line and quoted:
        yield f"its cells are quoted as in CSV, e.g. on line {line}; the quotes are not part of the text"
    elif line:
        yield f"a cell on line {line} begins with a quote; TSV has no quoting, so the quotes are part of the text"


def is_written_quoted(cell: str) -> bool:
    """Whether a cell is quoted, and has a quote inside that is written as two."""
    text = cell[1:-1]
    return _is_cell_quoted(cell) and '""' in text and '"' not in text.replace('""', "")


def _examine(file: Path, parse_as_quoted: Callable[[], Iterator[str | None]]) -> dict[str, Any]:
    def examine() -> dict[str, Any]:
        line = _first_quote(file)
        return {"line": line, "quoted": bool(line) and _is_file_quoted(parse_as_quoted())}

    found: dict[str, Any] = remember("tsv-quoting", cache_key(1, content_hash(file)), examine)
    return found


def _first_quote(file: Path) -> int | None:
    """The number of the first line with a cell that begins with a quote."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.removeprefix(UTF8_BOM).startswith(b'"') or b'\t"' in line:
                return number
    return None


def _is_file_quoted(records: Iterator[str | None]) -> bool:
    """Whether one way to quote explains all records: no cell is quoted without need, and none lacks its quotes."""
    writers = ALL_WRITERS
    for record in records:
        writers &= 0 if record is None else _possible_writers(record)
        if not writers:
            return False
    return True


def _possible_writers(record: str) -> int:
    """The writers that can have written a record, as bits: minimal quoting, that of Excel, all texts."""
    if '"' not in record:
        return 0b001 | (("," not in record) << 1) | (_are_numbers(record.split("\t")) << 2)
    cells = CELL.findall(record)
    minimal = all(_is_cell_quoted(cell) == _needs_quotes(cell, '"\t\r\n') for cell in cells)
    excel = all(_is_cell_quoted(cell) == _needs_quotes(cell, '"\t\r\n,') for cell in cells)
    return minimal | (excel << 1) | (_are_numbers([cell for cell in cells if not _is_cell_quoted(cell)]) << 2)


def _is_cell_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _needs_quotes(cell: str, special: str) -> bool:
    text = cell[1:-1] if _is_cell_quoted(cell) else cell
    return any(character in text for character in special)


def _are_numbers(cells: list[str]) -> bool:
    return all(NUMBER.fullmatch(cell) for cell in cells)
