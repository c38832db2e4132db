"""The init process (PID 1) in the namespaces of a node: when it exits, the kernel kills all other processes in them.

Run as `python -m harness.node_init FOLDER`; it creates the file `started` in FOLDER once all components are started.
"""

import signal
import sys
import time
from pathlib import Path

from harness import control_plane_components, network, node_components
from harness.cgroups import cgroup_name
from harness.cluster_config import ClusterConfig, NodeConfig
from harness.commands import run
from harness.network import Subnets
from harness.processes import Command, Processes, wait_until
from harness.supervisor import INTERVAL_S

# The kubelet writes these sysctls, which are global to the host: it writes to copies instead.
SHADOWED_SYSCTLS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
                    "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes")  # fmt: skip
# Hard-coded paths of the kubelet and the CNI plugins.
PRIVATE_PATHS = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers")


def main(folder: Path) -> None:
    """Start the components of the node, and restart those that exit."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    config = ClusterConfig.load(folder)
    assert config.node is not None
    subnets = Subnets.from_block(config.node.block)
    mount(folder)
    wait_until("the network interface", Path("/proc/sys/net/ipv4/conf/eth0").exists, 30)
    network.configure_node_interface(subnets)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    processes = Processes(folder)
    start(config, config.node, subnets, processes)
    (folder / "started").touch()
    while True:
        processes.restart_exited()
        time.sleep(INTERVAL_S)


def mount(folder: Path) -> None:
    """Mount private copies of the paths that the components write to."""
    # Volumes that the kubelet mounts have to propagate to containers. The mount namespace itself is already private.
    run("mount", "--make-rshared", "/")
    run("mount", "-t", "proc", "proc", "/proc")
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    Path("/run/lock").mkdir()
    for path in PRIVATE_PATHS:
        private = folder / "node" / path.strip("/")
        private.mkdir(parents=True)
        Path(path).mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", private, path)
    for name in SHADOWED_SYSCTLS:
        original = Path("/proc/sys", name)
        if original.exists():
            copy = folder / "node" / "sys" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(original.read_text())
            run("mount", "--bind", copy, original)


def start(config: ClusterConfig, node: NodeConfig, subnets: Subnets, processes: Processes) -> None:
    """Start all components, the slowest first."""
    processes.start(node_components.containerd(config, node, subnets))
    control_plane_components.start(config, processes)
    wait_until("containerd", node_components.SOCKET.exists, 30, processes.require_alive)
    for archive in node.images:
        node_components.import_image(archive)
    processes.start(node_components.kubelet(config, node, cgroup_name(node)))
    processes.start(node_components.kube_proxy(config, node, subnets))
    for name in ("dns", "provisioner"):
        processes.start(Command(name, (sys.executable, "-m", f"harness.{name}", str(config.folder))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
