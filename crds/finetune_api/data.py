"""What the model learns from, and what it is judged on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_api.base import Fraction, Model, Rule, Seed, ShortString, cel_count, exactly_one
from finetune_api.sources import Source


class DataSource(Model):
    """A data set: a folder of files on a claim, or a repository on the hub."""

    source: Source
    """`hf://org/repo` or `pvc://claim/path`."""


class Validation(Model):
    """What the model is judged on while it trains: a part of the training set, or a data set of its own."""

    rules = (
        Rule(
            field="fraction",
            message="set exactly one of fraction and source",
            cel=f"{cel_count('fraction', 'source')} == 1",
            holds=exactly_one("fraction", "source"),
        ),
    )

    fraction: Fraction | None = None
    """Part of the training set held out, in (0, 1); drawn with `data.splitSeed`."""
    source: Source | None = None
    """`hf://org/repo` or `pvc://claim/path`."""


class Columns(Model):
    """Which column plays which role; a role that is left out is looked for under its own name."""

    image: ShortString | None = None
    """Column with images (bytes, a path, or a datasets Image)."""
    text: ShortString | None = None
    """Column with text."""
    label: ShortString | None = None
    """Column with class labels."""


class Data(Model):
    """The data of a job."""

    train: DataSource
    """The training set."""
    validation: Validation | None = None
    """The validation set; without one nothing is evaluated."""
    columns: Columns = Columns()
    """Role to column."""
    max_length: Annotated[int, Field(ge=8, le=10_000_000)] | None = None
    """Longest text, in tokens; longer ones are truncated and counted (default: what the model takes)."""
    split_seed: Seed = 0
    """Seed of the split that `validation.fraction` draws."""
    workers: Annotated[int, Field(ge=0, le=64)] = 2
    """Processes that prepare batches ahead of the training loop; 0 prepares them in the loop."""
