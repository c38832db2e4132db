"""A base image from Debian packages, for machines that reach no container registry.

It is much as `python:slim` is: Debian, Python, pip. Where a site has authorities or a package index of its own, the
base knows them, so that pip and uv work inside `RUN`.
"""

import os
import ssl
import tempfile
from pathlib import Path

from harness import cache
from harness.buildah import buildah
from harness.commands import follow, run
from harness.progress import task
from harness.versions import DEBIAN

PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv")
NAME = "localhost/finetune-base"
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
INDEX_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL")


def local() -> str:
    """The name of the local base image: Debian, Python and pip, much as in `python:slim`; made once, in minutes."""
    settings = environment()
    authorities = authority_bundle()
    key = cache.digest(DEBIAN, *PACKAGES, repr(settings), authorities, Path(__file__))
    name = f"{NAME}:{key}"
    cache.obtain("base", key, lambda place: _make(place, name, settings, authorities))
    return name


def environment() -> dict[str, str]:
    """What the base tells pip and uv: the machine's authorities, and its package index if one is set."""
    index = {name: os.environ[name] for name in INDEX_SETTINGS if name in os.environ}
    return {"SSL_CERT_FILE": AUTHORITIES, "PIP_CERT": AUTHORITIES, **index}


def authority_bundle() -> bytes:
    """The certificate authorities that this machine trusts; a site's own is among them."""
    path = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile or AUTHORITIES
    return Path(path).read_bytes() if Path(path).exists() else b""


def _make(place: Path, name: str, settings: dict[str, str], authorities: bytes) -> None:
    with task(f"making the base image from Debian {DEBIAN}") as progress, tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        packages = f"--include={','.join(PACKAGES)}"
        # The machine's own authorities and proxies serve debootstrap; its keyring checks what it fetches.
        follow("debootstrap", "--variant=minbase", packages, DEBIAN, root, heard=progress.update)
        _trim(root)
        if authorities:
            Path(root, AUTHORITIES.lstrip("/")).write_bytes(authorities)
        Path(root, "usr/local/bin/python").symlink_to("/usr/bin/python3")
        # As in `python:slim`, pip and uv may install into the system's Python.
        for mark in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            mark.unlink()
        env = [f"ENV {key}={value}" for key, value in settings.items()]
        dockerfile = Path(scratch, "Dockerfile")
        dockerfile.write_text("\n".join(["FROM scratch", "COPY root /", *env, ""]))
        argv = ("build", "--isolation=chroot", f"--file={dockerfile}", f"--tag={name}", scratch)
        buildah(progress.update, *argv)
        (place / "name").write_text(name)


def _trim(root: Path) -> None:
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        run("find", root / folder, "-mindepth", "1", "-delete")
