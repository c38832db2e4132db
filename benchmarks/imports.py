"""How long the `finetune` commands take compared with the imports that they cannot avoid.

    python benchmarks/imports.py

`plan` has to import torch and transformers.modeling_utils, `validate` and `--help` neither. Every command runs in a new
process, in turns, so that other load on the machine affects all of them equally. Compare the ratios of the medians.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertTokenizerFast, ResNetConfig, ViTImageProcessor

REPETITIONS = 5
FLOOR = "import torch, transformers.modeling_utils"
JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: {kind}}}
spec:
  model: {{source: pvc://{kind}/model}}
  task: {task}
  data: {{train: {{source: pvc://{kind}/train}}, validation: {{fraction: 0.25}}}}
  training: {{batchSize: 8}}
  resources: {{gpusPerNode: 0}}
"""


def main() -> None:
    seconds: dict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        work = Path(folder)
        write_text_claim(work / "claims" / "text")
        write_image_claim(work / "claims" / "image")
        commands = {FLOOR: [sys.executable, "-c", FLOOR]}
        for kind, task in (("text", "SequenceClassification"), ("image", "ImageClassification")):
            job = work / f"{kind}.yaml"
            job.write_text(JOB.format(kind=kind, task=task))
            commands[f"finetune plan ({kind})"] = [*finetune("plan"), str(job), "--claims-dir", str(work / "claims")]
        commands["finetune validate"] = [*finetune("validate"), str(work / "text.yaml")]
        commands["finetune --help"] = finetune("--help")
        for _ in range(REPETITIONS + 1):  # the first round fills caches, and is dropped
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - start)
    print_table({name: times[1:] for name, times in seconds.items()})


def finetune(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from finetune_trainer.cli.main import main; main()", *arguments]


def write_text_claim(claim: Path) -> None:
    BertConfig(
        vocab_size=7, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    ).save_pretrained(claim / "model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no"]
    BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}).save_pretrained(claim / "model")
    (claim / "train").mkdir()
    table = pa.table({"text": ["yes", "no"] * 40, "label": ["positive", "negative"] * 40})
    pq.write_table(table, claim / "train" / "rows.parquet")


def write_image_claim(claim: Path) -> None:
    ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]).save_pretrained(claim / "model")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(claim / "model")
    for label in ("dark", "bright"):
        (claim / "train" / label).mkdir(parents=True)
        for index in range(40):
            color = (index if label == "dark" else 255 - index,) * 3
            Image.new("RGB", (32, 32), color).save(claim / "train" / label / f"{index}.png")


def print_table(seconds: dict[str, list[float]]) -> None:
    floor = median(seconds[FLOOR])
    table = Table(title=f"Time from start to exit, median of {REPETITIONS}", box=box.MARKDOWN)
    table.add_column("command")
    for heading in ("seconds", "fastest", "ratio"):
        table.add_column(heading, justify="right")
    for name, times in seconds.items():
        table.add_row(name, f"{median(times):.2f}", f"{min(times):.2f}", f"{median(times) / floor:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
