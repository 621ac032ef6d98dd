"""A job that writes formats with codes of their own: each artifact is measured, checked and published for itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from app.db.tables import Artifact
from app.settings import Settings
from app.storage import open_store
from nupes_client.schemas.jobs import JobResult, JobStatus
from tests.core.tiny import save
from tests.worker.factory import add_text, wait_for_end, worker_log, worker_process, write_tiny_llama
from tests.worker.test_worker import Bench


@pytest.fixture
def bench(make_settings: Callable[..., Settings], sqlite_url: str, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(make_settings(database_url=sqlite_url), write_tiny_llama(tmp_path / "model"))
    yield bench
    bench.database.dispose()


def test_every_format_of_a_job_has_figures_of_its_own(bench: Bench) -> None:
    formats = ["nupes", "compressed-tensors", "dense", "gguf"]
    text = add_text(bench.database, bench.settings, bench.tenant_id)
    evaluation = {"metrics": ["fidelity", "perplexity"], "text": {"upload_id": text}, "context": 64}
    with worker_process(bench.settings):
        weights = {"bits": 4, "group_size": 32}
        job_id = bench.submit(spec={"evaluation": evaluation, "formats": formats, "weights": weights})
        job = wait_for_end(bench.database, job_id)
        assert job.status == JobStatus.SUCCEEDED, (job.error, worker_log(bench.settings))
    result = JobResult.model_validate(job.result)
    assert [each.format for each in result.formats] == formats
    native, packed, dense, container = result.formats
    assert (native.bytes_after, native.metrics) == (result.bytes_after, result.metrics)
    assert dense.metrics == native.metrics
    assert native.bits_per_weight < packed.bits_per_weight < dense.bits_per_weight
    assert container.bits_per_weight == 4.5
    kl = [each.metrics.quantized.kl for each in (native, container, packed) if each.metrics]
    losses = [each for each in kl if each is not None]
    assert len(losses) == 3
    assert 0 < max(losses[:2]) < losses[2], "the power grid and the code book of IQ4_NL lose less than the uniform grid"
    for each in result.formats:
        manifest = json.loads(_read(bench, job_id, each.format, "manifest.json"))
        assert each.metrics is not None
        assert manifest["metrics"]["quantized"]["kl"] == each.metrics.quantized.kl
    said = [event.data["message"] for event in bench.events(job_id) if event.type == "log"]
    assert all(any(f"{name}: " in line and "one forward pass" in line for line in said) for name in formats)
    fractions = [event.data["fraction"] for event in bench.events(job_id) if event.type == "progress"]
    assert fractions == sorted(fractions)


def test_dense_weights_of_a_job_that_codes_inputs_have_the_figures_of_float_inputs(bench: Bench) -> None:
    wish = {"formats": ["nupes", "dense"], "weights": {"bits": 8, "group_size": 32}, "activations": {"bits": 4}}
    with worker_process(bench.settings):
        job = wait_for_end(bench.database, bench.submit(spec={**wish, "evaluation": {"metrics": ["fidelity"]}}))
        assert job.status == JobStatus.SUCCEEDED, (job.error, worker_log(bench.settings))
    native, dense = JobResult.model_validate(job.result).formats
    assert native.metrics is not None
    assert dense.metrics is not None
    assert native.metrics.quantized.kl is not None
    assert dense.metrics.quantized.kl is not None
    assert native.metrics.quantized.kl > 2 * dense.metrics.quantized.kl, "inputs of 4 bits cost more than the weights"


def test_a_convolution_net_becomes_a_graph_that_is_compared_with_torch_although_nothing_is_measured(
    make_settings: Callable[..., Settings], sqlite_url: str, tmp_path: Path
) -> None:
    bench = Bench(make_settings(database_url=sqlite_url), save("resnet", tmp_path / "model"))
    with worker_process(bench.settings):
        job_id = bench.submit(spec={"evaluation": None, "formats": ["onnx", "dense"], "weights": {"bits": 4}})
        job = wait_for_end(bench.database, job_id)
        assert job.status == JobStatus.SUCCEEDED, (job.error, worker_log(bench.settings))
    graph, dense = JobResult.model_validate(job.result).formats
    assert graph.bits_per_weight < dense.bits_per_weight
    assert len(_read(bench, job_id, "onnx", "model.onnx")) == graph.bytes_after
    said = [event.data["message"] for event in bench.events(job_id) if event.type == "log"]
    assert any(line.startswith("onnx: ") and "8 matrices and one forward pass" in line for line in said), said
    bench.database.dispose()


def _read(bench: Bench, job_id: str, format_name: str, path: str) -> bytes:
    with bench.database.read() as session:
        statement = select(Artifact.sha256).filter_by(job_id=job_id, format=format_name, path=path)
        sha256 = session.scalars(statement).one()
    return b"".join(open_store(bench.settings).open(sha256))
