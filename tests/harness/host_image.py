"""An image whose `/usr` and Python environment are mounted from the host.

The trainer image with torch has several gigabytes and takes minutes to build and import, too long for everyday tests.
With this image, containers run the code of this checkout: containerd adds read-only bind mounts to every container.
The mounts are not part of the pod spec, so pods pass restricted Pod Security.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from harness import cache, oci_archive
from harness.cluster_config import BindMount
from harness.oci_archive import Entry

NAME = "localhost/host:1"
REPOSITORY = Path(__file__).parents[2]
SOURCES = ("crds", "operator", "trainer")
# Not /usr: the mounts are added to all containers, and other images have their own /usr.
HOST_USR = Path("/.host/usr")
USERS = {"root": 0, "finetune": 65532, "nobody": 65534}
PASSWD = "".join(f"{name}:x:{number}:{number}::/tmp:/bin/sh\n" for name, number in USERS.items())
GROUP = "".join(f"{name}:x:{number}:\n" for name, number in USERS.items())


def build() -> Path:
    """Build the image unless it is cached, and return the path of its archive."""
    entries, env = list(_entries()), environment()
    key = cache.digest(repr(entries), repr(env), Path(oci_archive.__file__))
    folder = cache.get_or_create(
        "host-image", key, lambda folder: oci_archive.write(folder / "image.tar", NAME, entries, env=env)
    )
    return folder / "image.tar"


def environment() -> dict[str, str]:
    """The environment variables of the image; `python` on its PATH is the one of this checkout."""
    return {"PATH": f"{Path(sys.prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp"}


def bind_mounts(repository: Path = REPOSITORY) -> tuple[BindMount, ...]:
    """The mounts: /usr of the host, the running Python, its virtual environment, and the packages of this checkout."""
    paths = [sys.base_prefix, str(Path(sys.base_prefix).resolve()), sys.prefix]
    paths += [str(repository / name) for name in SOURCES if (repository / name).is_dir()]
    outside_usr = [Path(path) for path in dict.fromkeys(paths) if not Path(path).is_relative_to("/usr")]
    return (
        BindMount(source=Path("/usr"), destination=HOST_USR),
        *(BindMount(source=path, destination=path) for path in outside_usr),
    )


def is_shadowed(*folders: str, repository: Path = REPOSITORY) -> bool:
    """Whether a mount at one of these directories would shadow a bind mount of this checkout."""
    return any(bind.destination.is_relative_to(folder) for bind in bind_mounts(repository) for folder in folders)


def _entries() -> Iterator[Entry]:
    for folder in ("proc", "sys", "dev", "etc", "opt", "var", "root", "home"):
        yield Entry(folder)
    for folder in ("tmp", "var/tmp"):
        yield Entry(folder, mode=0o1777)
    yield Entry("usr", target=str(HOST_USR))
    for name in ("bin", "sbin", "lib", "lib64"):
        # On arm64, lib64 is a dangling symlink, which does no harm.
        yield Entry(name, target=f"usr/{name}")
    yield Entry("etc/passwd", 0o644, PASSWD.encode())
    yield Entry("etc/group", 0o644, GROUP.encode())
    for name in ("ld.so.cache", "nsswitch.conf", "os-release"):
        if (file := Path("/etc", name)).exists():
            yield Entry(f"etc/{name}", 0o644, file.read_bytes())
