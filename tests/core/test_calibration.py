"""Calibration samples from files, texts, tensors and the model itself, and what is said when they can not be made."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from nupes_core.config import CalibrationConfig
from nupes_core.data import calibration, parquetfile, textfiles
from nupes_core.data.calibration import CalibrationFile, read_samples
from nupes_core.data.modelinputs import ModelInputs, model_inputs, read_tensors, spread
from nupes_core.data.samples import Samples
from nupes_core.data.texts import kind_of, read_texts
from nupes_core.errors import CalibrationError
from nupes_core.evaluation import load_tokenizer
from nupes_core.modelfolder import ModelFolder, open_folder
from tests.conftest import BOOKLM
from tests.core.tiny import VOCABULARY, build, save

STORY = (BOOKLM.parent / "text" / "lamplighter.txt").read_text()
SMALL = CalibrationConfig(samples=8, length=16)
ROWS = [f"Row {index} tells of {index * 7} lamps and of the ladder that leads to them." for index in range(64)]

Write = Callable[[Path, list[Any]], None]


@pytest.fixture(scope="module")
def llama() -> ModelFolder:
    return open_folder(BOOKLM)


@pytest.fixture(scope="module")
def form(llama: ModelFolder) -> ModelInputs:
    return model_inputs(llama)


def _saved(tmp_path_factory: pytest.TempPathFactory, family: str) -> ModelFolder:
    path = save(family, tmp_path_factory.mktemp("model") / family)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BOOKLM / name, path / name)
    return open_folder(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A language model whose tokenizer has more tokens than itself."""
    return _saved(tmp_path_factory, "llama")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = _saved(tmp_path_factory, "bert")
    return _with_vocabulary(folder, 4096)


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return _with_vocabulary(_saved(tmp_path_factory, "t5"), 4096)


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_folder(save("vit", tmp_path_factory.mktemp("model") / "vit"))


def _with_vocabulary(folder: ModelFolder, size: int) -> ModelFolder:
    config = json.loads((folder.path / "config.json").read_text())
    (folder.path / "config.json").write_text(json.dumps({**config, "vocab_size": size}))
    return open_folder(folder.path)


def _ids(folder: ModelFolder, text: str) -> list[int]:
    ids: list[int] = load_tokenizer(folder.path)(text, add_special_tokens=False)["input_ids"]
    return ids


def _message(folder: ModelFolder, source: Any, config: CalibrationConfig = SMALL) -> str:
    with pytest.raises(CalibrationError) as caught:
        read_samples(folder, source, config, seed=0)
    assert caught.value.code == "calibration_failed"
    return f"{caught.value.message} | {caught.value.hint}"


# --- texts for language models ---------------------------------------------------------------------------------------


def test_windows_of_a_text_are_its_tokens_in_order_spread_over_the_whole(llama: ModelFolder, tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    path.write_text(STORY)
    samples = read_samples(llama, path, SMALL, seed=0)
    ids = torch.tensor(_ids(llama, STORY))
    available = len(ids) // 16
    assert samples.inputs.keys() == {"input_ids"}
    assert samples.inputs["input_ids"].dtype == torch.int64
    starts = [index * available // 8 * 16 for index in range(8)]
    assert torch.equal(samples.inputs["input_ids"], torch.stack([ids[start : start + 16] for start in starts]))
    assert starts[-1] > len(ids) // 2


def test_the_same_data_gives_the_same_samples_whatever_the_global_generator_says(llama: ModelFolder) -> None:
    torch.manual_seed(1)
    first = read_samples(llama, [STORY], SMALL, seed=0).sha256()
    torch.manual_seed(2)
    assert read_samples(llama, [STORY], SMALL, seed=0).sha256() == first


def test_less_than_wished_is_used_as_it_is(llama: ModelFolder) -> None:
    tokens = len(_ids(llama, STORY))
    samples = read_samples(llama, [STORY], CalibrationConfig(samples=4000, length=16), seed=0)
    assert len(samples) == tokens // 16


def test_too_little_text_is_said_with_the_tokens_there_are_and_the_tokens_needed(llama: ModelFolder) -> None:
    message = _message(llama, ["A short text."], CalibrationConfig(samples=128, length=256))
    assert f"has {len(_ids(llama, 'A short text.'))} tokens; 8 windows of 256 tokens need 2048" in message


def test_a_length_beyond_the_model_is_refused_with_its_limit(llama: ModelFolder) -> None:
    assert "length is 1024; LlamaForCausalLM takes at most 512" in _message(llama, [STORY], CalibrationConfig(8, 1024))
    assert "at most 512" in _message(llama, None, CalibrationConfig(8, 1024))


def _write_text(path: Path, rows: list[Any]) -> None:
    path.write_text("\n\n".join(rows))


def _write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("\n".join(json.dumps({"id": 1, "text": row}) for row in rows))


def _write_strings(path: Path, rows: list[Any]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


def _write_array(path: Path, rows: list[Any]) -> None:
    path.write_text(json.dumps([{"text": row, "n": [1, {}]} for row in rows], indent=2))


def _write_csv(path: Path, rows: list[Any]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([index, row] for index, row in enumerate(rows))


def _write_semicolons(path: Path, rows: list[Any]) -> None:
    path.write_text("\n".join(["text;label", *(f'"{row}";1' for row in rows)]))


def _write_parquet(path: Path, rows: list[Any]) -> None:
    pq.write_table(pa.table({"id": range(len(rows)), "text": rows}), path, row_group_size=10)


def _write_bom(path: Path, rows: list[Any]) -> None:
    path.write_text("\ufeff" + "\n".join(json.dumps({"text": row}) for row in rows))


@pytest.mark.parametrize(
    "write",
    [
        _write_text,
        _write_jsonl,
        _write_strings,
        _write_array,
        _write_csv,
        _write_semicolons,
        _write_parquet,
        _write_bom,
    ],
)
def test_the_same_texts_in_any_kind_of_file_give_the_same_samples(
    llama: ModelFolder, tmp_path: Path, write: Write
) -> None:
    path = tmp_path / "calibration"
    write(path, ROWS)
    expected = read_samples(llama, ROWS, SMALL, seed=0)
    assert read_samples(llama, CalibrationFile(path), SMALL, seed=0).sha256() == expected.sha256()


def test_the_column_says_which_field_is_read(llama: ModelFolder, tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    pq.write_table(pa.table({"text": ["no"] * 64, "story": ROWS}), path)
    expected = read_samples(llama, ROWS, SMALL, seed=0)
    assert read_samples(llama, CalibrationFile(path, "story"), SMALL, seed=0).sha256() == expected.sha256()


_CHAT = [{"role": "user", "content": "Who lights the lamps?"}, {"role": "assistant", "content": "The lamplighter."}]


def test_conversations_are_written_by_role_without_a_template(llama: ModelFolder, tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    path.write_text("\n".join(json.dumps({"messages": _CHAT}) for _ in range(40)))
    texts = ["user: Who lights the lamps?\nassistant: The lamplighter."] * 40
    assert read_samples(llama, path, SMALL, seed=0).sha256() == read_samples(llama, texts, SMALL, seed=0).sha256()


def _with_template(path: Path, template: str) -> ModelFolder:
    shutil.copytree(BOOKLM, path, dirs_exist_ok=True)
    (path / "chat_template.jinja").write_text(template)
    return open_folder(path)


def test_conversations_go_through_the_tokenizer_s_template(tmp_path: Path) -> None:
    folder = _with_template(tmp_path / "m", "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    path = tmp_path / "calibration"
    pq.write_table(pa.table({"messages": [_CHAT] * 40}), path)
    texts = ["<user>Who lights the lamps?<assistant>The lamplighter."] * 40
    assert read_samples(folder, path, SMALL, seed=0).sha256() == read_samples(folder, texts, SMALL, seed=0).sha256()


def test_a_template_that_fails_is_no_crash(tmp_path: Path) -> None:
    folder = _with_template(tmp_path / "m", "{{ raise_exception('roles must alternate') }}")
    (tmp_path / "calibration").write_text(json.dumps({"messages": _CHAT}))
    assert "roles must alternate" in _message(folder, tmp_path / "calibration")


def test_parts_of_a_message_that_are_text_count(llama: ModelFolder, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": STORY}, {"type": "image_url", "image_url": {"url": "x"}}]
    path = tmp_path / "calibration"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": parts}]}))
    expected = read_samples(llama, [f"user: {STORY}"], SMALL, seed=0)
    assert read_samples(llama, path, SMALL, seed=0).sha256() == expected.sha256()


def test_only_the_beginning_of_a_long_file_is_read(
    llama: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "LEAST_CHARACTERS", 1000)
    path = tmp_path / "calibration"
    _write_jsonl(path, ROWS)
    with path.open("ab") as file:
        file.write(b"\n{ broken, never looked at")
    assert len(read_samples(llama, path, SMALL, seed=0)) == 8


def test_a_long_text_is_tokenized_in_pieces_without_losing_anything(
    llama: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CalibrationConfig(samples=1, length=512)
    whole = read_samples(llama, ROWS, config, seed=0).inputs["input_ids"][0].tolist()
    monkeypatch.setattr(calibration, "PIECE_CHARACTERS", 200)
    pieces = read_samples(llama, ROWS, config, seed=0).inputs["input_ids"][0].tolist()
    tokenizer = load_tokenizer(llama.path)
    text = tokenizer.decode(pieces)
    assert len(text) > 1000
    assert "\n\n".join(ROWS).startswith(text)
    assert tokenizer.decode(whole)[:1000] == text[:1000]


def test_halves_of_surrogate_pairs_do_not_reach_the_tokenizer(llama: ModelFolder, tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    path.write_text("\n".join('{"text": "lamp \\ud800 and light, lamp and light, lamp and light"}' for _ in range(20)))
    assert len(read_samples(llama, path, SMALL, seed=0)) == 8


# --- what a file may be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("Once, there was\na lamp, and", "text"),
        ('"Light," he said.\n"Lamp," she said.', "text"),
        ("[Chapter 1]\nOnce", "text"),
        ("{ x = 1 }\ncode", "text"),
        ("12\n13", "text"),
        ("Hello, world\nI am, here", "text"),
        ('{"text": 1}', "json_lines"),
        ('{\n "text": 1}', "json_lines"),
        ('"a"\n"b"', "json_lines"),
        ('[{"role": "user"}]\n[{"role": "user"}]', "json_lines"),
        ('["a", "b"]', "json_array"),
        ('  [\n{"text": "a"}]', "json_array"),
        ("text\nhello", "csv"),
        ("id,text,label\n1,hello,2", "csv"),
        ("id,words\n1,hello\n2,lamp", "csv"),
        ("id\ttext\n1\thello", "csv"),
        ("PAR1....", "parquet"),
    ],
)
def test_the_content_says_what_a_file_is(tmp_path: Path, content: str, kind: str) -> None:
    path = tmp_path / "calibration"
    path.write_text(content)
    assert kind_of(path, "text") == kind


def test_a_suffix_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text('{"text": "a"}')
    assert kind_of(path, "text") == "text"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "calibration: the calibration file is empty (0 bytes)"),
        (b" \n\n ", "empty (4 bytes)"),
        (b"lamp\n" + b"light \xff lamp", "not UTF-8: invalid start byte 0xff at byte 11"),
        (b"lamp \xe2\x82", "not UTF-8: unexpected end of data 0xe2 at byte 5"),
        (b"lamp\nzero \0 byte", "line 2 holds a zero byte"),
        (gzip.compress(b"lamp", mtime=0), "it is packed (gzip)"),
        (b'{"text": "a"}\n{"text": "b"\n', "line 2 is not JSON: Expecting ',' delimiter at column 13"),
        (b'{"text": "a"}\n' + b'{"text": ' + b"[" * 100_000, "line 2 is not JSON that can be read: nested too deep"),
        (b'{"text": "a"}\n{"text": ' + b"1" * 5000 + b"}", "line 2 is not JSON that can be read: Exceeds the limit"),
        (b'{"text": "a"}\n7', "line 2 holds a number, not text"),
        (b'{"text": "a"}\n{"text": {"a": 1}}', "line 2 holds an object, not text"),
        (b'{"content": "a", "id": 2}', "line 1 has no column 'text'; it has 'content', 'id'"),
        (b'{"messages": [{"from": "x"}]}', "line 1 has a message with ['from'], not `role` and `content`"),
        (b'["a", "b" "c"]', "'\"' stands where ',' is expected"),
        (b'["a", "b"', "the JSON array has no end"),
        (b'["a", nope]', "item 2 is not JSON: Expecting value"),
        (b'["a", ' + b"[" * 100_000, "item 2 is not JSON that can be read: nested too deep"),
        (b'[{"id": 1}]', "item 1 has no column 'text'; it has 'id'"),
        (b"id,words\n1,hello\n2,lamp", "line 2 has no column 'text'; it has 'id', 'words'"),
        (b"id,text\n1,hello\n2,lamp,3", "line 3 has 3 fields; the header names 2"),
        (b'id,text\n1,"hello', "is not CSV: unexpected end of data"),
        (b"id,text\n1," + b"a" * 200_000, "line 2 is not CSV: field larger than field limit"),
        (b'{"text": null}\n{"text": "  "}', "holds no text"),
        (b"PAR1 and nothing else", "not a Parquet file that can be read"),
        (b'\x08\0\0\0\0\0\0\0{"a":1}', "calibration"),
    ],
)
def test_what_is_wrong_with_a_file_is_quoted(llama: ModelFolder, tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "calibration"
    path.write_bytes(content)
    assert said in _message(llama, path)


def test_a_file_that_is_not_there_and_a_text_in_place_of_a_path_are_told(llama: ModelFolder, tmp_path: Path) -> None:
    assert "No such file" in _message(llama, tmp_path / "gone")
    assert "Is a directory" in _message(llama, tmp_path)
    assert "texts themselves go into a list" in _message(llama, STORY)
    assert "null byte" in _message(llama, "a\0b")


def test_lines_and_items_have_a_limit(llama: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfiles, "MOST_BYTES", 200_000)
    path = tmp_path / "calibration"
    path.write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "a" * 300_000}))
    assert "line 2 has 200000 bytes or more" in _message(llama, path)
    path.write_text(json.dumps(["a", "b" * 2_000_000]))
    assert "an item of more than 200000 characters" in _message(llama, path)


def test_a_parquet_file_names_the_columns_it_has(llama: ModelFolder, tmp_path: Path) -> None:
    pq.write_table(pa.table({"sentence": ROWS, "label": ROWS}), tmp_path / "calibration")
    assert "it has no column 'text'; it has 'sentence', 'label'" in _message(llama, tmp_path / "calibration")


def test_a_parquet_column_of_bytes_is_not_text(llama: ModelFolder, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [b"\xff\xd8"] * 4}), tmp_path / "calibration")
    assert "row 1 holds bytes, not text" in _message(llama, tmp_path / "calibration")


def test_a_row_group_that_unpacks_to_too_much_is_refused(
    llama: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquetfile, "MOST_GROUP_BYTES", 100_000)
    path = tmp_path / "calibration"
    pq.write_table(pa.table({"text": ["lamp" * 100_000]}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 10_000
    assert "at most 100000 are read" in _message(llama, path)


def test_rows_that_unpack_to_much_are_cut_before_anything_is_done_with_them(tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    pq.write_table(pa.table({"text": ["lamp " * 1_000_000] * 20}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    texts = read_texts(path, "text", characters=12_000, render=str)
    assert sum(map(len, texts.texts)) == 12_000


def test_a_file_of_nothing_but_strings_is_needed_for_texts(llama: ModelFolder) -> None:
    assert "calibration text 1 is int, not str" in _message(llama, ["a", 1])
    assert "0 calibration texts hold no text" in _message(llama, [])


def test_without_a_tokenizer_texts_are_no_use(tmp_path: Path) -> None:
    folder = open_folder(save("llama", tmp_path / "m"))
    assert "the model has no tokenizer" in _message(folder, [STORY])


def test_a_tokenizer_of_another_model_is_found_out(tiny: ModelFolder) -> None:
    message = _message(tiny, [STORY])
    assert f"LlamaForCausalLM has {VOCABULARY} tokens" in message


@pytest.fixture(scope="module")
def parquet_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("parquet") / "calibration"
    _write_parquet(path, ROWS[:4])
    return path.read_bytes()


_STARTS = [
    b"",
    b"{",
    b'{"text": ',
    b"[",
    b'["',
    b"PAR1",
    b"id,text\n",
    b"\xef\xbb\xbf",
    b"\x20\0\0\0\0\0\0\0{",
    b'"a"\n',
]


@given(start=st.sampled_from(_STARTS), rest=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_bytes_only_typed_errors_come_out(
    form: ModelInputs, tmp_path: Path, start: bytes, rest: bytes
) -> None:
    path = tmp_path / "calibration"
    path.write_bytes(start + rest)
    _only_typed(form, path)


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parquet_files_with_flipped_bytes_give_rows_or_typed_errors(
    form: ModelInputs, tmp_path: Path, parquet_bytes: bytes, data: st.DataObject
) -> None:
    content = bytearray(parquet_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, len(content) - 9))] = data.draw(st.integers(0, 255))
    path = tmp_path / "calibration"
    path.write_bytes(content)
    _only_typed(form, path)


def _only_typed(form: ModelInputs, path: Path) -> None:
    with suppress(CalibrationError):
        if kind_of(path, "text") == "tensors":
            read_tensors(path, form, SMALL)
        else:
            texts = read_texts(path, "text", characters=1000, render=str)
            assert "".join(texts.joined(100)).strip()


# --- encoders --------------------------------------------------------------------------------------------------------


def test_an_encoder_reads_records_padded_with_a_mask(encoder: ModelFolder, tmp_path: Path) -> None:
    lines = ["Lamp.", *("The lamplighter of the town walks on. " * 4 for _ in range(9))]
    (tmp_path / "calibration").write_text("\n".join(lines))
    samples = read_samples(encoder, tmp_path / "calibration", CalibrationConfig(samples=10, length=24), seed=0)
    tokens, mask = samples.inputs["input_ids"], samples.inputs["attention_mask"]
    first = _ids(encoder, "Lamp.")
    assert tokens.shape == mask.shape == (10, 24)
    assert tokens[0].tolist() == first + [0] * (24 - len(first))
    assert mask.sum(1).tolist() == [len(first)] + [24] * 9
    assert samples.mask is not None


def test_records_are_spread_over_what_was_read_and_blank_lines_are_none(encoder: ModelFolder) -> None:
    texts = [text for index in range(20) for text in (f"Lamp {index}", " ")]
    samples = read_samples(encoder, texts, CalibrationConfig(samples=10, length=8), seed=0)
    wanted = [_ids(encoder, f"Lamp {index}") for index in range(0, 20, 2)]
    found = [row[mask.bool()].tolist() for row, mask in zip(*samples.inputs.values(), strict=True)]
    assert found == wanted


def test_an_encoder_s_length_is_cut_to_its_positions(encoder: ModelFolder) -> None:
    samples = read_samples(encoder, [STORY] * 8, CalibrationConfig(samples=8, length=500), seed=0)
    assert samples.inputs["input_ids"].shape == (8, 64)


def test_few_records_are_said(encoder: ModelFolder) -> None:
    assert "holds 3 texts; 8 are needed" in _message(encoder, ROWS[:3])


def test_the_decoder_of_a_pair_reads_what_its_encoder_reads(translator: ModelFolder) -> None:
    samples = read_samples(translator, ROWS, SMALL, seed=0)
    inputs, shifted = samples.inputs["input_ids"], samples.inputs["decoder_input_ids"]
    assert torch.equal(shifted[:, 1:], inputs[:, :-1])
    assert shifted[:, 0].tolist() == [0] * 8


@pytest.mark.parametrize("family", ["bert", "t5", "llama", "vit"])
def test_a_model_runs_on_its_samples(family: str, tmp_path: Path) -> None:
    folder = open_folder(save(family, tmp_path / "m", torch.float32))
    generator = torch.Generator().manual_seed(0)
    source: Any = torch.randint(VOCABULARY, (200,), generator=generator)
    if family == "vit":
        source = torch.randn(8, 3, 32, 32, generator=generator)
    samples = read_samples(folder, source, SMALL, seed=0)
    if family == "t5":
        samples = Samples({**samples.inputs, "decoder_input_ids": samples.inputs["input_ids"]})
    with torch.no_grad():
        assert samples.call(build(family)) is not None


# --- tensors ---------------------------------------------------------------------------------------------------------


def test_flat_token_ids_are_cut_and_rows_are_taken_as_they_are(tiny: ModelFolder) -> None:
    flat = torch.arange(160, dtype=torch.int32) % VOCABULARY
    assert torch.equal(read_samples(tiny, flat, SMALL, seed=0).inputs["input_ids"][1], flat[16:32].long() + 0)
    rows = torch.arange(8 * 20).view(8, 20) % VOCABULARY
    assert torch.equal(read_samples(tiny, rows, SMALL, seed=0).inputs["input_ids"], rows[:, :16])


def test_a_file_of_pixel_values_is_read_in_rows_spread_over_it(vision: ModelFolder, tmp_path: Path) -> None:
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)).half()
    save_file({"pixel_values": images}, tmp_path / "calibration")
    samples = read_samples(vision, tmp_path / "calibration", CalibrationConfig(samples=10), seed=0)
    assert torch.equal(samples.inputs["pixel_values"], images[::2].float())


def test_a_file_of_token_ids_with_a_mask_feeds_an_encoder(encoder: ModelFolder, tmp_path: Path) -> None:
    tokens = torch.randint(90, (12, 20), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, tmp_path / "inputs.safetensors")
    samples = read_samples(encoder, tmp_path / "inputs.safetensors", SMALL, seed=0)
    assert {name: tuple(each.shape) for name, each in samples.inputs.items()} == {
        "input_ids": (8, 16),
        "attention_mask": (8, 16),
    }


def test_a_flat_file_of_token_ids_is_cut_into_windows(tiny: ModelFolder, tmp_path: Path) -> None:
    flat = torch.arange(300) % VOCABULARY
    save_file({"input_ids": flat}, tmp_path / "calibration")
    found = read_samples(tiny, tmp_path / "calibration", SMALL, seed=0)
    assert found.sha256() == read_samples(tiny, flat, SMALL, seed=0).sha256()


_IMAGES = torch.zeros(8, 3, 32, 32)
_NOT_A_NUMBER = torch.zeros(8, 3, 32, 32)
_NOT_A_NUMBER[3, 1, 2, 2] = torch.nan
_TOKENS = torch.ones(8, 16, dtype=torch.int64)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"pixel_values": _IMAGES[0]}, "pixel_values is torch.float32 of shape [3, 32, 32]"),
        ({"pixel_values": _IMAGES[:, :1]}, "has 1 channels (shape [8, 1, 32, 32]); ViTForImageClassification has 3"),
        ({"pixel_values": _IMAGES.to(torch.uint8)}, "pixel_values is torch.uint8 of shape [8, 3, 32, 32]"),
        ({"pixel_values": _NOT_A_NUMBER}, "pixel_values holds NaN"),
        ({"pixel_values": _IMAGES[:2]}, "holds 2 samples; 8 are needed"),
        ({"images": _IMAGES}, "needs 'pixel_values'; the calibration data has ['images']"),
        ({"pixel_values": _IMAGES, "caption": _TOKENS}, "takes no 'caption'"),
        ({"pixel_values": torch.tensor(1.0)}, "without dimensions"),
    ],
)
def test_tensors_that_do_not_fit_a_vision_model_are_quoted(
    vision: ModelFolder, tmp_path: Path, tensors: dict[str, torch.Tensor], said: str
) -> None:
    save_file({name: each.contiguous() for name, each in tensors.items()}, tmp_path / "calibration")
    assert said in _message(vision, tmp_path / "calibration", CalibrationConfig(samples=8))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (_TOKENS.float(), "input_ids is torch.float32 of shape [8, 16]"),
        (_TOKENS.bool(), "input_ids is torch.bool"),
        (_TOKENS[None], "input_ids is torch.int64 of shape"),
        (_TOKENS * VOCABULARY, f"token id {VOCABULARY}; LlamaForCausalLM has {VOCABULARY} tokens"),
        (-_TOKENS, "token id -1"),
        (_TOKENS[:, :0], "of shape [8, 0]"),
        (_TOKENS[0], "has 16 tokens; 8 windows of 16 tokens need 128"),
        (torch.tensor(3), "input_ids is torch.int64 of shape []"),
        (torch.zeros(5, 0), "shape [5, 0]"),
        (torch.zeros(300), "input_ids is torch.float32"),
        (Samples({"pixel_values": _IMAGES}), "needs 'input_ids'; the calibration data has ['pixel_values']"),
    ],
)
def test_tensors_that_do_not_fit_a_language_model_are_quoted(tiny: ModelFolder, source: Any, said: str) -> None:
    config = CalibrationConfig(samples=1, length=16) if said.startswith("input_ids is torch.int64") else SMALL
    assert said in _message(tiny, source, config)


def test_rows_longer_than_the_model_are_refused(tiny: ModelFolder) -> None:
    rows = torch.ones(8, 100, dtype=torch.int64)
    assert "takes at most 64 tokens" in _message(tiny, rows, CalibrationConfig(samples=8, length=100))


def test_inputs_of_different_counts_are_refused(encoder: ModelFolder, tmp_path: Path) -> None:
    save_file({"input_ids": _TOKENS, "attention_mask": _TOKENS[:4].clone()}, tmp_path / "calibration")
    assert "different numbers of samples" in _message(encoder, tmp_path / "calibration")


def test_a_broken_file_of_tensors_is_told(vision: ModelFolder, tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    save_file({"pixel_values": _IMAGES}, path)
    path.write_bytes(path.read_bytes()[:-8])
    assert "holds tensors up to byte" in _message(vision, path)


# --- the model's own text --------------------------------------------------------------------------------------------


def test_a_language_model_writes_its_own_samples_with_the_seed(llama: ModelFolder) -> None:
    config = CalibrationConfig(samples=4, length=12)
    first, same, other = (read_samples(llama, None, config, seed=seed) for seed in (3, 3, 4))
    assert first.inputs["input_ids"].shape == (4, 12)
    assert first.sha256() == same.sha256() != other.sha256()


def test_the_loaded_model_is_used_and_no_tokenizer_is_needed(tmp_path: Path) -> None:
    folder = open_folder(save("llama", tmp_path / "m", torch.float32))
    model = build("llama")
    samples = read_samples(folder, None, SMALL, seed=0, model=model)
    assert samples.sha256() == read_samples(folder, None, SMALL, seed=0).sha256()


def test_a_model_that_is_not_a_number_writes_nothing(tmp_path: Path) -> None:
    folder = open_folder(save("llama", tmp_path / "m"))
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(CalibrationError, match="could not write its own calibration data"):
        read_samples(folder, None, SMALL, seed=0, model=model)


def test_encoders_and_vision_models_are_told_what_to_give(encoder: ModelFolder, vision: ModelFolder) -> None:
    assert "cannot write its own calibration data | Give texts." in _message(encoder, None)
    assert "Give a safetensors file with 'pixel_values'" in _message(vision, None)
    assert "ViTForImageClassification reads no text" in _message(vision, [STORY])


def test_texts_among_tensors_are_no_tensors(vision: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "calibration").write_text(STORY)
    assert "reads no text" in _message(vision, tmp_path / "calibration")


@given(available=st.integers(0, 5000), wanted=st.integers(1, 500))
def test_spread_indices_are_different_rising_and_in_range(available: int, wanted: int) -> None:
    chosen = spread(available, wanted).tolist()
    assert len(chosen) == min(available, wanted)
    assert chosen == sorted(set(chosen))
    assert all(0 <= index < available for index in chosen)
