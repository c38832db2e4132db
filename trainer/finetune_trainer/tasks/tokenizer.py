"""Calls of the tokenizer that leave its state as it was loaded, and skip what is not needed.

A call with `truncation` or `padding` sets them in the Rust tokenizer, and `save_pretrained` would write them into
`tokenizer.json`, where they change how other programs tokenize. For the pass over a whole dataset, `Encoding` objects
are used directly: converting them to a `BatchEncoding` takes as long as tokenizing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from finetune_trainer.compat.hf_transformers import encodes_with_backend


@contextmanager
def unchanged(tokenizer: Any) -> Iterator[None]:
    """Restore the truncation and padding of a fast tokenizer at the end."""
    if not tokenizer.is_fast:
        yield
        return
    backend = tokenizer.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        _set_state(backend, truncation, padding)


def encode_batch(tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool, offsets: bool) -> list[Any]:
    """The `tokenizers.Encoding` of each text, neither truncated nor padded.

    Args:
        tokenizer: a fast tokenizer.
        texts: the texts.
        add_special_tokens: whether the tokenizer adds the model's special tokens.
        offsets: whether the encodings have character offsets, which take longer.
    """
    backend = tokenizer.backend_tokenizer
    encode = backend.encode_batch if offsets else backend.encode_batch_fast
    with unchanged(tokenizer):
        _set_state(backend, None, None)
        backend.encode_special_tokens = tokenizer.split_special_tokens
        encodings: list[Any] = encode(list(texts), add_special_tokens=add_special_tokens)
    return encodings


def encode_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, with special tokens, neither truncated nor padded."""
    if not texts:
        return []
    if encodes_with_backend(tokenizer):
        return [encoding.ids for encoding in encode_batch(tokenizer, texts, add_special_tokens=True, offsets=False)]
    with unchanged(tokenizer):
        ids: list[list[int]] = tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
    return ids


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of all that determines token ids and rendered conversations."""
    vocabulary = _backend_json(tokenizer) if tokenizer.is_fast else repr(sorted(tokenizer.get_vocab().items()))
    settings = (
        type(tokenizer).__name__,
        tokenizer.chat_template,
        sorted(map(repr, tokenizer.special_tokens_map.items())),
        tokenizer.truncation_side,
        tokenizer.padding_side,
        getattr(tokenizer, "split_special_tokens", False),
    )
    return hashlib.sha256(f"{vocabulary}{settings!r}".encode(errors="surrogatepass")).hexdigest()


def _backend_json(tokenizer: Any) -> str:
    with unchanged(tokenizer):
        _set_state(tokenizer.backend_tokenizer, None, None)
        return str(tokenizer.backend_tokenizer.to_str())


def _set_state(backend: Any, truncation: dict[str, Any] | None, padding: dict[str, Any] | None) -> None:
    if backend.truncation != truncation:
        backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
    if backend.padding != padding:
        backend.enable_padding(**padding) if padding else backend.no_padding()
