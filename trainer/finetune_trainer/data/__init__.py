"""What a run learns from: finds data sets, reads them, splits them, and serves batches.

`layout` finds the files, `inside` keeps them to their folder, `tables` reads them, `columns`, `classes` and `dataset`
say what is in them, `bad_rows` and `splits` decide which rows take part, and `order` serves them.
"""

from finetune_trainer.data.bad_rows import BadRows
from finetune_trainer.data.classes import same_classes
from finetune_trainer.data.columns import name_columns
from finetune_trainer.data.dataset import Dataset, Files, Problem, Row, UnreadableImage, decode_image, in_order
from finetune_trainer.data.layout import Layout, check_apart, find
from finetune_trainer.data.order import Batch, TrainingOrder, batches, evaluation_order
from finetune_trainer.data.splits import split, split_sizes
from finetune_trainer.data.tables import Table, count, read

__all__ = [
    "BadRows",
    "Batch",
    "Dataset",
    "Files",
    "Layout",
    "Problem",
    "Row",
    "Table",
    "TrainingOrder",
    "UnreadableImage",
    "batches",
    "check_apart",
    "count",
    "decode_image",
    "evaluation_order",
    "find",
    "in_order",
    "name_columns",
    "read",
    "same_classes",
    "split",
    "split_sizes",
]
