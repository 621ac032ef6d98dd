"""Reports, logs and comparisons of jobs."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from app.db.tables import Job
from app.jobs import outcomes
from app.jobs.transitions import record
from app.reports.rendering import KINDS
from app.settings import Settings
from nupes_client.schemas.jobs import FormatResult, JobError, JobPhase
from nupes_client.schemas.problems import JobErrorCode
from nupes_client.schemas.reports import JobComparison, JobReport
from tests.app.api import Api, open_api
from tests.app.jobrows import claim, make_file, make_layer, make_metrics, make_result

HOSTILE = "</title><script>alert(1)</script> ]]> & \"q\" 'p' | `x` [a](http://evil) {{ 7*7 }} \x1b[2J\n# @all ![i](x)"
GATES = {"max_bytes": 299, "min_coverage_pct": 90}
SPEC = {"evaluation": None, "gates": GATES}


@pytest.fixture
def api(make_settings: Callable[..., Settings], sqlite_url: str) -> Iterator[Api]:
    with open_api(make_settings(database_url=sqlite_url)) as api:
        yield api


def succeed(api: Api, job_id: str, name: str = "a.weight", **result: Any) -> str:
    fence = claim(api.database, job_id)
    with api.database.write() as session:
        layers = [make_layer(name), make_layer("b", bits=None, skipped_reason="excluded", sqnr_db=None)]
        job = session.get_one(Job, job_id)
        outcomes.succeed(session, job, fence, make_result(**result), layers, [make_file(f"{name}.bin"[:255])])
    return job_id


def fail(api: Api, job_id: str, message: str = "too big") -> str:
    fence = claim(api.database, job_id)
    with api.database.write() as session:
        error = JobError(code=JobErrorCode.OOM_HOST, message=message, hint="more memory")
        outcomes.fail(session, session.get_one(Job, job_id), fence, error)
    return job_id


def report(api: Api, job_id: str, wanted: str) -> Any:
    response = api.get(f"/v1/jobs/{job_id}/report", params={"format": wanted})
    assert response.status_code == 200, response.text
    return response


# Reports


def test_the_report_as_json_has_all_there_is(api: Api) -> None:
    job_id = succeed(api, api.add_job(spec=SPEC), metrics=make_metrics(10.0, 10.5, kl=0.02))
    found = JobReport.model_validate_json(report(api, job_id, "json").content)
    assert (found.job.id, found.job.verdict) == (job_id, "failed")
    assert [layer.name for layer in found.layers] == ["a.weight", "b"]
    assert [file.path for file in found.artifacts] == ["a.weight.bin"]
    assert found.seconds is not None


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("application/xml", "application/xml"),
        ("text/markdown", "text/markdown"),
        ("text/*;q=0.5, application/json;q=0.1", "text/markdown"),
        ("image/png", "application/json"),
        ("application/json;q=x, text/html;q=0.2", "text/html"),
    ],
)
def test_accept_decides_the_format_where_the_query_does_not(api: Api, accept: str, media_type: str) -> None:
    job_id = succeed(api, api.add_job())
    response = api.get(f"/v1/jobs/{job_id}/report", {"Accept": accept})
    assert response.headers["Content-Type"].split(";")[0] == media_type
    assert "Accept" in response.headers["Vary"]
    assert report(api, job_id, "junit").headers["Content-Type"].startswith("application/xml")


def test_junit_has_a_test_case_for_each_gate(api: Api) -> None:
    suite = ET.fromstring(report(api, succeed(api, api.add_job(spec=SPEC, name="nightly")), "junit").text)
    cases = {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}
    assert cases == {"max_bytes (nupes)": ["failure", "system-out"], "min_coverage_pct (nupes)": ["system-out"]}
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    failure = suite.find(".//failure")
    assert failure is not None
    assert failure.get("message") == "measured 300, limit 299"
    assert suite[0].get("name") == "nightly"


def test_junit_of_a_job_that_failed_has_errors_and_of_one_without_gates_the_job(api: Api) -> None:
    failed = ET.fromstring(report(api, fail(api, api.add_job(spec=SPEC)), "junit").text)
    assert [case.get("name") for case in failed.iter("testcase")] == [
        "job",
        "max_bytes (nupes)",
        "min_coverage_pct (nupes)",
    ]
    assert (failed.get("failures"), failed.get("errors")) == ("0", "3")
    error = failed.find(".//error")
    assert error is not None
    assert error.get("message") == "oom_host: too big"
    plain = ET.fromstring(report(api, succeed(api, api.add_job()), "junit").text)
    assert [case.get("name") for case in plain.iter("testcase")] == ["job"]
    assert plain.find(".//error") is None


class Tags(HTMLParser):
    """What a browser would make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in {"href", "src"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile(api: Api) -> str:
    return succeed(api, api.add_job(name=HOSTILE, labels={"x": HOSTILE}, spec=SPEC), HOSTILE)


def test_html_shows_hostile_names_and_runs_nothing(api: Api) -> None:
    for job_id in (hostile(api), fail(api, api.add_job(name=HOSTILE), HOSTILE)):
        response = report(api, job_id, "html")
        page = Tags()
        page.feed(response.text)
        assert not page.seen & {"script", "img", "a", "iframe"}
        assert "<script>alert(1)</script>" in page.text
        assert "{{ 7*7 }}" in page.text
        assert "\x1b" not in response.text
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]


def test_xml_stays_well_formed_whatever_the_names_hold(api: Api) -> None:
    for job_id in (hostile(api), fail(api, api.add_job(name=HOSTILE), HOSTILE)):
        suite = ET.fromstring(report(api, job_id, "junit").text)[0]
        assert "<script>alert(1)</script>" in str(suite.get("name"))


def test_markdown_keeps_hostile_names_inside_their_cell(api: Api) -> None:
    text = report(api, hostile(api), "markdown").text
    assert "<script" not in text
    assert "http://evil)" in text
    assert not re.search(r"(?<!\\)\[a\](?!\\)", text)
    assert not re.search(r"(?<!\\)!\[", text)
    assert "@all" not in text
    rows = [line for line in text.splitlines() if "alert" in line and line.startswith("|")]
    assert rows
    for line in rows:
        assert len(re.findall(r"(?<!\\)\|", line)) in {4, 6}


def test_markdown_has_the_figures(api: Api) -> None:
    job_id = succeed(api, api.add_job(spec=SPEC), metrics=make_metrics(10.0, 10.5))
    text = report(api, job_id, "markdown").text
    assert "| bytes | 1,000 | 300 |" in text
    assert "| perplexity | 10 | 10.5 |" in text
    assert "| max\\_bytes | 300 | 299 | FAILED |" in text


def test_each_format_of_a_job_has_its_own_size_and_quality(api: Api) -> None:
    sizes = {"nupes": (300, 0.01), "gguf": (1400, 0.25)}
    formats = [
        FormatResult(
            format=name,
            bytes_after=size,
            bits_per_weight=4.25,
            coverage_pct=97,
            metrics=make_metrics(10.0, 10.5, kl=kl),
        )
        for name, (size, kl) in sizes.items()
    ]
    job_id = succeed(api, api.add_job(spec=SPEC), formats=formats)
    text = report(api, job_id, "markdown").text
    head = "| format | bytes | bits per quantized weight | parameters quantized | perplexity | KL per token, nats |\n"
    rows = "| nupes | 300 | 4.25 | 97.00% | 10.5 | 0.01 |\n| gguf | 1,400 | 4.25 | 97.00% | 10.5 | 0.25 |\n"
    assert f"\n\n{head}|---|---:|---:|---:|---:|---:|\n{rows}\n" in text
    assert '<tr><td>gguf</td><td class="n">1,400</td>' in report(api, job_id, "html").text
    properties = {
        each.get("name"): each.get("value") for each in ET.fromstring(report(api, job_id, "junit").text).iter()
    }
    said = [properties[name] for name in ("baseline.perplexity", "nupes.kl", "gguf.perplexity", "gguf.bytes_after")]
    assert said == ["10.0", "0.01", "10.5", "1400"], "plain numbers, before and after"
    assert [each["bytes_after"] for each in report(api, job_id, "json").json()["job"]["result"]["formats"]] == [
        300,
        1400,
    ]


def test_a_single_format_needs_no_table(api: Api) -> None:
    only = FormatResult(format="nupes", bytes_after=300, bits_per_weight=4.25, coverage_pct=97)
    job_id = succeed(api, api.add_job(spec=SPEC), formats=[only])
    assert "| format |" not in report(api, job_id, "markdown").text
    assert "Formats" not in report(api, job_id, "html").text


@pytest.mark.parametrize("wanted", KINDS)
def test_every_format_serves_every_way_a_job_ends(api: Api, wanted: str) -> None:
    cancelled = api.add_job()
    api.post(f"/v1/jobs/{cancelled}/cancel")
    for job_id in (cancelled, fail(api, api.add_job()), succeed(api, api.add_job())):
        assert report(api, job_id, wanted).text


def test_a_job_that_has_not_ended_has_no_report(api: Api) -> None:
    response = api.get(f"/v1/jobs/{api.add_job()}/report")
    assert (response.status_code, response.json()["code"]) == (409, "job_not_terminal")


# Logs


def write_log(api: Api, job_id: str, *messages: str) -> None:
    fence = claim(api.database, job_id)
    with api.database.write() as session:
        job = session.get_one(Job, job_id)
        outcomes.enter_phase(session, job, fence, JobPhase.FETCHING)
        record(session, job, "progress", {"fraction": 0.5}, fence=fence)
        for message in messages:
            record(session, job, "log", {"level": "warning", "message": message}, fence=fence)


def test_a_log_has_a_line_for_each_event_but_progress(api: Api) -> None:
    job_id = api.add_job()
    write_log(api, job_id, "first", "second")
    response = api.get(f"/v1/jobs/{job_id}/logs")
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    lines = [line.split(" ", 1)[1] for line in response.text.splitlines()]
    assert lines == [
        "INFO    status queued",
        "INFO    status running attempt=1 worker=worker-1",
        "INFO    phase fetching",
        "WARNING first",
        "WARNING second",
    ]
    assert api.get(f"/v1/jobs/{job_id}/logs?tail=2").text.splitlines() == response.text.splitlines()[-2:]
    assert api.get(f"/v1/jobs/{job_id}/logs?tail=99").text == response.text
    records = [json.loads(line) for line in api.get(f"/v1/jobs/{job_id}/logs?format=jsonl").text.splitlines()]
    assert [each["type"] for each in records] == ["status", "status", "phase", "log", "log"]


def test_a_log_is_read_on_from_where_one_was(api: Api) -> None:
    path = f"/v1/jobs/{api.add_job(name='x')}"
    before = api.get(f"{path}/logs")
    assert api.get(f"{path}/logs", {"If-None-Match": before.headers["ETag"]}).status_code == 304
    behind = api.get(f"{path}/logs", {"Range": f"bytes={len(before.content)}-"})
    assert (behind.status_code, behind.headers["Content-Range"]) == (416, f"bytes */{len(before.content)}")
    api.post(f"{path}/cancel")
    more = api.get(f"{path}/logs", {"Range": f"bytes={len(before.content)}-"})
    assert more.status_code == 206
    assert before.content + more.content == api.get(f"{path}/logs").content
    assert api.get(f"{path}/logs", {"Range": "bytes=-5"}).content == api.get(f"{path}/logs").content[-5:]


def test_a_message_is_one_line_and_moves_no_cursor(api: Api) -> None:
    job_id = api.add_job()
    write_log(api, job_id, "a\nINFO    status succeeded\x1b[2J\u2028b")
    last = api.get(f"/v1/jobs/{job_id}/logs").text.split("\n")[-2]
    assert last.endswith("a\\nINFO    status succeeded\\x1b[2J\\u2028b")


def test_the_reason_of_a_failure_ends_the_log(api: Api) -> None:
    job_id = fail(api, api.add_job())
    assert api.get(f"/v1/jobs/{job_id}/logs?tail=1").text.endswith("INFO    status failed: oom_host: too big\n")


# Comparisons


def compare(api: Api, *job_ids: str) -> JobComparison:
    response = api.get("/v1/jobs/compare", params={"ids": job_ids})
    assert response.status_code == 200, response.text
    return JobComparison.model_validate_json(response.content)


def test_jobs_side_by_side_show_what_differs_and_each_layer(api: Api) -> None:
    model_id = api.add_model()
    three = {"evaluation": None, "weights": {"bits": 3}, "gates": {"max_bytes": 400}}
    one = succeed(api, api.add_job(model_id), "a")
    two = succeed(api, api.add_job(model_id, spec=three), "c", bytes_after=250)
    found = compare(api, two, one)
    assert [job.id for job in found.jobs] == [two, one]
    assert [job.result.bytes_after for job in found.jobs if job.result] == [250, 300]
    differences = {each.pointer: each.values for each in found.config}
    assert differences["/weights/bits"] == [3, 4]
    assert differences["/gates"][1] is None
    assert set(differences) == {"/weights/bits", "/gates"}
    layers = {each.name: [layer is not None for layer in each.layers] for each in found.layers}
    assert layers == {"c": [True, False], "b": [True, True], "a": [False, True]}


def test_ids_may_be_given_with_commas(api: Api) -> None:
    ids = [api.add_job(), api.add_job()]
    assert [job["id"] for job in api.get(f"/v1/jobs/compare?ids={','.join(ids)}").json()["jobs"]] == ids


def test_two_to_eight_different_jobs_of_the_tenant_are_compared_and_no_others(api: Api) -> None:
    model_id = api.add_model()
    ids = [api.add_job(model_id) for _ in range(9)]
    assert len(compare(api, *ids[:8]).jobs) == 8
    for wrong in ([], ids[:1], [ids[0], ids[0]], ids):
        assert api.get("/v1/jobs/compare", params={"ids": wrong}).status_code == 422
    foreign = api.another_tenant().add_job()
    assert api.get("/v1/jobs/compare", params={"ids": [ids[0], foreign]}).status_code == 404
