"""States of the evaluation metrics: accumulated batch by batch, merged across processes, computed once at the end.

They have the interface of a `torchmetrics.Metric` (update, merge, compute) without the dependency. Its aggregation
metrics accumulate in FP32 and read each value from the device to check it for NaN, it synchronizes processes on its
own instead of through our process group, and it has no retrieval in blocks, which is the only long part of this file.

Values stay on the device until `compute`: an evaluation does not synchronize with the GPU in each batch. Sums are FP64,
so that they do not depend on how the samples are divided into batches. NaN is never dropped: a metric of a model that
returns NaN is NaN, not the accuracy of an arbitrary class.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from finetune_trainer.data import Batch

Predictions = Mapping[str, Tensor]
"""What a task predicts for one batch, by name; see `Task.predict`."""

QUERY_BLOCK, CANDIDATE_BLOCK = 1024, 4096
"""Retrieval compares this many embeddings at once: 16 MiB of similarities in FP32."""

RECALL_DEPTHS = (1, 5)


class TaskMetrics(ABC):
    """The metrics of a task over the batches that it was updated with."""

    @abstractmethod
    def update(self, predictions: Predictions, batch: Batch) -> None:
        """Add one batch. Must not synchronize with the device."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add everything that another state was updated with, for example that of another process."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The value of each metric, by its name with prefix `eval/`. Without samples, all values are NaN."""


@dataclass
class Mean:
    """A mean over samples, in FP64."""

    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    count: int = 0

    def update(self, values: Tensor) -> None:
        """Add one value per sample; shape (samples,)."""
        self.add(values.sum(dtype=torch.float64), len(values))

    def add(self, total: Tensor, count: int) -> None:
        """Add the sum of `count` values."""
        self.total = self.total.to(total.device) + total.double()
        self.count += count

    def merge(self, other: Mean) -> None:
        self.add(other.total, other.count)

    def compute(self) -> float:
        return float(self.total) / self.count if self.count else math.nan


class CausalLMMetrics(TaskMetrics):
    """Loss, perplexity and accuracy per target token."""

    def __init__(self) -> None:
        self.loss, self.token_accuracy = Mean(), Mean()

    def update(self, predictions: Predictions, batch: Batch) -> None:
        self.loss.update(predictions["loss"])
        self.token_accuracy.update(_is_correct(predictions["token"], batch["targets"], predictions["loss"].isnan()))

    def merge(self, other: Self) -> None:
        self.loss.merge(other.loss)
        self.token_accuracy.merge(other.token_accuracy)

    def compute(self) -> dict[str, float]:
        loss = self.loss.compute()
        return {
            "eval/loss": loss,
            "eval/perplexity": _exp(loss),
            "eval/token_accuracy": self.token_accuracy.compute(),
        }


class ClassificationMetrics(TaskMetrics):
    """Loss and accuracy of single-label classification."""

    def __init__(self) -> None:
        self.loss, self.accuracy = Mean(), Mean()

    def update(self, predictions: Predictions, batch: Batch) -> None:
        logits, labels = predictions["logits"], batch["labels"]
        self.loss.update(cross_entropy(logits, labels, reduction="none"))
        self.accuracy.update(_is_correct(logits.argmax(dim=1), labels, logits.isnan().any(dim=1)))

    def merge(self, other: Self) -> None:
        self.loss.merge(other.loss)
        self.accuracy.merge(other.accuracy)

    def compute(self) -> dict[str, float]:
        return {"eval/loss": self.loss.compute(), "eval/accuracy": self.accuracy.compute()}


class ContrastiveMetrics(TaskMetrics):
    """Loss of the batches, retrieval over all pairs in both directions, and zero-shot accuracy if there are labels.

    The state keeps the embeddings of all pairs, `8 * dimensions` bytes per pair; similarities are computed in blocks.
    """

    def __init__(self, has_labels: bool) -> None:
        self.has_labels = has_labels
        self.loss = Mean()
        self.parts: list[dict[str, Tensor]] = []

    def update(self, predictions: Predictions, batch: Batch) -> None:
        count = len(batch["text_id"])
        self.loss.add(predictions["loss"].double() * count, count)
        pairs = {"image": predictions["image_embeds"].float(), "text": predictions["text_embeds"].float()}
        self.parts.append(pairs | {key: batch[key] for key in ("text_id", "label_id") if key in batch})

    def merge(self, other: Self) -> None:
        self.loss.merge(other.loss)
        device = self.parts[0]["text_id"].device if self.parts else None
        self.parts += [{key: value.to(device) for key, value in part.items()} for part in other.parts]

    def compute(self) -> dict[str, float]:
        return {"eval/loss": self.loss.compute(), **self._retrieval()}

    def _retrieval(self) -> dict[str, float]:
        names = [f"eval/{prefix}recall_at_{k}" for prefix in ("", "text_to_image_") for k in RECALL_DEPTHS]
        names += ["eval/zero_shot_accuracy"] if self.has_labels else []
        if not self.parts:
            return dict.fromkeys(names, math.nan)
        data = {key: torch.cat([part[key] for part in self.parts]) for key in self.parts[0]}
        # Autocast would compute similarities in half precision, with many ties.
        with torch.autocast(data["image"].device.type, enabled=False):
            hits = [_count_hits(data, "image", "text"), _count_hits(data, "text", "image")]
            hits += [_count_zero_shot_hits(data)[None]] if self.has_labels else []
        # The ranks among embeddings that are not finite have no meaning.
        is_finite = data["image"].isfinite().all() & data["text"].isfinite().all()
        recalls = torch.where(is_finite, torch.cat(hits).double() / len(data["image"]), math.nan)
        return dict(zip(names, recalls.tolist(), strict=True))


def _count_hits(data: Mapping[str, Tensor], query: str, candidate: str) -> Tensor:
    """Number of queries with a correct candidate among the k most similar ones, for each of `RECALL_DEPTHS`.

    Args:
        data: embeddings of the pairs by modality, of shape (pairs, dimensions), and their ids.
        query, candidate: modalities.
    """
    hits = torch.zeros(len(RECALL_DEPTHS), dtype=torch.int64, device=data[query].device)
    for queries in _blocks(len(data[query]), QUERY_BLOCK):
        similarity = is_correct = None
        for candidates in _blocks(len(data[candidate]), CANDIDATE_BLOCK):
            block = data[query][queries] @ data[candidate][candidates].t()
            correct = _is_match(data, queries, candidates)
            if similarity is not None and is_correct is not None:
                block, correct = torch.cat([similarity, block], dim=1), torch.cat([is_correct, correct], dim=1)
            similarity, top = block.topk(min(max(RECALL_DEPTHS), block.shape[1]), dim=1)
            is_correct = correct.gather(1, top)
        assert is_correct is not None
        hits += torch.stack([is_correct[:, :k].any(dim=1).sum() for k in RECALL_DEPTHS])
    return hits


def _is_match(data: Mapping[str, Tensor], queries: slice, candidates: slice) -> Tensor:
    """Whether two pairs have the same text or the same label; shape (queries, candidates)."""
    ids = [data[key] for key in ("text_id", "label_id") if key in data]
    matches = [values[queries, None] == values[None, candidates] for values in ids]
    return matches[0] if len(matches) == 1 else matches[0] | matches[1]


def _count_zero_shot_hits(data: Mapping[str, Tensor]) -> Tensor:
    """Number of images closest to their own class, where the embedding of a class is the mean of its texts."""
    classes, label = torch.unique(data["label_id"], return_inverse=True)
    sums = torch.zeros(len(classes), data["text"].shape[1], device=data["text"].device)
    class_embeddings = normalize(sums.index_add(0, label, data["text"]), dim=1)
    hits = torch.zeros((), dtype=torch.int64, device=label.device)
    for images in _blocks(len(label), QUERY_BLOCK):
        best = torch.full_like(label[images], -1)
        best_similarity = torch.full(best.shape, -math.inf, device=best.device)
        for block in _blocks(len(classes), CANDIDATE_BLOCK):
            similarity, index = (data["image"][images] @ class_embeddings[block].t()).max(dim=1)
            is_better = similarity > best_similarity
            best = torch.where(is_better, index + block.start, best)
            best_similarity = torch.where(is_better, similarity, best_similarity)
        hits += (best == label[images]).sum()
    return hits


def _is_correct(predicted: Tensor, expected: Tensor, is_nan: Tensor) -> Tensor:
    """1 for a correct prediction, 0 for a wrong one, NaN where the model returned NaN: `argmax` is arbitrary there."""
    return torch.where(is_nan, math.nan, (predicted == expected).double())


def _blocks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _exp(value: float) -> float:
    """The exponential; infinite where it exceeds a float."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
