"""Every format yields the same rows, their locations, and messages about malformed files."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Value
from datasets import Dataset as HFDataset

from finetune_api.data import Columns, DataSource
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import align_labels, count_rows, resolve_columns, resolve_files
from finetune_trainer.errors import UserError
from unit.trainer import tiny
from unit.trainer.loading import FAIL, data_spec, invalid_images, load_dataset, load_table

Rows = Sequence[Mapping[str, Any]]
ROWS = [{"text": f"text {number}", "label": number % 3} for number in range(7)]


def write_parquet(file: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), file)


def write_jsonl(file: Path, rows: Rows) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(file: Path, rows: Rows) -> None:
    file.write_text(json.dumps(list(rows), indent=2))


def write_csv(file: Path, rows: Rows) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_arrow(file: Path, rows: Rows) -> None:
    table = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_stream(str(file), table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "parquet": write_parquet,
    "jsonl": write_jsonl,
    "json": write_json,
    "csv": write_csv,
    "tsv": write_csv,
    "arrow": write_arrow,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of the dataset `pvc://data/set`."""
    folder = tmp_path / "data" / "set"
    folder.mkdir(parents=True)
    return folder


def load_error(folder: Path, *roles: str, **train: Any) -> str:
    with pytest.raises(UserError) as raised:
        load_dataset(folder.parents[1], *roles, **train)
    return str(raised.value)


@pytest.mark.parametrize("kind", WRITERS)
def test_folder_with_several_files(kind: str, folder: Path, tmp_path: Path) -> None:
    (folder / "deeper").mkdir()
    WRITERS[kind](folder / f"a.{kind}", ROWS[:4])
    WRITERS[kind](folder / "deeper" / f"b.{kind}", ROWS[4:])
    data = load_dataset(tmp_path, "text", "label")
    assert data.values("text") == [row["text"] for row in ROWS]
    assert data.values("label") == [row["label"] for row in ROWS]
    assert data[5] == ROWS[5]
    assert list(data.invalid_texts("text")) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_source_may_be_a_single_file(kind: str, folder: Path, tmp_path: Path) -> None:
    WRITERS[kind](folder / f"mine.{kind}", ROWS)
    WRITERS[kind](folder / f"other.{kind}", ROWS[:1])
    source = f"pvc://data/set/mine.{kind}"
    assert load_dataset(tmp_path, "text", source=source).values("text") == [row["text"] for row in ROWS]


@pytest.mark.parametrize("kind", WRITERS)
def test_count_rows(kind: str, folder: Path, tmp_path: Path) -> None:
    WRITERS[kind](folder / f"a.{kind}", ROWS)
    assert count_rows(resolve_files(data_spec().train, "data.train", ClaimPaths(tmp_path)), FAIL) == len(ROWS)


@pytest.mark.parametrize(
    ("kind", "location"),
    [("parquet", "row 2"), ("jsonl", "line 3"), ("json", "line 10"), ("csv", "line 4"), ("tsv", "line 4")],
)
def test_rows_are_located(kind: str, location: str, folder: Path, tmp_path: Path) -> None:
    WRITERS[kind](folder / f"a.{kind}", ROWS[:4])
    WRITERS[kind](folder / f"b.{kind}", ROWS[:4])
    data = load_dataset(tmp_path, "text")
    assert data.locate(2) == f"{folder}/a.{kind}, {location}"
    assert data.locate(6) == f"{folder}/b.{kind}, {location}"


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_replaced_file_is_read_again(kind: str, folder: Path, tmp_path: Path) -> None:
    file = folder / f"a.{kind}"
    WRITERS[kind](file, ROWS)
    assert load_dataset(tmp_path, "text").values("text")[0] == "text 0"
    old = file.stat()
    WRITERS[kind](tmp_path / "new", [{**row, "text": row["text"].replace("text", "word")} for row in ROWS])
    shutil.copystat(file, tmp_path / "new")  # as `cp -p` and rsync do
    (tmp_path / "new").replace(file)
    assert file.stat().st_mtime_ns == old.st_mtime_ns
    assert load_dataset(tmp_path, "text").values("text")[0] == "word 0"


# Splits


def test_splits_by_file_name(folder: Path, tmp_path: Path) -> None:
    for split, rows in {"train": ROWS, "validation": ROWS[:3], "test": ROWS[:2]}.items():
        write_jsonl(folder / f"{split}.jsonl", rows)
    assert len(load_dataset(tmp_path, "text")) == 7
    assert len(load_dataset(tmp_path, "text", split="test")) == 2
    source, claim_paths = DataSource(source="pvc://data/set"), ClaimPaths(tmp_path)
    assert resolve_files(source, "data.validation", claim_paths).split == "validation"
    assert resolve_files(source, "data.test", claim_paths).split == "test"


def test_unknown_split_is_rejected(folder: Path) -> None:
    write_csv(folder / "train.csv", ROWS)
    write_csv(folder / "test.csv", ROWS)
    message = load_error(folder, "text", split="tset")
    assert (
        "data.train.split: pvc://data/set has no split 'tset'; available: train, test; did you mean 'test'?" in message
    )


@pytest.mark.parametrize(
    ("existing", "requested"), [("dev", "validation"), ("validation", "val"), ("valid", "dev"), ("eval", "test")]
)
def test_split_aliases_are_suggested(existing: str, requested: str, folder: Path) -> None:
    names = ("train", existing)
    lines = "".join(f"  - split: {name}\n    path: {name}.csv\n" for name in names)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{lines}---\n")
    for name in names:
        write_csv(folder / f"{name}.csv", ROWS)
    assert f"has no split {requested!r}; available: train, {existing}; did you mean {existing!r}?" in load_error(
        folder, "text", split=requested
    )


def test_invalid_split_name_is_rejected(folder: Path) -> None:
    (folder / "data").mkdir()
    write_csv(folder / "data" / "tra!n-00000-of-00001.csv", ROWS)
    assert "data.train.source: pvc://data/set: Split name should match" in load_error(folder, "text")


def test_single_split_is_the_default(folder: Path, tmp_path: Path) -> None:
    write_csv(folder / "test.csv", ROWS)
    assert len(load_dataset(tmp_path, "text")) == 7
    assert "data.train.split" in load_error(folder, "text", split="train")


def test_configurations_of_a_dataset_card(folder: Path, tmp_path: Path) -> None:
    write_csv(folder / "english.csv", ROWS)
    write_csv(folder / "german.csv", [{"text": "gut", "label": 1}])
    write_csv(folder / "german-test.csv", ROWS[:2])
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: english\n  data_files: english.csv\n- config_name: german\n  data_files:\n"
        "  - split: train\n    path: german.csv\n  - split: test\n    path: german-test.csv\n---\nTexts.\n"
    )
    assert load_dataset(tmp_path, "text", config="german").values("text") == ["gut"]
    assert len(load_dataset(tmp_path, "text", config="german", split="test")) == 2
    assert len(load_dataset(tmp_path, "text", config="english")) == 7
    message = load_error(folder, "text", config="germna")
    assert "data.train.config: pvc://data/set has no configuration 'germna'; available: english, german" in message
    assert message.endswith("did you mean 'german'?")
    assert "data.train.config: pvc://data/set has several configurations; select one of english, german" in load_error(
        folder, "text"
    )


def test_configuration_ignores_files_without_data(folder: Path, tmp_path: Path) -> None:
    (folder / "en").mkdir()
    write_jsonl(folder / "en" / "rows.jsonl", ROWS)
    (folder / "en" / "notes.txt").write_text("no data")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: en\n  data_files: en/*\n---\n")
    assert load_dataset(tmp_path, "text").values("text") == [row["text"] for row in ROWS]


def test_configuration_with_images_and_metadata(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "en/red.png")
    write_csv(folder / "en" / "metadata.csv", [{"file_name": "red.png", "text": "the red one"}])
    about = "dataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: text\n    dtype: string\n"
    (folder / "README.md").write_text(f"---\n{about}configs:\n- config_name: default\n  data_files: en/**\n---\n")
    (row,) = load_dataset(tmp_path, "image", "text")
    assert row["text"] == "the red one"
    assert row["image"].getpixel((0, 0)) == tiny.COLOURS["red"]


def test_malformed_dataset_infos_are_rejected(folder: Path) -> None:
    write_csv(folder / "a.csv", ROWS)
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: en\n  data_files: a.csv\n---\n")
    (folder / "dataset_infos.json").write_text("{")
    assert "data.train.source: pvc://data/set: its README.md" in load_error(folder, "text")


def test_configuration_of_a_data_set_without_any_is_rejected(folder: Path) -> None:
    write_csv(folder / "a.csv", ROWS)
    assert "data.train.config: pvc://data/set has no configurations" in load_error(folder, "text", config="de")


def test_dataset_script_is_not_executed(folder: Path, tmp_path: Path) -> None:
    (folder / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "expected parquet, jsonl, json, csv, or a folder of images" in load_error(folder, "text")
    write_csv(folder / "a.csv", ROWS)
    assert len(load_dataset(tmp_path, "text")) == 7
    assert not (tmp_path / "executed").exists()


def test_folder_without_data_is_rejected(folder: Path) -> None:
    assert "data.train.source: pvc://data/set: no data in" in load_error(folder, "text")
    (folder / "song.mp3").write_bytes(b"la")
    assert "found .mp3 files" in load_error(folder, "text")


def write_without_rows(kind: str, file: Path) -> None:
    schema = pa.schema([("text", pa.string())])
    match kind:
        case "parquet":
            pq.write_table(schema.empty_table(), file)
        case "arrow":
            pa.ipc.new_stream(str(file), schema).close()
        case "csv" | "tsv":
            file.write_text("text\n")
        case "json":
            file.write_text("[\n]\n")
        case _:
            file.write_text("\n  \n\n")


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("emptiness", ["no bytes", "no rows", "both"])
def test_data_set_without_rows_is_rejected(kind: str, emptiness: str, folder: Path) -> None:
    if emptiness != "no rows":
        (folder / f"a.{kind}").write_bytes(b"")
    if emptiness != "no bytes":
        write_without_rows(kind, folder / f"b.{kind}")
    message = load_error(folder, "text")
    assert message.startswith(f"data.train.source: pvc://data/set: the dataset is empty: no rows in {folder}/")


@pytest.mark.parametrize("kind", WRITERS)
def test_empty_shards_are_ignored(kind: str, folder: Path, tmp_path: Path) -> None:
    (folder / f"a.{kind}").write_bytes(b"")
    WRITERS[kind](folder / f"b.{kind}", ROWS)
    if kind != "arrow":
        write_without_rows(kind, folder / f"c.{kind}")
    data = load_dataset(tmp_path, "text")
    assert len(data) == len(ROWS)
    assert f"b.{kind}" in data.locate(6) or kind == "arrow"


def test_row_over_several_lines_is_located_by_its_first(folder: Path, tmp_path: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": "a",\n "label": 1}\n{"text": "b",\n "label": 1}')
    data = load_dataset(tmp_path, "text")
    assert [data.locate(row) for row in (0, 1)] == [f"{folder}/a.jsonl, line 1", f"{folder}/a.jsonl, line 3"]


def test_objects_without_columns_are_an_empty_data_set(folder: Path) -> None:
    (folder / "a.jsonl").write_text("{}\n{}\n")
    assert "the dataset is empty" in load_error(folder, "text")


def test_objects_over_several_lines(folder: Path, tmp_path: Path) -> None:
    (folder / "a.json").write_text(json.dumps(ROWS[0], indent=2) + "\n\n" + json.dumps(ROWS[1], indent=2) + "\n")
    (folder / "b.json").write_text(json.dumps(ROWS[2], indent=2))
    data = load_dataset(tmp_path, "text")
    assert data.values("text") == ["text 0", "text 1", "text 2"]
    assert [data.locate(row) for row in range(3)] == [
        f"{folder}/a.json, line 1",
        f"{folder}/a.json, line 6",
        f"{folder}/b.json, line 1",
    ]


def test_corrupt_parquet_footer_is_reported(folder: Path, tmp_path: Path) -> None:
    write_parquet(folder / "a.parquet", ROWS)
    content = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(content[:-100] + b"\xff" * 80 + content[-20:])
    assert f"{folder}/a.parquet is not a valid parquet file" in load_error(folder, "text")
    with pytest.raises(UserError, match=r"a\.parquet is not a valid parquet file"):
        count_rows(resolve_files(data_spec().train, "data.train", ClaimPaths(tmp_path)), FAIL)


def test_invalid_parquet_file_is_reported(folder: Path) -> None:
    (folder / "a.parquet").write_text("nothing")
    assert "a.parquet is not a valid parquet file" in load_error(folder, "text")


# Differences between files


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "arrow"])
def test_different_column_name_is_reported(kind: str, folder: Path) -> None:
    WRITERS[kind](folder / f"a.{kind}", ROWS)
    WRITERS[kind](folder / f"b.{kind}", [{"text": "a", "labl": 1}])
    message = load_error(folder, "text", "label")
    assert f"data.train.source: pvc://data/set: {folder}/b.{kind} has no column 'label', unlike" in message
    assert f"unlike {folder}/a.{kind}: all files must have the used columns" in message
    assert message.endswith("available: text, labl; did you mean 'labl'?")


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "arrow"])
def test_different_column_type_is_reported(kind: str, folder: Path) -> None:
    WRITERS[kind](folder / f"a.{kind}", ROWS)
    WRITERS[kind](folder / f"b.{kind}", [{"text": "a", "label": "good"}])
    message = load_error(folder, "text", "label")
    assert f"{folder}/b.{kind} has type string in column 'label', but {folder}/a.{kind} has int64" in message


def test_corrupt_parquet_page_is_reported(folder: Path) -> None:
    write_parquet(folder / "a.parquet", ROWS)
    write_parquet(folder / "b.parquet", ROWS)
    content = (folder / "b.parquet").read_bytes()
    (folder / "b.parquet").write_bytes(content[:4] + b"\xff" * 40 + content[44:])
    assert f"data.train.source: pvc://data/set: {folder}/b.parquet cannot be read: " in load_error(folder, "text")


def test_difference_from_the_dataset_card_is_reported(folder: Path) -> None:
    write_csv(folder / "a.csv", [{"text": "a", "label": "good"}])
    about = "dataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype: int64\n"
    (folder / "README.md").write_text(f"---\n{about}configs:\n- config_name: default\n  data_files: a.csv\n---\n")
    message = load_error(folder, "text", "label")
    assert f"{folder}/a.csv has type string in column 'label', but the dataset card has int64" in message


def test_csv_columns_may_be_in_any_order(folder: Path, tmp_path: Path) -> None:
    write_csv(folder / "a.csv", ROWS[:2])
    (folder / "b.csv").write_text("label,text\n2,text 2\n")
    assert [dict(row) for row in load_dataset(tmp_path, "text", "label")] == ROWS[:3]


# CSV


def test_csv_rows_longer_than_a_default_block(folder: Path, tmp_path: Path) -> None:
    rows = [{"text": letter * 3_000_000, "label": 1} for letter in "ab"]
    write_csv(folder / "a.csv", rows)
    assert load_dataset(tmp_path, "text").values("text") == [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("train", "check", "expected"),
    [
        ("1\n2\nx", "1\n02", ["1", "02"]),
        ("1\n2", "2\ncat", [2, "cat"]),
        ("1\n2", "01\n2", ["01", 2]),
        ("001\n2", "001\n1", ["001", "1"]),
        ("1\n2", "-0\n+2", ["-0", "+2"]),
        ("001\n1", "1\n001", ["1", "001"]),
        ("0\n-1", "-1\n+1", [-1, "+1"]),
        ("a\nb", "1\n2", ["1", "2"]),
    ],
)
def test_csv_labels_have_the_type_of_the_training_set(
    train: str, check: str, expected: list[Any], folder: Path, tmp_path: Path
) -> None:
    for name, labels in {"train": train, "test": check}.items():
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(f"a,{label}\n" for label in labels.split("\n")))
    aligned = align_labels(
        load_dataset(tmp_path, "text", "label", split="test"), load_dataset(tmp_path, "text", "label")
    )
    assert aligned.values("label") == expected
    assert [row["label"] for row in aligned] == expected


def test_csv_labels_are_aligned_with_parquet_integers(folder: Path, tmp_path: Path) -> None:
    write_parquet(folder / "a.parquet", ROWS)
    (tmp_path / "data" / "check").mkdir()
    (tmp_path / "data" / "check" / "a.csv").write_text("text,label\na,1\nb,one\n")
    check = load_dataset(tmp_path, "text", "label", source="pvc://data/check")
    assert align_labels(check, load_dataset(tmp_path, "text", "label")).values("label") == [1, "one"]


def test_csv_only_empty_cells_are_missing(folder: Path, tmp_path: Path) -> None:
    (folder / "a.csv").write_text('text,label\nNA,0\nnull,1\nNone,0\nNaN,1\n"",0\n,1\n')
    data = load_dataset(tmp_path, "text", "label")
    assert data.values("text") == ["NA", "null", "None", "NaN", None, None]
    assert [(problem.index, problem.text) for problem in data.invalid_texts("text")] == [
        (4, "the value is missing"),
        (5, "the value is missing"),
    ]


def test_csv_cells_are_text(folder: Path, tmp_path: Path) -> None:
    (folder / "a.csv").write_text("text,label\n17,1\n2026-01-01,-1\n,2\ntrue,3\n")
    data = load_dataset(tmp_path, "text", "label")
    assert data.values("text") == ["17", "2026-01-01", None, "true"]
    assert data.values("label") == [1, -1, 2, 3]


def test_csv_quoted_cells(folder: Path, tmp_path: Path) -> None:
    texts = ["one, two", 'a "quote"', "two\nlines", "ümlaut"]
    write_csv(folder / "a.csv", [{"text": text, "label": "x"} for text in texts])
    assert load_dataset(tmp_path, "text", "label").values("text") == texts


def test_csv_duplicate_column_is_rejected(folder: Path) -> None:
    (folder / "a.csv").write_text("text,text\na,b\n")
    assert "a.csv has two columns named 'text'" in load_error(folder, "text")


# Column types


def test_class_names_of_parquet_are_read(folder: Path, tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    HFDataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(folder / "a.parquet")
    data = load_dataset(tmp_path, "text", "label")
    assert (data.values("label"), data.class_names("label")) == ([1, 0], ["bad", "good"])
    assert data.class_names("text") is None


def test_conversations_in_json(folder: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    write_jsonl(folder / "a.jsonl", [{"messages": turns}, {"messages": turns[:1]}])
    assert load_dataset(tmp_path, "messages").values("messages") == [turns, turns[:1]]


def test_json_values_of_mixed_types(folder: Path, tmp_path: Path) -> None:
    values: list[Any] = ["a", 17, {"b": 1}, None]
    write_jsonl(folder / "a.jsonl", [{"text": value} for value in values])
    data = load_dataset(tmp_path, "text")
    assert data.values("text") == values
    assert [data[index]["text"] for index in range(4)] == values
    problems = {problem.index: problem.text for problem in data.invalid_texts("text")}
    assert problems == {
        1: "expected text, found 17 (int)",
        2: "expected text, found {'b': 1} (dict)",
        3: "the value is missing",
    }


# Images


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        colour = next((colour for word, colour in tiny.COLOURS.items() if word in name), (0, 0, 0))
        (folder / name).write_bytes(tiny.png(colour))


def test_image_folders_are_classes(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "red/1.png", "red/2.png", "green/1.png")
    data = load_dataset(tmp_path, "image", "label")
    assert data.class_names("label") == ["green", "red"]
    assert sorted(data.values("label")) == [0, 1, 1]
    red = data.values("label").index(1)
    assert data[red]["image"].getpixel((0, 0)) == tiny.COLOURS["red"]
    assert data.locate(red).startswith(f"{folder}/red/1.png")


def test_image_classes_are_aligned_with_the_training_set(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "set", "red/1.png", "green/1.png")
    write_images(tmp_path / "data" / "check", "blue/1.png", "red/1.png")
    train = load_dataset(tmp_path, "image", "label")
    check = align_labels(load_dataset(tmp_path, "image", "label", source="pvc://data/check"), train)
    assert check.class_names("label") == ["green", "red", "blue"]
    named = {check.class_names("label")[row["label"]]: row["image"] for row in check}  # type: ignore[index]
    assert named["red"].getpixel((0, 0)) == tiny.COLOURS["red"]
    assert named["blue"].getpixel((0, 0)) == tiny.COLOURS["blue"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_class_names_of_a_table_and_of_folders_are_aligned(kind: str, tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "set", "red/1.png", "green/1.png")
    write_images(tmp_path / "data" / "check", "r.png", "g.png", "b.png")
    labels = {"r.png": "red", "g.png": "green", "b.png": "blue"}
    rows = [{"file_name": name, "label": label} for name, label in labels.items()]
    WRITERS[kind](tmp_path / "data" / "check" / f"metadata.{kind}", rows)
    folders = load_dataset(tmp_path, "image", "label")
    table = load_dataset(tmp_path, "image", "label", source="pvc://data/check")
    assert align_labels(table, folders).values("label") == [1, 0, "blue"]
    assert sorted(align_labels(folders, table).values("label")) == ["green", "red"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_images_with_metadata(kind: str, folder: Path, tmp_path: Path) -> None:
    write_images(folder, "red.png", "deeper/green.png")
    rows = [{"file_name": "deeper/green.png", "text": "NA"}, {"file_name": "red.png", "text": "the red one"}]
    WRITERS[kind](folder / f"metadata.{kind}", rows)
    data = load_dataset(tmp_path, "image", "text")
    assert [row["text"] for row in data] == ["NA", "the red one"]
    assert data[0]["image"].getpixel((0, 0)) == tiny.COLOURS["green"]
    assert list(invalid_images(data)) == []


def test_metadata_in_each_split(folder: Path, tmp_path: Path) -> None:
    for split, colour in {"train": "red", "test": "blue"}.items():
        write_images(folder / split, f"{colour}.png")
        write_csv(folder / split / "metadata.csv", [{"file_name": f"{colour}.png", "text": colour}])
    assert load_dataset(tmp_path, "image", "text").values("text") == ["red"]
    test = load_dataset(tmp_path, "image", "text", split="test")
    assert test[0]["image"].getpixel((0, 0)) == tiny.COLOURS["blue"]


def test_metadata_with_a_missing_image_is_a_bad_row(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "red.png")
    write_csv(folder / "metadata.csv", [{"file_name": name, "text": "x"} for name in ("red.png", "gone.png")])
    data = load_dataset(tmp_path, "image", "text")
    (problem,) = invalid_images(data)
    assert problem.index == 1
    assert "cannot decode the image" in problem.text
    assert f"{folder}/metadata.csv, line 3" in data.describe(problem)


def test_csv_with_image_paths(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "images/red.png", "images/blue.png")
    write_csv(folder / "captions.csv", [{"image": "images/red.png", "text": "red"}])
    data = load_dataset(tmp_path, "image", "text")
    assert data[0]["image"].getpixel((0, 0)) == tiny.COLOURS["red"]


# Columns


def test_columns_of_the_first_alternative_that_exists() -> None:
    required = (("messages",), ("prompt", "completion"), ("text",))
    available = ["prompt", "completion", "text"]

    def resolve(**columns: str) -> dict[str, str]:
        return resolve_columns(available, Columns(**columns), required, ("label",), "data.train.source")

    assert resolve() == {"prompt": "prompt", "completion": "completion"}
    assert resolve(text="text") == {"text": "text"}
    assert resolve(text="prompt") == {"text": "prompt"}
    with pytest.raises(UserError, match=r"data\.columns\.messages: data\.train\.source has no column 'mesages'"):
        resolve(messages="mesages")
    with pytest.raises(UserError, match=r"data\.columns\.image: 'text': not used by this task"):
        resolve(image="text")
    with pytest.raises(
        UserError, match="needs the columns messages, or prompt and completion, or text; available: other"
    ):
        resolve_columns(["other"], Columns(), required, (), "data.train.source")


def test_table_has_all_columns(folder: Path, tmp_path: Path) -> None:
    write_csv(folder / "a.csv", [{"text": "a", "patient": "p1"}])
    assert load_table(tmp_path).columns == ["text", "patient"]
