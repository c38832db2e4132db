"""A job small enough to run in seconds: a BERT of a few thousand weights classifies words into two classes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import Result
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
from typer.testing import CliRunner

from finetune_trainer.cli.main import app
from harness.hub import serve_hub

WORDS = {"fruit": ["apple", "pear", "plum"], "tool": ["saw", "drill", "hammer"]}

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: tiny
spec:
  model: {source: pvc://tiny/model}
  task: SequenceClassification
  data:
    train: {source: pvc://tiny/train}
    validation: {fraction: 0.25}
    workers: 0
  training: {epochs: 2, batchSize: 8, seed: 1}
  modules:
    - name: body
      parameters: ["bert.*"]
      optimizer: {type: SGD, learningRate: 1e-2, momentum: 0.9}
      schedule: [{type: Warmup, steps: 2}, {type: CosineAnnealing, cycles: 2}]
      freeze: {untilEpoch: 1}
    - name: head
      parameters: ["classifier.*"]
      optimizer: {type: AdamW, learningRate: 5e-3}
      clipGradNorm: 1.0
  output: {destination: pvc://out/tiny}
  resources: {gpusPerNode: 0}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The claim with model and data."""
    claim: Path = tmp_path_factory.mktemp("tiny")
    _write_model(claim / "model")
    _write_data(claim / "train")
    return claim


def _write_model(folder: Path) -> None:
    folder.mkdir()
    words = [word for kind in WORDS.values() for word in kind]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(vocabulary)})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    BertForSequenceClassification(config).save_pretrained(folder)


def _write_data(folder: Path) -> None:
    folder.mkdir()
    rows = [(word, kind) for kind, words in WORDS.items() for word in words] * 10
    texts, labels = zip(*rows, strict=True)
    pq.write_table(pa.table({"text": list(texts), "label": list(labels)}), folder / "rows.parquet")


@pytest.fixture
def empty_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A local Hugging Face Hub without repositories; offline, requests to the real one time out slowly."""
    with serve_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield


class Workspace:
    """A folder with a manifest, and the command to run on it."""

    def __init__(self, folder: Path, claim: Path) -> None:
        self.folder, self.claim = folder, claim
        self.job = self.write(JOB)

    def write(self, text: str, name: str = "job.yaml") -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def claim_paths(self) -> list[str]:
        return ["--claim", f"tiny={self.claim}", "--claims-dir", str(self.folder / "claims")]

    def finetune(self, *arguments: object) -> Result:
        result: Any = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert "Traceback" not in result.output
        assert "\x1b" not in result.output
        return result

    def on_job(self, command: str, *arguments: object, claims: bool = True) -> Result:
        return self.finetune(command, self.job, *(self.claim_paths() if claims else ()), *arguments)


@pytest.fixture
def work(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    # As in a pipe, whatever COLUMNS is where the tests are started.
    monkeypatch.delenv("COLUMNS", raising=False)
    return Workspace(tmp_path, tiny)


@pytest.fixture
def changed(work: Workspace) -> Callable[[str, str], Workspace]:
    """The workspace with a part of its manifest replaced."""

    def change(old: str, new: str) -> Workspace:
        assert old in JOB
        work.write(JOB.replace(old, new))
        return work

    return change
