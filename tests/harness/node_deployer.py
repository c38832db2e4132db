"""Deploys a node: creates and removes its namespaces, its veth pair and its cgroup."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from harness import cgroups, network
from harness.api import Api
from harness.cgroups import cgroup_name
from harness.cluster_config import ClusterConfig
from harness.commands import run
from harness.errors import HarnessError
from harness.network import Subnets
from harness.processes import Command, Processes, running, wait_until

UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private")


class NodeDeployer:
    """Runs a node in new mount, network and PID namespaces; killing their init process stops the node."""

    def __init__(self, config: ClusterConfig) -> None:
        assert config.node is not None
        self._config = config
        self._node = config.node
        self._processes = Processes(config.folder)

    def up(self) -> None:
        """Start the node and wait until it is Ready."""
        cgroups.create(cgroup_name(self._node))
        argv = (*UNSHARE, sys.executable, "-m", "harness.node_init", str(self._config.folder))
        unshare = self._processes.start(Command("node", argv))
        init = self._init_pid(unshare)
        (self._config.folder / "node.pid").write_text(str(init))
        subnets = Subnets.from_block(self._node.block)
        network.create_veth_pair(host_interface(self._node.name), subnets, init)
        started = self._config.folder / "started"
        check = self._processes.require_alive
        wait_until("the components of the node to start", started.exists, 180, check)
        api = Api(self._config.admin_kubeconfig)
        wait_until("the node to be Ready", lambda: _is_ready(api, self._node.name), 120, check, 0.2)

    def supervise(self) -> None:
        """Check that the init process is running; it restarts the components by itself."""
        if self._processes.reap():
            raise HarnessError("the init process of the node exited", f"see {self._config.folder}/logs/node.log")

    def down(self) -> None:
        """Kill all processes, then remove the veth pair and the cgroup."""
        self._processes.kill()
        self.clean_up()

    def clean_up(self) -> None:
        """Remove the resources of a node whose supervisor has exited."""
        with suppress(FileNotFoundError, ValueError):
            self._kill_init(int((self._config.folder / "node.pid").read_text()))
        # The kernel removes the interface with its namespace, but with a delay.
        with suppress(HarnessError):
            run("ip", "link", "del", host_interface(self._node.name))
        cgroups.remove(cgroup_name(self._node))

    def _kill_init(self, pid: int) -> None:
        # The PID may have been reused: only the init process has the directory in its command line.
        with suppress(FileNotFoundError, ProcessLookupError):
            if os.fsencode(self._config.folder) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                wait_until("the processes of the node to exit", lambda: not running(pid), 240)

    def _init_pid(self, unshare: int) -> int:
        check = self._processes.require_alive
        children = Path(f"/proc/{unshare}/task/{unshare}/children")
        wait_until("the init process", lambda: bool(children.read_text()), 10, check, 0.01)
        init = int(children.read_text().split()[0])
        host = Path("/proc/self/ns/net").readlink()
        namespace = Path(f"/proc/{init}/ns/net")
        wait_until("the network namespace", lambda: namespace.readlink() != host, 10, check, 0.01)
        return init


def host_interface(name: str) -> str:
    """The name of the host end of the veth pair of a node, at most 15 characters (IFNAMSIZ)."""
    return f"ft-{name.rpartition('-')[2]}"[:15]


def _is_ready(api: Api, name: str) -> bool:
    path = f"/api/v1/nodes/{name}"
    if not api.is_success(path):
        return False
    conditions = api.get(path)["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
