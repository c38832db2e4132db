"""ImageClassification: one class for each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForImageClassification

from finetune_trainer.data import Batch, Dataset, RowProblem, Sample
from finetune_trainer.tasks.base import Processors
from finetune_trainer.tasks.classification import Classification


@dataclass(frozen=True)
class ImageClassification(Classification):
    """Classification of images."""

    auto_class: ClassVar[Any] = AutoModelForImageClassification
    required_roles: ClassVar[tuple[tuple[str, ...], ...]] = (("image", "label"),)
    head_suffix: ClassVar[str] = "ForImageClassification"
    uses_text: ClassVar[bool] = False
    uses_images: ClassVar[bool] = True

    def input_problems(self, data: Dataset) -> Iterator[RowProblem]:
        return data.invalid_images()

    def count_truncated(self, data: Dataset, processors: Processors) -> int:
        return 0

    def model_inputs(self, samples: Sequence[Sample], processors: Processors) -> Batch:
        return processors.process_images([sample["image"] for sample in samples])
