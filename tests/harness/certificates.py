"""The certificates of a cluster: one per component and user, issued by a certificate authority of the cluster."""

from collections.abc import Sequence
from pathlib import Path

import trustme


def issue(
    authority: trustme.CA, user: str, group: str | None = None, addresses: Sequence[str] = ("localhost",)
) -> trustme.LeafCert:
    """Issue a certificate that identifies a user and group as a client, and these addresses as a server.

    Client certificates also need an address, because Go rejects an empty list of subject alternative names.
    """
    return authority.issue_cert(*addresses, common_name=user, organization_name=group)


def write(folder: Path, name: str, pair: trustme.CA | trustme.LeafCert) -> None:
    """Write `name.crt` and `name.key`; the key is readable only by its owner."""
    certificate = pair.cert_pem if isinstance(pair, trustme.CA) else pair.cert_chain_pems[0]
    certificate.write_to_path(folder / f"{name}.crt")
    write_private(folder / f"{name}.key", pair.private_key_pem.bytes())


def write_private(path: Path, content: bytes) -> None:
    """Write a file that is readable only by its owner."""
    path.touch(mode=0o600)
    path.write_bytes(content)
