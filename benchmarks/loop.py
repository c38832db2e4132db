"""Step time of the trainer relative to a plain torch loop, and of two optimizers relative to one.

    PYTHONPATH=tests python benchmarks/loop.py

All variants train the same small model on the same batches, in turns, so that other load on the machine affects them
equally. Compare the ratios of the medians; nothing is asserted.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from finetune_api import FineTuneJob
from finetune_trainer.data import TrainBatchSampler, load_batches
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.prepare import prepare
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny

REPETITIONS, STEPS, WARMUP_STEPS, BATCH = 7, 40, 5, 16
RATE = 1e-4
ADAMW = {"type": "AdamW", "learningRate": RATE}
PLAIN, ONE, TWO = "plain torch loop, AdamW", "trainer, AdamW", "trainer, AdamW and RMSprop"


def main() -> None:
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        claims = Path(folder)
        write_inputs(claims)
        for repetition in range(REPETITIONS):
            out = claims / f"out-{repetition}"
            seconds[PLAIN] += time_plain_loop(make_job("plain"), claims, out)
            seconds[ONE] += time_trainer(make_job("one", make_module("all", ["*"], ADAMW)), claims, out)
            body, head = (
                make_module("body", ["bert.*"], ADAMW),
                make_module("head", ["classifier.*"], ADAMW | {"type": "RMSprop"}),
            )
            seconds[TWO] += time_trainer(make_job("two", body, head), claims, out)
    print_table(seconds)


def write_inputs(claims: Path) -> None:
    """Write a model with about a million parameters, and a text dataset."""
    torch.manual_seed(0)
    size = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    BertForSequenceClassification(tiny.text_config(num_labels=2, **size)).save_pretrained(claims / "models" / "bert")
    tiny.tokenizer().save_pretrained(claims / "models" / "bert")
    tiny.write_rows(claims / "data" / "reviews", tiny.reviews(BATCH * STEPS))


def make_module(name: str, parameters: list[str], optimizer: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "parameters": parameters, "optimizer": optimizer, "schedule": [{"type": "Constant"}]}


def make_job(name: str, *modules: dict[str, Any]) -> FineTuneJob:
    training = {"batchSize": BATCH, "epochs": 1, "clipGradNorm": 1.0}
    optional: dict[str, Any] = {"modules": list(modules)} if modules else {}
    return tiny.job(
        "bert", "reviews", name=name, training=training, output={"destination": f"pvc://out/{name}"}, **optional
    )


def time_trainer(job: FineTuneJob, claims: Path, out: Path) -> list[float]:
    """Seconds per step of a run."""
    recorder = tiny.Recorder()
    run(job, RunOptions(claims=tiny.claim_paths(claims, out)), recorder)
    return [record.seconds for record in recorder.steps][WARMUP_STEPS:]


def time_plain_loop(job: FineTuneJob, claims: Path, out: Path) -> list[float]:
    """Seconds per step of the shortest equivalent loop: it clips gradients and reads the loss once per step."""
    prepared = prepare(job, tiny.claim_paths(claims, out))
    task = prepared.task
    processors = model_loader.load_processors(prepared.pretrained, task, prepared.config, None)
    model = AutoModelForSequenceClassification.from_pretrained(claims / "models" / "bert").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    sampler = TrainBatchSampler(len(prepared.train), BATCH, BATCH, 0, STEPS)
    batches = load_batches(
        prepared.train, sampler, lambda samples: task.make_batch(samples, processors), 0, pin_memory=False
    )
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        loss = model(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - start)
    return seconds[WARMUP_STEPS:]


def print_table(seconds: dict[str, list[float]]) -> None:
    medians = {name: median(values) for name, values in seconds.items()}
    table = Table(title=f"{REPETITIONS} × {STEPS - WARMUP_STEPS} steps of {BATCH} samples, CPU, one thread")
    for heading in ("", "median ms", "vs plain torch", "vs one optimizer"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, value in medians.items():
        cells = (f"{1000 * value:.1f}", f"{value / medians[PLAIN]:.3f}", f"{value / medians[ONE]:.3f}")
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
