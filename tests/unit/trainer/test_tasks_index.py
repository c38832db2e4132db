"""The index of a dataset: what it holds, and that it is built once, in parallel, and stops when asked to."""

import json
import multiprocessing
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from finetune_trainer.data import Dataset, RowProblem, Sample, map_in_workers
from finetune_trainer.errors import Interrupted, UserError
from finetune_trainer.tasks import indexing
from finetune_trainer.tasks.base import Processors, Task
from finetune_trainer.tasks.causal_lm import CausalLM
from finetune_trainer.tasks.contrastive import Contrastive
from finetune_trainer.tasks.index import ExampleIndex, load_index, save_index
from finetune_trainer.tasks.indexing import IndexBuilder
from finetune_trainer.tasks.sequence_classification import SequenceClassification
from unit.trainer import tiny
from unit.trainer.loading import load_dataset

TEXT, COMPLETION = CausalLM(("text",)), CausalLM(("prompt", "completion"))
REVIEWS = SequenceClassification({0: 0, 1: 1})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test."""
    monkeypatch.setattr(indexing, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def make_processors(max_length: int = 64) -> Processors:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return Processors(tokenizer, None, max_length)


def make_data(folder: Path, rows: Sequence[Sample]) -> Dataset:
    tiny.write_rows(folder / "data" / "set", rows)
    return load_dataset(folder, *rows[0])


def build(task: Task, data: Dataset, processors: Processors, workers: int = 0, **options: Any) -> ExampleIndex:
    return IndexBuilder(task, processors, workers, **{"fail_fast": False, **options}).build(data)


@pytest.mark.parametrize(("task", "rows"), [(TEXT, tiny.texts(20)), (COMPLETION, tiny.completions(20))])
def test_index_has_the_sizes_of_the_encoded_examples(tmp_path: Path, task: Task, rows: list[dict[str, Any]]) -> None:
    rows[3][list(rows[3])[-1]] += " and green" * 30
    data, processors = make_data(tmp_path, rows), make_processors()
    index = build(task, data, processors)
    examples = task.encode(rows, processors)
    untruncated = task.encode(rows, replace(processors, max_length=10_000))
    assert index.lengths.tolist() == [len(example["input_ids"]) for example in untruncated]
    assert index.num_items.tolist() == [task.num_items(task.collate([example], processors)) for example in examples]
    assert index.max_token_ids.tolist() == [int(example["input_ids"].max()) for example in examples]
    assert index.count_truncated(64) == 1
    assert index.longest(1) == [3]
    assert not index.problems


def test_index_of_a_classification_counts_special_tokens(tmp_path: Path) -> None:
    data = make_data(tmp_path, tiny.reviews(4))
    index = build(REVIEWS, data, Processors(tiny.tokenizer(), None, 4))
    assert index.lengths.tolist() == [5, 7, 9, 5], "[CLS] and [SEP] beside the words"
    assert index.count_truncated(4) == 4
    assert index.num_items.tolist() == [1] * 4


def test_bad_rows_have_no_size_and_are_dropped_with_their_rows(tmp_path: Path) -> None:
    rows = tiny.completions(5)
    rows[1]["completion"], rows[3]["completion"] = "  \n", ""
    index = build(COMPLETION, make_data(tmp_path, rows), make_processors())
    assert [(problem.index, problem.role) for problem in index.problems] == [(1, "completion"), (3, "completion")]
    assert all("no tokens to train on: the completion is empty" in problem.text for problem in index.problems)
    assert index.lengths[[1, 3]].tolist() == index.num_items[[1, 3]].tolist() == [0, 0]
    assert index.drop_bad_rows().lengths.tolist() == index.lengths[[0, 2, 4]].tolist()


def test_index_does_not_depend_on_workers_and_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    rows = tiny.texts(50)
    rows[37]["text"] = " "
    data, processors = make_data(tmp_path, rows), make_processors()
    whole = build(TEXT, data, processors)
    monkeypatch.setattr(indexing, "MAX_CHUNK_ROWS", 7)
    for workers in (0, 2):
        for file in cache.rglob("*.npz"):
            file.unlink()
        parts = build(TEXT, data, processors, workers)
        assert parts.lengths.tolist() == whole.lengths.tolist()
        assert parts.problems == whole.problems


def test_second_build_does_not_tokenize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*tiny.texts(10), {"text": ""}]
    data, processors = make_data(tmp_path, rows), make_processors()
    first = build(TEXT, data, processors)
    monkeypatch.setattr(CausalLM, "index", None)
    second = build(TEXT, load_dataset(tmp_path, "text"), make_processors())
    assert second.lengths.tolist() == first.lengths.tolist()
    assert second.problems == first.problems
    with pytest.raises(UserError, match=r"row 10.*the text is empty"):
        build(TEXT, data, processors, fail_fast=True)


def test_key_depends_on_all_that_changes_the_index(tmp_path: Path) -> None:
    data, processors = make_data(tmp_path, tiny.completions(6)), make_processors()
    other_data = make_data(tmp_path / "other", tiny.completions(7)[1:])
    other_template = Processors(tiny.byte_tokenizer("{{ messages }}"), None, 64)
    other_vocabulary = make_processors()
    other_vocabulary.tokenizer.add_tokens(["sky"])
    keys = [
        IndexBuilder(task, it, 0, fail_fast=False)._key(rows)
        for task, it, rows in [
            (COMPLETION, processors, data),
            (COMPLETION, processors, other_data),
            (COMPLETION, processors, data.slice(0, 5)),
            (COMPLETION, replace(processors, max_length=32), data),
            (COMPLETION, other_template, data),
            (COMPLETION, other_vocabulary, data),
            (CausalLM(("completion",)), processors, data),
        ]
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == IndexBuilder(COMPLETION, make_processors(), 8, fail_fast=True)._key(data)


def test_damaged_or_unwritable_cache_is_no_error(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, processors = make_data(tmp_path, tiny.texts(5)), make_processors()
    expected = build(TEXT, data, processors).lengths.tolist()
    (file,) = cache.rglob("*.npz")
    for content in (b"", b"PK\x03\x04 nothing", file.read_bytes()[:100]):
        file.write_bytes(content)
        assert build(TEXT, data, processors).lengths.tolist() == expected
    (tmp_path / "file").touch()
    monkeypatch.setattr(indexing, "cache_folder", lambda: tmp_path / "file")
    assert build(TEXT, data, processors).lengths.tolist() == expected


def test_progress_is_reported_and_can_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "MAX_CHUNK_ROWS", 4)
    monkeypatch.setattr(indexing, "PROGRESS_SECONDS", -1)
    data, processors = make_data(tmp_path, tiny.texts(10)), make_processors()
    reports: list[tuple[str, int, int]] = []

    def stop_at_eight(activity: str, done: int, total: int) -> None:
        reports.append((activity, done, total))
        if done == 8:
            raise Interrupted("stop")

    for workers in (0, 2):
        start = time.monotonic()
        with pytest.raises(Interrupted):
            build(TEXT, data, processors, workers, on_progress=stop_at_eight)
        assert time.monotonic() - start < 20
    assert reports == [("scanning data.train", 4, 10), ("scanning data.train", 8, 10)] * 2


def test_first_bad_row_is_reported_without_reading_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "MAX_CHUNK_ROWS", 4)
    rows = tiny.texts(40)
    rows[5]["text"] = rows[39]["text"] = ""
    indexed: list[int] = []
    index_rows = CausalLM.index

    def record(self: CausalLM, data: Dataset, processors: Processors) -> ExampleIndex:
        indexed.extend(data.rows.tolist())
        return index_rows(self, data, processors)

    monkeypatch.setattr(CausalLM, "index", record)
    with pytest.raises(UserError, match="row 5: no tokens to train on: the text is empty"):
        build(TEXT, make_data(tmp_path, rows), make_processors(), fail_fast=True)
    assert indexed == list(range(8))


@pytest.mark.parametrize("task", [TEXT, REVIEWS])
def test_calls_do_not_change_the_saved_tokenizer(tmp_path: Path, task: Task) -> None:
    processors = Processors(tiny.tokenizer(), None, 4)
    processors.tokenizer.add_special_tokens({"eos_token": "[SEP]"})
    backend = processors.tokenizer.backend_tokenizer
    backend.enable_truncation(9, stride=2)
    before = json.loads(backend.to_str())
    rows = [{"text": "a good film of something", "label": 1}, {"text": "the film", "label": 0}]
    data = make_data(tmp_path, rows)
    build(task, data.slice(0, 2), processors)
    task.make_batch(rows, processors)
    assert processors.fingerprint
    processors.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text()) == before
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("a " * 50)["input_ids"][-1] == 3


def test_fingerprint_does_not_depend_on_the_state_of_the_tokenizer() -> None:
    one, other = make_processors(), make_processors()
    other.tokenizer.backend_tokenizer.enable_padding(length=8)
    assert one.fingerprint == other.fingerprint


problems = st.builds(RowProblem, st.integers(0, 3), st.just("text"), st.text(max_size=5))
parts = st.lists(
    st.builds(
        lambda lengths, found: ExampleIndex(
            np.array(lengths, np.int32), np.array(lengths, np.int32), np.array(lengths, np.int32), tuple(found)
        ),
        st.lists(st.integers(0, 9), min_size=4, max_size=4),
        st.lists(problems, max_size=2),
    ),
    min_size=1,
    max_size=4,
)


@given(parts)
def test_concatenated_index_survives_a_file(
    tmp_path_factory: pytest.TempPathFactory, parts: list[ExampleIndex]
) -> None:
    whole = ExampleIndex.concatenate(parts)
    file = tmp_path_factory.getbasetemp() / "index.npz"
    save_index(whole, file)
    loaded = load_index(file)
    assert loaded is not None
    assert loaded.problems == whole.problems
    assert loaded.lengths.tolist() == [length for part in parts for length in part.lengths]
    for number, part in enumerate(parts):
        for problem in part.problems:
            assert replace(problem, index=problem.index + 4 * number) in whole.problems
    assert len(whole.drop_bad_rows()) == len(whole) - len(whole.bad_rows)


def test_map_in_workers_keeps_the_order_and_raises_run_errors() -> None:
    def double(number: int) -> int:
        if number == 9:
            raise UserError("nine")
        return 2 * number

    for workers in (0, 2):
        assert list(map_in_workers(double, range(6), workers)) == [0, 2, 4, 6, 8, 10]
        with pytest.raises(UserError, match=r"^nine$"):
            list(map_in_workers(double, [9], workers))


def test_workers_end_with_an_exception_whose_traceback_is_kept() -> None:
    def stop_after_the_first(results: Generator[int]) -> None:
        with closing(results):
            for _ in results:
                raise Interrupted("stop")

    with pytest.raises(Interrupted) as kept:
        stop_after_the_first(map_in_workers(abs, range(100), 2))
    with pytest.raises(UserError) as also_kept:
        list(map_in_workers(raise_user_error, range(100), 2))
    assert kept.tb is not None and also_kept.tb is not None
    assert not multiprocessing.active_children(), "at its exit, the process would wait for them"


def raise_user_error(number: int) -> int:
    raise UserError(str(number))


def test_images_before_the_first_bad_text_are_checked(tmp_path: Path) -> None:
    rows = tiny.captioned(8)
    rows[2]["image"] = {"bytes": b"nothing", "path": None}
    rows[5]["text"] = ""
    data = make_data(tmp_path, [{key: row[key] for key in ("image", "text")} for row in rows])
    processors = Processors(tiny.tokenizer(), None, 16)
    index = build(Contrastive(has_labels=False), data, processors)
    assert [(problem.index, problem.role) for problem in index.problems] == [(2, "image"), (5, "text")]
    with pytest.raises(UserError, match="row 2: cannot decode the image"):
        build(Contrastive(has_labels=False), data, processors, fail_fast=True)
