"""Fingerprints change with the rows and columns that a run uses, and with nothing else."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Value
from datasets import Dataset as HFDataset
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.data import Columns
from finetune_trainer.data import Dataset, align_labels, content_hash, fingerprints, resolve_columns
from finetune_trainer.data.fingerprints import digest_column
from unit.trainer import tiny
from unit.trainer.loading import load_dataset, load_table

Rows = Sequence[Mapping[str, Any]]
ROWS = [{"text": f"text {number}", "other": f"other {number}", "label": number % 3} for number in range(7)]


def load(folder: Path, rows: Rows, *roles: str, files: int = 1) -> Dataset:
    data = folder / "data" / "set"
    data.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        lines = rows[number * len(rows) // files : (number + 1) * len(rows) // files]
        (data / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return load_dataset(folder, *roles or ("text", "label"))


def test_fingerprint_is_independent_of_paths_files_and_unused_columns(tmp_path: Path) -> None:
    first = load(tmp_path / "a", ROWS)
    assert load(tmp_path / "b", ROWS).fingerprint == first.fingerprint
    assert load(tmp_path / "c", ROWS, files=3).fingerprint == first.fingerprint
    assert load(tmp_path / "d", [{**row, "other": 1, "more": 2} for row in ROWS]).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    "rows",
    [
        [*ROWS[:3], {**ROWS[3], "text": "text 3 "}, *ROWS[4:]],
        [*ROWS[:3], {**ROWS[3], "label": 2}, *ROWS[4:]],
        [*ROWS[:3], {**ROWS[3], "text": None}, *ROWS[4:]],
        [ROWS[1], ROWS[0], *ROWS[2:]],
        ROWS[:-1],
        [{**row, "label": str(row["label"])} for row in ROWS],
    ],
)
def test_fingerprint_changes_with_each_value_and_the_order(rows: Rows, tmp_path: Path) -> None:
    assert load(tmp_path / "a", rows).fingerprint != load(tmp_path / "b", ROWS).fingerprint


def test_fingerprint_changes_with_the_columns(tmp_path: Path) -> None:
    data = load(tmp_path, ROWS)
    table = load_table(tmp_path)
    mapped = table.to_dataset(
        resolve_columns(table.columns, Columns(text="other"), [["text", "label"]], (), "data.train.source")
    )
    assert len({data.fingerprint, mapped.fingerprint, load(tmp_path, ROWS, "text").fingerprint}) == 3


def test_fingerprint_of_a_selection_is_that_of_its_rows(tmp_path: Path) -> None:
    data = load(tmp_path / "a", ROWS)
    assert data.drop_rows([2, 5]).fingerprint == load(tmp_path / "b", [*ROWS[:2], *ROWS[3:5], ROWS[6]]).fingerprint


def numbered(folder: Path, names: Sequence[str]) -> Dataset:
    """Two rows of the classes 0 and 1, with these names."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    rows = HFDataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features)
    (folder / "data" / "set").mkdir(parents=True)
    rows.to_parquet(folder / "data" / "set" / "a.parquet")
    return load_dataset(folder, "text", "label")


def test_fingerprint_changes_with_the_names_of_classes_that_become_labels(tmp_path: Path) -> None:
    train = load(tmp_path / "train", [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}])
    one, other = (align_labels(numbered(tmp_path / names, names), train) for names in ("ab", "ba"))
    assert (one.values("label"), other.values("label")) == (["a", "b"], ["b", "a"])
    assert one.fingerprint != other.fingerprint


def test_fingerprint_changes_with_the_numbers_that_labels_become(tmp_path: Path) -> None:
    validation = load(tmp_path / "validation", [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}])
    one, other = (align_labels(validation, numbered(tmp_path / names, names)) for names in ("ab", "ac"))
    assert (one.values("label"), other.values("label")) == ([0, 1], [0, "b"])
    assert one.fingerprint != other.fingerprint


def test_fingerprint_changes_with_the_content_of_images(tmp_path: Path) -> None:
    def fingerprint(colour: str) -> str:
        (tmp_path / "data" / "set").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "set" / "a.png").write_bytes(tiny.png(tiny.COLOURS[colour]))
        return load(tmp_path, [{"image": "a.png", "text": "x"}], "image", "text").fingerprint

    assert fingerprint("red") == fingerprint("red") != fingerprint("blue")


def test_content_hash_reads_an_unchanged_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "FINE_TICK", 0)
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    first = content_hash(file)
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, "_hash_file", lambda path: pytest.fail(f"{path} was read again"))
        assert content_hash(file) == first
    file.write_bytes(b"two")
    assert content_hash(file) != first
    (tmp_path / "b.bin").write_bytes(b"one")
    assert content_hash(tmp_path / "b.bin") == first


@pytest.mark.parametrize("resolution", [10**9, 1])
def test_content_hash_of_a_file_that_changes_without_a_change_of_its_times(
    resolution: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    stat = file.stat()
    now = stat.st_mtime_ns // resolution * resolution
    same = SimpleNamespace(st_size=3, st_ino=stat.st_ino, st_mtime_ns=now, st_ctime_ns=now)
    monkeypatch.setattr("time.time_ns", lambda: now + 10**7)
    first = content_hash(file)
    monkeypatch.setattr("os.stat", lambda path, **_: same)
    assert content_hash(file) == first
    file.write_bytes(b"two")
    assert content_hash(file) != first


@pytest.mark.parametrize("content", ["", "not JSON {"])
def test_damaged_cache_entry_is_computed_again(content: str, tmp_path: Path, datasets_cache: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"three")
    first = content_hash(file)
    for entry in (datasets_cache / "finetune" / "content-hashes").rglob("*"):
        if entry.is_file():
            entry.write_text(content)
    assert content_hash(file) == first


SCALARS = st.none() | st.integers(-(2**63), 2**63 - 1)
COLUMNS = (
    st.lists(SCALARS).map(lambda values: pa.array(values, pa.int64()))
    | st.lists(st.none() | st.text()).map(lambda values: pa.array(values, pa.large_string()))
    | st.lists(st.none() | st.binary()).map(lambda values: pa.array(values, pa.binary()))
    | st.lists(st.none() | st.booleans()).map(lambda values: pa.array(values, pa.bool_()))
    | st.lists(st.none() | st.lists(st.none() | st.fixed_dictionaries({"a": SCALARS, "b": st.none() | st.text()}))).map(
        lambda values: pa.array(values, pa.list_(pa.struct([("a", pa.int64()), ("b", pa.string())])))
    )
    | st.lists(st.none() | st.lists(SCALARS, min_size=2, max_size=2)).map(
        lambda values: pa.array(values, pa.list_(pa.int64(), 2))
    )
    | st.lists(st.none() | st.decimals(0, 9, places=1, allow_nan=False)).map(
        lambda values: pa.array(values, pa.decimal128(5, 1))
    )
)


def digest(column: pa.Array, cuts: Sequence[int]) -> str:
    bounds = sorted({0, len(column), *(cut % (len(column) + 1) for cut in cuts)})
    pieces = [column.take(pa.array(range(*pair))) for pair in itertools.pairwise(bounds)]
    return digest_column(pieces, column.type)


@given(COLUMNS, st.lists(st.integers(0, 99)), st.lists(st.integers(0, 99)))
def test_digest_is_independent_of_chunks(column: pa.Array, cuts: Sequence[int], others: Sequence[int]) -> None:
    assert digest(column, cuts) == digest(column, others)


@given(st.data())
def test_digests_of_different_columns_differ(data: st.DataObject) -> None:
    one = data.draw(COLUMNS)
    other = data.draw(COLUMNS)
    equal = one.type == other.type and one.to_pylist() == other.to_pylist()
    assert (digest(one, []) == digest(other, [])) == equal


def test_fingerprint_of_nested_parquet(tmp_path: Path) -> None:
    def fingerprint(name: str, content: str) -> str:
        (tmp_path / name / "data" / "set").mkdir(parents=True)
        rows = [{"messages": [{"role": "user", "content": "hi"}]}, {"messages": [{"role": "user", "content": content}]}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / "data" / "set" / "a.parquet")
        return load_dataset(tmp_path / name, "messages").fingerprint

    assert fingerprint("a", "one") == fingerprint("b", "one") != fingerprint("c", "two")
