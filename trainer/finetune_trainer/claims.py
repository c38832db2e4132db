"""Maps claims to folders: mounted volumes on a cluster, folders on a laptop, so that one manifest runs in both."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.names import CHECKPOINTS_FOLDER
from finetune_api.sources import locate
from finetune_api.suggestions import closest_match
from finetune_trainer.errors import UserError
from finetune_trainer.formatting import join_some

DEFAULT_CLAIMS_DIR = Path(".finetune/claims")


@dataclass(frozen=True)
class ClaimPaths:
    """The folder of each claim.

    Args:
        claims_dir: contains a folder for each claim, by its name.
        mappings: claims with a folder elsewhere (`--claim name=dir`); they take precedence.
    """

    claims_dir: Path = DEFAULT_CLAIMS_DIR
    mappings: Mapping[str, Path] = field(default_factory=dict)

    def folder(self, claim: str) -> Path:
        """The folder of a claim, whether it exists or not."""
        return self.mappings.get(claim, self.claims_dir / claim)

    def resolve(self, source: str, field_path: str) -> Path:
        """The folder or file of a `pvc://` source.

        Args:
            source: `pvc://claim/path`.
            field_path: the field that names the source, for the error message.

        Raises:
            UserError: the claim has no folder, or its folder no such path.
        """
        location = locate(source)
        claim = self.folder(location.name)
        if not claim.is_dir():
            raise UserError(
                f"{field_path}: {source}: claim {location.name!r} not found: {claim} is not a folder"
                f"{self._claim_hint(location.name)}"
            )
        path = claim / location.path
        if not path.exists():
            raise UserError(
                f"{field_path}: {source}: claim {location.name!r} has no {location.path}"
                f"{_path_hint(claim, location.path.parts[0])}"
            )
        return path

    def locate_destination(self, source: str) -> Path:
        """The folder of a `pvc://` destination, whether it exists or not.

        Raises:
            UserError: it is outside the claim, because it or a folder above it is a symbolic link.
        """
        location = locate(source)
        claim = self.folder(location.name)
        folder = claim / location.path
        for path in (folder, folder / CHECKPOINTS_FOLDER):
            if link := find_link_outside(path, claim):
                raise UserError(
                    f"output.destination: {source}: {link} is a symbolic link to {os.path.realpath(link)}, outside the "
                    f"claim {location.name!r}: replace the link with a folder, or choose another output.destination"
                )
        return folder

    def create_destination(self, source: str) -> Path:
        """The folder of a `pvc://` destination, created if necessary, and writable.

        Raises:
            UserError: it cannot be created or written to, e.g. because the claim is read-only, or it is outside the
                claim.
        """
        folder = self.locate_destination(source)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass  # a folder that exists may not be writable
        except OSError as error:
            raise UserError(f"output.destination: {source}: cannot write to {folder}: {error.strerror}") from error
        return folder

    def _claim_hint(self, claim: str) -> str:
        available = sorted({*self.mappings, *_subfolders(self.claims_dir)})
        if not available:
            return f"; create it, or set a folder with --claim {claim}=DIR"
        near = closest_match(claim, available)
        hint = f"did you mean {near!r}?" if near else f"set a folder with --claim {claim}=DIR"
        return f"; available claims: {', '.join(available)}; {hint}"


def find_link_outside(path: Path, claim: Path) -> Path | None:
    """The first symbolic link on the way from a claim's folder to a path in it whose target is outside the claim."""
    root = Path(os.path.realpath(claim))
    parts = path.relative_to(claim).parts
    steps = [claim.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
    return next((step for step in steps if not Path(os.path.realpath(step)).is_relative_to(root)), None)


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _path_hint(claim: Path, name: str) -> str:
    names = sorted(child.name for child in claim.iterdir() if not child.name.startswith("."))
    if not names:
        return "; it is empty"
    near = closest_match(name, names)
    return f"; it contains {join_some(names, 8)}" + (f"; did you mean {near!r}?" if near else "")
