"""Which model is fine-tuned."""

from __future__ import annotations

from finetune_api.base import Model, ShortString
from finetune_api.sources import REVISION_REQUIRES_HUB, Source


class ModelSource(Model):
    """A transformers model: a repository on the hub, or a directory on a claim."""

    rules = (REVISION_REQUIRES_HUB,)

    source: Source
    """`hf://org/repo` or `pvc://claim/path`: a transformers model directory or repository."""
    revision: ShortString | None = None
    """Pinned revision of a hub repository: a branch, a tag or a commit (`main` when left out)."""
