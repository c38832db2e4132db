"""Fingerprints: a file's content, and the values of the columns that a run uses.

A fingerprint of a dataset tells whether two attempts of a run, or two runs, train on the same rows, whatever the paths
and formats of their files and the columns that they do not use.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune_trainer.data.cache import cache_key, remember

FINE_TICK, COARSE_TICK = 0.02, 2.0
"""Seconds in which two changes of a file can have the same time: by the clock of the kernel, and on a file system that
stores whole seconds (FAT: every other one)."""


def content_hash(file: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits.

    Remembered in the cache folder by path, size and times, so that an unchanged file is not read again. Besides the
    modification time, which `cp -p` and rsync set, these are the time of the last change and the inode. The hash of a
    file that has just been written is not remembered: it can change again without a change of its times.

    Raises:
        OSError: the file cannot be read.
    """
    path = os.path.realpath(file)
    stat = os.stat(path)  # noqa: PTH116 - of the same string that is the key
    if _may_change_unseen(stat):
        return _hash_file(path)
    key = cache_key(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return str(remember("content-hashes", key, lambda: _hash_file(path)))


def _may_change_unseen(stat: os.stat_result) -> bool:
    """Whether a file was changed so recently that another change could have the same time."""
    times = (stat.st_mtime_ns, stat.st_ctime_ns)
    tick = FINE_TICK if any(moment % 10**9 for moment in times) else COARSE_TICK
    return time.time_ns() - max(times) < tick * 10**9


def _hash_file(path: str) -> str:
    with Path(path).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def digest_column(chunks: Iterable[pa.Array], type: pa.DataType) -> str:
    """A digest of the values of a column, independent of how they are divided into chunks.

    Args:
        chunks: the values; results of `take`, so that their buffers hold nothing else.
        type: type of the column.
    """
    digest = _ColumnDigest(type)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


class _ColumnDigest:
    """Hashes validity, lengths and data separately, and nested columns part by part."""

    def __init__(self, type: pa.DataType) -> None:
        self._type = type = getattr(type, "storage_type", type)
        self._hashes = [hashlib.sha256(str(type).encode()), hashlib.sha256(), hashlib.sha256()]
        self._parts = [_ColumnDigest(part) for part in _part_types(type)]

    def update(self, array: pa.Array) -> None:
        array = getattr(array, "storage", array)
        validity, lengths, data = self._hashes
        validity.update(array.is_valid().cast(pa.uint8()).buffers()[1] or b"")
        if pa.types.is_struct(self._type):
            for digest, part in zip(self._parts, array.flatten(), strict=True):
                digest.update(part)
            return
        array = array.drop_null()
        if self._parts:
            lengths.update(pc.list_value_length(array).to_numpy().tobytes())
            self._parts[0].update(array.flatten())
        elif _has_offsets(self._type):
            lengths.update(pc.binary_length(array).to_numpy().tobytes())
            data.update(_data_bytes(array))
        elif pa.types.is_boolean(self._type):
            data.update(array.cast(pa.uint8()).to_numpy())
        elif not pa.types.is_null(self._type):
            data.update(_fixed_width_bytes(array) if _has_fixed_width(self._type) else repr(array.to_pylist()).encode())

    def hexdigest(self) -> str:
        parts = [part.hexdigest() for part in self._parts]
        return cache_key(*(digest.hexdigest() for digest in self._hashes), *parts)


def _part_types(type: pa.DataType) -> list[pa.DataType]:
    if pa.types.is_struct(type):
        return [field.type for field in type]
    is_list = pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)
    return [type.value_type] if is_list else []


def _has_offsets(type: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(type) for test in tests)


def _has_fixed_width(type: pa.DataType) -> bool:
    return bool(pa.types.is_primitive(type) or pa.types.is_decimal(type) or pa.types.is_fixed_size_binary(type))


def _data_bytes(array: pa.Array) -> memoryview:
    _, offsets, data = array.buffers()
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    bounds = np.frombuffer(offsets, np.int64 if wide else np.int32)[[array.offset, array.offset + len(array)]]
    return memoryview(data or b"")[bounds[0] : bounds[1]]


def _fixed_width_bytes(array: pa.Array) -> memoryview:
    width = array.type.bit_width // 8
    return memoryview(array.buffers()[1] or b"")[array.offset * width : (array.offset + len(array)) * width]
