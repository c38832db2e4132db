"""Reads folders of images: one folder for each class, or a metadata table that describes the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

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


def metadata_tables(data_files: DataFiles) -> DataFiles:
    """The metadata tables of a folder of images, as files of their own format.

    Raises:
        UserError: they differ in format.
    """
    formats = {TABLE_FORMATS[file.suffix.lower()] for file in data_files.files}
    if len(formats) > 1:
        found = ", ".join(map(data_files.display_path, data_files.files))
        raise data_files.error(f"expected metadata files of one format, found {found}")
    features = data_files.features and _metadata_features(data_files.features)
    return replace(data_files, format=formats.pop(), features=features)


def read_image_metadata(
    data_files: DataFiles, columns: Sequence[str], read_tables: Callable[[DataFiles, Sequence[str]], Table]
) -> Table:
    """The rows of metadata tables; their column `file_name` is a path relative to the folder of its table.

    Args:
        data_files: the metadata tables.
        columns: the columns to read; `image` is read from `file_name`.
        read_tables: reads columns of tables.

    Raises:
        UserError: the tables differ in format, or have no column `file_name`.
    """
    tables = metadata_tables(data_files)
    names = dict.fromkeys("file_name" if name == "image" else name for name in columns)
    table = read_tables(tables, list(names))
    if "image" not in columns:
        return table
    file_names = table.data.column("file_name")
    if file_names.type not in (pa.string(), pa.large_string()):
        raise data_files.error(f"column 'file_name' has type {file_names.type}; expected paths of images")
    paths, start = [], 0
    for file, count in table.row_locations.files_with_rows():
        folder = file.parent.relative_to(data_files.folder)
        paths += _image_paths(folder, file_names.slice(start, count)).chunks
        start += count
    data = table.data.append_column("image", pa.chunked_array(paths, file_names.type)).select(list(columns))
    features = datasets.Features({**table.features, "image": datasets.Value("string")})
    return replace(table, data=data, features=features, content_key="")  # the paths of the tables count, too


def _metadata_features(features: datasets.Features) -> datasets.Features:
    """The columns of a metadata table whose dataset card declares an image column: the table has its file name."""
    others = {name: feature for name, feature in features.items() if name != "image"}
    return datasets.Features({**others, "file_name": datasets.Value("string")})


def _image_paths(folder: Path, names: pa.ChunkedArray) -> pa.ChunkedArray:
    """The paths of images; URLs and absolute paths stay as they are and are rejected later, as bad rows."""
    if folder == Path():
        return names
    is_absolute = pc.or_(pc.starts_with(names, "/"), pc.match_substring(names, "://"))
    prefix = pa.scalar(f"{folder.as_posix()}/", names.type)
    return pc.if_else(is_absolute, names, pc.binary_join_element_wise(prefix, names, pa.scalar("", names.type)))
