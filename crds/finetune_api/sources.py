"""URIs of models, datasets and outputs: `hf://org/repo` (Hugging Face Hub) and `pvc://claim/path`.

On a cluster a claim is a PersistentVolumeClaim mounted into the trainer; on a laptop it is a directory. The URI is
the same in both cases, so that the same manifest runs in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import StringConstraints

from finetune_api.base import DNS_SUBDOMAIN, Rule

_REPO_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_PATH_SEGMENT = r"[A-Za-z0-9_=+@%,~-][A-Za-z0-9_=+@%,~.-]*"
_PVC_URI = f"pvc://{DNS_SUBDOMAIN.strip('^$')}(/{_PATH_SEGMENT})*/?"
_HF_URI = f"hf://{_REPO_PART}(/{_REPO_PART})?"

Source = Annotated[str, StringConstraints(max_length=512, pattern=f"^({_HF_URI}|{_PVC_URI})$")]
"""`hf://org/repo` or `pvc://claim/path`; no path segment starts with a dot, so the path stays within the claim."""

Destination = Annotated[str, StringConstraints(max_length=512, pattern=f"^{_PVC_URI}$")]
"""`pvc://claim/path`."""


REVISION_REQUIRES_HUB = Rule(
    field="revision",
    message="revision requires a Hugging Face Hub repository as source (hf://org/repo)",
    cel="!has(self.revision) || !has(self.source) || self.source.startsWith('hf://')",
    is_valid=lambda model: model.revision is None or model.source is None or model.source.startswith("hf://"),
)


@dataclass(frozen=True)
class Location:
    """A parsed source URI: `name` is the repository or the claim, `path` is relative to the claim."""

    scheme: Literal["hf", "pvc"]
    name: str
    path: PurePosixPath


def locate(source: str) -> Location:
    """Parse a validated source URI.

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


def claim_names(sources: list[str | None]) -> list[str]:
    """Distinct names of the claims in these sources, in order."""
    locations = [locate(source) for source in sources if source]
    return list(dict.fromkeys(location.name for location in locations if location.scheme == "pvc"))
