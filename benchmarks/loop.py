"""What our loop costs beside a bare torch loop, and what two optimizers cost beside one.

    PYTHONPATH=tests python benchmarks/loop.py

All variants train the same small model on the same batches, in turns, so that whatever else the machine does meets
them alike. Ratios of medians are what to read; nothing is asserted.
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

REPETITIONS, STEPS, WARM_UP, BATCH = 7, 40, 5, 16
RATE = 1e-4
ADAMW = {"type": "AdamW", "learningRate": RATE}
BARE, ONE, TWO = "bare torch loop, AdamW", "our loop, AdamW", "our loop, AdamW and RMSprop"


def main() -> None:
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        claims = Path(folder)
        write(claims)
        for repetition in range(REPETITIONS):
            out = claims / f"out-{repetition}"
            seconds[BARE] += bare(job("bare"), claims, out)
            seconds[ONE] += ours(job("one", module("all", ["*"], ADAMW)), claims, out)
            body, head = (
                module("body", ["bert.*"], ADAMW),
                module("head", ["classifier.*"], ADAMW | {"type": "RMSprop"}),
            )
            seconds[TWO] += ours(job("two", body, head), claims, out)
    show(seconds)


def write(claims: Path) -> None:
    """A model of about a million parameters, and sentences."""
    torch.manual_seed(0)
    size = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    BertForSequenceClassification(tiny.text_config(num_labels=2, **size)).save_pretrained(claims / "models" / "bert")
    tiny.tokenizer().save_pretrained(claims / "models" / "bert")
    tiny.write_rows(claims / "data" / "reviews", tiny.reviews(BATCH * STEPS))


def module(name: str, parameters: list[str], optimizer: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "parameters": parameters, "optimizer": optimizer, "schedule": [{"type": "Constant"}]}


def job(name: str, *modules: dict[str, Any]) -> FineTuneJob:
    training = {"batchSize": BATCH, "epochs": 1, "clipGradNorm": 1.0}
    more: dict[str, Any] = {"modules": list(modules)} if modules else {}
    return tiny.job(
        "bert", "reviews", name=name, training=training, output={"destination": f"pvc://out/{name}"}, **more
    )


def ours(spec: FineTuneJob, claims: Path, out: Path) -> list[float]:
    recorder = tiny.Recorder()
    run(spec, RunOptions(claims=tiny.claim_paths(claims, out)), recorder)
    return [record.seconds for record in recorder.steps][WARM_UP:]


def bare(spec: FineTuneJob, claims: Path, out: Path) -> list[float]:
    """The shortest loop that does the same: the loss is looked at once per step, gradients are clipped."""
    prepared = prepare(spec, tiny.claim_paths(claims, out))
    task = prepared.task
    processors = model_loader.load_processors(prepared.pretrained, task, prepared.config, None)
    model = AutoModelForSequenceClassification.from_pretrained(claims / "models" / "bert").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    order = TrainBatchSampler(len(prepared.train), BATCH, BATCH, 0, 0, STEPS)
    stream = load_batches(prepared.train, order, lambda rows: task.collate(rows, processors), 0, pin_memory=False)
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        loss = model(**next(stream)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - began)
    return seconds[WARM_UP:]


def show(seconds: dict[str, list[float]]) -> None:
    medians = {name: median(values) for name, values in seconds.items()}
    table = Table(title=f"{REPETITIONS} × {STEPS - WARM_UP} steps of {BATCH} samples, CPU, one thread")
    for heading in ("", "median ms", "to bare torch", "to one optimizer"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, value in medians.items():
        cells = (f"{1000 * value:.1f}", f"{value / medians[BARE]:.3f}", f"{value / medians[ONE]:.3f}")
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
