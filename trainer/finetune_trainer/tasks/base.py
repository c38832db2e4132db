"""The interface between the training loop and a task: the columns it reads, its loss and its metrics."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from finetune_api.data import Columns
from finetune_trainer.data import Batch, Dataset, RowProblem, Sample
from finetune_trainer.data.images import MODES
from finetune_trainer.tasks.index import ExampleIndex
from finetune_trainer.tasks.metrics import Predictions, TaskMetrics
from finetune_trainer.tasks.tokenizer import encode_ids, tokenizer_fingerprint, unchanged

Example = Mapping[str, Any]
"""One encoded sample: tokenized and truncated, but not padded; values by name."""


@dataclass(frozen=True)
class Processors:
    """The processors of a model; saved with it, so that inference processes inputs as training did.

    Args:
        tokenizer: None for a task without text.
        image_processor: None for a task without images.
        max_length: maximum number of tokens of a text; longer texts are truncated. None for a task without text.
        padding: `longest` pads to the longest text of a batch; `max_length` for models that were pretrained this way.
        num_channels: number of channels of the images: 1 (grey) or 3 (RGB).
    """

    tokenizer: Any
    image_processor: Any
    max_length: int | None
    padding: Literal["longest", "max_length"] = "longest"
    num_channels: int = 3

    @property
    def max_tokens(self) -> int:
        """`max_length`, for a task with text."""
        assert self.max_length is not None, "a task with text has a maximum length"
        return self.max_length

    @property
    def members(self) -> list[Any]:
        return [processor for processor in (self.tokenizer, self.image_processor) if processor is not None]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that determines the encoded examples."""
        tokenizer = tokenizer_fingerprint(self.tokenizer) if self.tokenizer else None
        images = self.image_processor.to_json_string() if self.image_processor else None
        return hashlib.sha256(repr((tokenizer, images, self.max_length, self.padding)).encode()).hexdigest()

    def encode_texts(self, texts: Sequence[str]) -> list[Example]:
        """Tokenize and truncate texts."""
        with unchanged(self.tokenizer):
            encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)
        return [{name: values[number] for name, values in encoded.items()} for number in range(len(texts))]

    def pad(self, examples: Sequence[Example]) -> Batch:
        """Pad tokenized texts: tensors of shape (texts, tokens)."""
        names = [name for name in self.tokenizer.model_input_names if name in examples[0]]
        texts = {name: [example[name] for example in examples] for name in names}
        self.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True  # does not apply: see encode
        padded = self.tokenizer.pad(
            texts,
            padding=self.padding,
            max_length=self.max_length,
            return_attention_mask=True,  # even if the tokenizer was saved without it: padding must not be read
            return_tensors="pt",
        )
        return dict(padded)

    def tokenize(self, texts: Sequence[str]) -> Batch:
        """Tokenize, truncate and pad texts: tensors of shape (texts, tokens)."""
        return self.pad(self.encode_texts(texts))

    def index_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Number of tokens before truncation, and largest token id after it, of each text; -1 without tokens.

        Equal texts are tokenized once.
        """
        distinct = list(dict.fromkeys(texts))
        ids = dict(zip(distinct, encode_ids(self.tokenizer, distinct), strict=True))
        lengths = [len(ids[text]) for text in texts]
        largest = {text: max(row[: self.max_length], default=-1) for text, row in ids.items()}
        return np.array(lengths, np.int32), np.array([largest[text] for text in texts], np.int32)

    def save_pretrained(self, folder: Path) -> None:
        """Save the processors as they were loaded."""
        for processor in self.members:
            processor.save_pretrained(folder)

    def encode_images(self, images: Sequence[Any]) -> list[Example]:
        """Resize and normalize images: for each `pixel_values` of shape (channels, height, width)."""
        converted = [image.convert(MODES[self.num_channels]) for image in images]
        processed = self.image_processor(converted, return_tensors="pt")
        names = [name for name in self.image_processor.model_input_names if name in processed]
        return [{name: processed[name][number] for name in names} for number in range(len(images))]

    def stack_images(self, examples: Sequence[Example]) -> Batch:
        """`pixel_values` of shape (images, channels, height, width)."""
        names = [name for name in self.image_processor.model_input_names if name in examples[0]]
        return {name: torch.stack([example[name] for example in examples]) for name in names}


class Task(ABC):
    """What a model is trained for."""

    auto_class: ClassVar[Any]
    """The transformers auto class that builds the model."""
    required_roles: ClassVar[tuple[tuple[str, ...], ...]]
    """Alternative sets of roles; the first one whose columns all exist is used."""
    optional_roles: ClassVar[tuple[str, ...]] = ()
    """Roles that are used if they have a column."""
    nullable_roles: ClassVar[tuple[str, ...]] = ()
    """Roles whose value may be missing in a row."""
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

    @classmethod
    @abstractmethod
    def build(cls, config: PretrainedConfig, data: Dataset, declared: Mapping[str, Any] | None = None) -> Self:
        """The task for a model and a dataset.

        Args:
            config: the model's config; updated where the dataset determines the architecture, such as its classes.
            data: all rows of `data.train`, including held-out ones: a rare class may occur only there.
            declared: the fields of `config.json`; a loaded config lacks what transformers dropped.

        Raises:
            UserError: the model or the dataset does not fit the task.
        """

    @classmethod  # noqa: B027 - most tasks ignore the other columns
    def check_columns(cls, available: Collection[str], columns: Columns, field_path: str) -> None:
        """Reject columns that would change what is learned if the task used them.

        Args:
            available: the columns of the dataset.
            columns: `data.columns` of the manifest.
            field_path: field of the manifest that names the dataset.

        Raises:
            UserError: there is such a column.
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

    def check_processors(self, processors: Processors) -> None:  # noqa: B027 - most tasks accept any
        """Reject processors that the task cannot use.

        Raises:
            UserError: they lack something.
        """

    def encoding_notes(self, processors: Processors) -> Iterator[str]:
        """What a user should know about how examples are made."""
        yield from ()

    @abstractmethod
    def index(self, data: Dataset, processors: Processors) -> ExampleIndex:
        """Size and problems of each example. The task's images are checked elsewhere.

        Args:
            data: some rows of a dataset.
            processors: the model's processors.

        Raises:
            UserError: a whole column does not fit the task.
        """

    @abstractmethod
    def encode(self, samples: Sequence[Sample], processors: Processors) -> list[Example]:
        """Encode samples, several at once because tokenizers are faster that way."""

    @abstractmethod
    def collate(self, examples: Sequence[Example], processors: Processors) -> Batch:
        """Make a micro-batch: pad the examples to the same length."""

    def make_batch(self, samples: Sequence[Sample], processors: Processors) -> Batch:
        """Encode samples, and make a micro-batch of them."""
        return self.collate(self.encode(samples, processors), processors)

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


def index_text_column(data: Dataset, processors: Processors, problems: Sequence[RowProblem]) -> ExampleIndex:
    """The index of examples with the text of role `text`, and one item each."""
    bad = {problem.index for problem in problems}
    good = np.array([row for row in range(len(data)) if row not in bad], np.int64)
    texts = data.values("text")
    lengths, num_items = np.zeros(len(data), np.int32), np.zeros(len(data), np.int32)
    max_token_ids = np.full(len(data), -1, np.int32)
    num_items[good] = 1
    lengths[good], max_token_ids[good] = processors.index_texts([texts[row] for row in good])
    return ExampleIndex(lengths, num_items, max_token_ids, tuple(problems))
