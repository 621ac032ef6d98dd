"""Environments of children: an allow-list, so that nothing secret gets where it is not needed."""

from __future__ import annotations

import os
from pathlib import Path

import worker
from app.settings import Settings
from worker.orders import threads
from worker.workfolder import JobFolder

_COMMON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "LD_LIBRARY_PATH",
    "XDG_CACHE_HOME",
    "NUMBA_CACHE_DIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
_DEVICE_PREFIXES = ("CUDA_", "NVIDIA_", "HIP_", "ROCR_")
_NETWORK_PREFIXES = (
    "HF_ENDPOINT",
    "AWS_",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)
_IDLE_THREADS = {"OMP_WAIT_POLICY": "passive"}
"""OpenMP threads sleep while they wait. By default they spin, and where cores are shared with the API, with another
worker or with anything else, each parallel operation then waits for the next tick of the scheduler (milliseconds).
"""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def offline(settings: Settings, folder: JobFolder) -> dict[str, str]:
    """Environment of a child that computes: no secrets, no hub, a set number of threads."""
    return {
        **_base(folder),
        **_with_prefix(_DEVICE_PREFIXES),
        **dict.fromkeys(_THREAD_VARIABLES, str(threads(settings))),
        **_IDLE_THREADS,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def online(settings: Settings, folder: JobFolder) -> dict[str, str]:
    """Environment of a child that moves files: storage and hub, nothing of database, broker or keys."""
    env = {
        **_base(folder),
        **_with_prefix(_NETWORK_PREFIXES),
        "NUPES_DATA_DIR": str(settings.data_dir.absolute()),
        "NUPES_STORAGE_URL": settings.resolved_storage_url,
        "NUPES_MAX_UPLOAD_BYTES": str(settings.max_upload_bytes),
        "NUPES_MIN_FREE_DISK_BYTES": str(settings.min_free_disk_bytes),
    }
    if settings.s3_endpoint_url:
        env["NUPES_S3_ENDPOINT_URL"] = settings.s3_endpoint_url
    if settings.hub_token:
        env["NUPES_HUB_TOKEN"] = settings.hub_token.get_secret_value()
    return env


def pushing(settings: Settings, folder: JobFolder) -> dict[str, str]:
    """Environment of the child that pushes: as `online`, but the operator's token is no token of the user's.

    The user's own comes by standard input, which no listing of processes shows.
    """
    env = online(settings, folder)
    env.pop("NUPES_HUB_TOKEN", None)
    return {**env, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}  # nosec B105


def _base(folder: JobFolder) -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in _COMMON if name in os.environ},
        "PYTHONPATH": str(Path(worker.__file__).parents[1]),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(folder.scratch),
        "HF_HOME": str(folder.scratch / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def _with_prefix(prefixes: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
