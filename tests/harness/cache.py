"""Caches build results outside the repository, keyed by a digest of their inputs.

A result is built in a temporary directory and renamed into place under a lock: an interrupted build leaves no partial
result, and two processes never build the same result at once.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.progress import print_line


def root() -> Path:
    """The cache directory: `$FINETUNE_CACHE`, by default `finetune-operator` in the cache directory of the user."""
    if explicit := os.environ.get("FINETUNE_CACHE"):
        return Path(explicit).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "finetune-operator").absolute()


def digest(*parts: str | bytes | Path) -> str:
    """A digest of 12 hex digits over strings, and over the names and contents of files."""
    total = hashlib.sha256()
    for part in parts:
        for chunk in _chunks(part):
            total.update(len(chunk).to_bytes(8) + chunk)
    return total.hexdigest()[:12]


def _chunks(part: str | bytes | Path) -> Iterable[bytes]:
    if isinstance(part, Path):
        return (part.name.encode(), part.read_bytes())
    return (part.encode() if isinstance(part, str) else part,)


def entry_path(kind: str, key: str) -> Path:
    """The path of a result, whether or not it exists."""
    return root() / kind / key


def get_or_create(kind: str, key: str, create: Callable[[Path], None]) -> Path:
    """Return the directory of a result; `create(folder)` fills it if it does not exist."""
    path = entry_path(kind, key)
    if path.exists():
        return path
    with lock(f"{kind}-{key}"):
        if not path.exists():
            _create(path, create)
    return path


def _create(path: Path, create: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        temporary.chmod(0o755)
        create(temporary)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def prune(kind: str, count: int) -> None:
    """Delete all but the newest `count` results of a kind."""
    finished = [path for path in (root() / kind).iterdir() if not path.name.startswith(".")]
    for old in sorted(finished, key=lambda path: path.stat().st_mtime, reverse=True)[count:]:
        shutil.rmtree(old)


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold a named lock, shared by all processes that use the same cache directory."""
    folder = root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print_line(f"waiting for another process that holds the lock {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
