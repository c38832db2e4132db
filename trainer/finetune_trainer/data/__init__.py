"""Datasets: resolves files, reads rows, checks and splits them, and loads batches.

In order: `resolve` finds the files of a split (`listing` lists a folder, `layout` divides it by names), `readers` read
them into a `table`, `columns` and `labels` map the table to roles and classes, `bad_rows` and `splits` select rows of
the `dataset`, `sampler` orders them, and `loader` makes batches.
"""

from finetune_trainer.data.bad_rows import BadRowPolicy
from finetune_trainer.data.columns import resolve_columns
from finetune_trainer.data.data_files import check_no_overlap
from finetune_trainer.data.dataset import Dataset, RowProblem, Sample, merge_problems
from finetune_trainer.data.fingerprints import content_hash
from finetune_trainer.data.labels import align_labels
from finetune_trainer.data.loader import Batch, load_batches, map_in_workers
from finetune_trainer.data.readers import count_rows, read_columns, read_table
from finetune_trainer.data.resolve import resolve_files
from finetune_trainer.data.sampler import Position, TrainBatchSampler, TrainDataSource, evaluation_batches
from finetune_trainer.data.splits import describe_split, fold_columns, split_sizes, train_validation_split
from finetune_trainer.data.table import Table

__all__ = [
    "BadRowPolicy",
    "Batch",
    "Dataset",
    "Position",
    "RowProblem",
    "Sample",
    "Table",
    "TrainBatchSampler",
    "TrainDataSource",
    "align_labels",
    "check_no_overlap",
    "content_hash",
    "count_rows",
    "describe_split",
    "evaluation_batches",
    "fold_columns",
    "load_batches",
    "map_in_workers",
    "merge_problems",
    "read_columns",
    "read_table",
    "resolve_columns",
    "resolve_files",
    "split_sizes",
    "train_validation_split",
]
