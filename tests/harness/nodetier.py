"""A whole node, from outside: its namespaces, its link to this machine, its control group."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from harness import cgroups, network
from harness.api import Api
from harness.cgroups import group
from harness.commands import run
from harness.errors import HarnessError
from harness.network import Subnets
from harness.processes import Command, Processes, running, wait_until
from harness.site import Site

UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private")


class NodeTier:
    """One set of new mount, network and process namespaces; killing its first process ends all of it."""

    def __init__(self, site: Site) -> None:
        assert site.node is not None
        self._site = site
        self._node = site.node
        self._processes = Processes(site.folder)

    def up(self) -> None:
        """Start the node and wait until it can run pods."""
        cgroups.create(group(self._node))
        argv = (*UNSHARE, sys.executable, "-m", "harness.nodeinit", str(self._site.folder))
        outside = self._processes.start(Command("node", argv))
        inside = self._first_process(outside)
        (self._site.folder / "node.pid").write_text(str(inside))
        subnets = Subnets.of(self._node.block)
        network.connect(interface(self._node.name), subnets, inside)
        started = self._site.folder / "inside"
        wait_until("the node's programs", started.exists, 180, self._processes.require_alive)
        api = Api(self._site.admin)
        wait_until("the node", lambda: _ready(api, self._node.name), 120, self._processes.require_alive, 0.2)

    def keep(self) -> None:
        """Its first process repairs what is inside; when it is gone itself, the node is."""
        if self._processes.reap():
            raise HarnessError("the node's first process died", f"read {self._site.folder}/logs/node.log")

    def down(self) -> None:
        """Kill everything and remove what outlives a process."""
        self._processes.kill()
        self.sweep()

    def sweep(self) -> None:
        """Remove what is left of a node whose supervisor is gone."""
        with suppress(FileNotFoundError, ValueError):
            self._kill_inside(int((self._site.folder / "node.pid").read_text()))
        # The interface goes with its namespace, but not at once.
        with suppress(HarnessError):
            run("ip", "link", "del", interface(self._node.name))
        cgroups.remove(group(self._node))

    def _kill_inside(self, pid: int) -> None:
        # The number may belong to another process by now: only ours names the folder in its command line.
        with suppress(FileNotFoundError, ProcessLookupError):
            if os.fsencode(self._site.folder) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                wait_until("the node's processes", lambda: not running(pid), 240)

    def _first_process(self, unshare: int) -> int:
        children = Path(f"/proc/{unshare}/task/{unshare}/children")
        wait_until("the namespaces", lambda: bool(children.read_text()), 10, self._processes.require_alive, 0.01)
        inside = int(children.read_text().split()[0])
        own = Path("/proc/self/ns/net").readlink()
        new = Path(f"/proc/{inside}/ns/net")
        wait_until("the network namespace", lambda: new.readlink() != own, 10, self._processes.require_alive, 0.01)
        return inside


def interface(name: str) -> str:
    """This machine's end of the pair of interfaces of a node; the kernel takes 15 characters."""
    return f"ft-{name.rpartition('-')[2]}"[:15]


def _ready(api: Api, name: str) -> bool:
    path = f"/api/v1/nodes/{name}"
    if not api.answers(path):
        return False
    conditions = api.get(path)["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
