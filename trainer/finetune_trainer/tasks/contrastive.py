"""Contrastive: images and texts that belong together come close to each other in one space, as in CLIP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModel, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from finetune_trainer.data import Batch, Dataset, RowProblem, Sample, merge_problems
from finetune_trainer.errors import UserError
from finetune_trainer.tasks.base import Processors, Task

BLOCK = 1024
"""Images compared with all texts at once when retrieval is measured."""


@dataclass(frozen=True)
class Contrastive(Task):
    """The symmetric softmax over the batch.

    Args:
        has_labels: pairs with the same label belong together; without labels, those with the same text.
    """

    has_labels: bool
    auto_class: ClassVar[Any] = AutoModel
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("image", "text"),)
    optional: ClassVar[tuple[str, ...]] = ("label",)
    reads_images: ClassVar[bool] = True

    @classmethod
    def fit(cls, config: PretrainedConfig, data: Dataset) -> Self:
        if not is_dual_encoder(config):
            raise UserError(
                "task: Contrastive needs a model with an image and a text encoder (CLIP, SigLIP, dual encoders), "
                f"but model.source is a {config.model_type}"
            )
        return cls(has_labels="label" in data.columns)

    @classmethod
    def check_batches(cls, batch_size: int, micro_batch_size: int) -> None:
        if micro_batch_size < batch_size:
            raise UserError(
                f"training.microBatchSize is {micro_batch_size}, but task Contrastive compares all {batch_size} "
                "samples of a batch with each other: gradient caching is not yet supported; leave microBatchSize "
                "out, or lower batchSize"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        labelled = ("eval/zero_shot_accuracy",) if self.has_labels else ()
        return ("eval/loss", "eval/recall_at_1", "eval/recall_at_5", *labelled)

    def problems(self, data: Dataset, processors: Processors) -> Iterator[RowProblem]:
        labels = [data.missing_values("label")] if self.has_labels else []
        return merge_problems(data.invalid_texts("text"), data.invalid_images(), *labels)

    def count_truncated(self, data: Dataset, processors: Processors) -> int:
        return processors.count_longer(data.iter_chunks("text"))

    def collate(self, rows: Sequence[Sample], processors: Processors) -> Batch:
        texts = [row["text"] for row in rows]
        batch = processors.tokenize(texts) | processors.pixels([row["image"] for row in rows])
        batch["text_id"] = _identities(texts)
        if self.has_labels:
            batch["label_id"] = _identities([row["label"] for row in rows])
        return batch

    def terms(self, batch: Batch) -> int:
        return len(batch["text_id"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs = model(**_inputs(batch))
        return contrastive_loss(outputs.logits_per_image, _group(batch)) * self.terms(batch)

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        loss, parts = 0.0, []
        for batch in batches:
            outputs = model(**_inputs(batch))
            loss += float(contrastive_loss(outputs.logits_per_image, _group(batch))) * self.terms(batch)
            embedded = {"image": outputs.image_embeds.float(), "text": outputs.text_embeds.float()}
            parts.append(embedded | {key: batch[key] for key in ("text_id", "label_id") if key in batch})
        whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        # Autocast would compare in half precision, in which many scores are ties.
        with torch.autocast(whole["image"].device.type, enabled=False):
            return {"eval/loss": loss / len(whole["text_id"])} | _retrieval(whole) | _zero_shot(whole)


def contrastive_loss(logits: Tensor, group: Tensor) -> Tensor:
    """Cross-entropy both ways; the pairs of one group share the weight of a hit.

    With one pair per group this is CLIP's loss. In small domains several pairs of a batch say the same, and the plain
    diagonal would punish the right answers.
    """
    same = (group[:, None] == group[None, :]).float()
    targets = same / same.sum(dim=1, keepdim=True)
    logits = logits.float()
    return (cross_entropy(logits, targets) + cross_entropy(logits.t(), targets)) / 2


def _retrieval(whole: Batch) -> dict[str, float]:
    """How often one of the nearest texts of an image belongs to it."""
    hits = {1: 0, 5: 0}
    for first in range(0, len(whole["image"]), BLOCK):
        block = slice(first, first + BLOCK)
        similarity = whole["image"][block] @ whole["text"].t()
        nearest = similarity.topk(min(5, len(whole["text"])), dim=1).indices
        right = _belongs(whole, block, nearest)
        for k in hits:
            hits[k] += int(right[:, :k].any(dim=1).sum())
    return {f"eval/recall_at_{k}": count / len(whole["image"]) for k, count in hits.items()}


def _belongs(whole: Batch, block: slice, texts: Tensor) -> Tensor:
    """Whether each of these texts is, or is as good as, the one of the image in its row."""
    right = whole["text_id"][texts] == whole["text_id"][block, None]
    if "label_id" in whole:
        right |= whole["label_id"][texts] == whole["label_id"][block, None]
    return right


def _zero_shot(whole: Batch) -> dict[str, float]:
    """How often an image is nearest to its own class, a class being the mean of its texts."""
    if "label_id" not in whole:
        return {}
    classes, label = torch.unique(whole["label_id"], return_inverse=True)
    sums = torch.zeros(len(classes), whole["text"].shape[1], device=whole["text"].device)
    centers = normalize(sums.index_add(0, label, whole["text"]), dim=1)
    nearest = (whole["image"] @ centers.t()).argmax(dim=1)
    return {"eval/zero_shot_accuracy": float((nearest == label).float().mean())}


def _group(batch: Batch) -> Tensor:
    return batch.get("label_id", batch["text_id"])


def _inputs(batch: Batch) -> Batch:
    return {key: value for key, value in batch.items() if key not in ("text_id", "label_id")}


def _identities(values: Sequence[Any]) -> Tensor:
    """Numbers that are equal where the values are, in every batch alike, without knowing all values beforehand."""
    digests = [blake2b(repr(value).encode(), digest_size=8).digest() for value in values]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])


def is_dual_encoder(config: PretrainedConfig) -> bool:
    """Whether the model has an encoder for images and one for texts, as CLIP and SigLIP."""
    found = MODEL_MAPPING.get(type(config), None)
    built = found[0] if isinstance(found, tuple) else found
    return hasattr(built, "get_image_features") and hasattr(built, "get_text_features")
