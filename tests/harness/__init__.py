"""A real Kubernetes on a bare machine, for tests and for the demo.

Two tiers: `ControlPlane` needs no root and is up in seconds; `Node` adds a kubelet and runs pods, as root.
Neither needs a container registry, a virtual machine or Docker: the programs are compiled from Go modules.
"""

from harness.cluster import Cluster, KubectlError
from harness.controlplane import ControlPlane
from harness.errors import HarnessError
from harness.external import ExternalCluster
from harness.node import Node

__all__ = ["Cluster", "ControlPlane", "ExternalCluster", "HarnessError", "KubectlError", "Node"]
