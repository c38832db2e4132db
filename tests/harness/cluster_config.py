"""Configuration of one cluster: directory, binaries, addresses. Stored in the directory as `cluster.json`."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from harness.processes import free_ports


class Ports(BaseModel):
    """The ports of the control plane components."""

    model_config = ConfigDict(frozen=True)

    api: int
    etcd: int
    etcd_peer: int
    controller_manager: int
    scheduler: int

    @classmethod
    def free(cls) -> "Ports":
        """Unused ports of this machine."""
        return cls(**dict(zip(cls.model_fields, free_ports(len(cls.model_fields)), strict=True)))

    @classmethod
    def default(cls) -> "Ports":
        """The default ports of Kubernetes, for use in a separate network namespace."""
        return cls(api=6443, etcd=2379, etcd_peer=2380, controller_manager=10257, scheduler=10259)


class BindMount(BaseModel):
    """A read-only bind mount of a path of the host in every container of the node."""

    model_config = ConfigDict(frozen=True)

    source: Path
    destination: Path


class NodeConfig(BaseModel):
    """Configuration of the node, in addition to the control plane."""

    model_config = ConfigDict(frozen=True)

    name: str
    block: str
    cni_plugins: Path
    binds: tuple[BindMount, ...]
    images: tuple[Path, ...]


class ClusterConfig(BaseModel):
    """Directory, binaries and addresses of one cluster."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    binaries: Path
    ports: Ports
    address: str = "127.0.0.1"
    services: str = "10.96.0.0/16"
    scheduler: bool = False
    daemon: bool = False
    node: NodeConfig | None = None

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return f"https://{self.address}:{self.ports.api}"

    @property
    def pki(self) -> Path:
        """The directory of certificates and keys."""
        return self.folder / "pki"

    @property
    def admin_kubeconfig(self) -> Path:
        """The kubeconfig of the administrator."""
        return self.folder / "kubeconfig"

    @property
    def volumes(self) -> Path:
        """The directory of the volumes, with a subdirectory for each."""
        return self.folder / "volumes"

    def kubeconfig(self, component: str) -> Path:
        """The kubeconfig of a component."""
        return self.folder / "kubeconfigs" / component

    def binary(self, name: str) -> str:
        """The path of a binary."""
        return str(self.binaries / name)

    def save(self) -> None:
        """Write `cluster.json`, which the processes of this cluster read."""
        (self.folder / "cluster.json").write_text(self.model_dump_json(indent=1))

    @classmethod
    def load(cls, folder: Path) -> "ClusterConfig":
        """Read `cluster.json` from the directory of a cluster."""
        return cls.model_validate_json((folder / "cluster.json").read_text())
