"""Starts a single-node cluster that runs pods, in separate Linux namespaces. Needs root."""

import json
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from harness import binaries, host_image, images, network, node_components, preflight
from harness.cluster import Cluster
from harness.cluster_config import BindMount, ClusterConfig, NodeConfig, Ports
from harness.launch import Supervisor, launch
from harness.processes import wait_until
from harness.provisioner import build_volume

# Images are large, and /tmp may be a tmpfs.
DISK_TMP = Path("/var/tmp")


class Node(Cluster):
    """A context manager that runs a control plane, containerd, kubelet and kube-proxy.

    PersistentVolumeClaims of the default StorageClass are bound to directories of the host.

    Args:
        binds: read-only bind mounts of all containers; by default those that the host image needs.
        image_archives: images to import.
    """

    def __init__(self, *, binds: Sequence[BindMount] | None = None, image_archives: Sequence[Path] = ()) -> None:
        self._binds = binds
        self._images = image_archives

    def __enter__(self) -> "Node":
        """Start the node, which takes 10 to 15 seconds."""
        self._supervisor = up(binds=self._binds, image_archives=self._images)
        self._attach(self._supervisor.config)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the node and delete its files."""
        self._supervisor.stop()

    @classmethod
    def attach(cls, folder: Path) -> "Node":
        """Attach to the node that `node up` started in a directory."""
        node = cls()
        node._attach(ClusterConfig.load(folder))
        return node

    def _attach(self, config: ClusterConfig) -> None:
        assert config.node is not None
        super().__init__(config.admin_kubeconfig, config.folder)
        self.name = config.node.name
        self.ip = config.address
        self._volumes = config.volumes

    def import_image(self, archive: Path) -> None:
        """Import an image archive into containerd."""
        pid = (self.folder / "node.pid").read_text()
        node_components.import_image(archive, Path(f"/proc/{pid}/root", *node_components.SOCKET.parts[1:]))

    def add_capacity(self, resource: str, count: int) -> None:
        """Advertise an extended resource, such as `nvidia.com/gpu`, in the status of the node."""
        quantity = {resource: str(count)}
        patch = json.dumps({"status": {"capacity": quantity, "allocatable": quantity}})
        self.kubectl("patch", "node", self.name, "--subresource=status", "--type=merge", f"--patch={patch}")

    def create_volume(self, name: str, size: str = "1Gi", storage_class: str = "") -> Path:
        """Create a local PersistentVolume and return its directory on the host."""
        folder = self._volumes / name
        folder.mkdir()
        self.apply(build_volume(name, folder, self.name, size, storageClassName=storage_class))
        return folder

    def claim_path(self, namespace: str, claim: str) -> Path:
        """Wait until a PersistentVolumeClaim is bound, and return its directory on the host."""

        def volume_name() -> str:
            spec = self.get("persistentvolumeclaim", claim, f"--namespace={namespace}")["spec"]
            return str(spec.get("volumeName", ""))

        wait_until(f"claim {namespace}/{claim} to be bound", lambda: bool(volume_name()), 30, interval=0.2)
        return Path(self.get("persistentvolume", volume_name())["spec"]["local"]["path"])


def up(
    folder: Path | None = None,
    *,
    binds: Sequence[BindMount] | None = None,
    image_archives: Sequence[Path] = (),
    daemon: bool = False,
) -> Supervisor:
    """Start a node.

    Args:
        folder: directory of the cluster; by default a new temporary directory.
        binds: read-only bind mounts of all containers; by default those that the host image needs.
        image_archives: images to import.
        daemon: keep running after the calling process exits.
    """
    preflight.require(preflight.NODE)
    subnets = network.allocate_subnets()
    node = NodeConfig(
        name=f"node-{secrets.token_hex(4)}",
        block=str(subnets.block),
        cni_plugins=preflight.find_cni_plugins(),
        binds=tuple(host_image.bind_mounts() if binds is None else binds),
        images=(images.build_pause(), host_image.build(), *(path.absolute() for path in image_archives)),
    )
    config = ClusterConfig(
        folder=folder or Path(tempfile.mkdtemp(prefix="finetune-node-", dir=DISK_TMP)),
        binaries=binaries.build(),
        ports=Ports.default(),
        address=subnets.node,
        services=str(subnets.services),
        scheduler=True,
        daemon=daemon,
        node=node,
    )
    return launch(config)
