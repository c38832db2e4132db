"""A trial batch before the first step names the rows that a model cannot process, and changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from finetune_api import FineTuneJob
from finetune_trainer.errors import OutOfGPUMemory, UserError
from finetune_trainer.tasks.classification import Classification
from finetune_trainer.training import trainer
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny


def go(job: FineTuneJob, claim_paths: tiny.ClaimPaths, **options: Any) -> tiny.Recorder:
    recorder = tiny.Recorder()
    run(job, RunOptions(claims=claim_paths, **options), recorder)
    return recorder


def result(recorder: tiny.Recorder) -> tuple[Any, ...]:
    assert recorder.report is not None and recorder.report.output is not None
    losses = [(record.loss, record.gradient_norms) for record in recorder.steps]
    return recorder.report.output.digest, losses, [record.metrics for record in recorder.evaluations]


def write_resnet(folder: Path) -> None:
    """A model with batch normalization."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": tiny.SIZE, "width": tiny.SIZE}).save_pretrained(folder)


@pytest.mark.parametrize("model", ["resnet", "dual"])
def test_run_is_the_same_bit_for_bit_without_a_trial(
    model: str, claims: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str) -> tiny.Recorder:
        paths = {"models": models, "out": tmp_path / name}
        return go(job, tiny.ClaimPaths(claims, paths if model == "resnet" else {"out": tmp_path / name}))

    models = tmp_path / "models"
    write_resnet(models / "resnet")
    module = {"name": "all", "parameters": ["*"], "optimizer": {"type": "AdamW", "learningRate": 1e-2}}
    data = {"validation": {"fraction": 0.3}}
    job = tiny.contrastive_job() if model == "dual" else tiny.job("resnet", "colours", data=data, modules=[module])
    trials: list[int] = []
    original = trainer.try_batches
    monkeypatch.setattr(trainer, "try_batches", lambda *args: (trials.append(1), original(*args)))
    with_trial = train("with")
    monkeypatch.setattr(trainer, "try_batches", lambda *_: None)
    assert result(with_trial) == result(train("without"))
    assert trials == [1]


def test_row_that_fails_by_itself_is_named(
    claims: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Classification.loss

    def loss(self: Any, model: Any, batch: Any) -> torch.Tensor:
        if (batch["input_ids"] == tiny.WORDS.index("something")).any():
            raise ValueError("two\n  of something")
        return original(self, model, batch)

    monkeypatch.setattr(Classification, "loss", loss)
    rows = [{"text": "a film" + " of something" * (n == 3), "label": n % 2} for n in range(9)]
    tiny.write_rows(tmp_path / "rows", rows)
    with pytest.raises(UserError) as raised:
        go(tiny.job("bert", "rows"), tiny.ClaimPaths(claims, {"data": tmp_path, "out": out}))
    assert str(raised.value).startswith("data.train.source: the model cannot process ")
    assert str(raised.value).endswith("part-0.parquet, row 3: ValueError: two of something")


def test_out_of_gpu_memory_is_explained(claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(Classification, "loss", loss)
    with pytest.raises(OutOfGPUMemory, match="micro-batches of 6 samples"):
        go(tiny.job("bert", "reviews"), tiny.claim_paths(claims, out))


@pytest.mark.parametrize("error", [OSError("disk"), MemoryError(), torch.AcceleratorError("CUDA error: ECC error")])
def test_failure_of_the_machine_is_not_the_fault_of_a_row(
    claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def loss(*_: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr(Classification, "loss", loss)
    for _ in range(2):
        with pytest.raises(type(error)):
            go(tiny.job("bert", "reviews"), tiny.claim_paths(claims, out))


class FailsAt(tiny.Recorder):
    """Raises an exception after a step."""

    def __init__(self, step: int, error: Exception) -> None:
        super().__init__()
        self.step, self.error = step, error

    def on_step_end(self, record: Any) -> None:
        if record.step == self.step:
            raise self.error


def test_same_exception_at_the_same_step_is_permanent(claims: Path, out: Path) -> None:
    job = tiny.job("bert", "reviews", checkpoint={"everySteps": 2})

    def attempt(number: int, step: int, error: Exception, **options: Any) -> None:
        claim_paths = tiny.claim_paths(claims, out)
        run(job, RunOptions(claims=claim_paths, attempt=number, **options), FailsAt(step, error))

    for number, (step, error) in enumerate([(5, IndexError("a <x at 0x7f00aa>")), (5, KeyError("b"))], 1):
        with pytest.raises(type(error)):
            attempt(number, step, error)
    with pytest.raises(KeyError):
        attempt(3, 6, KeyError("b"))
    with pytest.raises(UserError, match=r"two attempts failed after step 6 with the same exception.*: KeyError: 'b'"):
        attempt(4, 6, KeyError("b"))
    with pytest.raises(KeyError):
        attempt(5, 6, KeyError("b"), fresh=True)


def test_addresses_in_messages_are_ignored(claims: Path, out: Path) -> None:
    job = tiny.job("bert", "reviews")
    with pytest.raises(RuntimeError):
        run(job, RunOptions(claims=tiny.claim_paths(claims, out)), FailsAt(2, RuntimeError("<x at 0x7f00aa11>")))
    with pytest.raises(UserError, match="after step 2 with the same exception"):
        run(job, RunOptions(claims=tiny.claim_paths(claims, out)), FailsAt(2, RuntimeError("<x at 0x7f00bb22>")))
