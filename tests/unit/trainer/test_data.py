"""The order of samples is a function of (seed, epoch); workers, files and splits change nothing about it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from finetune_trainer.data import Batch, Dataset, Files, TrainingOrder, batches, decode_image, evaluation_order
from unit.trainer import tiny
from unit.trainer.reading import opened


def order(start: int = 0, stop: int = 6, **changes: int) -> list[list[int]]:
    fields = {"samples": 10, "batch_size": 4, "micro_batch_size": 2, "seed": 3, **changes}
    return list(TrainingOrder(**fields, start=start, stop=stop))


def test_an_epoch_visits_each_sample_once_and_drops_the_rest() -> None:
    first = [index for micro in order(stop=2) for index in micro]
    assert len(first) == len(set(first)) == 8
    assert order(0, 2) != order(2, 4), "another epoch, another order"
    assert order(0, 2) != order(0, 2, seed=4)


def test_starting_late_is_the_same_as_skipping() -> None:
    whole = order(0, 6)
    for step in range(6):
        assert order(step, 6) == whole[2 * step :]


def test_micro_batches_are_pieces_of_the_batch() -> None:
    whole = [index for batch in order(micro_batch_size=4) for index in batch]
    assert [index for micro in order(micro_batch_size=1) for index in micro] == whole


def test_evaluation_drops_nothing() -> None:
    found = evaluation_order(11, 4, seed=0)
    assert [len(batch) for batch in found] == [4, 4, 3]
    assert sorted(index for batch in found for index in batch) == list(range(11))


def test_rows_of_several_files_are_found_again(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "set", [{"text": f"a{n}"} for n in range(3)], "a.parquet")
    tiny.write_rows(tmp_path / "data" / "set" / "deeper", [{"text": f"b{n}"} for n in range(2)], "b.parquet")
    data = opened(tmp_path, "text")
    assert data.values("text") == ["a0", "a1", "a2", "b0", "b1"]
    assert data.where(1).endswith("a.parquet, row 1")
    assert data.where(4).endswith("deeper/b.parquet, row 1")


@pytest.mark.parametrize("kind", ["struct", "bytes", "path", "struct with a path"])
def test_images_come_as_bytes_as_paths_and_as_structs(kind: str, tmp_path: Path) -> None:
    content = tiny.png((200, 0, 0))
    (tmp_path / "one.png").write_bytes(content)
    values: dict[str, Any] = {
        "struct": {"bytes": content, "path": None},
        "bytes": content,
        "path": "one.png",
        "struct with a path": {"bytes": None, "path": "one.png"},
    }
    image = decode_image(values[kind], tmp_path, tmp_path)
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (200, 0, 0))


def collate(rows: Any) -> Batch:
    return {"number": torch.tensor([int(row["text"]) for row in rows])}


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(workers: int, tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "set", [{"text": str(n)} for n in range(10)])
    data = opened(tmp_path, "text")
    served = [batch["number"].tolist() for batch in batches(data, order(), collate, workers, pin=False)]
    assert served == order()


def test_serving_batches_leaves_the_random_state_alone(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "set", [{"text": str(n)} for n in range(10)])
    before = torch.get_rng_state()
    np.random.seed(0)
    list(batches(opened(tmp_path, "text"), order(), collate, 0, pin=False))
    assert torch.equal(before, torch.get_rng_state())


def test_a_column_larger_than_an_array_of_text_can_be() -> None:
    """More than 2 GiB: a piece of 64 MiB, over and over."""
    piece = pa.array(["x" * (64 << 10)] * 1023 + [None], pa.string())
    column = pa.chunked_array([piece] * 33)
    rows = np.delete(np.arange(len(column)), [5, 2048])
    data = Dataset(Files("data.train.source", Path(), Path(), str), {"text": column}, {"text": "text"}, rows)
    missing = [problem.index for problem in data.missing("text")]
    assert (missing[:2], len(missing)) == ([1022, 2046], 33)
    assert sum(map(len, data.parts("text"))) == len(rows)
    assert [problem.index for problem in data.text_problems("text")] == missing


def test_values_come_in_parts_of_the_rows_that_are_left() -> None:
    column = pa.chunked_array([pa.array(range(first, first + 700)) for first in range(0, 4900, 700)])
    kept = np.concatenate([np.arange(0, 4900, 3)[:500], np.arange(4000, 4900)])
    data = Dataset(Files("data.train.source", Path(), Path(), str), {"label": column}, {"label": "label"}, kept)
    assert data.values("label") == kept.tolist()
    assert max(map(len, data.parts("label"))) <= 1024
