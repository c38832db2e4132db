"""Step time of the trainer relative to a plain torch loop, of two optimizers relative to one, and of HF's Trainer.

    PYTHONPATH=tests uv run --with accelerate python benchmarks/loop.py

All variants train the same small model on the same batches, in turns, so that other load on the machine affects them
equally. The time of a step is that between the ends of two steps: it includes loading its batch and reporting it.
Compare the ratios of the medians; nothing is asserted. The row of HF's Trainer needs accelerate.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from finetune_api import FineTuneJob
from finetune_trainer.callbacks import StepRecord
from finetune_trainer.data import Batch, TrainBatchSampler, load_batches
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.prepare import prepare
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny

REPETITIONS, STEPS, WARMUP_STEPS, BATCH = 7, 40, 5, 16
RATE = 1e-4
ADAMW = {"type": "AdamW", "learningRate": RATE}
PLAIN, ONE, TWO, HF = "plain torch loop, AdamW", "trainer, AdamW", "trainer, AdamW and RMSprop", "HF Trainer, AdamW"
RATIOS = (
    ("trainer / plain torch", ONE, PLAIN, "≤ 1.01"),
    ("two / one", TWO, ONE, "≤ 1.03"),
    ("HF / ours", HF, ONE, "≥ 1"),
)


def main() -> None:
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        claims = Path(folder)
        write_inputs(claims)
        body = make_module("body", ["bert.*"], ADAMW)
        head = make_module("head", ["classifier.*"], ADAMW | {"type": "RMSprop"})
        variants = [
            (PLAIN, time_plain_loop, make_job("plain")),
            (ONE, time_trainer, make_job("one", make_module("all", ["*"], ADAMW))),
            (TWO, time_trainer, make_job("two", body, head)),
            *([(HF, time_hf_trainer, make_job("plain"))] if find_spec("accelerate") else []),
        ]
        for repetition in range(REPETITIONS):
            for name, measure, job in variants:
                seconds[name] += measure(job, claims, claims / f"out-{repetition}")
            variants.append(variants.pop(0))  # each is the first in turn
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


class StepEnds(tiny.Recorder):
    """Records when steps end."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_step_end(self, record: StepRecord) -> None:
        self.times.append(time.perf_counter())


def durations(times: list[float]) -> list[float]:
    """Seconds per step, from the ends of steps, after the first few."""
    return [end - start for start, end in pairwise(times)][WARMUP_STEPS:]


def time_trainer(job: FineTuneJob, claims: Path, out: Path) -> list[float]:
    """Seconds per step of a run."""
    ends = StepEnds()
    run(job, RunOptions(claims=tiny.claim_paths(claims, out)), ends)
    return durations(ends.times)


def batches_of(job: FineTuneJob, claims: Path, out: Path) -> Generator[Batch]:
    """The batches of a run of a job."""
    prepared = prepare(job, tiny.claim_paths(claims, out))
    task = prepared.task
    processors = model_loader.load_processors(prepared.pretrained, task, prepared.config, None)
    sampler = TrainBatchSampler(len(prepared.train), BATCH, BATCH, 0, STEPS)
    return load_batches(
        prepared.train, sampler, lambda samples: task.make_batch(samples, processors), 0, pin_memory=False
    )


def load_model(claims: Path) -> BertForSequenceClassification:
    return AutoModelForSequenceClassification.from_pretrained(claims / "models" / "bert").train()  # type: ignore[no-any-return]


def time_plain_loop(job: FineTuneJob, claims: Path, out: Path) -> list[float]:
    """Seconds per step of the shortest equivalent loop: it clips gradients and reads the loss once per step."""
    model = load_model(claims)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    batches, times = batches_of(job, claims, out), []
    for _ in range(STEPS):
        loss = model(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        times.append(time.perf_counter())
    return durations(times)


def time_hf_trainer(job: FineTuneJob, claims: Path, out: Path) -> list[float]:
    """Seconds per step of transformers' Trainer. Like ours, it reports each step."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    times: list[float] = []

    class RecordStepEnds(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    class TrainerOnBatches(Trainer):
        def get_train_dataloader(self) -> Any:
            return _Sized(batches_of(job, claims, out))

    arguments = TrainingArguments(
        str(out / "hf"), max_steps=STEPS, learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=1.0,
        optim="adamw_torch_fused", weight_decay=0.01, logging_steps=1, save_strategy="no", report_to=[],
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    TrainerOnBatches(load_model(claims), arguments, callbacks=[RecordStepEnds()], train_dataset=[0]).train()
    return durations(times)


class _Sized:
    """The batches of one epoch, with their number."""

    def __init__(self, batches: Generator[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Generator[Batch]:
        return self._batches


def print_table(seconds: dict[str, list[float]]) -> None:
    medians = {name: median(values) for name, values in seconds.items()}
    count = REPETITIONS * (STEPS - WARMUP_STEPS - 1)
    table = Table(title=f"Median of {count} steps of {BATCH} samples, CPU, one thread", box=box.MARKDOWN)
    table.add_column("")
    table.add_column("ms", justify="right")
    for name, value in medians.items():
        table.add_row(name, f"{1000 * value:.2f}")
    ratios = Table(title="Ratios", box=box.MARKDOWN)
    for heading in ("ratio", "measured", "target"):
        ratios.add_column(heading, justify="left" if heading == "ratio" else "right")
    for name, numerator, denominator, target in RATIOS:
        if numerator in medians:
            ratios.add_row(name, f"{medians[numerator] / medians[denominator]:.3f}", target)
    console = Console(width=120)
    console.print(table)
    console.print(ratios)


if __name__ == "__main__":
    main()
