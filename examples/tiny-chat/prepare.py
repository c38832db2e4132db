"""Prepare the inputs of the tiny-chat example without network access: conversations about numbers and a small model.

The model is a randomly initialized Llama with one million parameters. The example shows a chat template, a `messages`
column, and a loss that covers the assistant's messages only. The output folder is the claim `numbers`:

    DIR/model             a transformers LlamaForCausalLM with its tokenizer and chat template
    DIR/train.jsonl       {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
    DIR/validation.jsonl  the same format, other numbers
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all inputs are local
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import typer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

SEED = 17
CONVERSATIONS = 4000
VALIDATION_FRACTION = 0.05

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]

QUESTIONS: dict[str, Callable[[int, int], int]] = {
    "Which is larger, {} or {}?": max,
    "Which of {} and {} is the larger one?": max,
    "Which is smaller, {} or {}?": min,
    "Tell me the smaller of {} and {}.": min,
}

Message = dict[str, str]


def conversation(pair: tuple[int, int], rng: random.Random) -> dict[str, list[Message]]:
    """A question about two numbers and its answer, sometimes with a follow-up question."""
    question, answer = rng.choice(list(QUESTIONS.items()))
    messages = [
        {"role": "user", "content": question.format(*pair)},
        {"role": "assistant", "content": f"{answer(*pair)}"},
    ]
    if rng.random() < 0.3:
        other = sum(pair) - answer(*pair)
        messages += [{"role": "user", "content": "And the other one?"}, {"role": "assistant", "content": f"{other}"}]
    return {"messages": messages}


def conversations() -> tuple[list[dict[str, list[Message]]], list[dict[str, list[Message]]]]:
    """Training and validation conversations; no pair of numbers is in both."""
    rng = random.Random(SEED)
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100) if a != b]
    chosen = rng.sample(pairs, CONVERSATIONS)
    held_out = round(VALIDATION_FRACTION * len(chosen))
    rows = [conversation(pair, rng) for pair in chosen]
    return rows[held_out:], rows[:held_out]


def contents(rows: list[dict[str, list[Message]]]) -> Iterator[str]:
    for row in rows:
        for message in row["messages"]:
            yield message["content"]


def train_tokenizer(rows: list[dict[str, list[Message]]]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; each digit is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(contents(rows), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        additional_special_tokens=SPECIAL[2:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=128,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def write(file: Path, rows: list[dict[str, list[Message]]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def prepare(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder.")] = Path(".finetune/claims/numbers"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Write the model and the conversations of this example to DIR, unless they exist."""
    if (folder / "validation.jsonl").is_file() and not force:
        typer.echo(f"{folder} exists; use --force to overwrite")
        return
    transformers_logging.disable_progress_bar()
    train, validation = conversations()
    tokenizer = train_tokenizer(train)
    tokenizer.save_pretrained(folder / "model")
    build_model(tokenizer).save_pretrained(folder / "model")
    for file in (folder / "model").iterdir():
        file.chmod(0o644)  # safetensors writes mode 0600; the trainer pod runs as another user
    write(folder / "train.jsonl", train)
    write(folder / "validation.jsonl", validation)
    typer.echo(f"{folder}: a model, {len(train)} training and {len(validation)} validation conversations")


if __name__ == "__main__":
    typer.run(prepare)
