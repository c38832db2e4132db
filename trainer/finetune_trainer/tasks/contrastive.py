"""Contrastive: embeds matching images and texts close to each other, as CLIP does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel, PretrainedConfig

from finetune_trainer.compat.hf_transformers import base_model_class
from finetune_trainer.data import Batch, Dataset, Sample, merge_problems
from finetune_trainer.errors import UserError
from finetune_trainer.tasks.base import Example, Processors, Task, index_text_column
from finetune_trainer.tasks.index import ExampleIndex
from finetune_trainer.tasks.metrics import ContrastiveMetrics, Predictions
from finetune_trainer.tasks.pooled_token import check_adds_token, pooled_token_id


@dataclass(frozen=True)
class Contrastive(Task):
    """Symmetric softmax cross-entropy over the batch (CLIP, arXiv:2103.00020).

    Args:
        has_labels: pairs with the same label are positives; without labels, pairs with the same text.
        pooled_token_id: id of the token that the model reads a text at; None for other models.
    """

    has_labels: bool
    pooled_token_id: int | None = None
    auto_class: ClassVar[Any] = AutoModel
    required_roles: ClassVar[tuple[tuple[str, ...], ...]] = (("image", "text"),)
    optional_roles: ClassVar[tuple[str, ...]] = ("label",)
    uses_images: ClassVar[bool] = True
    uses_tokenizer_padding: ClassVar[bool] = True
    row_predictions: ClassVar[tuple[str, ...]] = ("image_embeds", "text_embeds")

    @classmethod
    def build(cls, config: PretrainedConfig, data: Dataset, declared: Mapping[str, Any] | None = None) -> Self:
        if not is_dual_encoder(config):
            raise UserError(
                "task: Contrastive needs a model with an image and a text encoder (CLIP, SigLIP, dual encoders), "
                f"but model.source is a {config.model_type} model"
            )
        return cls("label" in data.columns, pooled_token_id(config))

    def check_processors(self, processors: Processors) -> None:
        if self.pooled_token_id is not None:
            check_adds_token(processors.tokenizer, self.pooled_token_id)

    @classmethod
    def check_batch_size(cls, batch_size: int, micro_batch_size: int) -> None:
        if micro_batch_size < batch_size:
            raise UserError(
                f"training.microBatchSize: {micro_batch_size} is less than training.batchSize ({batch_size}), but "
                "task Contrastive compares all samples of a batch: gradient caching is not yet supported; remove "
                "microBatchSize, or lower batchSize"
            )

    @property
    def metric_names(self) -> tuple[str, ...]:
        with_labels = ("eval/zero_shot_accuracy",) if self.has_labels else ()
        text_to_image = ("eval/text_to_image_recall_at_1", "eval/text_to_image_recall_at_5")
        return ("eval/loss", "eval/recall_at_1", "eval/recall_at_5", *text_to_image, *with_labels)

    def index(self, data: Dataset, processors: Processors) -> ExampleIndex:
        label_problems = [data.missing_values("label")] if self.has_labels else []
        return index_text_column(data, processors, list(merge_problems(data.invalid_texts("text"), *label_problems)))

    def encode(self, samples: Sequence[Sample], processors: Processors) -> list[Example]:
        texts = processors.encode_texts([sample["text"] for sample in samples])
        images = processors.encode_images([sample["image"] for sample in samples])
        return [
            {**text, **image, **self._group_values(sample)}
            for text, image, sample in zip(texts, images, samples, strict=True)
        ]

    def collate(self, examples: Sequence[Example], processors: Processors) -> Batch:
        names = ("text_id", "label_id") if self.has_labels else ("text_id",)
        ids = {name: torch.tensor([example[name] for example in examples]) for name in names}
        return processors.pad(examples) | processors.stack_images(examples) | ids

    def _group_values(self, sample: Sample) -> dict[str, int]:
        labels = {"label_id": _hash_id(sample["label"])} if self.has_labels else {}
        return {"text_id": _hash_id(sample["text"])} | labels

    def num_items(self, batch: Batch) -> int:
        return len(batch["text_id"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs = model(**_model_inputs(batch))
        return contrastive_loss(outputs.logits_per_image, _group_ids(batch)) * self.num_items(batch)

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """`image_embeds` and `text_embeds` of shape (pairs, dimensions), and the `loss` of the batch, a scalar."""
        outputs = model(**_model_inputs(batch))
        loss = contrastive_loss(outputs.logits_per_image, _group_ids(batch))
        return {"image_embeds": outputs.image_embeds, "text_embeds": outputs.text_embeds, "loss": loss}

    def metrics(self) -> ContrastiveMetrics:
        return ContrastiveMetrics(self.has_labels)


def contrastive_loss(logits: Tensor, group_ids: Tensor) -> Tensor:
    """Cross-entropy from images to texts and from texts to images, averaged.

    With one pair per group this is the loss of CLIP. In small domains, several pairs of a batch have the same meaning,
    and the diagonal alone would count correct matches as errors; all pairs of a group therefore share the target
    probability.

    Args:
        logits: similarities of shape (images, texts), scaled by the temperature.
        group_ids: shape (pairs,); pairs with the same id are positives.

    Returns:
        The mean over the pairs; a scalar.
    """
    same = (group_ids[:, None] == group_ids[None, :]).float()
    targets = same / same.sum(dim=1, keepdim=True)
    logits = logits.float()
    return (cross_entropy(logits, targets) + cross_entropy(logits.t(), targets)) / 2


def _group_ids(batch: Batch) -> Tensor:
    return batch.get("label_id", batch["text_id"])


def _model_inputs(batch: Batch) -> Batch:
    return {key: value for key, value in batch.items() if key not in ("text_id", "label_id")}


def _hash_id(value: Any) -> int:
    """A 64-bit hash: equal values have equal ids in every batch, without a table of all values."""
    return int.from_bytes(blake2b(repr(value).encode(), digest_size=8).digest(), "big", signed=True)


def is_dual_encoder(config: PretrainedConfig) -> bool:
    """Whether the model has an image and a text encoder, as CLIP and SigLIP do."""
    model_class = base_model_class(config)
    return hasattr(model_class, "get_image_features") and hasattr(model_class, "get_text_features")
