"""buildah, with a store of our own, so that the images of whoever works on this machine stay as they are."""

from collections.abc import Callable

from harness import cache
from harness.commands import follow


def buildah(heard: Callable[[str], None], *argv: str) -> None:
    """Run buildah, which hands each line it says to `heard`."""
    store = cache.root() / "store"
    store.mkdir(parents=True, exist_ok=True)
    follow("buildah", f"--root={store}", f"--runroot={store / 'run'}", *argv, heard=heard)
