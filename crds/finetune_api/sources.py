"""Where models and data come from, and where results go: `hf://org/repo` and `pvc://claim/path`.

On a cluster a claim is a PersistentVolumeClaim mounted into the trainer; on a laptop it is a folder. The manifest says
the same thing in both places, which is what makes one file run in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import StringConstraints

from finetune_api.base import DNS_SUBDOMAIN, Rule

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_SEGMENT = r"[A-Za-z0-9_=+@%,~-][A-Za-z0-9_=+@%,~.-]*"
_CLAIM = f"pvc://{DNS_SUBDOMAIN.strip('^$')}(/{_SEGMENT})*/?"
_HUB = f"hf://{_NAME}(/{_NAME})?"

Source = Annotated[str, StringConstraints(max_length=512, pattern=f"^({_HUB}|{_CLAIM})$")]
"""`hf://org/repo` or `pvc://claim/path`; no path segment starts with a dot, so none leads out of the claim."""

Destination = Annotated[str, StringConstraints(max_length=512, pattern=f"^{_CLAIM}$")]
"""`pvc://claim/path`."""


REVISION_OF_HUB = Rule(
    field="revision",
    message="revision belongs to a hub repository (hf://org/repo); a claim has none",
    cel="!has(self.revision) || !has(self.source) || self.source.startsWith('hf://')",
    holds=lambda it: it.revision is None or it.source is None or it.source.startswith("hf://"),
)


@dataclass(frozen=True)
class Location:
    """A source taken apart: `name` is the repository or the claim, `path` lies within the claim."""

    scheme: Literal["hf", "pvc"]
    name: str
    path: PurePosixPath


def locate(source: str) -> Location:
    """Take a validated source apart.

    >>> locate("pvc://captions/train/2026")
    Location(scheme='pvc', name='captions', path=PurePosixPath('train/2026'))
    >>> locate("hf://openai/clip-vit-base-patch32").name
    'openai/clip-vit-base-patch32'
    """
    scheme, rest = source.split("://", 1)
    if scheme == "hf":
        return Location("hf", rest, PurePosixPath())
    claim, _, path = rest.partition("/")
    return Location("pvc", claim, PurePosixPath(path.strip("/")))


def claims(sources: list[str | None]) -> list[str]:
    """The names of the claims among these sources, each once, in order."""
    located = [locate(source) for source in sources if source]
    return list(dict.fromkeys(place.name for place in located if place.scheme == "pvc"))
