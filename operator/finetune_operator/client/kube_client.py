"""A client of the API server that sends and receives plain JSON.

Connection, credentials and TLS come from the official client. Its models are not used: parsing a Job into a model
takes six times as long as parsing JSON. Every request names its content type and has a timeout.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration

from finetune_api.names import GROUP, JOB_PLURAL, VERSION
from finetune_operator.core.objects import JsonObject, NamespacedName
from finetune_operator.metrics import API_CALLS

REQUEST_TIMEOUT_SECONDS = 30.0
LIST_PAGE_SIZE = 500

_API_PATHS = {
    JOB_PLURAL: f"apis/{GROUP}/{VERSION}",
    "jobs": "apis/batch/v1",
    "pods": "api/v1",
    "configmaps": "api/v1",
    "persistentvolumeclaims": "api/v1",
    "events": "apis/events.k8s.io/v1",
    "leases": "apis/coordination.k8s.io/v1",
}


class ApiError(Exception):
    """The API server returned an error, or could not be reached (status 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message or reason)
        self.status = status
        self.reason = reason

    @property
    def is_not_found(self) -> bool:
        return self.status == 404

    @property
    def is_conflict(self) -> bool:
        """Also true if the object already exists: both have status 409."""
        return self.status == 409

    @property
    def is_already_exists(self) -> bool:
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def is_forbidden(self) -> bool:
        return self.status == 403

    @property
    def is_rejection(self) -> bool:
        """Whether the same request will fail until someone changes the object, a policy or a quota."""
        return self.status in (400, 403, 422)


class KubeconfigError(Exception):
    """There is no usable kubeconfig and no service account."""


class KubeClient:
    """A connection to one API server."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    @classmethod
    async def connect(cls) -> KubeClient:
        """Connect to the cluster of `$KUBECONFIG`, else to the one this pod runs in; never to a default context.

        Raises:
            KubeconfigError: neither can be loaded.
        """
        configuration = Configuration()
        path = os.environ.get("KUBECONFIG")
        try:
            if path:
                await kube_config.load_kube_config(path, client_configuration=configuration)
            else:
                kube_config.load_incluster_config(configuration)
        except kube_config.ConfigException as error:
            problem = f"cannot load KUBECONFIG={path}" if path else "KUBECONFIG is not set, and this is not a pod"
            raise KubeconfigError(f"{problem}: {error}") from error
        return cls(ApiClient(configuration))

    async def close(self) -> None:
        await self._client.close()

    async def get(self, path: str, **query: str | int) -> JsonObject:
        return await self._request("GET", path, query=query)

    async def create(self, path: str, body: JsonObject) -> JsonObject:
        return await self._request("POST", path, body, "application/json")

    async def update(self, path: str, body: JsonObject) -> JsonObject:
        return await self._request("PUT", path, body, "application/json")

    async def patch(self, path: str, body: JsonObject) -> JsonObject:
        """Apply a JSON merge patch (RFC 7396)."""
        return await self._request("PATCH", path, body, "application/merge-patch+json")

    async def delete(self, path: str, options: JsonObject) -> JsonObject:
        return await self._request("DELETE", path, options, "application/json")

    async def list_items(self, path: str, label_selector: str = "") -> AsyncIterator[JsonObject]:
        """Every object of a list, which is requested page by page."""
        query: dict[str, str | int] = {"limit": LIST_PAGE_SIZE}
        if label_selector:
            query["labelSelector"] = label_selector
        while True:
            page = await self.get(path, **query)
            for item in page.get("items") or []:
                yield item
            token = page.get("metadata", {}).get("continue")
            if not token:
                return
            query["continue"] = token

    async def _request(
        self,
        verb: str,
        path: str,
        body: JsonObject | None = None,
        content_type: str = "",
        query: dict[str, str | int] | None = None,
    ) -> JsonObject:
        headers = {"Accept": "application/json"} | ({"Content-Type": content_type} if content_type else {})
        request = await self._client.param_serialize(
            verb, path, query_params=list((query or {}).items()), header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            response = await self._client.call_api(*request, _request_timeout=REQUEST_TIMEOUT_SECONDS)
            content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            API_CALLS.labels(verb, _resource_of(path), "0").inc()
            raise ApiError(0, "Unreachable", f"API server is unreachable: {error}") from error
        API_CALLS.labels(verb, _resource_of(path), str(response.status)).inc()
        answer = _parse_json(content)
        if not 200 <= response.status < 300:
            raise ApiError(response.status, answer.get("reason", ""), answer.get("message", ""))
        return answer


def resource_path(resource: str, namespace: str | None = None, name: str | None = None) -> str:
    """The URL path of a resource: in all namespaces, in one, or of one object."""
    namespaces = ["namespaces", namespace] if namespace else []
    return "/" + "/".join([_API_PATHS[resource], *namespaces, resource, *([name] if name else [])])


def job_path(key: NamespacedName) -> str:
    """The URL path of a FineTuneJob."""
    return resource_path(JOB_PLURAL, key.namespace, key.name)


def _resource_of(path: str) -> str:
    return next((part for part in path.split("/") if part in _API_PATHS), "discovery")


def _parse_json(content: bytes) -> JsonObject:
    try:
        answer = json.loads(content)
    except ValueError:
        return {"message": content[:200].decode(errors="replace")}
    return answer if isinstance(answer, dict) else {}
