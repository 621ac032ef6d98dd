"""The main job as a user does it, on both lanes: a real model in over HTTP, a checked artifact out."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import Settings
from nupes_client.client import Client
from nupes_client.schemas.jobs import JobStatus
from nupes_client.schemas.specs import EvaluationSpec, GatesSpec, JobCreate, ModelRef, TextRef, WeightSpec
from tests.stack import running_stack

TEXT = Path(__file__).resolve().parents[2] / "examples" / "text" / "lamplighter.txt"
LOADS = """
import sys, json, torch, nupes_core
from transformers import AutoTokenizer
model = nupes_core.load(sys.argv[1]); tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
tokens = tokenizer("The old man", return_tensors="pt").input_ids
with torch.no_grad(): logits = model(tokens).logits
print(json.dumps({"finite": bool(torch.isfinite(logits).all()), "shape": list(logits.shape)}))
"""


@pytest.fixture
def client(stack_settings: Settings) -> Iterator[Client]:
    with running_stack(stack_settings) as stack, stack.client() as client:
        yield client


@pytest.mark.timeout(300)
def test_a_model_goes_in_and_a_checked_artifact_with_its_quality_comes_out(
    client: Client, booklm: Path, tmp_path: Path
) -> None:
    model = client.models.from_folder(booklm)
    text = client.uploads.send(TEXT)
    wish = JobCreate(
        model=ModelRef(id=model.id),
        weights=WeightSpec(bits=4, group_size=64),
        evaluation=EvaluationSpec(metrics=["fidelity", "perplexity"], text=TextRef(upload_id=text.id), max_tokens=1024),
        gates=GatesSpec(max_perplexity_increase_pct=5.0, min_coverage_pct=70),
        formats=["nupes", "dense"],
    )
    plan = client.plans.create(wish)
    job = client.jobs.wait(client.jobs.create(wish).id, timeout_s=240)

    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.result is not None
    assert job.result.metrics is not None
    assert job.verdict == "passed"
    assert 4.0 < job.result.bits_per_weight < 4.25
    assert job.result.metrics.quantized.kl is not None
    assert 0 < job.result.metrics.quantized.kl < 0.03
    assert job.result.bytes_after == plan.artifact_bytes

    out = tmp_path / "out"
    client.artifacts.download_all(job.id, out)
    assert_checksums_hold(out / "nupes")
    assert (out / "nupes" / "model.safetensors").stat().st_size == plan.artifact_bytes
    for folder in ("nupes", "dense"):
        loaded = subprocess.run(
            [sys.executable, "-c", LOADS, str(out / folder)], capture_output=True, text=True, check=True, timeout=120
        )
        assert json.loads(loaded.stdout.splitlines()[-1])["finite"] is True

    events = list(client.jobs.events(job.id))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    layers = list(client.jobs.layers(job.id))
    coded = [layer for layer in layers if layer.bits]
    assert sum(layer.params for layer in coded) == job.result.quantized_params
    assert all(layer.sqnr_db is not None and layer.sqnr_db > 18 for layer in coded)


def assert_checksums_hold(folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert lines
    for line in lines:
        digest, name = line.split(maxsplit=1)
        assert hashlib.sha256((folder / name.lstrip("*")).read_bytes()).hexdigest() == digest
