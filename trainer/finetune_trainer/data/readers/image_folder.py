"""Reads folders of images: one folder for each class, or a metadata table that describes the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa

from finetune_trainer.data.data_files import DataFiles, describe_choices
from finetune_trainer.data.formats import TABLE_FORMATS
from finetune_trainer.data.table import RowLocations, Table


def read_image_folder(data_files: DataFiles) -> Table:
    """One row for each image; its folder is its class. Image paths are relative, as in any other table of images.

    Raises:
        UserError: the dataset card declares other classes.
    """
    paths = [file.relative_to(data_files.folder).as_posix() for file in data_files.files]
    names = _declared_classes(data_files) or sorted(set(data_files.classes))
    labels = [names.index(name) for name in data_files.classes]
    data = pa.table({"image": pa.array(paths, pa.string()), "label": pa.array(labels, pa.int64())})
    features = datasets.Features({"image": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    locations = RowLocations(data_files, lambda: [range(1)] * len(data_files.files))
    return Table(data_files, data, features, locations)


def _declared_classes(data_files: DataFiles) -> list[str] | None:
    """The classes that the dataset card declares, in its order; None if it declares none."""
    declared = (data_files.features or {}).get("label")
    if not isinstance(declared, datasets.ClassLabel):
        return None
    for file, name in zip(data_files.files, data_files.classes, strict=True):
        if name not in declared.names:
            hint = describe_choices(name, declared.names)
            raise data_files.error(f"{data_files.display_path(file)}: the dataset card has no class {name!r}; {hint}")
    return list(declared.names)


def read_image_metadata(data_files: DataFiles, read_metadata: Callable[[DataFiles], Table]) -> Table:
    """The rows of metadata tables; their column `file_name` is a path relative to the folder of its table.

    Args:
        data_files: the metadata tables.
        read_metadata: reads tables of the format that they have.

    Raises:
        UserError: the tables differ in format, or have no column `file_name`.
    """
    formats = {TABLE_FORMATS[file.suffix.lower()] for file in data_files.files}
    if len(formats) > 1:
        found = ", ".join(map(data_files.display_path, data_files.files))
        raise data_files.error(f"expected metadata files of one format, found {found}")
    features = data_files.features and _metadata_features(data_files.features)
    table = read_metadata(replace(data_files, format=formats.pop(), features=features))
    shown = data_files.display_path(data_files.files[0])
    if "file_name" not in table.columns:
        columns = ", ".join(table.columns)
        raise data_files.error(f"{shown} has no column 'file_name' with the paths of the images; available: {columns}")
    names = table.data.column("file_name").to_pylist()
    folders = [file.parent.relative_to(data_files.folder) for file in table.row_locations.file_of_each_row()]
    if len(folders) != len(names):
        raise data_files.error(f"{shown} cannot be read: expected one JSON object per line")
    pairs = zip(folders, names, strict=True)
    paths = [None if name is None else _image_path(folder, str(name)) for folder, name in pairs]
    data = table.data.append_column("image", pa.array(paths, pa.string())).drop_columns(["file_name"])
    others = {name: feature for name, feature in table.features.items() if name != "file_name"}
    return replace(table, data=data, features=datasets.Features({**others, "image": datasets.Value("string")}))


def _metadata_features(features: datasets.Features) -> datasets.Features:
    """The columns of a metadata table whose dataset card declares an image column: the table has its file name."""
    others = {name: feature for name, feature in features.items() if name != "image"}
    return datasets.Features({**others, "file_name": datasets.Value("string")})


def _image_path(folder: Path, name: str) -> str:
    """The path of an image; URLs and absolute paths stay as they are and are rejected later, as bad rows."""
    return name if "://" in name or name.startswith("/") else (folder / name).as_posix()
