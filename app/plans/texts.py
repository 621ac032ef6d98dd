"""Texts that a job names: looked at before any work, as far as their first bytes tell."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from sqlalchemy.orm import Session

from app.core.problems import ValidationProblem
from app.storage import BlobStore
from app.uploads import service as uploads
from nupes_client.schemas.jobs import JobSpec, TextRef

HEAD_BYTES = 64 << 10
"""Read of each text: a file of another kind is no UTF-8 long before."""


def check_texts(session: Session, store: BlobStore, tenant_id: str, spec: JobSpec) -> None:
    """Check the texts to evaluate and to calibrate on.

    Raises:
        NotFoundError: one is not there, or is another tenant's.
        ValidationProblem: one is not complete, is empty, or does not begin as UTF-8.
    """
    for place, text in _named(spec):
        pointer = f"{place}/upload_id"
        upload = uploads.get_complete(session, tenant_id, text.upload_id, pointer)
        assert upload.sha256 is not None
        head = _head(store, upload.sha256) if upload.size else b""
        _check_head(head, text.upload_id, pointer, whole=upload.size <= HEAD_BYTES)


def _named(spec: JobSpec) -> Iterator[tuple[str, TextRef]]:
    if spec.evaluation and spec.evaluation.text:
        yield "/evaluation/text", spec.evaluation.text
    if spec.calibration and spec.calibration.text:
        yield "/calibration/text", spec.calibration.text


def _head(store: BlobStore, sha256: str) -> bytes:
    return b"".join(store.open(sha256, 0, HEAD_BYTES))


def _check_head(head: bytes, upload_id: str, pointer: str, *, whole: bool) -> None:
    """A character that is cut off by the end of the head is none that is missing."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError as error:
        raise ValidationProblem(
            f"the upload {upload_id!r} is no UTF-8 text: byte {error.start} is {head[error.start]:#04x}",
            code="text_not_utf8",
            pointer=pointer,
            hint="Send plain text or JSONL, encoded as UTF-8.",
        ) from error
    if whole and not text.strip():
        raise ValidationProblem(
            f"the upload {upload_id!r} holds no text",
            code="text_empty",
            pointer=pointer,
            hint="Send a text of some thousand words.",
        )
