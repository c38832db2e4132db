"""Where claims are: on a cluster a mounted volume, on a laptop a folder; so one manifest runs in both."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.sources import locate
from finetune_trainer.errors import UserError

DEFAULT_CLAIMS_DIR = Path(".finetune/claims")


@dataclass(frozen=True)
class ClaimPaths:
    """Claim name to folder.

    Args:
        claims_dir: holds a folder for each claim, by its name.
        mappings: claims that are somewhere else (`--claim name=dir`); looked at first.
    """

    claims_dir: Path = DEFAULT_CLAIMS_DIR
    mappings: Mapping[str, Path] = field(default_factory=dict)

    def folder(self, claim: str) -> Path:
        """The folder of a claim, whether or not it exists."""
        return self.mappings.get(claim, self.claims_dir / claim)

    def existing(self, source: str, said: str) -> Path:
        """The folder of a `pvc://` source, which has to be there; `said` is the field that names it.

        Raises:
            UserError: there is no such claim, or no such folder in it.
        """
        location = locate(source)
        claim = self.folder(location.name)
        if not claim.is_dir():
            raise UserError(
                f"{said}: {source}: no claim {location.name!r}: {claim} is not a folder{self._hint(location.name)}"
            )
        folder = claim / location.path
        if not folder.exists():
            raise UserError(f"{said}: {source}: claim {location.name!r} has no {location.path}{_holds(claim)}")
        return folder

    def destination(self, source: str) -> Path:
        """The folder of the output, made if need be, and open to us.

        Raises:
            UserError: it cannot be made, e.g. because the claim is read-only.
        """
        location = locate(source)
        folder = self.folder(location.name) / location.path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass  # a folder that is there may still be closed to us
        except OSError as error:
            raise UserError(f"output.destination: {source}: cannot write to {folder}: {error.strerror}") from error
        return folder

    def _hint(self, wanted: str) -> str:
        there = sorted({*self.mappings, *_folders(self.claims_dir)})
        if not there:
            return f"; make it, or name a folder with --claim {wanted}=DIR"
        near = difflib.get_close_matches(wanted, there, n=1)
        question = f"; did you mean {near[0]!r}?" if near else f"; name a folder with --claim {wanted}=DIR."
        return f"{question} Claims there are: {', '.join(there)}"


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _holds(folder: Path) -> str:
    names = sorted(child.name for child in folder.iterdir() if not child.name.startswith("."))
    return f"; it holds {', '.join(names[:8])}" if names else "; it is empty"
