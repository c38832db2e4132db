"""What the model learns from, and what it is judged on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import (
    Model,
    OpenUnitInterval,
    Rule,
    Seed,
    ShortString,
    at_most_one_of,
    exactly_one_of,
    not_yet_supported,
)
from finetune_api.sources import REVISION_REQUIRES_HUB, Source


class DataSource(Model):
    """A data set: files on a claim (parquet, jsonl, csv, a folder of images), or a repository on the hub."""

    rules = (REVISION_REQUIRES_HUB,)

    source: Source
    """`hf://org/repo` or `pvc://claim/path`."""
    config: ShortString | None = None
    """Which configuration of a repository that has several."""
    split: ShortString | None = None
    """Which split (default: `train`, or the only one there is)."""
    revision: ShortString | None = None
    """Pinned revision of a hub repository: a branch, a tag or a commit (`main` when left out)."""


def _requires_source(field: str) -> Rule:
    return Rule(
        field=field,
        message=f"{field} requires source; a fraction is taken from the training set",
        cel=f"!has(self.{field}) || has(self.source)",
        is_valid=lambda model: getattr(model, field) is None or model.source is not None,
    )


class Validation(Model):
    """What the model is judged on while it trains: a part of the training set, or a data set of its own."""

    rules = (
        exactly_one_of("fraction", "source"),
        *map(_requires_source, ("config", "split", "revision")),
        REVISION_REQUIRES_HUB,
    )

    fraction: OpenUnitInterval | None = None
    """Part of the training set held out, in (0, 1); drawn with `data.splitSeed`."""
    source: Source | None = None
    """`hf://org/repo` or `pvc://claim/path`."""
    config: ShortString | None = None
    """Which configuration of a repository that has several."""
    split: ShortString | None = None
    """Which split (default: `validation`, or the only one there is)."""
    revision: ShortString | None = None
    """Pinned revision of a hub repository."""


class Fold(Model):
    """One fold of a cross-validation: the part of the training set that is validated on, the rest is trained on."""

    rules = (
        Rule(
            field="index",
            message="index must be less than count: folds are numbered from 0",
            cel="self.index < self.count",
            is_valid=lambda fold: fold.index < fold.count,
        ),
    )

    index: Annotated[int, Field(ge=0, le=99)]
    """Which fold, from 0."""
    count: Annotated[int, Field(ge=2, le=100)]
    """How many folds the training set is cut into."""
    split_seed: Seed = 0
    """Seed of the cut; folds of one seed do not overlap."""
    group_by: ShortString | None = None
    """Column whose equal values stay together in one fold, such as a patient."""
    stratify_by: ShortString | None = None
    """Column whose values are spread over the folds in equal parts, such as a label."""


class Columns(Model):
    """Which column plays which role; a role that is left out is looked for under its own name."""

    image: ShortString | None = None
    """Column with images (bytes, a path, or a datasets Image)."""
    text: ShortString | None = None
    """Column with text."""
    label: ShortString | None = None
    """Column with class labels."""
    messages: ShortString | None = None
    """Column with conversations: lists of `{role, content}`."""
    prompt: ShortString | None = None
    """Column with text that is read but not learned."""
    completion: ShortString | None = None
    """Column with the text that is learned after the prompt."""


class Data(Model):
    """The data of a job."""

    rules = (
        at_most_one_of("validation", "fold", report="fold", reason="the fold is the validation set"),
        not_yet_supported("packing", "packing", "!has(self.packing) || !self.packing", lambda data: not data.packing),
    )

    train: DataSource
    """The training set."""
    validation: Validation | None = None
    """The validation set; without one, or a fold, nothing is evaluated."""
    test: DataSource | None = None
    """The test set (its split, when left out: `test`): evaluated once, at the end, on the weights that are saved."""
    fold: Fold | None = None
    """Train on all folds but one, and validate on that."""
    columns: Columns = Columns()
    """Role to column."""
    max_length: Annotated[int, Field(ge=8, le=10_000_000)] | None = None
    """Longest text, in tokens; longer ones are truncated and counted (default: what the model takes)."""
    split_seed: Seed = 0
    """Seed of the split that `validation.fraction` draws."""
    packing: bool = False
    """Fill sequences with several texts (CausalLM)."""
    on_bad_row: Literal["Fail", "Skip"] = "Fail"
    """A row that cannot be used (torn, empty, no image): end the run, or leave the row out and count it."""
    max_bad_rows: Annotated[int, Field(ge=0, le=1_000_000_000)] = 100
    """With `onBadRow: Skip`, more than so many in a data set end the run all the same."""
    workers: Annotated[int, Field(ge=0, le=64)] = 2
    """Processes that prepare batches ahead of the training loop; 0 prepares them in the loop."""
