"""Decides from paths alone which files of a folder are data, which split each belongs to, and the class of each image.

The names are those of `datasets`, but they count only where the whole layout says so: `datasets` takes `train_station/`
beside `bus_stop/` for a split and drops every other class, and trains on `Test/` because of its upper-case letter.
Everything that is left out has a reason, for a message of the run. Pure functions.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

from finetune_trainer.compat.hf_datasets import split_aliases
from finetune_trainer.data.formats import DESCRIPTION_FILES, file_format
from finetune_trainer.formatting import join_some, pluralize

SPLIT_OF_WORD: Mapping[str, str] = {str(word): str(words[0]) for words in split_aliases() for word in words}
"""The split that a word in a name means."""

SPLIT_ORDER = ("train", "validation", "test")
SEPARATORS = re.compile(r"[-._ 0-9]+")
SHARD = re.compile(r"data/(?P<split>[^/]+)-\d{5}-of-\d{5}[^/]*\.[^/]+")
"""`data/train-00000-of-00002.parquet`, as `push_to_hub` writes it; the split may have any name."""
SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
MAX_SHOWN_FILES = 3
GIT_FILES = (".gitattributes", ".gitignore")
"""In most repositories; they are not mentioned."""

HIDDEN, CACHE, UNKNOWN = "hidden", "caches of datasets", "of unknown type"
NO_SPLIT, BESIDE_METADATA = "in no split", "tables beside metadata"
"""Reasons to leave a file out."""


@dataclass(frozen=True)
class Layout:
    """The files of a folder.

    Args:
        splits: the data files of each split, sorted; they may have several table formats.
        left_out: the other files, except for those that describe the dataset, with the reason.
        num_referenced: number of images beside tables, which may refer to them.
        class_folders: for a folder of images, the folders of each image that may be its class: without those that all
            images share, or that name a split.
        notes: what the names might mean but were not taken for.
    """

    splits: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    num_referenced: int = 0
    class_folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class _Splits(NamedTuple):
    """The split of each file that has one, and the depth of the folders that name it."""

    by_path: Mapping[str, str]
    depth: int | None = None


class _SplitName(NamedTuple):
    """A name with one word for a split.

    Args:
        split: what the word means.
        rest: the other words; the name means nothing but the split if there are none.
    """

    split: str
    rest: tuple[str, ...]


def infer_layout(paths: Iterable[str]) -> Layout:
    """The splits of a folder without a dataset card.

    Files are split by the names of folders, or, for tables, by their own names. A name counts if it is a split word
    (`train`, `val`, `Test`), perhaps with a number. A longer name (`train_images`, `my-test-data`) counts if all data
    files have one. For images, whose folders may as well be classes, the folders have to name two splits.

    Args:
        paths: all files, relative to the folder.

    Raises:
        ValueError: a shard has an invalid split name.
    """
    names = sorted(paths)
    data, left_out = _separate_data_files(names)
    kinds = {path: file_format(PurePosixPath(path)) for path in data}
    images = [path for path in data if kinds[path] == "images"]
    metadata = [path for path in data if kinds[path] == "metadata"]
    tables = [path for path in data if kinds[path] not in ("images", "metadata")]
    if not metadata and not tables:
        return _image_layout(images, left_out)
    if metadata:
        left_out |= dict.fromkeys(tables, BESIDE_METADATA)
    candidates = metadata or tables
    splits = _table_splits(candidates)
    left_out |= {path: NO_SPLIT for path in candidates if path not in splits}
    return Layout(_group(splits), left_out, len(images), notes=tuple(_ignored_words(splits)))


def _separate_data_files(paths: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Files with rows or images, and the others with the reason."""
    data: list[str] = []
    left_out: dict[str, str] = {}
    for path in paths:
        pure = PurePosixPath(path)
        if pure.name in DESCRIPTION_FILES or pure.name in GIT_FILES:
            continue
        if reason := _reason_to_leave_out(pure):
            left_out[path] = reason
        else:
            data.append(path)
    return data, left_out


def _reason_to_leave_out(path: PurePosixPath) -> str | None:
    if any(part.startswith(".") for part in path.parts) or any(part.startswith("__") for part in path.parts[:-1]):
        return HIDDEN
    if path.name.startswith("cache-") and path.suffix == ".arrow":
        return CACHE
    return UNKNOWN if file_format(path) is None or path.name == "config.json" else None


# Tables ----------------------------------------------------------------------------------------------------------


def _table_splits(paths: Sequence[str]) -> dict[str, str]:
    """The split of each table that has one."""
    if shards := _shard_splits(paths):
        return shards
    shared, parts = _without_shared_folders(paths)
    exact = {path: split for path in paths if (split := next(_exact_splits(_names(parts[path])), None))}
    if exact:
        return exact if "train" in exact.values() else exact | _remaining_as_train(paths, exact, parts)
    for depth in range(max(map(len, parts.values()), default=0)):
        found = {path: name for path in paths if (name := _split_name_at(_names(parts[path]), depth))}
        if len(found) == len(paths):
            return {path: name.split for path, name in found.items()}
    return dict.fromkeys(paths, next(_exact_splits(reversed(shared)), "train"))


def _shard_splits(paths: Sequence[str]) -> dict[str, str]:
    found = {path: match["split"] for path in paths if (match := SHARD.fullmatch(path))}
    for path, split in found.items():
        if not SPLIT_NAME.fullmatch(split):
            raise ValueError(f"Split name should match '{SPLIT_NAME.pattern}', found {split!r} in {path}")
    return found


def _remaining_as_train(
    paths: Sequence[str], exact: Mapping[str, str], parts: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """The tables beside a validation or test set that mention neither are the training set."""
    others = [path for path in paths if path not in exact]
    names = {path: [_parse_name(name) for name in _names(parts[path])] for path in others}
    return {path: "train" for path in others if all(name is None or name.split == "train" for name in names[path])}


def _ignored_words(splits: Mapping[str, str]) -> Iterator[str]:
    """A note about tables that are training data although their names mention another split."""
    names = {path: _parse_name(PurePosixPath(path).stem) for path, split in splits.items() if split == "train"}
    mention = [path for path, name in names.items() if name and name.split != "train"]
    if mention and set(splits.values()) == {"train"}:
        shown = join_some(mention, MAX_SHOWN_FILES)
        yield f"names of splits count only if all files have one, so they do not count in {shown}"


def _names(parts: Sequence[str]) -> list[str]:
    """The names of the folders and of the file, without its extension."""
    return [*parts[:-1], PurePosixPath(parts[-1]).stem]


# Images ----------------------------------------------------------------------------------------------------------


def _image_layout(paths: Sequence[str], left_out: Mapping[str, str]) -> Layout:
    shared, parts = _without_shared_folders(paths)
    folders = {path: parts[path][:-1] for path in paths}
    splits, depth = _image_splits(folders)
    if depth is None:
        splits = dict.fromkeys(paths, next(_exact_splits(reversed(shared)), "train"))
    others = {path: NO_SPLIT for path in paths if path not in splits}
    classes = {path: _class_folders(folders[path], depth, shared) for path in splits}
    return Layout(_group(splits), {**left_out, **others}, class_folders=classes)


def _image_splits(folders: Mapping[str, Sequence[str]]) -> _Splits:
    """The split of each image, by the outermost folders that name splits."""
    for depth in range(max(map(len, folders.values()), default=0)):
        names = {path: _split_name_at(own, depth) for path, own in folders.items()}
        exact = {path: name.split for path, name in names.items() if name and not name.rest}
        if len(set(exact.values())) > 1 or (exact and _is_only_split(exact, folders, depth)):
            return _Splits(exact, depth)
        longer = {path: name for path, name in names.items() if name}
        if len(longer) == len(folders) and _name_same_parts(longer.values()):
            return _Splits({path: name.split for path, name in longer.items()}, depth)
    return _Splits({})


def _is_only_split(exact: Mapping[str, str], folders: Mapping[str, Sequence[str]], depth: int) -> bool:
    """Whether folders named `train` are a split, not a class: only they have folders of their own, or all are named so.

    Args:
        exact: the images in such a folder.
        folders: the folders of all images.
        depth: of these folders.
    """
    others = [own for path, own in folders.items() if path not in exact]
    return all(len(folders[path]) > depth + 1 for path in exact) and all(len(own) <= depth + 1 for own in others)


def _name_same_parts(names: Iterable[_SplitName]) -> bool:
    """Whether names differ in their split only, as `train_images` and `test_images`, but not `train_station`, do."""
    rests: dict[str, set[tuple[str, ...]]] = {}
    for name in names:
        rests.setdefault(name.split, set()).add(name.rest)
    return len(rests) > 1 and len({frozenset(found) for found in rests.values()}) == 1


def _class_folders(folders: Sequence[str], split_depth: int | None, shared: Sequence[str]) -> tuple[str, ...]:
    """The folders of an image without the one that names its split; if none is left, a folder that all images share."""
    own = [name for depth, name in enumerate(folders) if depth != split_depth]
    return tuple(own or shared[-1:] or folders)


def image_classes(class_folders: dict[str, tuple[str, ...]], default: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The class of each image: the name of its innermost folder.

    Args:
        class_folders: as in `Layout`, for the images of one split.
        default: the class of images that are in no folder.

    Returns:
        The classes by path, and notes about what may be a mistake.

    Raises:
        ValueError: the folders may be classes in several ways.
    """
    folders = {path: tuple(own) or (default,) for path, own in class_folders.items()}
    examples = {len(own): path for path, own in reversed(class_folders.items())}
    if len(examples) > 1:
        shown = " and ".join(examples[depth] for depth in sorted(examples)[:2])
        raise ValueError(
            f"expected one folder for each class, found images at different depths: {shown}; move them, or list the "
            "images in a metadata.csv"
        )
    parents: dict[str, tuple[str, ...]] = {}
    for own in folders.values():
        if (other := parents.setdefault(own[-1], own)) != own:
            raise ValueError(
                f"expected one folder for each class, found {'/'.join(other)} and {'/'.join(own)}; rename or merge "
                "them, or list the images in a metadata.csv"
            )
    return {path: own[-1] for path, own in folders.items()}, tuple(_class_notes(parents))


def _class_notes(parents: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    if len({own[:-1] for own in parents.values()}) > 1:
        yield f"the innermost folders are the classes: {join_some(['/'.join(own) for own in parents.values()])}"
    spellings = Counter(_normalize(name) for name in parents)
    similar = sorted(name for name in parents if spellings[_normalize(name)] > 1)
    if similar:
        yield f"these classes differ in upper and lower case or in accents only: {join_some(similar)}"


def _normalize(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


# Names -----------------------------------------------------------------------------------------------------------


def _parse_name(name: str) -> _SplitName | None:
    """A name that mentions exactly one split; None for any other."""
    words = [word for word in SEPARATORS.split(name.lower()) if word and word != "of"]
    splits = {SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD}
    if len(splits) != 1:
        return None
    return _SplitName(splits.pop(), tuple(word for word in words if word not in SPLIT_OF_WORD))


def _split_name_at(names: Sequence[str], depth: int) -> _SplitName | None:
    return _parse_name(names[depth]) if depth < len(names) else None


def _exact_splits(names: Iterable[str]) -> Iterator[str]:
    """The splits of the names that mean nothing else."""
    return (found.split for name in names if (found := _parse_name(name)) and not found.rest)


def _without_shared_folders(paths: Sequence[str]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """The leading folders that all files share, and the rest of each path."""
    parts = {path: PurePosixPath(path).parts for path in paths}
    shared: list[str] = []
    while parts and all(len(own) > len(shared) + 1 for own in parts.values()):
        names = {own[len(shared)] for own in parts.values()}
        if len(names) > 1:
            break
        shared.append(names.pop())
    return shared, {path: own[len(shared) :] for path, own in parts.items()}


def _group(splits: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The files of each split, in the order of their names; train, validation and test come first."""
    grouped: dict[str, list[str]] = {}
    for path, split in sorted(splits.items()):
        grouped.setdefault(split, []).append(path)
    order = sorted(grouped, key=lambda split: (SPLIT_ORDER.index(split) if split in SPLIT_ORDER else 3, split))
    return {split: tuple(grouped[split]) for split in order}


# Messages --------------------------------------------------------------------------------------------------------


def describe_left_out(
    left_out: Mapping[str, str], other_splits: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> str | None:
    """What is not read, with counts and examples, as the end of a message; None if everything is.

    Args:
        left_out: paths with the reason.
        other_splits: the files of the splits that are not read.
    """
    by_reason: dict[str, list[str]] = {}
    for path, reason in left_out.items():
        by_reason.setdefault(reason, []).append(path)
    parts = [f"split {name!r}: {pluralize(len(files), 'file')}" for name, files in other_splits.items()]
    parts += [
        f"{reason}: {pluralize(len(files), 'file')} ({join_some(sorted(files), MAX_SHOWN_FILES)})"
        for reason, files in sorted(by_reason.items())
    ]
    return "; ".join(parts) or None
