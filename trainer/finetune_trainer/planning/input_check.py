"""Checks that a model takes the examples of its datasets, before its weights are loaded.

A token id beyond the embedding, or an image of another size, would fail inside the model, on a GPU with a message that
does not tell why.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from finetune_trainer.data import Dataset, RowProblem
from finetune_trainer.errors import UserError
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.prepare import DatasetIndexes, PreparedRun
from finetune_trainer.tasks import Processors
from finetune_trainer.tasks.index import ExampleIndex


def check_inputs(prepared: PreparedRun, processors: Processors, indexes: DatasetIndexes) -> None:
    """Check token ids and images of all datasets.

    Raises:
        UserError: the model does not take an example.
    """
    datasets = (
        (prepared.train, indexes.train),
        (prepared.validation, indexes.validation),
        (prepared.test, indexes.test),
    )
    num_embeddings = getattr(prepared.config.get_text_config(), "vocab_size", None)
    if processors.tokenizer and num_embeddings:
        _check_padding(processors.tokenizer, num_embeddings)
        for data, index in datasets:
            if data is not None and index is not None:
                _check_token_ids(data, index, processors.tokenizer, num_embeddings)
    if processors.image_processor:
        _check_image_size(prepared, processors)


def _check_padding(tokenizer: Any, num_embeddings: int) -> None:
    if tokenizer.pad_token_id >= num_embeddings:
        raise UserError(
            f"model.source: the tokenizer's padding token {tokenizer.pad_token!r} has id {tokenizer.pad_token_id}, but "
            f"{_describe_embedding(num_embeddings)}"
        )


def _check_token_ids(data: Dataset, index: ExampleIndex, tokenizer: Any, num_embeddings: int) -> None:
    rows = np.flatnonzero(index.max_token_ids >= num_embeddings)
    if len(rows):
        token_id = int(index.max_token_ids[rows[0]])
        token = tokenizer.convert_ids_to_tokens(token_id)
        role = next(role for role in ("messages", "completion", "text") if role in data.columns)
        problem = f"its token {token!r} has id {token_id}, but {_describe_embedding(num_embeddings)}"
        raise UserError(data.describe(RowProblem(int(rows[0]), role, problem)))


def _describe_embedding(num_embeddings: int) -> str:
    return (
        f"the model's embedding has {num_embeddings:,} rows (vocab_size in its config): resize it with "
        "model.resize_token_embeddings(len(tokenizer)), and save the model"
    )


def _check_image_size(prepared: PreparedRun, processors: Processors) -> None:
    """Run the model without weights on the first example: it checks the size and channels of an image itself."""
    data, task = prepared.train, prepared.task
    batch = task.make_batch([data[0]], processors)
    model = model_loader.build_meta_model(task.auto_class, prepared.config).eval()  # type: ignore[no-untyped-call]
    try:
        with torch.no_grad():
            task.predict(model, {name: value.to("meta") for name, value in batch.items()})
    except (ValueError, RuntimeError) as error:
        if isinstance(error, NotImplementedError) or "meta" in str(error).lower():
            return  # the model needs the values of its inputs
        shape = " x ".join(map(str, batch["pixel_values"].shape[1:]))
        reason = str(error).strip().split("\n")[0]
        problem = f"the model does not take the image, which is {shape} after processing: {reason}"
        raise UserError(data.describe(RowProblem(0, "image", problem))) from error
