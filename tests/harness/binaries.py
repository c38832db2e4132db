"""Locates the Kubernetes binaries: in `$KUBEBUILDER_ASSETS`, in the cache, or by compiling them."""

import os
import shutil
from pathlib import Path

from harness import cache, go_module
from harness.commands import run, run_streaming
from harness.errors import HarnessError
from harness.progress import print_line, task
from harness.versions import KUBERNETES

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
HYPERKUBE = (*CONTROL_PLANE, "kube-scheduler", "kube-proxy", "kubelet")


def build() -> Path:
    """Compile the binaries unless they are cached, and return their directory. The first build takes minutes."""
    return cache.get_or_create("programs", _key(), _build)


def is_built() -> bool:
    """Whether the compiled binaries are cached."""
    return cache.entry_path("programs", _key()).exists()


def control_plane_directory(*, scheduler: bool = False) -> Path:
    """The directory of the control plane binaries: `$KUBEBUILDER_ASSETS`, by default the compiled ones.

    Raises:
        HarnessError: `$KUBEBUILDER_ASSETS` lacks one of them.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        return build()
    required = (*CONTROL_PLANE, *(["kube-scheduler"] if scheduler else []))
    if missing := [name for name in required if not Path(assets, name).exists()]:
        raise HarnessError(
            f"KUBEBUILDER_ASSETS={assets} has no {', '.join(missing)}",
            "add them (setup-envtest has no kube-controller-manager), or unset KUBEBUILDER_ASSETS to compile all",
        )
    return Path(assets).absolute()


def find_client(name: str) -> Path:
    """The path of a client (`kubectl`, `helm`): from `$KUBEBUILDER_ASSETS`, the compiled binaries, or PATH.

    Raises:
        HarnessError: it is not found and cannot be compiled.
    """
    if (assets := os.environ.get("KUBEBUILDER_ASSETS")) and Path(assets, name).exists():
        return Path(assets, name).absolute()
    if is_built() or shutil.which("go"):
        return build() / name
    if found := shutil.which(name):
        return Path(found)
    raise HarnessError(f"neither `{name}` nor `go` to compile it is on PATH", "install Go 1.25 or newer")


def _key() -> str:
    return f"{KUBERNETES}-{cache.digest(*go_module.inputs(), *go_module.flags(), *go_module.PACKAGES)}"


def _build(folder: Path) -> None:
    compiler = go_module.go()
    print_line(f"compiling Kubernetes {KUBERNETES}; the first build on a machine takes 5 to 20 minutes")
    listing = run(compiler, "list", "-deps", *go_module.PACKAGES, cwd=go_module.MODULE, env=go_module.ENVIRONMENT)
    total, compiled = len(listing.splitlines()), 0
    with task("compiling Kubernetes and Helm") as progress:

        def on_line(_line: str) -> None:
            nonlocal compiled
            compiled += 1
            progress.update(f"{compiled} of at most {total} packages")

        argv = [compiler, "build", "-v", *go_module.flags(), "-o", f"{folder}/", *go_module.PACKAGES]
        run_streaming(*argv, on_line=on_line, cwd=go_module.MODULE, env=go_module.ENVIRONMENT)
    for name in HYPERKUBE:
        (folder / name).symlink_to("hyperkube")
