"""SequenceClassification: a text belongs to one of several classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForSequenceClassification

from finetune_trainer.data import Batch, Dataset, RowProblem, Sample
from finetune_trainer.tasks.base import Processors
from finetune_trainer.tasks.classes import Classification


@dataclass(frozen=True)
class SequenceClassification(Classification):
    """Classes of texts."""

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"),)
    head: ClassVar[str] = "ForSequenceClassification"
    pads_by_config: ClassVar[bool] = True

    def input_problems(self, data: Dataset) -> Iterator[RowProblem]:
        return data.invalid_texts("text")

    def count_truncated(self, data: Dataset, processors: Processors) -> int:
        return processors.count_longer(data.iter_chunks("text"))

    def inputs(self, rows: Sequence[Sample], processors: Processors) -> Batch:
        return processors.tokenize([row["text"] for row in rows])
