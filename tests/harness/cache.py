"""Where costly results are kept: outside the repository, named by a digest of everything they were made from.

A result is made in a temporary folder and renamed into place, under a lock, so that an interrupted build
leaves nothing that looks finished and two processes never build the same thing at once.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.progress import say


def root() -> Path:
    """The cache folder: `$FINETUNE_CACHE`, else the user's cache folder."""
    if explicit := os.environ.get("FINETUNE_CACHE"):
        return Path(explicit).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "finetune-operator").absolute()


def digest(*parts: str | bytes | Path) -> str:
    """Twelve hex digits that change when a text, a file's content or a file's name changes."""
    total = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            total.update(len(piece).to_bytes(8) + piece)
    return total.hexdigest()[:12]


def _pieces(part: str | bytes | Path) -> Iterable[bytes]:
    if isinstance(part, Path):
        return (part.name.encode(), part.read_bytes())
    return (part.encode() if isinstance(part, str) else part,)


def entry(kind: str, key: str) -> Path:
    """Where the result of this kind and key is, or would be."""
    return root() / kind / key


def obtain(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder of this kind and key; `make(folder)` fills it the first time."""
    place = entry(kind, key)
    if place.exists():
        return place
    with lock(f"{kind}-{key}"):
        if not place.exists():
            _make(place, make)
    return place


def _make(place: Path, make: Callable[[Path], None]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        draft.chmod(0o755)
        make(draft)
        draft.rename(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def keep_newest(kind: str, count: int) -> None:
    """Forget all but the newest results of this kind, which nobody will ask for again."""
    finished = [path for path in (root() / kind).iterdir() if not path.name.startswith(".")]
    for old in sorted(finished, key=lambda path: path.stat().st_mtime, reverse=True)[count:]:
        shutil.rmtree(old)


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the lock of this name among all processes that share the cache folder."""
    folder = root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that is making {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
