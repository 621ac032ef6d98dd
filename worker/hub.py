"""Files of one commit on the hub that `HF_ENDPOINT` names."""

from __future__ import annotations

from pathlib import Path

from worker.reasons import TypedError


class HubModel:
    """One resolved commit. Downloads go through huggingface_hub, which resumes and follows redirects."""

    def __init__(self, repo_id: str, commit: str, token: str | None, cache: Path) -> None:
        self._repo_id = repo_id
        self._commit = commit
        self._token = token
        self._cache = cache

    def download(self, name: str) -> Path:
        """Return the real path of a downloaded file.

        Raises:
            TypedError: `model_gated`, `model_not_found`, or `download_failed`, which another attempt may cure.
        """
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(
                self._repo_id, name, revision=self._commit, token=self._token or False, cache_dir=self._cache
            )
        except Exception as error:
            raise self._typed(error, name) from error
        return Path(path).resolve()

    def _typed(self, error: Exception, name: str) -> Exception:
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        where = f"{self._repo_id} at {self._commit[:12]}"
        if isinstance(error, GatedRepoError):
            hint = "Accept its terms on the hub and give the service a token (NUPES_HUB_TOKEN)."
            return TypedError("model_gated", f"{self._repo_id} is gated", hint=hint)
        missing = (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError)
        if isinstance(error, missing) and not isinstance(error, LocalEntryNotFoundError):
            hint = "Register the model again: it changed on the hub, or the service's token may not read it."
            return TypedError("model_not_found", f"{where} has no file {name}", hint=hint)
        if isinstance(error, OSError) and error.errno is not None and type(error) is OSError:
            return error  # of the disk, not of the hub
        return TypedError(
            "download_failed",
            f"{name} of {where} could not be downloaded ({type(error).__name__})",
            hint="The hub did not answer as expected; retry.",
            retryable=True,
        )
