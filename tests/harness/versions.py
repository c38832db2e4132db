"""The versions the harness builds: change a line here, then run `python -m harness lock`.

One Go module compiles Kubernetes and Helm, so that their shared libraries are compiled once.
Choose a Helm whose go.mod asks for the same minor of `k8s.io/client-go` as Kubernetes:
Helm 4.1 goes with Kubernetes 1.35, Helm 4.2 with 1.36.
Kubernetes 1.35 is the last minor whose kubelet speaks to containerd 1.x, which stable Debian ships.
"""

from typing import Final

KUBERNETES: Final = "1.35.4"
HELM: Final = "4.1.4"
DEBIAN: Final = "bookworm"
