"""Plans: what a job would do and cost, from stored headers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.core.clock import now
from app.db.tables import Job, Worker
from app.models.headers import to_json
from app.plans.architectures import EVALUABLE_MODEL_TYPES
from app.settings import Settings
from nupes_core.config import QuantizationConfig, WeightConfig
from nupes_core.modelfolder import open_folder
from nupes_core.plan import plan_folder
from tests.app.api import Api, open_api

GIB = 1 << 30


@pytest.fixture
def api(make_settings: Callable[..., Settings], sqlite_url: str) -> Iterator[Api]:
    with open_api(make_settings(database_url=sqlite_url)) as api:
        yield api


def add_worker(api: Api, memory_bytes: int | None, device_class: str = "cpu", age_s: float = 0) -> None:
    seen = now() - timedelta(seconds=age_s)
    name = f"worker-{device_class}-{memory_bytes}"
    worker = Worker(id=name, device_class=device_class, hostname="h", memory_bytes=memory_bytes, heartbeat_at=seen)
    with api.database.write() as session:
        session.add(worker)


def plan(api: Api, body: dict[str, Any]) -> Any:
    return api.post("/v1/plans", json=body)


def test_a_plan_says_what_the_core_says_and_makes_nothing(api: Api, booklm: Path) -> None:
    folder = open_folder(booklm)
    model_id = api.add_model(config=dict(folder.config), headers=to_json(folder.headers))
    predicted = plan(api, api.body(model_id, weights={"bits": 3, "group_size": 32})).json()
    expected = plan_folder(booklm, QuantizationConfig(weights=WeightConfig(bits=3, group_size=32)))
    for name in ("params", "coverage_pct", "bytes_before", "artifact_bytes", "bits_per_weight", "peak_memory_bytes"):
        assert predicted[name] == getattr(expected, name), name
    assert predicted["bytes_before"] == (booklm / "model.safetensors").stat().st_size
    assert predicted["eligible_params"] == expected.quantized_params
    assert len(predicted["layers"]) == len(expected.tensors)
    assert predicted["config"]["weights"]["group_size"] == 32
    with api.database.read() as session:
        assert session.scalars(select(Job)).all() == []


def test_layers_left_alone_have_a_reason_and_the_others_settings(api: Api) -> None:
    overrides = [{"match": "up_proj", "bits": 8}]
    layers = plan(api, api.body(layers={"exclude": ["lm_head"], "overrides": overrides})).json()["layers"]
    by_name = {layer["name"].removeprefix("model."): layer for layer in layers}
    assert by_name["layers.0.mlp.up_proj"]["bits"] == 8
    assert by_name["layers.0.self_attn.q_proj"]["bits"] == 4
    for name in ("embed_tokens", "lm_head", "layers.0.input_layernorm"):
        assert by_name[name]["skipped_reason"]
        assert by_name[name]["bytes_after"] == by_name[name]["bytes_before"]


def test_disk_counts_every_format_and_the_artifact_only_the_native_one(api: Api) -> None:
    model_id = api.add_model()
    one = plan(api, api.body(model_id)).json()
    both = plan(api, api.body(model_id, formats=["nupes", "dense"])).json()
    assert both["artifact_bytes"] == one["artifact_bytes"]
    assert both["disk_bytes"] > one["disk_bytes"]


def test_a_format_with_a_file_of_its_own_says_what_that_has_besides(api: Api, booklm: Path) -> None:
    folder = open_folder(booklm)
    model_id = api.add_model(config=dict(folder.config), headers=to_json(folder.headers))
    predicted = plan(api, api.body(model_id, formats=["gguf", "nupes"])).json()
    assert [each["adds"] for each in predicted["formats"]] == ["vocabulary", None]


def test_worker_classes_are_those_of_live_workers_with_the_memory(api: Api) -> None:
    body = api.body()
    assert plan(api, body).json()["worker_classes"] == []
    add_worker(api, 8 * GIB, "gpu")
    add_worker(api, 1 << 20, "cpu")
    assert plan(api, body).json()["worker_classes"] == ["gpu"]
    assert api.post("/v1/jobs", json=body).json()["status"] == "queued"
    with api.database.read() as session:
        assert session.scalars(select(Job.device_class)).one() == "gpu"
    add_worker(api, 9 * GIB, "cpu")
    assert plan(api, body).json()["worker_classes"] == ["cpu", "gpu"]


def test_a_job_that_learns_goes_to_gpu_workers_where_there_are_any_and_a_choice_is_kept(api: Api) -> None:
    learns = {"optimize": {"mode": "data_driven"}}
    model_id = api.add_model()

    def queue_of(**wish: Any) -> str:
        job = api.post("/v1/jobs", json=api.body(model_id, **wish)).json()
        assert plan(api, api.body(model_id, **wish)).json()["device_class"] == job["device_class"]
        return str(job["device_class"])

    add_worker(api, 99 * GIB, "cpu")
    assert queue_of(**learns) == "cpu"
    add_worker(api, 99 * GIB, "gpu")
    assert queue_of(**learns) == "gpu"
    assert queue_of() == "cpu"
    assert queue_of(**learns, device="cpu") == "cpu"
    assert queue_of(device="gpu") == "gpu"


def test_the_planned_peak_is_kept_with_the_job(api: Api) -> None:
    body = api.body()
    assert api.post("/v1/jobs", json=body).json()["memory_bytes"] == plan(api, body).json()["peak_memory_bytes"]


def test_an_evaluation_counts_in_the_peak_and_who_has_no_room_for_it_is_told_that_it_can_be_left_out(
    api: Api, booklm: Path
) -> None:
    folder = open_folder(booklm)
    model_id = api.add_model(config=dict(folder.config), headers=to_json(folder.headers))
    measured = api.body(model_id, evaluation={"context": 64})
    needed = plan(api, measured).json()["peak_memory_bytes"]
    assert needed == plan_folder(booklm, QuantizationConfig(), evaluation_context=64).peak_memory_bytes
    add_worker(api, needed - 1)
    assert '"evaluation": null' in plan(api, measured).json()["hint"]
    assert plan(api, api.body(model_id, evaluation=None)).status_code == 200


def test_a_job_that_fits_no_worker_is_refused_with_the_figures(api: Api) -> None:
    body = api.body()
    needed = plan(api, body).json()["peak_memory_bytes"]
    add_worker(api, needed - 1)
    add_worker(api, 99 * GIB, "gpu", age_s=3600)
    for path in ("/v1/plans", "/v1/jobs"):
        response = api.post(path, json=body)
        assert (response.status_code, response.json()["code"]) == (422, "does_not_fit")
        assert str(needed) in response.json()["detail"]
        assert str(needed - 1) in response.json()["detail"]


def test_a_worker_that_does_not_say_its_memory_is_given_a_chance(api: Api) -> None:
    add_worker(api, None)
    assert plan(api, api.body()).json()["worker_classes"] == ["cpu"]


def test_a_plan_for_a_model_that_is_not_there_is_404(api: Api) -> None:
    assert plan(api, api.body("mdl_none")).status_code == 404


def test_listed_architectures_are_those_that_transformers_can_build() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert {"llama", "gpt2", "qwen2", "mistral", "gemma2"} <= EVALUABLE_MODEL_TYPES
    installed = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    known = len(EVALUABLE_MODEL_TYPES & installed) / len(EVALUABLE_MODEL_TYPES | installed)
    assert known > 0.8, "bring app/plans/architectures.py up to the installed transformers"


def test_a_plan_that_was_made_before_is_made_again_for_who_may_have_it_alone(api: Api) -> None:
    body = api.body()
    first = api.post("/v1/plans", json=body).json()
    assert api.post("/v1/plans", json=body).json() == first
    other = api.post("/v1/plans", json={**body, "weights": {"bits": 2}}).json()
    assert other["artifact_bytes"] < first["artifact_bytes"]
    assert api.another_tenant().post("/v1/plans", json=body).status_code == 404
    assert api("DELETE", f"/v1/models/{body['model']['id']}").status_code == 204
    assert api.post("/v1/plans", json=body).status_code == 404
