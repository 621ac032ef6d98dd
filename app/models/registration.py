"""Making models: from uploads or from a hub, judged by the scan before a row is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from sqlalchemy.orm import Session

from app.audit import service as audit
from app.core.problems import ProblemError, ValidationProblem
from app.core.security import Principal
from app.db.session import Database
from app.db.tables import Model, ModelFile, Upload
from app.models import headers, repository
from app.models.scan import Scan, names_code, scan
from app.settings import Settings
from app.storage import BlobStore
from app.uploads import repository as uploads
from app.uploads.service import pending_problem
from nupes_client.schemas.audit import AuditAction
from nupes_client.schemas.models import Finding, HubSource, ModelCreate, UploadedFile, UploadSource
from nupes_core.errors import UnsafeFileError
from nupes_core.modelfolder import check_file_name

Reader = Callable[[Session, str, Collection[str]], dict[str, Upload]]

DEFAULT_NAME = "uploaded model"


def register(database: Database, store: BlobStore, settings: Settings, who: Principal, body: ModelCreate) -> Model:
    """Scan a model and register it. No transaction is open while a hub is asked or files are read.

    Raises:
        UnsafeFileError: pickles, code, `auto_map`, broken safetensors.
        ValidationProblem: an upload that is not there, is not complete, or has another checksum.
        ProblemError: what `Hub` raises; `hub_disabled`.
    """
    source = body.source
    if isinstance(source, HubSource):
        model, files = _from_hub(settings, source)
    else:
        model, files = _from_uploads(database, store, who.tenant_id, source)
    model.tenant_id = who.tenant_id
    model.name = body.name or model.name
    with database.write() as session:
        if isinstance(source, UploadSource):
            _find_uploads(session, who.tenant_id, source.files, uploads.lock_many)  # one may be gone by now
        repository.add(session, model, files)
        audit.record(session, who, AuditAction.MODEL_CREATED, model.id)
    return model


def _from_uploads(
    database: Database, store: BlobStore, tenant_id: str, source: UploadSource
) -> tuple[Model, list[ModelFile]]:
    with database.read() as session:
        found = _find_uploads(session, tenant_id, source.files, uploads.get_many)
    digests = {path: str(upload.sha256) for path, upload in found.items()}

    def read(path: str, start: int, end: int) -> bytes:
        return b"".join(store.open(digests[path], start, end))

    result = scan({path: upload.size for path, upload in found.items()}, read, magic=True)
    _refuse_code(result.findings)
    model = _model(result, {"type": "upload"}, result.architecture or result.model_type or DEFAULT_NAME)
    files = [ModelFile(path=path, size=found[path].size, sha256=digests[path]) for path in sorted(found)]
    return model, files


def _find_uploads(session: Session, tenant_id: str, files: list[UploadedFile], read: Reader) -> dict[str, Upload]:
    """Path -> upload; the first thing wrong is named by its place in the request."""
    known = read(session, tenant_id, {file.upload_id for file in files})
    found: dict[str, Upload] = {}
    for index, file in enumerate(files):
        if file.path in found:
            raise ValidationProblem(f"{file.path!r} is there twice", pointer=f"/source/files/{index}/path")
        found[file.path] = _checked(known.get(file.upload_id), file, f"/source/files/{index}")
    return found


def _checked(upload: Upload | None, file: UploadedFile, pointer: str) -> Upload:
    if upload is None:
        raise ValidationProblem(
            f"there is no upload {file.upload_id!r}",
            code="upload_not_found",
            pointer=f"{pointer}/upload_id",
            hint="It may have expired: upload the file again.",
        )
    if upload.sha256 is None:
        raise pending_problem(upload.id, f"{pointer}/upload_id")
    if file.sha256 is not None and file.sha256 != upload.sha256:
        raise ValidationProblem(
            f"the upload has sha256 {upload.sha256}; {file.sha256} was given",
            code="checksum_mismatch",
            pointer=f"{pointer}/sha256",
        )
    return upload


def _refuse_code(findings: Iterable[Finding]) -> None:
    for finding in findings:
        if names_code(finding):
            raise UnsafeFileError(
                f"{finding.path} has auto_map, which names code that comes with the model",
                hint="Remove auto_map and upload the file again; the weights alone can be quantized.",
            )


def _from_hub(settings: Settings, source: HubSource) -> tuple[Model, list[ModelFile]]:
    if not settings.hub:
        raise ProblemError(
            403, "hub_disabled", "Forbidden", "this service takes no models from a hub", hint="Upload the files."
        )
    from app.models.hub import Hub  # the library costs 180 ms and 8 MB: only who uses it pays

    hub = Hub(settings)
    found = hub.resolve(source.repo_id, source.revision)
    sizes, ignored = _safe_files(found.sizes)
    result = scan(sizes, lambda path, start, end: hub.read(found, path, start, end), magic=False)
    origin = {"type": "hub", "repo_id": found.repo_id, "revision": source.revision, "commit": found.commit}
    digests = {path: found.digests[path] for path in result.files if path in found.digests}
    model = _model(result, {**origin, "digests": digests}, found.repo_id, ignored)
    model.license = found.license
    return model, [ModelFile(path=path, size=sizes[path]) for path in result.files]


def _safe_files(sizes: dict[str, int]) -> tuple[dict[str, int], list[Finding]]:
    """Take the files of the repository's top folder that a model may hold; a finding for each that it may not."""
    safe: dict[str, int] = {}
    ignored: list[Finding] = []
    for path, size in sizes.items():
        if "/" in path or path.startswith("."):
            continue
        try:
            check_file_name(path)
        except UnsafeFileError as error:
            ignored.append(Finding(code="file_ignored", path=path, message=error.message))
        else:
            safe[path] = size
    if ignored and not any(path.endswith(".safetensors") for path in safe):
        raise UnsafeFileError(
            f"the repository has no safetensors, only {', '.join(str(finding.path) for finding in ignored[:3])}",
            hint="Ask for a revision with safetensors, or convert the weights and upload them.",
        )
    return safe, ignored


def _model(result: Scan, source: dict[str, object], name: str, ignored: Iterable[Finding] = ()) -> Model:
    return Model(
        name=name[:200],
        source=source,
        config=dict(result.config),
        headers=headers.to_json(result.headers),
        architecture=result.architecture,
        model_type=result.model_type,
        params=result.params,
        bytes=result.bytes,
        dtype=result.dtype,
        findings=[finding.model_dump() for finding in (*result.findings, *ignored)],
    )
