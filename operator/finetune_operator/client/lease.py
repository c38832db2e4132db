"""Leader election: of several operators, only the one that holds the Lease is active.

Written by hand because kubernetes.aio.leaderelection never releases the Lease, so that each rollout would pause for the
whole lease duration, and sets no timeout on its requests, so that a leader whose renewal hangs would stay active after
another operator has taken over.

As in client-go, clocks of different nodes are never compared: a candidate takes over a Lease that it has itself seen
unchanged for as long as the holder promised to renew it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Any

from finetune_operator.client.kube_client import ApiError, KubeClient, resource_path
from finetune_operator.core.objects import JsonObject

logger = logging.getLogger(__name__)

LEASE_DURATION_SECONDS = 15.0
RENEW_INTERVAL_SECONDS = 4.0
RENEW_DEADLINE_SECONDS = 10.0
"""Less than the lease duration: a leader that cannot renew has stopped before another takes over."""
RETRY_PERIOD_SECONDS = 1.5


class LeaseLostError(Exception):
    """The Lease could not be renewed in time, or another operator holds it."""


class LeaderElector:
    """Acquires, renews and releases a Lease."""

    def __init__(self, client: KubeClient, namespace: str, name: str, identity: str) -> None:
        self._client = client
        self._path = resource_path("leases", namespace, name)
        self._namespace = namespace
        self._name = name
        self._display_name = f"Lease {namespace}/{name}"
        self._identity = identity
        self._observed: tuple[Any, ...] = ()
        self._observed_at = 0.0

    async def acquire(self) -> None:
        """Wait until this process holds the Lease."""
        reported = ""
        while True:
            try:
                holder = await self._try_acquire_or_renew()
            except (ApiError, TimeoutError) as error:
                logger.warning("cannot acquire %s: %s", self._display_name, error or "request timed out")
                holder = reported
            if holder == self._identity:
                logger.info("acquired %s as %s", self._display_name, holder)
                return
            if holder != reported:
                logger.info("waiting for leader election: %s is held by %s", self._display_name, holder)
                reported = holder
            await asyncio.sleep(RETRY_PERIOD_SECONDS)

    async def renew(self) -> None:
        """Renew the Lease until it is lost.

        Raises:
            LeaseLostError: this process no longer holds the Lease.
        """
        renewed_at = time.monotonic()
        while True:
            recent = time.monotonic() - renewed_at < RENEW_INTERVAL_SECONDS
            await asyncio.sleep(RENEW_INTERVAL_SECONDS if recent else 1.0)
            try:
                holder = await self._try_acquire_or_renew()
            except (ApiError, TimeoutError) as error:
                logger.warning("cannot renew %s: %s", self._display_name, error or "request timed out")
            else:
                if holder != self._identity:
                    raise LeaseLostError(f"lost {self._display_name}: it is held by {holder}")
                renewed_at = time.monotonic()
            if time.monotonic() - renewed_at > RENEW_DEADLINE_SECONDS:
                raise LeaseLostError(f"lost {self._display_name}: not renewed for {RENEW_DEADLINE_SECONDS:.0f} s")

    async def release(self) -> None:
        """Give up the Lease, so that another candidate takes over at once."""
        try:
            lease = await self._client.get(self._path)
            if lease["spec"].get("holderIdentity") == self._identity:
                await self._client.update(self._path, lease | {"spec": self._new_spec(lease["spec"], holder="")})
        except ApiError as error:
            logger.warning("cannot release %s: %s", self._display_name, error)

    async def _try_acquire_or_renew(self) -> str:
        """Acquire or renew the Lease if possible. Returns the identity of the holder."""
        async with asyncio.timeout(RENEW_DEADLINE_SECONDS / 2):
            try:
                lease = await self._client.get(self._path)
            except ApiError as error:
                if not error.is_not_found:
                    raise
                return await self._hold(None)
            holder = lease["spec"].get("holderIdentity") or ""
            if holder in ("", self._identity) or self._is_expired(lease["spec"]):
                return await self._hold(lease)
            return str(holder)

    def _is_expired(self, spec: JsonObject) -> bool:
        observed = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if observed != self._observed:
            self._observed, self._observed_at = observed, time.monotonic()
        return time.monotonic() - self._observed_at > float(spec.get("leaseDurationSeconds") or LEASE_DURATION_SECONDS)

    async def _hold(self, existing: JsonObject | None) -> str:
        """Write this process as the holder. Returns the holder, which is another candidate after a conflict."""
        metadata = {"name": self._name, "namespace": self._namespace}
        new: JsonObject = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}}
        lease = existing or new
        body = lease | {"spec": self._new_spec(lease["spec"], holder=self._identity)}
        try:
            if existing:
                await self._client.update(self._path, body)
            else:
                await self._client.create(resource_path("leases", self._namespace), body)
        except ApiError as error:
            if error.is_conflict:
                return "another candidate"
            raise
        return self._identity

    def _new_spec(self, spec: JsonObject, holder: str) -> JsonObject:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        changed = spec.get("holderIdentity") != holder
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": int(LEASE_DURATION_SECONDS),
            "acquireTime": now if changed else spec.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": spec.get("leaseTransitions", 0) + (1 if changed and holder else 0),
        }
