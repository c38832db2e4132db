"""A disk or a machine in trouble is no mistake of the data: the run fails, is tried again, and loses no row to it."""

import errno
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet

from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import BadRows, Batch, batches, find, read, tables
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.hub import is_transient
from unit.trainer import tiny
from unit.trainer.reading import opened, spec
from unit.trainer.test_data_formats import ROWS, WRITERS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data set `pvc://data/set`."""
    made = tmp_path / "data" / "set"
    made.mkdir(parents=True)
    return made


@contextmanager
def no_more_files() -> Iterator[None]:
    """As many files are open as this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ended(error: pytest.ExceptionInfo[RunError]) -> str:
    """What is said of a failure that may pass."""
    assert not isinstance(error.value, UserError), "which is not tried again"
    return str(error.value)


def test_an_image_that_cannot_be_opened_now(folder: Path, tmp_path: Path) -> None:
    (folder / "red.png").write_bytes(tiny.png(tiny.COLOURS["red"]))
    (folder / "rows.csv").write_text("image,text\nred.png,red\n")
    data = opened(tmp_path, "image", "text")
    with no_more_files(), pytest.raises(RunError) as raised:
        data[0]
    assert f"column 'image' of {folder}/rows.csv, row 2: cannot be read now: [Errno 24]" in ended(raised)
    with no_more_files(), pytest.raises(RunError) as raised:
        BadRows(skip=True, limit=10).drop(data, data.image_problems())
    assert "cannot be read now" in ended(raised)
    assert list(data.image_problems()) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_files_that_cannot_be_opened_now(kind: str, folder: Path, tmp_path: Path) -> None:
    WRITERS[kind](folder / f"a.{kind}", ROWS)
    layout = find(spec().train, "data.train", ClaimPaths(tmp_path))
    with no_more_files(), pytest.raises(RunError) as raised:
        read(layout, BadRows(False, 0))
    assert "data.train.source: pvc://data/set: cannot be read" in ended(raised)
    assert "Too many open files" in str(raised.value)


def test_a_folder_that_cannot_be_looked_into_now_is_not_empty(folder: Path, tmp_path: Path) -> None:
    WRITERS["csv"](folder / "a.csv", ROWS)
    with no_more_files(), pytest.raises(RunError) as raised:
        find(spec().train, "data.train", ClaimPaths(tmp_path))
    assert "Too many open files" in ended(raised)


@pytest.mark.parametrize(("kind", "reader"), [("parquet", Parquet), ("jsonl", Json)])
def test_a_cache_without_space(
    kind: str, reader: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    WRITERS[kind](folder / f"a.{kind}", ROWS)
    monkeypatch.setattr(reader, "_generate_tables", full)
    with pytest.raises(RunError) as raised:
        opened(tmp_path, "text")
    assert "data.train.source: pvc://data/set: cannot be read into" in ended(raised)
    assert "No space left on device" in str(raised.value)


def test_a_file_that_is_closed_to_us_is_no_passing_trouble() -> None:
    assert not is_transient(PermissionError(errno.EACCES, "Permission denied"))
    assert not is_transient(OSError("image file is truncated"))
    assert is_transient(OSError(errno.ESTALE, "Stale file handle"))
    assert is_transient(TimeoutError("timed out"))


def test_a_failure_of_a_worker_is_its_own(folder: Path, tmp_path: Path) -> None:
    def collate(rows: Any) -> Batch:
        raise RunError("the disk is gone")

    WRITERS["csv"](folder / "a.csv", ROWS)
    with pytest.raises(RunError) as raised:
        list(batches(opened(tmp_path, "text"), [[0, 1]], collate, 2, pin=False))
    assert str(raised.value) == "the disk is gone"


def test_a_download_that_fails_in_a_way_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise LookupError("a new kind of trouble\nwith details")

    monkeypatch.setattr("finetune_trainer.data.layout.snapshot_download", broken)
    with pytest.raises(RunError) as raised:
        find(spec(train={"source": "hf://acme/reviews"}).train, "data.train", ClaimPaths(tmp_path))
    said = "data.train.source: hf://acme/reviews: cannot be downloaded: LookupError: a new kind of trouble"
    assert ended(raised) == said


def test_several_at_once_leave_out_torn_lines(folder: Path, tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "t{number}"}}\n' for number in range(20_000))
    (folder / "a.jsonl").write_text(rows + "torn\n")
    layout = find(spec().train, "data.train", ClaimPaths(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        found = [made.result() for made in [pool.submit(tables._cleaned, layout) for _ in range(8)]]
    ((copy,),) = {tuple(copies) for copies in found}
    assert copy.read_text() == rows
    assert list(copy.parent.iterdir()) == [copy]
