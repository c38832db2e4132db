"""Writes an effective job as YAML, with a comment on each value that its manifest does not set."""

from __future__ import annotations

import re
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_api.job import FineTuneJob

DEFAULT_COMMENT = "# default"


def manifest_document(job: FineTuneJob) -> dict[str, Any]:
    """A job as a manifest, without what the API server adds."""
    manifest = job.manifest()
    metadata = {key: manifest["metadata"][key] for key in ("name", "namespace") if key in manifest["metadata"]}
    return {
        "apiVersion": manifest["apiVersion"],
        "kind": manifest["kind"],
        "metadata": metadata,
        "spec": manifest["spec"],
    }


def manifest_yaml(job: FineTuneJob, original: FineTuneJob | None = None) -> str:
    """A job as YAML.

    Args:
        job: the effective job.
        original: the job as in its manifest; values that it does not set are marked as defaults.
    """
    from ruamel.yaml import YAML

    yaml, stream = YAML(), StringIO()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 10_000
    document = manifest_document(job)
    spec = document["spec"]
    if original is not None:
        spec = original.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)["spec"]
    yaml.dump({**document, "spec": _with_comments(document["spec"], spec)}, stream)
    aligned = re.compile(f"^(.*?) +{DEFAULT_COMMENT}$", flags=re.M)
    return aligned.sub(lambda line: f"{line[1]:<40}  {DEFAULT_COMMENT}", stream.getvalue())


def _with_comments(node: Any, original: Any) -> Any:
    """The node with a comment on each value that is not in the original."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    if isinstance(node, list):
        items = CommentedSeq(_with_comments(item, _child(original, index)) for index, item in enumerate(node))
        if not any(isinstance(item, dict) for item in node):
            items.fa.set_flow_style()
        return items
    if not isinstance(node, dict):
        return node
    mapping = CommentedMap()
    for key, value in sorted(node.items(), key=lambda item: item[0] not in ("name", "type")):
        commented = _with_comments(value, _child(original, key))
        if commented in ({}, []) and not _child(original, key):
            continue
        mapping[key] = commented
        nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))
        if _child(original, key) is None and not nested:
            mapping.yaml_add_eol_comment(DEFAULT_COMMENT, key)
    return mapping


def _child(node: Any, key: str | int) -> Any:
    """The value of a key or an index; None if there is none."""
    if isinstance(node, dict):
        return node.get(key)
    return node[key] if isinstance(node, list) and isinstance(key, int) and key < len(node) else None
