"""An image without content: its `/usr` is this machine's, and its Python environment is this checkout's.

Training images with torch are gigabytes and take minutes to build and import; an everyday test of a change in the
trainer must not wait for that. The containers of a node see the checkout's environment through read-only mounts that
containerd adds to each of them, so pod specs know nothing of it and pass restricted Pod Security.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from harness import archive, cache
from harness.archive import Entry
from harness.site import Bind

NAME = "localhost/hostos:1"
REPOSITORY = Path(__file__).parents[2]
SOURCES = ("crds", "operator", "trainer")
# Not /usr itself: an image with a /usr of its own has to keep it.
USR = Path("/.hostos/usr")
USERS = {"root": 0, "finetune": 65532, "nobody": 65534}
PASSWD = "".join(f"{name}:x:{number}:{number}::/tmp:/bin/sh\n" for name, number in USERS.items())
GROUP = "".join(f"{name}:x:{number}:\n" for name, number in USERS.items())


def image() -> Path:
    """The archive of the image."""
    entries, env = list(_entries()), environment()
    key = cache.digest(repr(entries), repr(env), Path(archive.__file__))
    folder = cache.obtain("hostos", key, lambda place: archive.write(place / "image.tar", NAME, entries, env=env))
    return folder / "image.tar"


def environment() -> dict[str, str]:
    """The environment of its containers: `python` is this checkout's."""
    return {"PATH": f"{Path(sys.prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp"}


def binds(repository: Path = REPOSITORY) -> tuple[Bind, ...]:
    """This machine's /usr, the Python that runs now, its environment, and the sources installed in it."""
    wanted = [sys.base_prefix, str(Path(sys.base_prefix).resolve()), sys.prefix]
    wanted += [str(repository / name) for name in SOURCES if (repository / name).is_dir()]
    own = [Path(path) for path in dict.fromkeys(wanted) if not Path(path).is_relative_to("/usr")]
    return (Bind(source=Path("/usr"), destination=USR), *(Bind(source=path, destination=path) for path in own))


def hidden_below(*folders: str, repository: Path = REPOSITORY) -> bool:
    """Whether something mounted at one of these folders would hide what the containers are to see of this checkout."""
    return any(bind.destination.is_relative_to(folder) for bind in binds(repository) for folder in folders)


def _entries() -> Iterator[Entry]:
    for folder in ("proc", "sys", "dev", "etc", "opt", "var", "root", "home"):
        yield Entry(folder)
    for folder in ("tmp", "var/tmp"):
        yield Entry(folder, mode=0o1777)
    yield Entry("usr", target=str(USR))
    for name in ("bin", "sbin", "lib", "lib64"):
        # On arm64 there is no lib64; a link to nothing harms nobody.
        yield Entry(name, target=f"usr/{name}")
    yield Entry("etc/passwd", 0o644, PASSWD.encode())
    yield Entry("etc/group", 0o644, GROUP.encode())
    for name in ("ld.so.cache", "nsswitch.conf", "os-release"):
        if (file := Path("/etc", name)).exists():
            yield Entry(f"etc/{name}", 0o644, file.read_bytes())
