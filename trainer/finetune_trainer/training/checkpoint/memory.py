"""How much host memory is free: on the machine, and within the memory limit of the container."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def available_memory(cgroup: Path = CGROUP, meminfo: Path = MEMINFO) -> int:
    """Bytes that can be allocated without swapping or exceeding the container's limit; 0 if that is unknown."""
    available = _read_meminfo(meminfo)
    with suppress(OSError, ValueError):  # no cgroup v2, or no limit ("max")
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        available = min(available, limit - used + _read_inactive_file(cgroup))
    return max(0, available)


def _read_meminfo(path: Path) -> int:
    with suppress(OSError, ValueError, StopIteration):
        line = next(line for line in path.read_text().splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    return 0


def _read_inactive_file(cgroup: Path) -> int:
    """Page cache that the kernel reclaims when the container needs memory."""
    fields = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    return int(fields["inactive_file"])
