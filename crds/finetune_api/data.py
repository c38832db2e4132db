"""Training, validation and test data of a job."""

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
    """Location of a dataset."""

    rules = (REVISION_REQUIRES_HUB,)

    source: Source
    """Location of the dataset: `hf://org/repo` for a repository on the Hugging Face Hub, or `pvc://claim/path` for a
    file or a directory on a PersistentVolumeClaim. Formats: Parquet, JSON Lines, CSV, Arrow, or directories of
    images."""
    config: ShortString | None = None
    """Name of the configuration, for datasets with several. Defaults to the default configuration of the dataset."""
    split: ShortString | None = None
    """Name of the split."""
    revision: ShortString | None = None
    """Branch, tag or commit of the Hugging Face Hub repository. Defaults to main."""


class TrainingSet(DataSource):
    """Location of the training set."""

    split: ShortString | None = None
    """Name of the split. Defaults to train, or to the only split of the dataset."""


class TestSet(DataSource):
    """Location of the test set."""

    split: ShortString | None = None
    """Name of the split. Defaults to test, or to the only split of the dataset."""


def _requires_source(field: str) -> Rule:
    return Rule(
        field=field,
        message=f"{field} requires source; a fraction is taken from the training set",
        cel=f"!has(self.{field}) || has(self.source)",
        is_valid=lambda model: getattr(model, field) is None or model.source is not None,
    )


class Validation(Model):
    """Validation set: a fraction of the training set, or a separate dataset. Exactly one of fraction and source is
    set."""

    rules = (
        exactly_one_of("fraction", "source"),
        *map(_requires_source, ("config", "split", "revision")),
        REVISION_REQUIRES_HUB,
    )

    fraction: OpenUnitInterval | None = None
    """Fraction of the training set that is held out for validation, chosen at random with `data.splitSeed`. Mutually
    exclusive with source."""
    source: Source | None = None
    """Location of a separate dataset: `hf://org/repo` for a repository on the Hugging Face Hub, or `pvc://claim/path`
    for a file or a directory on a PersistentVolumeClaim. Mutually exclusive with fraction."""
    config: ShortString | None = None
    """Name of the configuration, for datasets with several. Defaults to the default configuration of the dataset."""
    split: ShortString | None = None
    """Name of the split. Defaults to validation, or to the only split of the dataset."""
    revision: ShortString | None = None
    """Branch, tag or commit of the Hugging Face Hub repository. Defaults to main."""


class Fold(Model):
    """One fold of a k-fold cross-validation: the part of the training set that is used for validation."""

    rules = (
        Rule(
            field="index",
            message="index must be less than count: folds are numbered from 0",
            cel="self.index < self.count",
            is_valid=lambda fold: fold.index < fold.count,
        ),
    )

    index: Annotated[int, Field(ge=0, le=99)]
    """Index of the fold, starting from 0."""
    count: Annotated[int, Field(ge=2, le=100)]
    """Number of folds."""
    split_seed: Seed = 0
    """Random seed of the split. Folds with the same seed and count do not overlap."""
    group_by: ShortString | None = None
    """Name of a column with groups, such as a patient ID. All rows of a group are in the same fold. If not set, rows
    are not grouped."""
    stratify_by: ShortString | None = None
    """Name of a column, such as the label, whose values are distributed evenly over the folds. If not set, the folds
    are not stratified."""


class Columns(Model):
    """Names of the columns by role. Which roles are required depends on the task."""

    image: ShortString | None = None
    """Name of the column with images: encoded bytes, a path, or an `Image` of datasets. Defaults to image."""
    text: ShortString | None = None
    """Name of the column with text. Defaults to text."""
    label: ShortString | None = None
    """Name of the column with class labels. Defaults to label."""
    messages: ShortString | None = None
    """Name of the column with conversations: lists of `{role, content}`. Defaults to messages."""
    tools: ShortString | None = None
    """Name of the column with the tools that a conversation may call: a list of JSON schemas, or a string that holds it
    as JSON. A row may have none. Defaults to tools."""
    prompt: ShortString | None = None
    """Name of the column with prompts, which are not part of the loss. Defaults to prompt."""
    completion: ShortString | None = None
    """Name of the column with completions of the prompts, on which the loss is computed. Defaults to completion."""


class Data(Model):
    """Training, validation and test data, and how it is read."""

    rules = (
        at_most_one_of("validation", "fold", report="fold", reason="the fold is the validation set"),
        not_yet_supported("packing", "packing", "!has(self.packing) || !self.packing", lambda data: not data.packing),
    )

    train: TrainingSet
    """Training set."""
    validation: Validation | None = None
    """Validation set. If neither validation nor fold is set, the model is not evaluated during training."""
    test: TestSet | None = None
    """Test set, evaluated once after training, with the weights that are saved. If not set, there is no final
    evaluation."""
    fold: Fold | None = None
    """Fold of a k-fold cross-validation to validate on; the other folds are the training set. If not set, the whole
    training set is used."""
    columns: Columns = Columns()
    """Names of the columns by role."""
    max_length: Annotated[int, Field(ge=8, le=10_000_000)] | None = None
    """Maximum length of a text in tokens. Longer texts are truncated, and their number is logged. Defaults to the
    maximum length of the model and its tokenizer, or to 512 if they do not specify one."""
    split_seed: Seed = 0
    """Random seed of the `validation.fraction` split, and of the order of samples in evaluations."""
    packing: bool = False
    """Whether to pack several texts into one sequence. Only for task CausalLM."""
    on_bad_row: Literal["Fail", "Skip"] = "Fail"
    """What to do with a row that cannot be used, such as an empty text or an image that cannot be decoded. Fail: the
    run fails. Skip: the row is dropped, and the number of dropped rows is logged."""
    max_bad_rows: Annotated[int, Field(ge=0, le=1_000_000_000)] = 100
    """Maximum number of rows per dataset that `onBadRow: Skip` drops. The run fails if there are more."""
    workers: Annotated[int, Field(ge=0, le=64)] = 2
    """Number of worker processes that load batches (`num_workers` of torch's DataLoader). With 0, batches are loaded in
    the main process."""
