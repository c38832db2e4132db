"""Time from the start of a run to its first step, for a large dataset, relative to tokenizing it once with `datasets`.

    python benchmarks/data.py --rows 1000000

Texts of about 209 bytes are generated from a seed. Every measurement is a process of its own with an empty or a filled
cache; compare the ratios, nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich import box
from rich.console import Console
from rich.table import Table

SEED, VOCABULARY, WORDS, TEXT_BYTES, WORKERS = 17, 8000, 20_000, 195, 2
MAP, COLD, SECOND = "datasets.map, 2 processes", "run, first attempt", "run, second attempt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the inputs are written; default: a temporary folder")
    parser.add_argument("--measure", choices=("map", "run"), help="one measurement, in this process")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure_map(options.folder) if options.measure == "map" else measure_run(options.folder)))
        return
    with TemporaryDirectory(dir=options.folder) as folder:
        write_inputs(Path(folder), options.rows)
        size = (Path(folder) / "data" / "texts" / "train.jsonl").stat().st_size
        seconds = {MAP: start_process("map", Path(folder), "map-cache")}
        for name in (COLD, SECOND):
            seconds[name] = start_process("run", Path(folder), "run-cache")
    print_table(seconds, f"{options.rows:,} rows of jsonl, {size / 2**20:.0f} MiB, CausalLM, {WORKERS} workers")


def write_inputs(folder: Path, rows: int) -> None:
    """Write a tiny language model with a real vocabulary, and a text dataset."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    generator = random.Random(SEED)
    words = ["".join(generator.choices("aeioubcdfghklmnprst", k=generator.randint(2, 9))) for _ in range(WORDS)]

    def make_text() -> str:
        text = ""
        while len(text) < TEXT_BYTES:
            text += generator.choice(words) + " "
        return text[:TEXT_BYTES]

    data = folder / "data" / "texts" / "train.jsonl"
    data.parent.mkdir(parents=True)
    with data.open("w") as file:
        for _ in range(rows):
            file.write(json.dumps({"text": make_text()}) + "\n")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator([make_text() for _ in range(5000)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    torch.manual_seed(SEED)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "models" / "llama")
    tokenizer.save_pretrained(folder / "models" / "llama")


def start_process(measure: str, folder: Path, cache: str) -> float:
    """Run one measurement in a process of its own; from its start for a run, without its start for `datasets.map`."""
    arguments = [sys.executable, __file__, "--measure", measure, "--folder", str(folder)]
    environment = {**os.environ, "HF_HOME": str(folder / cache), "STARTED": str(time.time())}
    process = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(process.stdout.splitlines()[-1]))


def measure_map(folder: Path) -> float:
    """Seconds of `datasets.map`, without reading the file."""
    import datasets
    from transformers import AutoTokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = AutoTokenizer.from_pretrained(folder / "models" / "llama")
    rows = datasets.load_dataset("json", data_files=str(folder / "data" / "texts" / "train.jsonl"), split="train")
    start = time.perf_counter()
    rows.map(lambda batch: tokenizer(batch["text"]), batched=True, num_proc=WORKERS, remove_columns=["text"])
    return time.perf_counter() - start


def measure_run(folder: Path) -> float:
    """Seconds from the start of the process to the end of the first step."""
    from finetune_api import FineTuneJob
    from finetune_trainer.callbacks import Callback, StepRecord
    from finetune_trainer.claims import ClaimPaths
    from finetune_trainer.errors import Interrupted
    from finetune_trainer.training.run import RunOptions, run

    class StopAfterFirstStep(Callback):
        def on_step_end(self, record: StepRecord) -> None:
            raise Interrupted("the first step is done")

    spec = {
        "model": {"source": "pvc://models/llama"},
        "task": "CausalLM",
        "data": {"train": {"source": "pvc://data/texts"}, "workers": WORKERS},
        "training": {"batchSize": 8, "steps": 10},
        "output": {"destination": "pvc://out/result"},
        "resources": {"gpusPerNode": 0},
    }
    job = FineTuneJob.model_validate({"metadata": {"name": "data"}, "spec": spec})
    out = folder / "out"
    out.mkdir(exist_ok=True)
    try:
        run(job, RunOptions(claims=ClaimPaths(folder, {"out": out})), StopAfterFirstStep())
    except Interrupted:
        return time.time() - float(os.environ["STARTED"])
    raise AssertionError("the run ended without a step")


def print_table(seconds: dict[str, float], title: str) -> None:
    table = Table(title=title, box=box.MARKDOWN)
    for heading in ("", "seconds", "vs datasets.map"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}", f"{value / seconds[MAP]:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
