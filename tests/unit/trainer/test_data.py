"""Sampling, batch loading, image decoding and chunked access to columns."""

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from finetune_trainer.data import (
    Batch,
    Dataset,
    Position,
    TrainBatchSampler,
    TrainDataSource,
    evaluation_batches,
    load_batches,
)
from finetune_trainer.data.dataset import RowOrigin
from finetune_trainer.data.images import decode_image
from unit.trainer import tiny
from unit.trainer.loading import load_dataset

BEGINNING = Position()


def sampler(start: Position = BEGINNING, steps: int = 6, **changes: int) -> TrainBatchSampler:
    fields = {"num_samples": 10, "batch_size": 4, "micro_batch_size": 2, "seed": 3, **changes}
    return TrainBatchSampler(**fields, num_steps=steps, start=start)


def position_after(steps: int) -> Position:
    position = Position()
    for _ in range(steps):
        position = sampler().after_step(position)
    return position


def micro_batches(start: int = 0, end: int = 6, **changes: int) -> list[list[int]]:
    return list(sampler(position_after(start), end - start, **changes))


def test_epoch_visits_each_sample_at_most_once() -> None:
    first = [index for micro in micro_batches(end=2) for index in micro]
    assert len(first) == len(set(first)) == 8
    assert micro_batches(0, 2) != micro_batches(2, 4), "another epoch, another order"
    assert micro_batches(0, 2) != micro_batches(0, 2, seed=4)


def test_starting_at_a_later_step_equals_skipping_to_it() -> None:
    complete = micro_batches(0, 6)
    for step in range(6):
        assert micro_batches(step, 6) == complete[2 * step :]
    assert [position_after(step) for step in (0, 1, 2, 3)] == [
        Position(), Position(0, 4), Position(0, 8), Position(1, 4),
    ]  # fmt: skip


def test_position_is_that_of_the_batches_handed_out_not_of_those_loaded_ahead() -> None:
    def load_ahead(indices: Iterable[list[int]]) -> Generator[Any]:
        yield from list(indices)

    source = TrainDataSource(sampler(), load_ahead)
    assert source.position() == {"epoch": 0, "sample": 0}
    steps = [source.next_step() for _ in range(3)]
    assert source.position() == {"epoch": 1, "sample": 4}
    resumed = TrainDataSource(sampler(Position(**source.position()), 3), load_ahead)
    steps += [resumed.next_step() for _ in range(3)]
    assert [batch for step in steps for batch in step] == micro_batches()


def test_position_does_not_depend_on_the_batch_size() -> None:
    rest = [index for batch in sampler(Position(0, 4), 3, batch_size=2) for index in batch]
    assert rest == [index for batch in sampler(Position(0, 4), 1, batch_size=6) for index in batch]


def test_micro_batches_partition_the_batch() -> None:
    samples = [index for batch in micro_batches(micro_batch_size=4) for index in batch]
    assert [index for micro in micro_batches(micro_batch_size=1) for index in micro] == samples


def test_evaluation_batches_have_all_samples() -> None:
    batches = evaluation_batches(11, 4, seed=0)
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert sorted(index for batch in batches for index in batch) == list(range(11))


def test_rows_of_several_files_are_located(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "set", [{"text": f"a{n}"} for n in range(3)], "a.parquet")
    tiny.write_rows(tmp_path / "data" / "set" / "deeper", [{"text": f"b{n}"} for n in range(2)], "b.parquet")
    data = load_dataset(tmp_path, "text")
    assert data.values("text") == ["a0", "a1", "a2", "b0", "b1"]
    assert data.locate(1).endswith("a.parquet, row 1")
    assert data.locate(4).endswith("deeper/b.parquet, row 1")


@pytest.mark.parametrize("kind", ["struct", "bytes", "path", "struct with a path"])
def test_decode_image_from_bytes_path_and_struct(kind: str, tmp_path: Path) -> None:
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
def test_workers_preserve_the_order(workers: int, tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "set", [{"text": str(n)} for n in range(10)])
    data = load_dataset(tmp_path, "text")
    loaded = [
        batch["number"].tolist() for batch in load_batches(data, micro_batches(), collate, workers, pin_memory=False)
    ]
    assert loaded == micro_batches()


def test_loading_batches_preserves_the_global_rng_state(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "set", [{"text": str(n)} for n in range(10)])
    before = torch.get_rng_state()
    np.random.seed(0)
    list(load_batches(load_dataset(tmp_path, "text"), micro_batches(), collate, 0, pin_memory=False))
    assert torch.equal(before, torch.get_rng_state())


def test_column_larger_than_a_string_array() -> None:
    """More than 2 GiB: one chunk of 64 MiB, repeated."""
    chunk = pa.array(["x" * (64 << 10)] * 1023 + [None], pa.string())
    column = pa.chunked_array([chunk] * 33)
    rows = np.delete(np.arange(len(column)), [5, 2048])
    data = Dataset(RowOrigin("data.train.source", Path(), Path(), str), {"text": column}, {"text": "text"}, rows)
    missing = [problem.index for problem in data.missing_values("text")]
    assert (missing[:2], len(missing)) == ([1022, 2046], 33)
    assert sum(map(len, data.iter_chunks("text"))) == len(rows)
    assert [problem.index for problem in data.invalid_texts("text")] == missing


def test_chunks_have_only_the_selected_rows() -> None:
    column = pa.chunked_array([pa.array(range(first, first + 700)) for first in range(0, 4900, 700)])
    kept = np.concatenate([np.arange(0, 4900, 3)[:500], np.arange(4000, 4900)])
    data = Dataset(RowOrigin("data.train.source", Path(), Path(), str), {"label": column}, {"label": "label"}, kept)
    assert data.values("label") == kept.tolist()
    assert max(map(len, data.iter_chunks("label"))) <= 1024
