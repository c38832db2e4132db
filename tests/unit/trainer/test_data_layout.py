"""Names of splits count only where the whole layout says so; whatever is left out is counted and named."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import align_labels, resolve_files
from finetune_trainer.data.data_files import DataFiles
from finetune_trainer.data.layout import image_classes, infer_layout
from finetune_trainer.errors import UserError
from finetune_trainer.tasks.image_classification import ImageClassification
from unit.trainer.loading import data_spec, invalid_images, load_dataset

Splits = Mapping[str, Sequence[str]]


def splits(*paths: str) -> dict[str, list[str]]:
    return {split: list(files) for split, files in infer_layout(paths).splits.items()}


# Images


@pytest.mark.parametrize(
    "paths",
    [
        ["bus_stop/1.png", "train_station/1.png"],
        ["bus/1.png", "car/1.png", "train/1.png"],
        ["dev/1.png", "mouse/1.png"],
        ["cat/test_2.png", "cat/train-1.png", "dog/test_1.png", "dog/train_2.png"],
        ["test_bench/1.png", "train_station/1.png"],
        ["crash-test/1.png", "crash/1.png", "eval-board/2.png"],
        ["photos/bus/1.png", "photos/train/1.png"],
        ["evaluation-kit/1.png"],
    ],
)
def test_classes_and_file_names_are_no_splits(paths: list[str]) -> None:
    assert splits(*paths) == {"train": paths}


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        (["train/cat/1.png", "train/dog/1.png"], ["test/cat/1.png"], "test"),
        (["Train/cat/1.png", "Train/dog/1.png"], ["Val/cat/1.png"], "validation"),
        (["data/train/cat/1.png"], ["data/TEST/cat/1.png"], "test"),
        (["train_images/cat/1.png"], ["test_images/cat/1.png"], "test"),
        (["train2017/1.png"], ["val2017/1.png"], "validation"),
        (["cat/train/1.png", "dog/train/1.png"], ["cat/test/1.png", "dog/test/1.png"], "test"),
        (["training/cat/1.png"], ["dev/cat/1.png"], "validation"),
        (["train/train/1.png", "train/test/1.png"], ["test/train/1.png"], "test"),
    ],
)
def test_folders_are_splits(train: list[str], other: list[str], split: str) -> None:
    assert splits(*train, *other) == {"train": sorted(train), split: other}


@pytest.mark.parametrize(
    ("paths", "left_out"),
    [
        (["train/cat/1.png", "test/cat/1.png"], ["extra/cat/1.png"]),
        (["train/cat/1.png", "test/cat/1.png"], ["banner.png"]),
        (["train/cat/1.png", "train/dog/1.png"], ["banner.png", "figures/1.png"]),
        (["cat/train/1.png", "cat/test/1.png"], ["bird/1.png"]),
    ],
)
def test_images_outside_the_splits_are_left_out(paths: list[str], left_out: list[str]) -> None:
    layout = infer_layout([*paths, *left_out])
    assert sorted(path for files in layout.splits.values() for path in files) == sorted(paths)
    assert layout.left_out == dict.fromkeys(left_out, "in no split")


# Tables


@pytest.mark.parametrize(
    ("expected", "left_out"),
    [
        ({"train": ["latest.jsonl"]}, []),
        ({"train": ["contest.csv", "latest.csv"]}, []),
        ({"train": ["data.csv", "test_results.csv"]}, []),
        ({"train": ["train_test.csv"]}, []),
        ({"train": ["a.csv"], "test": ["test.csv"]}, []),
        ({"train": ["a.csv", "train_b.csv"], "test": ["test.csv"]}, ["validation_c.csv"]),
        ({"train": ["train.csv"], "test": ["test.csv"]}, ["test_results.csv", "notes.csv"]),
        ({"train": ["TRAIN.CSV"], "test": ["Test.CSV"]}, []),
        ({"train": ["train_a.csv", "train_b.csv"], "test": ["test_a.csv"]}, []),
        ({"train": ["my-train.csv"], "validation": ["my-dev.csv"]}, []),
        ({"test": ["test_results.csv"]}, []),
        ({"validation": ["val.csv"]}, []),
        ({"train": ["eval/train.csv"], "test": ["eval/test.csv"]}, []),
        ({"train": ["train/a.csv", "train/b.csv"], "test": ["test/a.csv"]}, ["x.csv"]),
        ({"train": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]}, []),
        ({"train": ["data/train-00000-of-00001.parquet"], "gold": ["data/gold-00000-of-00001.parquet"]}, ["a.csv"]),
        ({"train": ["train/metadata.csv"], "test": ["test/metadata.csv"]}, ["metadata.csv"]),
    ],
)
def test_splits_of_tables(expected: Splits, left_out: list[str]) -> None:
    layout = infer_layout([*left_out, *(path for files in expected.values() for path in files)])
    assert {split: list(files) for split, files in layout.splits.items()} == expected
    assert sorted(layout.left_out) == sorted(left_out)


def test_split_words_that_do_not_count_are_mentioned() -> None:
    (note,) = infer_layout(["data.csv", "test_results.csv"]).notes
    assert note == "names of splits count only if all files have one, so they do not count in test_results.csv"
    assert not infer_layout(["train.csv", "test.csv", "latest.csv"]).notes


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".DS_Store", "hidden"),
        ("cat/._1.png", "hidden"),
        (".ipynb_checkpoints/1.png", "hidden"),
        ("__MACOSX/cat/1.png", "hidden"),
        ("cat/1.heic", "of unknown type"),
        ("labels.xlsx", "of unknown type"),
        ("LICENSE", "of unknown type"),
        ("images.zip", "of unknown type"),
        ("config.json", "of unknown type"),
        ("cache-0123.arrow", "caches of datasets"),
    ],
)
def test_files_without_data_are_left_out(path: str, reason: str) -> None:
    layout = infer_layout([path, "cat/1.png"])
    assert layout.left_out == {path: reason}
    assert layout.splits == {"train": ("cat/1.png",)}


@pytest.mark.parametrize("name", ["README.md", "dataset_info.json", "cat/state.json", ".gitattributes"])
def test_descriptions_of_the_dataset_are_not_mentioned(name: str) -> None:
    assert not infer_layout([name, "cat/1.png"]).left_out


FOLDERS = st.sampled_from(["train", "test", "val", "cat", "train_station", "images", "Test", ".git", "dev-kit"])
FILES = st.sampled_from(["1", "train", "test", "test_results", "latest", "train-2", "metadata"])
SUFFIXES = st.sampled_from([".png", ".JPG", ".csv", ".jsonl", ".txt", ".arrow"])
PATHS = st.builds(
    lambda folders, name, suffix: "/".join([*folders, name + suffix]), st.lists(FOLDERS, max_size=3), FILES, SUFFIXES
)


@given(st.lists(PATHS, unique=True, max_size=12))
def test_every_file_is_read_or_left_out(paths: list[str]) -> None:
    """Each file is in one split, or left out with a reason, or an image that a table may refer to."""
    layout = infer_layout(paths)
    read = [path for files in layout.splits.values() for path in files]
    assert len(read) == len(set(read))
    assert not set(read) & layout.left_out.keys()
    assert len(read) + len(layout.left_out) + layout.num_referenced == len(paths)
    assert layout.splits == infer_layout(reversed(paths)).splits
    assert all(layout.splits.values())
    if layout.class_folders:
        assert layout.class_folders.keys() == set(read)


@given(st.lists(PATHS, unique=True, max_size=12), st.sampled_from(["a", "train", "x/y"]))
def test_folder_around_everything_changes_no_split(paths: list[str], folder: str) -> None:
    visible = [path for path in paths if not path.endswith(".arrow")]
    inside = {split: {f"{folder}/{path}" for path in files} for split, files in infer_layout(visible).splits.items()}
    found = infer_layout([f"{folder}/{path}" for path in visible])
    assert {split: set(files) for split, files in found.splits.items()} == inside


# Classes


def classes(*paths: str, default: str = "set") -> tuple[dict[str, str], tuple[str, ...]]:
    return image_classes(infer_layout(paths).class_folders, default)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("train/cat/1.png", "cat"),
        ("cat/train/1.png", "cat"),
        ("train/images/cat/1.png", "cat"),
        ("cat/1.png", "cat"),
        ("1.png", "set"),
        ("train/1.png", "train"),
    ],
)
def test_class_is_the_innermost_folder_that_is_no_split(path: str, name: str) -> None:
    assert classes(path, path.replace("train", "test"))[0][path] == name


def test_images_at_different_depths_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"found images at different depths: cat/1\.png and cat/black/2\.png; move"):
        classes("cat/1.png", "cat/black/2.png", "dog/1.png")
    with pytest.raises(ValueError, match=r"found images at different depths: stray\.png and cat/1\.png"):
        classes("cat/1.png", "stray.png")


def test_class_in_two_folders_is_rejected() -> None:
    with pytest.raises(ValueError, match="expected one folder for each class, found cat/black and dog/black"):
        classes("cat/black/1.png", "cat/white/1.png", "dog/black/1.png")


def test_nested_and_similar_classes_are_mentioned() -> None:
    found, notes = classes("birds/owl/1.png", "mammals/cat/1.png")
    assert set(found.values()) == {"owl", "cat"}
    assert notes == ("the innermost folders are the classes: birds/owl, mammals/cat",)
    found, notes = classes("Cat/1.png", "cat/1.png", "caf\u00e9/1.png", "cafe\u0301/1.png", "dog/1.png")
    assert len(set(found.values())) == 5
    assert notes == (
        "these classes differ in upper and lower case or in accents only: Cat, cafe\u0301, caf\u00e9, cat",
    )


# Real folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of the dataset `pvc://data/set`."""
    folder = tmp_path / "data" / "set"
    folder.mkdir(parents=True)
    return folder


def write_images(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("wb") as file:
            Image.new("RGB", (4, 4)).save(file, "PNG")


def resolve(tmp_path: Path, field: str = "data.train") -> DataFiles:
    return resolve_files(data_spec().train, field, ClaimPaths(tmp_path))


def test_class_named_like_a_split_is_read(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "train_station/train-1.png", "bus_stop/test_1.png", "bus_stop/2.PNG")
    data = load_dataset(tmp_path, "image", "label")
    assert data.class_names("label") == ["bus_stop", "train_station"]
    assert sorted(data.values("label")) == [0, 0, 1]
    assert resolve(tmp_path).notes == ()


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".ppm", ".avif", ".ico", ".tga", ".jp2", ".JPEG", ".Png", ".bmp"])
def test_types_that_pillow_reads_are_images(suffix: str, folder: Path, tmp_path: Path) -> None:
    write_images(folder, f"cat/1{suffix}", f"dog/1{suffix}")
    assert len(load_dataset(tmp_path, "image", "label")) == 2


def test_left_out_files_are_counted_and_named(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "banner.png", "train/cat/._1.png")
    (folder / "train" / "notes.txt").write_text("")
    (folder / "train" / "cat" / "2.heic").write_text("")
    (folder / "train" / "bird").mkdir()
    (folder / "train" / "gone.png").symlink_to("nowhere.png")
    left_out, empty = resolve(tmp_path).notes
    assert left_out == (
        "data.train.source: pvc://data/set: reading 2 files of split 'train'; not read: split 'test': 1 file; "
        "broken symbolic links: 1 file (train/gone.png); hidden: 1 file (train/cat/._1.png); "
        "in no split: 1 file (banner.png); of unknown type: 2 files (train/cat/2.heic, train/notes.txt)"
    )
    assert empty == "data.train.source: pvc://data/set: empty folders are no classes: train/bird"


def test_format_with_fewer_files_is_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text('{"text": "a"}\n')
    (folder / "c.csv").write_text("text\na\n")
    write_images(folder, "1.png")
    notes = resolve(tmp_path).notes
    assert "reading 2 files of split 'train'; not read: of another format than json: 1 file (c.csv)" in notes[0]
    assert "1 image beside the tables: read only where a row names them" in notes[1]


def test_each_split_has_its_own_format(folder: Path, tmp_path: Path) -> None:
    (folder / "train.jsonl").write_text('{"text": "a"}\n')
    (folder / "test.csv").write_text("text\na\nb\n")
    assert len(load_dataset(tmp_path, "text")) == 1
    assert len(load_dataset(tmp_path, "text", split="test")) == 2


def test_linked_class_folder_is_read(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "cat/1.png")
    write_images(tmp_path / "data" / "store", "dog/1.png", "dog/2.png")
    (folder / "dog").symlink_to("../store/dog")
    assert sorted(load_dataset(tmp_path, "image", "label").values("label")) == [0, 1, 1]


@pytest.mark.timeout(20)
def test_links_that_repeat_or_leave_the_dataset_are_left_out(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "cat/1.png", "dog/1.png")
    write_images(tmp_path / "outside", "dog/2.png")
    (folder / "cat" / "loop").symlink_to(folder)
    (folder / "kitten").symlink_to("cat")
    (folder / "outside").symlink_to(tmp_path / "outside")
    (note,) = resolve(tmp_path).notes
    assert "links to folders that are read anyway: 2 files (cat/loop, kitten)" in note
    assert "links to folders outside the claim: 1 file (outside)" in note
    assert len(load_dataset(tmp_path, "image", "label")) == 2


def test_ambiguous_classes_are_rejected(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "cat/black/1.png", "cat/2.png", "dog/1.png")
    with pytest.raises(UserError) as raised:
        resolve(tmp_path)
    assert "data.train.source: pvc://data/set: expected one folder for each class" in str(raised.value)


def test_unreadable_folder_is_an_error(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(folder, "cat/1.png", "dog/1.png")
    scandir = os.scandir

    def deny(path: Path) -> object:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", deny)
    with pytest.raises(UserError, match="Permission denied"):
        resolve(tmp_path)


def write_card(folder: Path, *lines: str) -> None:
    (folder / "README.md").write_text("\n".join(["---", *lines, "---", ""]))


def test_folder_of_a_configuration_is_split_by_the_same_rules(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "photos/train_station/1.png", "photos/bus_stop/1.png", "drawings/bus_stop/1.png")
    write_card(folder, "configs:", "- config_name: photos", "  data_dir: photos")
    data = load_dataset(tmp_path, "image", "label")
    assert data.class_names("label") == ["bus_stop", "train_station"]
    assert not list(invalid_images(data))


CLASSES_OF_CARD = (
    "dataset_info:",
    "  features:",
    "  - name: image",
    "    dtype: image",
    "  - name: label",
    "    dtype:",
    "      class_label:",
    "        names:",
    "          '0': dog",
    "          '1': cat",
    "configs:",
    "- config_name: default",
    "  data_files: '**'",
)


def test_classes_of_the_dataset_card_are_numbered_as_declared(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "cat/1.png", "dog/1.png")
    write_card(folder, *CLASSES_OF_CARD)
    data = load_dataset(tmp_path, "image", "label")
    assert data.class_names("label") == ["dog", "cat"]
    assert data.values("label") == [1, 0]
    write_images(folder, "cats/1.png")
    with pytest.raises(UserError, match=r"cats/1\.png: the dataset card has no class 'cats'; available: dog, cat"):
        load_dataset(tmp_path, "image", "label")


def test_folder_without_data_names_what_it_has(folder: Path, tmp_path: Path) -> None:
    (folder / "0001").write_bytes(b"")
    with pytest.raises(UserError, match=r"found files without an extension \(of unknown type: 1 file \(0001\)\)"):
        resolve(tmp_path)
    (folder / "0001").unlink()
    (folder / "1.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"found \.png files \(broken symbolic links: 1 file \(1\.png\)\)"):
        resolve(tmp_path)


def test_unknown_class_of_a_folder_is_named(folder: Path, tmp_path: Path) -> None:
    write_images(folder, "train/red/1.png", "train/green/1.png", "validation/gren/1.png", "validation/red/1.png")
    train = load_dataset(tmp_path, "image", "label")
    validation = align_labels(load_dataset(tmp_path, "image", "label", split="validation"), train)
    (problem,) = ImageClassification({0: 0, 1: 1}).label_problems(validation)
    assert validation.describe(problem) == (
        f"data.train.source: column 'label' of {folder}/validation/gren/1.png: unknown class 'gren'; the training set "
        "has 'green', 'red'; did you mean 'green'?"
    )
