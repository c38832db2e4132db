"""Which tokens of a text the loss of a language model covers: all, those after a prompt, or the assistant's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from finetune_trainer.errors import UserError
from finetune_trainer.tasks.chat import UntrainableRowError
from finetune_trainer.tasks.chat_template import ChatTemplate, MaskedText
from finetune_trainer.tasks.tokenizer import encode_batch


@dataclass(frozen=True)
class MaskedTokens:
    """The tokens of a text, and which of them the loss covers.

    Args:
        input_ids: token ids, of shape (tokens,), int64.
        loss_mask: whether the loss covers a token, of shape (tokens,), bool.
    """

    input_ids: np.ndarray
    loss_mask: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)

    def truncate(self, length: int) -> MaskedTokens:
        return MaskedTokens(self.input_ids[:length], self.loss_mask[:length])

    @property
    def num_targets(self) -> int:
        """Number of tokens that the loss covers. The first token is never predicted."""
        return int(np.count_nonzero(self.loss_mask[1:]))


def from_completion(prompt: str, completion: str) -> MaskedText:
    """A prompt and its completion; the loss covers the completion."""
    return MaskedText(prompt + completion, ((len(prompt), len(prompt) + len(completion)),))


def from_messages(messages: Any, tokenizer: Any, tools: Any = None) -> MaskedText:
    """A conversation, rendered with the tokenizer's chat template; the loss covers the assistant's messages.

    A span includes the end-of-turn tokens. Where the template marks generations, they are the spans. Otherwise the text
    before a span is what the model is given at inference.

    Args:
        messages: list of `{role, content}`, with the other keys of the OpenAI API that the template uses.
        tokenizer: a tokenizer with a chat template.
        tools: the tools of the conversation, as a list of JSON schemas or as JSON; None without tools.

    Raises:
        UntrainableRowError: it is not a conversation, or the template cannot render it in this way.
    """
    masked = ChatTemplate.of(tokenizer, has_tools=bool(tools)).mask(messages, tools)
    if not any(start < end for start, end in masked.loss_spans):
        raise UntrainableRowError(
            "no tokens to train on: the chat template renders nothing of the assistant's messages"
        )
    return masked


def tokenize(texts: Sequence[MaskedText], tokenizer: Any) -> list[MaskedTokens]:
    """Tokenize texts, either all rendered or none.

    A token that spans the end of a prompt and the start of its completion is covered by the loss: otherwise the first
    word of the completion would not be trained. An end-of-text token is appended to texts that were not rendered.
    """
    if not texts:
        return []
    is_rendered = texts[0].is_rendered
    encodings = encode_batch(tokenizer, [text.text for text in texts], add_special_tokens=not is_rendered, offsets=True)
    tokens = [_mask_tokens(encoding, text) for encoding, text in zip(encodings, texts, strict=True)]
    return tokens if is_rendered else [_append_eos(it, tokenizer.eos_token_id) for it in tokens]


def tokenize_plain(texts: Sequence[str], tokenizer: Any) -> list[MaskedTokens]:
    """Tokenize texts of which the loss covers every token, with an end-of-text token."""
    encodings = encode_batch(tokenizer, texts, add_special_tokens=True, offsets=False)
    ids = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
    return [_append_eos(MaskedTokens(row, np.ones(len(row), bool)), tokenizer.eos_token_id) for row in ids]


def check_tokenizer(tokenizer: Any, has_messages: bool) -> None:
    """Reject a tokenizer without character offsets, chat template or end-of-text token, where they are needed.

    Raises:
        UserError: it lacks one of them.
    """
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise UserError(f"task: CausalLM needs a fast tokenizer, but the tokenizer of model.source is a {kind}")
    if has_messages and not tokenizer.chat_template:
        raise UserError(
            "data.columns.messages: the tokenizer of model.source has no chat template; "
            "use columns prompt and completion, or text, or a model whose tokenizer has one"
        )
    if not has_messages and tokenizer.eos_token_id is None:
        raise UserError(
            "model.source: its tokenizer has no end-of-text token, so the model cannot learn where to stop; "
            "set eos_token and save the tokenizer with tokenizer.save_pretrained"
        )


def _append_eos(tokens: MaskedTokens, eos_token_id: int) -> MaskedTokens:
    """Append the end-of-text token, unless the tokenizer has added it. The loss covers it."""
    ids, mask = tokens.input_ids, tokens.loss_mask
    if len(ids) and ids[-1] == eos_token_id:
        ids, mask = ids[:-1], mask[:-1]
    return MaskedTokens(np.append(ids, eos_token_id), np.append(mask, True))


def _mask_tokens(encoding: Any, text: MaskedText) -> MaskedTokens:
    """The tokens of a text; the loss covers those that overlap one of its spans."""
    ids = np.array(encoding.ids, dtype=np.int64)
    offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(ids))
    starts, ends = offsets[::2], offsets[1::2]
    mask = np.zeros(len(ids), bool)
    for start, end in text.loss_spans:
        mask |= (starts < end) & (ends > start)
    return MaskedTokens(ids, mask)
