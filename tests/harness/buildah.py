"""Runs buildah with a separate image store, so that the images of the user stay untouched."""

from collections.abc import Callable

from harness import cache
from harness.commands import run_streaming


def buildah(on_line: Callable[[str], None], *argv: str) -> None:
    """Run buildah and pass each line of its output to `on_line`."""
    store = cache.root() / "store"
    store.mkdir(parents=True, exist_ok=True)
    run_streaming("buildah", f"--root={store}", f"--runroot={store / 'run'}", *argv, on_line=on_line)
