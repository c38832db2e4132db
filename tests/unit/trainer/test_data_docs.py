"""Every sample in docs/data.md is read as documented."""

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from finetune_api.data import Columns
from finetune_trainer.data import resolve_columns
from finetune_trainer.data.layout import infer_layout
from finetune_trainer.tasks import TASKS
from unit.trainer.loading import invalid_images, load_table

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
SAMPLE = re.compile(r"^```\w+ (\S+\.\w+) (\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


SPLIT_ROW = re.compile(r"^\| (`[^|]+) \| ([^|]+) \|$", flags=re.MULTILINE)


def samples() -> list[tuple[str, ...]]:
    """File name, task and content."""
    return [match.groups() for match in SAMPLE.finditer(PAGE.read_text())]


def rows_of(name: str, text: str) -> list[dict[str, str]]:
    lines = text.splitlines()
    return list(csv.DictReader(lines)) if name.endswith(".csv") else [json.loads(line) for line in lines]


def test_every_task_has_a_sample() -> None:
    assert {task for _, task, _ in samples()} == TASKS.keys()


@pytest.mark.parametrize(("name", "task", "text"), samples())
def test_sample_is_read(tmp_path: Path, name: str, task: str, text: str) -> None:
    folder = tmp_path / "data" / "set"
    folder.mkdir(parents=True)
    (folder / name).write_text(text)
    rows = rows_of(name, text)
    for path in (row[key] for row in rows for key in ("image", "file_name") if key in row):
        (folder / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / path)
    table, task_class = load_table(tmp_path), TASKS[task]
    names = resolve_columns(
        table.columns, Columns(), task_class.required_roles, task_class.optional_roles, "data.train.source"
    )
    data = table.to_dataset(names)
    assert len(data) == len(rows)
    for role in names.keys() & rows[0].keys() - {"image"}:
        assert data.values(role) == [row[role] for row in rows]
    assert "image" not in names or not list(invalid_images(data))


def split_examples() -> list[tuple[list[str], set[str]]]:
    """Files, and the splits that they have, from the table of splits."""
    table = PAGE.read_text().partition("| files | splits |")[2].partition("\n\n")[0]
    return [
        (re.findall("`([^`]+)`", files), set(re.findall(r"\b(train|test)\b", splits)))
        for row in SPLIT_ROW.findall(table)
        for files, splits in [(group, row[1]) for group in row[0].split(";")]
    ]


@pytest.mark.parametrize(("files", "splits"), split_examples())
def test_splits_are_as_documented(files: list[str], splits: set[str]) -> None:
    assert infer_layout(files).splits.keys() == splits


def test_table_of_splits_is_found() -> None:
    assert len(split_examples()) > 10
