"""SequenceClassification: one class for each text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForSequenceClassification

from finetune_trainer.data import Batch, Dataset, RowProblem, Sample
from finetune_trainer.tasks.base import Processors
from finetune_trainer.tasks.classification import Classification


@dataclass(frozen=True)
class SequenceClassification(Classification):
    """Classification of texts."""

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    required_roles: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"),)
    head_suffix: ClassVar[str] = "ForSequenceClassification"
    uses_config_pad_token: ClassVar[bool] = True
    uses_tokenizer_padding: ClassVar[bool] = True

    def input_problems(self, data: Dataset) -> Iterator[RowProblem]:
        return data.invalid_texts("text")

    def count_truncated(self, data: Dataset, processors: Processors) -> int:
        return processors.count_truncated(data.iter_chunks("text"))

    def model_inputs(self, samples: Sequence[Sample], processors: Processors) -> Batch:
        return processors.tokenize([sample["text"] for sample in samples])
