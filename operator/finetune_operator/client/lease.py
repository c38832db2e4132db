"""One operator at a time: a Lease that is held, renewed, and let go of.

Clocks of different nodes are never compared: a candidate takes the Lease over once it has itself seen it unchanged for
as long as its holder promised to renew it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Any

from finetune_operator.client.cluster import ApiError, Cluster, Document, path_of

logger = logging.getLogger(__name__)

DURATION = 15.0
RENEW_EVERY = 4.0
GIVE_UP_AFTER = 10.0
"""Less than DURATION: who cannot renew has stopped working before another begins."""
LOOK_EVERY = 1.5


class LeaseLostError(Exception):
    """The Lease could not be renewed in time, or somebody else has it."""


class Lease:
    """This process's claim to be the one that works."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, identity: str) -> None:
        self._cluster = cluster
        self._path = path_of("leases", namespace, name)
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seen: tuple[Any, ...] = ()
        self._seen_at = 0.0

    async def acquire(self) -> None:
        """Wait until the Lease is ours."""
        told = ""
        while True:
            try:
                holder = await self._try()
            except (ApiError, TimeoutError) as error:
                logger.warning("Lease %s: %s", self._name, error or "no answer in time")
                holder = told
            if holder == self._identity:
                logger.info("leading: Lease %s/%s is held by %s", self._namespace, self._name, holder)
                return
            if holder != told:
                logger.info("standing by: Lease %s/%s is held by %s", self._namespace, self._name, holder)
                told = holder
            await asyncio.sleep(LOOK_EVERY)

    async def keep(self) -> None:
        """Renew the Lease for ever.

        Raises:
            LeaseLostError: it is not ours any more.
        """
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(RENEW_EVERY if time.monotonic() - renewed < RENEW_EVERY else 1.0)
            try:
                holder = await self._try()
            except (ApiError, TimeoutError) as error:
                logger.warning("Lease %s could not be renewed: %s", self._name, error or "no answer in time")
            else:
                if holder != self._identity:
                    raise LeaseLostError(f"Lease {self._namespace}/{self._name} is now held by {holder}")
                renewed = time.monotonic()
            if time.monotonic() - renewed > GIVE_UP_AFTER:
                raise LeaseLostError(
                    f"Lease {self._namespace}/{self._name} could not be renewed for {GIVE_UP_AFTER:.0f} s"
                )

    async def release(self) -> None:
        """Let go, so that another takes over at once."""
        try:
            found = await self._cluster.get(self._path)
            if found["spec"].get("holderIdentity") == self._identity:
                await self._cluster.put(self._path, found | {"spec": self._spec(found["spec"], holder="")})
        except ApiError as error:
            logger.warning("Lease %s could not be released: %s", self._name, error)

    async def _try(self) -> str:
        """Take or renew the Lease if that is allowed; who holds it now."""
        async with asyncio.timeout(GIVE_UP_AFTER / 2):
            try:
                found = await self._cluster.get(self._path)
            except ApiError as error:
                if not error.not_found:
                    raise
                return await self._write(None)
            holder = found["spec"].get("holderIdentity") or ""
            if holder in ("", self._identity) or self._expired(found["spec"]):
                return await self._write(found)
            return str(holder)

    def _expired(self, spec: dict[str, Any]) -> bool:
        seen = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()
        return time.monotonic() - self._seen_at > float(spec.get("leaseDurationSeconds") or DURATION)

    async def _write(self, found: Document | None) -> str:
        """Write our name; a conflict means that somebody was faster."""
        metadata = {"name": self._name, "namespace": self._namespace}
        fresh: Document = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}}
        lease = found or fresh
        body = lease | {"spec": self._spec(lease["spec"], holder=self._identity)}
        try:
            if found:
                await self._cluster.put(self._path, body)
            else:
                await self._cluster.post(path_of("leases", self._namespace), body)
        except ApiError as error:
            if error.conflict:
                return "another"
            raise
        return self._identity

    def _spec(self, spec: dict[str, Any], holder: str) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        changed = spec.get("holderIdentity") != holder
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": int(DURATION),
            "acquireTime": now if changed else spec.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": spec.get("leaseTransitions", 0) + (1 if changed and holder else 0),
        }
