"""Common parts of text and image classification: the classes of a dataset, and whether a pretrained head has them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig

from finetune_api.suggestions import closest_match
from finetune_trainer.data import Batch, Dataset, RowProblem, Sample, merge_problems
from finetune_trainer.errors import UserError
from finetune_trainer.formatting import join_some
from finetune_trainer.tasks.base import Example, Processors, Task
from finetune_trainer.tasks.classes import HeadClasses, Label, LabelMatch, fold, match_labels, read_head
from finetune_trainer.tasks.metrics import ClassificationMetrics, Predictions

MAX_SHOWN_CLASSES = 8


@dataclass(frozen=True)
class Classification(Task):
    """Single-label classification with cross-entropy.

    Args:
        label2id: class number by label, as in the dataset.
        new_head_reason: why the head is reinitialized; empty for a head that is kept.
        notes: how the labels were matched with the classes of the head, for the user.
    """

    label2id: Mapping[Label, int]
    new_head_reason: str = ""
    notes: tuple[str, ...] = ()
    row_predictions: ClassVar[tuple[str, ...]] = ("logits",)
    head_suffix: ClassVar[str]
    """Suffix of the architectures that have a head for this task."""

    @classmethod
    def build(cls, config: PretrainedConfig, data: Dataset, declared: Mapping[str, Any] | None = None) -> Self:
        labels, class_names = _distinct_labels(data), data.class_names("label")
        head = read_head(config, declared)
        reason, match = cls._match_head(config, head, labels, class_names)
        label2id = match.label2id if match else _enumerate_classes(labels, class_names)
        if len(label2id) < 2:
            raise UserError(f"{_describe_column(data)} has only one class: {next(iter(label2id), None)!r}")
        notes = _describe_similar(labels)
        if match is None:
            _set_class_names(config, class_names or _unique_names(data, label2id))
        else:
            notes += [match.note] if match.note else []
            notes += _keep_head(config, head, match, class_names)
        config.problem_type = "single_label_classification"
        return cls(label2id, reason, tuple(notes))

    @classmethod
    def _has_head(cls, config: PretrainedConfig) -> bool:
        """Whether the config is that of a model with a head for this task; without architectures, it may be."""
        return not config.architectures or any(name.endswith(cls.head_suffix) for name in config.architectures)

    @classmethod
    def _match_head(
        cls, config: PretrainedConfig, head: HeadClasses, labels: Sequence[Label], class_names: Sequence[str] | None
    ) -> tuple[str, LabelMatch | None]:
        """Why the head is reinitialized, or how its classes match the labels."""
        if not cls._has_head(config):
            return f"the model was not trained for this task ({', '.join(config.architectures or ())})", None
        if config.problem_type == "regression" or config.num_labels == 1:
            return "the head of the model is for regression", None
        if not config.architectures and not head.are_named:
            return "config.json has neither architectures nor names of classes, by which a head is recognized", None
        if match := match_labels(head, labels, class_names):
            return "", match
        return _describe_mismatch(head, class_names or labels), None

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("eval/loss", "eval/accuracy")

    def label_problems(self, data: Dataset) -> Iterator[RowProblem]:
        """Rows without a label, or with one that is no class of the training set."""
        return merge_problems(data.missing_values("label"), self._unknown_labels(data))

    def _unknown_labels(self, data: Dataset) -> Iterator[RowProblem]:
        for index, label in enumerate(data.values("label")):
            if label is not None and not (isinstance(label, Label | float) and label in self.label2id):
                yield RowProblem(index, "label", self._describe_unknown(label, data.class_names("label") or ()))

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

    def _describe_unknown(self, label: Any, class_names: Sequence[str]) -> str:
        """Why a label is unknown. Numbers of named classes are shown as their names."""
        names: dict[Any, str] = dict(enumerate(class_names))
        known = [names.get(label, label) for label in self.label2id]
        found = label if isinstance(label, dict | list) else names.get(label, label)
        closest = closest_match(str(found), [str(name) for name in known])
        hint = f"; did you mean {closest!r}?" if closest else ""
        shown = ", ".join(map(repr, known[:MAX_SHOWN_CLASSES]))
        more = f" and {len(known) - MAX_SHOWN_CLASSES} more" if len(known) > MAX_SHOWN_CLASSES else ""
        return f"unknown class {found!r}; the training set has {shown}{more}{hint}"


def _distinct_labels(data: Dataset) -> list[Label]:
    """The distinct labels, integers before strings, each sorted. Whole floats are integers; NaN is no label."""
    values = [label for label in data.values("label") if label is not None and label == label]  # noqa: PLR0124
    integers = (int(label) if isinstance(label, float) and label.is_integer() else label for label in values)
    labels: set[Label] = set()
    for label in integers:
        if not isinstance(label, Label):
            raise UserError(f"{_describe_column(data)}: expected an integer or a string, found {label!r}")
        labels.add(label)
    if {bool, int} <= set(map(type, values)):  # Python treats True and 1 as equal
        raise UserError(f"{_describe_column(data)}: expected labels of one type, found booleans and integers")
    return sorted(labels, key=lambda label: (isinstance(label, str), label))


def _describe_column(data: Dataset) -> str:
    return f"{data.origin.field_path}: column {data.column_names['label']!r}"


def _enumerate_classes(labels: Sequence[Label], class_names: Sequence[str] | None) -> dict[Label, int]:
    """Class numbers for a new head. Class names define the numbers, also of classes without samples."""
    return {label: number for number, label in enumerate(range(len(class_names)) if class_names else labels)}


def _unique_names(data: Dataset, labels: Iterable[Label]) -> list[str]:
    """The names of the classes of a new head.

    Raises:
        UserError: two labels have the same name.
    """
    by_name: dict[str, Label] = {}
    for label in labels:
        if str(label) in by_name:
            raise UserError(
                f"{_describe_column(data)}: {by_name[str(label)]!r} and {label!r} are classes with the same name; "
                "write all labels as integers, or all as strings"
            )
        by_name[str(label)] = label
    return list(by_name)


def _describe_similar(labels: Sequence[Label]) -> list[str]:
    """A note about labels that are probably one class."""
    by_name: dict[str, list[str]] = {}
    for label in labels:
        by_name.setdefault(fold(str(label)), []).append(repr(label))
    similar = [" and ".join(group) for group in by_name.values() if len(group) > 1]
    return [f"labels that differ only in case or spaces are different classes: {join_some(similar)}"] if similar else []


def _describe_mismatch(head: HeadClasses, labels: Sequence[Label]) -> str:
    """Why a head cannot be kept for these labels."""
    if head.are_named or len(labels) != len(head.names):
        return "the classes of the model are not those of the data"
    if all(isinstance(label, str) for label in labels):
        return "the classes of the model have no names, so they cannot be matched with those of the data"
    shown = join_some([str(label) for label in labels])
    return f"the labels of the data ({shown}) are not the class numbers of the model (0 to {len(head.names) - 1})"


def _keep_head(
    config: PretrainedConfig, head: HeadClasses, match: LabelMatch, class_names: Sequence[str] | None
) -> list[str]:
    """Write consistent names of the classes of a kept head into the config; return what to tell the user."""
    names = list(head.names)
    if class_names is not None and not head.are_named:
        for label, number in match.label2id.items():
            names[number] = class_names[int(label)]
    _set_class_names(config, names)
    if config.problem_type == "multi_label_classification":
        return ["the model was trained with several classes per sample (problem_type), and is trained here with one"]
    return []


def _set_class_names(config: PretrainedConfig, names: Sequence[str]) -> None:
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """The logits in FP32, of shape (samples, classes)."""
    logits: Tensor = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return logits.float()
