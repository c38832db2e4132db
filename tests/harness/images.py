"""Container images without a registry: the project's Dockerfiles, built on a base of our own.

Users build the same Dockerfiles on a public image; they take their base as `ARG BASE_IMAGE`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from harness import archive, baseimage, cache, programs
from harness.archive import Entry
from harness.buildah import buildah
from harness.progress import task
from harness.runtime import PAUSE

SKIPPED = {"__pycache__", ".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules"}
KEPT = 1


def pause() -> Path:
    """The archive of the image that holds a pod's namespaces open."""
    program = programs.built() / "pause"
    key = cache.digest(program, Path(archive.__file__))
    entry = Entry("pause", content=program.read_bytes())
    folder = cache.obtain(
        "pause", key, lambda place: archive.write(place / "image.tar", PAUSE, [entry], command=["/pause"])
    )
    return folder / "image.tar"


def build(dockerfile: Path, context: Path, tag: str, base_image: str | None = None) -> Path:
    """Build a Dockerfile and return the image's archive, which `Node.import_image` takes.

    It is built again when the Dockerfile, a file that it copies, or the base changes.
    """
    parent = base_image or baseimage.local()
    files = [path for name in copied(dockerfile.read_text()) for path in source_files(context / name)]
    listing = "\n".join(str(path.relative_to(context)) for path in files)
    key = cache.digest(dockerfile, tag, parent, listing, *files)
    kind = f"image-{tag.replace('/', '_').replace(':', '_')}"
    folder = cache.obtain(kind, key, lambda place: _build(place, dockerfile, context, tag, parent))
    cache.keep_newest(kind, KEPT)
    return folder / "image.tar"


def copied(dockerfile: str) -> list[str]:
    """The paths in the context that a Dockerfile copies."""
    found: list[str] = []
    for line in dockerfile.replace("\\\n", " ").splitlines():
        keyword, *words = line.split() or [""]
        if keyword.upper() in ("COPY", "ADD") and not any(word.startswith("--from=") for word in words):
            *sources, _destination = [word for word in words if not word.startswith("--")]
            found += sources
    return found


def source_files(source: Path) -> Iterator[Path]:
    """The files of a folder that can matter to an image, in a fixed order."""
    if source.is_file():
        yield source
        return
    for folder, names, files in os.walk(source):
        names[:] = sorted(set(names) - SKIPPED)
        yield from (Path(folder, name) for name in sorted(files) if Path(folder, name).is_file())


def _build(place: Path, dockerfile: Path, context: Path, tag: str, parent: str) -> None:
    with task(f"building image {tag}") as progress:
        buildah(
            progress.update,
            *("build", "--isolation=chroot", "--layers", "--pull=never", f"--build-arg=BASE_IMAGE={parent}"),
            *(f"--file={dockerfile}", f"--tag={tag}", str(context)),
        )
        buildah(progress.update, "push", tag, f"docker-archive:{place / 'image.tar'}:{tag}")
