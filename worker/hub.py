"""Files of one commit on the hub that `HF_ENDPOINT` names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worker.reasons import TypedError

TIMEOUT_S = 15.0


@dataclass(frozen=True)
class RepositoryKind:
    """What is said of a repository, and with which codes.

    Attributes:
        type: as huggingface_hub calls it.
        noun: as people call it.
        gated, missing: codes of errors.
        missing_hint: what to do where something is not there.
    """

    type: str
    noun: str
    gated: str
    missing: str
    missing_hint: str


MODEL = RepositoryKind(
    "model",
    "model",
    "model_gated",
    "model_not_found",
    "Register the model again: it changed on the hub, or the service's token may not read it.",
)
DATASET = RepositoryKind(
    "dataset",
    "data set",
    "calibration_failed",
    "calibration_failed",
    "Check repo_id, revision and file; a private data set needs a token of the service (NUPES_HUB_TOKEN).",
)


class HubFiles:
    """One resolved commit. Downloads go through huggingface_hub, which resumes and follows redirects."""

    def __init__(self, kind: RepositoryKind, repo_id: str, commit: str, token: str | None, cache: Path) -> None:
        self.repo_id = repo_id
        self.commit = commit
        self._kind = kind
        self._token = token
        self._cache = cache

    def download(self, name: str) -> Path:
        """Return the real path of a downloaded file.

        Raises:
            TypedError: gated or missing (codes of the kind), or `download_failed`, which another attempt may cure.
        """
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(
                self.repo_id,
                name,
                repo_type=self._kind.type,
                revision=self.commit,
                token=self._token or False,
                cache_dir=self._cache,
            )
        except Exception as error:
            where = f"{self.repo_id} at {self.commit[:12]}"
            raise typed(error, self._kind, self.repo_id, f"{where} has no file {name}", f"{name} of {where}") from error
        return Path(path).resolve()


@dataclass(frozen=True)
class HubFile:
    """One file of a commit; `sha256` is None where the hub does not know it (small files)."""

    path: str
    size: int
    sha256: str | None


def resolve_dataset(repo_id: str, revision: str, token: str | None) -> tuple[str, dict[str, HubFile]]:
    """Return the commit that a revision of a data set is right now, and its files by path.

    Raises:
        TypedError: `calibration_failed` where it is gated or not there, or `download_failed`.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi(token=token or False).dataset_info(
            repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT_S
        )
    except Exception as error:
        what = f"data set {repo_id} at {revision}"
        raise typed(error, DATASET, repo_id, f"{what} not found", what) from error
    files = [
        HubFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else None) for each in info.siblings or []
    ]
    return str(info.sha), {file.path: file for file in files}


def typed(error: Exception, kind: RepositoryKind, repo_id: str, missing: str, what: str) -> Exception:
    """Return what to raise for an error of huggingface_hub.

    Args:
        error: as caught.
        kind: of the repository.
        repo_id: of the repository.
        missing: what to say where the repository, the revision or the file is not there.
        what: was to be fetched.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        hint = "Accept its terms on the hub and give the service a token (NUPES_HUB_TOKEN)."
        return TypedError(kind.gated, f"the {kind.noun} {repo_id} is gated", hint=hint)
    absent = (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError)
    if isinstance(error, absent) and not isinstance(error, LocalEntryNotFoundError):
        return TypedError(kind.missing, missing, hint=kind.missing_hint)
    if isinstance(error, OSError) and error.errno is not None and type(error) is OSError:
        return error  # of the disk, not of the hub
    return TypedError(
        "download_failed",
        f"{what} could not be downloaded ({type(error).__name__})",
        hint="The hub did not answer as expected; retry.",
        retryable=True,
    )
