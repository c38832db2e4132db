"""CausalLM: a text goes on, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, PretrainedConfig

from finetune_trainer.data import Batch, Dataset, RowProblem, Sample, merge_problems
from finetune_trainer.errors import UserError
from finetune_trainer.tasks.base import Processors, Task
from finetune_trainer.tasks.detection import obvious
from finetune_trainer.tasks.passages import (
    Passage,
    Tokens,
    Unlearnable,
    check_tokenizer,
    completed,
    conversation,
    encode,
)

ALWAYS_DECODERS = ("gpt_neox", "gpt_neox_japanese")
"""Models that read from left to right whatever their config says of `is_decoder`; by default it says false."""
POSITIONS = 1024
"""Tokens judged at once in an evaluation: a copy of all logits in float32 may not fit beside them."""


@dataclass(frozen=True)
class CausalLM(Task):
    """Cross-entropy over the next token, where it is to be learned.

    The loss is normalized over what is learned in the whole batch, so micro-batches change nothing. Which logits are
    judged is decided where batches are made: a mask on the device would make every micro-batch wait for it.

    Args:
        reads: the roles that hold the text.
    """

    reads: tuple[str, ...]
    auto_class: ClassVar[Any] = AutoModelForCausalLM
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("messages",), ("prompt", "completion"), ("text",))

    @classmethod
    def fit(cls, config: PretrainedConfig, data: Dataset) -> Self:
        if obvious(config) == "ImageTextToText":
            raise UserError(
                f"task: not yet supported: CausalLM with a model that sees images (model.source is a "
                f"{config.model_type}); take one that has text alone"
            )
        if not getattr(config, "is_decoder", True) and config.model_type not in ALWAYS_DECODERS:
            raise UserError(
                f"task: CausalLM needs a model that reads from left to right, but model.source is a "
                f"{config.model_type} whose config says is_decoder: false"
            )
        return cls(next(roles for roles in cls.needs if set(roles) <= set(data.columns)))

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("eval/loss", "eval/perplexity", "eval/token_accuracy")

    def problems(self, data: Dataset, processors: Processors) -> Iterator[RowProblem]:
        check_tokenizer(processors.tokenizer, "messages" in self.reads)
        return merge_problems(self._malformed(data), self._useless(data, processors))

    def _useless(self, data: Dataset, processors: Processors) -> Iterator[RowProblem]:
        for index, found in self._tokens(data, processors):
            if text := _why_useless(found, processors.longest):
                yield RowProblem(index, self.reads[-1], text)

    def count_truncated(self, data: Dataset, processors: Processors) -> int:
        encoded = (found for _, found in self._tokens(data, processors) if isinstance(found, Tokens))
        return sum(len(tokens.ids) > processors.longest for tokens in encoded)

    def collate(self, rows: Sequence[Sample], processors: Processors) -> Batch:
        passages = [self._passage(row, processors.tokenizer) for row in rows]
        tokens = [it.cut(processors.longest) for it in encode(passages, processors.tokenizer)]
        ids = [torch.tensor(it.ids) for it in tokens]
        learned = pad_sequence([torch.tensor(it.learned) for it in tokens], batch_first=True)
        learned[:, 0] = False
        input_ids = pad_sequence(ids, batch_first=True, padding_value=processors.tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(it) for it in ids], batch_first=True)
        positions = learned.flatten().nonzero().flatten() - 1
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "positions": positions,
            "targets": input_ids.flatten()[positions + 1],
        }

    def terms(self, batch: Batch) -> int:
        return len(batch["targets"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = _logits(model, batch)[batch["positions"]].float()
        return cross_entropy(logits, batch["targets"], reduction="sum")

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        loss, right, count = 0.0, 0, 0
        for batch in batches:
            every = _logits(model, batch)
            for first in range(0, self.terms(batch), POSITIONS):
                judged = slice(first, first + POSITIONS)
                positions, targets = batch["positions"][judged], batch["targets"][judged]
                logits = every[positions].float()
                loss += float(cross_entropy(logits, targets, reduction="sum"))
                right += int((logits.argmax(dim=1) == targets).sum())
            count += self.terms(batch)
        mean = loss / max(1, count)
        return {
            "eval/loss": mean,
            "eval/perplexity": math.exp(min(mean, 700.0)),  # beyond it there is no float
            "eval/token_accuracy": right / max(1, count),
        }

    def _passage(self, row: Mapping[str, Any], tokenizer: Any) -> Passage:
        if "messages" in self.reads:
            return conversation(row["messages"], tokenizer)
        return completed(row["prompt"], row["completion"]) if "prompt" in self.reads else completed("", row["text"])

    def _malformed(self, data: Dataset) -> Iterator[RowProblem]:
        if "messages" in self.reads:
            return data.missing_values("messages")
        return merge_problems(*(data.invalid_texts(role, allow_blank=True) for role in self.reads))

    def _tokens(self, data: Dataset, processors: Processors) -> Iterator[tuple[int, Tokens | Unlearnable]]:
        """Every row in tokens, but those that have holes or are no text."""
        bad = {problem.index for problem in self._malformed(data)}
        first = 0
        for parts in zip(*map(data.iter_chunks, self.reads), strict=True):
            rows = enumerate(zip(*parts, strict=True), start=first)
            whole = {index: dict(zip(self.reads, row, strict=True)) for index, row in rows if index not in bad}
            yield from self._encoded(whole, processors)
            first += len(parts[0])

    def _encoded(
        self, rows: Mapping[int, Sample], processors: Processors
    ) -> Iterator[tuple[int, Tokens | Unlearnable]]:
        passages: dict[int, Passage] = {}
        found: dict[int, Tokens | Unlearnable] = {}
        for index, row in rows.items():
            try:
                passages[index] = self._passage(row, processors.tokenizer)
            except Unlearnable as error:
                found[index] = error
        found.update(zip(passages, encode(list(passages.values()), processors.tokenizer), strict=True))
        return ((index, found[index]) for index in rows)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """The logits of all tokens of all texts in one row."""
    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    logits: Tensor = outputs.logits
    return logits.flatten(0, 1)


def _why_useless(found: Tokens | Unlearnable, length: int) -> str | None:
    """Why nothing can be learned from a row; None where something can."""
    if isinstance(found, Unlearnable):
        return str(found)
    if found.cut(length).targets:
        return None
    if found.targets:
        return (
            f"nothing is left to learn: what comes before it fills all {length} tokens; "
            f"all {len(found.ids)} would need data.maxLength {len(found.ids)}"
        )
    return "there is nothing to learn: the text is empty"
