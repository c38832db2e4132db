"""Where one cluster lives: its folder, its programs, its addresses. Written to the folder as `site.json`."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from harness.processes import free_ports


class Ports(BaseModel):
    """The ports of the control plane's programs."""

    model_config = ConfigDict(frozen=True)

    api: int
    etcd: int
    etcd_peer: int
    controller_manager: int
    scheduler: int

    @classmethod
    def free(cls) -> "Ports":
        """Ports that nobody on this machine uses."""
        return cls(**dict(zip(cls.model_fields, free_ports(len(cls.model_fields)), strict=True)))

    @classmethod
    def usual(cls) -> "Ports":
        """The well-known ports, for a network namespace of its own."""
        return cls(api=6443, etcd=2379, etcd_peer=2380, controller_manager=10257, scheduler=10259)


class Bind(BaseModel):
    """A path of this machine that every container of the node sees, read-only."""

    model_config = ConfigDict(frozen=True)

    source: Path
    destination: Path


class NodeSite(BaseModel):
    """What a node has besides a control plane."""

    model_config = ConfigDict(frozen=True)

    name: str
    block: str
    cni: Path
    binds: tuple[Bind, ...]
    images: tuple[Path, ...]


class Site(BaseModel):
    """One cluster's folder, programs and addresses."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    programs: Path
    ports: Ports
    address: str = "127.0.0.1"
    services: str = "10.96.0.0/16"
    scheduler: bool = False
    daemon: bool = False
    node: NodeSite | None = None

    @property
    def server(self) -> str:
        """The API server's address."""
        return f"https://{self.address}:{self.ports.api}"

    @property
    def pki(self) -> Path:
        """The folder of certificates and keys."""
        return self.folder / "pki"

    @property
    def admin(self) -> Path:
        """The administrator's kubeconfig."""
        return self.folder / "kubeconfig"

    @property
    def volumes(self) -> Path:
        """The folder that holds one folder for each volume."""
        return self.folder / "volumes"

    def kubeconfig(self, who: str) -> Path:
        """The kubeconfig of one of the cluster's programs."""
        return self.folder / "kubeconfigs" / who

    def program(self, name: str) -> str:
        """The path of a program."""
        return str(self.programs / name)

    def save(self) -> None:
        """Write `site.json` for the processes that serve this cluster."""
        (self.folder / "site.json").write_text(self.model_dump_json(indent=1))

    @classmethod
    def load(cls, folder: Path) -> "Site":
        """Read the `site.json` of a cluster's folder."""
        return cls.model_validate_json((folder / "site.json").read_text())
