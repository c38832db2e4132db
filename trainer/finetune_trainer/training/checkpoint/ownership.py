"""Who may write to a folder of checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

from finetune_trainer.training.checkpoint.store import fsync

OWNER_FILE = "owner.json"


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_text(text)
    fsync(temporary)
    temporary.replace(path)
