"""Reads manifests from files, and says what is wrong with them: file, line, field, value, expectation, nearest choice.

YAML is read as version 1.2, where `2e-5` is a number, as it is for kubectl and Helm.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from finetune_api.job import FineTuneJob
from finetune_api.names import GROUP, JOB_KIND
from finetune_api.settings import SettingError, apply_settings

Key = str | int


@dataclass(frozen=True)
class Issue:
    """One thing wrong with a manifest.

    Args:
        path: the field, e.g. `spec.modules[1].optimizer.learningRate`; empty for the document as a whole.
        message: what was found and what was expected.
        value: the value found; None when the field is missing.
        suggestion: the nearest valid choice.
        file: the file's name.
        line, column: counted from 1; None when unknown.
    """

    path: str
    message: str
    value: object | None = None
    suggestion: str | None = None
    file: str = ""
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        hint = f"; did you mean {self.suggestion!r}?" if self.suggestion else ""
        return ": ".join(part for part in (place, self.path, self.message + hint) if part)


class SpecError(ValueError):
    """A manifest that does not obey the language."""

    def __init__(self, issues: Sequence[Issue]) -> None:
        super().__init__("\n".join(str(issue) for issue in issues))
        self.issues = tuple(issues)


@dataclass(frozen=True)
class Verdict:
    """What was found about one document of a file; `skipped` says why a document was not looked at."""

    kind: str
    name: str
    line: int
    issues: tuple[Issue, ...] = ()
    skipped: str | None = None


def load_job(path: Path, settings: Sequence[str] = ()) -> FineTuneJob:
    """Read the one FineTuneJob of a file.

    Args:
        settings: `path=value` changes, applied before the manifest is judged.

    Raises:
        SpecError: the file cannot be read, holds no FineTuneJob or several, or the job does not obey the language.
    """
    name = str(path)
    every = _documents(_text(path), name)
    documents = [document for document in every if _kind(document) == JOB_KIND]
    if len(documents) != 1:
        kinds = ", ".join(f"a {_kind(document) or 'document without kind'}" for document in every)
        found = f"{len(documents)} of them" if documents else kinds or "nothing"
        raise SpecError([Issue("", f"expected one {JOB_KIND}, found {found}", file=name)])
    document = documents[0]
    try:
        apply_settings(document, list(settings))
    except SettingError as error:
        raise SpecError([Issue("", str(error))]) from None
    issues = _issues(document, name)
    if issues:
        raise SpecError(issues)
    return FineTuneJob.model_validate(_plain(document))


def check_file(text: str, name: str) -> list[Verdict]:
    """Judge every document of a file; documents of other kinds are skipped with a word."""
    try:
        return [_verdict(document, name) for document in _documents(text, name)]
    except SpecError as error:
        line = error.issues[0].line or 1
        return [Verdict("", "", line, error.issues)]


def nearest(word: str, choices: Sequence[str]) -> str | None:
    """The choice most like a word, if any is like it; case is forgiven first."""
    for choice in choices:
        if choice.lower() == word.lower():
            return choice
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    longer = [choice for choice in choices if len(word) > 2 and choice.lower().startswith(word.lower())]
    return next(iter([*close, *longer]), None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError([Issue("", f"cannot be read: {error.strerror}", file=str(path))]) from None
    except UnicodeDecodeError:
        raise SpecError([Issue("", "is not UTF-8 text", file=str(path))]) from None


def _documents(text: str, name: str) -> list[Any]:
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    try:
        return [document for document in yaml.load_all(StringIO(text)) if document is not None]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = "duplicate key" if isinstance(error, DuplicateKeyError) else "not valid YAML"
        detail = str(error.problem or "").split("\n")[0]
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise SpecError([Issue("", f"{problem}: {detail}", file=name, line=line, column=column)]) from None
    except (YAMLError, ValueError) as error:
        raise SpecError([Issue("", f"not valid YAML: {str(error).splitlines()[0]}", file=name)]) from None


def _kind(document: Any) -> str:
    return str(document.get("kind", "")) if isinstance(document, dict) else ""


def _verdict(document: Any, name: str) -> Verdict:
    line = document.lc.line + 1 if isinstance(document, CommentedMap | CommentedSeq) else 1
    kind = _kind(document)
    if not isinstance(document, dict):
        return Verdict(kind, "", line, (Issue("", "expected a mapping", document, file=name, line=line),))
    metadata = document.get("metadata")
    label = str(metadata.get("name", "")) if isinstance(metadata, dict) else ""
    group = str(document.get("apiVersion", "")).partition("/")[0]
    if kind != JOB_KIND and group != GROUP:
        skipped = f"not a {JOB_KIND}" + (f" but a {kind}" if kind else ": it has no kind")
        return Verdict(kind, label, line, skipped=skipped)
    return Verdict(kind, label, line, tuple(_issues(cast(CommentedMap, document), name)))


def _issues(document: CommentedMap, name: str) -> list[Issue]:
    """Everything wrong with one FineTuneJob, in the order of the file."""
    found = list(_misread_scalars(document, name))
    try:
        FineTuneJob.model_validate(_plain(document))
    except ValidationError as error:
        found += [_issue(details, document, name) for details in error.errors()]
    return sorted(found, key=lambda issue: (issue.line or 0, issue.column or 0))


def _issue(details: ErrorDetails, document: CommentedMap, name: str) -> Issue:
    keys, owner = _resolve(details["loc"])
    message, suggestion = _words(details, keys, owner)
    if details["type"].startswith("union_tag"):
        keys = [*keys, "type"]
    if details["type"] == "rule":
        keys = [*keys, *_keys(details["ctx"]["field"])]
    line, column = _position(document, keys)
    value = None if details["type"] in ("missing", "rule", "union_tag_not_found") else _plain(details["input"])
    return Issue(_path(keys), message, value, suggestion, name, line, column)


def _words(details: ErrorDetails, keys: list[Key], owner: type[BaseModel] | None) -> tuple[str, str | None]:
    """Message and nearest choice for one of pydantic's errors."""
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "extra_forbidden":
        choices = _fields(owner) if owner else []
        return f"unknown field; expected one of {', '.join(choices)}", nearest(str(keys[-1]), choices)
    if kind == "missing":
        return "is required", None
    if kind in ("literal_error", "union_tag_invalid"):
        choices = re.findall(r"'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))
        shown = value.get("type") if kind == "union_tag_invalid" and isinstance(value, dict) else value
        return f"{_show(shown)} is not one of {', '.join(choices)}", nearest(str(shown), choices)
    if kind == "union_tag_not_found":
        return "type is required", None
    if kind == "rule":
        return str(context["message"]), None
    if kind == "string_pattern_mismatch":
        return f"{_show(value)} is not of the form {_form(str(context['pattern']))}", None
    expectation = details["msg"].replace("Input should be", "expected").replace("Input", "value")
    return f"{_show(value)}: {expectation[0].lower()}{expectation[1:]}", None


def _form(pattern: str) -> str:
    """What a pattern means, for the patterns that have a name."""
    if "hf://" in pattern:
        return "hf://org/repo or pvc://claim/path"
    if "pvc://" in pattern:
        return "pvc://claim/path"
    return pattern


def _show(value: object) -> str:
    text = repr(_plain(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _resolve(location: tuple[Key, ...]) -> tuple[list[Key], type[BaseModel] | None]:
    """The manifest's own path of an error, without pydantic's tags, and the model that the last key belongs to."""
    keys: list[Key] = []
    owner: Any = FineTuneJob
    parent: type[BaseModel] | None = None
    for key in location:
        models = _models(owner)
        if isinstance(key, str) and len(models) > 1:
            owner = next((model for model in models if _tag(model) == key), owner)
            if _tag(owner) == key:
                continue
        if isinstance(key, str) and key in ("int", "str", "constrained-str"):
            continue
        keys.append(key)
        parent = models[0] if len(models) == 1 else None
        owner = _item(owner) if isinstance(key, int) else _field(parent, key)
    return keys, parent


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models an annotation may stand for."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _item(annotation: Any) -> Any:
    """The annotation of a list's items."""
    if get_origin(annotation) is list:
        return get_args(annotation)[0]
    parts = get_args(annotation) if get_origin(annotation) in (Annotated, Union, UnionType) else ()
    return next((item for part in parts if (item := _item(part)) is not None), None)


def _field(model: type[BaseModel] | None, alias: Key) -> Any:
    for field in model.model_fields.values() if model else ():
        if field.alias == alias:
            return field.annotation
    return None


def _fields(model: type[BaseModel]) -> list[str]:
    names = [field.alias or name for name, field in model.model_fields.items()]
    return sorted(names, key=lambda name: name != "type")


def _tag(model: Any) -> str | None:
    field = model.model_fields.get("type") if isinstance(model, type) and issubclass(model, BaseModel) else None
    return get_args(field.annotation)[0] if field is not None else None


def _keys(field: str) -> list[Key]:
    return [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", field)]


def _path(keys: Sequence[Key]) -> str:
    """`spec.modules[1].optimizer` from its keys."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def _position(document: Any, keys: Sequence[Key]) -> tuple[int | None, int | None]:
    """Line and column of a field, or of the nearest thing around it that is there."""
    line, column = document.lc.line, document.lc.col
    node = document
    for key in keys:
        if isinstance(node, CommentedMap) and key in node:
            line, column = node.lc.key(key) if key in (node.lc.data or {}) else (line, column)
        elif isinstance(node, CommentedSeq) and isinstance(key, int) and key < len(node):
            line, column = node.lc.item(key) if key in (node.lc.data or {}) else (line, column)
        else:
            break
        node = node[key]
    return line + 1, column + 1


_BOOLEAN_1_1 = re.compile(r"^(y|Y|yes|Yes|YES|n|N|no|No|NO|on|On|ON|off|Off|OFF)$")
_OCTAL_1_1 = re.compile(r"^[-+]?0[0-7_]+$")


def _misread_scalars(document: CommentedMap, name: str) -> Iterator[Issue]:
    """Plain scalars that kubectl (YAML 1.1) and this reader (YAML 1.2) take for different things."""
    for keys, value, raw in _scalars(document, []):
        what = "a boolean" if _BOOLEAN_1_1.match(raw) else "an octal number" if _OCTAL_1_1.match(raw) else None
        if what:
            line, column = _position(document, keys)
            yield Issue(
                _path(keys), f"kubectl reads {raw} as {what}; quote it: {raw!r}", value, None, name, line, column
            )


def _scalars(node: Any, keys: list[Key]) -> Iterator[tuple[list[Key], object, str]]:
    """Plain (unquoted) scalars with their text as written."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _scalars(value, [*keys, str(key)])
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from _scalars(value, [*keys, position])
    elif type(node) is str:
        yield keys, node, node
    elif type(node).__name__ == "ScalarInt" and getattr(node, "_width", None):
        yield keys, int(node), str(node).zfill(node._width)


def _plain(node: Any) -> Any:
    """The document without ruamel's own types, so that strict validation sees what a JSON reader would."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(item) for item in node]
    if isinstance(node, bool) or node is None:
        return node
    for plain in (int, float, str):
        if isinstance(node, plain):
            return plain(node)
    return node if isinstance(node, BaseModel) else str(node)
