"""The child that pushes, and the real client of hubs, against a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import nupes_core
from app.settings import Settings
from app.storage import open_store
from nupes_core.config import QuantizationConfig, WeightConfig
from nupes_core.manifest import finalize
from tests.hubserver import Fault, Hub, hub_server
from tests.worker.factory import REPOSITORY, write_tiny_llama
from worker import commands
from worker.supervisor import supervise
from worker.workfolder import JobFolder, job_folder

TOKEN = "hf_teams_own_token"
REPO = "team/tiny-nupes"
FORMATS = ("nupes", "gguf")
ORIGIN = {"type": "hub", "repo_id": "somebody/tiny", "license": "apache-2.0"}
METRICS = {
    "protocol": "nupes-eval-1",
    "context": 64,
    "text_origin": "sampled",
    "baseline": {"perplexity": 12.5, "kl": 0.0},
    "quantized": {"perplexity": 13.25, "kl": 0.015625},
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in two formats, measured."""
    folder = tmp_path_factory.mktemp("quantized")
    source = write_tiny_llama(folder / "source", layers=1)
    config = QuantizationConfig(weights=WeightConfig(bits=4, group_size=32))
    nupes_core.quantize(source, folder / "out", config, formats=FORMATS, source=ORIGIN)
    for name in FORMATS:
        finalize(folder / "out" / name, metrics=METRICS)
    return folder / "out"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as hub:
        hub.accounts = {TOKEN: {"team"}}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
        for fault in hub.faults:
            fault.release.set()


@dataclass
class Pusher:
    """Runs the child on an artifact that lies in the store."""

    settings: Settings
    artifact: Path
    runs: int = 0

    def folder(self) -> JobFolder:
        self.runs += 1
        return job_folder(self.settings.work_dir, "job_1", self.runs)

    def orders(self, formats: tuple[str, ...] = ("nupes",), **wish: Any) -> dict[str, Any]:
        store, files = open_store(self.settings), []
        for name in formats:
            for path in sorted((self.artifact / name).iterdir()):
                blob = store.put_file(path)
                files.append({"format": name, "path": path.name, "size": blob.size, "sha256": blob.sha256})
        where = {"repo": REPO, "revision": "main", "private": True, **wish}
        return {"job_id": "job_1", "formats": list(formats), "files": files, **where}

    def __call__(self, token: str = TOKEN, **wish: Any) -> list[dict[str, Any]]:
        folder, events = self.folder(), list[dict[str, Any]]()
        folder.prepare(self.orders(**wish))
        command = commands.pushing(self.settings, folder)
        supervise(command, events.append, lambda: None, 1.0, tell=token)
        return events

    def pushed(self, **wish: Any) -> dict[str, Any]:
        *_, last = events = self(**wish)
        assert last["type"] == "pushed", events
        return last

    def error(self, **wish: Any) -> dict[str, Any]:
        *_, last = events = self(**wish)
        assert last["type"] == "error", events
        return last


@pytest.fixture
def push(make_settings: Callable[..., Settings], artifact: Path) -> Pusher:
    return Pusher(make_settings(), artifact)


def sums_hold(files: dict[str, bytes]) -> bool:
    lines = files["SHA256SUMS"].decode().splitlines()
    listed = {path: digest for digest, path in (line.split("  ", 1) for line in lines)}
    unlisted = files.keys() - listed.keys() - {".gitattributes", "SHA256SUMS"}
    return not unlisted and all(hashlib.sha256(files[path]).hexdigest() == listed[path] for path in listed)


def run_python(code: str, hub: Hub, folder: Path, token: str) -> str:
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "cache"), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    env |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_private_repository_is_made_and_its_card_loads_what_is_in_it(
    push: Pusher, hub: Hub, artifact: Path, tmp_path: Path
) -> None:
    hub.part_bytes = 100_000  # the weights go up in parts
    told = push.pushed(formats=FORMATS)
    repository = hub.repositories[REPO]
    (commit,) = repository.commits
    assert repository.private
    assert told | {"url": f"{hub.url}/{REPO}", "commit": commit.sha, "formats": ["nupes", "gguf"]} == told
    assert told["commit_url"].endswith(commit.sha)
    assert commit.summary == "Quantized with NUPES: nupes, gguf (job_1)"
    for name, prefix in (("nupes", ""), ("gguf", "gguf/")):
        for path in (artifact / name).iterdir():
            if f"{prefix}{path.name}" not in {"README.md", "SHA256SUMS"}:
                assert commit.files[f"{prefix}{path.name}"] == path.read_bytes(), path
    assert told["files"] == len(commit.files.keys() - {".gitattributes"})
    assert sums_hold(commit.files)
    assert max(map(len, hub.parts.values())) > 1
    blocks = [block.partition("\n```")[0] for block in commit.files["README.md"].decode().split("```python\n")[1:]]
    assert len(blocks) == 2
    code = "\n".join(f"{block}\nprint(model.num_parameters() > 0)" for block in blocks)
    assert run_python(code, hub, tmp_path, TOKEN).split() == ["True", "True"]


def test_the_card_has_the_figures_of_each_format_and_what_hubs_look_for(push: Pusher, hub: Hub, artifact: Path) -> None:
    push.pushed(formats=FORMATS)
    card = hub.repositories[REPO].commits[0].files["README.md"].decode()
    fields = yaml.safe_load(card.split("---\n")[1])
    assert fields["base_model"] == "somebody/tiny"
    assert (fields["license"], fields["library_name"]) == ("apache-2.0", "nupes")
    assert fields["pipeline_tag"] == "text-generation"
    assert {"nupes", "gguf", "quantized", "4-bit"} <= set(fields["tags"])
    manifests = [json.loads((artifact / name / "manifest.json").read_text()) for name in FORMATS]
    assert fields["quantization"]["bits_per_weight"] == float(f"{manifests[0]['totals']['bits_per_weight']:.4g}")
    totals = [manifest["totals"] for manifest in manifests]
    before, *after = [f"{size:,}" for size in (totals[0]["bytes_before"], *(each["bytes_after"] for each in totals))]
    assert f"| Weight files, bytes | {before} | {after[0]} | {after[1]} |" in card
    assert "| Perplexity | 12.5 | 13.25 | 13.25 |" in card
    assert "| `weights.group_size` | 32 |" in card


def test_pushing_the_same_again_commits_nothing_and_something_else_replaces_what_was_pushed(
    push: Pusher, hub: Hub
) -> None:
    first = push.pushed(formats=FORMATS)
    assert push.pushed(formats=FORMATS)["commit"] == first["commit"]
    assert len(hub.repositories[REPO].commits) == 1
    sent = len(hub.requests)
    second = push.pushed()
    assert second["commit"] != first["commit"]
    _, last = hub.repositories[REPO].commits
    assert not [path for path in last.files if path.startswith("gguf/")]
    assert sums_hold(last.files)
    assert not [path for method, path, _ in hub.requests[sent:] if method == "PUT"]  # the hub has the weights


def test_files_that_no_push_put_there_are_left_alone(push: Pusher, hub: Hub) -> None:
    hub.add(REPO, {".gitattributes": b"", "pytorch_model.bin": b"theirs"}, private=True)
    error = push.error()
    assert (error["code"], error["retryable"]) == ("push_conflict", False)
    assert "pytorch_model.bin" in error["message"]
    assert hub.repositories[REPO].commits == []


def test_another_branch_is_made_with_what_main_holds_and_main_stays(push: Pusher, hub: Hub) -> None:
    push.pushed()
    told = push.pushed(revision="4-bit", formats=("gguf",))
    assert told["url"] == f"{hub.url}/{REPO}/tree/4-bit"
    first, second = hub.repositories[REPO].commits
    assert (first.branch, second.branch) == ("main", "4-bit")
    assert "model.gguf" in second.files
    assert hub.repositories[REPO].at("main") == (first.sha, first.files)


def test_a_private_result_does_not_go_where_everybody_reads(push: Pusher, hub: Hub) -> None:
    hub.add(REPO, {".gitattributes": b""})
    assert push.error()["code"] == "push_conflict"
    assert push.pushed(private=False)["repo"] == REPO


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [("hf_unknown", REPO, "401"), (TOKEN, "other/model", "403")],
    ids=["a token that the hub does not know", "a namespace that the token may not write"],
)
def test_what_the_hub_refuses_is_final_and_says_what_to_do(
    push: Pusher, hub: Hub, token: str, repo: str, said: str
) -> None:
    error = push.error(token=token, repo=repo)
    assert (error["code"], error["retryable"]) == ("push_denied", False), error
    assert "nupes secrets set" in error["hint"]
    assert "nupes retry" in error["hint"]
    assert token not in json.dumps(error)
    assert repo not in hub.repositories


@pytest.mark.parametrize(
    "where",
    ["GET /api/models", "POST .*/commit/", "POST /api/validate-yaml"],
    ids=["looking", "committing", "checking"],
)
def test_trouble_of_the_hub_passes(push: Pusher, hub: Hub, where: str) -> None:
    hub.faults = [Fault(where, status=500)]
    first = push()
    if first[-1]["type"] == "error":
        assert (first[-1]["code"], first[-1]["retryable"]) == ("push_failed", True)
        push.pushed()
    assert len(hub.repositories[REPO].commits) == 1


def test_a_branch_that_moves_on_meanwhile_is_looked_at_again(push: Pusher, hub: Hub) -> None:
    hub.faults = [Fault("POST .*/commit/", status=412)]
    push.pushed()
    assert len(hub.repositories[REPO].commits) == 1
    hub.faults = [Fault("POST .*/commit/", status=412, times=9)]
    error = push.error(formats=FORMATS)
    assert (error["code"], error["retryable"]) == ("push_failed", True)


def test_the_operators_token_is_not_for_pushing_and_the_users_is_in_no_listing(
    make_settings: Callable[..., Settings], artifact: Path, hub: Hub
) -> None:
    push = Pusher(make_settings(hub_token="hf_operators"), artifact)
    folder = push.folder()
    folder.prepare(push.orders())
    command = commands.pushing(push.settings, folder)
    listing = json.dumps([dict(command.env), list(command.args), folder.read_orders()])
    assert "hf_operators" not in listing
    assert TOKEN not in listing
    events: list[dict[str, Any]] = []
    supervise(command, events.append, lambda: None, 1.0, tell="hf_nobodys")
    assert events[-1]["code"] == "push_denied", events
    assert REPO not in hub.repositories
