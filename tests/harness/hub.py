"""A hub on this machine: serves repositories of models and data sets as the real one does, for tests without a network.

It speaks the routes that `huggingface_hub` asks for (repository, tree, paths, files with ETag, commit and ranges), so
that downloads, the cache and offline runs are the library's own. A gated repository wants a bearer token.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

Kind = Literal["models", "datasets"]

_NAME = r"(?P<name>[^/]+/[^/]+)"
_API = re.compile(rf"^/api/(?P<kind>models|datasets)/{_NAME}(?:/(?P<what>revision|tree|paths-info)/(?P<rest>.*))?$")
_FILE = re.compile(rf"^/(?P<kind>datasets/)?{_NAME}/resolve/(?P<rest>.*)$")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Commit:
    """The files of a repository at one moment."""

    files: Mapping[str, bytes]

    @property
    def sha(self) -> str:
        digest = hashlib.sha1(usedforsecurity=False)
        for path, content in sorted(self.files.items()):
            digest.update(f"{path}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()


@dataclass
class Repository:
    """A repository with its branches and tags.

    Args:
        token: who has it may read; None for everybody.
    """

    token: str | None = None
    revisions: dict[str, Commit] = field(default_factory=dict)

    def commit(self, revision: str) -> Commit | None:
        """What a branch, a tag or a commit's hash stands for."""
        by_hash = {commit.sha: commit for commit in self.revisions.values()}
        return self.revisions.get(revision) or by_hash.get(revision)


class Hub:
    """Repositories, and the address at which they are served. The address goes into HF_ENDPOINT."""

    def __init__(self) -> None:
        self.address = ""
        self.requests: list[str] = []
        self._repositories: dict[tuple[str, str], Repository] = {}

    def add(self, kind: Kind, name: str, folder: Path, *, revision: str = "main", token: str | None = None) -> str:
        """Put the files of a folder at a revision of a repository; its commit's hash.

        Args:
            kind: `models` or `datasets`.
            name: `org/repository`.
            folder: what it holds.
            revision: a branch or a tag.
            token: gates the repository.
        """
        repository = self._repositories.setdefault((kind, name), Repository())
        repository.token = token
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        repository.revisions[revision] = Commit(files)
        return repository.revisions[revision].sha

    def find(self, kind: str, name: str) -> Repository | None:
        return self._repositories.get((kind, name))


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of the loopback interface."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=[0.02], name="hub", daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refusal(Exception):  # noqa: N818
    """What is answered instead, as the hub does: a status and an error code that its client understands."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests tell what went wrong."""

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        try:
            if found := _API.match(path):
                self._send_json(self._about(found["kind"], found["name"], found["what"], found["rest"] or "", body))
            elif found := _FILE.match(path):
                self._send_file("datasets" if found["kind"] else "models", found["name"], found["rest"])
            else:
                raise _Refusal(HTTPStatus.NOT_FOUND, "", f"no route {path}")
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            self._send(json.dumps({"error": str(refusal)}).encode(), headers, refusal.status)

    def _repository(self, kind: str, name: str) -> Repository:
        if repository := self.hub.find(kind, name):
            return repository
        # As the real one: whether there is none, or a private one, is told to nobody.
        raise _Refusal(HTTPStatus.UNAUTHORIZED, "RepoNotFound", "Repository not found")

    def _open(self, repository: Repository) -> None:
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            known = self.headers.get("Authorization") is not None
            status = HTTPStatus.FORBIDDEN if known else HTTPStatus.UNAUTHORIZED
            raise _Refusal(status, "GatedRepo", "Access to this repository is restricted")

    def _about(self, kind: str, name: str, what: str | None, rest: str, body: bytes) -> Any:
        repository = self._repository(kind, name)
        revision, _, path = rest.partition("/")
        commit = self._commit(repository, revision or "main")
        if what in ("tree", "paths-info"):
            self._open(repository)
            wanted = _wanted_paths(body) if what == "paths-info" else None
            chosen = {file for file in commit.files if file in wanted} if wanted is not None else set(commit.files)
            return [_entry(file, commit.files[file]) for file in sorted(chosen) if file.startswith(path)]
        return {
            "_id": commit.sha[:24],
            "id": name,
            "sha": commit.sha,
            "private": False,
            "gated": "manual" if repository.token else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": file} for file in sorted(commit.files)],
        }

    def _commit(self, repository: Repository, revision: str) -> Commit:
        if commit := repository.commit(revision):
            return commit
        raise _Refusal(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _send_file(self, kind: str, name: str, rest: str) -> None:
        repository = self._repository(kind, name)
        revision, _, path = rest.partition("/")
        commit = self._commit(repository, revision)
        self._open(repository)
        if path not in commit.files:
            raise _Refusal(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
        content = commit.files[path]
        headers = {"ETag": f'"{_hash(content)}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if wanted := _RANGE.match(self.headers.get("Range") or ""):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(content[first : last + 1], headers, HTTPStatus.PARTIAL_CONTENT)
        else:
            self._send(content, headers)

    def _send_json(self, answer: Any) -> None:
        self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, content: bytes, headers: Mapping[str, str], status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _wanted_paths(body: bytes) -> set[str]:
    paths = json.loads(body or b"{}").get("paths", [])
    return {paths} if isinstance(paths, str) else set(paths)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _hash(content)}


def _hash(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
