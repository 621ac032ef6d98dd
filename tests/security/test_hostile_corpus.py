"""Hundreds of files that were made to break a reader: each is refused as unsafe, in words, soon, in little memory."""

from __future__ import annotations

import copy
import json
import resource
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from app.core.problems import ProblemError
from app.models.scan import Scan, scan
from app.uploads import tus
from nupes_core.errors import UnsafeFileError
from nupes_core.header import DTYPE_BYTES, MAX_HEADER_BYTES, Header, parse_header
from nupes_core.modelfolder import MAX_CONFIG_BYTES, MAX_JSON_BYTES
from tests.safetensors_files import CONFIG, folder, good, safetensors, sharded

SECONDS = 20
"""On a machine that does much else; alone each case takes milliseconds, the bombs a second."""
GROWTH_BYTES = 700 << 20
INDEX = "model.safetensors.index.json"


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def lengths() -> Iterator[tuple[str, bytes]]:
    for length in (0, 1, 3, 10**6, MAX_HEADER_BYTES, MAX_HEADER_BYTES + 1, 2**31, 2**32, 2**53, 2**63, 2**64 - 1):
        yield f"header length {length}", struct.pack("<Q", length) + good()[8:]
    for off in (-8, -2, -1, 1, 2, 7):
        text = good()
        yield f"header length wrong by {off}", struct.pack("<Q", struct.unpack("<Q", text[:8])[0] + off) + text[8:]
    yield "big-endian length", good()[:8][::-1] + good()[8:]
    for cut in (0, 1, 7, 8, 9, 20, len(good()) - 1):
        yield f"cut after {cut} bytes", good()[:cut]


def offsets() -> Iterator[tuple[str, bytes]]:
    wrong: list[Any] = [
        (4, 0),
        (-4, 0),
        (0, 5),
        (0, 3),
        (1, 5),
        (0, 2**62),
        (2**63, 2**63 + 4),
        (0, 2**64 + 4),
        (0, 10**40),
    ]
    wrong += [
        (0,),
        (),
        (0, 4, 8),
        (0.0, 4.0),
        ("0", "4"),
        (None, 4),
        (False, 4),
        (0, True),
        [[0, 4]],
        {"0": 4},
        "04",
        4,
        None,
    ]
    for value in wrong:
        yield f"offsets {str(value)[:30]}", safetensors({"a": entry(offsets=value)}, bytes(4))
    pairs = [
        ((0, 4), (0, 4)),
        ((0, 4), (2, 6)),
        ((4, 8), (3, 7)),
        ((0, 4), (5, 9)),
        ((4, 8), (8, 12)),
        ((8, 12), (0, 4)),
    ]
    for first, second in pairs:
        yield (
            f"two tensors {first} {second}",
            safetensors({"a": entry(offsets=first), "b": entry(offsets=second)}, bytes(8)),
        )
    yield "bytes behind", safetensors({"a": entry()}, bytes(5))


def shapes() -> Iterator[tuple[str, bytes]]:
    wrong: list[Any] = [
        (2,),
        (0,),
        (-1,),
        (-1, -1),
        (2**32, 2**32),
        (2**62, 4),
        (2**63,),
        (2**64,),
        (10**30,),
        (1,) * 17,
    ]
    wrong += [(1.0,), (True,), (None,), ("1",), ((1,),), "1", 1, None, {"0": 1}, (float("inf"),), (float("nan"),)]
    for value in wrong:
        yield f"shape {str(value)[:30]}", safetensors({"a": entry(shape=value)}, bytes(4))
    for dtype in DTYPE_BYTES:
        if DTYPE_BYTES[dtype] != 4:
            yield f"{dtype} of the wrong size", safetensors({"a": entry(dtype)}, bytes(4))
    kinds: list[Any] = [
        "f32",
        "float32",
        "F32 ",
        "",
        "OBJECT",
        "PICKLE",
        "F4",
        "C64",
        "STRING",
        "F32\0",
        7,
        None,
        True,
        ["F32"],
        {},
    ]
    for value in kinds:
        yield f"dtype {value!r}", safetensors({"a": entry(value)}, bytes(4))


def json_texts() -> Iterator[tuple[str, bytes]]:
    texts = {
        "nothing": b"",
        "spaces": b"  ",
        "a list": b"[]",
        "a number": b"12",
        "null": b"null",
        "text": b'"ab"',
        "half": b'{"a":',
        "comma": b'{"a":1,}',
        "two objects": b"{}{}",
        "byte order mark": b"\xef\xbb\xbf{}",
        "UTF-16": "{}".encode("utf-16"),
        "not UTF-8": b'{"\xff\xfe":1}',
        "overlong UTF-8": b'{"\xc0\xaf":1}',
        "a raw NUL": b'{"a\0":1}',
        "comment": b"{/**/}",
        "NaN": b'{"a":NaN}',
        "Infinity": b'{"a":-Infinity}',
        "huge integer": b'{"a":' + b"9" * 5000 + b"}",
        "huge exponent": b'{"a":1e999999}',
        "single quotes": b"{'a':1}",
        "twice": b'{"a":1,"a":1}',
        "metadata twice": b'{"__metadata__":{},"__metadata__":{}}',
        "twice inside": b'{"a":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}}',
        "deep lists": b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}",
        "deep objects": b'{"a":' * 90_000 + b"1" + b"}" * 90_000,
        "deep and open": b'{"a":' + b"[" * 400_000,
    }
    for name, text in texts.items():
        yield f"JSON: {name}", safetensors(text)


def entries() -> Iterator[tuple[str, bytes]]:
    odd: list[Any] = [
        None,
        1,
        "x",
        [],
        {},
        [1, 2],
        {"dtype": "F32"},
        {**entry(), "more": 1},
        {**entry(), "Dtype": "F32"},
    ]
    for value in odd:
        yield f"entry {str(value)[:40]}", safetensors({"a": value}, bytes(4))
    for name in ("", "a\0", "a\nb", "a\x1b[2J", "\u202ename", "x" * 1025, "\ud800", "\x7f"):
        yield f"tensor name {name[:20]!r}", safetensors({name: entry()}, bytes(4))
    metas: list[Any] = [None, 1, [], "x", {"a": 1}, {"a": None}, {"a": {"b": "c"}}, {"a": ["b"]}, {"a": True}]
    for value in metas:
        yield f"metadata {value!r}", safetensors({"__metadata__": value, "a": entry()}, bytes(4))


WEIGHTS = dict(case for family in (lengths, offsets, shapes, json_texts, entries) for case in family())
BOMBS = {
    "lists": b'{"a":[' + b"[]," * 10_000_000 + b"[]]}",
    "objects": b'{"a":[' + b"{}," * 10_000_000 + b"{}]}",
}
PATHS = [
    "../a",
    "/etc/passwd",
    "a/../../b",
    "a\\b",
    "C:a",
    "a\0",
    ".",
    "..",
    "a.py",
    "a.bin",
    "a.safetensors.",
    " a",
    "a\n",
    "x" * 256,
    "CON:",
]


def jsons(**values: Any) -> bytes:
    return json.dumps({**CONFIG, **values}).encode()


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"part": value}
    return value


def folders() -> Iterator[tuple[str, dict[str, bytes]]]:
    broken = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"x"',
        b"\xff\xfe{}",
        b"{'a':1}",
        b'{"a":' + b"9" * 5000 + b"}",
        b"\x80\x04.",
    ]
    for index, text in enumerate([*broken, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"]):
        yield f"config.json {index}: {text[:12]!r}", folder(config__json=text)
        yield f"index {index}: {text[:12]!r}", {**sharded(1), INDEX: text}
        yield f"tokenizer_config.json {index}", folder(tokenizer_config__json=text)
    for value in ("../../etc", "a/b", "a b", "x" * 129, 1, ["llama"], {"a": 1}, "llama\n", "a;b", None):
        yield f"model_type {str(value)[:20]!r}", folder(config__json=jsons(model_type=value))
    yield "nested configuration", folder(config__json=jsons(**nested(40)))
    yield "configuration of 8 MB", folder(config__json=b'{"a":"' + b"x" * MAX_CONFIG_BYTES + b'"}')
    maps: list[Any] = [
        None,
        {},
        [],
        "x",
        {"a": 1},
        {"a": None},
        {"a": ["model-00001-of-00001.safetensors"]},
        {"a": "x.bin"},
    ]
    maps += [{"a": "model-00001-of-00001.safetensors"}, {"layer.0.weight": "missing.safetensors"}]
    maps += [
        {"a": f"{path}.safetensors"} for path in ("../x", "/x", "a/b", "a\\b", "\0", "x" * 255, "..", "C:x", "a\nb")
    ]
    for index, value in enumerate(maps):
        yield (
            f"weight_map {index}: {str(value)[:30]!r}",
            {**sharded(1), INDEX: json.dumps({"weight_map": value}).encode()},
        )
    for index, path in enumerate(PATHS):
        yield f"file name {index}: {path[:12]!r}", {**folder(), path: b"x"}
    for name in (
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "vocab.json",
        "generation_config.json",
        "spiece.model",
    ):
        yield f"pickle as {name}", {**folder(), name: b"\x80\x04\x95"}
        yield f"archive as {name}", {**folder(), name: b"PK\x03\x04rest"}
    for suffix in ("py", "so", "dll", "sh", "pkl", "pt", "ckpt", "npz", "joblib", "h5", "PY", "Bin"):
        yield f"a file .{suffix}", {**folder(), f"file.{suffix}": b"x"}


FOLDERS = {**{f"weights, {name}": folder(model__safetensors=text) for name, text in WEIGHTS.items()}, **dict(folders())}


def look(files: dict[str, bytes]) -> Scan:
    return scan({path: len(text) for path, text in files.items()}, lambda path, a, b: files[path][a:b], magic=True)


def refused(files: dict[str, bytes]) -> UnsafeFileError:
    """Refused with the one typed error, quickly, in few words."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeFileError) as caught:
        look(files)
    assert time.monotonic() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GROWTH_BYTES
    assert len(caught.value.message) < 1000
    return caught.value


def test_the_corpus_is_large() -> None:
    assert len(FOLDERS) >= 200


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_model_is_refused(name: str) -> None:
    refused(FOLDERS[name])


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("path", ["model.safetensors", INDEX, "config.json", "tokenizer_config.json"])
def test_small_json_that_would_fill_the_memory_is_refused_unread(name: str, path: str) -> None:
    text = BOMBS[name] if path != "config.json" else BOMBS[name][: MAX_CONFIG_BYTES - 10] + b"[]]}"
    around = sharded(1) if path == INDEX else folder()
    refused({**around, path: safetensors(text) if path == "model.safetensors" else text})


def test_a_tokenizer_is_not_read_whatever_its_size() -> None:
    class Watched(dict[str, bytes]):
        read = 0

    files = Watched(folder() | {"tokenizer.json": b"[" * 2_000_000})
    sizes = {path: len(text) for path, text in files.items()}

    def read(path: str, start: int, end: int) -> bytes:
        files.read += end - start if path == "tokenizer.json" else 0
        return files[path][start:end]

    assert "tokenizer.json" in scan(sizes, read, magic=True).files
    assert files.read <= 4


@pytest.mark.parametrize("path", [INDEX, "config.json", "tokenizer_config.json"])
def test_a_huge_index_or_configuration_is_refused_unread(path: str) -> None:
    files = folder()
    sizes = {**{name: len(text) for name, text in files.items()}, path: MAX_JSON_BYTES + 1}

    def read(name: str, start: int, end: int) -> bytes:
        assert name != path, "it was read"
        return files[name][start:end]

    with pytest.raises(UnsafeFileError, match="at most"):
        scan(sizes, read, magic=True)


DANGEROUS = {
    "auto_map": {"AutoModel": "evil.Model"},
    "_attn_implementation": "evil",
    "attn_implementation": "evil/kernel",
    "_name_or_path": "../../etc",
    "experts_implementation": "evil",
    "custom_pipelines": {"x": {"impl": "evil.P"}},
    "trust_remote_code": True,
    "__class__": "x",
    "_from_auto": True,
}


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("key", DANGEROUS)
def test_what_could_name_code_is_dropped_from_a_configuration_at_every_depth(key: str, depth: int) -> None:
    value: Any = {key: DANGEROUS[key]}
    for _ in range(depth):
        value = {"text_config": value}
    found = look(folder(config__json=jsons(**value)))
    assert key not in json.dumps(found.config)
    assert [finding.code for finding in found.findings] == ["key_dropped"]


def headers(**values: str) -> Headers:
    return Headers({name.replace("_", "-"): value for name, value in values.items()})


NUMBERS = ["", "-1", "+1", "1.0", "1e3", "0x10", " ", "²", "1 2", "1,1", "9" * 19, "9" * 5000, "NaN", "null", "1\0"]
METADATA = [
    ",",
    "filename",
    "filename !",
    "filename ====",
    "filename YQ",
    "filename YQ==,filename YQ==",
    " YQ==",
    ",,",
    "a b c",
    "filename /w==",
    "filename AA==",
    "sha256 AAAA",
    "sha256 YQ==",
    "filename " + "A" * 8000,
    "filename 7aCA",
    "=",
]
CHECKSUMS = [
    "",
    "sha1",
    "md5 AAAA",
    "sha256",
    "sha1 !",
    "SHA1 AAAA",
    "sha512 AAAA",
    "sha1 A",
    "sha1  AAAA=",
    "crc32 AAAA==",
]


@pytest.mark.parametrize("value", NUMBERS)
def test_a_number_of_bytes_is_digits(value: str) -> None:
    for read, name in ((tus.read_creation, "upload_length"), (tus.read_chunk, "upload_offset")):
        with pytest.raises(ProblemError) as caught:
            read(headers(content_type=tus.CHUNK_TYPE, **{name: value}))
        assert (caught.value.status, caught.value.code) == (400, "malformed_header")


@pytest.mark.parametrize("value", METADATA)
def test_odd_metadata_of_an_upload_is_refused_or_harmless(value: str) -> None:
    try:
        announced = tus.read_creation(headers(upload_length="1", upload_metadata=value))
    except ProblemError as error:
        assert error.status == 400  # noqa: PT017
    else:
        assert 0 < len(announced.filename) <= 255
        assert "\0" not in announced.filename


@pytest.mark.parametrize("value", CHECKSUMS)
def test_an_odd_checksum_is_refused_or_matches_nothing(value: str) -> None:
    try:
        chunk = tus.read_chunk(headers(content_type=tus.CHUNK_TYPE, upload_offset="0", upload_checksum=value))
    except ProblemError as error:
        assert error.status == 400  # noqa: PT017
    else:
        assert chunk.checksum is not None
        assert chunk.checksum.expected != chunk.checksum.start().digest()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), st.text(max_size=60), st.text(max_size=20))
def test_random_headers_of_an_upload_raise_nothing_else(metadata: str, checksum: str, number: str) -> None:
    given_headers = {
        "upload-metadata": metadata,
        "upload-checksum": checksum,
        "upload-length": number,
        "upload-offset": number,
    }
    raw = [(name.encode(), value.encode()) for name, value in given_headers.items()]
    for read in (tus.read_creation, tus.read_chunk):
        try:
            read(Headers(raw=[*raw, (b"content-type", tus.CHUNK_TYPE.encode())]))
        except ProblemError as error:
            assert error.status in {400, 415}  # noqa: PT017


VALID = {
    "__metadata__": {"format": "pt"},
    "a.weight": entry("F16", [2, 2], [0, 8]),
    "b.weight": entry("F32", [2], [8, 16]),
    "c": entry("U8", [], [16, 17]),
}
VALUES = st.one_of(
    st.integers(-2, 20),
    st.integers(),
    st.sampled_from([2**31, 2**32, 2**53, 2**63 - 1, 2**63, 10**30, -(2**63)]),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
    st.sampled_from(sorted(DTYPE_BYTES)),
    st.lists(st.integers(0, 20), max_size=4),
    st.just({}),
)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A valid header of which one to three places were exchanged, removed or doubled."""
    header = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = header
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
                break
            place = inner
        act = draw(st.sampled_from(["exchange", "remove", "double"]))
        if act == "exchange":
            place[key] = draw(VALUES)
        elif act == "remove" and len(place) > 1:
            del place[key]
        elif isinstance(place, dict):
            place[draw(st.text(max_size=4))] = copy.deepcopy(inner)
        else:
            place.append(inner)
    return header


@settings(max_examples=150, deadline=None)
@given(mutated(), st.integers(15, 19))
def test_a_mutated_header_is_refused_or_consistent(header: Any, size: int) -> None:
    text = safetensors(header, bytes(size))
    try:
        parsed = parse_header(text, len(text))
    except UnsafeFileError as error:
        assert error.message  # noqa: PT017
        return
    check_consistent(parsed, size)


def check_consistent(header: Header, size: int) -> None:
    assert header.data_bytes == size
    position = 0
    for info in header.tensors:
        assert info.begin == position
        assert info.params * DTYPE_BYTES[info.dtype] == info.nbytes
        position = info.end


@settings(max_examples=60, deadline=None)
@given(mutated(), st.dictionaries(st.sampled_from([*CONFIG, *DANGEROUS, "x"]), VALUES, max_size=4))
def test_a_mutated_model_is_refused_or_described(header: Any, config: dict[str, Any]) -> None:
    files = {"model.safetensors": safetensors(header, bytes(17)), "config.json": json.dumps(config).encode()}
    try:
        found = look(files)
    except UnsafeFileError:
        return
    assert found.bytes == len(files["model.safetensors"])
    assert not {*DANGEROUS} & {*found.config}
    assert found.architecture is None or isinstance(found.architecture, str)
