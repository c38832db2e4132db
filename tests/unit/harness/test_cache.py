"""The cache of build results: location, locking, failed builds, digests and pruning."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import cache


@pytest.fixture(autouse=True)
def temporary_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def test_default_root_is_in_the_user_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FINETUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.root() == tmp_path / "finetune-operator"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache.root() == tmp_path / "me" / ".cache" / "finetune-operator"


def test_concurrent_requests_create_a_result_once() -> None:
    created: list[Path] = []

    def create(folder: Path) -> None:
        created.append(folder)
        (folder / "result").write_text("here")

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: cache.get_or_create("thing", "key", create), range(8)))
    assert len(created) == 1
    assert {(path / "result").read_text() for path in paths} == {"here"}


def test_failed_creation_leaves_no_result_and_can_be_retried() -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        cache.get_or_create("thing", "key", fail)
    assert list((cache.root() / "thing").iterdir()) == []
    assert cache.get_or_create("thing", "key", lambda folder: (folder / "whole").touch()).joinpath("whole").exists()


def test_digest_depends_on_part_boundaries_and_file_content(tmp_path: Path) -> None:
    assert cache.digest("ab", "c") != cache.digest("a", "bc")
    file = tmp_path / "file"
    file.write_text("one")
    before = cache.digest(file)
    file.write_text("two")
    assert cache.digest(file) != before


def test_prune_keeps_the_newest_results() -> None:
    for key in "abc":
        cache.get_or_create("thing", key, lambda folder: None)
    cache.prune("thing", 2)
    assert len(list((cache.root() / "thing").iterdir())) == 2
