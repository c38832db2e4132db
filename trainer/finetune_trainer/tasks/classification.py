"""Common parts of text and image classification: the classes of a dataset, and whether a pretrained head has them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig

from finetune_api.suggestions import closest_match
from finetune_trainer.data import Batch, Dataset, RowProblem, Sample, merge_problems
from finetune_trainer.errors import UserError
from finetune_trainer.tasks.base import Example, Processors, Task
from finetune_trainer.tasks.metrics import ClassificationMetrics, Predictions

Label = int | str
MAX_SHOWN_CLASSES = 8


@dataclass(frozen=True)
class Classification(Task):
    """Single-label classification with cross-entropy.

    Args:
        label2id: class number by label, as in the dataset.
        new_head: the model has no classification head, or one for other classes.
    """

    label2id: Mapping[Label, int]
    new_head: bool = False
    head_suffix: ClassVar[str]
    """Suffix of the architectures that have a head for this task."""

    @classmethod
    def build(cls, config: PretrainedConfig, data: Dataset) -> Self:
        labels, class_names = _distinct_labels(data), data.class_names("label")
        has_head = any(name.endswith(cls.head_suffix) for name in config.architectures or ())
        pretrained = _match_head(config, labels, class_names) if has_head else None
        label2id = pretrained or _enumerate_classes(labels, class_names)
        if len(label2id) < 2:
            column = f"{data.origin.field_path}: column {data.column_names['label']!r}"
            raise UserError(f"{column} has only one class: {next(iter(label2id), None)!r}")
        if pretrained is None or (class_names and _has_default_names(config)):
            _set_class_names(config, class_names or [str(label) for label in label2id])
        config.problem_type = "single_label_classification"
        return cls(label2id, new_head=pretrained is None)

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("eval/loss", "eval/accuracy")

    def label_problems(self, data: Dataset) -> Iterator[RowProblem]:
        """Rows without a label, or with one that is no class of the training set."""
        return merge_problems(data.missing_values("label"), self._unknown_labels(data))

    def _unknown_labels(self, data: Dataset) -> Iterator[RowProblem]:
        for index, label in enumerate(data.values("label")):
            if label is not None and not (isinstance(label, Label) and label in self.label2id):
                yield RowProblem(index, "label", self._describe_unknown(label))

    @abstractmethod
    def encode_inputs(self, samples: Sequence[Sample], processors: Processors) -> Sequence[Example]:
        """The examples without labels."""

    @abstractmethod
    def collate_inputs(self, examples: Sequence[Example], processors: Processors) -> Batch:
        """The arguments of the model's forward pass, without labels."""

    def encode(self, samples: Sequence[Sample], processors: Processors) -> list[Example]:
        inputs = self.encode_inputs(samples, processors)
        labels = [self.label2id[sample["label"]] for sample in samples]
        return [{**example, "labels": label} for example, label in zip(inputs, labels, strict=True)]

    def collate(self, examples: Sequence[Example], processors: Processors) -> Batch:
        labels = torch.tensor([example["labels"] for example in examples])
        return {**self.collate_inputs(examples, processors), "labels": labels}

    def num_items(self, batch: Batch) -> int:
        return len(batch["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(_logits(model, batch), batch["labels"], reduction="sum")

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """`logits` in FP32, of shape (samples, classes)."""
        return {"logits": _logits(model, batch)}

    def metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics()

    def _describe_unknown(self, label: Any) -> str:
        names = [str(name) for name in self.label2id]
        closest = closest_match(str(label), names)
        hint = f"; did you mean {closest!r}?" if closest else ""
        shown = ", ".join(repr(name) for name in list(self.label2id)[:MAX_SHOWN_CLASSES])
        more = f" and {len(names) - MAX_SHOWN_CLASSES} more" if len(names) > MAX_SHOWN_CLASSES else ""
        return f"unknown class {label!r}; the training set has {shown}{more}{hint}"


def _distinct_labels(data: Dataset) -> list[Label]:
    """The distinct labels, integers before strings, each sorted."""
    values = [label for label in data.values("label") if label is not None]
    invalid = [label for label in values if not isinstance(label, Label)]
    if invalid:
        column = f"{data.origin.field_path}: column {data.column_names['label']!r}"
        raise UserError(f"{column}: expected an integer or a string, found {invalid[0]!r}")
    return sorted(set(values), key=lambda label: (isinstance(label, str), label))


def _enumerate_classes(labels: Sequence[Label], class_names: Sequence[str] | None) -> dict[Label, int]:
    """Class numbers for a new head. Class names define the numbers, also of classes without samples."""
    return {label: number for number, label in enumerate(range(len(class_names)) if class_names else labels)}


def _match_head(
    config: PretrainedConfig, labels: Sequence[Label], class_names: Sequence[str] | None
) -> dict[Label, int] | None:
    """Class numbers of the pretrained head, if it has the classes of the dataset; else None."""
    label2id = {str(name): int(number) for name, number in (config.label2id or {}).items()}
    numbers = range(len(config.id2label or ()))
    if class_names:
        if set(class_names) <= label2id.keys():
            return {label: label2id[name] for label, name in enumerate(class_names)}
        return dict(enumerate(numbers)) if _has_default_names(config) and len(class_names) == len(numbers) else None
    if all(isinstance(label, str) for label in labels):
        return dict(label2id.items()) if set(labels) <= label2id.keys() else None
    # Numbers without names have no meaning by themselves: the head must have exactly these.
    return dict(enumerate(numbers)) if set(labels) == set(numbers) else None


def _has_default_names(config: PretrainedConfig) -> bool:
    """Whether the classes have the names that transformers gives to classes without names."""
    return all(name == f"LABEL_{number}" for number, name in (config.id2label or {}).items())


def _set_class_names(config: PretrainedConfig, names: Sequence[str]) -> None:
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """The logits in FP32, of shape (samples, classes)."""
    logits: Tensor = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return logits.float()
