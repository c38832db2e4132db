"""Conversations as the OpenAI API and the chat templates of transformers write them.

A conversation is brought into the form that chat templates expect. What neither the trainer nor the model's template
uses is an error: it would be lost without a trace.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
TEMPLATE_KEYS = ("role", "content", "name", "tool_call_id")
"""Keys that every template may ignore: at inference it does so, too."""

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Names of the same thing; transformers passes it to the template under each name that templates use."""

MEDIA = ("image", "image_url", "input_image", "video", "video_url", "audio", "input_audio", "file", "input_file")
SHAREGPT_HINT = (
    "; this is the ShareGPT format, which is not supported yet (data.format): convert {from, value} to {role, content}"
)


class UntrainableRowError(Exception):
    """A row that cannot be trained on. The message gives the reason."""


@dataclass(frozen=True)
class Conversation:
    """A conversation as a chat template expects it.

    Args:
        messages: dicts with `role`, and `content` as a string; arguments of tool calls are objects.
        learned: for each message, whether the loss covers it.
        tools: JSON schemas of the tools; None without tools.
    """

    messages: list[dict[str, Any]]
    learned: tuple[bool, ...]
    tools: list[dict[str, Any]] | None = None


def parse_conversation(messages: Any, tools: Any, template: str) -> Conversation:
    """Check a conversation, and bring it into the form that chat templates expect.

    Args:
        messages: the value of the column `messages`.
        tools: the value of the column `tools`; None without one.
        template: source of the model's chat template.

    Raises:
        UntrainableRowError: it is not a conversation, or has something that the template does not use.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise UntrainableRowError(f"expected a list of {{role, content}}, found {truncated_repr(messages)}")
    parsed = [_parse_message(message, number, template) for number, message in enumerate(messages)]
    learned = tuple(
        _parse_weight(message, number) and message["role"] == "assistant" for number, message in enumerate(messages)
    )
    if not any(message["role"] == "assistant" for message in parsed):
        roles = ", ".join(dict.fromkeys(message["role"] for message in parsed))
        raise UntrainableRowError(f"no message with role 'assistant' to train on, only {roles}")
    if not any(learned):
        raise UntrainableRowError("no tokens to train on: all messages of the assistant have weight 0")
    for number, message in enumerate(parsed):
        if learned[number] and not _has_answer(message):
            raise UntrainableRowError(f"message {number}: the content of the assistant is empty")
    return Conversation(parsed, learned, _parse_tools(tools, template))


def check_rendered(conversation: Conversation, text: str) -> None:
    """Check that a template has left out nothing, as some do with roles that they do not know, or with old reasoning.

    Raises:
        UntrainableRowError: a part is not in the rendered text.
    """
    for what, part in _parts(conversation):
        if part not in text and json.dumps(part, ensure_ascii=False)[1:-1] not in text:
            raise UntrainableRowError(f"the model's chat template leaves out {what}")


def _parts(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """Description and text of each part that has to be rendered."""
    for number, message in enumerate(conversation.messages):
        name = f"message {number} (role {message['role']!r})"
        yield f"the content of {name}", message.get("content", "").split("</think>")[-1].strip()
        for call in message.get("tool_calls", ()):
            yield f"a tool call of {name}", call.get("function", call)["name"]
        if conversation.learned[number]:
            yield from ((f"{key!r} of {name}", str(message[key]).strip()) for key in REASONING_KEYS if key in message)
    for tool in conversation.tools or ():
        yield "a tool", str(tool.get("function", tool).get("name", ""))


def truncated_repr(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _parse_message(original: Any, number: int, template: str) -> dict[str, Any]:
    if not isinstance(original, Mapping) or not isinstance(original.get("role"), str):
        is_sharegpt = isinstance(original, Mapping) and {"from", "value"} <= original.keys()
        hint = SHAREGPT_HINT if is_sharegpt else ""
        raise UntrainableRowError(f"expected messages of {{role, content}}, found {truncated_repr(original)}{hint}")
    # Null is the same as a missing key, also in the OpenAI API.
    message = {key: value for key, value in original.items() if value is not None and key != "weight"}
    _check_role(message["role"], number, template)
    _check_keys(message, number, template)
    if message.get("tool_calls"):
        message["tool_calls"] = _parse_tool_calls(message["tool_calls"], number)
    else:
        message.pop("tool_calls", None)
    if "content" in message:
        message["content"] = _parse_content(message["content"], number)
    elif "tool_calls" not in message:
        raise UntrainableRowError(
            f"message {number}: expected content, a string, or tool_calls, found {truncated_repr(message)}"
        )
    return message


def _check_role(role: str, number: int, template: str) -> None:
    if role not in ROLES and not re.search(rf"['\"]{re.escape(role)}['\"]", template):
        raise UntrainableRowError(f"message {number}: unknown role {role!r}; expected one of {', '.join(ROLES)}")


def _check_keys(message: Mapping[str, Any], number: int, template: str) -> None:
    """Reject what the template does not read."""
    if "function_call" in message and "function_call" not in template:
        raise UntrainableRowError(
            f"message {number}: function_call is the older form of tool calls, which the model's chat template does "
            "not use; write it as tool_calls: [{type: function, function: {name, arguments}}]"
        )
    for key, value in message.items():
        names = REASONING_KEYS if key in REASONING_KEYS else (key,)
        if key not in TEMPLATE_KEYS and value not in ("", [], {}) and not _reads(template, names):
            raise UntrainableRowError(
                f"message {number} ({message['role']}): the model's chat template does not use key {key!r}; remove it, "
                "or use a model whose template does"
            )


def _reads(template: str, names: Sequence[str]) -> bool:
    """Whether the source of a template mentions one of these keys, or all of them by dumping whole messages."""
    dumps_messages = re.search(r"\bmessages?\s*\|\s*tojson|\bmessage\.items\(", template)
    return bool(dumps_messages) or any(re.search(rf"\b{re.escape(name)}\b", template) for name in names)


def _parse_weight(message: Mapping[str, Any], number: int) -> bool:
    """Whether the loss covers a message of the assistant, as in OpenAI's fine-tuning format."""
    weight = message.get("weight")
    if weight is None:
        return True
    if weight not in (0, 1) or isinstance(weight, str):
        raise UntrainableRowError(f"message {number}: weight {weight!r} is not supported; expected 0 or 1")
    if weight == 1 and message["role"] != "assistant":
        raise UntrainableRowError(
            f"message {number}: weight 1 on a message of role {message['role']!r}; only messages of the assistant are "
            "learned"
        )
    return bool(weight)


def _parse_content(content: Any, number: int) -> str:
    """The content as text; a list of text parts is joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise UntrainableRowError(
            f"message {number}: expected content to be a string or a list of parts, found {truncated_repr(content)}"
        )
    return "".join(_parse_part(part, number) for part in content)


def _parse_part(part: Any, number: int) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in MEDIA:
        raise UntrainableRowError(
            f"message {number}: the content has a part of type {kind!r}, but task CausalLM reads text only"
        )
    extra = set(part) - {"type", "text"} if isinstance(part, Mapping) else set()
    if kind != "text" or not isinstance(part.get("text"), str) or any(part[key] is not None for key in extra):
        raise UntrainableRowError(
            f"message {number}: expected parts of the content to be {{type: text, text}}, found {truncated_repr(part)}"
        )
    text: str = part["text"]
    return text


def _parse_tool_calls(calls: Any, number: int) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise UntrainableRowError(f"message {number}: expected tool_calls to be a list, found {truncated_repr(calls)}")
    return [_parse_tool_call(call, f"message {number}: tool_calls[{index}]") for index, call in enumerate(calls)]


def _parse_tool_call(call: Any, path: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    is_nested = isinstance(function, Mapping)
    inner: Any = function if is_nested else call
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise UntrainableRowError(f"{path}: expected {{function: {{name, arguments}}}}, found {truncated_repr(call)}")
    parsed = {**inner, "arguments": _parse_arguments(inner.get("arguments"), path)}
    return {**call, "function": parsed} if is_nested else {**call, **parsed}


def _parse_arguments(arguments: Any, path: str) -> dict[str, Any]:
    """The arguments as an object: in the OpenAI API they are a string with JSON, in templates an object."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise UntrainableRowError(f"{path}.arguments: not valid JSON: {error}") from error
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise UntrainableRowError(f"{path}.arguments: expected an object, found {truncated_repr(arguments)}")
    return dict(arguments)


def _has_answer(message: Mapping[str, Any]) -> bool:
    keys = ("tool_calls", "function_call", *REASONING_KEYS)
    return bool(message.get("content", "").strip()) or any(message.get(key) for key in keys)


def _parse_tools(tools: Any, template: str) -> list[dict[str, Any]] | None:
    """The tools as a list of JSON schemas; a string holds them as JSON."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools or "null")
        except ValueError as error:
            raise UntrainableRowError(f"tools: not valid JSON: {error}") from error
    if not tools:
        return None
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UntrainableRowError(f"tools: expected a list of JSON schemas, found {truncated_repr(tools)}")
    if not _reads(template, ("tools",)):
        raise UntrainableRowError("the model's chat template does not use tools; use a model whose template does")
    return [dict(tool) for tool in tools]
