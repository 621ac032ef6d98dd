"""Artifacts over HTTP: metadata, whole and partial downloads, conditions, links, the archive."""

from __future__ import annotations

import base64
import hashlib
import io
import secrets
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers

from app.core.ranges import RangeNotSatisfiableError, requested_range
from app.db.tables import Job
from app.jobs import outcomes
from app.jobs.outcomes import PublishedFile
from app.settings import Settings
from app.storage import BlobStore, open_store
from tests.app.api import Api, open_api
from tests.app.jobrows import claim, make_result

CONTENT = bytes(range(256)) * 5000
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def api(make_settings: Callable[..., Settings], sqlite_url: str) -> Iterator[Api]:
    with open_api(make_settings(database_url=sqlite_url)) as api:
        yield api


def publish(api: Api, files: dict[str, bytes], job_id: str | None = None, format_name: str = "nupes") -> str:
    """End a job with these files; return its id."""
    job_id = job_id or api.add_job()
    store: BlobStore = api.app.state.store
    blobs = {path: store.put_stream([content]) for path, content in files.items()}
    published = [
        PublishedFile(format_name, path, b.size, b.sha256, "application/octet-stream") for path, b in blobs.items()
    ]
    fence = claim(api.database, job_id)
    with api.database.write() as session:
        outcomes.succeed(session, session.get_one(Job, job_id), fence, make_result(), [], published)
    return job_id


def only(api: Api, job_id: str) -> Any:
    (artifact,) = api.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    return artifact


@pytest.fixture
def url(api: Api) -> str:
    """Where the content of one artifact is."""
    return str(only(api, publish(api, {"model.safetensors": CONTENT}))["content_url"])


def test_artifacts_are_listed_by_job_and_by_format(settings: Settings) -> None:
    with open_api(settings) as api:
        first = publish(api, {"config.json": b"{}", "model.safetensors": b"abc"})
        second = publish(api, {"model.safetensors": b"abc"}, format_name="dense")
        assert [a["path"] for a in api.get(f"/v1/jobs/{first}/artifacts").json()["data"]] == [
            "config.json",
            "model.safetensors",
        ]
        assert [a["job_id"] for a in api.get("/v1/artifacts").json()["data"]] == [second, first, first]
        assert [a["job_id"] for a in api.get("/v1/artifacts?format=dense").json()["data"]] == [second]
        assert len(api.get(f"/v1/artifacts?job_id={first}&limit=1").json()["data"]) == 1
        assert api.get(f"/v1/jobs/{first}/artifacts?limit=1").json()["has_more"] is True
        assert api.get(f"/v1/jobs/{first}/artifacts?format=dense").json()["data"] == []


def test_a_job_that_has_not_ended_has_no_artifacts(api: Api) -> None:
    job_id = api.add_job()
    assert api.get(f"/v1/jobs/{job_id}/artifacts").json()["data"] == []
    assert api.get(f"/v1/jobs/{job_id}/artifacts.tar").status_code == 409


def test_the_whole_content_comes_with_size_digest_and_name(api: Api, url: str) -> None:
    response = api.get(url)
    assert response.status_code == 200
    assert response.content == CONTENT
    digest = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    expected = {
        "Content-Length": str(len(CONTENT)),
        "ETag": f'"sha256-{SHA}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Content-Disposition": "attachment; filename=\"model.safetensors\"; filename*=UTF-8''model.safetensors",
        "Content-Type": "application/octet-stream",
        "X-Content-Type-Options": "nosniff",
    }
    assert {name: response.headers[name] for name in expected} == expected


def test_head_says_the_same_without_the_bytes(api: Api, url: str) -> None:
    head, get = api("HEAD", url, {"Range": "bytes=0-1"}), api.get(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Length", "ETag", "Repr-Digest", "Accept-Ranges", "Content-Disposition", "Content-Type"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize(
    ("requested", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=1279990-", 1279990, 1280000),
        ("bytes=-10", 1279990, 1280000),
        ("bytes=-9999999999", 0, 1280000),
        ("bytes=1048570-1048590", 1048570, 1048591),
        ("bytes=100-99999999999", 100, 1280000),
        ("BYTES=5-6", 5, 7),
    ],
)
def test_a_range_is_exactly_those_bytes(api: Api, url: str, requested: str, start: int, stop: int) -> None:
    response = api.get(url, {"Range": requested})
    assert response.status_code == 206
    assert response.content == CONTENT[start:stop]
    assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"
    assert response.headers["Content-Length"] == str(stop - start)
    assert response.headers["ETag"] == f'"sha256-{SHA}"'


@pytest.mark.parametrize("requested", ["bytes=1280000-", "bytes=1280000-1280001", "bytes=-0"])
def test_a_range_behind_the_end_is_416_and_says_the_size(api: Api, url: str, requested: str) -> None:
    response = api.get(url, {"Range": requested})
    assert (response.status_code, response.json()["code"]) == (416, "range_not_satisfiable")
    assert response.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize(
    "requested",
    ["bytes=5-4", "bytes=a-b", "bytes=-", "bytes=", "lines=1-2", "bytes=0-1,5-6", "bytes=" + "9" * 99 + "-"],
)
def test_a_range_that_a_server_may_pass_over_gives_the_whole(api: Api, url: str, requested: str) -> None:
    response = api.get(url, {"Range": requested})
    assert (response.status_code, len(response.content)) == (200, len(CONTENT))


def test_if_range_resumes_the_same_content_and_starts_over_for_another(api: Api, url: str) -> None:
    same = api.get(url, {"Range": "bytes=5-", "If-Range": f'"sha256-{SHA}"'})
    assert (same.status_code, same.content) == (206, CONTENT[5:])
    for other in ('"sha256-' + "0" * 64 + '"', f'W/"sha256-{SHA}"', "Sun, 22 Nov 2026 00:00:00 GMT"):
        assert api.get(url, {"Range": "bytes=5-", "If-Range": other}).status_code == 200


def test_content_the_client_has_is_304(api: Api, url: str) -> None:
    response = api.get(url, {"If-None-Match": f'"sha256-{SHA}"', "Range": "bytes=0-1"})
    assert (response.status_code, response.content) == (304, b"")
    assert api("HEAD", url, {"If-None-Match": f'"sha256-{SHA}"'}).status_code == 304


def test_an_empty_file_is_downloaded_and_has_no_range(api: Api) -> None:
    url = only(api, publish(api, {"empty": b""}))["content_url"]
    assert (api.get(url).status_code, api.get(url).content) == (200, b"")
    assert api.get(url, {"Range": "bytes=0-"}).status_code == 416


def test_a_name_with_any_characters_is_carried_whole(api: Api) -> None:
    name = 'modèle "4 bit";\r\n中.json'
    url = only(api, publish(api, {f"sub/{name}": b"x"}))["content_url"]
    disposition = api.get(url).headers["Content-Disposition"]
    plain, extended = disposition.removeprefix("attachment; ").split("; ")
    assert plain == 'filename="mod_le__4_bit_____.json"'
    assert extended == "filename*=UTF-8''mod%C3%A8le%20%224%20bit%22%3B%0D%0A%E4%B8%AD.json"


def test_bytes_that_are_gone_are_410(api: Api) -> None:
    job_id = publish(api, {"a": CONTENT})
    url = only(api, job_id)["content_url"]
    api.app.state.store.doom(SHA)
    api.app.state.store.purge(SHA)
    for response in (api.get(url), api("HEAD", url), api.get(f"/v1/jobs/{job_id}/artifacts.tar")):
        assert response.status_code == 410


def test_the_archive_has_all_files_and_the_announced_length(api: Api) -> None:
    files = {"config.json": b"{}", "model.safetensors": CONTENT, "x" * 150 + "é": b"long", "empty": b""}
    job_id = publish(api, files)
    response = api.get(f"/v1/jobs/{job_id}/artifacts.tar")
    assert int(response.headers["Content-Length"]) == len(response.content)
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        unpacked = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}  # type: ignore[union-attr]
    assert unpacked == {f"nupes/{path}": content for path, content in files.items()}
    assert api.get(f"/v1/jobs/{job_id}/artifacts.tar").content == response.content


def test_every_cut_of_a_file_puts_together_to_the_file() -> None:
    size = 1000
    for _ in range(200):
        first = secrets.randbelow(size + 5)
        last = secrets.randbelow(size + 5)
        headers = Headers({"range": f"bytes={first}-{last}"})
        expected = range(size)[first : last + 1]
        if last < first:
            assert requested_range(headers, '"t"', size) is None
        elif not expected:
            with pytest.raises(RangeNotSatisfiableError):
                requested_range(headers, '"t"', size)
        else:
            found = requested_range(headers, '"t"', size)
            assert found is not None
            assert range(found.start, found.stop) == expected


@pytest.fixture
def s3_settings(
    make_settings: Callable[..., Settings], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """A bucket on a local server that speaks S3."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        bucket = f"nupes-{secrets.token_hex(4)}"
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
        yield make_settings(database_url=sqlite_url, storage_url=f"s3://{bucket}/blobs", s3_endpoint_url=endpoint)
    finally:
        server.stop()


def test_with_a_bucket_the_client_is_sent_to_a_signed_link(s3_settings: Settings) -> None:
    with open_api(s3_settings) as api:
        url = only(api, publish(api, {"model.safetensors": CONTENT}))["content_url"]
        redirect = api.get(url, {"Range": "bytes=5-9"})
        assert (redirect.status_code, redirect.headers["Cache-Control"]) == (307, "no-store")
        linked = httpx.get(redirect.headers["Location"])
        assert linked.content == CONTENT
        assert 'filename="model.safetensors"' in linked.headers["Content-Disposition"]
        assert httpx.get(redirect.headers["Location"], headers={"Range": "bytes=5-9"}).content == CONTENT[5:10]
        assert api.get(url, {"If-None-Match": f'"sha256-{SHA}"'}).status_code == 304
        head = api("HEAD", url)
        assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(CONTENT)))


def test_a_signed_link_leads_to_content_that_garbage_collection_had_put_aside(s3_settings: Settings) -> None:
    with open_api(s3_settings) as api:
        url = only(api, publish(api, {"model.safetensors": CONTENT}))["content_url"]
        open_store(s3_settings).doom(SHA)
        assert httpx.get(api.get(url).headers["Location"]).content == CONTENT


def test_a_local_store_hands_out_no_links(api: Api) -> None:
    assert open_store(api.app.state.settings).link(SHA, "attachment", "text/plain", 60) is None
