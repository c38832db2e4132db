"""The certificates of one throw-away cluster: each program and user is known by one of the cluster's own authority."""

from collections.abc import Sequence
from pathlib import Path

import trustme


def issue(
    authority: trustme.CA, user: str, group: str | None = None, addresses: Sequence[str] = ("localhost",)
) -> trustme.LeafCert:
    """A certificate by which the API server knows this user and group, and clients a server at these addresses.

    One address at least, even for a client: Go refuses an empty list of alternative names.
    """
    return authority.issue_cert(*addresses, common_name=user, organization_name=group)


def write(folder: Path, name: str, pair: trustme.CA | trustme.LeafCert) -> None:
    """Write `name.crt` and, readable by the owner only, `name.key`."""
    certificate = pair.cert_pem if isinstance(pair, trustme.CA) else pair.cert_chain_pems[0]
    certificate.write_to_path(folder / f"{name}.crt")
    write_private(folder / f"{name}.key", pair.private_key_pem.bytes())


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read."""
    path.touch(mode=0o600)
    path.write_bytes(content)
