"""The node's names: what the ranks of a Job ask for, and what they must not be told."""

from typing import Any, cast

import httpx
import pytest
from dnslib import RCODE, DNSRecord
from dnslib.server import DNSHandler

from harness.api import Api
from harness.dns import Responder

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


def ask(name: str, kind: str = "A") -> DNSRecord:
    """The reply as it goes over the wire."""
    query = DNSRecord.question(name, kind)
    reply = DNSRecord.parse(responder.resolve(DNSRecord.parse(query.pack()), cast(DNSHandler, None)).pack())
    assert (reply.header.id, reply.q) == (query.header.id, query.q)
    return reply


def test_a_question_is_read_without_regard_to_case() -> None:
    assert ask("Web.ns.svc.cluster.local").short() == "10.0.0.9"


def test_an_answer_carries_the_address_and_the_question() -> None:
    answer = ask("early.ns.svc.cluster.local")
    assert (answer.header.rcode, answer.header.qr, answer.header.aa) == (RCODE.NOERROR, 1, 1)
    assert answer.short().split() == ["10.1.0.1", "10.1.0.2"]


def test_a_name_without_an_ipv6_address_exists_all_the_same() -> None:
    answer = ask("web.ns.svc.cluster.local", "AAAA")
    assert (answer.header.rcode, answer.rr) == (RCODE.NOERROR, [])


def test_an_unknown_name_does_not_exist() -> None:
    assert ask("example.com").header.rcode == RCODE.NXDOMAIN


def test_an_api_server_that_does_not_answer_is_a_failure_and_no_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str, **__: str) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(FakeApi, "get", refuse)
    assert ask("web.ns.svc.cluster.local").header.rcode == RCODE.SERVFAIL
