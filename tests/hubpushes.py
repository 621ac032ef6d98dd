"""The half of the hub on loopback that writes: repositories and branches, Git LFS (whole and in parts), commits."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

if TYPE_CHECKING:
    from tests.hubserver import Hub, Repository

LFS_BYTES = 10_000
"""Files from this size on are stored apart and reached by a redirect, as on the real hub."""

_MODEL = r"/api/models/(?P<repo>[^/]+/[^/]+)"


class Pushes:
    """Methods of the handler; each answers one kind of request."""

    hub: Hub
    body: bytes

    PUSH_ROUTES = (
        (re.compile(r"/api/repos/create"), "_create"),
        (re.compile(r"/api/validate-yaml"), "_validate"),
        (re.compile(rf"{_MODEL}/branch/(?P<branch>.+)"), "_branch"),
        (re.compile(rf"{_MODEL}/preupload/(?P<branch>.+)"), "_preupload"),
        (re.compile(rf"{_MODEL}/commit/(?P<branch>.+)"), "_commit"),
        (re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"), "_batch"),
        (re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})"), "_object"),
        (re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})/parts/(?P<number>\d+)"), "_part"),
        (re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})/complete"), "_complete"),
        (re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})/verify"), "_verify"),
    )

    def _create(self) -> None:
        from tests.hubserver import Repository

        wish = json.loads(self.body)
        repo = f"{wish['organization']}/{wish['name']}"
        if not self._may_write(repo):
            return
        with self.hub.lock:
            if repo in self.hub.repositories:
                self._error(409, "", "You already created this model repo")
                return
            sha = hashlib.sha1(repo.encode()).hexdigest()
            private = wish.get("visibility") == "private" or bool(wish.get("private"))
            self.hub.repositories[repo] = Repository({".gitattributes": b"*.safetensors lfs\n"}, sha, private=private)
        self._json({"url": f"{self.hub.url}/{repo}"})

    def _validate(self) -> None:
        """The front matter of a card has to be YAML."""
        content = json.loads(self.body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            fields = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError as error:
            self._json({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        warnings = [] if fields else [{"message": "empty or missing yaml metadata"}]
        self._json({"errors": [], "warnings": warnings})

    def _branch(self, repo: str, branch: str) -> None:
        repository = self._writable(repo)
        if repository is None:
            return
        if repository.at(branch):
            self._error(409, "", "Reference already exists")
            return
        repository.branches = (*repository.branches, branch)
        self._json({})

    def _preupload(self, repo: str, branch: str) -> None:
        repository = self._writable(repo)
        if repository is None:
            return
        found = repository.at(branch)
        if found is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {branch}")
            return
        answers = []
        for file in json.loads(self.body)["files"]:
            is_large, present = file["size"] >= LFS_BYTES, found[1].get(file["path"])
            answer = {
                "path": file["path"],
                "uploadMode": "lfs" if is_large else "regular",
                "shouldIgnore": False,
            }
            if present is not None:
                large_now = len(present) >= LFS_BYTES
                answer["oid"] = hashlib.sha256(present).hexdigest() if large_now else git_oid(present)
            answers.append(answer)
        self._json({"files": answers})

    def _batch(self, repo: str) -> None:
        if self._writable(repo) is not None:
            self._json(
                {"transfer": "basic", "objects": [self._offer(each) for each in json.loads(self.body)["objects"]]}
            )

    def _offer(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """What to do to have an object there: nothing, one PUT, or one for each part."""
        oid, size = wanted["oid"], wanted["size"]
        if oid in self.hub.objects:
            return wanted
        storage = f"{self.hub.url}/lfs/{oid}".replace("127.0.0.1", "localhost")  # another host, as there
        upload: dict[str, Any] = {"href": storage}
        if size > self.hub.part_bytes:
            parts = range(1, math.ceil(size / self.hub.part_bytes) + 1)
            header = {"chunk_size": str(self.hub.part_bytes), **{str(n): f"{storage}/parts/{n}" for n in parts}}
            upload = {"href": f"{self.hub.url}/lfs/{oid}/complete", "header": header}
        verify = {"href": f"{self.hub.url}/lfs/{oid}/verify"}
        return {**wanted, "actions": {"upload": upload, "verify": verify}}

    def _object(self, oid: str) -> None:
        assert self._bearer() is None, "the storage host must not get the token"
        self._keep(oid, self.body)

    def _part(self, oid: str, number: str) -> None:
        assert self._bearer() is None, "the storage host must not get the token"
        self.hub.parts.setdefault(oid, {})[int(number)] = self.body
        self._send(200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def _complete(self, oid: str) -> None:
        parts = self.hub.parts[oid]
        told = [(part["partNumber"], part["etag"].strip('"')) for part in json.loads(self.body)["parts"]]
        assert told == [(number, hashlib.md5(parts[number]).hexdigest()) for number in sorted(parts)]
        self._keep(oid, b"".join(parts[number] for number in sorted(parts)))

    def _keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            self._send(400, b"the checksum does not fit")
            return
        self.hub.objects[oid] = content
        self._send(200, b"")

    def _verify(self, oid: str) -> None:
        size = json.loads(self.body)["size"]
        self._send(200 if len(self.hub.objects.get(oid, b"")) == size else 404, b"{}")

    def _commit(self, repo: str, branch: str) -> None:
        from tests.hubserver import Commit

        repository = self._writable(repo)
        if repository is None:
            return
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        with self.hub.lock:
            found = repository.at(branch)
            if found is None:
                self._error(404, "RevisionNotFound", f"Invalid rev id: {branch}")
                return
            parent, files = found
            if header["value"].get("parentCommit", parent) != parent:
                self._error(412, "", "A commit has happened since. Please refresh and try again.")
                return
            files = dict(files)
            for each in operations:
                self._CHANGES[each["key"]](self, files, each["value"])
            sha = hashlib.sha1(f"{parent}{len(repository.commits)}".encode()).hexdigest()
            repository.commits.append(Commit(sha, parent, branch, header["value"]["summary"], files))
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha, "hookOutput": ""})

    def _add(self, files: dict[str, bytes], value: dict[str, Any]) -> None:
        files[value["path"]] = base64.b64decode(value["content"])

    def _point(self, files: dict[str, bytes], value: dict[str, Any]) -> None:
        files[value["path"]] = self.hub.objects[value["oid"]]

    def _delete(self, files: dict[str, bytes], value: dict[str, Any]) -> None:
        del files[value["path"]]

    _CHANGES: ClassVar = {"file": _add, "lfsFile": _point, "deletedFile": _delete}

    def _writable(self, repo: str) -> Repository | None:
        """Answer the error and return None when the token may not write there."""
        if not self._may_write(repo):
            return None
        repository = self.hub.repositories.get(repo)
        if repository is None:
            self._error(404, "RepoNotFound", "Repository not found")
        return repository

    def _may_write(self, repo: str) -> bool:
        namespaces = self.hub.accounts.get(self._bearer() or "")
        if namespaces is None:
            self._error(401, "", "Invalid credentials in Authorization header")
            return False
        if repo.split("/")[0] not in namespaces:
            self._error(403, "", f"You don't have the rights to write to {repo}")
            return False
        return True

    def _json(self, content: dict[str, Any], status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    if TYPE_CHECKING:

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None: ...

        def _error(self, status: int, code: str, message: str) -> None: ...

        def _bearer(self) -> str | None: ...


def read_body(request: BaseHTTPRequestHandler) -> bytes:
    """The body, by its length or in chunks."""
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    pieces = []
    while size := int(request.rfile.readline().split(b";")[0], 16):
        pieces.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(pieces)


def git_oid(content: bytes) -> str:
    """The name Git has for a file."""
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()
