"""CausalLM: next-token prediction on texts, completions or conversations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, PretrainedConfig

from finetune_api.data import Columns
from finetune_trainer.data import Batch, Dataset, RowProblem, Sample, merge_problems
from finetune_trainer.errors import UserError
from finetune_trainer.tasks.auxiliary_loss import check_loss_terms, get_auxiliary_loss
from finetune_trainer.tasks.base import Example, Processors, Task
from finetune_trainer.tasks.chat import UntrainableRowError
from finetune_trainer.tasks.chat_template import ChatTemplate, MaskedText
from finetune_trainer.tasks.index import ExampleIndex
from finetune_trainer.tasks.infer import infer_task_name
from finetune_trainer.tasks.loss_mask import (
    MaskedTokens,
    check_tokenizer,
    from_completion,
    from_messages,
    tokenize,
    tokenize_plain,
)
from finetune_trainer.tasks.metrics import CausalLMMetrics, Predictions

ALWAYS_DECODERS = ("gpt_neox", "gpt_neox_japanese")
"""Model types that are decoders although `is_decoder` is False in their configs by default."""

OLDER_COLUMNS = ("functions", "function_call", "parallel_tool_calls")
"""Columns next to `messages` that would change what is learned."""

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
    optional_roles: ClassVar[tuple[str, ...]] = ("tools",)
    nullable_roles: ClassVar[tuple[str, ...]] = ("tools",)

    @classmethod
    def build(cls, config: PretrainedConfig, data: Dataset, declared: Mapping[str, Any] | None = None) -> Self:
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
        text_roles = next(roles for roles in cls.required_roles if set(roles) <= set(data.columns))
        if text_roles != ("messages",) and data.column_names.get("tools", "tools") != "tools":
            raise UserError(
                f"data.columns.tools: {data.column_names['tools']!r}: only conversations (column messages) have tools"
            )
        return cls(text_roles)

    @classmethod
    def check_columns(cls, available: Collection[str], columns: Columns, field_path: str) -> None:
        messages = columns.messages or "messages"
        if messages not in available:
            _reject_sharegpt(available, field_path)
            return
        for name in OLDER_COLUMNS:
            if name in available:
                raise UserError(
                    f"{field_path}: column {name!r} of the OpenAI API is not supported: remove it; write tools as "
                    "column tools, and calls as tool_calls of the assistant's messages"
                )

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("eval/loss", "eval/perplexity", "eval/token_accuracy")

    def check_processors(self, processors: Processors) -> None:
        check_tokenizer(processors.tokenizer, "messages" in self.text_roles)

    def encoding_notes(self, processors: Processors) -> Iterator[str]:
        if "messages" in self.text_roles:
            yield from ChatTemplate.of(processors.tokenizer, has_tools=False).notes()

    def index(self, data: Dataset, processors: Processors) -> ExampleIndex:
        malformed = list(merge_problems(self._malformed_rows(data), self._blank_rows(data)))
        bad = {problem.index for problem in malformed}
        roles = [*self.text_roles, *({"tools"} & data.columns.keys())]
        columns = zip(*map(data.values, roles), strict=True)
        samples = {row: dict(zip(roles, values, strict=True)) for row, values in enumerate(columns)}
        good = {row: sample for row, sample in samples.items() if row not in bad}
        tokens = dict(zip(good, self._tokenize(list(good.values()), processors.tokenizer), strict=True))
        return self._index_tokens(tokens, len(data), processors.max_tokens, malformed)

    def encode(self, samples: Sequence[Sample], processors: Processors) -> list[Example]:
        """Encode samples: `input_ids` and `loss_mask`, of shape (tokens,) each."""
        examples: list[Example] = []
        for tokens in self._tokenize(samples, processors.tokenizer):
            if isinstance(tokens, UntrainableRowError):
                raise tokens
            truncated = tokens.truncate(processors.max_tokens)
            examples.append({"input_ids": truncated.input_ids, "loss_mask": truncated.loss_mask})
        return examples

    def collate(self, examples: Sequence[Example], processors: Processors) -> Batch:
        """Make a micro-batch.

        Returns:
            `input_ids` and `attention_mask` of shape (samples, tokens), padded on the right; `positions` of shape
            (targets,): the flattened positions whose logits predict a covered token; `targets` of shape (targets,):
            those tokens.
        """
        ids = [torch.from_numpy(example["input_ids"]) for example in examples]
        loss_mask = pad_sequence([torch.from_numpy(example["loss_mask"]) for example in examples], batch_first=True)
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

    def _malformed_rows(self, data: Dataset) -> Iterator[RowProblem]:
        if "messages" in self.text_roles:
            return data.missing_values("messages")
        return merge_problems(*(data.invalid_texts(role, allow_blank=True) for role in self.text_roles))

    def _blank_rows(self, data: Dataset) -> Iterator[RowProblem]:
        """Rows from which only the end-of-text token, or white space, would be learned."""
        role = self.text_roles[-1]
        if role != "messages":
            for row, text in enumerate(data.values(role)):
                if isinstance(text, str) and not text.strip():
                    yield RowProblem(row, role, f"no tokens to train on: the {role} is empty")

    def _tokenize(self, samples: Sequence[Sample], tokenizer: Any) -> list[MaskedTokens | UntrainableRowError]:
        """The tokens of each sample before truncation, or why it has none."""
        if self.text_roles == ("text",):
            return [*tokenize_plain([sample["text"] for sample in samples], tokenizer)]
        texts: list[MaskedText | UntrainableRowError] = [self._mask_text(sample, tokenizer) for sample in samples]
        tokens = iter(tokenize([text for text in texts if isinstance(text, MaskedText)], tokenizer))
        return [next(tokens) if isinstance(text, MaskedText) else text for text in texts]

    def _mask_text(self, sample: Sample, tokenizer: Any) -> MaskedText | UntrainableRowError:
        if "prompt" in self.text_roles:
            return from_completion(sample["prompt"], sample["completion"])
        try:
            return from_messages(sample["messages"], tokenizer, sample.get("tools"))
        except UntrainableRowError as error:
            return error

    def _index_tokens(
        self,
        rows: Mapping[int, MaskedTokens | UntrainableRowError],
        num_rows: int,
        max_tokens: int,
        problems: Sequence[RowProblem],
    ) -> ExampleIndex:
        """The index of `num_rows` rows, of which `rows` has those that are not malformed."""
        lengths, num_items = np.zeros(num_rows, np.int32), np.zeros(num_rows, np.int32)
        max_token_ids, found = np.full(num_rows, -1, np.int32), []
        for row, tokens in rows.items():
            if problem := _check_trainable(tokens, max_tokens):
                found.append(RowProblem(row, self.text_roles[-1], problem))
            elif isinstance(tokens, MaskedTokens):
                truncated = tokens.truncate(max_tokens)
                lengths[row], num_items[row] = len(tokens), truncated.num_targets
                max_token_ids[row] = truncated.input_ids.max()
        return ExampleIndex(lengths, num_items, max_token_ids, tuple(merge_problems(iter(problems), iter(found))))


def _reject_sharegpt(available: Collection[str], field_path: str) -> None:
    if "conversations" in available and not {"text", "prompt", "completion"} & set(available):
        raise UserError(
            f"data.columns.messages: {field_path} has no column 'messages', but 'conversations': if it holds "
            "{role, content}, set data.columns.messages: conversations; {from, value} (ShareGPT) is not supported yet "
            "(data.format): convert it to {role, content}"
        )


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
            f"row needs data.maxLength {len(tokens)}"
        )
    return "no tokens to train on"
