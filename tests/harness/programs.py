"""Where each program of the cluster comes from: the user's own folder, the cache, or a build."""

import os
import shutil
from pathlib import Path

from harness import cache, gomodule
from harness.commands import follow, run
from harness.errors import HarnessError
from harness.progress import say, task
from harness.versions import KUBERNETES

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
HYPERKUBE = (*CONTROL_PLANE, "kube-scheduler", "kube-proxy", "kubelet")


def built() -> Path:
    """The folder of the programs compiled from Go modules; the first call takes minutes."""
    return cache.obtain("programs", _key(), _build)


def already_built() -> bool:
    """Whether `built()` returns at once."""
    return cache.entry("programs", _key()).exists()


def for_control_plane(*, scheduler: bool = False) -> Path:
    """A folder with the programs of a control plane: `$KUBEBUILDER_ASSETS`, else the built ones."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        return built()
    wanted = (*CONTROL_PLANE, *(["kube-scheduler"] if scheduler else []))
    if missing := [name for name in wanted if not Path(assets, name).exists()]:
        raise HarnessError(
            f"KUBEBUILDER_ASSETS={assets} has no {', '.join(missing)}",
            "put them there (setup-envtest ships no controller-manager), or unset KUBEBUILDER_ASSETS to compile all",
        )
    return Path(assets).absolute()


def locate(name: str) -> Path:
    """A client program (`kubectl`, `helm`): from `$KUBEBUILDER_ASSETS`, the built ones, or as a last resort PATH."""
    if (assets := os.environ.get("KUBEBUILDER_ASSETS")) and Path(assets, name).exists():
        return Path(assets, name).absolute()
    if already_built() or shutil.which("go"):
        return built() / name
    if found := shutil.which(name):
        return Path(found)
    raise HarnessError(f"there is no `{name}` on PATH and no Go to compile it", "install Go 1.25 or newer")


def _key() -> str:
    return f"{KUBERNETES}-{cache.digest(*gomodule.inputs(), *gomodule.flags(), *gomodule.PACKAGES)}"


def _build(folder: Path) -> None:
    compiler = gomodule.go()
    say(f"Kubernetes {KUBERNETES} is compiled once for this machine, which takes 5 to 20 minutes")
    listing = run(compiler, "list", "-deps", *gomodule.PACKAGES, cwd=gomodule.MODULE, env=gomodule.ENVIRONMENT)
    total, compiled = len(listing.splitlines()), 0
    with task("compiling Kubernetes and Helm") as progress:

        def heard(_line: str) -> None:
            nonlocal compiled
            compiled += 1
            progress.update(f"{compiled} of at most {total} packages")

        argv = [compiler, "build", "-v", *gomodule.flags(), "-o", f"{folder}/", *gomodule.PACKAGES]
        follow(*argv, heard=heard, cwd=gomodule.MODULE, env=gomodule.ENVIRONMENT)
    for name in HYPERKUBE:
        (folder / name).symlink_to("hyperkube")
