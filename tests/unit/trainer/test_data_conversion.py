"""Parquet, Arrow, dataset cards, and what is kept in the cache."""

import datetime
import errno
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Image, Json, List, Value
from datasets import Dataset as HFDataset

from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import BadRowPolicy, Dataset, read_columns, read_table, resolve_files
from finetune_trainer.data.readers import conversion, tables
from finetune_trainer.data.readers.csv import CsvReader
from finetune_trainer.errors import Interrupted, RunError
from unit.trainer import tiny
from unit.trainer.loading import FAIL, data_spec, first_error, load_dataset, load_table, write_files

DAY = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)


def load(tmp_path: Path, table: pa.Table, *roles: str, kind: str = "parquet") -> Dataset:
    write_table(tmp_path, table, f"a.{kind}")
    return load_dataset(tmp_path, *roles)


def write_table(tmp_path: Path, table: pa.Table, name: str) -> Path:
    file = write_files(tmp_path, {}) / name
    if name.endswith("parquet"):
        pq.write_table(table, file)
    else:
        with pa.ipc.new_stream(str(file), table.schema) as writer:
            writer.write_table(table)
    return file


COLUMNS: dict[str, pa.Array] = {
    "string": pa.array(["a", None]),
    "large_string": pa.array(["a", None], pa.large_string()),
    "string_view": pa.array(["a", None], pa.string_view()),
    "dictionary": pa.array(["a", None]).dictionary_encode(),
    "large_dictionary": pa.array(["a", None], pa.large_string()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("column", COLUMNS)
def test_text_columns(column: str, kind: str, tmp_path: Path) -> None:
    data = load(tmp_path, pa.table({"text": COLUMNS[column]}), "text", kind=kind)
    assert data.values("text") == ["a", None]
    assert [row["text"] for row in data] == ["a", None]


def test_run_end_encoded_arrow_column(tmp_path: Path) -> None:
    column = pa.RunEndEncodedArray.from_arrays([2, 3], ["a", "b"])
    assert load(tmp_path, pa.table({"text": column}), "text", kind="arrow").values("text") == ["a", "a", "b"]


def test_dictionaries_that_differ_between_batches(tmp_path: Path) -> None:
    batches = [pa.array(values).dictionary_encode() for values in (["a", "b"], ["b", "c"])]
    table = pa.table({"text": pa.chunked_array(batches)})
    assert load(tmp_path, table, "text", kind="arrow").values("text") == ["a", "b", "b", "c"]


NESTED = [[{"role": "user", "content": "a"}], [], None]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_nested_column(kind: str, tmp_path: Path) -> None:
    assert load(tmp_path, pa.table({"messages": NESTED}), "messages", kind=kind).values("messages") == NESTED


@pytest.mark.parametrize(
    "values",
    [
        pa.array([DAY], pa.timestamp("us")),
        pa.array([DAY], pa.timestamp("ns", tz="UTC")),
        pa.array([DAY.date()]),
        pa.array([DAY.time()]),
        pa.array([datetime.timedelta(1)]),
        pa.array([DAY.date()]).dictionary_encode(),
    ],
)
def test_dates_are_not_text(values: pa.Array, tmp_path: Path) -> None:
    write_table(tmp_path, pa.table({"text": values}), "a.parquet")
    message = first_error(tmp_path, "text")
    assert message.startswith("data.columns.text: column 'text' of data.train.source has type ")
    assert message.endswith("; expected text")


def test_iso_dates_are_text(tmp_path: Path) -> None:
    assert load(tmp_path, pa.table({"text": ["2024-01-01"]}), "text").values("text") == ["2024-01-01"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_unused_columns_may_differ_and_are_not_read(kind: str, tmp_path: Path) -> None:
    odd = pa.array([{"x": 1}]), pa.array([datetime.timedelta(1)])
    write_table(tmp_path, pa.table({"text": ["a"], "when": [DAY], "x": [1], "y": odd[0]}), f"a.{kind}")
    write_table(tmp_path, pa.table({"when": ["soon"], "text": ["b"], "x": odd[1], "z": [[1]]}), f"b.{kind}")
    data = load_dataset(tmp_path, "text")
    assert data.values("text") == ["a", "b"]
    assert load_columns(tmp_path) == ["text", "when", "x", "y", "z"]


def load_columns(tmp_path: Path) -> list[str]:
    return read_columns(resolve_files(data_spec().train, "data.train", ClaimPaths(tmp_path)))


def test_only_used_columns_are_in_the_cache(tmp_path: Path, datasets_cache: Path) -> None:
    table = pa.table({"text": [f"row {n}" for n in range(1000)], "big": ["x" * 10_000] * 1000})
    before = cached_bytes(datasets_cache)
    assert len(load(tmp_path, table, "text")) == 1000
    assert cached_bytes(datasets_cache) - before < 100_000


def cached_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_column_whose_name_is_a_prefix_of_another(tmp_path: Path) -> None:
    table = pa.table({"text.raw": ["raw"], "text": ["a"], "a.b": [{"c": 1}]})
    assert load(tmp_path, table, "text").values("text") == ["a"]


def test_two_columns_of_one_name_are_rejected(tmp_path: Path) -> None:
    write_table(tmp_path, pa.Table.from_arrays([["a"], ["b"]], ["text", "text"]), "a.parquet")
    assert "a.parquet has two columns named 'text'" in first_error(tmp_path, "text")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (pa.array([1], pa.int8()), pa.array([2**40]), [1, 2**40]),
        (pa.array([2**40]), pa.array([1], pa.uint16()), [2**40, 1]),
        (pa.array(["a"]), pa.array(["b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), ["a", "b"]),
        (pa.array([None]), pa.array(["b"]), [None, "b"]),
        (pa.array([1.5]), pa.array([0.5], pa.float32()), [1.5, 0.5]),
        (pa.array([[{"a": 1}]]), pa.array([[{"b": "x"}]]), [[{"a": 1}], [{"b": "x"}]]),
        (pa.array([[]], pa.list_(pa.null())), pa.array([["x"]]), [[], ["x"]]),
    ],
)
def test_types_of_files_that_fit_one_column(first: Any, second: Any, expected: list[Any], tmp_path: Path) -> None:
    for order in (("a", "b"), ("b", "a")):
        for name, column in zip(order, (first, second), strict=True):
            write_table(tmp_path, pa.table({"label": column}), f"{name}.parquet")
        found = load_dataset(tmp_path, "label").values("label")
        assert found == (expected if order[0] == "a" else expected[::-1])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.array([1]), pa.array(["1"])),
        (pa.array([1]), pa.array([1.0])),
        (pa.array([True]), pa.array([1])),
        (pa.array([2**63], pa.uint64()), pa.array([-1])),
        (pa.array(["a"]), pa.array([b"a"])),
        (pa.array([DAY], pa.timestamp("us")), pa.array(["a"])),
        (pa.array([["a"]]), pa.array(["a"])),
        (pa.array([[{"a": 1}]]), pa.array([[{"a": "x"}]])),
    ],
)
def test_types_of_files_that_fit_no_column_are_rejected(first: Any, second: Any, tmp_path: Path) -> None:
    write_table(tmp_path, pa.table({"label": first}), "a.parquet")
    write_table(tmp_path, pa.table({"label": second}), "b.parquet")
    assert "b.parquet has type" in (message := first_error(tmp_path, "label"))
    assert "in column 'label', but a.parquet has" in message


def write_classes(tmp_path: Path, name: str, classes: list[str]) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=classes)})
    HFDataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(
        write_files(tmp_path, {}) / name
    )


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("nested", [False, True])
def test_text_that_is_not_utf8_is_reported_with_its_row(kind: str, nested: bool, tmp_path: Path) -> None:
    folder = write_files(tmp_path, {})
    texts = pa.array([b"a"] * 5000 + [b"b\xff"], pa.binary()).view(pa.string())
    column = pa.StructArray.from_arrays([texts], ["content"]) if nested else texts
    table = pa.table({"text": column})
    (pq.write_table if kind == "parquet" else pa.feather.write_feather)(table, folder / f"a.{kind}")
    expected = "has text that is not UTF-8 in column 'text', row 5000: byte 0xff"
    assert f"a.{kind} {expected}" in first_error(tmp_path, "text")


def test_file_without_rows_may_have_other_types(tmp_path: Path) -> None:
    folder = write_files(tmp_path, {})
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), folder / "a.parquet")
    pq.write_table(
        pa.table({"text": pa.array([], pa.float64()), "label": pa.array([], pa.string())}), folder / "b.parquet"
    )
    assert load_dataset(tmp_path, "text", "label").values("label") == [1]


def test_files_that_number_their_classes_differently_are_rejected(tmp_path: Path) -> None:
    write_classes(tmp_path, "a.parquet", ["bad", "good"])
    write_classes(tmp_path, "b.parquet", ["good", "bad"])
    message = first_error(tmp_path, "text", "label")
    assert "b.parquet has type the classes 'good', 'bad' in column 'label', but a.parquet has the classes" in message
    assert load_dataset(tmp_path, "text").values("text") == ["a", "b"] * 2


# Features of `datasets`


def test_features_in_the_files(tmp_path: Path) -> None:
    features = Features({"image": Image(), "label": ClassLabel(names=["bad", "good"]), "text": Json()})
    rows = {"image": [{"bytes": tiny.png((255, 0, 0)), "path": None}], "label": [1], "text": [{"a": [1, "x"]}]}
    folder = write_files(tmp_path, {})
    HFDataset.from_dict(rows, features=features).to_parquet(folder / "a.parquet")
    data = load_dataset(tmp_path, "image", "label", "text")
    assert data.class_names("label") == ["bad", "good"]
    assert data.values("text") == [{"a": [1, "x"]}]
    assert data[0]["image"].getpixel((0, 0)) == (255, 0, 0)
    nested = Features({"messages": List(Json())})
    HFDataset.from_dict({"messages": [[{"b": 0}, {"c": "x"}]]}, features=nested).to_parquet(folder / "a.parquet")
    assert load_dataset(tmp_path, "messages").values("messages") == [[{"b": 0}, {"c": "x"}]]


def test_saved_dataset(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    dataset = HFDataset.from_dict(
        {"text": [f"t{n}" for n in range(3000)], "label": [1, 0, 1] * 1000}, features=features
    )
    dataset.save_to_disk(tmp_path / "data" / "set", num_shards=2)
    data = load_dataset(tmp_path, "text", "label")
    assert data.values("text") == dataset["text"][:]
    assert data.class_names("label") == ["bad", "good"]
    assert data.locate(1501).endswith("data-00001-of-00002.arrow, row 1")


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_ipc_file(compression: str, tmp_path: Path) -> None:
    file = write_files(tmp_path, {}) / "a.arrow"
    pyarrow.feather.write_feather(pa.table({"text": ["a", "b"], "x": [1, 2]}), file, compression)
    assert load_dataset(tmp_path, "text").values("text") == ["a", "b"]


@pytest.mark.parametrize("cut", [5, 100, 300])
def test_truncated_arrow_file_is_reported(cut: int, tmp_path: Path) -> None:
    file = write_table(tmp_path, pa.table({"text": ["a" * 500]}), "a.arrow")
    file.write_bytes(file.read_bytes()[:-cut])
    assert "a.arrow cannot be read" in first_error(tmp_path, "text")


CARD = "---\ndataset_info:\n  features:\n{features}configs:\n- config_name: default\n  data_files: a.{kind}\n---\n"


def write_card(tmp_path: Path, kind: str, **types: str) -> None:
    features = "".join(f"  - name: {name}\n    dtype:{dtype}\n" for name, dtype in types.items())
    write_files(tmp_path, {"README.md": CARD.format(features=features, kind=kind)})


CLASSES = "\n      class_label:\n        names:\n          '0': bad\n          '1': good"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("csv", "text,label\n2024-01-01,good\nb,bad\n"),
        ("csv", "text,label\n2024-01-01,1\nb,0\n"),
        ("jsonl", '{"text": "2024-01-01", "label": "good"}\n{"text": "b", "label": "bad"}\n'),
        ("jsonl", '{"text": "2024-01-01", "label": 1}\n{"text": "b", "label": 0}\n'),
    ],
)
def test_classes_of_the_dataset_card(kind: str, content: str, tmp_path: Path) -> None:
    write_card(tmp_path, kind, text=" string", label=CLASSES, unused=" int64")
    write_files(tmp_path, {f"a.{kind}": content})
    data = load_dataset(tmp_path, "text", "label")
    assert (data.values("text"), data.values("label")) == (["2024-01-01", "b"], [1, 0])
    assert data.class_names("label") == ["bad", "good"]


def test_card_matters_only_for_used_columns(tmp_path: Path) -> None:
    write_card(tmp_path, "csv", text=" string", label=" int64", gone=" string")
    write_files(tmp_path, {"a.csv": "text,label,more\na,good,x\n"})
    assert load_dataset(tmp_path, "text").values("text") == ["a"]
    message = first_error(tmp_path, "text", "label")
    assert "a.csv has type string in column 'label', but the dataset card has int64: " in message


def test_nested_values_of_json_are_read_as_written_whatever_the_card_says(tmp_path: Path) -> None:
    write_card(tmp_path, "jsonl", messages="\n      list:\n      - name: role\n        dtype: string")
    write_files(tmp_path, {"a.jsonl": '{"messages": [{"role": "user", "content": "a"}]}\n'})
    assert load_dataset(tmp_path, "messages").values("messages") == [[{"role": "user", "content": "a"}]]


def test_dates_of_a_file_do_not_become_text_by_the_card(tmp_path: Path) -> None:
    write_card(tmp_path, "parquet", text=" string")
    write_table(tmp_path, pa.table({"text": pa.array([DAY], pa.timestamp("us"))}), "a.parquet")
    assert "a.parquet has type timestamp[us] in column 'text', but the dataset card has string" in first_error(
        tmp_path, "text"
    )


# The cache


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_second_start_does_not_read_the_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "csv":
        write_files(tmp_path, {"a.csv": "text\na\nbroken,row\nb\n"})
    else:
        write_table(tmp_path, pa.table({"text": ["a", "b"]}), "a.parquet")
    policies = [BadRowPolicy(skip=True, limit=1) for _ in range(2)]
    first = load_dataset(tmp_path, "text", bad_rows=policies[0])

    def convert_again(*_: Any) -> None:
        pytest.fail("the file was converted again")

    monkeypatch.setattr(conversion.Conversion, "_write", convert_again)
    second = load_dataset(tmp_path, "text", bad_rows=policies[1])
    assert second.values("text") == first.values("text")
    assert [second.locate(row) for row in (0, 1)] == [first.locate(row) for row in (0, 1)]
    assert list(policies[0].notes()) == list(policies[1].notes())


def test_equal_files_are_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "text\nthe same in two claims\n"
    write_files(tmp_path / "one", {"a.csv": content})
    write_files(tmp_path / "two", {"b.csv": content})
    assert load_dataset(tmp_path / "one", "text").values("text") == ["the same in two claims"]
    monkeypatch.setattr(conversion.Conversion, "_write", lambda *_: pytest.fail("converted again"))
    data = load_dataset(tmp_path / "two", "text")
    assert data.locate(0) == f"{tmp_path}/two/data/set/b.csv, line 2"


def test_csv_and_tsv_with_equal_content_are_different(tmp_path: Path) -> None:
    content = 'text\n"quoted"\n'
    write_files(tmp_path / "one", {"a.csv": content})
    write_files(tmp_path / "two", {"a.tsv": content})
    assert load_dataset(tmp_path / "one", "text").values("text") == ["quoted"]
    assert load_dataset(tmp_path / "two", "text").values("text") == ['"quoted"']


def test_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_files(tmp_path, {"a.csv": "text\nbefore\n"})
    read = CsvReader.read

    def read_and_change(self: Any, file: Path, features: Any) -> Iterator[Any]:
        yield from read(self, file, features)
        if features:
            (folder / "a.csv").write_text("text\nafter it was read\n")

    monkeypatch.setattr(CsvReader, "read", read_and_change)
    with pytest.raises(RunError, match=r"a\.csv was changed while it was read"):
        load_dataset(tmp_path, "text")


def test_interrupted_conversion_leaves_nothing(
    tmp_path: Path, datasets_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int) -> None:
        raise Interrupted(f"{done} of {total}")

    monkeypatch.setattr(tables, "PROGRESS_SECONDS", 0)
    write_files(tmp_path, {"a.csv": "text\n" + "an interrupted row\n" * 20_000})
    files = resolve_files(data_spec().train, "data.train", ClaimPaths(tmp_path))
    before = set(datasets_cache.rglob("*"))
    with pytest.raises(Interrupted):
        read_table(files, FAIL, ["text"], stop)
    written = {path for path in datasets_cache.rglob("*") if path.is_file()} - before
    assert {path.parents[1].name for path in written} <= {"content-hashes"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    return folder


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "malformed rows"])
def test_damaged_cache_entry_is_converted_again(damage: str, tmp_path: Path, cache: Path) -> None:
    write_files(tmp_path, {"a.jsonl": f'{{"text": "{damage}", "label": 1}}\n'})
    first = load_dataset(tmp_path, "text")
    (file,) = (cache / "finetune" / "tables").rglob(conversion.ROWS_FILE)
    match damage:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-20])
        case "empty":
            file.write_bytes(b"")
        case "missing":
            file.unlink()
        case _:
            (file.parent / conversion.MALFORMED_FILE).write_bytes(b"")
    assert load_dataset(tmp_path, "text").values("text") == [damage]
    assert load_dataset(tmp_path, "text").fingerprint == first.fingerprint


def test_read_only_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"a.jsonl": '{"text": "a"}\n{"text": 1}\nx\n'})

    def mkdir(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", mkdir)
        bad_rows = BadRowPolicy(skip=True, limit=10)
        data = load_dataset(tmp_path, "text", bad_rows=bad_rows)
    assert data.values("text") == ["a", 1]
    (note,) = bad_rows.notes()
    assert note.startswith("skipping 1 bad row")


def test_progress_counts_the_bytes_of_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PROGRESS_SECONDS", 0)
    folder = write_files(tmp_path, {f"{name}.csv": f"text\n{name}\n" + "some row\n" * 10_000 for name in "ab"})
    reports: list[tuple[int, int]] = []
    files = resolve_files(data_spec().train, "data.train", ClaimPaths(tmp_path))
    read_table(files, FAIL, ["text"], lambda done, total: reports.append((done, total)))
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert [total for _, total in reports] == [size] * len(reports)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert reports[-1] == (size, size)


def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{number:04}.jsonl": f'{{"text": "{number}"}}\n' for number in range(300)})
    assert load_dataset(tmp_path, "text").values("text") == [str(number) for number in range(300)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        assert len(load_dataset(tmp_path, "text")) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_table_with_all_columns(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.csv": "text,patient\na,p1\n"})
    assert load_table(tmp_path).columns == ["text", "patient"]
