"""What fetcher and runner do, and what they say when they can not."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from safetensors.numpy import load_file, save_file

from app.settings import Settings
from app.storage import open_store
from nupes_core.config import CalibrationConfig, QuantizationConfig
from nupes_core.errors import UnsafeFileError
from tests.hubserver import Hub, hub_server
from tests.worker.factory import attempt_orders, write_tiny_llama
from worker import environment
from worker.child import Command
from worker.reasons import describe
from worker.supervisor import supervise
from worker.workfolder import JobFolder, job_folder

WEIGHTS = bytes(range(256)) * 100
SMALL = b'{"model_type": "llama"}'


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(hub_token=SecretStr("hf_secret"))


@pytest.fixture
def folder(settings: Settings) -> JobFolder:
    return job_folder(settings.work_dir, "job_1", 1)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_operators_shell")
        yield hub


def _run(settings: Settings, folder: JobFolder, module: str) -> list[dict[str, Any]]:
    make_env = environment.online if module == "worker.fetcher" else environment.offline
    env = make_env(settings, folder)
    events: list[dict[str, Any]] = []
    supervise(Command(module, [str(folder.path)], env, folder.path, folder.log), events.append, lambda: None, 1.0)
    return events


def _error(events: list[dict[str, Any]]) -> dict[str, Any]:
    errors = [event for event in events if event["type"] == "error"]
    assert len(errors) == 1, events
    return errors[0]


def _files(**files: bytes) -> list[dict[str, Any]]:
    names = {name.replace("__", "."): content for name, content in files.items()}
    return [{"path": name, "size": len(content), "sha256": None} for name, content in names.items()]


def _hub_orders(files: list[dict[str, Any]], repo_id: str = "org/m", commit: str = "") -> dict[str, Any]:
    source = {"type": "hub", "repo_id": repo_id, "commit": commit or "1234567890abcdef1234567890abcdef12345678"}
    return {"source": source, "files": files, "text_sha256": None, "finished": []}


def test_hub_files_arrive_whole_with_the_service_s_token_and_nothing_else_stays(
    settings: Settings, folder: JobFolder, hub: Hub
) -> None:
    hub.add("org/m", {"config.json": SMALL, "model.safetensors": WEIGHTS}, token="hf_secret")
    files = _files(config__json=SMALL, model__safetensors=WEIGHTS, modeling__py=b"import os")
    files[1]["sha256"] = hashlib.sha256(WEIGHTS).hexdigest()
    folder.prepare(_hub_orders(files))
    events = _run(settings, folder, "worker.fetcher")
    assert [event["type"] for event in events] == ["phase", "progress", "progress"], folder.log.read_text()
    assert (folder.model / "model.safetensors").read_bytes() == WEIGHTS
    assert {path.name for path in folder.model.iterdir()} == {"config.json", "model.safetensors"}
    assert not (folder.scratch / "hub").exists()


def test_a_gated_model_is_said_to_be_gated(settings: Settings, folder: JobFolder, hub: Hub) -> None:
    hub.add("org/m", {"config.json": SMALL}, gated=True)
    folder.prepare(_hub_orders(_files(config__json=SMALL)))
    error = _error(_run(settings, folder, "worker.fetcher"))
    assert (error["code"], error["retryable"]) == ("model_gated", False)
    assert "hf_secret" not in json.dumps(error)


@pytest.mark.parametrize(("repo_id", "commit"), [("org/gone", ""), ("org/m", "f" * 40)])
def test_a_model_that_vanished_from_the_hub_is_not_found(
    settings: Settings, folder: JobFolder, hub: Hub, repo_id: str, commit: str
) -> None:
    hub.add("org/m", {"config.json": SMALL}, token="hf_secret")
    folder.prepare(_hub_orders(_files(config__json=SMALL), repo_id, commit))
    assert _error(_run(settings, folder, "worker.fetcher"))["code"] == "model_not_found"


def test_a_hub_that_fails_is_worth_another_attempt(settings: Settings, folder: JobFolder, hub: Hub) -> None:
    hub.add("org/m", {"config.json": SMALL})
    hub.status = 418  # the client itself repeats requests that end with 5xx, for half a minute
    folder.prepare(_hub_orders(_files(config__json=SMALL)))
    error = _error(_run(settings, folder, "worker.fetcher"))
    assert (error["code"], error["retryable"]) == ("download_failed", True)


def test_content_with_another_checksum_or_size_than_promised_is_refused(
    settings: Settings, folder: JobFolder, hub: Hub
) -> None:
    hub.add("org/m", {"model.safetensors": WEIGHTS})
    wrong_sum, wrong_size = _files(model__safetensors=WEIGHTS), _files(model__safetensors=WEIGHTS[1:])
    wrong_sum[0]["sha256"] = "0" * 64
    for files in (wrong_sum, wrong_size):
        folder.prepare(_hub_orders(files))
        assert _error(_run(settings, folder, "worker.fetcher"))["code"] == "download_failed"
        assert list(folder.model.iterdir()) == []


def test_blobs_are_linked_not_copied_and_a_missing_one_is_reported(settings: Settings, folder: JobFolder) -> None:
    blob = open_store(settings).put_stream([WEIGHTS])
    files = [{"path": "model.safetensors", "size": blob.size, "sha256": blob.sha256}]
    orders = {"source": {"type": "upload"}, "files": files, "text_sha256": None, "finished": []}
    folder.prepare(orders)
    assert _run(settings, folder, "worker.fetcher")[-1]["type"] == "progress"
    assert (folder.model / "model.safetensors").stat().st_nlink == 2
    folder.prepare({**orders, "text_sha256": "0" * 64})
    assert _error(_run(settings, folder, "worker.fetcher"))["code"] == "download_failed"


@pytest.mark.parametrize("path", ["../evil.json", "a/../../evil.json", "/etc/evil.json"])
def test_a_file_name_is_never_a_path(settings: Settings, folder: JobFolder, path: str) -> None:
    blob = open_store(settings).put_stream([SMALL])
    files = [{"path": path, "size": blob.size, "sha256": blob.sha256}]
    folder.prepare({"source": {"type": "upload"}, "files": files, "text_sha256": None, "finished": []})
    assert _error(_run(settings, folder, "worker.fetcher"))["code"] == "unsafe_file"


def test_children_get_only_what_they_need(
    settings: Settings, folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"NUPES_DATABASE_URL": "x", "NUPES_SECRET_KEY": "x", "AWS_SECRET_ACCESS_KEY": "x", "HF_TOKEN": "x"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    offline, online = environment.offline(settings, folder), environment.online(settings, folder)
    assert not {name for name in offline if name.startswith(("NUPES_", "AWS_")) or "TOKEN" in name} - {
        "TOKENIZERS_PARALLELISM"
    }
    assert offline["HF_HUB_OFFLINE"] == offline["TRANSFORMERS_OFFLINE"] == "1"
    assert online["NUPES_HUB_TOKEN"] == "hf_secret"
    assert not {"NUPES_DATABASE_URL", "NUPES_SECRET_KEY", "NUPES_BROKER_URL", "HF_TOKEN"} & set(online)


def _no_layers(_model: Path) -> dict[str, Any]:
    return attempt_orders(config=QuantizationConfig.from_dict({"layers": {"exclude": ["."]}}).to_dict())


def _no_room(_model: Path) -> dict[str, Any]:
    return attempt_orders(min_free_disk_bytes=1 << 60)


def _truncated(model: Path) -> dict[str, Any]:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return attempt_orders()


def _not_a_number(model: Path) -> dict[str, Any]:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan
    save_file(tensors, model / "model.safetensors")
    return attempt_orders()


def _infinite(model: Path) -> dict[str, Any]:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = np.inf
    save_file(tensors, model / "model.safetensors")
    return attempt_orders()


def _with_config(model: Path, **changes: Any) -> dict[str, Any]:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))
    return attempt_orders(evaluation=_EVALUATION)


def _unknown_architecture(model: Path) -> dict[str, Any]:
    return _with_config(model, model_type="brandnew", architectures=["BrandNew"])


def _a_trillion_layers(model: Path) -> dict[str, Any]:
    return _with_config(model, num_hidden_layers=10**12)


def _small_vocabulary(model: Path) -> dict[str, Any]:
    return _with_config(model, vocab_size=16)


def _odd_tokenizer(model: Path) -> dict[str, Any]:
    (model / "tokenizer.json").write_bytes(b"[" * 100_000 + b"]" * 100_000)
    return attempt_orders(evaluation=_EVALUATION)


_EVALUATION = {"metrics": ["fidelity"], "context": 16, "max_tokens": 64}


def _context_too_long(_model: Path) -> dict[str, Any]:
    return attempt_orders(evaluation={"metrics": ["fidelity"], "context": 100_000, "max_tokens": 1000})


_DATA_DRIVEN = QuantizationConfig(optimize="data_driven", calibration=CalibrationConfig(samples=8, length=16)).to_dict()


def _too_little_data(model: Path) -> dict[str, Any]:
    (model.parent / "calibration").write_text("a few words")
    return attempt_orders(config=_DATA_DRIVEN, calibration={"kind": "upload", "sha256": "0" * 64, "column": "text"})


def _small_vocabulary_to_calibrate(model: Path) -> dict[str, Any]:
    orders = _small_vocabulary(model)
    return {**orders, "evaluation": None, "config": _DATA_DRIVEN, "calibration": {"kind": "sampled"}}


def _unknown_architecture_to_calibrate(model: Path) -> dict[str, Any]:
    orders = _unknown_architecture(model)
    return {**orders, "evaluation": None, "config": _DATA_DRIVEN, "calibration": {"kind": "sampled"}}


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        (_no_layers, "no_quantizable_layers"),
        (_no_room, "disk_full"),
        (_truncated, "unsafe_file"),
        (_not_a_number, "numerics_nan"),
        (_infinite, "numerics_nan"),
        (_unknown_architecture, "unsupported_architecture"),
        (_a_trillion_layers, "unsupported_architecture"),
        (_small_vocabulary, "eval_failed"),
        (_odd_tokenizer, "eval_failed"),
        (_context_too_long, "eval_failed"),
        (_too_little_data, "calibration_failed"),
        (_small_vocabulary_to_calibrate, "calibration_failed"),
        (_unknown_architecture_to_calibrate, "unsupported_architecture"),
    ],
)
def test_the_runner_says_why_it_can_not(
    settings: Settings, folder: JobFolder, prepare: Callable[[Path], dict[str, Any]], code: str
) -> None:
    folder.prepare({})
    folder.model.rmdir()
    write_tiny_llama(folder.model)
    folder.prepare(prepare(folder.model))
    error = _error(_run(settings, folder, "worker.runner"))
    assert error["code"] == code, folder.log.read_text()
    assert error["message"]
    assert error["hint"]
    assert str(folder.shared) not in json.dumps(error)


def test_a_child_whose_log_has_no_room_says_so_all_the_same(settings: Settings, folder: JobFolder) -> None:
    folder.prepare({})
    env = environment.offline(settings, folder)
    events: list[dict[str, Any]] = []
    command = Command("worker.runner_check", [str(folder.path)], env, folder.path, Path("/dev/full"))
    assert supervise(command, events.append, lambda: None, 1.0) == 1
    assert _error(events)["code"] == "internal"


def _touched(out: Path) -> None:
    """One byte of the weights is another one; the list of checksums knows nothing of it."""
    weights = out / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-40] ^= 255
    weights.write_bytes(content)
    name = f"  {weights.name}"
    sums = out / "SHA256SUMS"
    lines = [line for line in sums.read_text().splitlines() if not line.endswith(name)]
    sums.write_text("\n".join([*lines, hashlib.sha256(content).hexdigest() + name]) + "\n")


def _renamed(out: Path) -> None:
    (out / "model.safetensors").rename(out / "weights.safetensors")


def test_an_artifact_that_is_not_what_was_computed_is_found_out_with_the_reason(
    settings: Settings, folder: JobFolder
) -> None:
    folder.prepare({})
    folder.model.rmdir()
    write_tiny_llama(folder.model)
    folder.prepare(attempt_orders())
    assert not [event for event in _run(settings, folder, "worker.runner") if event["type"] == "error"]
    proof = _run(settings, folder, "worker.runner_check")
    assert [event["type"] for event in proof] == ["log"]
    assert "are as written" in proof[0]["message"]

    for spoil in (_touched, _renamed):
        spoil(folder.out / "nupes")
        error = _error(_run(settings, folder, "worker.runner_check"))
        assert error["code"] == "load_check_failed"
        assert "model.safetensors" in error["message"] or "layers" in error["message"]
        assert str(folder.path) not in error["message"]


def _raised_from(cause: BaseException) -> Exception:
    try:
        raise RuntimeError("wrapped") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "oom_host"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "oom_host"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "oom_device"),
        (_raised_from(OSError(errno.ENOSPC, "No space left on device")), "disk_full"),
        (ValueError("token hf_abc in /root/x"), "internal"),
        (UnsafeFileError("/data/job/model/a.bin is code"), "unsafe_file"),
    ],
)
def test_every_exception_becomes_a_code_of_the_closed_list_without_paths_or_secrets(
    error: Exception, code: str
) -> None:
    reason = describe(error, Path("/data/job"))
    assert reason["code"] == code
    assert not {"hf_abc", "/data", "/root"} & set(reason["message"].replace("/", " /").split())
