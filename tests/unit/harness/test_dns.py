"""The node's names: what the ranks of a Job ask for, and what they must not be told."""

import socket
import struct
from typing import Any, cast

import pytest

from harness.api import Api
from harness.dns import Responder, parse

SERVICES = {
    "web": {"clusterIP": "10.0.0.9"},
    "job": {"clusterIP": "None"},
    "early": {"clusterIP": "None", "publishNotReadyAddresses": True},
}
ENDPOINTS = [
    {"hostname": "job-0", "addresses": ["10.1.0.1"], "conditions": {"ready": True}},
    {"hostname": "job-1", "addresses": ["10.1.0.2"], "conditions": {"ready": False}},
]


class FakeApi:
    def get(self, path: str, **_: str) -> dict[str, Any]:
        if "endpointslices" in path:
            return {"items": [{"endpoints": ENDPOINTS}, {"endpoints": None}]}
        return {"spec": SERVICES[path.rpartition("/")[2]]}


responder = Responder(cast(Api, FakeApi()))


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("web.ns.svc.cluster.local", ["10.0.0.9"]),
        ("job.ns.svc.cluster.local", ["10.1.0.1"]),
        ("early.ns.svc.cluster.local", ["10.1.0.1", "10.1.0.2"]),
        ("job-0.job.ns.svc.cluster.local", ["10.1.0.1"]),
        ("job-1.early.ns.svc.cluster.local", ["10.1.0.2"]),
        ("job-2.job.ns.svc.cluster.local", []),
        ("example.com", []),
        ("ns.svc.cluster.local", []),
    ],
)
def test_names(name: str, addresses: list[str]) -> None:
    assert responder.lookup(name) == addresses


def question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return b"\x12\x34" + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def test_a_question_is_read_without_regard_to_case() -> None:
    assert parse(question("Web.ns.svc.cluster.local", 1))[:2] == ("web.ns.svc.cluster.local", 1)


def test_an_answer_carries_the_address_and_the_question() -> None:
    query = question("web.ns.svc.cluster.local", 1)
    answer = responder.answer(query)
    assert answer[:2] == query[:2]
    assert answer.endswith(socket.inet_aton("10.0.0.9"))
    assert answer[3] & 0xF == 0


def test_a_name_without_an_ipv6_address_exists_all_the_same() -> None:
    answer = responder.answer(question("web.ns.svc.cluster.local", 28))
    assert (answer[3] & 0xF, struct.unpack_from("!H", answer, 6)) == (0, (0,))


def test_an_unknown_name_does_not_exist() -> None:
    assert responder.answer(question("example.com", 1))[3] & 0xF == 3
