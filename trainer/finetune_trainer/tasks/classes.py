"""The classes of a pretrained head, and which labels of a dataset mean them. Pure functions.

A config names its classes twice, in `id2label` and `label2id`, and nothing in transformers keeps them consistent.
Pipelines print `id2label`; a trainer that reads `label2id` would teach class 1 what the saved model calls class 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from finetune_trainer.errors import UserError
from finetune_trainer.formatting import join_some

Label = int | str
INTEGER = re.compile("-?(0|[1-9][0-9]*)")
"""An integer as Python writes it: `001` is a name."""


@dataclass(frozen=True)
class HeadClasses:
    """The classes of a pretrained head.

    Args:
        names: name of each class, by class number; of a contradictory config, all names that occur.
        contradiction: why the config is contradictory; empty for one that is not.
    """

    names: tuple[str, ...]
    contradiction: str = ""

    @property
    def are_named(self) -> bool:
        """Whether the classes have other names than those that transformers gives to classes without names."""
        return self.names != default_names(len(self.names))

    @property
    def are_numbers(self) -> bool:
        """Whether the names are integers, as for a head that was trained on integer labels."""
        return all(map(INTEGER.fullmatch, self.names))


@dataclass(frozen=True)
class LabelMatch:
    """The class of each label of a dataset.

    Args:
        label2id: class number by label.
        note: what the match assumes, for the user; empty for labels that are the names of the classes.
    """

    label2id: Mapping[Label, int]
    note: str = ""


def default_names(count: int) -> tuple[str, ...]:
    """The names that transformers gives to classes without names."""
    return tuple(f"LABEL_{number}" for number in range(count))


def declared_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes in `config.json`, by class number; None without any.

    `id2label` and `label2id` must agree, unless one of them is missing or has only the default names.

    Args:
        config: the fields of `config.json`; `num_labels` is checked too.

    Raises:
        UserError: the fields contradict each other.
    """
    names = _reconcile(_parse_id2label(config.get("id2label")), _parse_label2id(config.get("label2id")))
    count = config.get("num_labels")
    if names is not None and count is not None and count != len(names):
        raise _contradiction(f"num_labels is {count}, but {len(names)} classes have names: {join_some(names)}")
    return names


def read_head(config: PretrainedConfig, declared: Mapping[str, Any] | None = None) -> HeadClasses:
    """The classes of a model's head.

    Args:
        config: the loaded config.
        declared: the fields of `config.json`: transformers drops `label2id` where `id2label` is missing, and the names
            where `num_labels` is another number.
    """
    fields = declared or {}
    if not fields.get("id2label") and not fields.get("label2id"):
        fields = {"id2label": config.id2label, "label2id": config.label2id}
    try:
        return HeadClasses(declared_names(fields) or ())
    except UserError as error:
        return HeadClasses(_all_names(fields), str(error))


def _all_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Every name in the fields of a contradictory config."""
    id2label, label2id = (config.get(field) or {} for field in ("id2label", "label2id"))
    names = id2label.values() if isinstance(id2label, Mapping) else id2label
    return tuple(dict.fromkeys(map(str, (*names, *label2id))))


def fold(name: str) -> str:
    """A name without the differences that people overlook: case and spaces."""
    return " ".join(name.split()).casefold()


def match_labels(
    head: HeadClasses, labels: Sequence[Label], class_names: Sequence[str] | None = None
) -> LabelMatch | None:
    """Find the classes of a head that the labels of a dataset mean.

    Args:
        head: the classes of the head.
        labels: the distinct labels.
        class_names: the names of the labels 0, 1, ... if the column is of type ClassLabel.

    Raises:
        UserError: the labels are names or numbers of a head whose config is contradictory.

    Returns:
        The class of each label, and of each name of a class if labels are names: other rows may have more classes.
        None if the classes are others.
    """
    if head.contradiction:
        _check_unrelated(head, class_names or [str(label) for label in labels])
        return None
    if class_names is not None:
        texts: dict[Label, str] = dict(enumerate(class_names))
        return _match_names(head, texts) or _match_numbers(head, texts) or _match_positions(head, class_names)
    texts = {label: str(label) for label in labels}
    by_name = _match_names(head, texts)
    if by_name is not None and any(isinstance(label, str) for label in labels):
        count = Counter(head.names)
        known: dict[Label, int] = {name: number for number, name in enumerate(head.names) if count[name] == 1}
        return LabelMatch(known | dict(by_name.label2id), by_name.note)
    return by_name or _match_numbers(head, texts)


def _check_unrelated(head: HeadClasses, texts: Sequence[str]) -> None:
    """Reject a contradictory head, unless its classes are others in any case: then the head is not used."""
    names, numbers = set(map(fold, head.names)), set(map(str, range(len(head.names))))
    if not names.isdisjoint(map(fold, texts)) or set(texts) <= numbers:
        raise UserError(head.contradiction)


def _match_names(head: HeadClasses, texts: Mapping[Label, str]) -> LabelMatch | None:
    if set(texts.values()) <= set(head.names):
        count = Counter(head.names)
        if duplicates := [text for text in texts.values() if count[text] > 1]:
            raise _contradiction(f"id2label has several classes with the name {duplicates[0]!r}")
        numbers = _number(head.names)
        return LabelMatch({label: numbers[text] for label, text in texts.items()})
    return _match_ignoring_case(head, texts)


def _match_ignoring_case(head: HeadClasses, texts: Mapping[Label, str]) -> LabelMatch | None:
    numbers = _unique_index(head.names, fold)
    folded = _unique_index(list(texts.values()), fold)
    if numbers is None or folded is None or not folded.keys() <= numbers.keys():
        return None
    label2id = {label: numbers[fold(text)] for label, text in texts.items()}
    changed = [f"{text!r} is {head.names[label2id[it]]!r}" for it, text in texts.items() if text not in head.names]
    return LabelMatch(label2id, f"labels match the model's classes except for case or spaces: {join_some(changed)}")


def _match_numbers(head: HeadClasses, texts: Mapping[Label, str]) -> LabelMatch | None:
    """Labels that are exactly the class numbers. A subset may be other classes, which start from 0 as well."""
    if head.are_named and head.are_numbers:
        return None
    numbers = {label: str(int(label)) if isinstance(label, bool) else text for label, text in texts.items()}
    if set(numbers.values()) != set(map(str, range(len(head.names)))):
        return None
    label2id = {label: int(number) for label, number in numbers.items()}
    pairs = [f"{texts[label]} is {head.names[number]!r}" for label, number in label2id.items()]
    note = f"labels are the numbers of the model's classes: {join_some(pairs)}" if head.are_named else ""
    return LabelMatch(label2id, note)


def _match_positions(head: HeadClasses, class_names: Sequence[str]) -> LabelMatch | None:
    """The names of a column of type ClassLabel for a head of the same size without names."""
    if head.are_named or len(class_names) != len(head.names):
        return None
    note = f"the model's classes have no names; they get those of the data, in their order: {join_some(class_names)}"
    return LabelMatch({number: number for number in range(len(class_names))}, note)


def _reconcile(names: tuple[str, ...] | None, label2id: Mapping[str, int] | None) -> tuple[str, ...] | None:
    """The names of `id2label`, unless only `label2id` has names."""
    if label2id is None or label2id == _number(default_names(len(label2id))):
        return names if names is not None or label2id is None else tuple(label2id)
    if names is None:
        return _invert(label2id)
    if names == default_names(len(names)) and not label2id.keys() & set(names):
        reverse = _invert(label2id)
        if len(reverse) != len(names):
            raise _contradiction(f"id2label has {len(names)} classes, but label2id has {len(reverse)}")
        return reverse
    for name, number in label2id.items():
        expected = names[number] if 0 <= number < len(names) else None
        if expected is None or fold(expected) != fold(name):
            raise _contradiction(f"id2label calls class {number} {expected!r}, but label2id calls it {name!r}")
    return names


def _number(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _parse_id2label(id2label: Any) -> tuple[str, ...] | None:
    if not id2label:
        return None
    try:
        names = {int(number): str(name) for number, name in dict(id2label).items()}
    except (TypeError, ValueError) as error:
        raise _contradiction(f"id2label must have a name by class number, found {id2label!r}") from error
    return _in_order(names, "id2label")


def _in_order(names: Mapping[int, str], field: str) -> tuple[str, ...]:
    """The names by class number, which must be 0, 1, ..."""
    if sorted(names) != list(range(len(names))):
        found = join_some([str(number) for number in sorted(names)])
        raise _contradiction(f"{field} must number the classes from 0 to {len(names) - 1}, found {found}")
    return tuple(names[number] for number in range(len(names)))


def _parse_label2id(label2id: Any) -> dict[str, int] | None:
    if not label2id:
        return None
    try:
        return {str(name): int(number) for name, number in dict(label2id).items()}
    except (TypeError, ValueError) as error:
        raise _contradiction(f"label2id must have a class number by name, found {label2id!r}") from error


def _invert(label2id: Mapping[str, int]) -> tuple[str, ...]:
    """The names of `label2id` by number."""
    by_number: dict[int, str] = {}
    for name, number in label2id.items():
        if number in by_number:
            raise _contradiction(f"label2id has two names for class {number}: {by_number[number]!r} and {name!r}")
        by_number[number] = name
    return _in_order(by_number, "label2id")


def _contradiction(problem: str) -> UserError:
    return UserError(f"model.source: config.json: {problem}; correct the config that the weights were saved with")


def _unique_index(values: Sequence[str], key: Callable[[str], Hashable]) -> dict[Hashable, int] | None:
    """Index of each value by its key; None if two have the same key."""
    index = {key(value): number for number, value in enumerate(values)}
    return index if len(index) == len(values) else None
