"""Files to evaluate and calibrate on: looked at before any work, as far as their first bytes tell."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from sqlalchemy.orm import Session

from app.core.problems import ValidationProblem
from app.models import repository as models
from app.storage import BlobStore
from app.uploads import service as uploads
from nupes_client.schemas.specs import JobSpec, TextRef
from nupes_core.modelfolder import has_tokenizer

HEAD_BYTES = 64 << 10
"""Read of each text: a file of another kind is no UTF-8 long before."""

_NOTHING = re.compile(rb"(?!)")
_TABLE_OR_TENSORS = re.compile(rb"PAR1|.{4}\0{4}\{", re.DOTALL)
"""Parquet, and the length and the opening brace of a safetensors header."""


def check_texts(session: Session, store: BlobStore, tenant_id: str, spec: JobSpec) -> None:
    """Check the texts to evaluate and to calibrate on.

    Raises:
        NotFoundError: one is not there, or is another tenant's.
        ValidationProblem: one is not complete, is empty, or does not begin as UTF-8 (nor, to calibrate on, as Parquet
            or safetensors), or the model has no tokenizer to read it with.
    """
    for place, text, binary in _named(spec):
        pointer = f"{place}/upload_id"
        upload = uploads.get_complete(session, tenant_id, text.upload_id, pointer)
        assert upload.sha256 is not None
        head = _head(store, upload.sha256) if upload.size else b""
        if binary.match(head):
            continue
        _check_head(head, text.upload_id, pointer, whole=upload.size <= HEAD_BYTES)
        if _lacks_tokenizer(session, spec.model.id):
            raise ValidationProblem(
                "the model has no tokenizer, so it can read no text",
                code="tokenizer_missing",
                pointer=place,
                hint="Register it with its tokenizer.json, or leave the text out: it then writes its own tokens.",
            )


def _lacks_tokenizer(session: Session, model_id: str) -> bool:
    names = models.hashes_of(session, model_id)
    return bool(names) and not has_tokenizer(names)


def _named(spec: JobSpec) -> Iterator[tuple[str, TextRef, re.Pattern[bytes]]]:
    """Yield where in the wish a file is named, the file, and how it may begin other than as text."""
    if spec.evaluation and spec.evaluation.text:
        yield "/evaluation/text", spec.evaluation.text, _NOTHING
    if spec.calibration and spec.calibration.text:
        yield "/calibration/text", spec.calibration.text, _TABLE_OR_TENSORS


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
            hint="Send plain text, encoded as UTF-8; to calibrate on also JSONL, JSON, CSV, Parquet or safetensors.",
        ) from error
    if whole and not text.strip():
        raise ValidationProblem(
            f"the upload {upload_id!r} holds no text",
            code="text_empty",
            pointer=pointer,
            hint="Send a text of some thousand words.",
        )
