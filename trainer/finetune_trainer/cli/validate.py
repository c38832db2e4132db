"""`finetune validate`: checks manifests offline with the API server's rules, with results as text or as JSON.

Imports nothing heavy: it runs as a pre-commit hook, often where torch is not installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from finetune_api.loading import DocumentResult, Issue, check_manifests

STDIN = "-"


def check_file(name: str) -> list[DocumentResult]:
    """The result for each document of a file; `-` is stdin."""
    try:
        text = sys.stdin.read() if name == STDIN else Path(name).read_text(encoding="utf-8")
    except OSError as error:
        return [DocumentResult("", "", 1, (Issue("", f"cannot be read: {error.strerror}", file=name),))]
    except UnicodeDecodeError:
        return [DocumentResult("", "", 1, (Issue("", "is not UTF-8 text", file=name),))]
    return check_manifests(text, display_name(name)) or [DocumentResult("", "", 1, skipped="it is empty")]


def display_name(name: str) -> str:
    """The name of a file in messages."""
    return "<stdin>" if name == STDIN else name


def print_results(results: Sequence[tuple[str, DocumentResult]]) -> None:
    """Print a line for each document, or for each issue of an invalid one, after the name of its file."""
    for name, result in results:
        location = f"{name}:{result.line}"
        document = " ".join(filter(None, (result.kind, result.name)))
        if result.issues:
            for issue in result.issues:
                typer.secho(str(issue), fg="red")
        elif result.skipped:
            typer.secho(f"{location}: {document + ' ' if document else ''}skipped: {result.skipped}", dim=True)
        else:
            typer.secho(f"{location}: {document} is valid", fg="green")


def result_document(name: str, result: DocumentResult) -> dict[str, Any]:
    """A result as a JSON document."""
    return {
        "file": name,
        "line": result.line,
        "kind": result.kind,
        "name": result.name,
        "namespace": result.namespace,
        "valid": None if result.skipped else not result.issues,
        "skipped": result.skipped,
        "issues": [_issue_document(issue) for issue in result.issues],
    }


def _issue_document(issue: Issue) -> dict[str, Any]:
    return {
        "path": issue.path,
        "value": issue.value,
        "message": issue.message,
        "suggestion": issue.suggestion,
        "line": issue.line,
        "column": issue.column,
    }
