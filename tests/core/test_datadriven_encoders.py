"""Data-driven NUPES on encoders: sequences of different length, padded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nupes_core
from nupes_core.config import ActivationConfig, CalibrationConfig, QuantizationConfig, TrainingConfig, WeightConfig
from nupes_core.datadriven.chain import trace_chain
from nupes_core.datadriven.walk import run_block
from tests.core.tiny import VOCABULARY, build, save

LENGTH = 12
CONFIG = QuantizationConfig(
    WeightConfig(bits=3, group_size=16),
    optimize="data_driven",
    training=TrainingConfig(steps=8, learning_rate=0.01, batch_size=4),
    calibration=CalibrationConfig(samples=20, length=LENGTH),
)
LENGTHS = {
    "all different": [3 + i % 10 for i in range(20)],
    "first batch unpadded": [LENGTH] * 8 + [5] * 12,
    "second batch unpadded": [5] * 8 + [LENGTH] * 12,
    "one sample is short": [LENGTH] * 19 + [4],
}


def samples(lengths: list[int], padding: int = 0) -> nupes_core.Samples:
    tokens = torch.randint(3, VOCABULARY, (len(lengths), LENGTH), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(LENGTH) < torch.tensor(lengths).unsqueeze(1)).long()
    return nupes_core.Samples({"input_ids": torch.where(mask.bool(), tokens, padding), "attention_mask": mask})


@torch.no_grad()
def chained(model: torch.nn.Module, given: nupes_core.Samples) -> torch.Tensor:
    """Return what the blocks make of the samples, run one after the other as while quantizing."""
    names = [f"encoder.layer.{index}" for index in range(2)]
    chain = trace_chain(model, names, given)
    hidden = chain.hidden
    for name, feed in zip(chain.names, chain.feeds, strict=True):
        hidden = run_block(model.get_submodule(name), feed.with_input(hidden))
    return hidden


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", LENGTHS)
def test_blocks_see_each_sample_as_if_it_were_alone(name: str, attention: str) -> None:
    model, given = build("bert"), samples(LENGTHS[name])
    model.config._attn_implementation = attention
    found = chained(model, given)
    for index, length in enumerate(LENGTHS[name]):
        with torch.no_grad():
            alone = model(given.inputs["input_ids"][index : index + 1, :length]).last_hidden_state[0]
        assert torch.allclose(found[index, :length], alone, atol=1e-5)


def test_what_stands_in_the_padding_does_not_matter(tmp_path: Path) -> None:
    src = save("bert", tmp_path / "src", torch.float32)
    found = [_from_folder(src, tmp_path / str(padding), CONFIG, padding) for padding in (0, 5)]
    assert torch.allclose(*found, atol=1e-3)


@pytest.mark.parametrize("activations", [ActivationConfig(4, scaling="static"), ActivationConfig(4, grid="power")])
def test_ranges_of_activations_are_not_fitted_to_padding(activations: ActivationConfig, tmp_path: Path) -> None:
    src = save("bert", tmp_path / "src", torch.float32)
    config = replace(CONFIG, training=replace(CONFIG.training, steps=0), activations=activations)
    found = [_from_folder(src, tmp_path / str(padding), config, padding) for padding in (0, 5)]
    assert torch.allclose(*found, atol=1e-3)


def test_a_model_in_memory_does_not_see_what_stands_in_the_padding() -> None:
    lengths = [LENGTH] * 64 + [4] * 8  # whole samples fill the first batch
    found = []
    for padding in (0, 5):
        model = build("bert")
        nupes_core.quantize_model(model, CONFIG, calibration=samples(lengths, padding))
        found.append(_embedded(model))
    assert torch.allclose(*found, atol=1e-3)


def _from_folder(src: Path, out: Path, config: QuantizationConfig, padding: int) -> torch.Tensor:
    nupes_core.quantize(src, out, config, calibration=samples([LENGTH] * 8 + [4] * 12, padding))
    return _embedded(nupes_core.load(out, dtype=torch.float32))


@torch.no_grad()
def _embedded(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(**samples([LENGTH] * 8).inputs).last_hidden_state
    return found
