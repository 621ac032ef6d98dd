"""What a run on data holds in memory besides the block whose turn it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

from nupes_core.data.samples import Samples
from nupes_core.datadriven.blocksource import BlockSource, open_blocks
from nupes_core.datadriven.chain import trace_chain
from nupes_core.datadriven.feed import Feed
from nupes_core.datadriven.units import repeated_blocks
from nupes_core.modelfolder import open_folder
from nupes_core.sources import Checkpoint
from tests.core.tiny import VOCABULARY, save

TOKENS = torch.randint(VOCABULARY, (20, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[BlockSource, list[str]]]:
    folder = open_folder(save("llama", tmp_path / "src"))
    with Checkpoint(folder) as checkpoint:
        yield open_blocks(folder, checkpoint, lambda model, _: repeated_blocks(model)[0])


def per_sample(feed: Feed) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(feed.tree)
    return [leaf.tensor for leaf in leaves if hasattr(leaf, "tensor")]


def test_hidden_states_are_kept_once_and_blocks_share_one_mask(opened: tuple[BlockSource, list[str]]) -> None:
    source, blocks = opened
    mask = (torch.arange(12) < torch.arange(1, 21).clamp(max=12).unsqueeze(1)).long()
    chain = trace_chain(source.model, blocks, Samples({"input_ids": TOKENS, "attention_mask": mask}))
    assert torch.equal(chain.hidden, source.model.get_input_embeddings()(TOKENS))
    first, second = (per_sample(feed) for feed in chain.feeds)
    assert len(first) == 1
    assert first[0].shape[0] == 20
    assert first[0] is second[0]
    kept = pytree.tree_leaves([feed.tree for feed in chain.feeds])
    assert not any(isinstance(leaf, torch.Tensor) and leaf.shape == chain.hidden.shape for leaf in kept)
    assert not any(leaf.shape == chain.hidden.shape for feed in chain.feeds for leaf in per_sample(feed))


def test_the_head_is_never_read_and_embeddings_go_once_the_first_input_is_known(
    opened: tuple[BlockSource, list[str]],
) -> None:
    source, blocks = opened
    table, head = source.model.get_input_embeddings(), source.model.get_output_embeddings()
    assert (table.weight.device.type, head.weight.device.type) == ("cpu", "meta")
    source.release_rest()
    assert {parameter.device.type for parameter in source.model.parameters()} == {"meta"}
    source.materialize(blocks[1])
    loaded = {name for name, parameter in source.model.named_parameters() if parameter.device.type == "cpu"}
    assert loaded == {f"{blocks[1]}.{name}" for name, _ in source.model.get_submodule(blocks[1]).named_parameters()}


def test_a_table_that_is_the_head_too_is_read(tmp_path: Path) -> None:
    folder = open_folder(save("gpt2", tmp_path / "src"))
    with Checkpoint(folder) as checkpoint:
        source, _ = open_blocks(folder, checkpoint, lambda model, _: repeated_blocks(model)[0])
    assert source.model.get_output_embeddings().weight is source.model.get_input_embeddings().weight
    assert source.model.get_output_embeddings().weight.device.type == "cpu"
