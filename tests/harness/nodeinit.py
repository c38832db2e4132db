"""The first process of a node: it lives in the node's own namespaces, and everything in them dies with it.

Run as `python -m harness.nodeinit FOLDER`; the folder then holds `inside` when all programs are started.
"""

import signal
import sys
import time
from pathlib import Path

from harness import components, network, runtime
from harness.cgroups import group
from harness.commands import run
from harness.network import Subnets
from harness.processes import Command, Processes, wait_until
from harness.site import NodeSite, Site
from harness.supervisor import INTERVAL

# The kubelet insists on setting these, and they belong to the whole machine: it gets copies to write to.
SHADOWED = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
            "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes")  # fmt: skip
# Paths that are built into the kubelet and the network plugins.
OWN = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers")


def main(folder: Path) -> None:
    """Start the node's programs and keep them running."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    site = Site.load(folder)
    assert site.node is not None
    subnets = Subnets.of(site.node.block)
    mount(folder)
    wait_until("the network interface", Path("/proc/sys/net/ipv4/conf/eth0").exists, 30)
    network.configure_inside(subnets)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    processes = Processes(folder)
    start(site, site.node, subnets, processes)
    (folder / "inside").touch()
    while True:
        processes.restart_dead()
        time.sleep(INTERVAL)


def mount(folder: Path) -> None:
    """Give the node its own view of the paths that its programs write to."""
    # Volumes that the kubelet mounts have to appear in containers; the namespace itself is already private.
    run("mount", "--make-rshared", "/")
    run("mount", "-t", "proc", "proc", "/proc")
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    Path("/run/lock").mkdir()
    for path in OWN:
        private = folder / "node" / path.strip("/")
        private.mkdir(parents=True)
        Path(path).mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", private, path)
    for name in SHADOWED:
        original = Path("/proc/sys", name)
        if original.exists():
            copy = folder / "node" / "sys" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(original.read_text())
            run("mount", "--bind", copy, original)


def start(site: Site, node: NodeSite, subnets: Subnets, processes: Processes) -> None:
    """Start everything, the slowest first."""
    processes.start(runtime.containerd(site, node, subnets))
    components.start(site, processes)
    wait_until("containerd", runtime.SOCKET.exists, 30, processes.require_alive)
    for archive in node.images:
        runtime.import_image(archive)
    processes.start(runtime.kubelet(site, node, group(node)))
    processes.start(runtime.kube_proxy(site, node, subnets))
    for name in ("dns", "provisioner"):
        processes.start(Command(name, (sys.executable, "-m", f"harness.{name}", str(site.folder))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
