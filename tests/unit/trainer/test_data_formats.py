"""Every format gives the same rows, says where a row came from, and names what is wrong with it."""

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
from datasets import Dataset as LibraryDataset

from finetune_api.data import Columns, DataSource
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import BadRows, count, find, name_columns, same_classes
from finetune_trainer.errors import UserError
from unit.trainer import tiny
from unit.trainer.reading import opened, spec, table

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
    """The data set `pvc://data/set`."""
    made = tmp_path / "data" / "set"
    made.mkdir(parents=True)
    return made


def refusal(folder: Path, *roles: str, **train: Any) -> str:
    with pytest.raises(UserError) as raised:
        opened(folder.parents[1], *roles, **train)
    return str(raised.value)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_of_several_files(kind: str, folder: Path, tmp_path: Path) -> None:
    (folder / "deeper").mkdir()
    WRITERS[kind](folder / f"a.{kind}", ROWS[:4])
    WRITERS[kind](folder / "deeper" / f"b.{kind}", ROWS[4:])
    data = opened(tmp_path, "text", "label")
    assert data.values("text") == [row["text"] for row in ROWS]
    assert data.values("label") == [row["label"] for row in ROWS]
    assert data[5] == ROWS[5]
    assert list(data.text_problems("text")) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_one_file(kind: str, folder: Path, tmp_path: Path) -> None:
    WRITERS[kind](folder / f"mine.{kind}", ROWS)
    WRITERS[kind](folder / f"other.{kind}", ROWS[:1])
    source = f"pvc://data/set/mine.{kind}"
    assert opened(tmp_path, "text", source=source).values("text") == [row["text"] for row in ROWS]


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_are_counted_without_a_plan(kind: str, folder: Path, tmp_path: Path) -> None:
    WRITERS[kind](folder / f"a.{kind}", ROWS)
    assert count(find(spec().train, "data.train", ClaimPaths(tmp_path)), BadRows(False, 0)) == len(ROWS)


@pytest.mark.parametrize(
    ("kind", "place"), [("parquet", "row 2"), ("jsonl", "line 3"), ("json", "line 10"), ("csv", "row 4")]
)
def test_where_a_row_is(kind: str, place: str, folder: Path, tmp_path: Path) -> None:
    WRITERS[kind](folder / f"a.{kind}", ROWS[:4])
    WRITERS[kind](folder / f"b.{kind}", ROWS[:4])
    data = opened(tmp_path, "text")
    assert data.where(2) == f"{folder}/a.{kind}, {place}"
    assert data.where(6) == f"{folder}/b.{kind}, {place}"


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_replaced_files_are_read_again(kind: str, folder: Path, tmp_path: Path) -> None:
    file = folder / f"a.{kind}"
    WRITERS[kind](file, ROWS)
    assert opened(tmp_path, "text").values("text")[0] == "text 0"
    old = file.stat()
    WRITERS[kind](tmp_path / "new", [{**row, "text": row["text"].replace("text", "word")} for row in ROWS])
    shutil.copystat(file, tmp_path / "new")  # as `cp -p` and rsync do
    (tmp_path / "new").replace(file)
    assert file.stat().st_mtime_ns == old.st_mtime_ns
    assert opened(tmp_path, "text").values("text")[0] == "word 0"


# -- splits


def test_splits_by_name(folder: Path, tmp_path: Path) -> None:
    for split, rows in {"train": ROWS, "validation": ROWS[:3], "test": ROWS[:2]}.items():
        write_jsonl(folder / f"{split}.jsonl", rows)
    assert len(opened(tmp_path, "text")) == 7
    assert len(opened(tmp_path, "text", split="test")) == 2
    source, claim_paths = DataSource(source="pvc://data/set"), ClaimPaths(tmp_path)
    assert find(source, "data.validation", claim_paths).split == "validation"
    assert find(source, "data.test", claim_paths).split == "test"


def test_a_split_that_is_not_there(folder: Path) -> None:
    write_csv(folder / "train.csv", ROWS)
    write_csv(folder / "test.csv", ROWS)
    message = refusal(folder, "text", split="tset")
    assert "data.train.split: pvc://data/set has no split 'tset'; did you mean 'test'? It has train, test" in message


@pytest.mark.parametrize(
    ("there", "wanted"), [("dev", "validation"), ("validation", "val"), ("valid", "dev"), ("eval", "test")]
)
def test_a_split_has_many_names(there: str, wanted: str, folder: Path) -> None:
    names = ("train", there)
    lines = "".join(f"  - split: {name}\n    path: {name}.csv\n" for name in names)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{lines}---\n")
    for name in names:
        write_csv(folder / f"{name}.csv", ROWS)
    assert f"has no split {wanted!r}; did you mean {there!r}?" in refusal(folder, "text", split=wanted)


def test_splits_that_the_library_has_no_names_for(folder: Path) -> None:
    (folder / "data").mkdir()
    write_csv(folder / "data" / "tra!n-00000-of-00001.csv", ROWS)
    assert "data.train.source: pvc://data/set: Split name should match" in refusal(folder, "text")


def test_the_only_split_will_do(folder: Path, tmp_path: Path) -> None:
    write_csv(folder / "test.csv", ROWS)
    assert len(opened(tmp_path, "text")) == 7
    assert "data.train.split" in refusal(folder, "text", split="train")


def test_configurations_of_a_card(folder: Path, tmp_path: Path) -> None:
    write_csv(folder / "english.csv", ROWS)
    write_csv(folder / "german.csv", [{"text": "gut", "label": 1}])
    write_csv(folder / "german-test.csv", ROWS[:2])
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files: english.csv\n- config_name: de\n  data_files:\n"
        "  - split: train\n    path: german.csv\n  - split: test\n    path: german-test.csv\n---\nTexts.\n"
    )
    assert opened(tmp_path, "text", config="de").values("text") == ["gut"]
    assert len(opened(tmp_path, "text", config="de", split="test")) == 2
    assert len(opened(tmp_path, "text", config="en")) == 7
    message = refusal(folder, "text", config="dee")
    assert "data.train.config: pvc://data/set has no configuration 'dee'; did you mean 'de'? It has en, de" in message
    assert "data.train.config: pvc://data/set has several configurations; say one of en, de" in refusal(folder, "text")


def test_a_configuration_of_files_of_several_kinds(folder: Path, tmp_path: Path) -> None:
    (folder / "en").mkdir()
    write_jsonl(folder / "en" / "rows.jsonl", ROWS)
    (folder / "en" / "notes.txt").write_text("not of the data")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: en\n  data_files: en/*\n---\n")
    assert opened(tmp_path, "text").values("text") == [row["text"] for row in ROWS]


def test_a_configuration_of_images_with_a_table(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "en/red.png")
    write_csv(folder / "en" / "metadata.csv", [{"file_name": "red.png", "text": "the red one"}])
    about = "dataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: text\n    dtype: string\n"
    (folder / "README.md").write_text(f"---\n{about}configs:\n- config_name: default\n  data_files: en/**\n---\n")
    (row,) = opened(tmp_path, "image", "text")
    assert row["text"] == "the red one"
    assert row["image"].getpixel((0, 0)) == tiny.COLOURS["red"]


def test_a_card_whose_description_is_broken(folder: Path) -> None:
    write_csv(folder / "a.csv", ROWS)
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: en\n  data_files: a.csv\n---\n")
    (folder / "dataset_infos.json").write_text("{")
    assert "data.train.source: pvc://data/set: its README.md" in refusal(folder, "text")


def test_a_configuration_where_there_are_none(folder: Path) -> None:
    write_csv(folder / "a.csv", ROWS)
    assert "data.train.config: pvc://data/set has no configurations" in refusal(folder, "text", config="de")


def test_a_script_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "expected parquet, jsonl, json, csv, or a folder of images" in refusal(folder, "text")
    write_csv(folder / "a.csv", ROWS)
    assert len(opened(tmp_path, "text")) == 7
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_data(folder: Path) -> None:
    assert "data.train.source: pvc://data/set: no data in" in refusal(folder, "text")
    (folder / "song.mp3").write_bytes(b"la")
    assert "found .mp3 files" in refusal(folder, "text")


def no_rows(kind: str, file: Path) -> None:
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
def test_files_without_rows(kind: str, emptiness: str, folder: Path) -> None:
    if emptiness != "no rows":
        (folder / f"a.{kind}").write_bytes(b"")
    if emptiness != "no bytes":
        no_rows(kind, folder / f"b.{kind}")
    message = refusal(folder, "text")
    assert message.startswith(f"data.train.source: pvc://data/set: the data set is empty: no rows in {folder}/")


@pytest.mark.parametrize("kind", WRITERS)
def test_parts_without_rows_are_no_trouble(kind: str, folder: Path, tmp_path: Path) -> None:
    (folder / f"a.{kind}").write_bytes(b"")
    WRITERS[kind](folder / f"b.{kind}", ROWS)
    if kind != "arrow":
        no_rows(kind, folder / f"c.{kind}")
    data = opened(tmp_path, "text")
    assert len(data) == len(ROWS)
    assert f"b.{kind}" in data.where(6) or kind == "arrow"


def test_rows_that_are_no_lines_have_a_place_all_the_same(folder: Path, tmp_path: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": "a",\n "label": 1}\n{"text": "b",\n "label": 1}')
    data = opened(tmp_path, "text")
    assert [data.where(row) for row in (0, 1)] == [f"{folder}/a.jsonl, row 0", f"{folder}/a.jsonl, row 1"]


def test_objects_without_columns(folder: Path) -> None:
    (folder / "a.jsonl").write_text("{}\n{}\n")
    assert "the data set is empty" in refusal(folder, "text")


def test_objects_that_go_over_lines(folder: Path, tmp_path: Path) -> None:
    (folder / "a.json").write_text(json.dumps(ROWS[0], indent=2) + "\n\n" + json.dumps(ROWS[1], indent=2) + "\n")
    (folder / "b.json").write_text(json.dumps(ROWS[2], indent=2))
    data = opened(tmp_path, "text")
    assert data.values("text") == ["text 0", "text 1", "text 2"]
    assert [data.where(row) for row in range(3)] == [
        f"{folder}/a.json, line 1",
        f"{folder}/a.json, line 6",
        f"{folder}/b.json, line 1",
    ]


def test_a_torn_footer_is_named(folder: Path, tmp_path: Path) -> None:
    write_parquet(folder / "a.parquet", ROWS)
    whole = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(whole[:-100] + b"\xff" * 80 + whole[-20:])
    assert f"{folder}/a.parquet is not a parquet file that can be read" in refusal(folder, "text")
    with pytest.raises(UserError, match=r"a\.parquet is not a parquet file"):
        count(find(spec().train, "data.train", ClaimPaths(tmp_path)), BadRows(False, 0))


def test_a_file_that_is_no_parquet(folder: Path) -> None:
    (folder / "a.parquet").write_text("nothing")
    assert "a.parquet is not a parquet file that can be read" in refusal(folder, "text")


# -- files that do not go together


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "arrow"])
def test_a_column_with_another_name(kind: str, folder: Path) -> None:
    WRITERS[kind](folder / f"a.{kind}", ROWS)
    WRITERS[kind](folder / f"b.{kind}", [{"text": "a", "labl": 1}])
    message = refusal(folder, "text")
    assert f"data.train.source: pvc://data/set: {folder}/b.{kind} has no column 'label' and a column 'labl'" in message
    assert f"unlike {folder}/a.{kind}: all files of a data set have the same columns" in message


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "arrow"])
def test_a_column_of_another_type(kind: str, folder: Path) -> None:
    WRITERS[kind](folder / f"a.{kind}", ROWS)
    WRITERS[kind](folder / f"b.{kind}", [{"text": "a", "label": "good"}])
    message = refusal(folder, "text")
    assert f"{folder}/b.{kind} has string in column 'label', where {folder}/a.{kind} has int64" in message


def test_a_type_that_changes_within_a_file(folder: Path) -> None:
    write_parquet(folder / "a.parquet", ROWS)
    write_parquet(folder / "b.parquet", ROWS)
    whole = (folder / "b.parquet").read_bytes()
    (folder / "b.parquet").write_bytes(whole[:4] + b"\xff" * 40 + whole[44:])
    assert f"data.train.source: pvc://data/set: {folder}/b.parquet cannot be read: " in refusal(folder, "text")


def test_a_card_that_says_something_else(folder: Path) -> None:
    write_csv(folder / "a.csv", [{"text": "a", "label": "good"}])
    about = "dataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype: int64\n"
    (folder / "README.md").write_text(f"---\n{about}configs:\n- config_name: default\n  data_files: a.csv\n---\n")
    message = refusal(folder, "text")
    assert f"{folder}/a.csv has string in column 'label', where the data set's card has int64" in message


def test_columns_of_csv_come_in_any_order(folder: Path, tmp_path: Path) -> None:
    write_csv(folder / "a.csv", ROWS[:2])
    (folder / "b.csv").write_text("label,text\n2,text 2\n")
    assert [dict(row) for row in opened(tmp_path, "text", "label")] == ROWS[:3]


# -- CSV


def test_long_rows(folder: Path, tmp_path: Path) -> None:
    rows = [{"text": letter * 3_000_000, "label": 1} for letter in "ab"]
    write_csv(folder / "a.csv", rows)
    assert opened(tmp_path, "text").values("text") == [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("train", "check", "expected"),
    [
        ("1\n2\nx", "1\n02", ["1", "02"]),
        ("1\n2", "2\ncat", [2, "cat"]),
        ("1\n2", "01\n2", [1, 2]),
        ("a\nb", "1\n2", ["1", "2"]),
    ],
)
def test_a_label_is_of_the_type_that_training_gives_it(
    train: str, check: str, expected: list[Any], folder: Path, tmp_path: Path
) -> None:
    for name, labels in {"train": train, "test": check}.items():
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(f"a,{label}\n" for label in labels.split("\n")))
    found = same_classes(opened(tmp_path, "text", "label", split="test"), opened(tmp_path, "text", "label"))
    assert found.values("label") == expected
    assert [row["label"] for row in found] == expected


def test_labels_of_csv_beside_numbers_of_parquet(folder: Path, tmp_path: Path) -> None:
    write_parquet(folder / "a.parquet", ROWS)
    (tmp_path / "data" / "check").mkdir()
    (tmp_path / "data" / "check" / "a.csv").write_text("text,label\na,1\nb,one\n")
    check = opened(tmp_path, "text", "label", source="pvc://data/check")
    assert same_classes(check, opened(tmp_path, "text", "label")).values("label") == [1, "one"]


def test_only_an_empty_cell_is_missing(folder: Path, tmp_path: Path) -> None:
    (folder / "a.csv").write_text('text,label\nNA,0\nnull,1\nNone,0\nNaN,1\n"",0\n,1\n')
    data = opened(tmp_path, "text", "label")
    assert data.values("text") == ["NA", "null", "None", "NaN", None, None]
    assert [(problem.index, problem.text) for problem in data.text_problems("text")] == [
        (4, "the value is missing"),
        (5, "the value is missing"),
    ]


def test_a_cell_of_csv_is_text(folder: Path, tmp_path: Path) -> None:
    (folder / "a.csv").write_text("text,label\n17,1\n2026-01-01,01\n,2\ntrue,3\n")
    data = opened(tmp_path, "text", "label")
    assert data.values("text") == ["17", "2026-01-01", None, "true"]
    assert data.values("label") == [1, 1, 2, 3]


def test_cells_with_commas_and_lines(folder: Path, tmp_path: Path) -> None:
    texts = ["one, two", 'a "quote"', "two\nlines", "ümlaut"]
    write_csv(folder / "a.csv", [{"text": text, "label": "x"} for text in texts])
    assert opened(tmp_path, "text", "label").values("text") == texts


def test_a_csv_with_two_columns_of_one_name(folder: Path) -> None:
    (folder / "a.csv").write_text("text,text\na,b\n")
    assert "a.csv has two columns with the name 'text'" in refusal(folder, "text")


# -- what the files say of their columns


def test_class_names_of_parquet_are_kept(folder: Path, tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    LibraryDataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(folder / "a.parquet")
    data = opened(tmp_path, "text", "label")
    assert (data.values("label"), data.class_names("label")) == ([1, 0], ["bad", "good"])
    assert data.class_names("text") is None


def test_conversations_of_json(folder: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    write_jsonl(folder / "a.jsonl", [{"messages": turns}, {"messages": turns[:1]}])
    assert opened(tmp_path, "messages").values("messages") == [turns, turns[:1]]


def test_json_of_many_types_is_read_as_it_is(folder: Path, tmp_path: Path) -> None:
    values: list[Any] = ["a", 17, {"b": 1}, None]
    write_jsonl(folder / "a.jsonl", [{"text": value} for value in values])
    data = opened(tmp_path, "text")
    assert data.values("text") == values
    assert [data[index]["text"] for index in range(4)] == values
    problems = {problem.index: problem.text for problem in data.text_problems("text")}
    assert problems == {
        1: "expected text, found 17 (int)",
        2: "expected text, found {'b': 1} (dict)",
        3: "the value is missing",
    }


# -- images


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        colour = next((colour for word, colour in tiny.COLOURS.items() if word in name), (0, 0, 0))
        (folder / name).write_bytes(tiny.png(colour))


def test_a_folder_for_each_class(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "red/1.png", "red/2.png", "green/1.png")
    data = opened(tmp_path, "image", "label")
    assert data.class_names("label") == ["green", "red"]
    assert sorted(data.values("label")) == [0, 1, 1]
    red = data.values("label").index(1)
    assert data[red]["image"].getpixel((0, 0)) == tiny.COLOURS["red"]
    assert data.where(red).startswith(f"{folder}/red/1.png")


def test_classes_mean_the_same_in_each_data_set(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "set", "red/1.png", "green/1.png")
    write_images(tmp_path / "data" / "check", "blue/1.png", "red/1.png")
    train = opened(tmp_path, "image", "label")
    check = same_classes(opened(tmp_path, "image", "label", source="pvc://data/check"), train)
    assert check.class_names("label") == ["green", "red", "blue"]
    named = {check.class_names("label")[row["label"]]: row["image"] for row in check}  # type: ignore[index]
    assert named["red"].getpixel((0, 0)) == tiny.COLOURS["red"]
    assert named["blue"].getpixel((0, 0)) == tiny.COLOURS["blue"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_images_with_a_table_about_them(kind: str, folder: Path, tmp_path: Path) -> None:
    write_images(folder, "red.png", "deeper/green.png")
    rows = [{"file_name": "deeper/green.png", "text": "NA"}, {"file_name": "red.png", "text": "the red one"}]
    WRITERS[kind](folder / f"metadata.{kind}", rows)
    data = opened(tmp_path, "image", "text")
    assert [row["text"] for row in data] == ["NA", "the red one"]
    assert data[0]["image"].getpixel((0, 0)) == tiny.COLOURS["green"]
    assert list(data.image_problems()) == []


def test_a_table_in_each_split(folder: Path, tmp_path: Path) -> None:
    for split, colour in {"train": "red", "test": "blue"}.items():
        write_images(folder / split, f"{colour}.png")
        write_csv(folder / split / "metadata.csv", [{"file_name": f"{colour}.png", "text": colour}])
    assert opened(tmp_path, "image", "text").values("text") == ["red"]
    test = opened(tmp_path, "image", "text", split="test")
    assert test[0]["image"].getpixel((0, 0)) == tiny.COLOURS["blue"]


def test_an_image_that_the_table_names_in_vain(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "red.png")
    write_csv(folder / "metadata.csv", [{"file_name": name, "text": "x"} for name in ("red.png", "gone.png")])
    data = opened(tmp_path, "image", "text")
    (problem,) = data.image_problems()
    assert problem.index == 1
    assert "not an image that can be opened" in problem.text
    assert f"{folder}/metadata.csv, row 3" in data.describe(problem)


def test_a_table_with_paths_beside_the_images(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "images/red.png", "images/blue.png")
    write_csv(folder / "captions.csv", [{"image": "images/red.png", "text": "red"}])
    data = opened(tmp_path, "image", "text")
    assert data[0]["image"].getpixel((0, 0)) == tiny.COLOURS["red"]


# -- columns


def test_the_first_alternative_that_is_there() -> None:
    needs = (("messages",), ("prompt", "completion"), ("text",))
    there = ["prompt", "completion", "text"]

    def named(**columns: str) -> dict[str, str]:
        return name_columns(there, Columns(**columns), needs, ("label",), "data.train.source")

    assert named() == {"prompt": "prompt", "completion": "completion"}
    assert named(text="text") == {"text": "text"}
    assert named(text="prompt") == {"text": "prompt"}
    with pytest.raises(UserError, match=r"data\.columns\.messages: data\.train\.source has no column 'mesages'"):
        named(messages="mesages")
    with pytest.raises(UserError, match=r"data\.columns\.image: 'text': this task has no use for it"):
        named(image="text")
    with pytest.raises(UserError, match="needs the columns messages, or prompt and completion, or text; it has other"):
        name_columns(["other"], Columns(), needs, (), "data.train.source")


def test_the_table_has_all_columns(folder: Path, tmp_path: Path) -> None:
    write_csv(folder / "a.csv", [{"text": "a", "patient": "p1"}])
    assert table(tmp_path).columns == ["text", "patient"]
