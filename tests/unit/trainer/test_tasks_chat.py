"""Conversations with tools, weights and reasoning, and which tokens are learned for chat templates of several kinds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune_api.data import Columns
from finetune_trainer.data import resolve_columns
from finetune_trainer.errors import UserError
from finetune_trainer.planning.prepare import prepare
from finetune_trainer.tasks.base import Processors
from finetune_trainer.tasks.causal_lm import CausalLM
from finetune_trainer.tasks.chat import UntrainableRowError
from finetune_trainer.tasks.loss_mask import from_messages
from unit.trainer import tiny
from unit.trainer.loading import load_dataset, load_table

TURN = "{{ '<|im_start|>' + message['role'] + '\\n' }}"
END = "{{ '<|im_end|>\\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

# As Qwen2.5 does: tools in the system message, and a default system message.
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% elif messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}" + TURN + "{% if message.content %}{{ message.content }}{% endif %}"
    "{% for call in message.tool_calls %}{% set call = call.function %}"
    '{{ \'<tool_call>{"name": "\' + call.name + \'", "arguments": \' }}'
    "{{ call.arguments | tojson }}{{ '}</tool_call>' }}"
    "{% endfor %}" + END + "{% endfor %}" + PROMPT
)
# As DeepSeek-R1 does: prompts for reasoning, which the rendered answers do not have.
THINK_PROMPT = tiny.CHATML.replace(
    "<|im_start|>assistant\\n' }}{% endif %}", "<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
# As Qwen3 does: earlier answers lose their reasoning.
DROPS_REASONING = (
    "{% for message in messages %}" + TURN + "{% if message.reasoning_content and loop.last %}"
    "{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}{{ message.content }}"
    + END
    + "{% endfor %}"
    + PROMPT
)
MARKED = (
    "{% for message in messages %}" + TURN + "{% if message.role == 'assistant' %}{% generation %}"
    "{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}{{ message.content }}" + END
    + "{% endif %}{% endfor %}" + PROMPT
)  # fmt: skip
TRIMS = tiny.CHATML.replace("message['content']", "message['content'] | trim")
KNOWN_ROLES_ONLY = (
    "{% for message in messages %}{% if message.role in ['user', 'assistant'] %}" + TURN + "{{ message.content }}" + END
    + "{% endif %}{% endfor %}" + PROMPT
)  # fmt: skip

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def user(content: Any = "What?") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "Blue.", **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


def call(arguments: Any, name: str = "weather") -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def learned(messages: Any, template: str = tiny.CHATML, tools: Any = None) -> list[str]:
    masked = from_messages(messages, tiny.byte_tokenizer(template), tools)
    return [masked.text[start:end] for start, end in masked.loss_spans]


def problem(messages: Any, template: str = tiny.CHATML, tools: Any = None) -> str:
    with pytest.raises(UntrainableRowError) as raised:
        from_messages(messages, tiny.byte_tokenizer(template), tools)
    return str(raised.value)


# Tools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"city": "Köln"}, '{"city":"Köln"}', '{"city": "K\\u00f6ln"}'])
def test_arguments_of_tool_calls_are_json_or_an_object(arguments: Any) -> None:
    messages = [user(), assistant(None, tool_calls=[call(arguments)])]
    expected = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call><|im_end|>\n'
    assert learned(messages, TOOLS) == [expected]


@pytest.mark.parametrize("write", ["call.name + call.arguments", "call.name ~ call.arguments"], ids=["plus", "tilde"])
def test_template_that_writes_arguments_as_they_are_gets_json(write: str) -> None:
    template = (
        "{% for message in messages %}" + TURN + "{{ message.content }}{% for call in message.tool_calls %}"
        "{% set call = call.function %}{{ " + write + " }}{% endfor %}" + END + "{% endfor %}" + PROMPT
    )
    messages = [user(), assistant("", tool_calls=[call({"city": "Köln"})])]
    assert learned(messages, template) == ['weather{"city": "Köln"}<|im_end|>\n']


def test_missing_content_beside_tool_calls_is_empty_where_the_template_needs_it() -> None:
    template = tiny.CHATML.replace(
        "+ message['content'] +", "+ message['content'] + (message.tool_calls | tojson if message.tool_calls else '') +"
    )
    for message in (assistant(None, tool_calls=[call({})]), {"role": "assistant", "tool_calls": [call({})]}):
        (text,) = learned([user(), message], template)
        assert json.loads(text.removesuffix("<|im_end|>\n")) == [call({})]


def test_tools_reach_the_template() -> None:
    for tools in ([WEATHER], json.dumps([WEATHER])):
        masked = from_messages([user(), assistant()], tiny.byte_tokenizer(TOOLS), tools)
        assert masked.text.startswith("<|im_start|>system\n" + json.dumps(WEATHER))
    for tools in (None, [], "", "[]", "null"):
        assert "Be kind." in from_messages([user(), assistant()], tiny.byte_tokenizer(TOOLS), tools).text


def test_complete_exchange_with_tools_is_learned() -> None:
    messages = [
        user(),
        assistant(None, tool_calls=[call({})]),
        {"role": "tool", "tool_call_id": "1", "name": "weather", "content": "rain"},
        assistant("Rain."),
    ]
    answers = ['<tool_call>{"name": "weather", "arguments": {}}</tool_call><|im_end|>\n', "Rain.<|im_end|>\n"]
    assert learned(messages, TOOLS, [WEATHER]) == answers


@pytest.mark.parametrize(
    ("messages", "tools", "expected"),
    [
        ([user(), assistant(tool_calls=[call("{city")])], None, r"message 1: tool_calls[0].arguments: not valid JSON"),
        ([user(), assistant(tool_calls=[call("[1]")])], None, "tool_calls[0].arguments: expected an object, found [1]"),
        ([user(), assistant(tool_calls="weather")], None, "message 1: expected tool_calls to be a list"),
        ([user(), assistant(tool_calls=[{"id": "1"}])], None, "expected {function: {name, arguments}}"),
        ([user(), assistant()], "[{", "tools: not valid JSON"),
        ([user(), assistant()], ["weather"], "tools: expected a list of JSON schemas, found ['weather']"),
        ([user(), assistant(None)], None, "message 1: expected content, a string, or tool_calls"),
        ([user(), assistant(function_call={"name": "f", "arguments": "{}"})], None, "older form of tool calls"),
    ],
)
def test_malformed_tools_are_reported(messages: Any, tools: Any, expected: str) -> None:
    assert expected in problem(messages, TOOLS, tools)


@pytest.mark.parametrize(
    ("messages", "tools", "expected"),
    [
        ([user(), assistant(tool_calls=[call({})])], None, "does not use key 'tool_calls'"),
        ([user(), assistant()], [WEATHER], "does not use tools"),
        ([user(), assistant(reasoning_content="Hm.")], None, "does not use key 'reasoning_content'"),
        ([user(), assistant(thinking="Hm.")], None, "does not use key 'thinking'"),
        ([user(), assistant(loss=False)], None, "does not use key 'loss'"),
        ([user(), assistant(prefix=True)], None, "does not use key 'prefix'"),
    ],
)
def test_what_the_template_does_not_use_is_refused(messages: Any, tools: Any, expected: str) -> None:
    assert expected in problem(messages, tiny.CHATML, tools)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_learned_under_each_of_its_names(key: str) -> None:
    assert learned([user(), assistant(**{key: "Hm."})], DROPS_REASONING) == ["<think>Hm.</think>Blue.<|im_end|>\n"]


# Content, roles and weights --------------------------------------------------------------------------------------


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "Bl"}, {"type": "text", "text": "ue.", "image_url": None}]
    assert learned([user([{"type": "text", "text": "What?"}]), assistant(parts)]) == ["Blue.<|im_end|>\n"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            [{"type": "image_url", "image_url": {"url": "a.png"}}],
            "message 0: the content has a part of type 'image_url'",
        ),
        ([{"type": "image"}], "a part of type 'image', but task CausalLM reads text only"),
        (["What?"], "expected parts of the content to be {type: text, text}, found 'What?'"),
        ([{"type": "text", "text": None}], "expected parts of the content"),
        (7, "message 0: expected content to be a string or a list of parts, found 7"),
    ],
)
def test_other_content_is_refused(content: Any, expected: str) -> None:
    assert expected in problem([user(content), assistant()])


def test_only_messages_with_weight_1_are_learned() -> None:
    messages = [user(), assistant("Red.", weight=0), user(), assistant("Blue.", weight=1), user(), assistant("Green.")]
    for template in (tiny.CHATML, MARKED):
        assert [text.removesuffix("\n") for text in learned(messages, template)] == [
            "Blue.<|im_end|>",
            "Green.<|im_end|>",
        ]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user(), assistant(weight=0)], "all messages of the assistant have weight 0"),
        ([user(), assistant(weight=0.5)], "message 1: weight 0.5 is not supported; expected 0 or 1"),
        ([user(), assistant(weight="0")], "weight '0' is not supported"),
        ([{**user(), "weight": 1}, assistant()], "weight 1 on a message of role 'user'"),
        ([user(), assistant("")], "message 1: the content of the assistant is empty"),
        ([user(), assistant(" \n")], "message 1: the content of the assistant is empty"),
        ([user(), {"role": "gpt", "content": "Blue."}], "message 1: unknown role 'gpt'; expected one of system"),
        ([{"from": "human", "value": "a"}], "ShareGPT format, which is not supported yet (data.format)"),
    ],
)
def test_other_weights_roles_and_formats_are_refused(messages: Any, expected: str) -> None:
    assert expected in problem(messages)


@pytest.mark.parametrize("role", ["system", "developer", "tool"])
def test_message_that_the_template_leaves_out_is_refused(role: str) -> None:
    messages = [{"role": role, "content": "Be brief."}, user(), assistant()]
    assert f"leaves out the content of message 0 (role '{role}')" in problem(messages, KNOWN_ROLES_ONLY)
    assert learned(messages) == ["Blue.<|im_end|>\n"]


def test_part_that_the_template_leaves_out_is_refused() -> None:
    template = "{# tools, tool_calls #}" + MARKED.replace(
        "{% generation %}", "{% generation %}{% if loop.last %}{{ message.reasoning_content }}{% endif %}"
    )
    assert "leaves out a tool call of message 1" in problem([user(), assistant(tool_calls=[call({})])], template)
    assert "leaves out a tool" in problem([user(), assistant()], template, [WEATHER])
    reasoned = assistant(reasoning_content="Hm.")
    last = [user(), assistant(reasoning_content="Yes.")]
    assert "leaves out 'reasoning_content' of message 1" in problem([user(), reasoned, *last], template)
    assert learned([user(), {**reasoned, "weight": 0}, *last], template) == ["Yes.Blue.<|im_end|>"]


def test_tool_result_that_the_template_writes_as_json_is_not_missing() -> None:
    template = KNOWN_ROLES_ONLY.replace(
        "{% if message.role", "{% if message.role == 'tool' %}{{ message.content | tojson }}{% elif message.role"
    )
    messages = [user(), assistant(), {"role": "tool", "content": 'it says "rain"\n'}, assistant("Rain.")]
    assert learned(messages, template) == ["Blue.<|im_end|>\n", "Rain.<|im_end|>\n"]


# Templates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["Blue.", "<b>Blue</b>", "</think>Blue."])
def test_answer_without_the_reasoning_that_the_template_prompts_for_is_learned(answer: str) -> None:
    assert learned([user(), assistant(answer)], THINK_PROMPT) == [f"{answer}<|im_end|>\n"]
    turns = [user(), assistant(answer), user("Sure?"), assistant("Yes.")]
    assert learned(turns, THINK_PROMPT) == [f"{answer}<|im_end|>\n", "Yes.<|im_end|>\n"]


def test_answer_with_the_reasoning_that_the_template_prompts_for_is_learned_after_the_prompt() -> None:
    messages = [user(), assistant("<think>\nHm.\n</think>\nBlue.")]
    assert learned(messages, THINK_PROMPT) == ["Hm.\n</think>\nBlue.<|im_end|>\n"]


def test_difference_between_prompt_and_answer_is_reported() -> None:
    def notes(template: str) -> list[str]:
        return list(CausalLM(("messages",)).encoding_notes(Processors(tiny.byte_tokenizer(template), None, 64)))

    assert notes(tiny.CHATML) == notes(MARKED) == []
    assert "ends in '<think>\\n', which the answers that it renders do not have" in notes(THINK_PROMPT)[0]


def test_earlier_answers_that_lose_their_reasoning_are_refused_unless_they_have_weight_0() -> None:
    reasoned = assistant(reasoning_content="Hm.")
    for earlier in ([user(), reasoned], [user(), assistant("Red."), user(), reasoned]):
        turns = [*earlier, user(), assistant("Yes.")]
        index = len(earlier) - 1
        assert f"renders message {index} differently when more messages follow" in problem(turns, DROPS_REASONING)
        turns[index] = {**reasoned, "weight": 0}
        assert learned(turns, DROPS_REASONING)[-1] == "Yes.<|im_end|>\n"


def test_templates_that_trim_or_add_a_system_message() -> None:
    messages = [user(" What? "), assistant("  Blue. "), user(), assistant(" Green.")]
    assert learned(messages, TRIMS) == ["Blue.<|im_end|>\n", "Green.<|im_end|>\n"]
    assert learned(messages, TOOLS) == ["  Blue. <|im_end|>\n", " Green.<|im_end|>\n"]


def test_marked_generations_are_learned() -> None:
    messages = [user(), assistant("Blue."), user(), assistant("Green.")]
    assert learned(messages, MARKED) == ["Blue.<|im_end|>", "Green.<|im_end|>"]


def test_conversation_that_starts_with_the_assistant_is_learned() -> None:
    assert learned([assistant("Hello."), user(), assistant()]) == ["Hello.<|im_end|>\n", "Blue.<|im_end|>\n"]


@pytest.mark.parametrize(("template", "most"), [(MARKED, 1), (tiny.CHATML, 10), (TRIMS, 10), (THINK_PROMPT, 10)])
def test_number_of_renderings(template: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.tokenization_utils_base as base
    from transformers.utils import chat_template_utils

    tokenizer = tiny.byte_tokenizer(template)
    turns = [message for number in range(8) for message in (user(f"{number}?"), assistant(f"{number}."))]
    from_messages(turns[:2], tokenizer)  # what is known about a template is found once
    calls: list[Mapping[str, Any]] = []
    original = chat_template_utils.render_jinja_template

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return original(*arguments, **options)

    monkeypatch.setattr(base, "render_jinja_template", count)
    monkeypatch.setattr(chat_template_utils, "render_jinja_template", count)
    masked = from_messages(turns, tokenizer)
    assert 0 < len(calls) <= most
    assert [masked.text[start:end].strip() for start, end in masked.loss_spans] == [
        f"{number}.<|im_end|>" for number in range(8)
    ]


# Datasets --------------------------------------------------------------------------------------------------------


def test_nulls_that_parquet_columns_add_are_hidden_at_any_depth(tmp_path: Path) -> None:
    rows = [
        {"messages": [user(), assistant(None, tool_calls=[call({"city": "Köln"})])], "tools": [WEATHER]},
        {"messages": [user(), assistant(None, tool_calls=[call({"day": 1})])], "tools": None},
    ]
    tiny.write_rows(tmp_path / "data" / "set", rows)
    data = load_dataset(tmp_path, "messages", "tools")
    answers = [learned(data[row]["messages"], TOOLS, data[row]["tools"])[0] for row in range(2)]
    assert [json.loads(text[len("<tool_call>") :].split("</")[0])["arguments"] for text in answers] == [
        {"city": "Köln"},
        {"day": 1},
    ]


def test_nulls_that_json_lines_hold_are_kept(tmp_path: Path) -> None:
    rows = [
        {"messages": [user(), assistant(None, tool_calls=[call({"city": "Köln", "unit": None})])]},
        {"messages": [{**user(), "name": None}, assistant(None, tool_calls=[call({"day": 1})])]},
    ]
    (tmp_path / "data" / "set").mkdir(parents=True)
    (tmp_path / "data" / "set" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_dataset(tmp_path, "messages")
    texts = [learned(data[row]["messages"], TOOLS)[0] for row in range(2)]
    assert '"arguments": {"city": "Köln", "unit": null}' in texts[0]
    assert '"arguments": {"day": 1}' in texts[1]


def test_tools_are_a_column_that_rows_may_leave_out(tmp_path: Path) -> None:
    models, data, out = tmp_path / "models", tmp_path / "data", tmp_path / "out"
    tiny.write_language_model(models / "caller", TOOLS)
    rows = [{**row, "tools": [WEATHER] if number % 2 else None} for number, row in enumerate(tiny.chats(12))]
    tiny.write_rows(data / "rows", rows)
    claim_paths = tiny.ClaimPaths(tmp_path, {"models": models, "data": data, "out": out})
    prepared = prepare(tiny.job("caller", "rows"), claim_paths)
    assert len(prepared.train) == 12
    assert prepared.train[1]["tools"] == [WEATHER]
    with pytest.raises(UserError, match=r"data\.columns\.tools: data\.train\.source has no column 'functions'"):
        prepare(tiny.job("caller", "rows", data={"columns": {"tools": "functions"}}), claim_paths)


@pytest.mark.parametrize("name", ["functions", "function_call", "parallel_tool_calls"])
def test_older_columns_of_the_openai_api_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"data\.train: column '{name}' of the OpenAI API is not supported"):
        CausalLM.check_columns(["messages", name], Columns(), "data.train")
    CausalLM.check_columns(["text", name], Columns(), "data.train")


def test_sharegpt_column_is_refused_with_a_hint() -> None:
    with pytest.raises(UserError, match=r"has no column 'messages', but 'conversations'.*ShareGPT.*data\.format"):
        CausalLM.check_columns(["conversations", "id"], Columns(), "data.train")
    CausalLM.check_columns(["conversations"], Columns(messages="conversations"), "data.train")


def test_optional_roles_of_conversations(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "set", [{**tiny.chats(1)[0], "tools": "[]"}])
    table = load_table(tmp_path)
    names = resolve_columns(table.columns, Columns(), CausalLM.required_roles, CausalLM.optional_roles, "data.train")
    assert names == {"messages": "messages", "tools": "tools"}


def test_answer_at_the_start_of_a_conversation_with_a_default_system_message() -> None:
    system = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    tokenizer = tiny.byte_tokenizer(system + tiny.CHATML)
    answer, question = {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "2 + 2?"}
    with pytest.raises(UntrainableRowError, match="message 0 is the assistant's, and what"):
        from_messages([answer, question, {**answer, "content": "4"}], tokenizer)
    masked = from_messages([{**answer, "weight": 0}, question, {**answer, "content": "4"}], tokenizer)
    assert [masked.text[start:end] for start, end in masked.loss_spans] == ["4<|im_end|>\n"]
