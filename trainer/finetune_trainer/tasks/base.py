"""The interface between the training loop and a task: the columns it reads, its loss and its metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn
from transformers import PretrainedConfig

from finetune_trainer.data import Batch, Dataset, RowProblem, Sample
from finetune_trainer.tasks.metrics import Predictions, TaskMetrics


@dataclass(frozen=True)
class Processors:
    """The processors of a model; saved with it, so that inference processes inputs as training did.

    Args:
        tokenizer: None for a task without text.
        image_processor: None for a task without images.
        max_length: maximum number of tokens of a text; longer texts are truncated. None for a task without text.
        padding: `longest` pads to the longest text of a batch; `max_length` for models that were pretrained this way.
    """

    tokenizer: Any
    image_processor: Any
    max_length: int | None
    padding: Literal["longest", "max_length"] = "longest"

    @property
    def max_tokens(self) -> int:
        """`max_length`, for a task with text."""
        assert self.max_length is not None, "a task with text has a maximum length"
        return self.max_length

    @property
    def members(self) -> list[Any]:
        return [processor for processor in (self.tokenizer, self.image_processor) if processor is not None]

    def tokenize(self, texts: Sequence[str]) -> Batch:
        """Tokenize, truncate and pad texts: tensors of shape (texts, tokens)."""
        encoded = self.tokenizer(
            list(texts),
            padding=self.padding,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=True,  # even if the tokenizer was saved without it: padding must not be read
            return_tensors="pt",
        )
        return dict(encoded)

    def count_truncated(self, chunks: Iterable[Sequence[str]]) -> int:
        """Number of texts that are truncated. One chunk is tokenized at a time."""
        return sum(map(self._count_truncated, chunks))

    def _count_truncated(self, texts: Sequence[str]) -> int:
        distinct = Counter(texts)
        lengths = self.tokenizer(list(distinct), truncation=False, return_length=True, verbose=False)["length"]
        return sum(count for count, length in zip(distinct.values(), lengths, strict=True) if length > self.max_tokens)

    def process_images(self, images: Sequence[Any]) -> Batch:
        """Resize and normalize images: `pixel_values` of shape (images, channels, height, width)."""
        return dict(self.image_processor(list(images), return_tensors="pt"))


class Task(ABC):
    """What a model is trained for."""

    auto_class: ClassVar[Any]
    """The transformers auto class that builds the model."""
    required_roles: ClassVar[tuple[tuple[str, ...], ...]]
    """Alternative sets of roles; the first one whose columns all exist is used."""
    optional_roles: ClassVar[tuple[str, ...]] = ()
    """Roles that are used if they have a column."""
    uses_text: ClassVar[bool] = True
    """Whether the task needs a tokenizer."""
    uses_images: ClassVar[bool] = False
    """Whether the task needs an image processor."""
    uses_config_pad_token: ClassVar[bool] = False
    """Whether the model finds the last token of a text by its config's `pad_token_id`."""
    uses_tokenizer_padding: ClassVar[bool] = False
    """Whether the tokenizer pads the texts of a batch; else the task does."""
    row_predictions: ClassVar[tuple[str, ...]]
    """The predictions that belong to one row or token each, and must not depend on the other rows of a batch."""
    new_head_reason: str = ""
    """Why the head is reinitialized: the model has none for these classes. Empty for a head that is kept."""
    notes: tuple[str, ...] = ()
    """How the data was fitted to the model, for the user."""

    @property
    def new_head(self) -> bool:
        """Whether the head is reinitialized."""
        return bool(self.new_head_reason)

    @classmethod  # noqa: B027 - most tasks read nothing else from the config
    def check_config(cls, config: PretrainedConfig, declared: Mapping[str, Any]) -> None:
        """Check what `config.json` declares, and restore what transformers dropped while loading it.

        Args:
            config: the loaded config; updated.
            declared: the fields of `config.json`.

        Raises:
            UserError: the fields contradict each other.
        """

    @classmethod
    @abstractmethod
    def build(cls, config: PretrainedConfig, data: Dataset) -> Self:
        """The task for a model and a dataset.

        Args:
            config: the model's config; updated where the dataset determines the architecture, such as its classes.
            data: all rows of `data.train`, including held-out ones: a rare class may occur only there.

        Raises:
            UserError: the model or the dataset does not fit the task.
        """

    @classmethod  # noqa: B027 - most tasks accept any sizes
    def check_batch_size(cls, batch_size: int, micro_batch_size: int) -> None:
        """Reject batch sizes that change the loss.

        Raises:
            UserError: the loss of micro-batches does not add up to the loss of the batch.
        """

    @property
    @abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """Names of the evaluation metrics, each with the prefix `eval/`."""

    @abstractmethod
    def find_problems(self, data: Dataset, processors: Processors) -> Iterator[RowProblem]:
        """Rows that would fail during training, or that have nothing to train on.

        Raises:
            UserError: a whole column, or the model, does not fit the task.
        """

    @abstractmethod
    def count_truncated(self, data: Dataset, processors: Processors) -> int:
        """Number of rows that are truncated to `max_length`."""

    @abstractmethod
    def collate(self, samples: Sequence[Sample], processors: Processors) -> Batch:
        """Make a micro-batch."""

    @abstractmethod
    def num_items(self, batch: Batch) -> int:
        """Number of items (samples or tokens) that the loss of a micro-batch sums over."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a micro-batch, summed over its items; a scalar."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """What the metrics need of a micro-batch, on the device, without gradients."""

    @abstractmethod
    def metrics(self) -> TaskMetrics:
        """A new state of the metrics, without samples."""

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """All metrics over the batches, by name. The device is read once, at the end."""
        metrics = self.metrics()
        for batch in batches:
            metrics.update(self.predict(model, batch), batch)
        return metrics.compute()
