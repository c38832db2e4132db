"""Fingerprints of what a run reads: it resumes only if data, tokenizer and model are the same as before."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_trainer.planning.prepare import PreparedRun
    from finetune_trainer.tasks import Processors

SHORT_DIGEST = 12
"""Characters of a digest in messages."""

FIELD_PATHS = {
    "train": "data.train",
    "validation": "data.validation",
    "test": "data.test",
    "tokenizer": "model.source",
    "model": "model.source",
}


@dataclass(frozen=True)
class Fingerprints:
    """Digests of the content that a run reads; None for what it does not have.

    Args:
        train, validation, test: content of the rows and columns that are used, whatever their paths.
        tokenizer: the tokenizer, the chat template and the image processor.
        model: commit of the repository, or a digest of the config and the headers of the weight files.
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    tokenizer: str | None = None
    model: str | None = None

    @classmethod
    def parse(cls, values: object) -> Fingerprints:
        """The fingerprints in a file that any version may have written; what this version does not know is left out."""
        known = values if isinstance(values, Mapping) else {}
        return cls(**{item.name: known[item.name] for item in fields(cls) if isinstance(known.get(item.name), str)})

    def describe_differences(
        self, other: Fingerprints, sizes: Mapping[str, int] | None = None, other_sizes: Mapping[str, int] | None = None
    ) -> dict[str, str]:
        """Describe what differs. What only one of both has does not count: the specs differ then.

        Args:
            other: the later fingerprints.
            sizes, other_sizes: numbers of samples by dataset, if they are known.

        Returns:
            Messages that start with the field of the manifest, by the name of the fingerprint.
        """
        pairs = {item.name: (getattr(self, item.name), getattr(other, item.name)) for item in fields(self)}
        return {
            name: _describe(name, old, new, (sizes or {}).get(name), (other_sizes or {}).get(name))
            for name, (old, new) in pairs.items()
            if old is not None and new is not None and old != new
        }


_NOUNS = {
    "train": "training set",
    "validation": "validation set",
    "test": "test set",
    "tokenizer": "tokenizer or image processor",
    "model": "model",
}


def _describe(name: str, old: str, new: str, old_size: int | None, new_size: int | None) -> str:
    digests = f"({old[:SHORT_DIGEST]} -> {new[:SHORT_DIGEST]})"
    if old_size is not None and new_size is not None and old_size != new_size:
        return f"{FIELD_PATHS[name]}: the {_NOUNS[name]} has {new_size:,} samples, but had {old_size:,} {digests}"
    return f"{FIELD_PATHS[name]}: the content of the {_NOUNS[name]} has changed {digests}"


def fingerprint_run(prepared: PreparedRun) -> Fingerprints:
    """The fingerprints of everything but the tokenizer, which is loaded later."""
    return Fingerprints(
        train=prepared.train.fingerprint,
        validation=prepared.validation.fingerprint if prepared.validation else None,
        test=prepared.test.fingerprint if prepared.test else None,
        model=fingerprint_model(prepared.pretrained.name_or_path, getattr(prepared.config, "_commit_hash", None)),
    )


def fingerprint_model(name_or_path: str, commit: str | None) -> str | None:
    """The commit of a repository of the Hugging Face Hub, or a digest of a folder.

    The digest of a folder covers its config, and the header and size of each weight file: it changes with the
    architecture, the names, shapes and types of the weights, but is computed without reading them.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        return commit
    config = json.loads((folder / "config.json").read_text())
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size} ".encode() + _read_header(path))
    return digest.hexdigest()


def _read_header(path: Path) -> bytes:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        return file.read(min(length, 2**27))


def fingerprint_processors(processors: Processors) -> str:
    """A digest of the tokenizer, its chat template and the image processor; settings of the job do not count."""
    from finetune_trainer.tasks.tokenizer import tokenizer_fingerprint

    tokenizer = tokenizer_fingerprint(processors.tokenizer) if processors.tokenizer else None
    images = processors.image_processor.to_json_string() if processors.image_processor else None
    return hashlib.sha256(repr((tokenizer, images)).encode(errors="surrogatepass")).hexdigest()
