"""Reads the files of a layout into one table, and keeps what they say of their columns.

The library reads parquet, JSON, Arrow and folders of images into memory-mapped Arrow files in HF_HOME. CSV is read
here, because only an empty cell is missing, whatever other tools make of "NA"; and torn lines are found here, because
behind the library's readers there are no lines any more.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet

from finetune_trainer.data.bad_rows import BadRows
from finetune_trainer.data.dataset import ROWS, Dataset, Files
from finetune_trainer.data.layout import TABLES, Layout
from finetune_trainer.errors import RunError
from finetune_trainer.hub import exception_chain, first_line, is_transient

BUILDERS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "parquet": (Parquet, {}),
    "json": (Json, {"parse_agent_traces": False}),
    "arrow": (Arrow, {}),
    "images": (ImageFolder, {"drop_labels": False}),
}
CLEANED = "finetune-cleaned"
"""Where copies of files go that leave torn lines out."""
CSV_BLOCK = 64 << 20
"""Bytes of a CSV that are read at once; a row has to fit in."""
WHOLE_NUMBER = "[+-]?[0-9]{1,18}"
"""What 64 bits hold."""
MARK = b"\xef\xbb\xbf"
"""What some editors begin a file of UTF-8 with."""
BETWEEN = re.compile(r"[\s,\[\]]*")
"""What stands between the entries of a list."""

Numbers: TypeAlias = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Table:
    """The rows of a split, with all columns.

    Args:
        layout: the files.
        data: what they hold.
        features: what the files and the data set's card say of the columns.
        row_locations: where the rows are in the files.
    """

    layout: Layout
    data: pa.Table
    features: datasets.Features
    row_locations: RowLocations

    @property
    def columns(self) -> list[str]:
        return list(self.data.column_names)

    def dataset(self, names: Mapping[str, str], every_image: bool = False) -> Dataset:
        """The rows with these roles."""
        kinds = {role: self.features[name] for role, name in names.items()}
        columns = {role: self.data.column(name) for role, name in names.items()}
        decoders = {role: _decoder(kind) for role, kind in kinds.items() if _holds_json(kind)}
        untyped = {"label"} & columns.keys() if self.layout.format == "csv" else set()
        numbers = {role: as_number for role in untyped if _are_numbers(columns[role])}
        return Dataset(
            Files(self.layout.said, self.layout.folder, self.layout.root, self.row_locations.where),
            columns,
            names,
            np.arange(self.data.num_rows),
            {role: tuple(kind.names) for role, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)},
            decoders | numbers,
            frozenset(untyped),
            every_image,
        )


@dataclass(frozen=True)
class RowLocations:
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
        try:
            numbers = self.numbers()
        except (OSError, ValueError):  # there may be no more files to open just now, which somebody wants to tell
            numbers = []
        ends = list(accumulate(map(len, numbers)))
        file = int(np.searchsorted(ends, row, side="right"))
        if file == len(numbers):  # rows that the library sees, and we do not
            return f"{', '.join(map(self.layout.show, self.layout.files[:3]))}, row {row}"
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
        RunError: the disk or the machine is in trouble.
    """
    with _reading(layout):
        table = _READERS[layout.format](layout, bad_rows)
    if not table.data.num_rows:
        raise _empty(layout)
    return table


def count(layout: Layout, bad_rows: BadRows) -> int:
    """How many rows there are: from footers alone where files have them."""
    if layout.format == "parquet":
        with _reading(layout):
            return sum(len(rows) for rows in _footers(_filled(layout)))
    return len(layout.files) if layout.format == "images" else read(layout, bad_rows).data.num_rows


def as_number(text: str) -> int | str:
    """What a cell of a column of numbers means; what is no number stays text, and is none of the classes."""
    return int(text) if re.fullmatch(WHOLE_NUMBER, text) else text


@contextmanager
def _reading(layout: Layout) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise layout.error(f"cannot be read: {error}", error) from error


def _empty(layout: Layout) -> RunError:
    return layout.error(f"the data set is empty: no rows in {', '.join(map(layout.show, layout.files[:3]))}")


def _filled(layout: Layout) -> Layout:
    """The files that hold anything: readers fail on others, though empty parts of a data set are common."""
    if filled := tuple(file for file in layout.files if not _is_blank(file)):
        return replace(layout, files=filled)
    raise _empty(layout)


def _is_blank(file: Path) -> bool:
    """Whether there is nothing in it but space, or a list of nothing."""
    begin = b""
    with file.open("rb") as opened:
        while len(begin) <= len(MARK + b"[]") and (part := opened.read(1 << 16)):
            begin += b"".join(part.split())
    return begin.removeprefix(MARK) in (b"", b"[]")


# -- what the library reads


def _read_parquet(layout: Layout, _: BadRows) -> Table:
    layout = _filled(layout)
    footers = _footers(layout)
    filled = [file for file, rows in zip(layout.files, footers, strict=True) if rows]  # the library fails on others
    if not filled:
        raise _empty(layout)
    return Table(layout, *_built(replace(layout, files=tuple(filled))), RowLocations(layout, lambda: footers))


def _read_arrow(layout: Layout, _: BadRows) -> Table:
    layout = _filled(layout)
    data, features = _built(layout)
    whole = replace(layout, files=(layout.folder,))
    return Table(layout, data, features, RowLocations(whole, lambda: [range(data.num_rows)]))


def _read_images(layout: Layout, _: BadRows) -> Table:
    data, features = _built(layout)
    paths = [file.relative_to(layout.folder).as_posix() for file in layout.files]  # as any data set names its images
    data = data.drop_columns(["image"]).append_column("image", pa.array(paths, pa.string()))
    features = datasets.Features({**features, "image": datasets.Value("string")})
    return Table(layout, data, features, RowLocations(layout, lambda: [range(1)] * len(layout.files)))


def _read_json(layout: Layout, bad_rows: BadRows) -> Table:
    layout = _filled(layout)

    @cache
    def lines() -> list[np.ndarray]:
        return list(map(_lines_of_rows, layout.files))

    row_locations = RowLocations(layout, lambda: lines(), "line")  # noqa: PLW0108 - mypy knows a cached function as no function
    try:
        return Table(layout, *_build(layout), row_locations)
    except _Unreadable as error:
        torn = [(file, line) for file in layout.files for line in _torn_lines(file)]
        if not torn:
            raise _culprit(layout, error) from error
        for file, (number, problem) in torn:
            bad_rows.meet(layout.said, f"{layout.said}: {layout.show(file)}, line {number}: {problem}")
    return Table(layout, *_built(layout, _cleaned(layout)), row_locations)


class _Unreadable(Exception):  # noqa: N818
    """The library cannot make a table of these files."""


def _built(layout: Layout, copies: Sequence[Path] = ()) -> tuple[pa.Table, datasets.Features]:
    """The library's table of the files, or of copies of them that take their place."""
    try:
        return _build(layout, copies)
    except _Unreadable as error:
        raise _culprit(layout, error, copies) from error


def _build(layout: Layout, copies: Sequence[Path] = ()) -> tuple[pa.Table, datasets.Features]:
    """Let the library read; what it has read before is taken from its cache, unless a file has changed."""
    files = copies or layout.files
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
        if not builder.info.splits.total_num_examples:
            return pa.table({}), datasets.Features()
        built = builder.as_dataset(split=layout.split)
    except Exception as error:  # whatever the library makes of files that somebody wrote
        if is_transient(error) or isinstance(error, OSError):
            into, trouble = (
                datasets.config.HF_DATASETS_CACHE,
                [it for it in exception_chain(error) if isinstance(it, OSError)],
            )
            raise layout.error(f"cannot be read into {into}: {first_line([error, *trouble][-1])}", error) from error
        raise _Unreadable(_reason(error)) from error
    return built.data.table, built.features


def _reason(error: BaseException) -> str:
    """What the library's reader said, not what the library says about it."""
    cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
    return f"cannot be read: {first_line(cause or error)}"


def _culprit(layout: Layout, error: _Unreadable, copies: Sequence[Path] = ()) -> RunError:
    """Which of the files does not go with the others, or with the data set's card, and in which column."""
    expected, model = layout.features, "the data set's card"
    for file, copy in zip(layout.files, copies or layout.files, strict=True):
        alone = replace(layout, files=(file,), features=None)
        try:
            data, features = _build(alone, [copy])
        except _Unreadable as problem:
            return layout.error(f"{layout.show(file)} {problem}")
        if not data.num_rows:
            continue
        if expected is None:
            expected, model = features, layout.show(file)
        elif difference := _difference(data, expected, model, layout.format == "json"):
            return layout.error(f"{layout.show(file)} {difference}")
    return layout.error(str(error))


def _difference(data: pa.Table, expected: datasets.Features, model: str, may_lack: bool = False) -> str | None:
    """Why rows cannot have these columns, with what they should be like; None where they can."""
    lacking = [name for name in expected if name not in data.column_names]
    extra = [name for name in data.column_names if name not in expected]
    if extra or (lacking and not may_lack):
        shown = (
            *(f"no column {name!r}" for name in lacking[:1]),
            *(f"a column {name!r} of its own" for name in extra[:1]),
        )
        return f"has {' and '.join(shown)}, unlike {model}: all files of a data set have the same columns"
    for name in data.column_names:
        wanted = datasets.Features({name: expected[name]}).arrow_schema
        try:
            datasets.table.table_cast(data.select([name]), wanted)
        except (pa.ArrowException, ValueError, TypeError, KeyError):
            found = data.schema.field(name).type
            return f"has {found} in column {name!r}, where {model} has {wanted.field(name).type}"
    return None


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
        except (pa.ArrowException, OSError) as error:  # a torn footer is an OSError
            problem = f"{layout.show(file)} is not a parquet file that can be read: {first_line(error)}"
            raise layout.error(problem, error) from error
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
    """Number and problem of each line that is no object; where rows are no lines, the line where it breaks."""
    if not _is_by_line(file):
        try:
            _first_lines(file)
        except ValueError as error:
            yield getattr(error, "lineno", 1), f"the file is torn, and nothing of it can be used: {error}"
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


def _lines_of_rows(file: Path) -> np.ndarray:
    """The line on which each row begins."""
    if not _is_by_line(file):
        return np.array(_first_lines(file))
    with file.open("rb") as lines:
        good = [number for number, line in enumerate(lines, start=1) if line.strip() and _line_problem(line) is None]
    return np.array(good, dtype=np.int64)


def _first_lines(file: Path) -> list[int]:
    """The line on which each entry begins, of a list, or of objects that go over several lines."""
    text, decoder = file.read_text("utf-8-sig"), json.JSONDecoder()
    found, at, line = [], 0, 1
    while (begin := BETWEEN.match(text, at).end()) < len(text):  # type: ignore[union-attr]  # it matches nothing, too
        line += text.count("\n", at, begin)
        found.append(line)
        _, at = decoder.raw_decode(text, begin)
        line += text.count("\n", begin, at)
    return found


def _is_by_line(file: Path) -> bool:
    """Whether each line is a row, as far as the first one tells."""
    with file.open("rb") as opened:
        first = next((line for line in opened if line.strip()), b"").removeprefix(MARK).strip()
    return not first.startswith(b"[") and first != b"{"


def _cleaned(layout: Layout) -> list[Path]:
    """Copies of the files without the lines that are torn."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / CLEANED / _fingerprint(layout.files)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _without_torn_lines(file, folder / f"{number}{file.suffix}") if _is_by_line(file) else file
        for number, file in enumerate(layout.files)
    ]


def _without_torn_lines(file: Path, copy: Path) -> Path:
    if copy.exists():
        return copy
    part = copy.with_name(f"{copy.name}.{uuid4().hex}")  # another process may be at the same copy
    try:
        with file.open("rb") as lines, part.open("wb") as kept:
            for line in lines:
                if line.strip() and _line_problem(line) is None:
                    kept.write(line.rstrip(b"\r\n") + b"\n")
        return part.replace(copy)
    finally:
        part.unlink(missing_ok=True)


# -- CSV


def _read_csv(layout: Layout, bad_rows: BadRows) -> Table:
    layout = _filled(layout)
    tables, numbers = zip(*(_csv(layout, file, bad_rows) for file in layout.files), strict=True)
    data, kinds = _one_table(layout, tables), layout.features
    if kinds is not None:
        data = data.select([name for name in data.column_names if name in kinds])
        if difference := _difference(data, kinds, "the data set's card"):
            raise layout.error(f"{layout.show(layout.files[0])} {difference}")
        data = datasets.table.table_cast(data.select(list(kinds)), kinds.arrow_schema)
    features = kinds or datasets.Features.from_arrow_schema(data.schema)
    return Table(layout, data, features, RowLocations(layout, lambda: numbers))


def _one_table(layout: Layout, tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all files, with the columns in the order of the first that has any rows."""
    filled = [(layout.show(file), table) for file, table in zip(layout.files, tables, strict=True) if table.num_rows]
    if not filled:
        raise _empty(layout)
    model, first = filled[0]
    for shown, table in filled:
        if difference := _difference(table, datasets.Features.from_arrow_schema(first.schema), model):
            raise layout.error(f"{shown} {difference}")
    return pa.concat_tables([table.select(first.column_names) for _, table in filled])


def _csv(layout: Layout, file: Path, bad_rows: BadRows) -> tuple[pa.Table, np.ndarray]:
    """The rows of a file as text, and their numbers as a spreadsheet counts them: the header is row 1."""
    bad: dict[int, str] = {}

    def leave_out(row: Any) -> str:
        bad[row.number] = f"expected {row.expected_columns} cells, as in the header, found {row.actual_columns}"
        return "skip"

    separator = "\t" if file.suffix.lower() == ".tsv" else ","
    parsing = pacsv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=leave_out)
    # with threads, rows that are left out have no number
    one_by_one = pacsv.ReadOptions(use_threads=False, block_size=CSV_BLOCK)
    try:
        header = pacsv.open_csv(file, one_by_one, parsing).schema.names
        as_bytes = pacsv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.binary()), null_values=[""], strings_can_be_null=True
        )
        bad.clear()
        table = pacsv.read_csv(file, one_by_one, parsing, as_bytes)
    except (pa.ArrowException, UnicodeDecodeError) as error:
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
        batches = table.to_batches(max_chunksize=ROWS)
        good = np.array([all(map(_is_utf8, row.values())) for batch in batches for row in batch.to_pylist()])
        bad.update(dict.fromkeys(numbers[~good].tolist(), "not UTF-8"))
        return table.filter(pa.array(good)).cast(as_text), numbers[good]


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _are_numbers(labels: pa.ChunkedArray) -> bool:
    """A CSV knows text alone: labels that are all whole numbers are meant as numbers."""
    if not pa.types.is_string(labels.type):  # the data set's card says what they are
        return False
    return bool(pc.all(pc.match_substring_regex(labels, f"^({WHOLE_NUMBER})$")).as_py())


# -- a table beside images


def _read_metadata(layout: Layout, bad_rows: BadRows) -> Table:
    """A table of images: its column `file_name` says, from the table's own folder, which image a row is about."""
    kinds = {TABLES[file.suffix.lower()] for file in layout.files}
    if len(kinds) > 1:
        shown = ", ".join(map(layout.show, layout.files))
        raise layout.error(f"expected metadata files of one format, found {shown}")
    about = replace(layout, format=kinds.pop(), features=layout.features and _of_names(layout.features))
    table = _READERS[about.format](about, bad_rows)
    if "file_name" not in table.columns:
        shown = layout.show(layout.files[0])
        raise layout.error(f"{shown} has no column 'file_name', which names the images; it has {table.columns}")
    names = table.data.column("file_name").to_pylist()
    folders = [file.parent.relative_to(layout.folder) for file in table.row_locations.files()]
    if len(folders) != len(names):
        raise layout.error(f"{layout.show(layout.files[0])} cannot be read: expected an object on each line")
    pairs = zip(folders, names, strict=True)
    paths = [None if name is None else _in_folder(folder, str(name)) for folder, name in pairs]
    data = table.data.append_column("image", pa.array(paths, pa.string())).drop_columns(["file_name"])
    features = {name: kind for name, kind in table.features.items() if name != "file_name"}
    return replace(table, data=data, features=datasets.Features({**features, "image": datasets.Value("string")}))


def _of_names(features: datasets.Features) -> datasets.Features:
    """What a card says of images, as it is in the table: their names."""
    others = {name: kind for name, kind in features.items() if name != "image"}
    return datasets.Features({**others, "file_name": datasets.Value("string")})


def _in_folder(folder: Path, name: str) -> str:
    """The path of an image that a table in this folder names; what leads elsewhere stays as it is, to be refused."""
    return name if "://" in name or name.startswith("/") else (folder / name).as_posix()


_READERS: Mapping[str, Callable[[Layout, BadRows], Table]] = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "images": _read_images,
    "json": _read_json,
    "csv": _read_csv,
    "metadata": _read_metadata,
}
