"""Creates a cgroup for each node; the kubelet creates the cgroups of the pods in it."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.cluster_config import NodeConfig
from harness.errors import HarnessError

# Eight times the default. With the default, all pods together get as much CPU time as one process outside.
CPU_WEIGHT = {"cpu.shares": "8192", "cpu.weight": "800"}
MOUNTINFO = Path("/proc/self/mountinfo")
REMOVE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup hierarchy: one per controller in version 1, a single unified one in version 2."""

    root: Path
    unified: bool


def hierarchies(mountinfo: str) -> list[Hierarchy]:
    """The cgroup hierarchies in the text of /proc/self/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.startswith(("cgroup ", "cgroup2 ")):
            found.append(Hierarchy(Path(mount.split()[4]), kind.startswith("cgroup2 ")))
    return found


def cgroup_name(node: NodeConfig) -> str:
    """The name of the cgroup of a node."""
    return f"finetune-{node.name}"


def create(name: str) -> None:
    """Create the cgroup in each hierarchy."""
    for hierarchy in hierarchies(MOUNTINFO.read_text()):
        folder = hierarchy.root / name
        if hierarchy.unified:
            _delegate(hierarchy.root)
        folder.mkdir(exist_ok=True)
        if (folder / "cpuset.cpus").exists() and not hierarchy.unified:
            _fill_cpuset(hierarchy.root, folder)
        for file, weight in CPU_WEIGHT.items():
            if (folder / file).exists():
                (folder / file).write_text(weight)


def remove(name: str) -> None:
    """Remove the cgroup and its children. Retries, because killed processes leave a cgroup with a delay."""
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    remaining = [hierarchy.root / name for hierarchy in hierarchies(MOUNTINFO.read_text())]
    while remaining := [tree for tree in remaining if tree.exists()]:
        for tree in remaining:
            for folder, _, _ in os.walk(tree, topdown=False):
                with suppress(OSError):
                    Path(folder).rmdir()
        if time.monotonic() > deadline:
            raise HarnessError(f"cannot remove cgroups: {', '.join(map(str, remaining))}")
        time.sleep(0.02)


def _delegate(root: Path) -> None:
    # Version 2: a child has only the controllers that its parent delegates. Version 1 may be using some of them.
    for controller in (root / "cgroup.controllers").read_text().split():
        with suppress(OSError):
            (root / "cgroup.subtree_control").write_text(f"+{controller}")


def _fill_cpuset(root: Path, folder: Path) -> None:
    # Version 1: a new cpuset is empty, and an empty cpuset accepts no process.
    for resource in ("cpus", "mems"):
        (folder / f"cpuset.{resource}").write_text((root / f"cpuset.{resource}").read_text())
