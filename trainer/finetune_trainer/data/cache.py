"""Files in the cache folder that several processes may read and write at once.

A search starts many runs on the same data, and every retry of a run reads it again: results that are expensive to
compute are kept in the cache of `datasets` (in HF_HOME), which runs share.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from finetune_trainer.compat.hf_datasets import cache_folder

FOLDER = "finetune"
"""Folder in the cache of `datasets`."""


def cache_key(*parts: Any) -> str:
    """A file name for values with an unambiguous `repr`."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


def cache_path(kind: str, key: str) -> Path:
    """The path of an entry; its subfolders keep directories small."""
    return cache_folder() / FOLDER / kind / key[:2] / key


def remember(kind: str, key: str, compute: Callable[[], Any]) -> Any:
    """A JSON value from the cache, or computed and stored there.

    A value that cannot be stored, e.g. because the disk is full, is only computed again the next time.
    """
    path = cache_path(kind, key)
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_bytes())
    value = compute()
    with contextlib.suppress(OSError), _temporary_path(path) as temporary:
        temporary.write_text(json.dumps(value))
        temporary.replace(path)
    return value


@contextmanager
def new_entry(kind: str, key: str) -> Iterator[Path]:
    """An empty folder that becomes the entry if the block succeeds; another process may have stored it meanwhile."""
    path = cache_path(kind, key)
    with _temporary_path(path) as temporary:
        temporary.mkdir()
        yield temporary
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise


@contextmanager
def _temporary_path(path: Path) -> Iterator[Path]:
    """A path next to another one, so that it can be renamed to it; deleted if it still exists at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        yield temporary
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
