"""SequenceClassification: one class for each text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from transformers import AutoModelForSequenceClassification, PretrainedConfig

from finetune_trainer.data import Batch, Dataset, Sample, merge_problems
from finetune_trainer.tasks.base import Example, Processors, index_text_column
from finetune_trainer.tasks.classification import Classification
from finetune_trainer.tasks.index import ExampleIndex
from finetune_trainer.tasks.pooled_token import check_adds_token, pooled_token_id, texts_with_token


@dataclass(frozen=True)
class SequenceClassification(Classification):
    """Classification of texts.

    Args:
        pooled_token_id: id of the token that the model reads a text at; None for other models.
    """

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    required_roles: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"),)
    head_suffix: ClassVar[str] = "ForSequenceClassification"
    uses_config_pad_token: ClassVar[bool] = True
    uses_tokenizer_padding: ClassVar[bool] = True

    pooled_token_id: int | None = None

    @classmethod
    def build(cls, config: PretrainedConfig, data: Dataset, declared: Mapping[str, Any] | None = None) -> Self:
        return replace(super().build(config, data, declared), pooled_token_id=pooled_token_id(config))

    def check_processors(self, processors: Processors) -> None:
        if self.pooled_token_id is not None:
            check_adds_token(processors.tokenizer, self.pooled_token_id)

    def index(self, data: Dataset, processors: Processors) -> ExampleIndex:
        problems = [data.invalid_texts("text"), self.label_problems(data)]
        if self.pooled_token_id is not None:
            problems.append(texts_with_token(data, processors, self.pooled_token_id))
        return index_text_column(data, processors, list(merge_problems(*problems)))

    def encode_inputs(self, samples: Sequence[Sample], processors: Processors) -> Sequence[Example]:
        return processors.encode_texts([sample["text"] for sample in samples])

    def collate_inputs(self, examples: Sequence[Example], processors: Processors) -> Batch:
        return processors.pad(examples)
