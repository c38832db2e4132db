"""Installs the system packages that the harness needs, on Debian and Ubuntu."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import preflight
from harness.commands import run_streaming
from harness.errors import HarnessError
from harness.preflight import UnmetRequirement
from harness.progress import print_line, task

POLICY = Path("/usr/sbin/policy-rc.d")
# The services of these packages must not start: the harness starts its own processes.
DENY_SERVICES = "#!/bin/sh\n# Written by the finetune-operator test harness during package installation.\nexit 101\n"
CNI_PACKAGE = "containernetworking-plugins"
# debootstrap on Ubuntu needs it to verify Debian packages.
KEYRING = "debian-archive-keyring"


def install() -> None:
    """Install missing packages; if that is not possible, print the reason."""
    packages = missing_packages()
    if not packages:
        print_line("all system packages are installed")
    elif unmet := _check_installable(packages):
        print_line(f"not installed: {', '.join(packages)}: {unmet}")
    else:
        _apt_install(packages)


def _check_installable(packages: list[str]) -> UnmetRequirement | None:
    if not shutil.which("apt-get"):
        return UnmetRequirement("apt-get is not available", "install them with the package manager of the system")
    if os.geteuid() != 0:
        return UnmetRequirement("root is required to install packages", f"sudo apt-get install {' '.join(packages)}")
    return None


def _apt_install(packages: list[str]) -> None:
    print_line(f"installing {', '.join(packages)}")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    with task("installing packages") as progress, _without_services():
        run_streaming("apt-get", "update", on_line=progress.update, env=environment)
        argv = ("apt-get", "install", "--yes", "--no-install-recommends", *packages)
        run_streaming(*argv, on_line=progress.update, env=environment)


def missing_packages() -> list[str]:
    """The packages of all missing programs."""
    programs = (*preflight.NODE_PROGRAMS, *preflight.IMAGE_PROGRAMS, *preflight.OTHER_PROGRAMS)
    packages = [program.package for program in preflight.missing_programs(programs)]
    try:
        preflight.find_cni_plugins()
    except HarnessError:
        packages.append(CNI_PACKAGE)
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        packages.append(KEYRING)
    return list(dict.fromkeys(packages))


@contextmanager
def _without_services() -> Iterator[None]:
    if POLICY.exists():
        # Container images often have a policy already; leave it unchanged.
        yield
        return
    POLICY.write_text(DENY_SERVICES)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
