"""Free memory: of the machine, and within the limit of the container."""

from pathlib import Path

import pytest

from finetune_trainer.training.checkpoint.memory import available_memory

GIB = 2**30


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal: 99 kB\nMemAvailable: {4 * 2**20} kB\n")
    return path


def write_cgroup(folder: Path, limit: object, used: int, inactive_file: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive_file}\n")
    return folder


def test_limit_of_the_container_counts_without_reclaimable_page_cache(tmp_path: Path, meminfo: Path) -> None:
    assert available_memory(write_cgroup(tmp_path, 3 * GIB, 2 * GIB, GIB), meminfo) == 2 * GIB


def test_machine_has_less_than_the_limit(tmp_path: Path, meminfo: Path) -> None:
    assert available_memory(write_cgroup(tmp_path, 30 * GIB, GIB, 0), meminfo) == 4 * GIB


def test_no_limit_and_no_cgroup(tmp_path: Path, meminfo: Path) -> None:
    assert available_memory(tmp_path / "none", meminfo) == 4 * GIB
    assert available_memory(write_cgroup(tmp_path, "max", GIB, 0), meminfo) == 4 * GIB


def test_unknown_and_exceeded(tmp_path: Path, meminfo: Path) -> None:
    assert available_memory(tmp_path, tmp_path / "none") == 0
    assert available_memory(write_cgroup(tmp_path, GIB, 2 * GIB, 0), meminfo) == 0
