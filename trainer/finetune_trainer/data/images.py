"""Decodes the images of a dataset."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from finetune_trainer.data.paths import check_path
from finetune_trainer.hub import is_transient

UNREADABLE = "cannot decode the image"


class UnreadableImageError(Exception):
    """A value that is not an image, or an image that cannot be decoded. The message gives the reason."""


def decode_image(value: Any, folder: Path, root: Path) -> Image.Image:
    """Decode an image to RGB.

    Args:
        value: bytes, a path relative to `folder`, or the struct {bytes, path} that `datasets` writes.
        folder: folder of the dataset.
        root: folder that symbolic links must not leave.

    Raises:
        UnreadableImageError: the image cannot be decoded, or the path is outside the dataset's folder.
        OSError: the disk or the machine failed; a retry can help.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str):
        raise UnreadableImageError(f"{UNREADABLE}: expected bytes or a path, found {type(value).__name__}")
    if isinstance(value, str) and (problem := check_path(value, folder, root)):
        raise UnreadableImageError(f"{UNREADABLE}: {problem}")
    try:
        with Image.open(io.BytesIO(value) if isinstance(value, bytes) else folder / value) as image:
            return image.convert("RGB")
    except Exception as error:  # decoders of corrupt files raise many types
        if is_transient(error) or isinstance(error, MemoryError):
            raise
        raise UnreadableImageError(f"{UNREADABLE}: {error}") from error
