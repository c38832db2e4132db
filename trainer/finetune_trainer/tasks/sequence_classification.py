"""SequenceClassification: a text belongs to one of several classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForSequenceClassification

from finetune_trainer.data import Batch, Dataset, Problem, Row
from finetune_trainer.tasks.base import Processors
from finetune_trainer.tasks.classes import Classification


@dataclass(frozen=True)
class SequenceClassification(Classification):
    """Classes of texts."""

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"),)
    head: ClassVar[str] = "ForSequenceClassification"
    pads_by_config: ClassVar[bool] = True

    def input_problems(self, data: Dataset) -> Iterator[Problem]:
        return data.text_problems("text")

    def count_truncated(self, data: Dataset, processors: Processors) -> int:
        return processors.count_longer(data.parts("text"))

    def inputs(self, rows: Sequence[Row], processors: Processors) -> Batch:
        return processors.tokenize([row["text"] for row in rows])
