"""CausalLM: next-token prediction on texts, completions or conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, PretrainedConfig

from finetune_trainer.data import Batch, Dataset, RowProblem, Sample, merge_problems
from finetune_trainer.errors import UserError
from finetune_trainer.tasks.auxiliary_loss import check_loss_terms, get_auxiliary_loss
from finetune_trainer.tasks.base import Processors, Task
from finetune_trainer.tasks.infer import infer_task_name
from finetune_trainer.tasks.loss_mask import (
    MaskedText,
    MaskedTokens,
    UntrainableRowError,
    check_tokenizer,
    from_completion,
    from_messages,
    tokenize,
)
from finetune_trainer.tasks.metrics import CausalLMMetrics, Predictions

ALWAYS_DECODERS = ("gpt_neox", "gpt_neox_japanese")
"""Model types that are decoders although `is_decoder` is False in their configs by default."""

EVAL_CHUNK_TOKENS = 1024
"""Tokens evaluated at once: a copy of all logits in FP32 may not fit into memory beside them."""


@dataclass(frozen=True)
class CausalLM(Task):
    """Cross-entropy of the next token, for the tokens that the loss mask covers.

    The loss is normalized by the number of covered tokens of the whole batch, so it does not depend on the size of
    micro-batches. The covered logits are selected by index: a boolean mask would synchronize with the GPU in every
    micro-batch.

    Mixture-of-experts models with `output_router_logits: true` add their load balancing loss: the mean over the
    micro-batches, weighted by their covered tokens. The loss of an evaluation is without it.

    Args:
        text_roles: the roles that hold the text.
    """

    text_roles: tuple[str, ...]
    auto_class: ClassVar[Any] = AutoModelForCausalLM
    row_predictions: ClassVar[tuple[str, ...]] = ("loss",)
    required_roles: ClassVar[tuple[tuple[str, ...], ...]] = (("messages",), ("prompt", "completion"), ("text",))

    @classmethod
    def build(cls, config: PretrainedConfig, data: Dataset) -> Self:
        if infer_task_name(config) == "ImageTextToText":
            raise UserError(
                f"task: not yet supported: CausalLM with a vision-language model (model.source is a "
                f"{config.model_type} model); use a text-only model"
            )
        if not getattr(config, "is_decoder", True) and config.model_type not in ALWAYS_DECODERS:
            raise UserError(
                f"task: CausalLM needs a decoder, but model.source is a {config.model_type} model with "
                "is_decoder: false in its config"
            )
        check_loss_terms(config)
        return cls(next(roles for roles in cls.required_roles if set(roles) <= set(data.columns)))

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("eval/loss", "eval/perplexity", "eval/token_accuracy")

    def find_problems(self, data: Dataset, processors: Processors) -> Iterator[RowProblem]:
        check_tokenizer(processors.tokenizer, "messages" in self.text_roles)
        return merge_problems(self._malformed_rows(data), self._untrainable_rows(data, processors))

    def _untrainable_rows(self, data: Dataset, processors: Processors) -> Iterator[RowProblem]:
        for index, tokens in self._tokenize_all(data, processors):
            if problem := _check_trainable(tokens, processors.max_tokens):
                yield RowProblem(index, self.text_roles[-1], problem)

    def count_truncated(self, data: Dataset, processors: Processors) -> int:
        rows = (tokens for _, tokens in self._tokenize_all(data, processors) if isinstance(tokens, MaskedTokens))
        return sum(len(tokens.input_ids) > processors.max_tokens for tokens in rows)

    def collate(self, samples: Sequence[Sample], processors: Processors) -> Batch:
        """Make a micro-batch.

        Returns:
            `input_ids` and `attention_mask` of shape (samples, tokens), padded on the right; `positions` of shape
            (targets,): the flattened positions whose logits predict a covered token; `targets` of shape (targets,):
            those tokens.
        """
        texts = [self._masked_text(sample, processors.tokenizer) for sample in samples]
        rows = [tokens.truncate(processors.max_tokens) for tokens in tokenize(texts, processors.tokenizer)]
        ids = [torch.tensor(row.input_ids) for row in rows]
        loss_mask = pad_sequence([torch.tensor(row.loss_mask) for row in rows], batch_first=True)
        loss_mask[:, 0] = False
        input_ids = pad_sequence(ids, batch_first=True, padding_value=processors.tokenizer.pad_token_id)
        attention_mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        positions = loss_mask.flatten().nonzero().flatten() - 1
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "positions": positions,
            "targets": input_ids.flatten()[positions + 1],
        }

    def num_items(self, batch: Batch) -> int:
        return len(batch["targets"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs = _forward(model, batch)
        logits = outputs.logits.flatten(0, 1)[batch["positions"]].float()
        loss = cross_entropy(logits, batch["targets"], reduction="sum")
        auxiliary_loss = get_auxiliary_loss(model, outputs)
        return loss if auxiliary_loss is None else loss + auxiliary_loss * self.num_items(batch)

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """`loss` and `token`, the most probable one, for each target; both of shape (targets,)."""
        all_logits = _forward(model, batch).logits.flatten(0, 1)
        losses, tokens = [all_logits.new_zeros(0).float()], [batch["targets"][:0]]  # a batch may have no targets
        for start in range(0, self.num_items(batch), EVAL_CHUNK_TOKENS):
            chunk = slice(start, start + EVAL_CHUNK_TOKENS)
            logits = all_logits[batch["positions"][chunk]].float()
            losses.append(cross_entropy(logits, batch["targets"][chunk], reduction="none"))
            tokens.append(logits.argmax(dim=1))
        return {"loss": torch.cat(losses), "token": torch.cat(tokens)}

    def metrics(self) -> CausalLMMetrics:
        return CausalLMMetrics()

    def _masked_text(self, sample: Sample, tokenizer: Any) -> MaskedText:
        if "messages" in self.text_roles:
            return from_messages(sample["messages"], tokenizer)
        if "prompt" in self.text_roles:
            return from_completion(sample["prompt"], sample["completion"])
        return from_completion("", sample["text"])

    def _malformed_rows(self, data: Dataset) -> Iterator[RowProblem]:
        if "messages" in self.text_roles:
            return data.missing_values("messages")
        return merge_problems(*(data.invalid_texts(role, allow_blank=True) for role in self.text_roles))

    def _tokenize_all(
        self, data: Dataset, processors: Processors
    ) -> Iterator[tuple[int, MaskedTokens | UntrainableRowError]]:
        """Index and tokens of every row that is not malformed."""
        malformed = {problem.index for problem in self._malformed_rows(data)}
        first = 0
        for columns in zip(*map(data.iter_chunks, self.text_roles), strict=True):
            rows = enumerate(zip(*columns, strict=True), start=first)
            samples = {
                index: dict(zip(self.text_roles, row, strict=True)) for index, row in rows if index not in malformed
            }
            yield from self._tokenize_chunk(samples, processors)
            first += len(columns[0])

    def _tokenize_chunk(
        self, samples: Mapping[int, Sample], processors: Processors
    ) -> Iterator[tuple[int, MaskedTokens | UntrainableRowError]]:
        texts: dict[int, MaskedText] = {}
        results: dict[int, MaskedTokens | UntrainableRowError] = {}
        for index, sample in samples.items():
            try:
                texts[index] = self._masked_text(sample, processors.tokenizer)
            except UntrainableRowError as error:
                results[index] = error
        results.update(zip(texts, tokenize(list(texts.values()), processors.tokenizer), strict=True))
        return ((index, results[index]) for index in samples)


def _forward(model: nn.Module, batch: Batch) -> Any:
    """The outputs of the model, with logits of shape (samples, tokens, vocabulary)."""
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)


def _check_trainable(tokens: MaskedTokens | UntrainableRowError, max_tokens: int) -> str | None:
    """Why a row has no tokens to train on; None if it has."""
    if isinstance(tokens, UntrainableRowError):
        return str(tokens)
    if tokens.truncate(max_tokens).num_targets:
        return None
    if tokens.num_targets:
        return (
            f"no tokens to train on: the text before them fills all {max_tokens} tokens of data.maxLength; the whole "
            f"row needs data.maxLength {len(tokens.input_ids)}"
        )
    return "no tokens to train on: the text is empty"
