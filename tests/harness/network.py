"""A network of its own for each node: a pair of virtual interfaces between it and this machine, and nothing else.

The node has no default route and nothing is translated, so no packet of a pod can leave the machine.
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

PRIVATE = ("10.128.0.0/9", "172.16.0.0/12", "198.18.0.0/15")


@dataclass(frozen=True)
class Subnets:
    """How a node's block of 65,536 addresses is divided."""

    block: IPv4Network

    @classmethod
    def of(cls, block: str) -> "Subnets":
        """The division of a block in the form `10.200.0.0/16`."""
        return cls(IPv4Network(block))

    @property
    def pods(self) -> IPv4Network:
        """The pods' addresses."""
        return self._part(24, 0)

    @property
    def services(self) -> IPv4Network:
        """The Services' virtual addresses."""
        return self._part(20, 8)

    @property
    def link(self) -> IPv4Network:
        """The two ends of the pair of interfaces."""
        return self._part(30, 255 * 64)

    @property
    def host(self) -> str:
        """This machine's end of the pair."""
        return str(self.link[1])

    @property
    def node(self) -> str:
        """The node's end of the pair, and the API server's address."""
        return str(self.link[2])

    def _part(self, prefix: int, index: int) -> IPv4Network:
        size = 2 ** (32 - prefix)
        return IPv4Network((int(self.block.network_address) + index * size, prefix))


def free_block(taken: Iterable[IPv4Network], shuffle: random.Random) -> IPv4Network:
    """A private block that overlaps no network of this machine."""
    used = list(taken)
    for name in PRIVATE:
        blocks = list(IPv4Network(name).subnets(new_prefix=16))
        shuffle.shuffle(blocks)
        for block in blocks:
            if not any(block.overlaps(network) for network in used):
                return block
    raise HarnessError("every private network is in use on this machine", "take some routes away (a VPN?)")


def taken() -> Iterator[IPv4Network]:
    """The networks that this machine has routes to."""
    for route in json.loads(run("ip", "-json", "-4", "route", "show", "table", "all")):
        destination = route["dst"]
        if destination != "default":
            yield ipaddress.IPv4Network(destination, strict=False)


def choose() -> Subnets:
    """Subnets for a new node."""
    return Subnets(free_block(taken(), random.Random()))


def connect(interface: str, subnets: Subnets, namespace: int) -> None:
    """Join the network namespace of a process to this machine."""
    with cache.lock("network"):
        if any(subnets.block.overlaps(network) for network in taken()):
            raise HarnessError(f"another node took {subnets.block} at this moment", "try again")
        run("ip", "link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", str(namespace))
        run("ip", "addr", "add", f"{subnets.host}/30", "dev", interface)
        run("ip", "link", "set", interface, "up")
        for network in (subnets.pods, subnets.services):
            run("ip", "route", "add", str(network), "via", subnets.node)


def configure_inside(subnets: Subnets) -> None:
    """Bring up the node's end, from inside its namespace."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", f"{subnets.node}/30", "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")
    # Never followed: kube-proxy rewrites the destination first. But without a route nothing is sent at all.
    run("ip", "route", "add", str(subnets.services), "via", subnets.host)
