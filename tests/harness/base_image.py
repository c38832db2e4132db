"""Builds a base image from Debian packages, for machines without access to a container registry.

Like `python:slim`, it holds Debian, Python and pip. It has the certificate authorities and the package index settings
of the host, so that pip and uv work in `RUN` instructions.
"""

import os
import ssl
import tempfile
from pathlib import Path

from harness import cache
from harness.buildah import buildah
from harness.commands import run, run_streaming
from harness.progress import task
from harness.versions import DEBIAN

PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv")
NAME = "localhost/finetune-base"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
INDEX_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL")


def build() -> str:
    """Build the base image unless it is cached, and return its name. The first build takes minutes."""
    settings = environment()
    ca_bundle = host_ca_bundle()
    key = cache.digest(DEBIAN, *PACKAGES, repr(settings), ca_bundle, Path(__file__))
    name = f"{NAME}:{key}"
    cache.get_or_create("base", key, lambda folder: _build(folder, name, settings, ca_bundle))
    return name


def environment() -> dict[str, str]:
    """The environment of the image: settings of pip and uv for certificate authorities and package index."""
    index = {name: os.environ[name] for name in INDEX_VARIABLES if name in os.environ}
    return {"SSL_CERT_FILE": CA_BUNDLE, "PIP_CERT": CA_BUNDLE, **index}


def host_ca_bundle() -> bytes:
    """The certificate authorities that the host trusts, in PEM format; empty if there is no bundle."""
    path = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile or CA_BUNDLE
    return Path(path).read_bytes() if Path(path).exists() else b""


def _build(folder: Path, name: str, settings: dict[str, str], ca_bundle: bytes) -> None:
    with task(f"building the base image from Debian {DEBIAN}") as progress, tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        packages = f"--include={','.join(PACKAGES)}"
        # debootstrap uses the proxy settings and the certificate authorities of the host.
        run_streaming("debootstrap", "--variant=minbase", packages, DEBIAN, root, on_line=progress.update)
        _trim(root)
        if ca_bundle:
            Path(root, CA_BUNDLE.lstrip("/")).write_bytes(ca_bundle)
        Path(root, "usr/local/bin/python").symlink_to("/usr/bin/python3")
        # As in `python:slim`, allow pip and uv to install into the system Python.
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        env = [f"ENV {key}={value}" for key, value in settings.items()]
        dockerfile = Path(scratch, "Dockerfile")
        dockerfile.write_text("\n".join(["FROM scratch", "COPY root /", *env, ""]))
        argv = ("build", "--isolation=chroot", f"--file={dockerfile}", f"--tag={name}", scratch)
        buildah(progress.update, *argv)
        (folder / "name").write_text(name)


def _trim(root: Path) -> None:
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        run("find", root / folder, "-mindepth", "1", "-delete")
