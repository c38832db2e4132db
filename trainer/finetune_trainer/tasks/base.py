"""The seam between the loop and what a model learns to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from transformers import PretrainedConfig

from finetune_trainer.data import Batch, Dataset, Row


@dataclass(frozen=True)
class Processors:
    """What turns rows into tensors; saved beside the model, so that it can be used as it was trained.

    Args:
        tokenizer: text to tokens.
        image_processor: images to pixels; None for a task without images.
        max_length: longest text in tokens; longer ones are truncated.
    """

    tokenizer: Any
    image_processor: Any
    max_length: int

    @property
    def members(self) -> list[Any]:
        return [processor for processor in (self.tokenizer, self.image_processor) if processor is not None]

    def tokenize(self, texts: Sequence[str]) -> Batch:
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return dict(encoded)

    def count_longer(self, texts: Sequence[str]) -> int:
        """How many of these are truncated."""
        distinct = Counter(texts)
        lengths = self.tokenizer(list(distinct), truncation=False, return_length=True, verbose=False)["length"]
        return sum(count for count, length in zip(distinct.values(), lengths, strict=True) if length > self.max_length)

    def pixels(self, images: Sequence[Any]) -> Batch:
        return {"pixel_values": self.image_processor(list(images), return_tensors="pt")["pixel_values"]}


class Task(ABC):
    """What a model learns to do."""

    auto_class: ClassVar[Any]
    """The transformers class that builds the model."""
    required: ClassVar[tuple[str, ...]]
    """Roles that the data must have a column for."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Roles that are used when there is a column for them."""

    @classmethod
    @abstractmethod
    def suits(cls, config: PretrainedConfig) -> bool:
        """Whether a model with this config obviously learns this."""

    @classmethod
    @abstractmethod
    def fit(cls, config: PretrainedConfig, train: Dataset) -> Self:
        """The task for this data; the config is changed where the data decides what is built."""

    @classmethod  # noqa: B027 - most tasks take any
    def check_batches(cls, batch_size: int, micro_batch_size: int) -> None:
        """Refuse batches that this task cannot be learned with."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the evaluation metrics."""

    @abstractmethod
    def check(self, data: Dataset) -> None:
        """Refuse, before the first step, data that would fail in the middle."""

    @abstractmethod
    def collate(self, rows: Sequence[Row], processors: Processors) -> Batch:
        """Make one micro-batch."""

    @abstractmethod
    def terms(self, batch: Batch) -> int:
        """Over how many terms the loss of this micro-batch is summed."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of this micro-batch, summed over its terms."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """All metrics over a whole data set."""
