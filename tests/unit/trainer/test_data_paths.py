"""A dataset cannot read files outside its folder, whatever paths and links it contains."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import BadRowPolicy, resolve_files
from finetune_trainer.errors import UserError
from unit.trainer import tiny
from unit.trainer.loading import data_spec, invalid_images, load_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of the dataset `pvc://data/set`, with an image beside it and one outside the claim."""
    folder = tmp_path / "data" / "set"
    folder.mkdir(parents=True)
    for name in ("data/beside.png", "secret.png", "data/set/mine.png"):
        (tmp_path / name).write_bytes(tiny.png((9, 9, 9)))
    return folder


def write_paths(folder: Path, path: str) -> None:
    rows = [{"image": name, "text": "a"} for name in ("mine.png", path)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_structs(folder: Path, path: str) -> None:
    rows = [{"image": {"bytes": None, "path": name}, "text": "a"} for name in ("mine.png", path)]
    tiny.write_rows(folder, rows)


def write_metadata(folder: Path, path: str) -> None:
    (folder / "metadata.csv").write_text(f"file_name,text\nmine.png,a\n{path},a\n")


WRITERS = [write_paths, write_structs, write_metadata]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "../beside.png",
            "'../beside.png' is outside the dataset's folder: expected a path relative to the dataset's folder",
        ),
        ("{tmp}/secret.png", "secret.png' is an absolute path: expected a path relative to"),
        ("file://{tmp}/secret.png", "is a URL: expected a path relative to"),
        ("https://example.org/a.png", "'https://example.org/a.png' is a URL"),
        ("link.png", "'link.png' is a symbolic link to a target outside the claim"),
        ("deeper/secret.png", "'deeper/secret.png' is a symbolic link to a target outside the claim"),
    ],
)
def test_image_path_outside_the_data_set_is_a_bad_row(
    write: Callable[[Path, str], None], path: str, message: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "deeper").symlink_to(tmp_path)
    write(folder, path.format(tmp=tmp_path))
    data = load_dataset(tmp_path, "image", "text")
    (problem,) = invalid_images(data)
    assert problem.index == 1
    assert message in problem.text
    with pytest.raises(UserError, match="cannot decode the image"):
        data[1]
    assert len(BadRowPolicy(skip=True, limit=1).drop_rows(data, invalid_images(data))) == 1


def test_link_to_an_image_outside_the_claim_is_a_bad_row(folder: Path, tmp_path: Path) -> None:
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (problem,) = invalid_images(load_dataset(tmp_path, "image", "label"))
    assert "'link.png' is a symbolic link to a target outside the claim" in problem.text


@pytest.mark.parametrize("kind", ["file", "folder", "card"])
def test_link_out_of_the_claim_is_rejected(kind: str, folder: Path, tmp_path: Path) -> None:
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
        load_dataset(tmp_path, "text", source=source)
    assert f"data.train.source: {source}: {link} is a symbolic link to a target outside the claim" in str(raised.value)


def test_link_within_the_claim_is_followed(folder: Path, tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "store", tiny.reviews(4), "a.parquet")
    (folder / "mine.png").unlink()
    (folder / "a.parquet").symlink_to("../store/a.parquet")
    assert len(load_dataset(tmp_path, "text")) == 4


def card(*lines: str) -> str:
    return "\n".join(["---", "configs:", "- config_name: default", *(f"  {line}" for line in lines), "---", ""])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["data_files: ../../secret.csv"], "'../../secret.csv' is outside the dataset's folder"),
        (["data_files: '{tmp}/secret.csv'"], "secret.csv' is an absolute path"),
        (["data_files: ['a.csv', 'deeper/../../../secret.csv']"], "is outside the dataset's folder"),
        (["data_files: 'https://example.org/a.csv'"], "'https://example.org/a.csv' is a URL"),
        (["data_files: 'zip://a.csv::b.zip'"], "'zip://a.csv::b.zip' is a URL"),
        (["data_files:", "- split: train", "  path: ['../*.csv']"], "'../*.csv' is outside the dataset's folder"),
        (["data_dir: ../.."], "'../..' is outside the dataset's folder"),
        (["data_dir: '{tmp}'"], "is an absolute path"),
        (["data_files: 'link/*.csv'"], "'link/*.csv' is a symbolic link to a target outside the claim"),
    ],
)
def test_dataset_card_with_files_outside_the_data_set_is_rejected(
    lines: list[str], message: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.csv").write_text("text\nsecret\n")
    (folder / "a.csv").write_text("text\nmine\n")
    (folder / "link").symlink_to(tmp_path)
    (folder / "README.md").write_text(card(*(line.format(tmp=tmp_path) for line in lines)))
    with pytest.raises(UserError) as raised:
        load_dataset(tmp_path, "text")
    assert "data.train.source: pvc://data/set: configuration 'default' of its README.md:" in str(raised.value)
    assert message in str(raised.value)


# Allowed paths


def write_images_with_metadata(folder: Path) -> Any:
    (folder / "deeper").mkdir()
    (folder / "deeper" / "red.png").write_bytes(tiny.png(tiny.COLOURS["red"]))
    (folder / "metadata.csv").write_text("file_name,text\ndeeper/red.png,red\n")
    return "text"


def write_class_folders(folder: Path) -> Any:
    (folder / "mine.png").unlink()
    (folder / "red").mkdir()
    (folder / "red" / "1.png").write_bytes(tiny.png(tiny.COLOURS["red"]))
    return "label"


def write_card(folder: Path) -> Any:
    (folder / "red.png").write_bytes(tiny.png(tiny.COLOURS["red"]))
    (folder / "rows.jsonl").write_text('{"image": "red.png", "text": "red"}\n')
    (folder / "README.md").write_text(card("data_files: rows.jsonl"))
    return "text"


@pytest.mark.parametrize("write", [write_images_with_metadata, write_class_folders, write_card])
@pytest.mark.parametrize("claims", ["data/..", "link", "{tmp}/link"])
def test_claims_folder_may_be_relative_or_a_link(
    write: Callable[[Path], str], claims: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = write(folder)
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = load_dataset(Path(claims.format(tmp=tmp_path)), "image", role)
    assert data[0]["image"].getpixel((0, 0)) == tiny.COLOURS["red"]
    assert list(invalid_images(data)) == []
    assert "set/" in data.locate(0)


def test_claim_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "mine.png").unlink()
    tiny.write_rows(folder, tiny.reviews(3))
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "data").symlink_to(tmp_path / "data")
    files = resolve_files(data_spec().train, "data.train", ClaimPaths(tmp_path / "claims"))
    assert files.root == tmp_path / "data"
