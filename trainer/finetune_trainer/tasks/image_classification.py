"""ImageClassification: an image belongs to one of several classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForImageClassification

from finetune_trainer.data import Batch, Dataset, RowProblem, Sample
from finetune_trainer.tasks.base import Processors
from finetune_trainer.tasks.classes import Classification


@dataclass(frozen=True)
class ImageClassification(Classification):
    """Classes of images."""

    auto_class: ClassVar[Any] = AutoModelForImageClassification
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("image", "label"),)
    head: ClassVar[str] = "ForImageClassification"
    reads_text: ClassVar[bool] = False
    reads_images: ClassVar[bool] = True

    def input_problems(self, data: Dataset) -> Iterator[RowProblem]:
        return data.invalid_images()

    def count_truncated(self, data: Dataset, processors: Processors) -> int:
        return 0

    def inputs(self, rows: Sequence[Sample], processors: Processors) -> Batch:
        return processors.pixels([row["image"] for row in rows])
