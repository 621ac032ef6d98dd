"""Models: registered from a folder on this machine or from a hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

from nupes_client.files import Advance, model_folder, sha256_of
from nupes_client.resources.paging import every
from nupes_client.resources.uploads import Uploads
from nupes_client.schemas.models import HubSource, Model, ModelCreate, UploadedFile, UploadSource
from nupes_client.transport import Transport

RECENT = 400
"""How many registered models are looked through for one with the same files."""


class Models:
    """`/v1/models`."""

    def __init__(self, transport: Transport, uploads: Uploads) -> None:
        self._transport = transport
        self._uploads = uploads

    def get(self, model_id: str) -> Model:
        """Return one model."""
        return Model.model_validate_json(self._transport.request("GET", f"/v1/models/{model_id}").content)

    def list(self, *, limit: int | None = None) -> Iterator[Model]:
        """Yield the models, newest first."""
        return every(self._transport, "/v1/models", Model, limit=limit)

    def delete(self, model_id: str) -> None:
        """Remove a model (409 while a job uses it)."""
        self._transport.request("DELETE", f"/v1/models/{model_id}")

    def from_hub(self, repo_id: str, revision: str | None = None, *, name: str | None = None) -> Model:
        """Register a model of the hub the service is set to."""
        return self._create(ModelCreate(source=HubSource(type="hub", repo_id=repo_id, revision=revision), name=name))

    def from_uploads(self, files: Sequence[UploadedFile], *, name: str | None = None) -> Model:
        """Register a model put together from complete uploads."""
        return self._create(ModelCreate(source=UploadSource(type="upload", files=[*files]), name=name))

    def from_folder(
        self, folder: str | PathLike[str], *, name: str | None = None, advance: Advance | None = None
    ) -> Model:
        """Send a model folder file by file and register it; a folder sent before is found again, not sent again.

        Args:
            folder: what `save_pretrained` wrote; `nupes_client.files.model_folder` says which files are sent.
            name: for people; the folder's name by default.
            advance: told how many bytes went out.

        Raises:
            LocalFileError: no model in there, or not a whole one; nothing was sent.
            ApiError: the service refused a file or the model.
        """
        folder = Path(folder)
        files = model_folder(folder).files
        checksums = {file.name: sha256_of(file) for file in files}
        known = self._with_files(checksums)
        if known is not None:
            return known
        sent = [self._send(file, checksums[file.name], advance) for file in files]
        return self.from_uploads(sent, name=name or folder.resolve().name or None)

    def _send(self, file: Path, sha256: str, advance: Advance | None) -> UploadedFile:
        upload = self._uploads.send(file, sha256=sha256, advance=advance)
        return UploadedFile(path=file.name, upload_id=upload.id, sha256=sha256)

    def _with_files(self, checksums: dict[str, str]) -> Model | None:
        for model in self.list(limit=RECENT):
            if {file.path: file.sha256 for file in model.files} == checksums:
                return model
        return None

    def _create(self, body: ModelCreate) -> Model:
        response = self._transport.request("POST", "/v1/models", json=body.model_dump(mode="json", exclude_none=True))
        return Model.model_validate_json(response.content)
