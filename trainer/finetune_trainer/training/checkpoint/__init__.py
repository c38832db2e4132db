"""Checkpoints: what a run needs to resume as if it had not been interrupted, and who may write them.

`store` reads and writes named tensors; `manager` adds ownership of the destination and writes in the background.
"""

from finetune_trainer.training.checkpoint.content import Checkpoint, RunRecord, Segment
from finetune_trainer.training.checkpoint.fingerprints import Fingerprints
from finetune_trainer.training.checkpoint.manager import CheckpointManager
from finetune_trainer.training.checkpoint.store import CheckpointStore, file_sha256, write_manifest
from finetune_trainer.training.checkpoint.weights import FrozenWeights, get_model_state_dict, set_model_state_dict

__all__ = [
    "Checkpoint",
    "CheckpointManager",
    "CheckpointStore",
    "Fingerprints",
    "FrozenWeights",
    "RunRecord",
    "Segment",
    "file_sha256",
    "get_model_state_dict",
    "set_model_state_dict",
    "write_manifest",
]
