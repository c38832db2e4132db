"""Allocation of node subnets: no overlap with routes of the host or with each other."""

import random
from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.network import PRIVATE_RANGES, Subnets, find_free_block

prefixes = st.builds(
    lambda address, prefix: IPv4Network((address, prefix), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(8, 32),
)


@given(st.lists(prefixes, max_size=20), st.integers())
def test_free_block_overlaps_no_used_network(used: list[IPv4Network], seed: int) -> None:
    block = find_free_block(used, random.Random(seed))
    assert block.prefixlen == 16
    assert not any(block.overlaps(network) for network in used)


def test_skips_a_private_range_that_is_used_entirely() -> None:
    block = find_free_block([IPv4Network("10.0.0.0/8")], random.Random(0))
    assert not block.overlaps(IPv4Network("10.0.0.0/8"))


def test_raises_if_every_private_range_is_used() -> None:
    with pytest.raises(HarnessError, match="every private network is in use"):
        find_free_block([IPv4Network(name) for name in PRIVATE_RANGES], random.Random(0))


def test_subnets_of_a_block_do_not_overlap() -> None:
    subnets = Subnets.from_block("10.200.0.0/16")
    parts = [subnets.pods, subnets.services, subnets.link]
    assert all(part.subnet_of(subnets.block) for part in parts)
    assert not any(one.overlaps(other) for one in parts for other in parts if one is not other)
    assert (subnets.host, subnets.node) == ("10.200.255.1", "10.200.255.2")
