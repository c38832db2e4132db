"""Fingerprints of what a run reads: it resumes only if data, tokenizer and model are the same as before."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fingerprints:
    """Digests of the content that a run reads; None for what it does not have.

    Args:
        train, validation, test: content of the rows and columns that are used, whatever their paths.
        tokenizer: the tokenizer, the chat template and the image processor.
        model: commit of the repository, or config and headers of the weight files.
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    tokenizer: str | None = None
    model: str | None = None
