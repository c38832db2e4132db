"""A control group of its own for each node, under which its kubelet puts the pods."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.site import NodeSite

MOUNTINFO = Path("/proc/self/mountinfo")
REMOVAL = 10.0


@dataclass(frozen=True)
class Hierarchy:
    """One mounted tree of control groups; version 1 has one for each controller, version 2 a single one."""

    root: Path
    unified: bool


def hierarchies(mountinfo: str) -> list[Hierarchy]:
    """The trees that a kernel's list of mounts shows."""
    found = []
    for line in mountinfo.splitlines():
        place, _, kind = line.partition(" - ")
        if kind.startswith(("cgroup ", "cgroup2 ")):
            found.append(Hierarchy(Path(place.split()[4]), kind.startswith("cgroup2 ")))
    return found


def group(node: NodeSite) -> str:
    """The name of a node's group."""
    return f"finetune-{node.name}"


def create(name: str) -> None:
    """Make the group in every hierarchy."""
    for hierarchy in hierarchies(MOUNTINFO.read_text()):
        folder = hierarchy.root / name
        if hierarchy.unified:
            _delegate(hierarchy.root)
        folder.mkdir(exist_ok=True)
        if (folder / "cpuset.cpus").exists() and not hierarchy.unified:
            _fill_cpuset(hierarchy.root, folder)


def remove(name: str) -> None:
    """Remove the group and its children; processes that were just killed may take a moment to leave."""
    deadline = time.monotonic() + REMOVAL
    left = [hierarchy.root / name for hierarchy in hierarchies(MOUNTINFO.read_text())]
    while left := [tree for tree in left if tree.exists()]:
        for tree in left:
            for folder, _, _ in os.walk(tree, topdown=False):
                with suppress(OSError):
                    Path(folder).rmdir()
        if time.monotonic() > deadline:
            raise HarnessError(f"control groups are left: {', '.join(map(str, left))}")
        time.sleep(0.02)


def _delegate(root: Path) -> None:
    # Version 2: a child has only the controllers that its parent lists. Some may be held by version 1.
    for controller in (root / "cgroup.controllers").read_text().split():
        with suppress(OSError):
            (root / "cgroup.subtree_control").write_text(f"+{controller}")


def _fill_cpuset(root: Path, folder: Path) -> None:
    # Version 1: a new cpuset is empty, and no process can enter it.
    for resource in ("cpus", "mems"):
        (folder / f"cpuset.{resource}").write_text((root / f"cpuset.{resource}").read_text())
