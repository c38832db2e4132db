"""Prepare the inputs of the image-classification example without network access: image folders and a pretrained body.

The digits are scikit-learn's. A small ResNet is pretrained here on clean digits, and its classifier is discarded; the
fine-tuning images are inverted, rotated and noisy. The output folder is the claim `digit-images`:

    DIR/model                 a transformers ResNetModel with its image processor, without a classifier
    DIR/images/train/seven/   PNG files, one folder per class
    DIR/images/test/seven/    the same format, other digits
"""

import os
from pathlib import Path
from typing import Annotated

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all inputs are local
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import typer
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor
from transformers.utils import logging as transformers_logging

SEED = 17
SIZE = 32
TEST_SIZE = 400
BATCH = 64
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def clean(digit: np.ndarray) -> Image.Image:
    """White on black, upright, without noise."""
    small = Image.fromarray((digit / 16 * 255).astype(np.uint8))
    return small.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")


def shifted(digit: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Black on white, rotated, noisy."""
    rotated = clean(digit).rotate(rng.uniform(-30, 30), Image.Resampling.BILINEAR)
    noise = rng.normal(0, 40, size=(SIZE, SIZE, 1))
    return Image.fromarray(
        (np.asarray(ImageOps.invert(rotated), dtype=np.float32) + noise).clip(0, 255).astype(np.uint8)
    )


def split_digits() -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the test digits."""
    labels = load_digits().target
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_SIZE, stratify=labels, random_state=SEED)
    return train, test


def write_images(folder: Path, digits: np.ndarray, seed: int) -> None:
    source, rng = load_digits(), np.random.default_rng(seed)
    for digit in digits:
        target = folder / NAMES[source.target[digit]]
        target.mkdir(parents=True, exist_ok=True)
        shifted(source.images[digit], rng).save(target / f"{digit:04d}.png")


def image_processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def pretrained(epochs: int, console: Console) -> ResNetForImageClassification:
    """A small ResNet pretrained on clean digits, without those of the test set."""
    torch.manual_seed(SEED)
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic", num_labels=len(NAMES)
    )
    model = ResNetForImageClassification(config)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    source, (train, _) = load_digits(), split_digits()
    pixels = image_processor()([clean(digit) for digit in source.images[train]], return_tensors="pt")["pixel_values"]
    labels = torch.as_tensor(source.target[train])
    for _ in track(range(epochs), "pretraining the body", console=console):
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(pixels[batch]).logits, labels[batch]).backward()
            optimizer.step()
    return model


def prepare(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder.")] = Path(
        ".finetune/claims/digit-images"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    pretrain_epochs: Annotated[int, typer.Option(min=0, help="Epochs of pretraining on clean digits.")] = 4,
) -> None:
    """Write the model and the images of this example to DIR, unless they exist."""
    console = Console(stderr=True)
    if (folder / "model" / "preprocessor_config.json").is_file() and not force:
        console.print(f"{folder} exists; use --force to overwrite")
        return
    transformers_logging.disable_progress_bar()
    train, test = split_digits()
    write_images(folder / "images" / "train", train, SEED)
    write_images(folder / "images" / "test", test, SEED + 1)
    pretrained(pretrain_epochs, console).resnet.save_pretrained(folder / "model")
    image_processor().save_pretrained(folder / "model")
    for file in (folder / "model").iterdir():
        file.chmod(0o644)  # safetensors writes mode 0600; the trainer pod runs as another user
    console.print(f"{folder}: a pretrained body, {len(train)} training and {len(test)} test images")


if __name__ == "__main__":
    typer.run(prepare)
