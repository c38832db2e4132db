"""Datasets on the Hugging Face Hub: files that are not downloaded are named, and extensions may have upper case."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import resolve_files
from harness.hub import Hub, serve_hub
from unit.trainer.loading import data_spec


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def write(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path.lower().endswith((".jpg", ".png", ".jfif")):
            with (folder / path).open("wb") as file:
                Image.new("RGB", (4, 4)).save(file, "PNG")
        else:
            (folder / path).write_text("text\na\n")
    return folder


def resolve(tmp_path: Path) -> tuple[list[str], tuple[str, ...]]:
    """The paths of the files, and the notes."""
    found = resolve_files(data_spec(train={"source": "hf://org/set"}).train, "data.train", ClaimPaths(tmp_path))
    return [file.relative_to(found.folder).as_posix() for file in found.files], found.notes


def test_images_of_all_types_are_downloaded_and_other_files_are_named(hub: Hub, tmp_path: Path) -> None:
    images = ["cat/1.Jpg", "cat/2.jfif", "train_station/3.PNG"]
    hub.add("datasets", "org/set", write(tmp_path / "set", *images, "cat/4.heic", "set.py", ".gitattributes"))
    files, notes = resolve(tmp_path)
    assert files == images
    assert notes == (
        "data.train.source: hf://org/set: reading 3 files of split 'train'; not read: of unknown type: 2 files "
        "(cat/4.heic, set.py)",
    )


def test_tables_with_upper_case_extensions_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.add("datasets", "org/set", write(tmp_path / "set", "Train.CSV", "Test.CSV"))
    files, (note,) = resolve(tmp_path)
    assert files == ["Train.CSV"]
    assert note.endswith("not read: split 'test': 1 file")


def test_cached_dataset_is_read_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("datasets", "org/set", write(tmp_path / "set", "a.csv", "notes.txt"))
    assert resolve(tmp_path)[1]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve(tmp_path) == (["a.csv"], ())
