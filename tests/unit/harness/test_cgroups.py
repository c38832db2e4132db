"""Parsing of cgroup hierarchies from /proc/self/mountinfo."""

from pathlib import Path

from harness.cgroups import Hierarchy, hierarchies

VERSION_1 = """\
22 20 0:5 / /proc rw,relatime - proc proc rw
30 25 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpuset rw,relatime shared:9 - cgroup cgroup rw,cpuset
32 30 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
VERSION_2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_parses_hierarchies_of_version_1() -> None:
    assert hierarchies(VERSION_1) == [
        Hierarchy(Path("/sys/fs/cgroup/cpuset"), unified=False),
        Hierarchy(Path("/sys/fs/cgroup/unified"), unified=True),
    ]


def test_parses_unified_hierarchy_of_version_2() -> None:
    assert hierarchies(VERSION_2) == [Hierarchy(Path("/sys/fs/cgroup"), unified=True)]
