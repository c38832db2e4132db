"""The output of the two-optimizers example's `prepare.py`, and that its manifest fits it.

The vision encoder is pretrained for a few steps at most: the full pretraining takes over a minute.
"""

import importlib.util
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import typer
from datasets import Image, load_dataset
from rich.progress import Progress
from transformers import AutoImageProcessor, AutoTokenizer, VisionTextDualEncoderModel
from typer.testing import CliRunner

from finetune_api.job import FineTuneJob
from finetune_api.loading import load_job
from finetune_api.schedules import build_schedule
from finetune_api.sources import locate

EXAMPLE = Path(__file__).parents[3] / "examples" / "two-optimizers"


def load_prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_optimizers_prepare", EXAMPLE / "prepare.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_prepare()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("claims") / "digits"
    prepare.prepare(folder, pretrain_epochs=0)
    return folder


@pytest.fixture(scope="module")
def model(digits: Path) -> VisionTextDualEncoderModel:
    loaded: VisionTextDualEncoderModel = VisionTextDualEncoderModel.from_pretrained(digits / "model")
    return loaded


@pytest.fixture(scope="module")
def job() -> FineTuneJob:
    return load_job(EXAMPLE / "job.yaml")


def cli() -> typer.Typer:
    app = typer.Typer()
    app.command()(prepare.prepare)
    return app


def test_training_and_validation_digits_are_disjoint() -> None:
    train, validation = prepare.split_digits()
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == 1797


def test_split_is_deterministic() -> None:
    assert np.array_equal(np.concatenate(prepare.split_digits()), np.concatenate(prepare.split_digits()))


def test_shifted_digits_are_rotated_and_noisy() -> None:
    digit = prepare.load_digits().images[0]
    clean = np.asarray(prepare.clean(digit))
    shifted = np.asarray(prepare.shifted(digit, np.random.default_rng(0)))
    assert clean.shape == shifted.shape
    assert clean[0, 0].tolist() == [0, 0, 0]
    assert clean.max() > 240
    assert 10 < np.abs(shifted.astype(float) - clean).mean() < 60


def pretrain_briefly(threads: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Weights after a few steps, with torch set to this number of threads before."""
    train, validation = prepare.split_digits()
    before = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "split_digits", lambda: (train[:256], validation))
        torch.set_num_threads(threads)
        try:
            encoder = prepare.pretrained_vision_encoder(1, Progress(disable=True))
            assert torch.get_num_threads() == threads, "should be restored"
        finally:
            torch.set_num_threads(before)
    return dict(encoder.state_dict())


def test_pretrained_weights_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (pretrain_briefly(threads, monkeypatch) for threads in (1, 2))
    assert all(torch.equal(two[name], weight) for name, weight in one.items())


def test_pretrained_weights_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, weight in pretrain_briefly(1, monkeypatch).items():
        assert weight.dtype == torch.float32, name
        assert torch.equal(weight, weight.double().round(decimals=prepare.DECIMALS).float()), name
        assert not weight[weight == 0].signbit().any(), name
    assert torch.get_default_dtype() == torch.float32


def test_validation_captions_are_not_training_captions() -> None:
    assert not set(prepare.TRAIN_CAPTIONS) & set(prepare.VALIDATION_CAPTIONS)


@pytest.mark.parametrize(("split", "rows"), [("train", 1397), ("validation", 400)])
def test_split_has_image_caption_and_label(digits: Path, split: str, rows: int, tmp_path: Path) -> None:
    data = load_dataset("parquet", data_files=str(digits / split / "*.parquet"), split="train", cache_dir=tmp_path)
    assert data.num_rows == rows
    assert isinstance(data.features["image"], Image)
    assert data[0]["image"].size == (prepare.IMAGE_SIZE, prepare.IMAGE_SIZE)
    assert set(data["label"]) == set(range(10))
    assert len(set(data["caption"])) >= 60, "captions should vary in template and in the name of the digit"
    for text, label in zip(data["caption"], data["label"], strict=True):
        assert prepare.WORDS[label] in text or str(label) in text


def test_model_folder_loads_with_from_pretrained(digits: Path, model: VisionTextDualEncoderModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(digits / "model")
    processor = AutoImageProcessor.from_pretrained(digits / "model")
    digit = prepare.clean(prepare.load_digits().images[0])
    inputs = processor([digit], return_tensors="pt") | tokenizer(["a photo of the digit zero"], return_tensors="pt")
    assert model(**inputs).logits_per_image.shape == (1, 1)
    assert model.logit_scale.exp().item() == pytest.approx(14)


def test_text_pooler_returns_first_token(digits: Path, model: VisionTextDualEncoderModel) -> None:
    inputs = AutoTokenizer.from_pretrained(digits / "model")(["a seven"], return_tensors="pt")
    with torch.no_grad():
        text = model.text_model(**inputs)
    torch.testing.assert_close(text.pooler_output, text.last_hidden_state[:, 0].tanh())


def test_files_are_readable_by_other_users(digits: Path) -> None:
    assert all(file.stat().st_mode & 0o004 for file in digits.rglob("*.*"))


def test_second_call_does_not_write(digits: Path) -> None:
    written = digits / "train" / "part-0.parquet"
    before = written.stat().st_mtime_ns
    result = CliRunner().invoke(cli(), [str(digits), "--pretrain-epochs", "0"])
    assert result.exit_code == 0, result.output
    assert written.stat().st_mtime_ns == before
    assert not prepare.is_prepared(digits, pretrain_epochs=1), "other options need another model"


def test_each_parameter_belongs_to_one_module(job: FineTuneJob, model: VisionTextDualEncoderModel) -> None:
    for name, _ in model.named_parameters():
        modules = job.spec.modules or []
        owners = [module.name for module in modules if any(fnmatchcase(name, glob) for glob in module.parameters or [])]
        assert len(owners) == 1, f"{name} belongs to {owners}"


def test_sources_of_the_job_are_prepared(job: FineTuneJob, digits: Path) -> None:
    spec = job.spec
    assert spec.data.validation
    for source in (spec.model.source, spec.data.train.source, spec.data.validation.source):
        assert source
        place = locate(source)
        assert place.name == "digits"
        assert (digits / place.path).is_dir()


def test_modules_have_different_optimizers(job: FineTuneJob) -> None:
    types = [module.optimizer.type for module in job.spec.modules or [] if module.optimizer]
    assert len(set(types)) == len(types) == 2


def test_learning_rates_only_fall_after_warmup(job: FineTuneJob) -> None:
    """A restart late in the run makes the result depend on the seed and on the number of threads."""
    for module in job.spec.modules or []:
        if module.frozen:
            continue
        schedule = build_schedule(module.schedule or [], total_steps=168, steps_per_epoch=21)
        factors = [schedule.factor_at(step) for step in range(10, 168)]
        assert factors == sorted(factors, reverse=True), module.name
        assert factors[-1] < 0.25, module.name
