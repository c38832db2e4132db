"""The cluster DNS of a node: answers each query with the current Services and EndpointSlices of the API server.

It resolves `<service>.<namespace>.svc.cluster.local` and, for headless Services, the same name prefixed with
`<hostname>.`, with which the ranks of a Job reach each other. There is no cache: a new pod is resolved immediately.
Run as `python -m harness.dns FOLDER`.
"""

import sys
from pathlib import Path
from typing import Any

import httpx
from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from dnslib.server import DNSHandler, DNSLogger, DNSServer

from harness.api import Api
from harness.cluster_config import ClusterConfig

ZONE = ".svc.cluster.local"
TTL = 1


class Responder:
    """Resolves the names of Services and of the pods of headless Services."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def lookup(self, name: str) -> list[str]:
        """The addresses of a name; empty if the name does not exist."""
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
        endpoints: list[dict[str, Any]] = [each for slice_ in slices for each in slice_.get("endpoints") or []]
        return [
            address
            for each in endpoints
            if (unready or each["conditions"].get("ready") is not False) and hostname in (None, each.get("hostname"))
            for address in each["addresses"]
        ]

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        """The reply to a query: A records only; an AAAA query for an existing name gets an empty answer."""
        reply = request.reply()
        try:
            addresses = self.lookup(str(request.q.qname).rstrip(".").lower())
        except httpx.TransportError:
            reply.header.rcode = RCODE.SERVFAIL
            return reply
        if not addresses:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype == QTYPE.A:
            reply.add_answer(*(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=TTL) for address in addresses))
        return reply


def serve(folder: Path) -> None:
    """Serve DNS on the address of the node until the process is killed."""
    config = ClusterConfig.load(folder)
    server = DNSServer(Responder(Api(config.admin_kubeconfig)), address=config.address, logger=DNSLogger("error"))
    server.server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
