"""Manifests judged without a cluster, for people and for machines: what `finetune validate` says.

Imports nothing heavy: it runs on every commit, often where there is no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from finetune_api.loading import DocumentResult, Issue, check_manifests

STDIN = "-"


def judge(name: str) -> list[DocumentResult]:
    """One verdict for each document of a file; `-` is stdin."""
    try:
        text = sys.stdin.read() if name == STDIN else Path(name).read_text(encoding="utf-8")
    except OSError as error:
        return [DocumentResult("", "", 1, (Issue("", f"cannot be read: {error.strerror}", file=name),))]
    except UnicodeDecodeError:
        return [DocumentResult("", "", 1, (Issue("", "is not UTF-8 text", file=name),))]
    return check_manifests(text, shown(name)) or [DocumentResult("", "", 1, skipped="nothing in it")]


def shown(name: str) -> str:
    """What a file is called in a message."""
    return "<stdin>" if name == STDIN else name


def show(found: Sequence[tuple[str, DocumentResult]]) -> None:
    """Print a line for each verdict, or for each issue of a bad one, with the name of its file."""
    for name, verdict in found:
        what = " ".join(filter(None, (verdict.kind, verdict.name)))
        if verdict.issues:
            for issue in verdict.issues:
                typer.secho(str(issue), fg="red")
        elif verdict.skipped:
            typer.secho(f"{name}:{verdict.line}: {what + ' ' if what else ''}skipped, {verdict.skipped}", dim=True)
        else:
            typer.secho(f"{name}:{verdict.line}: {what} is valid", fg="green")


def document(name: str, verdict: DocumentResult) -> dict[str, Any]:
    """The same for machines."""
    return {
        "file": name,
        "line": verdict.line,
        "kind": verdict.kind,
        "name": verdict.name,
        "namespace": verdict.namespace,
        "valid": None if verdict.skipped else not verdict.issues,
        "skipped": verdict.skipped,
        "issues": [_issue_document(issue) for issue in verdict.issues],
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
