"""Node components: configuration of containerd, the CNI plugins, kubelet and kube-proxy."""

import json
import shutil
from pathlib import Path
from typing import Any

from harness.cluster_config import ClusterConfig, NodeConfig
from harness.commands import run
from harness.network import Subnets
from harness.processes import Command

# The node has a private /run, so the path does not conflict with a containerd of the host.
SOCKET = Path("/run/containerd/containerd.sock")
PAUSE = "localhost/pause:1"


def containerd(config: ClusterConfig, node: NodeConfig, subnets: Subnets) -> Command:
    """The container runtime, containerd."""
    directory = config.folder / "config"
    (directory / "cni").mkdir(parents=True, exist_ok=True)
    (directory / "cni" / "10-pods.conflist").write_text(json.dumps(_pod_network(subnets)))
    (directory / "container.json").write_text(json.dumps(_container_defaults(node)))
    path = directory / "containerd.toml"
    path.write_text(_containerd_toml(config.folder, directory, node.cni_plugins))
    return Command("containerd", (shutil.which("containerd") or "containerd", "--config", str(path)))


def kubelet(config: ClusterConfig, node: NodeConfig, cgroup: str) -> Command:
    """The kubelet."""
    signals = ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree")
    settings = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failSwapOn": False,
        # Lowering the score needs CAP_SYS_RESOURCE, which root in a container may not have.
        "oomScoreAdj": 0,
        "address": config.address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(config.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDomain": "cluster.local",
        "clusterDNS": [config.address],
        "resolvConf": str(_write_config(config, "resolv.conf", "")),
        "volumePluginDir": str(config.folder / "flex"),
        # A nearly full disk of the host must not evict pods.
        "evictionHard": dict.fromkeys(signals, "0%"),
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "2s",
    }
    path = _write_config(config, "kubelet.json", json.dumps(settings))
    argv = (f"--config={path}", f"--kubeconfig={config.kubeconfig('kubelet')}")
    identity = (f"--hostname-override={node.name}", f"--node-ip={config.address}")
    return Command("kubelet", (config.binary("kubelet"), *argv, *identity))


def kube_proxy(config: ClusterConfig, node: NodeConfig, subnets: Subnets) -> Command:
    """kube-proxy in iptables mode."""
    settings = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(config.kubeconfig("proxy"))},
        "mode": "iptables",
        "clusterCIDR": str(subnets.pods),
        "hostnameOverride": node.name,
        "oomScoreAdj": 0,
        # These sysctls are global to the host and read-only in a network namespace.
        "conntrack": {"maxPerCore": 0, "min": 0},
    }
    path = _write_config(config, "kube-proxy.json", json.dumps(settings))
    return Command("kube-proxy", (config.binary("kube-proxy"), f"--config={path}"))


def import_image(archive: Path, socket: Path = SOCKET) -> None:
    """Import an image archive into containerd."""
    run("ctr", f"--address={socket}", "--namespace=k8s.io", "images", "import", "--no-unpack=false", archive)


def _container_defaults(node: NodeConfig) -> dict[str, Any]:
    defaults: dict[str, Any] = json.loads(run("ctr", "oci", "spec"))
    defaults["mounts"] += [
        {"type": "bind", "source": str(bind.source), "destination": str(bind.destination), "options": ["rbind", "ro"]}
        for bind in node.binds
    ]
    return defaults


def _pod_network(subnets: Subnets) -> dict[str, Any]:
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": str(subnets.pods)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [
        {"type": "ptp", "ipMasq": False, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}


def _containerd_toml(folder: Path, config: Path, cni_plugins: Path) -> str:
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
    bin_dir = "{cni_plugins}"
    conf_dir = "{config}/cni"
"""


def _snapshotter(folder: Path) -> str:
    # overlayfs cannot be stacked on overlayfs, the usual root filesystem of a container.
    return "native" if run("stat", "--file-system", "--format=%T", folder).strip() == "overlayfs" else "overlayfs"


def _write_config(config: ClusterConfig, name: str, content: str) -> Path:
    path = config.folder / "config" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path
