"""The Go module of the cluster's programs, written from the versions in `versions.py`.

Kubernetes refers to its own libraries (`k8s.io/api` and its siblings) by relative paths that exist only in its
source tree; a module that imports it has to name a released version of each. The list is read from Kubernetes.
"""

import json
import re
import shutil
from pathlib import Path

from harness.commands import run
from harness.errors import HarnessError
from harness.versions import HELM, KUBERNETES

MODULE = Path(__file__).parent / "kubernetes"
PACKAGES = ("./hyperkube", "./pause", "helm.sh/helm/v4/cmd/helm")
# Another CGO_ENABLED makes Go compile everything again.
ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}


def go() -> str:
    """The Go compiler."""
    if found := shutil.which("go"):
        return found
    raise HarnessError(
        "the cluster's programs have to be compiled once, and there is no `go` on PATH",
        "install Go 1.25 or newer (https://go.dev/dl), "
        "or set KUBEBUILDER_ASSETS, or FINETUNE_TEST_KUBECONFIG and FINETUNE_TEST_CONTEXT",
    )


def lock() -> None:
    """Write go.mod and go.sum for the versions in `versions.py`."""
    download = run(go(), "mod", "download", "-json", f"k8s.io/kubernetes@v{KUBERNETES}", cwd=MODULE.parent)
    upstream = Path(json.loads(download)["GoMod"]).read_text()
    (MODULE / "go.mod").write_text(render(upstream, KUBERNETES, HELM))
    run(go(), "mod", "tidy", cwd=MODULE, env=ENVIRONMENT)


def render(upstream: str, kubernetes: str, helm: str) -> str:
    """A go.mod that `go mod tidy` completes; `upstream` is Kubernetes' own."""
    go_version = _only(r"^go (\S+)$", upstream)
    libraries = re.findall(r"^\s+(k8s\.io/\S+) => \./staging/", upstream, flags=re.MULTILINE)
    replacements = "\n".join(f"\t{name} => {name} v0.{kubernetes.partition('.')[2]}" for name in libraries)
    return (
        f"// Written by `python -m harness lock`.\nmodule finetune.dev/harness/kubernetes\n\ngo {go_version}\n\n"
        f"require (\n\thelm.sh/helm/v4 v{helm}\n\tk8s.io/kubernetes v{kubernetes}\n)\n\n"
        f"tool helm.sh/helm/v4/cmd/helm\n\nreplace (\n{replacements}\n)\n"
    )


def flags() -> list[str]:
    """What `go build` is told, besides the packages."""
    major, minor, _ = KUBERNETES.split(".")
    version = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    stamps = [f"-X k8s.io/component-base/version.{name}={value}" for name, value in version.items()]
    return ["-trimpath", f"-ldflags={' '.join(['-s', '-w', *stamps])}"]


def inputs() -> list[Path]:
    """The files the programs are made from."""
    return [MODULE / "go.mod", MODULE / "go.sum", *sorted(MODULE.glob("*/*.go"))]


def _only(pattern: str, text: str) -> str:
    match = re.search(pattern, text, flags=re.MULTILINE)
    if match is None:
        raise HarnessError(f"Kubernetes' go.mod has no line like `{pattern}`")
    return match[1]
