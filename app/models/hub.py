"""Repositories on a hub, through `huggingface_hub`: resolved to a commit, looked at by range requests, not downloaded.

The host is a setting of the operator (`HF_ENDPOINT`), never part of a request.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import DatasetInfo, HfApi, ModelInfo, constants, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, though not in its __all__
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from app.core.problems import ProblemError, UnavailableError, ValidationProblem
from app.settings import Settings

TIMEOUT_S = 15.0

# The library's own errors derive from the base error of the HTTP client it is built on (httpx, later httpx2).
_TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_TOO_MANY_REQUESTS = 429


@dataclass(frozen=True)
class HubRepository:
    """A repository at one commit.

    Attributes:
        sizes: path -> bytes.
        digests: path -> SHA-256, for files that the hub knows it of (large ones).
    """

    repo_id: str
    commit: str
    sizes: dict[str, int]
    digests: dict[str, str] = field(default_factory=dict)
    license: str | None = None


@dataclass(frozen=True)
class Kind:
    """Models or data sets, and how a request speaks of them.

    Attributes:
        noun: in words.
        code: what error codes begin with.
        pointer: place in the request.
        instead: what to do without the hub.
    """

    noun: str
    code: str
    pointer: str
    instead: str


MODEL = Kind("model", "model", "/source", "upload the model folder")
DATASET = Kind("data set", "dataset", "/calibration/dataset", "upload a file as calibration.text")


class Hub:
    """The hub that the operator chose."""

    def __init__(self, settings: Settings) -> None:
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        # False, not None: a token that lies in the operator's home must not open doors for every user of the service.
        self._token: str | bool = settings.hub_token.get_secret_value() if settings.hub_token else False
        self._api = HfApi(endpoint=self.endpoint, token=self._token)

    def resolve(self, repo_id: str, revision: str | None) -> HubRepository:
        """Find out what a revision of a model is right now.

        Raises:
            ProblemError: `model_not_found`, `model_gated`, or `download_failed` (retryable).
        """
        with _typed(repo_id, MODEL):
            return _repository(
                repo_id, self._api.model_info(repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
            )

    def resolve_dataset(self, repo_id: str, revision: str) -> HubRepository:
        """Find out what a revision of a data set is right now.

        Raises:
            ProblemError: `dataset_not_found`, `dataset_gated`, or `download_failed` (retryable).
        """
        with _typed(repo_id, DATASET):
            return _repository(
                repo_id, self._api.dataset_info(repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
            )

    def read(self, repository: HubRepository, path: str, start: int, end: int) -> bytes:
        """Return the bytes of a file from `start` to before `end`; raises as `resolve`."""
        if end <= start:
            return b""
        url = hf_hub_url(repository.repo_id, path, revision=repository.commit, endpoint=self.endpoint)
        headers = {**build_hf_headers(token=self._token), "Range": f"bytes={start}-{end - 1}"}
        with (
            _typed(repository.repo_id, MODEL),
            get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as response,
        ):
            hf_raise_for_status(response)
            skip = 0 if response.status_code == 206 else start  # a server may send the whole in spite of the range
            return _take(response.iter_bytes(), skip, end - start)


def _repository(repo_id: str, info: ModelInfo | DatasetInfo) -> HubRepository:
    files = info.siblings or []
    return HubRepository(
        repo_id=repo_id,
        commit=str(info.sha),
        sizes={file.rfilename: file.size or 0 for file in files},
        digests={file.rfilename: file.lfs.sha256 for file in files if file.lfs},
        license=_license(info.card_data),
    )


def _take(chunks: Iterator[bytes], skip: int, count: int) -> bytes:
    """Read no more than needed, whatever the server would send."""
    gathered = bytearray()
    for chunk in chunks:
        gathered += chunk
        if len(gathered) >= skip + count:
            break
    return bytes(gathered[skip : skip + count])


def _license(card: Any) -> str | None:
    name = card.get("license") if card else None
    return str(name)[:100] if name else None


@contextmanager
def _typed(repo_id: str, kind: Kind) -> Iterator[None]:
    try:
        yield
    except GatedRepoError as error:
        raise _gated(repo_id, kind) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        raise _not_found(repo_id, kind, error) from error
    except HfHubHTTPError as error:
        raise _unavailable(error) from error
    except (_TRANSPORT_ERROR, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise _unreachable(repo_id, kind, error) from error


def _gated(repo_id: str, kind: Kind) -> ProblemError:
    return ValidationProblem(
        f"the {kind.noun} {repo_id!r} is gated: its owner decides who may read it",
        code=f"{kind.code}_gated",
        pointer=f"{kind.pointer}/repo_id",
        hint="Ask its owner for access and set NUPES_HUB_TOKEN, or upload the files.",
    )


def _unreachable(repo_id: str, kind: Kind, error: Exception) -> ProblemError:
    return UnavailableError(
        "download_failed",
        f"the hub does not answer ({type(error).__name__}), so {repo_id!r} can not be looked up",
        status=502,
        retry_after_s=10,
        hint=f"Try again later, ask the operator for a hub (HF_ENDPOINT), or {kind.instead}.",
    )


def _not_found(repo_id: str, kind: Kind, error: Exception) -> ProblemError:
    revision = isinstance(error, RevisionNotFoundError)
    return ValidationProblem(
        f"the hub knows no such revision of {repo_id!r}"
        if revision
        else f"the hub knows no {kind.noun} {repo_id!r}, or it is private",
        code=f"{kind.code}_not_found",
        pointer=f"{kind.pointer}/revision" if revision else f"{kind.pointer}/repo_id",
        hint=f"Check the spelling; a private {kind.noun} needs NUPES_HUB_TOKEN.",
    )


def _unavailable(error: HfHubHTTPError) -> ProblemError:
    response = error.response
    wait = response.headers.get("Retry-After", "")
    retry_after_s = min(int(wait), 3600) if wait.isdigit() else 10
    busy = response.status_code == _TOO_MANY_REQUESTS
    return UnavailableError(
        "download_failed",
        f"the hub answers {response.status_code}",
        status=503 if busy else 502,
        retry_after_s=retry_after_s,
    )
