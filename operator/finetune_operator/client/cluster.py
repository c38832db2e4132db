"""The API server in plain JSON: paths in, documents out, errors that say what the server said.

The official client does connection, credentials and TLS; its models are not used, for reading a Job as a model costs
six times as much as reading it as JSON. Every call names its content type and has a deadline of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import ApiClient, Configuration

from finetune_api.names import GROUP, JOB_PLURAL, VERSION
from finetune_operator.core.observed import Key
from finetune_operator.metrics import API_CALLS

REQUEST_SECONDS = 30.0
PAGE = 500

_GROUPS = {
    JOB_PLURAL: f"apis/{GROUP}/{VERSION}",
    "jobs": "apis/batch/v1",
    "pods": "api/v1",
    "configmaps": "api/v1",
    "persistentvolumeclaims": "api/v1",
    "events": "apis/events.k8s.io/v1",
    "leases": "apis/coordination.k8s.io/v1",
}

Document = dict[str, Any]


class ApiError(Exception):
    """The API server said no, or nothing at all (status 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message or reason)
        self.status = status
        self.reason = reason

    @property
    def not_found(self) -> bool:
        return self.status == 404

    @property
    def conflict(self) -> bool:
        return self.status == 409

    @property
    def forbidden(self) -> bool:
        return self.status == 403

    @property
    def refusal(self) -> bool:
        """Whether asking again the same way is pointless until somebody changes something."""
        return self.status in (400, 403, 422)


class NoClusterError(Exception):
    """It is not said which cluster to talk to."""


class Cluster:
    """A connection to one API server."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    @classmethod
    async def connect(cls) -> Cluster:
        """Connect to the cluster of `$KUBECONFIG`, else to the one this pod runs in; never to a default context."""
        configuration = Configuration()
        file = os.environ.get("KUBECONFIG")
        try:
            if file:
                await kubernetes_config.load_kube_config(file, client_configuration=configuration)
            else:
                kubernetes_config.load_incluster_config(configuration)
        except kubernetes_config.ConfigException as error:
            where = f"KUBECONFIG={file}" if file else "no KUBECONFIG, and no service account of a pod"
            raise NoClusterError(f"{where}: {error}") from error
        return cls(ApiClient(configuration))

    async def close(self) -> None:
        await self._client.close()

    async def get(self, path: str, **query: str | int) -> Document:
        return await self._call("GET", path, query=query)

    async def post(self, path: str, body: Document) -> Document:
        return await self._call("POST", path, body, "application/json")

    async def put(self, path: str, body: Document) -> Document:
        return await self._call("PUT", path, body, "application/json")

    async def merge(self, path: str, body: Document) -> Document:
        return await self._call("PATCH", path, body, "application/merge-patch+json")

    async def delete(self, path: str, body: Document) -> Document:
        return await self._call("DELETE", path, body, "application/json")

    async def items(self, path: str, selector: str = "") -> AsyncIterator[Document]:
        """Every object of a list, page by page."""
        query: dict[str, str | int] = {"limit": PAGE} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self.get(path, **query)
            for item in page.get("items") or []:
                yield item
            token = page.get("metadata", {}).get("continue")
            if not token:
                return
            query["continue"] = token

    async def _call(
        self,
        verb: str,
        path: str,
        body: Document | None = None,
        content_type: str = "",
        query: dict[str, str | int] | None = None,
    ) -> Document:
        headers = {"Accept": "application/json"} | ({"Content-Type": content_type} if content_type else {})
        request = await self._client.param_serialize(
            verb, path, query_params=list((query or {}).items()), header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            response = await self._client.call_api(*request, _request_timeout=REQUEST_SECONDS)
            content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            API_CALLS.labels(verb, _resource(path), "0").inc()
            raise ApiError(0, "Unreachable", f"the API server cannot be reached: {error}") from error
        API_CALLS.labels(verb, _resource(path), str(response.status)).inc()
        document = _json(content)
        if not 200 <= response.status < 300:
            raise ApiError(response.status, document.get("reason", ""), document.get("message", ""))
        return document


def path_of(resource: str, namespace: str | None = None, name: str | None = None) -> str:
    """The path of a resource: of all namespaces, of one, or of one object."""
    parts = [_GROUPS[resource], *(["namespaces", namespace] if namespace else []), resource, *([name] if name else [])]
    return "/" + "/".join(parts)


def job_path(key: Key) -> str:
    """The path of a FineTuneJob."""
    return path_of(JOB_PLURAL, key.namespace, key.name)


def _resource(path: str) -> str:
    return next((part for part in path.split("/") if part in _GROUPS), "discovery")


def _json(content: bytes) -> Document:
    try:
        document = json.loads(content)
    except ValueError:
        return {"message": content[:200].decode(errors="replace")}
    return document if isinstance(document, dict) else {}
