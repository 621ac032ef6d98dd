"""A small model hub on loopback, as much as the real `huggingface_hub` client needs: repository info, files with ranges
and ETags, a redirect to a storage host, gated and private repositories, what a push takes (`tests/hubpushes.py`), and
switches that make it fail.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hubpushes import LFS_BYTES, Pushes, git_oid, read_body


@dataclass(frozen=True)
class Commit:
    """What a client committed."""

    sha: str
    parent: str
    branch: str
    summary: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """One repository with a commit that all `branches` begin at; that of a data set is found under `datasets/…`."""

    files: dict[str, bytes]
    commit: str = "1234567890abcdef1234567890abcdef12345678"
    branches: tuple[str, ...] = ("main",)
    gated: bool = False
    token: str | None = None
    card: dict[str, Any] = field(default_factory=dict)
    private: bool = False
    """Only for tokens of its namespace."""
    commits: list[Commit] = field(default_factory=list)
    """Those that clients made, in their order."""

    def at(self, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a revision; None where there is no such thing."""
        name = revision or "main"
        for each in reversed(self.commits):
            if name in (each.branch, each.sha):
                return each.sha, each.files
        return (self.commit, self.files) if revision in (None, self.commit, *self.branches) else None


@dataclass
class Fault:
    """What happens to requests whose method and path match.

    Attributes:
        where: a pattern for `METHOD /path`.
        status: answered instead; None: the request is carried out.
        times: how often.
        held: the answer of a request that was carried out waits for `release`, once it is.
    """

    where: str
    status: int | None = None
    times: int = 1
    held: threading.Event | None = None
    release: threading.Event = field(default_factory=threading.Event)


class Hub:
    """What the hub holds, what it was asked, and how it shall fail."""

    def __init__(self) -> None:
        self.accounts: dict[str, set[str]] = {}
        """Namespaces that a token may write; where there are any, other tokens are none."""
        self.objects: dict[str, bytes] = {}
        """Content by Git LFS, by SHA-256."""
        self.parts: dict[str, dict[int, bytes]] = {}
        self.part_bytes = 1 << 30
        """Larger objects come in parts of this size."""
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path and Range of each request."""
        self.status: int | None = None
        """Answer every request with this status."""
        self.failures = 0
        """Answer that many requests with `status`, then work; 0: all of them."""
        self.ignore_ranges = False
        self.cut_bodies = False
        self.bodies_cut = 0
        self.bytes_sent = 0
        self.url = ""

    def add(self, repo_id: str, files: dict[str, bytes], **fields: Any) -> Repository:
        """Put a repository on the hub."""
        self.repositories[repo_id] = Repository(files, **fields)
        return self.repositories[repo_id]


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run a hub on a free port of the loopback interface."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(Pushes, BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    _API = r"(?:models/|(?=datasets/))(?P<repo>(?:datasets/)?[^/]+(?:/[^/]+)?)"
    _REPO = r"(?P<repo>(?:datasets/)?[^/]+(?:/[^/]+)?)"
    _ROUTES = (
        (re.compile(rf"/api/{_API}/revision/(?P<revision>[^/]+)"), "_info"),
        (re.compile(rf"/api/{_API}/tree/(?P<revision>[^/]+)"), "_tree"),
        (re.compile(rf"/api/{_API}"), "_info"),
        (re.compile(rf"/storage/{_REPO}/-/(?P<commit>\w+)/(?P<path>.+)"), "_storage"),
        (re.compile(rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"), "_resolve"),
    )

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        hub = self.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        self.body = read_body(self)
        if hub.status is not None:
            status = hub.status
            if hub.failures == 1:
                hub.status = None
            hub.failures = max(0, hub.failures - 1)
            self._send(status, b"the hub is unwell", {"Retry-After": "7"})
            return
        fault = self._fault(path)
        if fault is not None and fault.status is not None:
            self._send(fault.status, b"the hub is unwell")
            return
        self._fault_held = fault
        for pattern, method in self._ROUTES if self.command in {"GET", "HEAD"} else self.PUSH_ROUTES:
            if match := pattern.fullmatch(path):
                getattr(self, method)(**match.groupdict())
                return
        self._send(404, b"")

    def _fault(self, path: str) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times > 0 and re.search(fault.where, f"{self.command} {path}"):
                    fault.times -= 1
                    return fault
        return None

    def _find(self, name: str, revision: str | None) -> Repository | None:
        """Answer the error and return None when the repository may not be seen."""
        if self.hub.accounts and self._bearer() not in (None, *self.hub.accounts):
            self._error(401, "", "Invalid credentials in Authorization header")
            return None
        repository = self.hub.repositories.get(name)
        if repository is None or not self._may_read(name, repository):
            # The real hub does not tell a missing repository from a private one.
            self._error(401 if self._bearer() is None else 404, "RepoNotFound", "Repository not found")
            return None
        if repository.at(revision) is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository

    def _may_read(self, name: str, repository: Repository) -> bool:
        if repository.private:
            return name.split("/")[0] in self.hub.accounts.get(self._bearer() or "", ())
        return repository.token is None or repository.gated or self._bearer() == repository.token

    def _info(self, repo: str, revision: str | None = None) -> None:
        repository = self._find(repo, revision)
        if repository is None:
            return
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        commit, files = repository.at(revision) or (repository.commit, repository.files)
        info = {
            "_id": "0" * 24,
            "id": repo.removeprefix("datasets/"),
            "modelId": repo,
            "sha": commit,
            "private": repository.private or (repository.token is not None and not repository.gated),
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "cardData": repository.card,
            "siblings": [_sibling(path, content, blobs) for path, content in files.items()],
        }
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _tree(self, repo: str, revision: str) -> None:
        repository = self._find(repo, revision)
        if repository is None:
            return
        _, files = repository.at(revision) or ("", {})
        entries = [{"type": "file", "path": path, **_blob(content)} for path, content in files.items()]
        self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        repository = self._find(repo, revision)
        if repository is None:
            return
        if repository.gated and self._bearer() != (repository.token or "granted"):
            self._error(403, "GatedRepo", f"Access to model {repo} is restricted")
            return
        commit, files = repository.at(revision) or ("", {})
        content = files.get(path)
        if content is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if len(content) < LFS_BYTES:
            self._content(content, {**headers, "ETag": f'"{git_oid(content)}"'})
            return
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        storage = self.hub.url.replace("127.0.0.1", "localhost")  # another host, as there
        location = f"{storage}/storage/{repo}/-/{commit}/{path}"
        self._send(302, b"", {**headers, **linked, "Location": location})

    def _storage(self, repo: str, commit: str, path: str) -> None:
        _, files = self.hub.repositories[repo].at(commit) or ("", {})
        content = files[path]
        self._content(content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or self.hub.ignore_ranges:
            self._send(200, content, headers)
            return
        start, stop = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1) + 1
        if start >= len(content):
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        self._send(206, content[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})

    def _bearer(self) -> str | None:
        value = self.headers.get("Authorization")
        return value.removeprefix("Bearer ") if value else None

    def _error(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        held = getattr(self, "_fault_held", None)
        if held is not None and held.held is not None:
            self._fault_held = None
            held.held.set()
            held.release.wait(300)
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut_bodies:
            body, self.close_connection = body[: len(body) // 2], True
            self.hub.bodies_cut += 1
        self.hub.bytes_sent += len(body)
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):  # a client that has read enough
            self.close_connection = True


def _sibling(path: str, content: bytes, blobs: bool) -> dict[str, Any]:
    return {"rfilename": path, **(_blob(content) if blobs else {})}


def _blob(content: bytes) -> dict[str, Any]:
    blob: dict[str, Any] = {"size": len(content), "blobId": git_oid(content), "oid": git_oid(content)}
    if len(content) >= LFS_BYTES:
        digest = hashlib.sha256(content).hexdigest()
        blob["lfs"] = {"sha256": digest, "oid": digest, "size": len(content), "pointerSize": 135}
    return blob
