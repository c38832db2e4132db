"""Every sample in docs/data.md is read as documented."""

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from finetune_api.data import Columns
from finetune_trainer.data import resolve_columns
from finetune_trainer.tasks import TASKS
from unit.trainer.loading import load_table

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
SAMPLE = re.compile(r"^```\w+ (\S+\.\w+) (\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


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
    assert "image" not in names or not list(data.invalid_images())
