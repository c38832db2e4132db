"""Builds the Dockerfiles of the project without a registry.

`ARG BASE_IMAGE` selects the base: the local base image here, a public image for users.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from harness import base_image, binaries, cache, oci_archive
from harness.buildah import buildah
from harness.node_components import PAUSE
from harness.oci_archive import Entry
from harness.progress import task

IGNORED_DIRS = {"__pycache__", ".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules"}
MAX_CACHED = 1


def build_pause() -> Path:
    """Build the sandbox image of pods unless it is cached, and return the path of its archive."""
    program = binaries.build() / "pause"
    key = cache.digest(program, Path(oci_archive.__file__))
    entry = Entry("pause", content=program.read_bytes())
    folder = cache.get_or_create(
        "pause", key, lambda folder: oci_archive.write(folder / "image.tar", PAUSE, [entry], command=["/pause"])
    )
    return folder / "image.tar"


def build(dockerfile: Path, context: Path, tag: str, base: str | None = None) -> Path:
    """Build a Dockerfile and return the path of the image archive, for `Node.import_image`.

    The result is cached until the Dockerfile, a file that it copies, or the base image changes.
    """
    parent = base or base_image.build()
    files = [path for name in copied_paths(dockerfile.read_text()) for path in source_files(context / name)]
    listing = "\n".join(str(path.relative_to(context)) for path in files)
    key = cache.digest(dockerfile, tag, parent, listing, *files)
    kind = f"image-{tag.replace('/', '_').replace(':', '_')}"
    folder = cache.get_or_create(kind, key, lambda folder: _build(folder, dockerfile, context, tag, parent))
    cache.prune(kind, MAX_CACHED)
    return folder / "image.tar"


def copied_paths(dockerfile: str) -> list[str]:
    """The paths in the build context that a Dockerfile copies."""
    paths: list[str] = []
    for line in dockerfile.replace("\\\n", " ").splitlines():
        instruction, *arguments = line.split() or [""]
        if instruction.upper() in ("COPY", "ADD") and not any(each.startswith("--from=") for each in arguments):
            *sources, _destination = [each for each in arguments if not each.startswith("--")]
            paths += sources
    return paths


def source_files(source: Path) -> Iterator[Path]:
    """The files of a directory that can affect an image, in a stable order."""
    if source.is_file():
        yield source
        return
    for folder, names, files in os.walk(source):
        names[:] = sorted(set(names) - IGNORED_DIRS)
        yield from (Path(folder, name) for name in sorted(files) if Path(folder, name).is_file())


def _build(folder: Path, dockerfile: Path, context: Path, tag: str, parent: str) -> None:
    with task(f"building image {tag}") as progress:
        buildah(
            progress.update,
            *("build", "--isolation=chroot", "--layers", "--pull=never", f"--build-arg=BASE_IMAGE={parent}"),
            *(f"--file={dockerfile}", f"--tag={tag}", str(context)),
        )
        buildah(progress.update, "push", tag, f"docker-archive:{folder / 'image.tar'}:{tag}")
