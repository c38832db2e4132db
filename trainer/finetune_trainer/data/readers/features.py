"""Types of columns: how types of files are merged into one, and what the types of a dataset card may change.

A type is a feature of `datasets`, which knows classes and images besides the types of Arrow.
"""

from __future__ import annotations

from collections.abc import Mapping

import datasets
import pyarrow as pa

from finetune_trainer.compat.hf_datasets import Feature, feature_from_arrow

TEXT = datasets.Value("string")
JSON = datasets.Json()
"""Values of several types, or nested ones: stored as JSON text, so that they are read exactly as they were written."""


def arrow_type(feature: Feature) -> pa.DataType:
    """The Arrow type that values are stored as."""
    if isinstance(feature, datasets.Json):
        return pa.string()
    return datasets.Features({"value": feature}).arrow_schema.field(0).type


def describe_feature(feature: Feature) -> str:
    """A type as shown in messages."""
    if isinstance(feature, datasets.ClassLabel):
        return f"the classes {', '.join(map(repr, feature.names))}"
    return "values of several types" if isinstance(feature, datasets.Json) else str(arrow_type(feature))


def merge_features(first: Feature, second: Feature) -> Feature | None:
    """A type that represents the values of both exactly; None if there is none."""
    if first == second or _is_null(second):
        return first
    if _is_null(first):
        return second
    if arrow_type(first) == arrow_type(second) and any(isinstance(it, datasets.Image) for it in (first, second)):
        return first if isinstance(first, datasets.Image) else second
    if not (_is_plain(first) and _is_plain(second)):  # classes with other numbers, or an image and something else
        return None
    merged = _merge_types(arrow_type(first), arrow_type(second))
    return None if merged is None else feature_from_arrow(merged)


def _is_null(feature: Feature) -> bool:
    return bool(feature == datasets.Value("null"))


def _is_plain(feature: Feature) -> bool:
    """Whether a type is one of Arrow's."""
    if isinstance(feature, datasets.Json | datasets.ClassLabel):
        return False
    return bool(feature_from_arrow(arrow_type(feature)) == feature)


def _merge_types(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    for belongs in (pa.types.is_signed_integer, pa.types.is_unsigned_integer, pa.types.is_floating):
        if belongs(first) and belongs(second):
            return max(first, second, key=lambda type: type.bit_width)
    if pa.types.is_integer(first) and pa.types.is_integer(second):
        return None if pa.uint64() in (first, second) else pa.int64()
    for kinds in ({pa.string(), pa.large_string()}, {pa.binary(), pa.large_binary()}):
        if {first, second} == kinds:
            return max(kinds, key=lambda type: str(type).startswith("large"))
    return _merge_nested(first, second)


def _merge_nested(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if pa.types.is_null(first) or pa.types.is_null(second):
        return second if pa.types.is_null(first) else first
    if first == second:
        return first
    if pa.types.is_struct(first) and pa.types.is_struct(second):
        return _merge_structs(first, second)
    if pa.types.is_list(first) and pa.types.is_list(second):
        part = _merge_types(first.value_type, second.value_type)
        return None if part is None else pa.list_(part)
    return None


def _merge_structs(first: pa.StructType, second: pa.StructType) -> pa.DataType | None:
    fields: dict[str, pa.DataType | None] = {field.name: field.type for field in first}
    for field in second:
        known = fields.get(field.name)
        fields[field.name] = field.type if known is None else _merge_types(known, field.type)
    return None if None in fields.values() else pa.struct(list(fields.items()))


def declared_features(found: Mapping[str, Feature], declared: Mapping[str, Feature] | None) -> dict[str, Feature]:
    """The types of a dataset card that values are cast to.

    Images, and nested values of JSON, are read as they are in the file.
    """
    card = {name: feature for name, feature in (declared or {}).items() if name in found}
    return {name: feature for name, feature in card.items() if _is_cast(found[name], feature)}


def _is_cast(found: Feature, declared: Feature) -> bool:
    is_nested = isinstance(declared, Mapping | list | datasets.List | datasets.LargeList | datasets.Json)
    return not isinstance(declared, datasets.Image) and not (isinstance(found, datasets.Json) and is_nested)
