"""Paths of manifest fields: `spec.modules[1].optimizer.learningRate` as text, as a tuple of keys, and in the models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from finetune_api.job import FineTuneJob
from finetune_api.kubectl_yaml import FieldPath, PathElement

_PART = r"[^.\[\]]+"
_PATH = re.compile(rf"{_PART}(\.{_PART}|\[[^\[\]]+\])*")
_ELEMENT = re.compile(rf"\[([^\[\]]+)\]|({_PART})")


def format_path(path: Sequence[PathElement]) -> str:
    """The path as messages print it.

    >>> format_path(("spec", "modules", 1, "optimizer"))
    'spec.modules[1].optimizer'
    """
    return "".join(f"[{element}]" if isinstance(element, int) else f".{element}" for element in path).removeprefix(".")


def split_path(text: str) -> list[str]:
    """The keys and indexes of a path, as they are written.

    >>> split_path("modules[1].optimizer"), split_path("nodeSelector[kubernetes.io/arch]")
    (['modules', '1', 'optimizer'], ['nodeSelector', 'kubernetes.io/arch'])

    Raises:
        ValueError: it is not a path.
    """
    if not _PATH.fullmatch(text):
        raise ValueError(f"{text!r} is not a path, e.g. modules[1].optimizer.learningRate")
    return _elements(text)


def parse_path(text: str) -> FieldPath:
    """A path relative to a field as a tuple of keys and indexes.

    >>> parse_path("[1].name"), parse_path("earlyStopping"), parse_path("")
    ((1, 'name'), ('earlyStopping',), ())
    """
    return tuple(int(element) if element.isdigit() else element for element in _elements(text))


def _elements(text: str) -> list[str]:
    return [bracket or part for bracket, part in _ELEMENT.findall(text)]


# Paths in the models ---------------------------------------------------------------------------------------------


@cache
def schema_paths() -> frozenset[str]:
    """Every field of a FineTuneJob that a user may set, e.g. `spec.modules[].optimizer.learningRate`."""
    return frozenset(path for path in _walk(FineTuneJob, "") if not path.startswith("status"))


def _walk(annotation: Any, path: str) -> Iterator[str]:
    item = item_annotation(annotation)
    if item is not None:
        yield from _walk(item, f"{path}[]")
        return
    for model in models_of(annotation):
        for name, field in model.model_fields.items():
            child = f"{path}.{field.alias or name}".removeprefix(".")
            yield child
            yield from _walk(field.annotation, child)


def resolve_location(location: FieldPath) -> tuple[list[PathElement], type[BaseModel] | None]:
    """The manifest's path of a pydantic error, and the model that its last key belongs to.

    pydantic's locations also hold the tags of unions and the names of types, which are left out.
    """
    path: list[PathElement] = []
    annotation: Any = FineTuneJob
    parent: type[BaseModel] | None = None
    for key in location:
        models = models_of(annotation)
        if isinstance(key, str) and len(models) > 1:
            annotation = next((model for model in models if _tag(model) == key), annotation)
            if _tag(annotation) == key:
                continue
        if isinstance(key, str) and key in ("int", "str", "constrained-str"):
            continue
        path.append(key)
        parent = models[0] if len(models) == 1 else None
        annotation = item_annotation(annotation) if isinstance(key, int) else _field_annotation(parent, key)
    return path, parent


def field_names(model: type[BaseModel]) -> list[str]:
    """The fields of a model as a manifest spells them, `type` first."""
    names = [field.alias or name for name, field in model.model_fields.items()]
    return sorted(names, key=lambda name: name != "type")


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation stands for: one, or several for a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return [model for part in get_args(annotation) for model in models_of(part)]
    return []


def item_annotation(annotation: Any) -> Any:
    """The annotation of a list's items; None for anything but a list."""
    if get_origin(annotation) is list:
        return get_args(annotation)[0]
    parts = get_args(annotation) if get_origin(annotation) in (Annotated, Union, UnionType) else ()
    return next((item for part in parts if (item := item_annotation(part)) is not None), None)


def _field_annotation(model: type[BaseModel] | None, alias: PathElement) -> Any:
    for field in model.model_fields.values() if model else ():
        if field.alias == alias:
            return field.annotation
    return None


def _tag(model: Any) -> str | None:
    """The value of `type` that selects this model in a union."""
    field = model.model_fields.get("type") if isinstance(model, type) and issubclass(model, BaseModel) else None
    return get_args(field.annotation)[0] if field is not None else None
