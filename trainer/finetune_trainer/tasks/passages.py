"""Which part of a text a language model learns: everything, what follows a prompt, or what the assistant said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from finetune_trainer.errors import UserError


class Unlearnable(Exception):  # noqa: N818 - it says what is wrong with a row, and is no end of a run
    """A row that nothing can be learned from."""


@dataclass(frozen=True)
class Passage:
    """A text and what is learned of it.

    Args:
        text: all of it.
        learned: where what is learned begins and ends, in characters.
        is_rendered: a chat template wrote it, with all special tokens; else the tokenizer adds its own.
    """

    text: str
    learned: tuple[tuple[int, int], ...]
    is_rendered: bool = False


@dataclass(frozen=True)
class Tokens:
    """A passage in tokens, and which of them are learned."""

    ids: list[int]
    learned: list[bool]

    def cut(self, length: int) -> Tokens:
        return Tokens(self.ids[:length], self.learned[:length])

    @property
    def targets(self) -> int:
        """How many are learned; nothing comes before the first, so it never is."""
        return sum(self.learned[1:])


def completed(prompt: str, completion: str) -> Passage:
    """What follows a prompt is learned."""
    return Passage(prompt + completion, ((len(prompt), len(prompt) + len(completion)),))


def conversation(messages: Any, tokenizer: Any) -> Passage:
    """What the assistant says is learned, with the end of its turns, as the tokenizer's chat template writes it.

    Where a turn begins and ends is found by rendering the conversation up to it: that is what the model is given when
    it has to answer.

    Raises:
        Unlearnable: it is no conversation, or the template cannot write it so.
    """
    messages = _checked(messages)
    whole = _render(tokenizer, messages)
    learned = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _render(tokenizer, messages[:turn], answer=True)
            after = _render(tokenizer, messages[: turn + 1])
            if not (whole.startswith(after) and after.startswith(before)):
                raise Unlearnable(
                    f"the model's chat template writes message {turn} differently once others follow, so what the "
                    "assistant said cannot be told apart; give each of its turns a row of its own, or use columns "
                    "prompt and completion"
                )
            learned.append((len(before), len(after)))
    return Passage(whole, tuple(learned), is_rendered=True)


def encode(passages: Sequence[Passage], tokenizer: Any) -> list[Tokens]:
    """Tokens of passages of one kind.

    A token that holds the end of the prompt and the beginning of what is learned is learned: without it the first
    word never would be.
    """
    if not passages:
        return []
    rendered = passages[0].is_rendered
    encoded = tokenizer(
        [passage.text for passage in passages],
        add_special_tokens=not rendered,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        truncation=False,
        verbose=False,
    )
    parts = zip(encoded["input_ids"], encoded["offset_mapping"], passages, strict=True)
    tokens = [Tokens(list(ids), [_overlaps(span, passage) for span in spans]) for ids, spans, passage in parts]
    return tokens if rendered else [_ended(it, tokenizer.eos_token_id) for it in tokens]


def check_tokenizer(tokenizer: Any, has_messages: bool) -> None:
    """Refuse a tokenizer that cannot tell where what is learned begins and ends.

    Raises:
        UserError: it cannot.
    """
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise UserError(f"task: CausalLM needs a fast tokenizer, but that of model.source is a {kind}")
    if has_messages and not tokenizer.chat_template:
        raise UserError(
            "data.columns.messages: the tokenizer of model.source has no chat template to write conversations with; "
            "use columns prompt and completion, or text, or a model whose tokenizer has one"
        )
    if not has_messages and tokenizer.eos_token_id is None:
        raise UserError(
            "model.source: its tokenizer has no end-of-text token (eos_token), so a model could not learn to stop; "
            "set one and save it with tokenizer.save_pretrained"
        )


def _ended(tokens: Tokens, end: int) -> Tokens:
    """The end of the text, once: some tokenizers write it themselves."""
    if tokens.ids and tokens.ids[-1] == end:
        return Tokens(tokens.ids, [*tokens.learned[:-1], True])
    return Tokens([*tokens.ids, end], [*tokens.learned, True])


def _overlaps(span: tuple[int, int], passage: Passage) -> bool:
    return any(span[0] < end and span[1] > begin for begin, end in passage.learned)


def _checked(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise Unlearnable(f"expected a list of {{role, content}}, found {_short(messages)}")
    for message in messages:
        keys = ("role", "content")
        if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in keys):
            raise Unlearnable(f"expected messages of {{role, content}}, both text, found {_short(message)}")
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise Unlearnable(f"there is no message of role 'assistant' to learn from, only {roles}")
    # A column holds every key that any row has; what this row leaves out is no part of its messages.
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], answer: bool = False) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer))
    except (TemplateError, IndexError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages) or "nothing before the assistant"
        raise Unlearnable(f"the model's chat template does not take these messages ({roles}): {error}") from error


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."
