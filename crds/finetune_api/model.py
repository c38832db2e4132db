"""The pretrained model of a job."""

from __future__ import annotations

from finetune_api.base import Model, ShortString
from finetune_api.sources import REVISION_REQUIRES_HUB, Source


class ModelSource(Model):
    """Location of a pretrained model in the format of transformers."""

    rules = (REVISION_REQUIRES_HUB,)

    source: Source
    """Location of the model: `hf://org/repo` for a repository on the Hugging Face Hub, or `pvc://claim/path` for a
    directory on a PersistentVolumeClaim, as written by `save_pretrained`. Weights must be in safetensors format."""
    revision: ShortString | None = None
    """Branch, tag or commit of the Hugging Face Hub repository. Defaults to main."""
