"""Costly results are made once, and an interrupted one is never taken for finished."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def test_it_is_outside_the_repository_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FINETUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.root() == tmp_path / "finetune-operator"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache.root() == tmp_path / "me" / ".cache" / "finetune-operator"


def test_many_who_want_the_same_wait_for_one_who_makes_it() -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "result").write_text("here")

    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda _: cache.obtain("thing", "key", make), range(8)))
    assert len(made) == 1
    assert {(place / "result").read_text() for place in places} == {"here"}


def test_a_failure_leaves_nothing_and_can_be_repeated() -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        cache.obtain("thing", "key", fail)
    assert list((cache.root() / "thing").iterdir()) == []
    assert cache.obtain("thing", "key", lambda folder: (folder / "whole").touch()).joinpath("whole").exists()


def test_a_digest_knows_where_one_part_ends(tmp_path: Path) -> None:
    assert cache.digest("ab", "c") != cache.digest("a", "bc")
    file = tmp_path / "file"
    file.write_text("one")
    before = cache.digest(file)
    file.write_text("two")
    assert cache.digest(file) != before


def test_only_the_newest_are_kept() -> None:
    for key in "abc":
        cache.obtain("thing", key, lambda folder: None)
    cache.keep_newest("thing", 2)
    assert len(list((cache.root() / "thing").iterdir())) == 2
