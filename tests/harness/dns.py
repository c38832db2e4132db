"""Names of Services inside a node: a responder that asks the API server at each question.

It knows `<service>.<namespace>.svc.cluster.local`, headless Services, and `<hostname>.` in front of them, which is
how the ranks of a Job find each other. Nothing is cached, so a name is right the moment its pod is.
Run as `python -m harness.dns FOLDER`.
"""

import socket
import socketserver
import struct
import sys
from pathlib import Path
from typing import Any

import httpx

from harness.api import Api
from harness.site import Site

ZONE = ".svc.cluster.local"
NO_ERROR, SERVER_FAILURE, NO_SUCH_NAME = 0, 2, 3
TYPE_A, CLASS_INTERNET, TTL = 1, 1, 1
ANSWER_FLAGS = 0x8580
HEADER = 12
NAME_OF_QUESTION = 0xC000 | HEADER


class Responder:
    """Answers questions from what the API server knows now."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def lookup(self, name: str) -> list[str]:
        """The addresses of a name; none if there is no such name."""
        if not name.endswith(ZONE):
            return []
        labels = name.removesuffix(ZONE).split(".")
        if len(labels) not in (2, 3):
            return []
        service, namespace = labels[-2:]
        hostname = labels[0] if len(labels) == 3 else None
        try:
            spec = self._api.get(f"/api/v1/namespaces/{namespace}/services/{service}")["spec"]
        except httpx.HTTPStatusError:
            return []
        if hostname is None and spec.get("clusterIP") not in (None, "None"):
            return [spec["clusterIP"]]
        return self._endpoints(namespace, service, hostname, bool(spec.get("publishNotReadyAddresses")))

    def _endpoints(self, namespace: str, service: str, hostname: str | None, unready: bool) -> list[str]:
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        slices = self._api.get(path, labelSelector=f"kubernetes.io/service-name={service}")["items"]
        endpoints: list[dict[str, Any]] = [each for one in slices for each in one.get("endpoints") or []]
        return [
            address
            for each in endpoints
            if (unready or each["conditions"].get("ready") is not False) and hostname in (None, each.get("hostname"))
            for address in each["addresses"]
        ]

    def answer(self, query: bytes) -> bytes:
        """The response to one DNS query."""
        name, kind, question = parse(query)
        try:
            addresses, status = self.lookup(name), NO_ERROR
        except httpx.TransportError:
            return response(query, question, [], SERVER_FAILURE)
        if not addresses:
            status = NO_SUCH_NAME
        return response(query, question, addresses if kind == TYPE_A else [], status)


def parse(query: bytes) -> tuple[str, int, bytes]:
    """The name and type that a query asks for, and its question section as it is."""
    labels, at = [], HEADER
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    (kind,) = struct.unpack_from("!H", query, at + 1)
    return ".".join(labels).lower(), kind, query[HEADER : at + 5]


def response(query: bytes, question: bytes, addresses: list[str], status: int) -> bytes:
    """A response with an A record for each address."""
    header = query[:2] + struct.pack("!HHHHH", ANSWER_FLAGS | status, 1, len(addresses), 0, 0)
    record = struct.pack("!HHHIH", NAME_OF_QUESTION, TYPE_A, CLASS_INTERNET, TTL, 4)
    return header + question + b"".join(record + socket.inet_aton(address) for address in addresses)


def serve(folder: Path) -> None:
    """Answer on the node's address for ever."""
    site = Site.load(folder)
    responder = Responder(Api(site.admin))

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, reply = self.request
            reply.sendto(responder.answer(query), self.client_address)

    class Server(socketserver.ThreadingUDPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server((site.address, 53), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
