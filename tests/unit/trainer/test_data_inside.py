"""A data set reads its own files, and nothing else of the machine, whatever its files name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import BadRows, find
from finetune_trainer.errors import UserError
from unit.trainer import tiny
from unit.trainer.reading import opened, spec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data set `pvc://data/set`; beside it is an image, and outside the claim a secret one."""
    made = tmp_path / "data" / "set"
    made.mkdir(parents=True)
    for name in ("data/beside.png", "secret.png", "data/set/mine.png"):
        (tmp_path / name).write_bytes(tiny.png((9, 9, 9)))
    return made


def table_of_paths(folder: Path, path: str) -> None:
    rows = [{"image": name, "text": "a"} for name in ("mine.png", path)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def table_of_structs(folder: Path, path: str) -> None:
    rows = [{"image": {"bytes": None, "path": name}, "text": "a"} for name in ("mine.png", path)]
    tiny.write_rows(folder, rows)


def table_beside_images(folder: Path, path: str) -> None:
    (folder / "metadata.csv").write_text(f"file_name,text\nmine.png,a\n{path},a\n")


TABLES = [table_of_paths, table_of_structs, table_beside_images]


@pytest.mark.parametrize("write", TABLES)
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("../beside.png", "'../beside.png' leads out of its folder: expected a path inside the data set's folder"),
        ("{tmp}/secret.png", "secret.png' is an absolute path: expected a path inside"),
        ("file://{tmp}/secret.png", "is a URL: expected a path inside"),
        ("https://example.org/a.png", "'https://example.org/a.png' is a URL"),
        ("link.png", "'link.png' is a link that leads out of the claim"),
        ("deeper/secret.png", "'deeper/secret.png' is a link that leads out of the claim"),
    ],
)
def test_a_row_names_no_image_elsewhere(
    write: Callable[[Path, str], None], path: str, words: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "deeper").symlink_to(tmp_path)
    write(folder, path.format(tmp=tmp_path))
    data = opened(tmp_path, "image", "text")
    (problem,) = data.image_problems()
    assert problem.index == 1
    assert words in problem.text
    with pytest.raises(UserError, match="not an image that can be opened"):
        data[1]
    assert len(BadRows(skip=True, limit=1).drop(data, data.image_problems())) == 1


def test_a_folder_of_images_with_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (problem,) = opened(tmp_path, "image", "label").image_problems()
    assert "'link.png' is a link that leads out of the claim" in problem.text


@pytest.mark.parametrize("kind", ["file", "folder", "card"])
def test_links_out_of_the_claim(kind: str, folder: Path, tmp_path: Path) -> None:
    outside = tiny.write_rows(tmp_path / "outside", tiny.reviews(4), "a.parquet")
    (outside / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    link, target = {
        "file": (folder / "a.parquet", outside / "a.parquet"),
        "folder": (tmp_path / "data" / "other", outside),
        "card": (folder / "README.md", outside / "README.md"),
    }[kind]
    link.symlink_to(target)
    source = "pvc://data/other" if kind == "folder" else "pvc://data/set"
    with pytest.raises(UserError) as raised:
        opened(tmp_path, "text", source=source)
    assert f"data.train.source: {source}: {link} is a link that leads out of the claim" in str(raised.value)


def test_links_within_the_claim(folder: Path, tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "store", tiny.reviews(4), "a.parquet")
    (folder / "mine.png").unlink()
    (folder / "a.parquet").symlink_to("../store/a.parquet")
    assert len(opened(tmp_path, "text")) == 4


def card(*lines: str) -> str:
    return "\n".join(["---", "configs:", "- config_name: default", *(f"  {line}" for line in lines), "---", ""])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["data_files: ../../secret.csv"], "'../../secret.csv' leads out of its folder"),
        (["data_files: '{tmp}/secret.csv'"], "secret.csv' is an absolute path"),
        (["data_files: ['a.csv', 'deeper/../../../secret.csv']"], "leads out of its folder"),
        (["data_files: 'https://example.org/a.csv'"], "'https://example.org/a.csv' is a URL"),
        (["data_files: 'zip://a.csv::b.zip'"], "'zip://a.csv::b.zip' is a URL"),
        (["data_files:", "- split: train", "  path: ['../*.csv']"], "'../*.csv' leads out of its folder"),
        (["data_dir: ../.."], "'../..' leads out of its folder"),
        (["data_dir: '{tmp}'"], "is an absolute path"),
        (["data_files: 'link/*.csv'"], "'link/*.csv' is a link that leads out of the claim"),
    ],
)
def test_a_card_names_no_files_elsewhere(lines: list[str], words: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("text\nsecret\n")
    (folder / "a.csv").write_text("text\nmine\n")
    (folder / "link").symlink_to(tmp_path)
    (folder / "README.md").write_text(card(*(line.format(tmp=tmp_path) for line in lines)))
    with pytest.raises(UserError) as raised:
        opened(tmp_path, "text")
    assert "data.train.source: pvc://data/set: configuration 'default' of its README.md:" in str(raised.value)
    assert words in str(raised.value)


# -- what has to go on working


def write_images_with_a_table(folder: Path) -> Any:
    (folder / "deeper").mkdir()
    (folder / "deeper" / "red.png").write_bytes(tiny.png(tiny.COLOURS["red"]))
    (folder / "metadata.csv").write_text("file_name,text\ndeeper/red.png,red\n")
    return "text"


def write_classes(folder: Path) -> Any:
    (folder / "mine.png").unlink()
    (folder / "red").mkdir()
    (folder / "red" / "1.png").write_bytes(tiny.png(tiny.COLOURS["red"]))
    return "label"


def write_a_card(folder: Path) -> Any:
    (folder / "red.png").write_bytes(tiny.png(tiny.COLOURS["red"]))
    (folder / "rows.jsonl").write_text('{"image": "red.png", "text": "red"}\n')
    (folder / "README.md").write_text(card("data_files: rows.jsonl"))
    return "text"


@pytest.mark.parametrize("write", [write_images_with_a_table, write_classes, write_a_card])
@pytest.mark.parametrize("claims", ["data/..", "link", "{tmp}/link"])
def test_claims_that_are_relative_or_behind_a_link(
    write: Callable[[Path], str], claims: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = write(folder)
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = opened(Path(claims.format(tmp=tmp_path)), "image", role)
    assert data[0]["image"].getpixel((0, 0)) == tiny.COLOURS["red"]
    assert list(data.image_problems()) == []
    assert "set/" in data.where(0)


def test_a_claim_that_is_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "mine.png").unlink()
    tiny.write_rows(folder, tiny.reviews(3))
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "data").symlink_to(tmp_path / "data")
    layout = find(spec().train, "data.train", ClaimPaths(tmp_path / "claims"))
    assert layout.root == tmp_path / "data"
