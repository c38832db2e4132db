"""What can run on this machine, and for what cannot: why, and what to do about it."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import external, programs
from harness.errors import HarnessError

SETUP = "run `python -m harness setup` as root"
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
CNI_PLUGINS = ("ptp", "portmap", "host-local", "loopback")


@dataclass(frozen=True)
class Obstacle:
    """A reason why a tier cannot run here, and the cure."""

    reason: str
    cure: str

    def __str__(self) -> str:
        return f"{self.reason}; cure: {self.cure}"


@dataclass(frozen=True)
class Program:
    """A program of the system, and the Debian package that has it."""

    name: str
    package: str


NODE_PROGRAMS = (
    Program("containerd", "containerd"),
    Program("ctr", "containerd"),
    Program("runc", "runc"),
    Program("ip", "iproute2"),
    Program("iptables", "iptables"),
    Program("conntrack", "conntrack"),
    Program("unshare", "util-linux"),
    Program("mount", "mount"),
)
IMAGE_PROGRAMS = (Program("buildah", "buildah"), Program("debootstrap", "debootstrap"))
OTHER_PROGRAMS = (Program("prometheus", "prometheus"), Program("promtool", "prometheus"))


@dataclass(frozen=True)
class Tier:
    """One kind of test environment, and how to find what stands in its way."""

    name: str
    gives: str
    find: Callable[[], Iterator[Obstacle]]

    def obstacles(self) -> list[Obstacle]:
        """Why it cannot run here; nothing if it can."""
        return list(self.find())


def require(tier: Tier) -> None:
    """Fail with all that stands in the way of a tier."""
    if obstacles := tier.obstacles():
        raise HarnessError(
            f"the {tier.name} cannot run here: {'; '.join(each.reason for each in obstacles)}",
            "; ".join(dict.fromkeys(each.cure for each in obstacles)),
        )


def missing(wanted: tuple[Program, ...]) -> list[Program]:
    """The programs that are not on PATH, where root's are looked for as well."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return [program for program in wanted if not shutil.which(program.name, path=path)]


def cni_plugins() -> Path:
    """The folder of the network plugins."""
    for folder in CNI_FOLDERS:
        if all((folder / name).exists() for name in CNI_PLUGINS):
            return folder
    raise HarnessError(f"no folder of {', '.join(map(str, CNI_FOLDERS))} has {', '.join(CNI_PLUGINS)}", SETUP)


def _linux() -> Iterator[Obstacle]:
    if platform.system() != "Linux":
        yield Obstacle(
            f"this is {platform.system()}, and the programs are built for Linux", "use a Linux machine or container"
        )


def _control_plane() -> Iterator[Obstacle]:
    yield from _linux()
    try:
        if os.environ.get("KUBEBUILDER_ASSETS"):
            programs.for_control_plane()
        else:
            yield from _compiled()
    except HarnessError as error:
        yield Obstacle(error.problem, error.cure)


def _compiled() -> Iterator[Obstacle]:
    if not programs.already_built() and not shutil.which("go"):
        yield Obstacle("the cluster's programs are not built, and there is no Go", "install Go 1.25 or newer")


def _node() -> Iterator[Obstacle]:
    yield from _linux()
    yield from _compiled()
    yield from _root()
    for program in missing(NODE_PROGRAMS):
        yield Obstacle(f"`{program.name}` is not installed", SETUP)
    try:
        cni_plugins()
    except HarnessError as error:
        yield Obstacle(error.problem, error.cure)
    for controller in _missing_controllers():
        yield Obstacle(f"the kernel gives no `{controller}` control group", "use a machine or container that does")


def _root() -> Iterator[Obstacle]:
    if os.geteuid() != 0:
        yield Obstacle("a node needs root, for its namespaces and control groups", "run the tests as root (sudo)")


def _missing_controllers() -> list[str]:
    listing = Path("/proc/cgroups")
    known = {line.split()[0] for line in listing.read_text().splitlines()[1:]} if listing.exists() else set()
    return [name for name in ("cpu", "memory", "pids") if name not in known]


def _images() -> Iterator[Obstacle]:
    yield from _linux()
    yield from _root()
    for program in missing(IMAGE_PROGRAMS):
        yield Obstacle(f"`{program.name}` is not installed", SETUP)


def _prometheus() -> Iterator[Obstacle]:
    for program in missing(OTHER_PROGRAMS):
        yield Obstacle(f"`{program.name}` is not installed", SETUP)


def _external() -> Iterator[Obstacle]:
    if external.named() is None:
        yield Obstacle(
            "no cluster is named", f"set {external.KUBECONFIG} and {external.CONTEXT} to test on a cluster of yours"
        )


CONTROL_PLANE = Tier("control plane", "an API server and its controllers; seconds, no root", _control_plane)
NODE = Tier("node", "pods that run; as root", _node)
IMAGES = Tier("image build", "images from the project's Dockerfiles; as root", _images)
PROMETHEUS = Tier("prometheus", "metrics and alert rules checked by Prometheus itself", _prometheus)
EXTERNAL = Tier("external cluster", "the tests on a cluster of your own", _external)
TIERS = (CONTROL_PLANE, NODE, IMAGES, PROMETHEUS, EXTERNAL)
