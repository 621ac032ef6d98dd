"""Uploads: files sent as raw bodies, straight from disk."""

from __future__ import annotations

from pathlib import Path

from nupes_client.errors import ChecksumError, ConflictError, missing_file
from nupes_client.files import Advance, chunks, sha256_of
from nupes_client.schemas.uploads import Upload, UploadCreate, UploadStatus
from nupes_client.transport import Transport


class Uploads:
    """`/v1/uploads`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, upload_id: str) -> Upload:
        """Return one upload."""
        return Upload.model_validate_json(self._transport.request("GET", f"/v1/uploads/{upload_id}").content)

    def create(self, filename: str, size: int, sha256: str | None = None) -> Upload:
        """Announce a file. When the service has these bytes already, the answer is `complete` at once."""
        body = UploadCreate(filename=filename, size=size, sha256=sha256).model_dump(mode="json")
        response = self._transport.request("POST", "/v1/uploads", json=body, repeatable=True)
        return Upload.model_validate_json(response.content)

    def delete(self, upload_id: str) -> None:
        """Drop an upload."""
        self._transport.request("DELETE", f"/v1/uploads/{upload_id}")

    def send(self, path: Path, *, sha256: str | None = None, advance: Advance | None = None) -> Upload:
        """Upload a file: hash it, announce it, and stream its bytes unless the service has them already.

        Args:
            path: the file; read in pieces, never whole.
            sha256: its checksum when known; saves reading the file twice.
            advance: told how many bytes went out; never called when the service has them already.

        Raises:
            LocalFileError: it can not be read, or changed meanwhile.
            ChecksumError: the service stored other bytes.
            ApiError: the service refused.
        """
        if not path.is_file():
            raise missing_file(path)
        sha256 = sha256 or sha256_of(path)
        upload = self.create(path.name[-255:], path.stat().st_size, sha256)
        if upload.status is not UploadStatus.COMPLETE:
            upload = self._put(upload, path, advance)
        if upload.sha256 != sha256:
            raise ChecksumError(
                f"{path}: the service stored sha256 {upload.sha256}, the file has {sha256}",
                hint="Was the file changed while it was sent? Upload it again.",
            )
        return upload

    def _put(self, upload: Upload, path: Path, advance: Advance | None) -> Upload:
        meter = _Meter(advance)
        try:
            response = self._transport.request(
                "PUT",
                f"/v1/uploads/{upload.id}/content",
                headers={"Content-Type": "application/octet-stream", "Content-Length": str(upload.size)},
                body=lambda: chunks(path, meter.restarted(), size=upload.size),
            )
        except ConflictError:  # an earlier attempt arrived, but its answer got lost
            return self._completed(upload.id)
        return Upload.model_validate_json(response.content) if response.content else self.get(upload.id)

    def _completed(self, upload_id: str) -> Upload:
        upload = self.get(upload_id)
        if upload.status is not UploadStatus.COMPLETE:
            raise ChecksumError(f"upload {upload_id} is in use by another sender", hint="Upload the file again.")
        return upload


class _Meter:
    """Reports progress across attempts: bytes sent a second time are not counted twice."""

    def __init__(self, advance: Advance | None) -> None:
        self._advance = advance
        self._reported = 0
        self._sent = 0

    def restarted(self) -> Advance:
        self._sent = 0
        return self._count

    def _count(self, count: int) -> None:
        self._sent += count
        fresh = self._sent - self._reported
        if fresh > 0:
            self._reported = self._sent
            if self._advance is not None:
                self._advance(fresh)
