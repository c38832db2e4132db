"""Images are checked before the first step: in parallel, with progress, and only a sample of a large dataset."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune_trainer.data import Dataset
from finetune_trainer.errors import Interrupted, UserError
from finetune_trainer.tasks import indexing
from finetune_trainer.tasks.base import Processors
from finetune_trainer.tasks.image_classification import ImageClassification
from finetune_trainer.tasks.index import ExampleIndex
from finetune_trainer.tasks.indexing import IndexBuilder
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny
from unit.trainer.loading import load_dataset
from unit.trainer.tiny import Recorder

TASK = ImageClassification({0: 0, 1: 1, 2: 2})
CORRUPT = {"bytes": b"GIF89a nothing", "path": None}
PROCESSOR = tiny.ViTImageProcessor(size={"height": tiny.SIZE, "width": tiny.SIZE})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache folder for each test."""
    monkeypatch.setattr(indexing, "cache_folder", lambda: tmp_path / "cache")


def rows(count: int, *corrupt: int) -> list[dict[str, Any]]:
    return [row | {"image": CORRUPT} if n in corrupt else row for n, row in enumerate(tiny.captioned(count))]


def make_data(folder: Path, content: list[dict[str, Any]]) -> Dataset:
    tiny.write_rows(folder / "data" / "set", content)
    return load_dataset(folder, "image", "label")


def check(data: Dataset, workers: int = 0, **options: Any) -> ExampleIndex:
    processors = Processors(None, PROCESSOR, None)
    return IndexBuilder(TASK, processors, workers, **{"fail_fast": False, **options}).build(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_found_in_order_with_and_without_workers(workers: int, tmp_path: Path) -> None:
    index = check(make_data(tmp_path, rows(100, 3, 64, 99)), workers)
    assert [problem.index for problem in index.problems] == [3, 64, 99]
    assert all("cannot decode the image" in problem.text for problem in index.problems)
    assert not index.notes


def test_first_bad_row_is_reported(tmp_path: Path) -> None:
    content = rows(100, 70, 20)
    content[40]["label"] = 9
    with pytest.raises(UserError, match="row 20: cannot decode the image"):
        check(make_data(tmp_path, content), fail_fast=True)
    content[10]["label"] = 9
    with pytest.raises(UserError, match="row 10: unknown class 9"):
        check(make_data(tmp_path, content), fail_fast=True)


def test_progress_is_reported_and_may_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "PROGRESS_SECONDS", 0)
    seen: list[tuple[str, int, int]] = []
    data = make_data(tmp_path, rows(100))
    check(data, on_progress=lambda *event: seen.append(event))
    assert [event for event in seen if "images" in event[0]] == [
        ("checking the images of data.train", done, 100) for done in (32, 64, 96, 100)
    ]

    def interrupt(activity: str, done: int, total: int) -> None:
        if "images" in activity:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        check(data, 2, on_progress=interrupt)


def test_sample_of_a_large_dataset_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.data.dataset.MAX_VERIFIED_IMAGES", 40)
    data = make_data(tmp_path, rows(100, *range(100)))
    index = check(data)
    found = [problem.index for problem in index.problems]
    assert len(found) == 40
    assert found == sorted(found)
    assert max(found) > 60, "from all parts of the dataset"
    assert found == data.images_to_check().tolist(), "the same ones in each attempt"
    assert index.notes == (
        "data.train.source: checked 40 of 100 images; a corrupt one among the others ends the run when it is read "
        "(data.onBadRow: Skip checks all of them)",
    )


def test_all_images_are_checked_with_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.data.dataset.MAX_VERIFIED_IMAGES", 40)
    tiny.write_rows(tmp_path / "data" / "set", rows(100, *range(0, 100, 2)))
    table = load_dataset(tmp_path, "image", "label")
    data = Dataset(**{**vars(table), "verify_all_images": True})
    assert len(check(data).problems) == 50
    assert np.array_equal(data.images_to_check(), np.arange(100))


def animation() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def test_run_reports_animations_and_files_that_are_not_read(tmp_path: Path) -> None:
    for number, row in enumerate(tiny.captioned(12)):
        file = tmp_path / "data" / "pictures" / str(row["label"]) / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(animation() if number == 6 else row["image"]["bytes"])
    (tmp_path / "data" / "pictures" / "notes.txt").write_text("")
    tiny.write_image_classifier(tmp_path / "models" / "vit")
    recorder = Recorder()
    run(tiny.job("vit", "pictures"), RunOptions(claims=tiny.claim_paths(tmp_path, tmp_path / "out")), recorder)
    assert recorder.has_message("only the first frame or page is used of 1 image, for example of")
    assert recorder.has_message("0/06.png")
    assert recorder.has_message("not read: of unknown type: 1 file (notes.txt)")
