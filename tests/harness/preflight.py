"""Preflight checks: which test environments this machine supports, and how to fix the others."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import binaries, external
from harness.errors import HarnessError

SETUP = "run `python -m harness setup` as root"
CNI_DIRS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
CNI_PLUGINS = ("ptp", "portmap", "host-local", "loopback")


@dataclass(frozen=True)
class UnmetRequirement:
    """Why a tier is unavailable, and how to fix it."""

    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.reason}; fix: {self.fix}"


@dataclass(frozen=True)
class Program:
    """A program, and the Debian package that provides it."""

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
    """A kind of test environment, and its preflight check."""

    name: str
    description: str
    check: Callable[[], Iterator[UnmetRequirement]]

    def unmet_requirements(self) -> list[UnmetRequirement]:
        """Run the check; the list is empty if the tier is available."""
        return list(self.check())


def require(tier: Tier) -> None:
    """Check a tier.

    Raises:
        HarnessError: the tier is unavailable; the message lists all unmet requirements.
    """
    if unmet := tier.unmet_requirements():
        raise HarnessError(
            f"{tier.name} is unavailable: {'; '.join(each.reason for each in unmet)}",
            "; ".join(dict.fromkeys(each.fix for each in unmet)),
        )


def missing_programs(programs: tuple[Program, ...]) -> list[Program]:
    """The programs that are neither on PATH nor in the sbin directories."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return [program for program in programs if not shutil.which(program.name, path=path)]


def find_cni_plugins() -> Path:
    """The directory of the CNI plugins.

    Raises:
        HarnessError: no known directory has all of them.
    """
    for folder in CNI_DIRS:
        if all((folder / name).exists() for name in CNI_PLUGINS):
            return folder
    raise HarnessError(f"CNI plugins {', '.join(CNI_PLUGINS)} not found in {' or '.join(map(str, CNI_DIRS))}", SETUP)


def _linux() -> Iterator[UnmetRequirement]:
    if platform.system() != "Linux":
        yield UnmetRequirement(
            f"the operating system is {platform.system()}; Linux is required", "use a Linux machine or container"
        )


def _control_plane() -> Iterator[UnmetRequirement]:
    yield from _linux()
    try:
        if os.environ.get("KUBEBUILDER_ASSETS"):
            binaries.control_plane_directory()
        else:
            yield from _binaries()
    except HarnessError as error:
        yield UnmetRequirement(error.problem, error.fix)


def _binaries() -> Iterator[UnmetRequirement]:
    if not binaries.is_built() and not shutil.which("go"):
        yield UnmetRequirement(
            "the Kubernetes binaries are not built, and `go` is not on PATH", "install Go 1.25 or newer"
        )


def _node() -> Iterator[UnmetRequirement]:
    yield from _linux()
    yield from _binaries()
    yield from _root()
    for program in missing_programs(NODE_PROGRAMS):
        yield UnmetRequirement(f"`{program.name}` is not installed", SETUP)
    try:
        find_cni_plugins()
    except HarnessError as error:
        yield UnmetRequirement(error.problem, error.fix)
    for controller in _missing_controllers():
        yield UnmetRequirement(
            f"the kernel has no `{controller}` cgroup controller", "use a machine or container that has it"
        )


def _root() -> Iterator[UnmetRequirement]:
    if os.geteuid() != 0:
        yield UnmetRequirement("root is required for namespaces and cgroups", "run the tests as root (sudo)")


def _missing_controllers() -> list[str]:
    file = Path("/proc/cgroups")
    available = {line.split()[0] for line in file.read_text().splitlines()[1:]} if file.exists() else set()
    return [name for name in ("cpu", "memory", "pids") if name not in available]


def _images() -> Iterator[UnmetRequirement]:
    yield from _linux()
    yield from _root()
    for program in missing_programs(IMAGE_PROGRAMS):
        yield UnmetRequirement(f"`{program.name}` is not installed", SETUP)


def _prometheus() -> Iterator[UnmetRequirement]:
    for program in missing_programs(OTHER_PROGRAMS):
        yield UnmetRequirement(f"`{program.name}` is not installed", SETUP)


def _external() -> Iterator[UnmetRequirement]:
    if external.configured_cluster() is None:
        yield UnmetRequirement("no external cluster is configured", f"set {external.KUBECONFIG} and {external.CONTEXT}")


CONTROL_PLANE = Tier("control plane", "API server and controllers; starts in seconds, needs no root", _control_plane)
NODE = Tier("node", "runs pods; needs root", _node)
IMAGES = Tier("image build", "builds images from the Dockerfiles of the project; needs root", _images)
PROMETHEUS = Tier("prometheus", "checks metrics and alert rules with Prometheus", _prometheus)
EXTERNAL = Tier("external cluster", "runs the tests on an existing cluster", _external)
TIERS = (CONTROL_PLANE, NODE, IMAGES, PROMETHEUS, EXTERNAL)
