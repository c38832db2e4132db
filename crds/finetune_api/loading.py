"""Loads manifests from files, and reports every issue with file, line, field, value, expectation and nearest choice.

YAML is parsed as kubectl parses it (`finetune_api.kubectl_yaml`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api.field_paths import format_path
from finetune_api.job import FineTuneJob
from finetune_api.kubectl_yaml import FieldPath, YamlDocument, YamlParseError, parse_yaml
from finetune_api.names import GROUP, JOB_KIND
from finetune_api.overrides import OverrideError, apply_override
from finetune_api.validation_errors import FieldError, describe_error, format_value


@dataclass(frozen=True)
class Issue:
    """One thing wrong with a manifest.

    Args:
        path: the field, e.g. `spec.modules[1].optimizer.learningRate`; empty for the document as a whole.
        message: what was found and what was expected.
        value: the value found; None when the field is missing.
        suggestion: the nearest valid choice.
        file: name of the file.
        line, column: counted from 1; None when unknown.
        override: the `--set` that causes it, instead of a position in the file.
    """

    path: str
    message: str
    value: object | None = None
    suggestion: str | None = None
    file: str = ""
    line: int | None = None
    column: int | None = None
    override: str | None = None

    def __str__(self) -> str:
        position = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        location = f"--set {self.override}" if self.override else position
        hint = f"; did you mean {self.suggestion!r}?" if self.suggestion else ""
        return ": ".join(part for part in (location, self.path, self.message + hint) if part)


class ManifestError(ValueError):
    """A file without a valid FineTuneJob."""

    def __init__(self, issues: Sequence[Issue]) -> None:
        super().__init__("\n".join(str(issue) for issue in issues))
        self.issues = tuple(issues)


@dataclass(frozen=True)
class DocumentResult:
    """The result of checking one document of a file; `skipped` says why a document was not checked."""

    kind: str
    name: str
    line: int
    issues: tuple[Issue, ...] = ()
    skipped: str | None = None
    namespace: str | None = None


def load_job(path: Path, overrides: Sequence[str] = ()) -> FineTuneJob:
    """Load the one FineTuneJob of a file.

    Args:
        overrides: `path=value` settings, applied before the manifest is validated.

    Raises:
        ManifestError: the file cannot be read, it has no FineTuneJob or several, or the job is invalid.
    """
    file = str(path)
    documents = list(_split_documents(_read_text(path), file))
    jobs = [document for document in documents if _kind(document) == JOB_KIND]
    if len(jobs) != 1:
        kinds = ", ".join(f"a {_kind(document) or 'document without kind'}" for document in documents)
        found = f"{len(jobs)} of them" if jobs else kinds or "nothing"
        raise ManifestError([Issue("", f"expected one {JOB_KIND}, found {found}", file=file)])
    document = jobs[0]
    if issues := _apply_overrides(document, file, overrides):
        raise ManifestError(issues)
    return FineTuneJob.model_validate(document.value)


def check_manifests(text: str, file: str) -> list[DocumentResult]:
    """Validate every document of a file, and every item of a List; other kinds are skipped."""
    template = _find_template(text, file)
    try:
        results = [_check_document(document, file) for document in _split_documents(text, file)]
    except ManifestError as error:
        return [DocumentResult("", "", error.issues[0].line or 1, (template,) if template else error.issues)]
    if template and any(result.issues for result in results):
        return [DocumentResult("", "", template.line or 1, (template,))]
    return results


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ManifestError([Issue("", f"cannot be read: {error.strerror}", file=str(path))]) from None
    except UnicodeDecodeError:
        raise ManifestError([Issue("", "is not UTF-8 text", file=str(path))]) from None


def _split_documents(text: str, file: str) -> Iterator[YamlDocument]:
    """The documents of a file, with the items of a List as documents of their own."""
    try:
        documents = parse_yaml(text)
    except YamlParseError as error:
        line, column = error.position or (None, None)
        raise ManifestError([Issue("", str(error), file=file, line=line, column=column)]) from None
    for document in documents:
        if _kind(document).endswith("List") and isinstance(items := document.value.get("items"), list):
            yield from (document.subdocument("items", index) for index in range(len(items)))
        else:
            yield document


def _find_template(text: str, file: str) -> Issue | None:
    """The issue to report for a Helm template, in case the text is no valid manifest."""
    before, braces, _ = text.partition("{{")
    if not braces:
        return None
    message = "{{ is template syntax: render the template first, e.g. helm template CHART | finetune validate -"
    column = len(before) - before.rfind("\n")
    return Issue("", message, file=file, line=before.count("\n") + 1, column=column)


def _kind(document: YamlDocument) -> str:
    return str(document.value.get("kind", "")) if isinstance(document.value, dict) else ""


def _check_document(document: YamlDocument, file: str) -> DocumentResult:
    line, column = document.position()
    kind, body = _kind(document), document.value
    if not isinstance(body, dict):
        issue = Issue("", f"{format_value(body)}: expected a mapping", body, file=file, line=line, column=column)
        return DocumentResult(kind, "", line, (issue,))
    metadata = body.get("metadata")
    name, namespace = (metadata.get("name"), metadata.get("namespace")) if isinstance(metadata, dict) else (None, None)
    issues: tuple[Issue, ...] = ()
    skipped = None
    if kind == JOB_KIND or str(body.get("apiVersion", "")).partition("/")[0] == GROUP:
        issues = tuple(_validate(document, file))
    else:
        skipped = f"kind is {kind}, not {JOB_KIND}" if kind else "it has no kind"
    return DocumentResult(kind, str(name or ""), line, issues, skipped, str(namespace) if namespace else None)


def _validate(document: YamlDocument, file: str) -> list[Issue]:
    """Everything wrong with one FineTuneJob, in the order of the file."""
    found = [_issue(FieldError(path, message), document, file) for path, message in document.ambiguous]
    try:
        FineTuneJob.model_validate(document.value)
    except ValidationError as error:
        ambiguous = {issue.path for issue in found}
        further = (_issue(describe_error(details), document, file) for details in error.errors())
        found += [issue for issue in further if issue.path not in ambiguous]
    return sorted(found, key=lambda issue: (issue.line or 0, issue.column or 0))


def _issue(error: FieldError, document: YamlDocument, file: str) -> Issue:
    line, column = document.position(error.path)
    value = _value_at(document.value, error.path)
    return Issue(format_path(error.path), error.message, value, error.suggestion, file, line, column)


def _value_at(node: Any, path: FieldPath) -> Any:
    """The value of a field; None if there is none."""
    for element in path:
        try:
            node = node[element]
        except (LookupError, TypeError):
            return None
    return node


def _apply_overrides(document: YamlDocument, file: str, overrides: Sequence[str]) -> list[Issue]:
    """Apply overrides to the document in place, and validate it.

    An issue belongs to the override that sets its field or, for a rule between fields, to the one that introduced it.
    """
    issues = _validate(document, file)
    for override in overrides:
        try:
            path = apply_override(document.value, override)
        except OverrideError as error:
            return [Issue("", str(error), override=override)]
        document = replace(
            document, ambiguous=tuple(item for item in document.ambiguous if item[0][: len(path)] != path)
        )
        before = {(issue.path, issue.message): issue for issue in issues if not _is_within(issue.path, path)}
        issues = [
            before.get((issue.path, issue.message))
            or replace(issue, file="", line=None, column=None, override=override)
            for issue in _validate(document, file)
        ]
    return issues


def _is_within(path: str, ancestor: FieldPath) -> bool:
    prefix = format_path(ancestor)
    return path == prefix or path.startswith((f"{prefix}.", f"{prefix}["))
