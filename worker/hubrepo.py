"""The repository on the hub that `HF_ENDPOINT` names, into which a result is pushed in one commit.

Files go up by Git LFS over HTTP: every hub and every proxy speaks it, and objects that are there are not sent again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from nupes_core.card import SUMS_NAME
from worker.reasons import TypedError

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

T = TypeVar("T")

TIMEOUT_S = 120.0
"""Without a byte. The library would wait for ever."""

_ANYBODYS = re.compile(r"\.gitattributes|README\.md|LICENSE(\.\w+)?")
"""What a hub, or the form in which a repository is made there, puts into a new one."""

_SUM_LINE = re.compile(r"[0-9a-f]{64}  (\S.*)")
_REFUSALS = range(400, 500)
_MOVED = 412
_TRANSIENT = frozenset({408, 409, 423, 425, 429})
"""Of those: too slow, too much, or somebody else was writing at that moment."""


class MovedOnError(TypedError):
    """Somebody else committed since the branch was looked at."""

    def __init__(self, where: str) -> None:
        super().__init__(
            "push_failed", f"others kept writing to {where}", hint=f"Nothing was lost there. {_STORED}", retryable=True
        )


@dataclass(frozen=True)
class Target:
    """Where to, and with which right; the token is kept out of `repr`.

    Attributes:
        repo: `namespace/name`.
        revision: a branch.
        private: refuse a repository that everybody can read.
    """

    repo: str
    revision: str
    private: bool


@dataclass(frozen=True)
class Head:
    """What a branch holds now; `stale` of it was put there by an earlier push and may go."""

    commit: str
    paths: frozenset[str]


class HubRepo:
    """A model repository, through huggingface_hub."""

    def __init__(self, target: Target, token: str) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # public, not in its __all__

        self._target = target
        self._token = token
        # The token itself, always: with None the library would look for one that lies on this machine.
        self._api = HfApi(token=token)
        get_session().timeout = TIMEOUT_S

    @property
    def url(self) -> str:
        """The page of the repository, at the branch."""
        tree = "" if self._target.revision == "main" else f"/tree/{quote(self._target.revision, safe='')}"
        return f"{self._api.endpoint}/{self._target.repo}{tree}"

    def open(self) -> Head:
        """Return what the branch holds; repository and branch are made where they are missing.

        Raises:
            TypedError: `push_denied`, `push_conflict` (public, though the job says private), or `push_failed`.
        """
        return self._guarded(self._open)

    def earlier(self, head: Head, scratch: Path) -> frozenset[str]:
        """Return the paths that an earlier push put there: those that its `SHA256SUMS` at the root names.

        Raises:
            TypedError: `push_conflict`: there are files that no push put there; or as `open`.
        """
        listed = self._guarded(lambda: self._listed(scratch)) if SUMS_NAME in head.paths else frozenset()
        strange = sorted(path for path in head.paths - listed - {SUMS_NAME} if not _ANYBODYS.fullmatch(path))
        if strange and not listed:
            raise TypedError(
                "push_conflict",
                f"{self._target.repo} at {self._target.revision} holds files that no push put there, such as "
                f"{strange[0][:100]}",
                hint=f"Name a new repository or another branch in push_to_hub. {_STORED}",
            )
        return listed & head.paths

    def send(self, addition: CommitOperationAdd) -> None:
        """Send the content of one file, where the hub wants it by itself and does not have it; raises as `open`."""
        self._guarded(
            lambda: self._api.preupload_lfs_files(
                self._target.repo, [addition], revision=self._target.revision, num_threads=1
            )
        )

    def commit(
        self, head: Head, additions: Collection[CommitOperationAdd], stale: Collection[str], message: str
    ) -> tuple[str, str]:
        """Commit upon `head`; nothing is committed where the branch holds just this already.

        Returns:
            Commit and its page.

        Raises:
            MovedOnError: the branch holds another commit by now.
            TypedError: as `open`.
        """
        from huggingface_hub import CommitOperationDelete

        deletions = [CommitOperationDelete(path) for path in sorted(stale)]
        info = self._guarded(
            lambda: self._api.create_commit(
                self._target.repo,
                [*additions, *deletions],
                commit_message=message,
                revision=self._target.revision,
                parent_commit=head.commit,
            )
        )
        return str(info.oid), str(info.commit_url)

    def _open(self) -> Head:
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        repo, revision = self._target.repo, self._target.revision
        try:
            info = self._api.model_info(repo)
        except RepositoryNotFoundError:
            self._api.create_repo(repo, private=self._target.private, exist_ok=True)
            info = self._api.model_info(repo)
        if self._target.private and not info.private:
            raise TypedError(
                "push_conflict",
                f"everybody can read {repo}, and push_to_hub says private",
                hint=f"Make it private on the hub, name another one, or say private: false. {_STORED}",
            )
        try:
            info = self._api.model_info(repo, revision=revision)
        except RevisionNotFoundError:
            self._api.create_branch(repo, branch=revision, exist_ok=True)
            info = self._api.model_info(repo, revision=revision)
        return Head(str(info.sha), frozenset(each.rfilename for each in info.siblings or ()))

    def _listed(self, scratch: Path) -> frozenset[str]:
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(
            self._target.repo, SUMS_NAME, revision=self._target.revision, token=self._token, cache_dir=scratch
        )
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        names = frozenset(match[1] for line in lines if (match := _SUM_LINE.fullmatch(line)))
        return names | {SUMS_NAME} if names else names

    def _guarded(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except TypedError:
            raise
        except Exception as error:
            raise self._typed(error) from error

    def _typed(self, error: Exception) -> Exception:
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        where = f"{self._target.repo} at {self._target.revision}"
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == _MOVED:
            return MovedOnError(where)
        if isinstance(error, HFValidationError) or (status in _REFUSALS and status not in _TRANSIENT):
            said = str(getattr(error, "server_message", None) or error)[:300].replace(self._token, "…")
            hint = _HINTS.get(status, "Check push_to_hub.")
            return TypedError("push_denied", f"the hub refuses {where}: {said}", hint=f"{hint} {_STORED}")
        if type(error) is OSError and error.errno is not None:
            return error  # of the disk, not of the hub
        why = type(error).__name__ if status is None else f"status {status}"
        hint = f"The hub did not answer as expected. {_STORED}"
        return TypedError("push_failed", f"{where} could not be written ({why})", hint=hint, retryable=True)


def operation(path: str, file: Path) -> CommitOperationAdd:
    """Return the wish to have the content of `file` at `path` in the repository."""
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path, file)


_STORED = "The files are stored; `nupes retry` pushes them without computing anything again."
_HINTS: Mapping[int | None, str] = {
    401: "The hub does not know the token: store a valid one, `nupes secrets set`.",
    403: "Store a token that may write there, `nupes secrets set`.",
    404: "Check that the namespace exists and that the token may write there.",
}
