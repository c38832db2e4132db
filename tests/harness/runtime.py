"""What containerd, its network plugins, the kubelet and kube-proxy of a node are told."""

import json
import shutil
from pathlib import Path
from typing import Any

from harness.commands import run
from harness.network import Subnets
from harness.processes import Command
from harness.site import NodeSite, Site

# A private /run hides the machine's own, so the path is short and there is no other containerd on it.
SOCKET = Path("/run/containerd/containerd.sock")
PAUSE = "localhost/pause:1"


def containerd(site: Site, node: NodeSite, subnets: Subnets) -> Command:
    """The container runtime."""
    config = site.folder / "config"
    (config / "cni").mkdir(parents=True, exist_ok=True)
    (config / "cni" / "10-pods.conflist").write_text(json.dumps(_pod_network(subnets)))
    (config / "container.json").write_text(json.dumps(_container_defaults(node)))
    path = config / "containerd.toml"
    path.write_text(_containerd_toml(site.folder, config, node.cni))
    return Command("containerd", (shutil.which("containerd") or "containerd", "--config", str(path)))


def kubelet(site: Site, node: NodeSite, cgroup: str) -> Command:
    """The kubelet."""
    none_left = ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree")
    settings = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failSwapOn": False,
        # Lowering it needs a capability that root in a virtual machine or a container may not have.
        "oomScoreAdj": 0,
        "address": site.address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(site.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDomain": "cluster.local",
        "clusterDNS": [site.address],
        "resolvConf": str(_file(site, "resolv.conf", "")),
        "volumePluginDir": str(site.folder / "flex"),
        # The machine's disk may be nearly full with other things; that must not evict a test's pods.
        "evictionHard": dict.fromkeys(none_left, "0%"),
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "2s",
    }
    path = _file(site, "kubelet.json", json.dumps(settings))
    argv = (f"--config={path}", f"--kubeconfig={site.kubeconfig('kubelet')}")
    identity = (f"--hostname-override={node.name}", f"--node-ip={site.address}")
    return Command("kubelet", (site.program("kubelet"), *argv, *identity))


def kube_proxy(site: Site, node: NodeSite, subnets: Subnets) -> Command:
    """The program that makes Services work."""
    settings = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(site.kubeconfig("proxy"))},
        "mode": "iptables",
        "clusterCIDR": str(subnets.pods),
        "hostnameOverride": node.name,
        "oomScoreAdj": 0,
        # These limits belong to the machine and cannot be written in a network namespace.
        "conntrack": {"maxPerCore": 0, "min": 0},
    }
    path = _file(site, "kube-proxy.json", json.dumps(settings))
    return Command("kube-proxy", (site.program("kube-proxy"), f"--config={path}"))


def import_image(archive: Path, socket: Path = SOCKET) -> None:
    """Load an image archive into the node."""
    run("ctr", f"--address={socket}", "--namespace=k8s.io", "images", "import", "--no-unpack=false", archive)


def _container_defaults(node: NodeSite) -> dict[str, Any]:
    defaults: dict[str, Any] = json.loads(run("ctr", "oci", "spec"))
    defaults["mounts"] += [
        {"type": "bind", "source": str(bind.source), "destination": str(bind.destination), "options": ["rbind", "ro"]}
        for bind in node.binds
    ]
    return defaults


def _pod_network(subnets: Subnets) -> dict[str, Any]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": str(subnets.pods)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [
        {"type": "ptp", "ipMasq": False, "ipam": addresses},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}


def _containerd_toml(folder: Path, config: Path, cni: Path) -> str:
    return f"""\
version = 2
root = "{folder}/containerd"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{_snapshotter(folder)}"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      base_runtime_spec = "{config}/container.json"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{config}/cni"
"""


def _snapshotter(folder: Path) -> str:
    # An overlay cannot lie on an overlay, which is what a folder inside a container usually is.
    return "native" if run("stat", "--file-system", "--format=%T", folder).strip() == "overlayfs" else "overlayfs"


def _file(site: Site, name: str, content: str) -> Path:
    path = site.folder / "config" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path
