"""Starts Kubernetes clusters on the local machine, for the tests and the demo.

`ControlPlane` starts in seconds and needs no root. `Node` adds a kubelet, runs pods and needs root.
Neither needs a container registry, a virtual machine or Docker: the binaries are compiled from Go modules.
"""

from harness.cluster import Cluster, KubectlError
from harness.control_plane import ControlPlane
from harness.errors import HarnessError
from harness.external import ExternalCluster
from harness.node import Node

__all__ = ["Cluster", "ControlPlane", "ExternalCluster", "HarnessError", "KubectlError", "Node"]
