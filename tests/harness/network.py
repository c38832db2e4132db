"""The network of a node: a veth pair that connects the network namespace of the node to the host.

There is no default route and no NAT, so no packet of a pod can leave the host.
"""

import ipaddress
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network

from harness import cache
from harness.commands import run
from harness.errors import HarnessError

PRIVATE_RANGES = ("10.128.0.0/9", "172.16.0.0/12", "198.18.0.0/15")


@dataclass(frozen=True)
class Subnets:
    """The subnets in the /16 block of a node."""

    block: IPv4Network

    @classmethod
    def from_block(cls, block: str) -> "Subnets":
        """The subnets of a block such as `10.200.0.0/16`."""
        return cls(IPv4Network(block))

    @property
    def pods(self) -> IPv4Network:
        """The pod CIDR."""
        return self._part(24, 0)

    @property
    def services(self) -> IPv4Network:
        """The service CIDR."""
        return self._part(20, 8)

    @property
    def link(self) -> IPv4Network:
        """The subnet of the veth pair."""
        return self._part(30, 255 * 64)

    @property
    def host(self) -> str:
        """The address of the host end of the veth pair."""
        return str(self.link[1])

    @property
    def node(self) -> str:
        """The address of the node end of the veth pair, where the API server listens."""
        return str(self.link[2])

    def _part(self, prefix: int, index: int) -> IPv4Network:
        size = 2 ** (32 - prefix)
        return IPv4Network((int(self.block.network_address) + index * size, prefix))


def find_free_block(used: Iterable[IPv4Network], generator: random.Random) -> IPv4Network:
    """A random private /16 block that overlaps none of the given networks.

    Raises:
        HarnessError: every private block is in use.
    """
    networks = list(used)
    for name in PRIVATE_RANGES:
        blocks = list(IPv4Network(name).subnets(new_prefix=16))
        generator.shuffle(blocks)
        for block in blocks:
            if not any(block.overlaps(network) for network in networks):
                return block
    raise HarnessError("every private network is in use on this machine", "remove some routes, such as those of a VPN")


def routed_networks() -> Iterator[IPv4Network]:
    """The networks in the routing tables of the host."""
    for route in json.loads(run("ip", "-json", "-4", "route", "show", "table", "all")):
        destination = route["dst"]
        if destination != "default":
            yield ipaddress.IPv4Network(destination, strict=False)


def allocate_subnets() -> Subnets:
    """Allocate subnets for a new node."""
    return Subnets(find_free_block(routed_networks(), random.Random()))


def create_veth_pair(interface: str, subnets: Subnets, namespace: int) -> None:
    """Connect the network namespace of a process (`namespace` is its PID) to the host."""
    with cache.lock("network"):
        if any(subnets.block.overlaps(network) for network in routed_networks()):
            raise HarnessError(f"{subnets.block} was just allocated to another node", "try again")
        run("ip", "link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", str(namespace))
        run("ip", "addr", "add", f"{subnets.host}/30", "dev", interface)
        run("ip", "link", "set", interface, "up")
        for network in (subnets.pods, subnets.services):
            run("ip", "route", "add", str(network), "via", subnets.node)


def configure_node_interface(subnets: Subnets) -> None:
    """Configure the node end of the veth pair; runs in the network namespace of the node."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", f"{subnets.node}/30", "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")
    # kube-proxy rewrites the destination before this route is used, but without a route the kernel sends nothing.
    run("ip", "route", "add", str(subnets.services), "via", subnets.host)
