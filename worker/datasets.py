"""Which file of a data set is taken to calibrate on."""

from __future__ import annotations

import re
from collections.abc import Iterable

from worker.reasons import TypedError

_FITTING = (".txt", ".jsonl", ".json", ".csv", ".parquet")
_OF_THE_REPOSITORY = re.compile(
    r"(.*/)?(dataset_infos?\.json|state\.json|requirements\.txt|licen[cs]e\.txt|readme\.txt)|\..*", re.IGNORECASE
)
_LATER_SHARD = re.compile(r"-0*[1-9]\d*-of-\d+\.")
_SHOWN = 10


def choose_file(repo_id: str, files: Iterable[str], wished: str | None) -> str:
    """Return the file that was wished for, or the only fitting one: by suffix, of several the one for training.

    Of a file that was cut into shards (`train-00000-of-00004.parquet`) the first counts.

    Raises:
        TypedError: `calibration_failed`, naming some of the files there are.
    """
    there = sorted(files)
    fitting = [name for name in there if name.lower().endswith(_FITTING) and not _OF_THE_REPOSITORY.fullmatch(name)]
    if wished is not None:
        if wished in there:
            return wished
        raise _unclear(repo_id, f"has no file {wished!r}", fitting or there)
    if not fitting:
        raise _unclear(repo_id, f"has no file that ends with {', '.join(_FITTING)}", there)
    first = [name for name in fitting if not _LATER_SHARD.search(name)]
    chosen = first if len(first) == 1 else [name for name in first if "train" in name.lower()]
    if len(chosen) == 1:
        return chosen[0]
    raise _unclear(repo_id, f"has {len(fitting)} files to calibrate on", chosen or fitting)


def _unclear(repo_id: str, problem: str, names: list[str]) -> TypedError:
    shown = ", ".join(name[:200] for name in names[:_SHOWN]) or "none"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return TypedError(
        "calibration_failed",
        f"the data set {repo_id} {problem}; it has {shown}{more}",
        hint="Name one of them as calibration.dataset.file.",
    )
