"""Reads manifests from files, and says what is wrong with them: file, line, field, value, expectation, nearest choice.

YAML is read as kubectl reads it (`finetune_api.kubectl_yaml`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from finetune_api.base import (
    DNS_1035_LABEL,
    DNS_SUBDOMAIN,
    EXTENDED_RESOURCE,
    LABEL_VALUE,
    MODULE_NAME,
    QUALIFIED_NAME,
)
from finetune_api.evaluation import EVAL_METRIC
from finetune_api.job import ENTRYPOINT, FineTuneJob
from finetune_api.kubectl_yaml import Document, Key, ReadingError, clipped, read
from finetune_api.names import GROUP, JOB_KIND
from finetune_api.overrides import OverrideError, apply_overrides
from finetune_api.runtime import CONFIG_KEY, ENV_NAME, MOUNT_PATH


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
    namespace: str | None = None


def load_job(path: Path, settings: Sequence[str] = ()) -> FineTuneJob:
    """Read the one FineTuneJob of a file.

    Args:
        settings: `path=value` changes, applied before the manifest is judged.

    Raises:
        SpecError: the file cannot be read, holds no FineTuneJob or several, or the job does not obey the language.
    """
    name = str(path)
    every = list(_documents(_text(path), name))
    documents = [document for document in every if _kind(document) == JOB_KIND]
    if len(documents) != 1:
        kinds = ", ".join(f"a {_kind(document) or 'document without kind'}" for document in every)
        found = f"{len(documents)} of them" if documents else kinds or "nothing"
        raise SpecError([Issue("", f"expected one {JOB_KIND}, found {found}", file=name)])
    document = documents[0]
    try:
        apply_overrides(document.value, list(settings))
    except OverrideError as error:
        raise SpecError([Issue("", str(error))]) from None
    issues = _issues(document, name)
    if issues:
        raise SpecError(issues)
    return FineTuneJob.model_validate(document.value)


def check_file(text: str, name: str) -> list[Verdict]:
    """Judge every document of a file, and every item of a List; other kinds are skipped with a word."""
    template = _template_issue(text, name)
    try:
        verdicts = [_verdict(document, name) for document in _documents(text, name)]
    except SpecError as error:
        return [Verdict("", "", error.issues[0].line or 1, (template,) if template else error.issues)]
    if template and any(verdict.issues for verdict in verdicts):
        return [Verdict("", "", template.line or 1, (template,))]
    return verdicts


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


def _documents(text: str, name: str) -> Iterator[Document]:
    """The documents of a file, those within Lists one by one."""
    try:
        documents = read(text)
    except ReadingError as error:
        line, column = error.place or (None, None)
        raise SpecError([Issue("", str(error), file=name, line=line, column=column)]) from None
    for document in documents:
        if _kind(document).endswith("List") and isinstance(items := document.value.get("items"), list):
            yield from (document.part("items", position) for position in range(len(items)))
        else:
            yield document


def _template_issue(text: str, name: str) -> Issue | None:
    """What to say of a file of Helm's or the like, should it turn out to be no manifest."""
    before, braces, _ = text.partition("{{")
    if not braces:
        return None
    message = "{{ belongs to a template: render it first, e.g. helm template CHART | finetune validate -"
    column = len(before) - before.rfind("\n")
    return Issue("", message, file=name, line=before.count("\n") + 1, column=column)


def _kind(document: Document) -> str:
    return str(document.value.get("kind", "")) if isinstance(document.value, dict) else ""


def _verdict(document: Document, name: str) -> Verdict:
    line, column = document.place()
    kind, body = _kind(document), document.value
    if not isinstance(body, dict):
        issue = Issue("", f"{_show(body)}: expected a mapping", body, file=name, line=line, column=column)
        return Verdict(kind, "", line, (issue,))
    metadata = body.get("metadata")
    label, namespace = (metadata.get("name"), metadata.get("namespace")) if isinstance(metadata, dict) else (None, None)
    issues: tuple[Issue, ...] = ()
    skipped = None
    if kind == JOB_KIND or str(body.get("apiVersion", "")).partition("/")[0] == GROUP:
        issues = tuple(_issues(document, name))
    else:
        skipped = f"not a {JOB_KIND}" + (f" but a {kind}" if kind else ": it has no kind")
    return Verdict(kind, str(label or ""), line, issues, skipped, str(namespace) if namespace else None)


def _issues(document: Document, name: str) -> list[Issue]:
    """Everything wrong with one FineTuneJob, in the order of the file."""
    found = [_placed(document, name, keys, message) for keys, message in document.ambiguous]
    try:
        FineTuneJob.model_validate(document.value)
    except ValidationError as error:
        ambiguous = {issue.path for issue in found}
        further = (_issue(details, document, name) for details in error.errors())
        found += [issue for issue in further if issue.path not in ambiguous]
    return sorted(found, key=lambda issue: (issue.line or 0, issue.column or 0))


def _issue(details: ErrorDetails, document: Document, name: str) -> Issue:
    keys, owner = _resolve(details["loc"])
    message, suggestion = _words(details, keys, owner)
    if details["type"].startswith("union_tag"):
        keys = [*keys, "type"]
    if details["type"] == "rule":
        keys = [*keys, *_keys(details["ctx"]["field"])]
    return _placed(document, name, tuple(keys), message, suggestion)


def _placed(document: Document, name: str, keys: tuple[Key, ...], message: str, suggestion: str | None = None) -> Issue:
    line, column = document.place(keys)
    return Issue(_path(keys), message, _value(document.value, keys), suggestion, name, line, column)


def _value(node: Any, keys: Sequence[Key]) -> Any:
    """What stands at a path; None where nothing does."""
    for key in keys:
        try:
            node = node[key]
        except (LookupError, TypeError):
            return None
    return node


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
    if kind == "form":
        return f"{_show(value)} is not {context['what']}", None
    if kind == "string_pattern_mismatch":
        form = form_of(str(context["pattern"]))
        return f"{_show(value)} is not {'' if form.startswith('a ') else 'of the form '}{form}", None
    return f"{_show(value)}: {_expected(details)}", None


def _expected(details: ErrorDetails) -> str:
    """What was expected, in the words of the manifest where pydantic speaks of Python."""
    kind, context = details["type"], details.get("ctx", {})
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        least = kind.endswith("short")
        count = context["min_length"] if least else context["max_length"]
        unit = "character" if kind.startswith("string") else "item"
        return f"expected at {'least' if least else 'most'} {count} {unit}{'' if count == 1 else 's'}"
    plain = details["msg"].replace("Input should be", "expected").replace("Input", "value")
    return _EXPECTED.get(kind, f"{plain[0].lower()}{plain[1:]}")


_EXPECTED = {
    "bool_type": "expected true or false",
    "dict_type": "expected a mapping",
    "finite_number": "expected a finite number",
    "float_type": "expected a number",
    "int_from_float": "expected a whole number",
    "int_type": "expected a whole number",
    "list_type": "expected a list",
    "model_attributes_type": "expected a mapping",
    "model_type": "expected a mapping",
    "string_type": "expected text",
}

_FORMS = {
    DNS_1035_LABEL: "a name of lower-case letters, digits and '-', from a letter on",
    DNS_SUBDOMAIN: "a name of lower-case letters, digits, '-' and '.'",
    QUALIFIED_NAME: "a label's name, e.g. kubernetes.io/arch",
    LABEL_VALUE: "a label's value: letters, digits, '-', '_' and '.'",
    MODULE_NAME: "a name of letters, digits, '-' and '_'",
    EXTENDED_RESOURCE: "a resource with its domain, e.g. nvidia.com/gpu",
    CONFIG_KEY: "a key of letters, digits, '-', '_' and '.'",
    ENTRYPOINT: "package.module:factory",
    ENV_NAME: "a variable's name of letters, digits, '_', '-' and '.', not from a digit on",
    EVAL_METRIC: "a metric of the evaluation, e.g. eval/loss",
    MOUNT_PATH: "an absolute path, e.g. /data/images; no part of it starts with '.'",
}


def form_of(pattern: str) -> str:
    """What a pattern means, for the patterns that have a name."""
    if "hf://" in pattern:
        return "hf://org/repo or pvc://claim/path"
    if "pvc://" in pattern:
        return "pvc://claim/path"
    return _FORMS.get(pattern, pattern)


def _show(value: object) -> str:
    return clipped(repr(value))


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
