"""A model with one channel gets grey images; a model and an image processor that disagree are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, ViTForImageClassification, ViTImageProcessor

from finetune_trainer.errors import UserError
from finetune_trainer.planning.image_channels import image_channels
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny
from unit.trainer.tiny import Recorder

TWO_CHANNELS = {"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]}
GREY = {"image_mean": [0.5], "image_std": [0.5]}


def write_model(folder: Path, channels: int, **processor: Any) -> Path:
    torch.manual_seed(0)
    config = tiny.vision_config()
    config.num_channels = channels
    config.num_labels = 3
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": tiny.SIZE, "width": tiny.SIZE}, **processor).save_pretrained(folder)
    return folder


def run_error(tmp_path: Path) -> str:
    with pytest.raises(UserError) as raised:
        train(tmp_path)
    return str(raised.value)


def train(tmp_path: Path) -> Recorder:
    tiny.write_rows(tmp_path / "data" / "colours", tiny.captioned(12))
    job = tiny.job("vit", "colours", task="ImageClassification", training={"epochs": 1})
    recorder = Recorder()
    run(job, RunOptions(claims=tiny.claim_paths(tmp_path, tmp_path / "out")), recorder)
    return recorder


def test_model_with_one_channel_is_trained_on_grey_images(tmp_path: Path) -> None:
    write_model(tmp_path / "models" / "vit", 1, **GREY)
    assert len(train(tmp_path).steps) == 2


@pytest.mark.parametrize(
    ("channels", "processor", "message"),
    [
        (1, {}, "has 1 image channel, but its image processor rejects such images (image_mean with 3 values): "),
        (1, {"do_convert_rgb": True, **GREY}, "but its image processor makes 3 (do_convert_rgb: true); correct"),
        (4, {}, "its config has 4 image channels; supported are 1 (grey) and 3 (RGB)"),
        (
            3,
            {"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]},
            "has 3 image channels, but its image processor rejects such images",
        ),
    ],
)
def test_disagreement_of_model_and_processor_is_refused(
    channels: int, processor: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_model(tmp_path / "models" / "vit", channels, **processor)
    found = run_error(tmp_path)
    assert found.startswith("model.source: pvc://models/vit: its ")
    assert message in found


@pytest.mark.parametrize("processor", [{}, {"do_convert_rgb": True}, {"do_normalize": False}])
def test_model_with_three_channels_fits_usual_processors(processor: dict[str, Any], tmp_path: Path) -> None:
    folder = write_model(tmp_path, 3, **processor)
    images = ViTImageProcessor.from_pretrained(folder)
    assert image_channels(AutoConfig.from_pretrained(folder), images, "pvc://models/vit") == 3


def test_channels_of_a_dual_encoder_are_those_of_its_vision_config(claims: Path) -> None:
    config = AutoConfig.from_pretrained(claims / "models" / "clip")
    config.vision_config.num_channels = 1
    images = ViTImageProcessor(size={"height": 8, "width": 8}, **GREY)
    assert image_channels(config, images, "pvc://models/clip") == 1
