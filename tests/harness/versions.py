"""Versions of Kubernetes, Helm and Debian. After a change, run `python -m harness lock`.

One Go module builds Kubernetes and Helm, so that their common dependencies are compiled once.
Helm has to require the minor version of `k8s.io/client-go` that belongs to the Kubernetes version:
Helm 4.1 for Kubernetes 1.35, Helm 4.2 for Kubernetes 1.36.
Kubernetes 1.35 is the last minor version whose kubelet supports containerd 1.x, the version in Debian stable.
"""

from typing import Final

KUBERNETES: Final = "1.35.4"
HELM: Final = "4.1.4"
DEBIAN: Final = "bookworm"
