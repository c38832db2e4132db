"""SequenceClassification: a text belongs to one of several classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from finetune_trainer.data import Batch, Dataset, Row
from finetune_trainer.errors import UserError
from finetune_trainer.tasks.base import Processors, Task


@dataclass(frozen=True)
class SequenceClassification(Task):
    """Cross-entropy over the classes.

    Args:
        classes: label to number.
    """

    classes: Mapping[Any, int]
    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    required: ClassVar[tuple[str, ...]] = ("text", "label")

    @classmethod
    def suits(cls, config: PretrainedConfig) -> bool:
        return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())

    @classmethod
    def fit(cls, config: PretrainedConfig, train: Dataset) -> Self:
        train.check_present("label")
        values = train.values("label")
        odd = [label for label in values if not isinstance(label, int | str)]
        if odd:
            column = f"{train.files.said}: column {train.names['label']!r}"
            raise UserError(f"{column}: expected a whole number or text, found {odd[0]!r}")
        labels = set(values)
        classes = _classes_of_head(config, labels) if cls.suits(config) else None
        if classes is None:
            classes = {label: number for number, label in enumerate(sorted(labels, key=lambda it: (str(type(it)), it)))}
            config.id2label = {number: str(label) for label, number in classes.items()}
            config.label2id = {str(label): number for label, number in classes.items()}
        if len(config.id2label or ()) < 2:
            raise UserError(
                f"{train.files.said}: column {train.names['label']!r} has one class only: {next(iter(labels))!r}"
            )
        config.problem_type = "single_label_classification"
        return cls(classes)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("eval/loss", "eval/accuracy")

    def check(self, data: Dataset) -> None:
        data.check_text()
        data.check_present("label")
        for index, label in enumerate(data.values("label")):
            if label not in self.classes:
                known = ", ".join(repr(name) for name in list(self.classes)[:8])
                raise data.complain("label", index, f"{label!r} is no class of the training set, which has {known}")

    def collate(self, rows: Sequence[Row], processors: Processors) -> Batch:
        batch = processors.tokenize([row["text"] for row in rows])
        batch["labels"] = torch.tensor([self.classes[row["label"]] for row in rows])
        return batch

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


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return logits.float()


def _classes_of_head(config: PretrainedConfig, labels: set[Any]) -> dict[Any, int] | None:
    """The classes that the model's own head knows already, if they are all the data has."""
    known: dict[Any, Any] = {**(config.label2id or {}), **{number: number for number in config.id2label or ()}}
    return {label: known[label] for label in labels} if labels <= known.keys() else None
