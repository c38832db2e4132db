"""Renders conversations with a model's chat template, and finds what the assistant wrote in the text.

A template that marks generations (`{% generation %}`) is rendered once. For others, each of the assistant's messages
takes one more: the conversation before it with the generation prompt, which is what the model is given at inference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from jinja2 import TemplateError

from finetune_trainer.compat.hf_transformers import marks_generations, render_with_generations
from finetune_trainer.tasks.chat import Conversation, UntrainableRowError, check_rendered, parse_conversation

Span = tuple[int, int]
"""Start and end, in characters."""

PROBE = "finetune_probe"
RENDER_ERRORS = (TemplateError, IndexError, KeyError, TypeError, ValueError, AttributeError)
"""What a template raises for a conversation that it does not accept."""


@dataclass(frozen=True)
class MaskedText:
    """A text and the parts of it that the loss covers.

    Args:
        text: the whole text.
        loss_spans: start and end of each part that the loss covers, in characters.
        is_rendered: a chat template rendered it with all special tokens; else the tokenizer adds them.
    """

    text: str
    loss_spans: tuple[Span, ...]
    is_rendered: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template, and what is known about how it writes messages.

    Args:
        tokenizer: the tokenizer that has the template.
        source: the template.
    """

    tokenizer: Any
    source: str

    @staticmethod
    def of(tokenizer: Any, *, has_tools: bool) -> ChatTemplate:
        """The template of a tokenizer; some have another one for conversations with tools."""
        source = tokenizer.get_chat_template(tools=[] if has_tools else None)
        return _chat_template(tokenizer, source)

    def mask(self, messages: Any, tools: Any) -> MaskedText:
        """Render a conversation, and find the parts that the loss covers.

        Raises:
            UntrainableRowError: it is not a conversation, or the template cannot render it in this way.
        """
        conversation = self._adapt(parse_conversation(messages, tools, self.source))
        if marks_generations(self.source):
            text, spans = self._marked_spans(conversation)
        else:
            text = self.render(conversation)
            spans = list(self._find_spans(conversation, text))
        check_rendered(conversation, text)
        return MaskedText(text, tuple(spans), is_rendered=True)

    def notes(self) -> Iterator[str]:
        """How what is learned differs from what the model is asked for at inference."""
        prompt, header = self._prompts
        if not marks_generations(self.source) and not header.startswith(prompt):
            missing = prompt[len(_common_prefix(prompt, header)) :]
            yield (
                f"the generation prompt of the model's chat template ends in {missing!r}, which the answers that it "
                "renders do not have: they are learned as they are rendered"
            )

    def render(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Raises:
            UntrainableRowError: the template rejects it.
        """
        try:
            return self._render(conversation, add_generation_prompt)
        except RENDER_ERRORS as error:
            roles = ", ".join(message["role"] for message in conversation.messages) or "none before the assistant's"
            raise UntrainableRowError(
                f"the model's chat template rejects these messages ({roles}): {error or type(error).__name__}"
            ) from error

    def _render(self, conversation: Conversation, add_generation_prompt: bool = False) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                conversation.messages,
                tools=conversation.tools,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )

    # What the template expects

    def _adapt(self, conversation: Conversation) -> Conversation:
        """The conversation in the form that the template expects: templates differ in what they accept."""
        messages = conversation.messages
        if not any("tool_calls" in message for message in messages):
            return conversation
        adapted = [
            {**message, "tool_calls": [self._adapt_call(call) for call in message["tool_calls"]]}
            if "tool_calls" in message
            else message
            for message in messages
        ]
        if self._needs_content:
            adapted = [{**message, "content": message.get("content", "")} for message in adapted]
        return replace(conversation, messages=adapted)

    def _adapt_call(self, call: dict[str, Any]) -> dict[str, Any]:
        if not self._needs_string_arguments:
            return call
        inner = call.get("function", call)
        changed = {**inner, "arguments": json.dumps(inner["arguments"], ensure_ascii=False)}
        return {**call, "function": changed} if "function" in call else changed

    @cached_property
    def _needs_string_arguments(self) -> bool:
        """Whether the template writes arguments of tool calls as they are, so that they have to be JSON."""
        text = self._render_call({PROBE: PROBE}, {"content": ""})
        if text is None or f"'{PROBE}'" in text:
            as_string = self._render_call(json.dumps({PROBE: PROBE}), {"content": ""})
            return as_string is not None and PROBE in as_string
        return False

    @cached_property
    def _needs_content(self) -> bool:
        """Whether the template rejects tool calls without content."""
        arguments: Any = json.dumps({PROBE: PROBE}) if self._needs_string_arguments else {PROBE: PROBE}
        return self._render_call(arguments, {}) is None

    def _render_call(self, arguments: Any, content: dict[str, str]) -> str | None:
        """A short conversation with a tool call; None if the template rejects it."""
        call = {"id": "call00000", "type": "function", "function": {"name": PROBE, "arguments": arguments}}
        return self._try_render(
            {"role": "user", "content": "a"}, {"role": "assistant", **content, "tool_calls": [call]}
        )

    def _try_render(self, *messages: dict[str, Any], add_generation_prompt: bool = False) -> str | None:
        try:
            return self._render(Conversation(list(messages), ()), add_generation_prompt)
        except RENDER_ERRORS:
            return None

    @cached_property
    def _prompts(self) -> tuple[str, str]:
        """What the template writes before an answer: as the generation prompt, and in a conversation with the answer.

        Empty if they cannot be found. They differ in templates that prompt for reasoning (`<think>`), which they leave
        out, or close at once, in rendered answers.
        """
        user = {"role": "user", "content": "a"}
        before = self._try_render(user)
        prompted = self._try_render(user, add_generation_prompt=True)
        one, other = (self._try_render(user, {"role": "assistant", "content": content}) for content in ("x", "y"))
        if before is None or prompted is None or one is None or other is None:
            return "", ""
        header = _common_prefix(one, other)
        if not prompted.startswith(before) or not header.startswith(before):
            return "", ""
        return prompted[len(before) :], header[len(before) :]

    # Where the assistant's messages are

    def _marked_spans(self, conversation: Conversation) -> tuple[str, list[Span]]:
        """The text, and its marked generations, without those of messages that are not learned."""
        messages, learned = conversation.messages, conversation.learned
        try:
            text, spans = render_with_generations(self.tokenizer, self.source, messages, conversation.tools)
        except RENDER_ERRORS:
            self.render(conversation)
            raise
        answers = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        if all(learned[turn] for turn in answers):
            return text, spans
        if len(spans) != len(answers):
            raise UntrainableRowError(
                f"the model's chat template marks {len(spans)} generations in a conversation with {len(answers)} "
                "messages of the assistant, so weight 0 cannot be applied to one of them"
            )
        return text, [span for turn, span in zip(answers, spans, strict=True) if learned[turn]]

    def _find_spans(self, conversation: Conversation, text: str) -> Iterator[Span]:
        suffix: str | None = None
        for turn, message in enumerate(conversation.messages):
            if conversation.learned[turn]:
                start = self._find_start(conversation, turn, text)
                end = _find_repeated_end(message, text, start, suffix)
                if end is None:
                    end = self._find_end(conversation, turn, text)
                    suffix = _suffix(message, text[start:end])
                if end < start:
                    raise self._changed_later(turn)
                yield start, end

    def _find_start(self, conversation: Conversation, turn: int, text: str) -> int:
        """Where an answer starts: after what the model is given, or as far as that is the same as in the text."""
        prompt, header = self._prompts
        given = self.render(_first(conversation, turn), add_generation_prompt=True) if turn else prompt
        if given and text.startswith(given):
            return len(given)
        before, shared = given.removesuffix(prompt), _common_prefix(prompt, header)
        if prompt and shared and given.endswith(prompt) and text.startswith(before + shared):
            return len(before) + len(shared)
        if not turn:
            raise UntrainableRowError(
                "message 0 is the assistant's, and what the model's chat template writes before it cannot be located; "
                "start the conversation with another role, or give message 0 weight 0"
            )
        if turn + 1 == len(conversation.messages) or not text.startswith(before):
            raise UntrainableRowError(
                f"the model's chat template renders the text before message {turn} differently when the answer "
                "follows, so the tokens of the answer cannot be located; use columns prompt and completion, or a chat "
                "template that marks them with {% generation %}"
            )
        raise self._changed_later(turn)

    def _find_end(self, conversation: Conversation, turn: int, text: str) -> int:
        if turn + 1 == len(conversation.messages):
            return len(text)
        after = self.render(_first(conversation, turn + 1))
        if not text.startswith(after):
            raise self._changed_later(turn)
        return len(after)

    def _changed_later(self, turn: int) -> UntrainableRowError:
        return UntrainableRowError(
            f"the model's chat template renders message {turn} differently when more messages follow, so the "
            "assistant's tokens cannot be located; use one row for each of the assistant's messages, with weight 0 on "
            "the earlier ones, or columns prompt and completion"
        )


@lru_cache(maxsize=8)
def _chat_template(tokenizer: Any, source: str) -> ChatTemplate:
    return ChatTemplate(tokenizer, source)


def _common_prefix(one: str, other: str) -> str:
    length = next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    return one[:length] if length is not None else min(one, other, key=len)


def _first(conversation: Conversation, count: int) -> Conversation:
    return replace(conversation, messages=conversation.messages[:count])


def _suffix(message: dict[str, Any], answer: str) -> str | None:
    """What the template writes after an answer; None if the answer is not simply the content."""
    content = message.get("content", "")
    for written in (content, content.strip()):
        if _is_plain(message) and answer.startswith(written):
            return answer[len(written) :]
    return None


def _find_repeated_end(message: dict[str, Any], text: str, start: int, suffix: str | None) -> int | None:
    """The end of an answer, if it is the content with the same suffix as an earlier one; saves a rendering."""
    if suffix is None or not _is_plain(message):
        return None
    for content in (message["content"], message["content"].strip()):
        if text.startswith(content + suffix, start):
            return start + len(content + suffix)
    return None


def _is_plain(message: dict[str, Any]) -> bool:
    """Whether a template has nothing of a message to leave out or to move but its content."""
    return message.keys() == {"role", "content"} and "think>" not in message["content"]
