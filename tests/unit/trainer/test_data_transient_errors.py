"""Errors of a disk or of the machine are not blamed on the data: the run fails, can be retried, and skips no rows."""

import errno
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import BadRowPolicy, Batch, load_batches, read_table, resolve_files
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.hub import is_transient
from unit.trainer import tiny
from unit.trainer.loading import FAIL, data_spec, invalid_images, load_dataset
from unit.trainer.test_data_readers import ROWS, WRITERS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of the dataset `pvc://data/set`."""
    folder = tmp_path / "data" / "set"
    folder.mkdir(parents=True)
    return folder


@contextmanager
def file_limit_reached() -> Iterator[None]:
    """This process cannot open any more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def transient_message(error: pytest.ExceptionInfo[RunError]) -> str:
    """The message of an error after which the run is retried."""
    assert not isinstance(error.value, UserError), "a UserError is not retried"
    return str(error.value)


def test_image_that_cannot_be_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "red.png").write_bytes(tiny.png(tiny.COLOURS["red"]))
    (folder / "rows.csv").write_text("image,text\nred.png,red\n")
    data = load_dataset(tmp_path, "image", "text")
    with file_limit_reached(), pytest.raises(RunError) as raised:
        data[0]
    assert f"column 'image' of {folder}/rows.csv, line 2: cannot be read: [Errno 24]" in transient_message(raised)
    with file_limit_reached(), pytest.raises(RunError) as raised:
        BadRowPolicy(skip=True, limit=10).drop_rows(data, invalid_images(data))
    assert "cannot be read" in transient_message(raised)
    assert list(invalid_images(data)) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_files_that_cannot_be_opened(kind: str, folder: Path, tmp_path: Path) -> None:
    WRITERS[kind](folder / f"a.{kind}", ROWS)
    files = resolve_files(data_spec().train, "data.train", ClaimPaths(tmp_path))
    with file_limit_reached(), pytest.raises(RunError) as raised:
        read_table(files, FAIL, ["text"])
    assert "data.train.source: pvc://data/set: cannot be read" in transient_message(raised)
    assert "Too many open files" in str(raised.value)


def test_unreadable_folder_is_not_reported_as_empty(folder: Path, tmp_path: Path) -> None:
    WRITERS["csv"](folder / "a.csv", ROWS)
    with file_limit_reached(), pytest.raises(RunError) as raised:
        resolve_files(data_spec().train, "data.train", ClaimPaths(tmp_path))
    assert "Too many open files" in transient_message(raised)


@pytest.mark.parametrize("kind", WRITERS)
def test_full_cache_disk(kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    WRITERS[kind](folder / f"a.{kind}", [{"text": f"{kind} that no other test reads"}])
    monkeypatch.setattr("finetune_trainer.data.readers.conversion.pa.ipc.new_file", full)
    with pytest.raises(RunError) as raised:
        load_dataset(tmp_path, "text")
    assert f"data.train.source: pvc://data/set: {folder}/a.{kind} cannot be read into" in transient_message(raised)
    assert "No space left on device" in str(raised.value)


def test_is_transient() -> None:
    assert not is_transient(PermissionError(errno.EACCES, "Permission denied"))
    assert not is_transient(OSError("image file is truncated"))
    assert is_transient(OSError(errno.ESTALE, "Stale file handle"))
    assert is_transient(TimeoutError("timed out"))


def test_error_of_a_worker_is_raised_unchanged(folder: Path, tmp_path: Path) -> None:
    def collate(rows: Any) -> Batch:
        raise RunError("the disk is gone")

    WRITERS["csv"](folder / "a.csv", ROWS)
    with pytest.raises(RunError) as raised:
        list(load_batches(load_dataset(tmp_path, "text"), [[0, 1]], collate, 2, pin_memory=False))
    assert str(raised.value) == "the disk is gone"


def test_unknown_download_error_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise LookupError("unexpected\nwith details")

    monkeypatch.setattr("finetune_trainer.data.download.snapshot_download", broken)
    with pytest.raises(RunError) as raised:
        resolve_files(data_spec(train={"source": "hf://acme/reviews"}).train, "data.train", ClaimPaths(tmp_path))
    expected = "data.train.source: hf://acme/reviews: cannot be downloaded: LookupError: unexpected"
    assert transient_message(raised) == expected


def test_concurrent_runs_convert_a_file_once(folder: Path, tmp_path: Path, datasets_cache: Path) -> None:
    rows = "".join(f'{{"text": "t{number}"}}\n' for number in range(20_000))
    (folder / "a.jsonl").write_text(rows + "malformed\n")
    before = set((datasets_cache / "finetune" / "tables").glob("*/*"))

    def load(_: int) -> tuple[int, str]:
        data = load_dataset(tmp_path, "text", bad_rows=BadRowPolicy(skip=True, limit=1))
        return len(data), data.fingerprint

    with ThreadPoolExecutor(8) as pool:
        results = set(pool.map(load, range(8)))
    assert [count for count, _ in results] == [20_000]
    (entry,) = set((datasets_cache / "finetune" / "tables").glob("*/*")) - before
    assert sorted(file.name for file in entry.iterdir()) == ["malformed.json", "rows.arrow"]
