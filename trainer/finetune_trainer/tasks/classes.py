"""What classifying texts and images have in common: which classes there are, and whether the model knows them."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig

from finetune_trainer.data import Batch, Dataset, RowProblem, Sample, merge_problems
from finetune_trainer.errors import UserError
from finetune_trainer.tasks.base import Processors, Task

Label = int | str


@dataclass(frozen=True)
class Classification(Task):
    """Cross-entropy over classes.

    Args:
        classes: label to number.
        new_head: the model has no head, or one that tells other classes apart.
    """

    classes: Mapping[Label, int]
    new_head: bool = False
    head: ClassVar[str]
    """How the names of architectures with a head for this task end."""

    @classmethod
    def fit(cls, config: PretrainedConfig, data: Dataset) -> Self:
        labels, names = _labels(data), data.class_names("label")
        has_head = any(name.endswith(cls.head) for name in config.architectures or ())
        kept = _classes_of_head(config, labels, names) if has_head else None
        classes = kept or _numbered(labels, names)
        if len(classes) < 2:
            column = f"{data.origin.field_path}: column {data.column_names['label']!r}"
            raise UserError(f"{column} has one class only: {next(iter(classes), None)!r}")
        if kept is None or (names and _is_nameless(config)):
            _name_classes(config, names or [str(label) for label in classes])
        config.problem_type = "single_label_classification"
        return cls(classes, new_head=kept is None)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("eval/loss", "eval/accuracy")

    def problems(self, data: Dataset, processors: Processors) -> Iterator[RowProblem]:
        return merge_problems(self.input_problems(data), data.missing_values("label"), self._unknown_labels(data))

    def _unknown_labels(self, data: Dataset) -> Iterator[RowProblem]:
        for index, label in enumerate(data.values("label")):
            if label is not None and not (isinstance(label, Label) and label in self.classes):
                yield RowProblem(index, "label", self._unknown(label))

    @abstractmethod
    def input_problems(self, data: Dataset) -> Iterator[RowProblem]:
        """What is wrong with what is classified."""

    @abstractmethod
    def inputs(self, rows: Sequence[Sample], processors: Processors) -> Batch:
        """What the model takes."""

    def collate(self, rows: Sequence[Sample], processors: Processors) -> Batch:
        return {
            **self.inputs(rows, processors),
            "labels": torch.tensor([self.classes[row["label"]] for row in rows]),
        }

    def terms(self, batch: Batch) -> int:
        return len(batch["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(_logits(model, batch), batch["labels"], reduction="sum")

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        loss, right, count = 0.0, 0, 0
        for batch in batches:
            logits = _logits(model, batch)
            loss += float(cross_entropy(logits, batch["labels"], reduction="sum"))
            right += int((logits.argmax(dim=1) == batch["labels"]).sum())
            count += len(batch["labels"])
        return {"eval/loss": loss / count, "eval/accuracy": right / count}

    def _unknown(self, label: Any) -> str:
        known = [str(name) for name in self.classes]
        near = difflib.get_close_matches(str(label), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(repr(name) for name in list(self.classes)[:8])
        more = f" and {len(known) - 8} more" if len(known) > 8 else ""
        return f"{label!r} is no class of the training set, which has {shown}{more}{hint}"


def _labels(data: Dataset) -> list[Label]:
    """The distinct labels, in order."""
    values = [label for label in data.values("label") if label is not None]
    odd = [label for label in values if not isinstance(label, Label)]
    if odd:
        column = f"{data.origin.field_path}: column {data.column_names['label']!r}"
        raise UserError(f"{column}: expected a whole number or text, found {odd[0]!r}")
    return sorted(set(values), key=lambda label: (isinstance(label, str), label))


def _numbered(labels: Sequence[Label], names: Sequence[str] | None) -> dict[Label, int]:
    """Classes of a new head; names number them already, those without a sample too."""
    return {label: number for number, label in enumerate(range(len(names)) if names else labels)}


def _classes_of_head(
    config: PretrainedConfig, labels: Sequence[Label], names: Sequence[str] | None
) -> dict[Label, int] | None:
    """The classes that the model's own head tells apart, if the data's are among them."""
    known = {str(name): int(number) for name, number in (config.label2id or {}).items()}
    numbers = range(len(config.id2label or ()))
    if names:
        if set(names) <= known.keys():
            return {label: known[name] for label, name in enumerate(names)}
        return dict(enumerate(numbers)) if _is_nameless(config) and len(names) == len(numbers) else None
    if all(isinstance(label, str) for label in labels):
        return dict(known.items()) if set(labels) <= known.keys() else None
    # Bare numbers say nothing about their meaning: only a head with just as many classes is taken for the same.
    return dict(enumerate(numbers)) if set(labels) == set(numbers) else None


def _is_nameless(config: PretrainedConfig) -> bool:
    """Whether the head has the names that transformers gives to classes without."""
    return all(name == f"LABEL_{number}" for number, name in (config.id2label or {}).items())


def _name_classes(config: PretrainedConfig, names: Sequence[str]) -> None:
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return logits.float()
