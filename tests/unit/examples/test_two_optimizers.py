"""What the two-optimizers example starts from: what its `prepare.py` writes, as its manifest and README count on it.

The vision tower is not pretrained here: that takes a minute, and says nothing about the layout.
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
from transformers import AutoImageProcessor, AutoTokenizer, VisionTextDualEncoderModel
from typer.testing import CliRunner

from finetune_api.job import FineTuneJob
from finetune_api.loading import load_job
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


def test_no_digit_is_trained_on_and_validated_on() -> None:
    train, validation = prepare.split_digits()
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == 1797


def test_the_split_is_the_same_every_time() -> None:
    assert np.array_equal(np.concatenate(prepare.split_digits()), np.concatenate(prepare.split_digits()))


def test_the_shifted_look_is_inverted() -> None:
    digit = np.zeros((8, 8))
    assert np.asarray(prepare.tidy(digit)).mean() == 0
    assert np.asarray(prepare.shifted(digit, np.random.default_rng(0))).mean() > 200


def test_validation_speaks_in_other_sentences() -> None:
    assert not set(prepare.TRAIN_CAPTIONS) & set(prepare.VALIDATION_CAPTIONS)


@pytest.mark.parametrize(("split", "rows"), [("train", 1397), ("validation", 400)])
def test_a_split_has_an_image_a_caption_and_a_label(digits: Path, split: str, rows: int, tmp_path: Path) -> None:
    data = load_dataset("parquet", data_files=str(digits / split / "*.parquet"), split="train", cache_dir=tmp_path)
    assert data.num_rows == rows
    assert isinstance(data.features["image"], Image)
    assert data[0]["image"].size == (prepare.IMAGE_SIZE, prepare.IMAGE_SIZE)
    assert set(data["label"]) == set(range(10))
    assert len(set(data["caption"])) >= 60, "captions should vary in sentence and in word"
    for text, label in zip(data["caption"], data["label"], strict=True):
        assert prepare.WORDS[label] in text or str(label) in text


def test_the_folder_holds_all_that_from_pretrained_looks_for(digits: Path, model: VisionTextDualEncoderModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(digits / "model")
    processor = AutoImageProcessor.from_pretrained(digits / "model")
    digit = prepare.tidy(prepare.load_digits().images[0])
    inputs = processor([digit], return_tensors="pt") | tokenizer(["a photo of the digit zero"], return_tensors="pt")
    assert model(**inputs).logits_per_image.shape == (1, 1)
    assert model.logit_scale.exp().item() == pytest.approx(14)


def test_the_pooler_hands_the_first_token_on(digits: Path, model: VisionTextDualEncoderModel) -> None:
    inputs = AutoTokenizer.from_pretrained(digits / "model")(["a seven"], return_tensors="pt")
    with torch.no_grad():
        text = model.text_model(**inputs)
    torch.testing.assert_close(text.pooler_output, text.last_hidden_state[:, 0].tanh())


def test_others_may_read_it(digits: Path) -> None:
    assert all(file.stat().st_mode & 0o004 for file in digits.rglob("*.*"))


def test_a_second_call_does_nothing_unless_forced(digits: Path) -> None:
    written = digits / "train" / "part-0.parquet"
    before = written.stat().st_mtime_ns
    result = CliRunner().invoke(cli(), [str(digits), "--pretrain-epochs", "0"])
    assert result.exit_code == 0, result.output
    assert written.stat().st_mtime_ns == before
    assert not prepare.is_prepared(digits, pretrain_epochs=1), "another recipe is another model"


def test_each_parameter_of_the_model_has_one_module(job: FineTuneJob, model: VisionTextDualEncoderModel) -> None:
    for name, _ in model.named_parameters():
        modules = job.spec.modules or []
        owners = [module.name for module in modules if any(fnmatchcase(name, glob) for glob in module.parameters or [])]
        assert len(owners) == 1, f"{name} belongs to {owners}"


def test_the_job_names_what_prepare_writes(job: FineTuneJob, digits: Path) -> None:
    spec = job.spec
    assert spec.data.validation
    for source in (spec.model.source, spec.data.train.source, spec.data.validation.source):
        assert source
        place = locate(source)
        assert place.name == "digits"
        assert (digits / place.path).is_dir()


def test_the_two_optimizers_are_two(job: FineTuneJob) -> None:
    types = [module.optimizer.type for module in job.spec.modules or [] if module.optimizer]
    assert len(set(types)) == len(types) == 2
