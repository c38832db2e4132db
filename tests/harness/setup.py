"""Installing what the node tier needs from the system, on Debian and Ubuntu."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import doctor
from harness.commands import follow
from harness.doctor import Obstacle
from harness.errors import HarnessError
from harness.progress import say, task

POLICY = Path("/usr/sbin/policy-rc.d")
# Services of these packages must not start: the harness runs its own copies of the programs.
NO_SERVICES = "#!/bin/sh\n# Written by the finetune-operator test harness while it installs packages.\nexit 101\n"
CNI_PACKAGE = "containernetworking-plugins"
# On Ubuntu, debootstrap has no keys of Debian without it.
KEYRING = "debian-archive-keyring"


def install() -> None:
    """Install the packages whose programs are missing; where that is not possible, say why and go on."""
    packages = wanted()
    if not packages:
        say("the system has all programs that the harness needs")
    elif obstacle := _obstacle(packages):
        say(f"not installed: {', '.join(packages)}: {obstacle}")
    else:
        _apt(packages)


def _obstacle(packages: list[str]) -> Obstacle | None:
    if not shutil.which("apt-get"):
        return Obstacle("this system has no apt-get", "install them with the system's own package manager")
    if os.geteuid() != 0:
        return Obstacle("only root can install packages", f"sudo apt-get install {' '.join(packages)}")
    return None


def _apt(packages: list[str]) -> None:
    say(f"installing {', '.join(packages)}")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    with task("installing packages") as progress, _without_services():
        follow("apt-get", "update", heard=progress.update, env=environment)
        argv = ("apt-get", "install", "--yes", "--no-install-recommends", *packages)
        follow(*argv, heard=progress.update, env=environment)


def wanted() -> list[str]:
    """The packages whose programs are missing."""
    programs = (*doctor.NODE_PROGRAMS, *doctor.IMAGE_PROGRAMS, *doctor.OTHER_PROGRAMS)
    packages = [program.package for program in doctor.missing(programs)]
    try:
        doctor.cni_plugins()
    except HarnessError:
        packages.append(CNI_PACKAGE)
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        packages.append(KEYRING)
    return list(dict.fromkeys(packages))


@contextmanager
def _without_services() -> Iterator[None]:
    if POLICY.exists():
        # Somebody has a policy already (container images do); it is not ours to change.
        yield
        return
    POLICY.write_text(NO_SERVICES)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
