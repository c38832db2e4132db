"""A local Hugging Face Hub server with repositories of models and datasets, for tests without network access.

It implements the endpoints that `huggingface_hub` requests (repository, tree, paths-info, files with ETag, commit and
range), so that tests exercise the download and the cache of the library. A gated repository requires a bearer token.
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
_API = re.compile(rf"^/api/(?P<kind>models|datasets)/{_NAME}(?:/(?P<endpoint>revision|tree|paths-info)/(?P<rest>.*))?$")
_FILE = re.compile(rf"^/(?P<kind>datasets/)?{_NAME}/resolve/(?P<rest>.*)$")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Commit:
    """The files of a repository at one commit."""

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
        token: bearer token that grants access; None for a public repository.
    """

    token: str | None = None
    revisions: dict[str, Commit] = field(default_factory=dict)

    def commit(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag or a commit hash; None if there is none."""
        by_hash = {commit.sha: commit for commit in self.revisions.values()}
        return self.revisions.get(revision) or by_hash.get(revision)


class Hub:
    """The repositories, the requests received, and the address of the server, which is the value for HF_ENDPOINT."""

    def __init__(self) -> None:
        self.address = ""
        self.requests: list[str] = []
        self._repositories: dict[tuple[str, str], Repository] = {}

    def add(self, kind: Kind, name: str, folder: Path, *, revision: str = "main", token: str | None = None) -> str:
        """Add the files of a directory to a repository, and return the commit hash.

        Args:
            kind: `models` or `datasets`.
            name: `org/repository`.
            folder: directory of the files.
            revision: branch or tag.
            token: bearer token that grants access; None for a public repository.
        """
        repository = self._repositories.setdefault((kind, name), Repository())
        repository.token = token
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        repository.revisions[revision] = Commit(files)
        return repository.revisions[revision].sha

    def find(self, kind: str, name: str) -> Repository | None:
        return self._repositories.get((kind, name))


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run the server on a free port of the loopback interface while the `with` block runs."""
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


class _HttpError(Exception):
    """An error response: HTTP status, message, and the error code for the X-Error-Code header."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""

    def _respond(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        try:
            if found := _API.match(path):
                self._send_json(
                    self._api_response(found["kind"], found["name"], found["endpoint"], found["rest"] or "", body)
                )
            elif found := _FILE.match(path):
                self._send_file("datasets" if found["kind"] else "models", found["name"], found["rest"])
            else:
                raise _HttpError(HTTPStatus.NOT_FOUND, "", f"no route {path}")
        except _HttpError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            self._send(json.dumps({"error": str(error)}).encode(), headers, error.status)

    def _repository(self, kind: str, name: str) -> Repository:
        if repository := self.hub.find(kind, name):
            return repository
        # Like the Hugging Face Hub, do not reveal whether a private repository exists.
        raise _HttpError(HTTPStatus.UNAUTHORIZED, "RepoNotFound", "Repository not found")

    def _authorize(self, repository: Repository) -> None:
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            authenticated = self.headers.get("Authorization") is not None
            status = HTTPStatus.FORBIDDEN if authenticated else HTTPStatus.UNAUTHORIZED
            raise _HttpError(status, "GatedRepo", "Access to this repository is restricted")

    def _api_response(self, kind: str, name: str, endpoint: str | None, rest: str, body: bytes) -> Any:
        repository = self._repository(kind, name)
        revision, _, path = rest.partition("/")
        commit = self._commit(repository, revision or "main")
        if endpoint in ("tree", "paths-info"):
            self._authorize(repository)
            requested = _requested_paths(body) if endpoint == "paths-info" else None
            files = set(commit.files) if requested is None else requested & commit.files.keys()
            return [_entry(file, commit.files[file]) for file in sorted(files) if file.startswith(path)]
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
        raise _HttpError(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _send_file(self, kind: str, name: str, rest: str) -> None:
        repository = self._repository(kind, name)
        revision, _, path = rest.partition("/")
        commit = self._commit(repository, revision)
        self._authorize(repository)
        if path not in commit.files:
            raise _HttpError(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
        content = commit.files[path]
        headers = {"ETag": f'"{_hash(content)}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if requested := _RANGE.match(self.headers.get("Range") or ""):
            first, last = int(requested[1]), min(int(requested[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(content[first : last + 1], headers, HTTPStatus.PARTIAL_CONTENT)
        else:
            self._send(content, headers)

    def _send_json(self, body: Any) -> None:
        self._send(json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send(self, content: bytes, headers: Mapping[str, str], status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _requested_paths(body: bytes) -> set[str]:
    paths = json.loads(body or b"{}").get("paths", [])
    return {paths} if isinstance(paths, str) else set(paths)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _hash(content)}


def _hash(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
