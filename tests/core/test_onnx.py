"""Artifacts of format `onnx`, run by onnxruntime."""

from __future__ import annotations

import itertools
import json
import re
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

import nupes_core
from nupes_core import evaluate, quantize
from nupes_core.check import verify_artifact
from nupes_core.config import (
    ActivationConfig,
    ExponentConfig,
    LayerOverride,
    LayerSelection,
    QuantizationConfig,
    WeightConfig,
)
from nupes_core.errors import InvalidConfigError, LoadCheckError, UnsupportedArchitectureError
from nupes_core.header import TensorSpec, build_header
from nupes_core.onnx.decode import OPSET, PREFIX, Decoder, Form, Tables, one_exponent, stored
from nupes_core.plan import plan_folder, plan_headers
from nupes_core.probe import probe_folder, read_probe
from nupes_core.quantizer.sizes import model_bits_per_weight
from nupes_core.quantizer.weight import QuantizedWeight, quantize_weight
from tests.core.tiny import QUICK, VOCABULARY, save

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
REPOSITORY = Path(__file__).resolve().parents[2]
SPARE = "bert.spare"
TOLERANCE = 1e-5
"""Largest deviation from what torch computes with the decoded weights; the outputs are of the size of 1."""


def alone(weight: QuantizedWeight, dtype: str) -> onnx.ModelProto:
    """Return a graph that has one weight and gives it."""
    tables = Tables([weight])
    fmt = weight.format
    form = Form(fmt, dtype, (fmt.rows, fmt.cols), one_exponent(weight))
    parts = stored("w", weight, form, tables)
    inputs = [*(part.name for part in parts), tables.levels(fmt), tables.octaves]
    nodes = Decoder(form, tables.lowest).nodes(inputs, "w")
    output = helper.make_tensor_value_info("w", TensorProto.FLOAT, form.shape)
    graph = helper.make_graph(nodes, "alone", [], [output], [*parts, *tables.initializers()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def session(model: Path | bytes, *, optimize: bool = True) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    file = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("bits", range(2, 9))
def test_onnxruntime_decodes_codes_to_the_last_bit(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    shapes = [(24, 64, 32), (7, 50, 16), (33, 96, -1), (6, 27, -1)]
    for index, ((rows, cols, group), scope) in enumerate(itertools.product(shapes, ("layer", "row", "group"))):
        dtype = list(DTYPES)[index % 3]
        w = (torch.randn(rows, cols, generator=generator) * 10.0 ** (index % 4 - 2)).to(DTYPES[dtype])
        w[rows // 2 :, : cols // 2] = 0
        config = WeightConfig(bits, group, ExponentConfig("search", scope), scale_bits=(6, 8, 11)[index // 3 % 3])  # type: ignore[arg-type]
        weight = quantize_weight(w, config)
        model = alone(weight, dtype)
        onnx.checker.check_model(model)
        (decoded,) = session(model.SerializeToString(), optimize=index % 2 == 0).run(None, {})
        assert np.array_equal(decoded, weight.dequantize(DTYPES[dtype]).float().numpy()), (rows, cols, group, scope)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model, tied, in bfloat16, with embeddings in 8 bits: its source, and artifacts in `out`.

    Its file holds a matrix that the model has no use for.
    """
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(7)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **sizes))
    model.to(torch.bfloat16).save_pretrained(folder / "src")
    tensors = load_file(folder / "src/model.safetensors") | {f"{SPARE}.weight": torch.ones(32, 32).bfloat16()}
    save_file(tensors, folder / "src/model.safetensors", {"format": "pt"})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    (folder / "src/vocab.txt").write_text("\n".join([*words, *(f"##{letter}" for letter in string.ascii_lowercase)]))
    (folder / "src/tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    layers = replace(QUICK.layers, embeddings=True, overrides=(LayerOverride("embeddings", bits=8),))
    config = replace(QUICK, layers=layers)
    report = quantize(folder / "src", folder / "out", config, formats=["nupes", "onnx", "dense"])
    (folder / "outputs.json").write_text(json.dumps(report.extra["outputs"]["onnx"]))
    return folder


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 40), (2, 64)])
def test_any_batch_and_length_gives_what_transformers_computes(bert: Path, batch: int, length: int) -> None:
    tokens = torch.arange(batch * length).view(batch, length) * 7 % VOCABULARY
    mask = torch.ones_like(tokens)
    mask[-1, length // 2 + 1 :] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": (tokens > 40).long()}
    with torch.no_grad():
        expected = nupes_core.load(bert / "out/dense", dtype=torch.float32)(**inputs).logits.numpy()
    feed = {name: value.numpy() for name, value in inputs.items()}
    (logits,) = session(bert / "out/onnx/model.onnx").run(None, feed)
    assert logits.shape == (batch, length, VOCABULARY)
    assert np.abs(logits - expected).max() < TOLERANCE


def test_the_file_holds_codes_and_nothing_of_the_machine_that_made_it(bert: Path) -> None:
    artifact = bert / "out/onnx"
    assert {path.name for path in artifact.iterdir()} >= {"model.onnx", "config.json", "manifest.json", "SHA256SUMS"}
    assert not list(artifact.glob("*safetensors*"))
    assert "quantization_config" not in json.loads((artifact / "config.json").read_text())
    model = onnx.load(artifact / "model.onnx")
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)], "standard operators alone"
    assert b".py" not in (artifact / "model.onnx").read_bytes()
    told = json.loads(next(each.value for each in model.metadata_props if each.key == PREFIX))
    weights = set(told["weights"])
    quantized = {layer["name"] for layer in manifest(artifact)["layers"] if layer["bits"]}
    assert weights == {f"{name}.weight" for name in quantized - {SPARE}}
    assert told["unused"] == [f"{SPARE}.weight"]
    assert "bert.embeddings.word_embeddings.weight" in weights, "one table, although the head is tied to it"
    assert model_bits_per_weight(artifact) == pytest.approx(model_bits_per_weight(bert / "out/nupes"), rel=0.02)
    stored_bytes = sum(len(each.raw_data) for each in model.graph.initializer)
    native = (bert / "out/nupes/model.safetensors").stat().st_size
    assert stored_bytes < 1.3 * native, "tables of levels and positions on top"


def manifest(artifact: Path) -> Any:
    return json.loads((artifact / "manifest.json").read_text())


def test_our_own_loader_evaluation_and_check_take_it(bert: Path) -> None:
    artifact = bert / "out/onnx"
    expected = read_probe(bert / "outputs.json")
    assert expected == probe_folder(bert / "out/dense"), "what torch computed when the graph was written"
    check = verify_artifact(artifact, source=bert / "src", expected=expected)
    assert check.forward
    quantized = [layer for layer in manifest(artifact)["layers"] if layer["bits"]]
    assert check.matrices == check.compared == len(quantized) - 1, "all but the spare one"
    assert check.difference is not None
    assert check.difference < TOLERANCE
    tokens = torch.arange(70) * 11 % VOCABULARY
    measured, same = (
        evaluate(bert / f"out/{name}", tokens, context=16, baseline=bert / "src") for name in ("onnx", "dense")
    )
    # Float32 logits leave some 1e-8 of noise in a KL, which processors differ in; here it is 5e-5 in all.
    assert (measured.kl, measured.perplexity) == pytest.approx((same.kl, same.perplexity), rel=1e-4, abs=5e-8)


def test_other_weights_in_the_file_are_noticed(bert: Path, tmp_path: Path) -> None:
    expected = probe_folder(bert / "src")
    with pytest.raises(LoadCheckError, match="computes something else"):
        verify_artifact(bert / "out/onnx", expected=expected)
    (tmp_path / "model.onnx").write_bytes((bert / "out/onnx/model.onnx").read_bytes()[:-1000])
    (tmp_path / "config.json").write_bytes((bert / "out/onnx/config.json").read_bytes())
    with pytest.raises(LoadCheckError, match="onnxruntime cannot load"):
        nupes_core.load(tmp_path)


def snippets(**places: Path) -> list[str]:
    """Return the Python of the page, with folders in the place of words."""
    page = (REPOSITORY / "docs/how-to/onnx.md").read_text("utf-8")
    found = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [re.sub("|".join(places), lambda match: str(places[match[0]]), each) for each in found]


def test_the_same_job_as_the_page_tells_it_writes_the_same_bytes(tmp_path: Path) -> None:
    src = save("vit", tmp_path / "src", torch.float32)
    for name in ("first", "second"):
        exec(snippets(MODEL=src, OUT=tmp_path / name)[0], {})
    first, second = ((tmp_path / name / "model.onnx").read_bytes() for name in ("first", "second"))
    assert first == second
    (logits,) = session(first).run(None, {"pixel_values": np.zeros((5, 3, 32, 32), np.float32)})
    assert logits.shape == (5, 3)


def test_a_tokenizer_feeds_the_file_as_the_page_tells_it(bert: Path) -> None:
    names: dict[str, Any] = {}
    exec(snippets(OUT=bert / "out/onnx")[1], names)
    assert names["embeddings"].shape == (2, VOCABULARY)
    assert np.isfinite(names["embeddings"]).all()


def test_what_it_can_not_hold_is_said_before_any_work(tmp_path: Path) -> None:
    for family in ("llama", "gpt2", "t5"):
        with pytest.raises(UnsupportedArchitectureError, match="encoders and convolution nets") as caught:
            plan_folder(save(family, tmp_path / family), QUICK, formats=["nupes", "onnx"])
        assert "gguf" in str(caught.value.hint)
    with pytest.raises(UnsupportedArchitectureError, match="decoder of type 'bert'"):
        plan_headers({}, {"model_type": "bert", "is_decoder": True}, QUICK, formats=["onnx"])
    coded = QuantizationConfig(activations=ActivationConfig())
    with pytest.raises(InvalidConfigError, match="activations"):
        plan_headers({}, {"model_type": "bert"}, coded, formats=["onnx"])
    header, _ = build_header([TensorSpec("table.weight", "F32", (1 << 20, 1 << 10))], {})
    config = QuantizationConfig(layers=LayerSelection(exclude=("table",)))
    with pytest.raises(InvalidConfigError, match="2000000000"):
        plan_headers({"model.safetensors": header}, {"model_type": "bert"}, config, formats=["onnx"])


def test_a_plan_counts_the_weights_and_what_exporting_takes(bert: Path) -> None:
    native, graph = (plan_folder(bert / "src", QUICK, formats=[name]) for name in ("nupes", "onnx"))
    assert graph.artifact_bytes == native.artifact_bytes
    assert graph.peak_memory_bytes > native.peak_memory_bytes
