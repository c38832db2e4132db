"""DNS records of Services and of the pods of headless Services."""

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
def test_lookup(name: str, addresses: list[str]) -> None:
    assert responder.lookup(name) == addresses


def query(name: str, kind: str = "A") -> DNSRecord:
    """Send a query through wire format and return the reply."""
    question = DNSRecord.question(name, kind)
    reply = DNSRecord.parse(responder.resolve(DNSRecord.parse(question.pack()), cast(DNSHandler, None)).pack())
    assert (reply.header.id, reply.q) == (question.header.id, question.q)
    return reply


def test_names_are_case_insensitive() -> None:
    assert query("Web.ns.svc.cluster.local").short() == "10.0.0.9"


def test_reply_contains_all_addresses() -> None:
    answer = query("early.ns.svc.cluster.local")
    assert (answer.header.rcode, answer.header.qr, answer.header.aa) == (RCODE.NOERROR, 1, 1)
    assert answer.short().split() == ["10.1.0.1", "10.1.0.2"]


def test_aaaa_query_for_an_existing_name_returns_no_error_and_no_record() -> None:
    answer = query("web.ns.svc.cluster.local", "AAAA")
    assert (answer.header.rcode, answer.rr) == (RCODE.NOERROR, [])


def test_unknown_name_returns_nxdomain() -> None:
    assert query("example.com").header.rcode == RCODE.NXDOMAIN


def test_unreachable_api_server_returns_servfail(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str, **__: str) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(FakeApi, "get", refuse)
    assert query("web.ns.svc.cluster.local").header.rcode == RCODE.SERVFAIL
