"""Reads the files of a layout into one table, and keeps what they say of their columns.

The library reads parquet, JSON, Arrow and folders of images into memory-mapped Arrow files in HF_HOME. CSV is read
here, because only an empty cell is missing, whatever other tools make of "NA"; and torn lines are found here, because
behind the library's readers there are no lines any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet

from finetune_trainer.data.bad_rows import BadRows
from finetune_trainer.data.dataset import Dataset, Files
from finetune_trainer.data.layout import TABLES, Layout
from finetune_trainer.errors import UserError
from finetune_trainer.hub import first_line

BUILDERS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "parquet": (Parquet, {}),
    "json": (Json, {"parse_agent_traces": False}),
    "arrow": (Arrow, {}),
    "images": (ImageFolder, {"drop_labels": False}),
}
CLEANED = "finetune-cleaned"
"""Where copies of files go that leave torn lines out."""


Numbers: TypeAlias = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Table:
    """The rows of a split, with all columns.

    Args:
        layout: the files.
        data: what they hold.
        features: what the files and the data set's card say of the columns.
        places: where the rows are in the files.
    """

    layout: Layout
    data: pa.Table
    features: datasets.Features
    places: RowPlaces

    @property
    def columns(self) -> list[str]:
        return list(self.data.column_names)

    def dataset(self, names: Mapping[str, str], every_image: bool = False) -> Dataset:
        """The rows with these roles."""
        kinds = {role: self.features[name] for role, name in names.items()}
        columns = {role: self.data.column(name) for role, name in names.items()}
        if self.layout.format == "csv" and "label" in columns:
            columns["label"] = _numbered(columns["label"])
        return Dataset(
            Files(self.layout.said, self.layout.folder, self.places.where),
            columns,
            names,
            np.arange(self.data.num_rows),
            {role: tuple(kind.names) for role, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)},
            {role: _decoder(kind) for role, kind in kinds.items() if _holds_json(kind)},
            every_image,
        )


@dataclass(frozen=True)
class RowPlaces:
    """Where rows are in their files.

    Args:
        layout: the files.
        numbers: for each file, the numbers of its rows; made when somebody asks, because nobody may.
        word: what is numbered.
    """

    layout: Layout
    numbers: Callable[[], Sequence[Numbers]]
    word: str = "row"

    def where(self, row: int) -> str:
        """File and line of a row, as a person would look for it."""
        numbers = self.numbers()
        ends = list(accumulate(map(len, numbers)))
        file = int(np.searchsorted(ends, row, side="right"))
        number = numbers[file][row - ends[file] + len(numbers[file])]
        return f"{self.layout.show(self.layout.files[file])}, {self.word} {number}"

    def files(self) -> list[Path]:
        """The file of each row."""
        pairs = zip(self.layout.files, self.numbers(), strict=True)
        return [file for file, numbers in pairs for _ in numbers]


def read(layout: Layout, bad_rows: BadRows) -> Table:
    """Everything that can be read.

    Raises:
        UserError: something cannot be read, or the files do not have the same columns.
    """
    table = _READERS[layout.format](layout, bad_rows)
    if not table.data.num_rows:
        raise _empty(layout)
    return table


def count(layout: Layout, bad_rows: BadRows) -> int:
    """How many rows there are: from footers alone where files have them."""
    if layout.format == "parquet":
        return sum(len(rows) for rows in _footers(layout))
    return len(layout.files) if layout.format == "images" else read(layout, bad_rows).data.num_rows


def _empty(layout: Layout) -> UserError:
    return layout.error(f"the data set is empty: no rows in {', '.join(map(layout.show, layout.files[:3]))}")


# -- what the library reads


def _read_parquet(layout: Layout, _: BadRows) -> Table:
    footers = _footers(layout)
    filled = [file for file, rows in zip(layout.files, footers, strict=True) if rows]  # the library fails on others
    if not filled:
        raise _empty(layout)
    return Table(layout, *_build(layout, filled), RowPlaces(layout, lambda: footers))


def _read_arrow(layout: Layout, _: BadRows) -> Table:
    data, features = _build(layout, layout.files)
    whole = replace(layout, files=(layout.folder,))
    return Table(layout, data, features, RowPlaces(whole, lambda: [range(data.num_rows)]))


def _read_images(layout: Layout, _: BadRows) -> Table:
    return Table(layout, *_build(layout, layout.files), RowPlaces(layout, lambda: [range(1)] * len(layout.files)))


def _read_json(layout: Layout, bad_rows: BadRows) -> Table:
    @cache
    def lines() -> list[np.ndarray]:
        return [np.flatnonzero(good) + 1 for good in map(_good_lines, layout.files)]

    places = RowPlaces(layout, lambda: lines(), "line")  # noqa: PLW0108 - mypy knows a cached function as no function
    try:
        return Table(layout, *_build(layout, layout.files), places)
    except _Unreadable as error:
        torn = [(file, line) for file in layout.files for line in _torn_lines(file)]
        if not torn:
            raise layout.error(str(error)) from error
        for file, (number, problem) in torn:
            bad_rows.meet(layout.said, f"{layout.said}: {layout.show(file)}, line {number}: {problem}")
    try:
        return Table(layout, *_build(layout, _cleaned(layout)), places)
    except _Unreadable as error:
        raise layout.error(str(error)) from error


class _Unreadable(Exception):  # noqa: N818
    """The library cannot make a table of these files."""


def _build(layout: Layout, files: Sequence[Path]) -> tuple[pa.Table, datasets.Features]:
    """Let the library read; what it has read before is taken from its cache, unless a file has changed."""
    builder_class, options = BUILDERS[layout.format]
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it has to say comes as an error, too
    version = _fingerprint(files)
    paths = DataFilesList([str(file) for file in files], [(version,)])
    try:
        builder = builder_class(
            dataset_name=layout.format,
            data_files=DataFilesDict({layout.split: paths}),
            features=layout.features,
            hash=version,
            **options,
        )
        builder.download_and_prepare()
        built = builder.as_dataset(split=layout.split)
    except (datasets.exceptions.DatasetsError, pa.ArrowException, ValueError, TypeError, KeyError) as error:
        if layout.format == "json":
            raise _Unreadable(_reason(error)) from error
        raise layout.error(_reason(error)) from error
    except OSError as error:
        raise layout.error(f"cannot be read into {datasets.config.HF_DATASETS_CACHE}: {error}") from error
    return built.data.table, built.features


def _reason(error: BaseException) -> str:
    """What the library's reader said, not what the library says about it."""
    cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
    return f"cannot be read: {first_line(cause or error)}"


def _fingerprint(files: Sequence[Path]) -> str:
    """Another one when a file changes, even when it is put in place with the time of the old one."""
    digest = hashlib.sha256()
    for file in files:
        about = file.stat()
        digest.update(repr((str(file), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)).encode())
    return digest.hexdigest()[:32]


def _footers(layout: Layout) -> list[range]:
    """The rows of parquet files, from their footers."""
    found = []
    for file in layout.files:
        try:
            found.append(range(pq.ParquetFile(file).metadata.num_rows))
        except (pa.ArrowException, OSError) as error:
            shown = layout.show(file)
            raise layout.error(f"{shown} is not a parquet file that can be read: {first_line(error)}") from error
    return found


def _holds_json(kind: Any) -> bool:
    if isinstance(kind, Mapping):
        return any(map(_holds_json, kind.values()))
    inner = kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)
    return isinstance(kind, datasets.Json) or (inner is not None and _holds_json(inner))


def _decoder(kind: Any) -> Callable[[Any], Any]:
    """Values of many types are stored as JSON; this reads them back."""
    features = datasets.Features({"value": kind})
    return lambda value: features.decode_example({"value": value})["value"]


# -- lines of JSON


def _torn_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and problem of each line that is no object; of a file that is one list, the line where it breaks."""
    if _is_list(file):
        try:
            json.loads(file.read_bytes())
        except ValueError as error:
            yield getattr(error, "lineno", 1), f"the list is torn, and nothing of it can be used: {error}"
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip() and (problem := _line_problem(line)):
                yield number, problem


def _line_problem(line: bytes) -> str | None:
    try:
        value = json.loads(line)
    except ValueError as error:
        return f"not JSON: {error}"
    return None if isinstance(value, dict) else f"expected an object, found {str(value)[:60]!r}"


def _good_lines(file: Path) -> np.ndarray:
    """For each line, whether it is a row; the entries of a list count as lines."""
    if _is_list(file):
        return np.ones(len(json.loads(file.read_bytes())), dtype=bool)
    with file.open("rb") as lines:
        return np.array([bool(line.strip()) and _line_problem(line) is None for line in lines])


def _is_list(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _cleaned(layout: Layout) -> list[Path]:
    """Copies of the files without the lines that are torn."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / CLEANED / _fingerprint(layout.files)
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for number, file in enumerate(layout.files):
        copy, good = folder / f"{number}{file.suffix}", _good_lines(file)
        if not copy.exists():
            with file.open("rb") as lines:
                kept = [line for line, is_row in zip(lines, good, strict=True) if is_row]
            part = copy.with_suffix(".tmp")
            part.write_bytes(b"".join(line.rstrip(b"\r\n") + b"\n" for line in kept))
            part.replace(copy)
        copies.append(copy)
    return copies


# -- CSV


def _read_csv(layout: Layout, bad_rows: BadRows) -> Table:
    parts = [_csv(layout, file, bad_rows) for file in layout.files]
    try:
        data = pa.concat_tables([part for part, _ in parts])
    except pa.ArrowException as error:
        raise layout.error(f"the files do not have the same columns: {first_line(error)}") from error
    features, numbers = layout.features, [numbers for _, numbers in parts]
    if features is not None:
        try:
            data = datasets.table.table_cast(data.select(list(features)), features.arrow_schema)
        except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
            raise layout.error(f"the columns are not what its card says: {first_line(error)}") from error
    kinds = features or datasets.Features.from_arrow_schema(data.schema)
    return Table(layout, data, kinds, RowPlaces(layout, lambda: numbers))


def _csv(layout: Layout, file: Path, bad_rows: BadRows) -> tuple[pa.Table, np.ndarray]:
    """The rows of a file as text, and their numbers as a spreadsheet counts them: the header is row 1."""
    bad: dict[int, str] = {}

    def leave_out(row: Any) -> str:
        bad[row.number] = f"expected {row.expected_columns} cells, as in the header, found {row.actual_columns}"
        return "skip"

    separator = "\t" if file.suffix.lower() == ".tsv" else ","
    parsing = pacsv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=leave_out)
    one_by_one = pacsv.ReadOptions(use_threads=False)  # with threads, rows that are left out have no number
    try:
        header = pacsv.open_csv(file, one_by_one, parsing).schema.names
        as_bytes = pacsv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.binary()), null_values=[""], strings_can_be_null=True
        )
        bad.clear()
        table = pacsv.read_csv(file, one_by_one, parsing, as_bytes)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise layout.error(f"{layout.show(file)} cannot be read: {first_line(error)}") from error
    if twice := [name for name in header if header.count(name) > 1]:
        raise layout.error(f"{layout.show(file)} has two columns with the name {twice[0]!r}")
    numbers = np.setdiff1d(np.arange(2, 2 + table.num_rows + len(bad)), list(bad))
    table, numbers = _text(table, numbers, bad)
    for number, problem in sorted(bad.items()):
        bad_rows.meet(layout.said, f"{layout.said}: {layout.show(file)}, row {number}: {problem}")
    return table, numbers


def _text(table: pa.Table, numbers: np.ndarray, bad: dict[int, str]) -> tuple[pa.Table, np.ndarray]:
    """Bytes as the text that they are."""
    as_text = pa.schema([(name, pa.string()) for name in table.column_names])
    try:
        return table.cast(as_text), numbers
    except pa.ArrowException:
        good = np.array([all(map(_is_utf8, row.values())) for row in table.to_pylist()])
        bad.update(dict.fromkeys(numbers[~good].tolist(), "not UTF-8"))
        return table.filter(pa.array(good)).cast(as_text), numbers[good]


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _numbered(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """A CSV knows text alone: labels that are all whole numbers are meant as numbers."""
    try:
        return labels.cast(pa.int64())
    except pa.ArrowException:
        return labels


# -- a table beside images


def _read_metadata(layout: Layout, bad_rows: BadRows) -> Table:
    """A table of images: its column `file_name` says, from the table's own folder, which image a row is about."""
    kinds = {TABLES[file.suffix.lower()] for file in layout.files}
    if len(kinds) > 1:
        shown = ", ".join(map(layout.show, layout.files))
        raise layout.error(f"expected metadata files of one format, found {shown}")
    table = _READERS[kinds.pop()](replace(layout, format=TABLES[layout.files[0].suffix.lower()]), bad_rows)
    if "file_name" not in table.columns:
        shown = layout.show(layout.files[0])
        raise layout.error(f"{shown} has no column 'file_name', which names the images; it has {table.columns}")
    names = table.data.column("file_name").to_pylist()
    pairs = zip(table.places.files(), names, strict=True)
    paths = [None if name is None else str(file.parent / str(name)) for file, name in pairs]
    data = table.data.append_column("image", pa.array(paths, pa.string())).drop_columns(["file_name"])
    features = {name: kind for name, kind in table.features.items() if name != "file_name"}
    return replace(table, data=data, features=datasets.Features({**features, "image": datasets.Value("string")}))


_READERS: Mapping[str, Callable[[Layout, BadRows], Table]] = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "images": _read_images,
    "json": _read_json,
    "csv": _read_csv,
    "metadata": _read_metadata,
}
