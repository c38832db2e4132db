"""Models that read a text at its end-of-text token, and tokenizers that do not write it.

Without the token such a model fails, or reads another position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

from finetune_trainer.data import Dataset, RowProblem
from finetune_trainer.errors import UserError
from finetune_trainer.tasks.base import Processors
from finetune_trainer.tasks.tokenizer import encode_ids

CLASSIFIERS = ("bart", "bigbird_pegasus", "mbart", "mvp", "plbart", "t5", "mt5", "umt5")
"""Model types whose classifiers need the same number of end-of-text tokens in every text."""

TEXT_ENCODERS = ("clip_text_model", "clipseg_text_model", "metaclip_2_text_model", "xclip_text_model")
"""Model types whose text encoders read the first end-of-text token."""

HIGHEST_ID = 2
"""With this `eos_token_id`, CLIP reads the token with the highest id instead."""


def pooled_token_id(config: PretrainedConfig) -> int | None:
    """Id of the token that the model reads a text at; None for other models."""
    text_config = config.get_text_config()
    token_id: int | None = getattr(text_config, "eos_token_id", None)
    if text_config.model_type in CLASSIFIERS:
        return token_id
    return token_id if text_config.model_type in TEXT_ENCODERS and token_id != HIGHEST_ID else None


def check_adds_token(tokenizer: Any, token_id: int) -> None:
    """Reject a tokenizer that does not add the token.

    Raises:
        UserError: it does not.
    """
    if token_id not in encode_ids(tokenizer, ["a"])[0]:
        raise UserError(
            f"model.source: the model reads a text at its end-of-text token (eos_token_id {token_id} in its config), "
            f"but its tokenizer, whose eos_token is {tokenizer.eos_token!r} (id {tokenizer.eos_token_id}), does not "
            "add it; use the tokenizer that the model was trained with"
        )


def texts_with_token(data: Dataset, processors: Processors, token_id: int) -> Iterator[RowProblem]:
    """Rows whose text has the token itself, in addition to that of the tokenizer."""
    token = processors.tokenizer.convert_ids_to_tokens(token_id)
    for row, text in enumerate(data.values("text")):
        if isinstance(text, str) and token in text:
            ids = processors.encode_texts([text])[0]["input_ids"]
            if list(ids).count(token_id) != 1:
                problem = f"the text contains {token!r}, the end-of-text token that the model reads a text at"
                yield RowProblem(row, "text", problem)
