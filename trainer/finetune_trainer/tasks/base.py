"""The seam between the loop and what a model learns to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn
from transformers import PretrainedConfig

from finetune_trainer.data import Batch, Dataset, RowProblem, Sample


@dataclass(frozen=True)
class Processors:
    """What turns rows into tensors; saved beside the model, so that it can be used as it was trained.

    Args:
        tokenizer: text to tokens; None for a task without text.
        image_processor: images to pixels; None for a task without images.
        max_length: longest text in tokens; longer ones are truncated. None for a task without text.
        padding: `longest` pads to the longest text of a batch; `max_length` for models that were trained so.
    """

    tokenizer: Any
    image_processor: Any
    max_length: int | None
    padding: Literal["longest", "max_length"] = "longest"

    @property
    def longest(self) -> int:
        """Longest text in tokens, where there are texts."""
        assert self.max_length is not None, "a task with text has a longest one"
        return self.max_length

    @property
    def members(self) -> list[Any]:
        return [processor for processor in (self.tokenizer, self.image_processor) if processor is not None]

    def tokenize(self, texts: Sequence[str]) -> Batch:
        encoded = self.tokenizer(
            list(texts), padding=self.padding, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return dict(encoded)

    def count_longer(self, parts: Iterable[Sequence[str]]) -> int:
        """How many of these are truncated; some are tokenized at a time."""
        return sum(map(self._count_longer, parts))

    def _count_longer(self, texts: Sequence[str]) -> int:
        distinct = Counter(texts)
        lengths = self.tokenizer(list(distinct), truncation=False, return_length=True, verbose=False)["length"]
        return sum(count for count, length in zip(distinct.values(), lengths, strict=True) if length > self.longest)

    def pixels(self, images: Sequence[Any]) -> Batch:
        return dict(self.image_processor(list(images), return_tensors="pt"))


class Task(ABC):
    """What a model learns to do."""

    auto_class: ClassVar[Any]
    """The transformers class that builds the model."""
    needs: ClassVar[tuple[tuple[str, ...], ...]]
    """Roles that the data must have columns for; of several alternatives the first whose columns are all there."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Roles that are used when there is a column for them."""
    reads_text: ClassVar[bool] = True
    """Whether it needs a tokenizer."""
    reads_images: ClassVar[bool] = False
    """Whether it needs an image processor."""
    pads_by_config: ClassVar[bool] = False
    """Whether the model finds the end of a text by its config's `pad_token_id`."""
    new_head: bool = False
    """Whether the head is begun anew: the model has none for these data, or one that means something else."""

    @classmethod
    @abstractmethod
    def fit(cls, config: PretrainedConfig, data: Dataset) -> Self:
        """The task for this data; the config is changed where the data decides what is built.

        Args:
            config: the model's.
            data: what is learned from, with what is held out of it: a class may be rare enough to be in there only.
        """

    @classmethod  # noqa: B027 - most tasks take any
    def check_batches(cls, batch_size: int, micro_batch_size: int) -> None:
        """Refuse batches that this task cannot be learned with."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the evaluation metrics."""

    @abstractmethod
    def problems(self, data: Dataset, processors: Processors) -> Iterator[RowProblem]:
        """Rows that would fail in the middle of the run, or teach nothing.

        Raises:
            UserError: a whole column, or the model, is not what this task needs.
        """

    @abstractmethod
    def count_truncated(self, data: Dataset, processors: Processors) -> int:
        """How many rows are longer than the model takes."""

    @abstractmethod
    def collate(self, rows: Sequence[Sample], processors: Processors) -> Batch:
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
