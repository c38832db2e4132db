"""A node that runs pods: a control plane, a kubelet and a container runtime in namespaces of their own. Needs root."""

import json
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from harness import doctor, hostos, images, network, programs, runtime
from harness.cluster import Cluster
from harness.launch import Supervised, launch
from harness.processes import wait_until
from harness.provisioner import volume
from harness.site import Bind, NodeSite, Ports, Site

# /tmp may be held in memory, and images are large.
LARGE = Path("/var/tmp")


class Node(Cluster):
    """One whole node for as long as the `with` block.

    Its containers see `binds` read-only: by default this checkout's Python environment, for the `hostos` image.
    Claims of the default StorageClass are bound to folders of this machine.
    """

    def __init__(self, *, binds: Sequence[Bind] | None = None, image_archives: Sequence[Path] = ()) -> None:
        self._binds = binds
        self._images = image_archives

    def __enter__(self) -> "Node":
        """Start it; takes 10 to 15 seconds."""
        self._supervised = up(binds=self._binds, image_archives=self._images)
        self._attach(self._supervised.site)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it down; nothing of it is left."""
        self._supervised.stop()

    @classmethod
    def attached(cls, folder: Path) -> "Node":
        """The node that `node up` started in this folder."""
        node = cls()
        node._attach(Site.load(folder))
        return node

    def _attach(self, site: Site) -> None:
        assert site.node is not None
        super().__init__(site.admin, site.folder)
        self.name = site.node.name
        self.ip = site.address
        self._volumes = site.volumes

    def import_image(self, archive: Path) -> None:
        """Load an image archive, which pods can then use by its name."""
        inside = (self.folder / "node.pid").read_text()
        runtime.import_image(archive, Path(f"/proc/{inside}/root", *runtime.SOCKET.parts[1:]))

    def add_capacity(self, resource: str, count: int) -> None:
        """Pretend that the node has a resource, such as `nvidia.com/gpu`; pods that ask for it are scheduled."""
        amount = {resource: str(count)}
        patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
        self.kubectl("patch", "node", self.name, "--subresource=status", "--type=merge", f"--patch={patch}")

    def volume(self, name: str, size: str = "1Gi", storage_class: str = "") -> Path:
        """Make a PersistentVolume that a claim can name, and return its folder on this machine."""
        folder = self._volumes / name
        folder.mkdir()
        self.apply(volume(name, folder, self.name, size, storageClassName=storage_class))
        return folder

    def claim_path(self, namespace: str, claim: str) -> Path:
        """The folder on this machine that holds a claim's files, once it is bound."""

        def name() -> str:
            spec = self.get("persistentvolumeclaim", claim, f"--namespace={namespace}")["spec"]
            return str(spec.get("volumeName", ""))

        wait_until(f"a volume for the claim {namespace}/{claim}", lambda: bool(name()), 30, interval=0.2)
        return Path(self.get("persistentvolume", name())["spec"]["local"]["path"])


def up(
    folder: Path | None = None,
    *,
    binds: Sequence[Bind] | None = None,
    image_archives: Sequence[Path] = (),
    daemon: bool = False,
) -> Supervised:
    """Start a node, by default in a temporary folder; a daemon outlives the process that called this."""
    doctor.require(doctor.NODE)
    subnets = network.choose()
    node = NodeSite(
        name=f"node-{secrets.token_hex(4)}",
        block=str(subnets.block),
        cni=doctor.cni_plugins(),
        binds=tuple(hostos.binds() if binds is None else binds),
        images=(images.pause(), hostos.image(), *(path.absolute() for path in image_archives)),
    )
    site = Site(
        folder=folder or Path(tempfile.mkdtemp(prefix="finetune-node-", dir=LARGE)),
        programs=programs.built(),
        ports=Ports.usual(),
        address=subnets.node,
        services=str(subnets.services),
        scheduler=True,
        daemon=daemon,
        node=node,
    )
    return launch(site)
