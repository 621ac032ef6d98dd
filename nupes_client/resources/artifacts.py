"""Artifacts: list them, download them whole and unharmed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath

import httpx

from nupes_client.errors import ApiError, ChecksumError, LocalFileError, UnsafePathError
from nupes_client.files import CHUNK_BYTES, Advance, sha256_of
from nupes_client.resources.paging import every
from nupes_client.schemas.artifacts import Artifact
from nupes_client.transport import RETRIED_STATUSES, Transport, checked, unreachable

ATTEMPTS_WITHOUT_PROGRESS = 5
SILENCE_S = 60.0


class Artifacts:
    """`/v1/artifacts` and the artifacts of a job."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, artifact_id: str) -> Artifact:
        """Return one artifact."""
        return Artifact.model_validate_json(self._transport.request("GET", f"/v1/artifacts/{artifact_id}").content)

    def list(self, job_id: str) -> Iterator[Artifact]:
        """Yield the files a job left."""
        return every(self._transport, f"/v1/jobs/{job_id}/artifacts", Artifact)

    def download_all(
        self,
        job_id: str,
        folder: str | PathLike[str],
        *,
        advance: Advance | None = None,
        kept: Advance | None = None,
    ) -> Sequence[Path]:
        """Download every file of a job to `folder/FORMAT/PATH`; files that are there already are kept.

        Args:
            job_id: of an ended job.
            folder: where to.
            advance: called with the bytes that arrived.
            kept: called with the size of each file that was there already.

        Raises: as `download`.
        """
        artifacts, root = list(self.list(job_id)), Path(folder)
        return [
            self.download(artifact, root / _component(artifact.format), advance=advance, kept=kept)
            for artifact in artifacts
        ]

    def download(
        self,
        artifact: Artifact,
        folder: str | PathLike[str],
        *,
        advance: Advance | None = None,
        kept: Advance | None = None,
    ) -> Path:
        """Download one file to `folder` and return its path. It appears under its name only when complete and checked.

        A broken transfer is resumed, also by a later call.

        Raises:
            UnsafePathError: its name would leave `folder`.
            ChecksumError: the bytes are not the announced ones.
            ServiceUnreachableError: the transfer broke again and again.
            LocalFileError: it can not be written.
        """
        target = safe_path(Path(folder), artifact.path)
        if target.is_file() and target.stat().st_size == artifact.size and sha256_of(target) == artifact.sha256:
            if kept is not None:
                kept(artifact.size)
            return target
        partial = target.with_name(f".{target.name}.{artifact.sha256[:12]}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _Transfer(self._transport, artifact, partial, advance).run()
            partial.replace(target)
        except OSError as error:
            raise LocalFileError(f"{target} can not be written: {error.strerror}") from error
        return target


def safe_path(folder: Path, name: str) -> Path:
    """Return `folder/name`, sure to lie inside `folder`, symbolic links in `folder` included.

    Raises:
        UnsafePathError: it would not.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or any(not _is_plain(part) for part in parts):
        raise UnsafePathError(f"the service named a file {name!r}, which does not stay inside {folder}")
    target = folder.joinpath(*parts)
    root = folder.resolve()
    if target.is_symlink() or not target.parent.resolve().is_relative_to(root):
        raise UnsafePathError(f"{target} leads out of {folder} through a symbolic link")
    return target


def _is_plain(part: str) -> bool:
    return part not in ("", ".", "..") and not any(sign in part for sign in "\\:\0") and part.isprintable()


def _component(name: str) -> str:
    if not _is_plain(name) or "/" in name:
        raise UnsafePathError(f"the service named a format {name!r}, which is no folder name")
    return name


class _Transfer:
    """One file on its way into a partial file, hashed as it comes."""

    def __init__(self, transport: Transport, artifact: Artifact, partial: Path, advance: Advance | None) -> None:
        self._transport = transport
        self._artifact = artifact
        self._partial = partial
        self._advance = advance
        self._digest = hashlib.sha256()
        self._done = 0

    def run(self) -> None:
        """Fetch until complete, then check.

        Raises:
            ChecksumError, ServiceUnreachableError, ApiError, OSError: see `Artifacts.download`.
        """
        self._take_over()
        failures = 0
        while self._done < self._artifact.size or not self._partial.exists():
            before = self._done
            try:
                self._fetch()
                problem: Exception = ConnectionError("the transfer ended early")
            except httpx.TransportError as error:
                problem = error
            except ApiError as error:
                if error.status not in RETRIED_STATUSES:
                    raise
                problem = error
            failures = 0 if self._done > before else failures + 1
            if failures >= ATTEMPTS_WITHOUT_PROGRESS:
                raise unreachable(self._transport.url, problem)
            if self._done < self._artifact.size:
                self._transport.pause(max(failures, 1))
        self._check()

    def _take_over(self) -> None:
        """Hash what an earlier attempt left, so that only the rest is fetched."""
        if not self._partial.exists():
            return
        if self._partial.is_symlink() or self._partial.stat().st_size > self._artifact.size:
            self._partial.unlink()
            return
        with self._partial.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self._count(chunk)

    def _fetch(self) -> None:
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if self._done:
            headers |= {"Range": f"bytes={self._done}-", "If-Range": f'"sha256-{self._artifact.sha256}"'}
        with self._transport.stream(
            f"/v1/artifacts/{self._artifact.id}/content", headers=headers, timeout_s=SILENCE_S, follow_redirects=True
        ) as response:
            if not response.is_success:
                response.read()
                checked(response)
            if not response.headers.get("Content-Range", "").startswith(f"bytes {self._done}-"):
                self._start_over()  # all of it, or another part than the one asked for
            self._write(response)

    def _write(self, response: httpx.Response) -> None:
        with self._partial.open("ab") as file:
            for chunk in response.iter_raw():  # as it arrives: what a chunk size holds back is lost on a break
                file.write(chunk)
                self._count(chunk)
                if self._done > self._artifact.size:
                    break  # `_check` says what is wrong

    def _start_over(self) -> None:
        self._digest = hashlib.sha256()
        self._done = 0
        self._partial.unlink(missing_ok=True)

    def _count(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._done += len(chunk)
        if self._advance is not None:
            self._advance(len(chunk))

    def _check(self) -> None:
        if self._done == self._artifact.size and self._digest.hexdigest() == self._artifact.sha256:
            return
        self._partial.unlink()
        raise ChecksumError(
            f"{self._artifact.path}: {self._done} bytes with sha256 {self._digest.hexdigest()} arrived, "
            f"announced were {self._artifact.size} with {self._artifact.sha256}",
            hint="Download it again; if it happens again, tell the operator of the service.",
        )
