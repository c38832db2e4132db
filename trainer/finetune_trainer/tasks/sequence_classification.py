"""SequenceClassification: one class for each text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForSequenceClassification

from finetune_trainer.data import Batch, Dataset, Sample, merge_problems
from finetune_trainer.tasks.base import Example, Processors, index_text_column
from finetune_trainer.tasks.classification import Classification
from finetune_trainer.tasks.index import ExampleIndex


@dataclass(frozen=True)
class SequenceClassification(Classification):
    """Classification of texts."""

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    required_roles: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"),)
    head_suffix: ClassVar[str] = "ForSequenceClassification"
    uses_config_pad_token: ClassVar[bool] = True
    uses_tokenizer_padding: ClassVar[bool] = True

    def index(self, data: Dataset, processors: Processors) -> ExampleIndex:
        problems = merge_problems(data.invalid_texts("text"), self.label_problems(data))
        return index_text_column(data, processors, list(problems))

    def encode_inputs(self, samples: Sequence[Sample], processors: Processors) -> Sequence[Example]:
        return processors.encode_texts([sample["text"] for sample in samples])

    def collate_inputs(self, examples: Sequence[Example], processors: Processors) -> Batch:
        return processors.pad(examples)
