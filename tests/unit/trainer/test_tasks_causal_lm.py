"""Which tokens the loss covers for each kind of row, and that a run learns them."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BertConfig, Gemma3Config

from finetune_trainer.data import Batch, Sample
from finetune_trainer.errors import UserError
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.prepare import prepare
from finetune_trainer.tasks.base import Processors
from finetune_trainer.tasks.causal_lm import ALWAYS_DECODERS, CausalLM
from finetune_trainer.tasks.chat import UntrainableRowError
from finetune_trainer.tasks.loss_mask import from_messages
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny

# As Qwen3 does: the last answer is rendered differently from earlier ones.
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}" + tiny.CHATML
FAST: dict[str, Any] = {
    "modules": [{"name": "all", "parameters": ["*"], "optimizer": {"type": "AdamW", "learningRate": 1e-2}}],
    "training": {"batchSize": 6, "epochs": 20},
    "data": {"validation": {"fraction": 0.2}, "workers": 0},
}


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The claims `models` (chatty, silent) and `data` (chats, completions, texts)."""
    folder = tmp_path_factory.mktemp("language")
    tiny.write_language_model(folder / "models" / "chatty")
    tiny.write_language_model(folder / "models" / "silent", chat_template=None)
    for rows in (tiny.chats, tiny.completions, tiny.texts):
        tiny.write_rows(folder / "data" / rows.__name__, rows(30))
    return folder


def make_processors(chat_template: str | None = tiny.CHATML, max_length: int = 64) -> Processors:
    tokenizer = tiny.byte_tokenizer(chat_template)
    tokenizer.pad_token = tokenizer.eos_token
    return Processors(tokenizer, None, max_length)


def decode_targets(batch: Batch, tokenizer: Any) -> str:
    return str(tokenizer.decode(batch["targets"]))


def conversation(*turns: tuple[str, str]) -> Sample:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_loss_covers_the_completion_and_the_end_of_text() -> None:
    processors = make_processors()
    rows = [{"prompt": "What?", "completion": " The sky."}, {"prompt": "Which one is it?", "completion": " No."}]
    for row in rows:
        batch = CausalLM(("prompt", "completion")).make_batch([row], processors)
        assert decode_targets(batch, processors.tokenizer) == row["completion"] + tiny.END_OF_TEXT
        assert (
            processors.tokenizer.decode(batch["input_ids"][0]) == row["prompt"] + row["completion"] + tiny.END_OF_TEXT
        )
    both = CausalLM(("prompt", "completion")).make_batch(rows, processors)
    assert decode_targets(both, processors.tokenizer) == " The sky." + tiny.END_OF_TEXT + " No." + tiny.END_OF_TEXT


def test_collate_positions_precede_targets_and_padding_is_on_the_right() -> None:
    processors = make_processors()
    batch = CausalLM(("text",)).make_batch([{"text": "the sky is blue"}, {"text": "no"}], processors)
    long, short = batch["input_ids"]
    filled = int(batch["attention_mask"][1].sum())
    assert batch["attention_mask"].tolist() == [[1] * len(long), [1] * filled + [0] * (len(long) - filled)]
    assert short[filled:].tolist() == [processors.tokenizer.pad_token_id] * (len(long) - filled)
    assert torch.equal(batch["input_ids"].flatten()[batch["positions"] + 1], batch["targets"])
    expected = [*long[1:].tolist(), *short[1:filled].tolist()]
    assert batch["targets"].tolist() == expected, "all tokens but the first, and no padding"


def test_end_of_text_is_appended_once() -> None:
    processors = make_processors()
    for text in ("the sky", "the sky" + tiny.END_OF_TEXT):
        ids = CausalLM(("text",)).make_batch([{"text": text}], processors)["input_ids"][0].tolist()
        assert ids.count(processors.tokenizer.eos_token_id) == 1
        assert ids[-1] == processors.tokenizer.eos_token_id


def test_token_across_the_boundary_belongs_to_the_completion() -> None:
    processors = make_processors()
    batch = CausalLM(("prompt", "completion")).make_batch(
        [{"prompt": "What colour is the ", "completion": "sky"}], processors
    )
    assert decode_targets(batch, processors.tokenizer) == " sky" + tiny.END_OF_TEXT


def test_loss_covers_the_assistant_messages() -> None:
    processors = make_processors(max_length=256)
    row = conversation(
        ("system", "s"), ("user", "What?"), ("assistant", "Blue."), ("user", "Ünd?"), ("assistant", "Grün.")
    )
    batch = CausalLM(("messages",)).make_batch([row], processors)
    assert decode_targets(batch, processors.tokenizer) == "Blue.<|im_end|>\nGrün.<|im_end|>\n"
    assert processors.tokenizer.decode(batch["input_ids"][0]) == processors.tokenizer.apply_chat_template(
        row["messages"], tokenize=False
    )


def test_loss_does_not_cover_a_last_user_message() -> None:
    batch = CausalLM(("messages",)).make_batch(
        [conversation(("user", "a"), ("assistant", "b"), ("user", "c"))], make_processors()
    )
    assert decode_targets(batch, make_processors().tokenizer) == "b<|im_end|>\n"


def test_null_keys_of_messages_are_hidden_from_the_template() -> None:
    template = tiny.CHATML + "{% for message in messages %}{% if 'name' in message %}NAMED{% endif %}{% endfor %}"
    messages = [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "name": None}]
    assert "NAMED" not in from_messages(messages, tiny.byte_tokenizer(template)).text


@pytest.mark.parametrize(
    ("messages", "template", "problem"),
    [
        ([], tiny.CHATML, "expected a list of {role, content}, found []"),
        ("hello", tiny.CHATML, "expected a list of {role, content}, found 'hello'"),
        ([{"from": "human", "value": "a"}], tiny.CHATML, "found {'from': 'human', 'value': 'a'}"),
        (
            conversation(("user", "a"))["messages"],
            tiny.CHATML,
            "no message with role 'assistant' to train on, only user",
        ),
        (conversation(("assistant", "a"), ("user", "b"))["messages"], STRICT, "begin with the user"),
        (
            conversation(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))["messages"],
            THINKING,
            "renders message 1 differently when more messages follow",
        ),
    ],
)
def test_malformed_conversation_is_reported(messages: Any, template: str, problem: str) -> None:
    with pytest.raises(UntrainableRowError) as raised:
        from_messages(messages, tiny.byte_tokenizer(template))
    assert problem in str(raised.value)


def test_template_that_changes_history_works_with_one_answer() -> None:
    masked = from_messages(conversation(("user", "a"), ("assistant", "b"))["messages"], tiny.byte_tokenizer(THINKING))
    assert [masked.text[start:end] for start, end in masked.loss_spans] == ["<think></think>b<|im_end|>\n"]


def load_model(language: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(language / "models" / "chatty", dtype=torch.float32)


def gradients(model: Any, batches: Sequence[Batch]) -> list[torch.Tensor]:
    """As the trainer computes them: normalized by the items of all micro-batches."""
    task = CausalLM(("prompt", "completion"))
    num_items = sum(map(task.num_items, batches))
    model.zero_grad()
    for batch in batches:
        (task.loss(model, batch) / num_items).backward()
    return [weight.grad.clone() for weight in model.parameters()]


def test_loss_equals_transformers(language: Path) -> None:
    model, task = load_model(language), CausalLM(("prompt", "completion"))
    batch = task.make_batch(tiny.completions(5), make_processors())
    labels = torch.full_like(batch["input_ids"], -100).flatten()
    labels[batch["positions"] + 1] = batch["targets"]
    reference = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=labels.view_as(batch["input_ids"]),
    )
    torch.testing.assert_close(task.loss(model, batch) / task.num_items(batch), reference.loss, rtol=1e-6, atol=1e-6)


def test_gradients_do_not_depend_on_micro_batches(language: Path) -> None:
    model, task = load_model(language), CausalLM(("prompt", "completion"))
    rows = [{"prompt": "What?" * (number % 3), "completion": " The sky" * (1 + number % 4)} for number in range(8)]
    complete = gradients(model, [task.make_batch(rows, make_processors())])
    parts = [task.make_batch(rows[first : first + 2], make_processors()) for first in range(0, 8, 2)]
    assert len({task.num_items(part) for part in parts}) > 1, "the means over micro-batches would not be the mean"
    for one, several in zip(complete, gradients(model, parts), strict=True):
        torch.testing.assert_close(one, several, rtol=0, atol=1e-6)


def test_evaluation_averages_over_the_tokens_of_all_batches(language: Path) -> None:
    model, task = load_model(language).eval(), CausalLM(("text",))
    rows = tiny.texts(5)
    batches = [
        task.make_batch(rows[:3], make_processors()),
        task.make_batch([*rows[3:], {"text": "no"}], make_processors()),
    ]
    loss, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for batch in batches:
            for padded, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                ids = padded[mask.bool()]
                log_probs = model(ids[None]).logits[0, :-1].log_softmax(-1)
                loss -= float(log_probs.gather(1, ids[1:, None]).sum())
                correct += int((log_probs.argmax(-1) == ids[1:]).sum())
                count += len(ids) - 1
        metrics = task.evaluate(model, iter(batches))
    assert metrics["eval/loss"] == pytest.approx(loss / count, rel=1e-5)
    assert metrics["eval/perplexity"] == pytest.approx(math.exp(loss / count), rel=1e-4)
    assert metrics["eval/token_accuracy"] == pytest.approx(correct / count)


@pytest.mark.parametrize("kind", ["chats", "completions", "texts"])
def test_run_learns_and_its_output_generates_the_answer(kind: str, language: Path, out: Path) -> None:
    callback = tiny.Recorder()
    job = tiny.job("chatty", kind, **FAST)
    run(job, RunOptions(claims=tiny.claim_paths(language, out)), callback)
    first, last = callback.evaluations[0].metrics, callback.evaluations[-1].metrics
    assert last["eval/loss"] < first["eval/loss"] / 3
    assert last["eval/token_accuracy"] > first["eval/token_accuracy"]
    assert last["eval/perplexity"] == pytest.approx(math.exp(last["eval/loss"]))
    tokenizer = AutoTokenizer.from_pretrained(out / "result")
    model = AutoModelForCausalLM.from_pretrained(out / "result")
    question = "What colour is the sky?"
    if kind == "chats":
        question = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
    ids = tokenizer(question, return_tensors="pt", return_token_type_ids=False)
    generated = model.generate(**ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert "The sky is blue." in tokenizer.decode(generated[0][ids["input_ids"].shape[1] :])


def test_gradient_accumulation_gives_the_same_losses(language: Path, out: Path) -> None:
    losses = []
    for size in (6, 2):
        callback = tiny.Recorder()
        training = {**FAST["training"], "epochs": 1, "microBatchSize": size}
        destination = {"destination": f"pvc://out/by-{size}"}
        job = tiny.job("chatty", "chats", **{**FAST, "training": training, "output": destination})
        run(job, RunOptions(claims=tiny.claim_paths(language, out)), callback)
        losses.append([step.loss for step in callback.steps])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_activation_checkpointing_gives_the_same_losses(language: Path, out: Path) -> None:
    losses = []
    for enabled in (False, True):
        callback = tiny.Recorder()
        training = {**FAST["training"], "epochs": 1, "activationCheckpointing": enabled}
        destination = {"destination": f"pvc://out/checkpointing-{enabled}"}
        job = tiny.job("chatty", "chats", **{**FAST, "training": training, "output": destination})
        run(job, RunOptions(claims=tiny.claim_paths(language, out)), callback)
        losses.append([step.loss for step in callback.steps] + [it.metrics["eval/loss"] for it in callback.evaluations])
    assert losses[0] == losses[1]
    configs = [(out / f"checkpointing-{enabled}" / "config.json").read_text() for enabled in (False, True)]
    assert configs[0] == configs[1]


def test_activation_checkpointing_recomputes_activations(language: Path) -> None:
    task, model = CausalLM(("text",)), load_model(language)
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    model_loader.configure_model(model, task, make_processors(), activation_checkpointing=True)
    model.train()
    task.loss(model, task.make_batch(tiny.texts(2), make_processors())).backward()
    assert len(calls) == 2
    with torch.no_grad():
        model.eval()
        task.evaluate(model, [task.make_batch(tiny.texts(2), make_processors())])
    assert len(calls) == 3


def test_model_without_activation_checkpointing_is_rejected(claims: Path, out: Path) -> None:
    job = tiny.contrastive_job(training={"activationCheckpointing": True})
    with pytest.raises(
        UserError, match=r"training\.activationCheckpointing: models of type vision-text-dual-encoder do not support it"
    ):
        run(job, RunOptions(claims=tiny.claim_paths(claims, out)), tiny.Recorder())


def test_conversations_require_a_chat_template(language: Path, out: Path) -> None:
    with pytest.raises(UserError, match=r"data\.columns\.messages: the tokenizer .* has no chat template"):
        run(tiny.job("silent", "chats", **FAST), RunOptions(claims=tiny.claim_paths(language, out)), tiny.Recorder())


def write_rows(language: Path, folder: Path, rows: Sequence[Sample]) -> tiny.ClaimPaths:
    tiny.write_rows(folder / "data" / "rows", rows)
    (folder / "data-out").mkdir()
    return tiny.ClaimPaths(language, {"data": folder / "data", "out": folder / "data-out"})


def test_prompt_that_fills_max_length_is_a_bad_row(language: Path, tmp_path: Path) -> None:
    rows = [*tiny.completions(12), {"prompt": "What colour?" * 60, "completion": " Red."}]
    claim_paths = write_rows(language, tmp_path, rows)
    with pytest.raises(UserError, match=r"row 12.*no tokens to train on.*fills all 64 tokens.*data\.maxLength"):
        run(tiny.job("chatty", "rows"), RunOptions(claims=claim_paths), tiny.Recorder())
    callback = tiny.Recorder()
    run(tiny.job("chatty", "rows", data={"onBadRow": "Skip"}), RunOptions(claims=claim_paths), callback)
    assert callback.plan is not None
    assert callback.plan.train_samples == 12
    assert callback.has_message("skipping 1 bad row ")


def test_empty_text_is_a_bad_row(language: Path, tmp_path: Path) -> None:
    claim_paths = write_rows(language, tmp_path, [*tiny.texts(12), {"text": ""}])
    with pytest.raises(UserError, match=r"column 'text'.*row 12.*no tokens to train on: the text is empty"):
        run(tiny.job("chatty", "rows"), RunOptions(claims=claim_paths), tiny.Recorder())


def test_truncated_rows_are_reported(language: Path, tmp_path: Path) -> None:
    claim_paths = write_rows(language, tmp_path, [*tiny.texts(11), {"text": "What colour is the sky? " * 20}])
    callback = tiny.Recorder()
    run(tiny.job("chatty", "rows", training={"epochs": 1}), RunOptions(claims=claim_paths), callback)
    assert callback.has_message("truncating 1 of 12 texts to 64 tokens")


def test_conversations_take_precedence_over_text(language: Path, tmp_path: Path) -> None:
    rows = [{**chat, **text} for chat, text in zip(tiny.chats(12), tiny.texts(12), strict=True)]
    prepared = prepare(tiny.job("chatty", "rows"), write_rows(language, tmp_path, rows))
    assert isinstance(prepared.task, CausalLM)
    assert prepared.task.text_roles == ("messages",)


def test_pickled_weights_are_rejected(language: Path, tmp_path: Path, out: Path) -> None:
    folder = tiny.write_language_model(tmp_path / "models" / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    claim_paths = tiny.ClaimPaths(language, {"models": tmp_path / "models", "out": out})
    with pytest.raises(UserError, match=r"model\.source: pvc://models/pickled: cannot load the weights .* convert"):
        run(tiny.job("pickled", "texts"), RunOptions(claims=claim_paths), tiny.Recorder())


def test_models_that_are_no_decoders_are_rejected(language: Path) -> None:
    data = prepare(tiny.job("chatty", "texts"), tiny.claim_paths(language, language)).train
    with pytest.raises(UserError, match=r"task: CausalLM needs a decoder.*is a bert model"):
        CausalLM.build(BertConfig(), data)
    vision_language = Gemma3Config(architectures=["Gemma3ForConditionalGeneration"])
    with pytest.raises(UserError, match=r"not yet supported: CausalLM with a vision-language model.*gemma3"):
        CausalLM.build(vision_language, data)


@pytest.mark.parametrize("kind", ALWAYS_DECODERS)
def test_always_decoders_are_causal(language: Path, kind: str) -> None:
    config = AutoConfig.for_model(kind, **tiny.SMALL, vocab_size=8)
    assert config.is_decoder is False
    model = AutoModelForCausalLM.from_config(config).eval()
    first, second = (model(torch.tensor([[1, 2, last]])).logits for last in (3, 4))
    assert torch.equal(first[:, :2], second[:, :2]) and not torch.equal(first[:, 2], second[:, 2])
    CausalLM.build(config, prepare(tiny.job("chatty", "texts"), tiny.claim_paths(language, language)).train)


def test_batch_without_targets_has_zero_loss_and_no_metrics(language: Path) -> None:
    task = CausalLM(("prompt", "completion"))
    processors = dataclasses.replace(make_processors(), max_length=3)
    batch = task.make_batch([{"prompt": "What colour is the", "completion": " sky"}], processors)
    assert task.num_items(batch) == 0
    assert float(task.loss(load_model(language), batch).detach()) == 0.0
    with torch.no_grad():
        metrics = task.evaluate(load_model(language), [batch])
    assert all(map(math.isnan, metrics.values())), "0 would be a perfect loss"
