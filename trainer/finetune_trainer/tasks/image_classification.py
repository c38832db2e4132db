"""ImageClassification: one class for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForImageClassification

from finetune_trainer.data import Batch, Dataset, Sample
from finetune_trainer.tasks.base import Example, Processors
from finetune_trainer.tasks.classification import Classification
from finetune_trainer.tasks.index import ExampleIndex


@dataclass(frozen=True)
class ImageClassification(Classification):
    """Classification of images."""

    auto_class: ClassVar[Any] = AutoModelForImageClassification
    required_roles: ClassVar[tuple[tuple[str, ...], ...]] = (("image", "label"),)
    head_suffix: ClassVar[str] = "ForImageClassification"
    uses_text: ClassVar[bool] = False
    uses_images: ClassVar[bool] = True

    def index(self, data: Dataset, processors: Processors) -> ExampleIndex:
        return ExampleIndex.without_text(len(data), list(self.label_problems(data)))

    def encode_inputs(self, samples: Sequence[Sample], processors: Processors) -> Sequence[Example]:
        return processors.encode_images([sample["image"] for sample in samples])

    def collate_inputs(self, examples: Sequence[Example], processors: Processors) -> Batch:
        return processors.stack_images(examples)
