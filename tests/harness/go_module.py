"""The Go module that builds the Kubernetes binaries, generated from the versions in `versions.py`.

The go.mod of Kubernetes replaces its staging modules (`k8s.io/api` and others) with relative paths of its source tree.
A module that imports Kubernetes has to replace each of them with a released version.
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
# A different CGO_ENABLED invalidates the build cache of Go.
ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}


def go() -> str:
    """The path of the `go` command.

    Raises:
        HarnessError: it is not on PATH.
    """
    if found := shutil.which("go"):
        return found
    raise HarnessError(
        "the Kubernetes binaries are not built, and `go` is not on PATH",
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
    """Generate a go.mod for `go mod tidy` from `upstream`, the go.mod of Kubernetes."""
    go_version = _match(r"^go (\S+)$", upstream)
    libraries = re.findall(r"^\s+(k8s\.io/\S+) => \./staging/", upstream, flags=re.MULTILINE)
    replacements = "\n".join(f"\t{name} => {name} v0.{kubernetes.partition('.')[2]}" for name in libraries)
    return (
        f"// Written by `python -m harness lock`.\nmodule finetune.dev/harness/kubernetes\n\ngo {go_version}\n\n"
        f"require (\n\thelm.sh/helm/v4 v{helm}\n\tk8s.io/kubernetes v{kubernetes}\n)\n\n"
        f"tool helm.sh/helm/v4/cmd/helm\n\nreplace (\n{replacements}\n)\n"
    )


def flags() -> list[str]:
    """The flags of `go build`."""
    major, minor, _ = KUBERNETES.split(".")
    version = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    variables = [f"-X k8s.io/component-base/version.{name}={value}" for name, value in version.items()]
    return ["-trimpath", f"-ldflags={' '.join(['-s', '-w', *variables])}"]


def inputs() -> list[Path]:
    """The source files of the module."""
    return [MODULE / "go.mod", MODULE / "go.sum", *sorted(MODULE.glob("*/*.go"))]


def _match(pattern: str, text: str) -> str:
    match = re.search(pattern, text, flags=re.MULTILINE)
    if match is None:
        raise HarnessError(f"no line in the go.mod of Kubernetes matches `{pattern}`")
    return match[1]
