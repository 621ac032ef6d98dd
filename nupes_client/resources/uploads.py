"""Uploads: files sent as raw bytes straight from disk, in pieces that go on where a broken connection stopped."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from nupes_client.errors import ApiError, ChecksumError, NupesError, ServiceUnreachableError, missing_file
from nupes_client.files import Advance, part, sha256_of
from nupes_client.schemas.uploads import Upload, UploadCreate, UploadStatus
from nupes_client.transport import Transport

PIECE_BYTES = 32 << 20
"""Sent with one request; a proxy on the way may take less than a whole model, and each piece is acknowledged."""
ATTEMPTS_WITHOUT_PROGRESS = 10
PIECE_TIMEOUT_S = 300.0
"""The answer to the last piece comes when all bytes are hashed and stored."""
_GO_ON = frozenset({408, 409, 423, 429, 460, 500, 502, 503, 504})
"""Answers after which the upload goes on from where the service says it is."""
_TUS = {"Tus-Resumable": "1.0.0"}


class Uploads:
    """`/v1/uploads`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, upload_id: str) -> Upload:
        """Return one upload."""
        return Upload.model_validate_json(self._transport.request("GET", f"/v1/uploads/{upload_id}").content)

    def create(self, filename: str, size: int, sha256: str | None = None) -> Upload:
        """Announce a file.

        When the service has these bytes already, the answer is `complete` at once; when it has some of them from an
        earlier announcement, `offset` says how many.
        """
        body = UploadCreate(filename=filename, size=size, sha256=sha256).model_dump(mode="json")
        response = self._transport.request("POST", "/v1/uploads", json=body, repeatable=True)
        return Upload.model_validate_json(response.content)

    def delete(self, upload_id: str) -> None:
        """Drop an upload."""
        self._transport.request("DELETE", f"/v1/uploads/{upload_id}")

    def send(self, path: str | PathLike[str], *, sha256: str | None = None, advance: Advance | None = None) -> Upload:
        """Upload a file: hash it, announce it, and send what the service does not have yet, also from an earlier call.

        Args:
            path: the file; read in pieces, never whole.
            sha256: its checksum when known; saves reading the file twice.
            advance: told how many bytes the service has got; never called when it had them all before.

        Raises:
            LocalFileError: it can not be read, or changed meanwhile.
            ChecksumError: the service stored other bytes.
            ServiceUnreachableError: the connection broke again and again; calling again goes on from there.
            ApiError: the service refused.
        """
        path = Path(path)
        if not path.is_file():
            raise missing_file(path)
        sha256 = sha256 or sha256_of(path)
        upload = self.create(path.name[-255:], path.stat().st_size, sha256)
        if upload.status is not UploadStatus.COMPLETE:
            upload = _Sending(self._transport, upload, path, advance).run()
        if upload.sha256 != sha256:
            raise ChecksumError(
                f"{path}: the service stored sha256 {upload.sha256}, the file has {sha256}",
                hint="Was the file changed while it was sent? Upload it again.",
            )
        return upload


class _Sending:
    """One file on its way (tus 1.0.0). The service says how far it is; nothing is remembered here."""

    def __init__(self, transport: Transport, upload: Upload, path: Path, advance: Advance | None) -> None:
        self._transport = transport
        self._upload = upload
        self._path = path
        self._advance = advance
        self._url = f"/v1/uploads/{upload.id}"
        self._reported = 0

    def run(self) -> Upload:
        """Send until complete."""
        offset, failures = self._upload.offset, 0
        self._report(offset)
        while True:
            before = offset
            try:
                offset = self._send_piece(offset)
                if offset == self._upload.size:
                    return Upload.model_validate_json(self._transport.request("GET", self._url).content)
            except (ServiceUnreachableError, ApiError) as problem:
                offset = self._after(problem, offset)
                failures = 0 if offset > before else failures + 1
                if failures >= ATTEMPTS_WITHOUT_PROGRESS:
                    raise
                self._transport.pause(max(failures, 1))
            self._report(offset)

    def _send_piece(self, offset: int) -> int:
        length = min(PIECE_BYTES, self._upload.size - offset)
        answer = self._transport.request(
            "PATCH",
            self._url,
            headers={
                **_TUS,
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(length),
            },
            body=lambda: self._bytes(offset, length),
            repeatable=False,
            timeout_s=PIECE_TIMEOUT_S,
        )
        return int(answer.headers["Upload-Offset"])

    def _bytes(self, offset: int, length: int) -> Iterator[bytes]:
        sent = offset
        for chunk in part(self._path, offset, length, self._upload.size):
            yield chunk
            sent += len(chunk)
            self._report(sent)

    def _after(self, problem: NupesError, offset: int) -> int:
        """Where to go on after a failure; what can not be mended is raised again."""
        if isinstance(problem, ApiError) and problem.status not in _GO_ON:
            raise problem
        try:
            head = self._transport.request("HEAD", self._url, headers=_TUS)
        except ServiceUnreachableError:
            return offset
        except ApiError as error:
            if error.status in _GO_ON:
                return offset
            raise
        return int(head.headers["Upload-Offset"])

    def _report(self, sent: int) -> None:
        """Tell of bytes for the first time they go out, not again when they are repeated."""
        if self._advance is not None and sent > self._reported:
            self._advance(sent - self._reported)
            self._reported = sent
