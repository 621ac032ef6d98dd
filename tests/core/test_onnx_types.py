"""Every type of model that the format `onnx` takes, against transformers: any batch, length, padding and image size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

import nupes_core
from nupes_core import quantize
from nupes_core.check import verify_artifact
from nupes_core.formats.onnx import MODEL_TYPES
from tests.core.tiny import QUICK, tiny_resnet

_TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 70,
    "pad_token_id": 1,
}
_IMAGES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 3,
}
_STAGES: dict[str, Any] = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "num_labels": 3}
_DISENTANGLED = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "share_att_key": True,
}
_DISTIL = {"vocab_size": 96, "dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48, "max_position_embeddings": 70}
_TOKENS = {"eos_token_id": 2, "bos_token_id": 3, "cls_token_id": 3, "sep_token_id": 2}
_REGNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "groups_width": 8}


def _made(name: str, **sizes: Any) -> Callable[[], Any]:
    """Return what builds a model of a class of transformers."""

    def build() -> Any:
        model_class = getattr(transformers, name)
        return model_class(model_class.config_class(**sizes))

    return build


BUILDERS: dict[str, Callable[[], Any]] = {
    "albert": _made("AlbertModel", embedding_size=16, **_TEXT),
    "bert": _made("BertForSequenceClassification", **_TEXT),
    "beit": _made("BeitForImageClassification", **_IMAGES),
    "camembert": _made("CamembertModel", **_TEXT),
    "convnext": _made("ConvNextForImageClassification", **_STAGES),
    "convnextv2": _made("ConvNextV2ForImageClassification", **_STAGES),
    "deberta-v2": _made("DebertaV2Model", **_DISENTANGLED, **_TEXT),
    "deit": _made("DeiTForImageClassification", **_IMAGES),
    "dinov2": _made("Dinov2ForImageClassification", **{k: v for k, v in _IMAGES.items() if k != "intermediate_size"}),
    "distilbert": _made("DistilBertModel", **_DISTIL),
    "electra": _made("ElectraModel", embedding_size=32, **_TEXT),
    "modernbert": _made("ModernBertModel", **_TOKENS, **{**_TEXT, "max_position_embeddings": 128}),
    "mpnet": _made("MPNetForMaskedLM", **_TEXT),
    "regnet": _made("RegNetForImageClassification", num_labels=3, **_REGNET),
    "resnet": tiny_resnet,
    "roberta": _made("RobertaForTokenClassification", type_vocab_size=1, **_TEXT),
    "vit": _made("ViTModel", **{key: value for key, value in _IMAGES.items() if key != "num_labels"}),
    "xlm-roberta": _made("XLMRobertaModel", type_vocab_size=1, **_TEXT),
}


def inputs(model: Any, session: Any, batch: int, length: int, side: int) -> dict[str, torch.Tensor]:
    """Return what the graph takes; the last record is padded."""
    names = [each.name for each in session.get_inputs()]
    if names == ["pixel_values"]:
        side = getattr(model.config, "image_size", None) or side
        return {"pixel_values": torch.linspace(-2, 2, batch * 3 * side * side).sin().view(batch, 3, side, side)}
    tokens = 4 + torch.arange(batch * length).view(batch, length) * 7 % 90
    mask = torch.ones_like(tokens)
    mask[-1, length // 2 + 1 :] = 0
    made = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": (tokens > 40).long()}
    return {name: made[name] for name in names}


def test_every_type_is_tried() -> None:
    assert sorted(BUILDERS) == sorted(MODEL_TYPES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BUILDERS)
def test_the_graph_computes_what_transformers_does(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    built = BUILDERS[kind]().eval()
    assert built.config.model_type == kind
    built.save_pretrained(tmp_path / "src")
    report = quantize(tmp_path / "src", tmp_path / "out", QUICK, formats=["onnx", "dense"])
    assert verify_artifact(tmp_path / "out/onnx", source=tmp_path / "src").matrices >= 2
    assert report.coverage_pct > 20
    model = nupes_core.load(tmp_path / "out/dense")
    session = onnxruntime.InferenceSession(str(tmp_path / "out/onnx/model.onnx"), providers=["CPUExecutionProvider"])
    for batch, length, side in ((1, 1, 48), (2, 12, 64), (3, 60, 96)):
        feed = inputs(model, session, batch, length, side)
        with torch.no_grad():
            expected = [each for each in model(**feed).values() if isinstance(each, torch.Tensor)]
        found = session.run(None, {name: value.numpy() for name, value in feed.items()})
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.shape == theirs.shape
            scale = max(float(theirs.abs().max()), 1e-6)
            assert np.abs(mine - theirs.numpy()).max() < 1e-4 * scale, (batch, length, side)
