"""Reads Arrow files as `datasets.Dataset.save_to_disk` writes them."""

from __future__ import annotations

from dataclasses import replace

from finetune_trainer.data.bad_rows import BadRowPolicy
from finetune_trainer.data.data_files import DataFiles
from finetune_trainer.data.readers.common import build, without_empty_files
from finetune_trainer.data.table import RowLocations, Table


def read_arrow(data_files: DataFiles, _: BadRowPolicy) -> Table:
    data_files = without_empty_files(data_files)
    data, features = build(data_files)
    # The files have no row counts, so a row is located in the folder.
    folder = replace(data_files, files=(data_files.folder,))
    return Table(data_files, data, features, RowLocations(folder, lambda: [range(data.num_rows)]))
