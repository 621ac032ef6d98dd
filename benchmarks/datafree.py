"""Data-free NUPES beside RTN, HQQ, NF4 and quanto on real models, at equal true bits per weight.

    make bench-env && NUPES_ASSETS=… .venv-bench/bin/python benchmarks/datafree.py [--models booklm]

Weights only, linear layers of the blocks; every bit of side information is counted.
Perplexity and KL(float ‖ quantized) by `nupes_core.evaluate`. Writes benchmarks/results/datafree.{json,md}.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe, write_results
from measuring import Bench, Row, row_table, subjects
from peers import PEERS, Method
from speed_datafree import speed_table, speeds
from verdicts import Goal, as_dicts, verdict_table, verdicts

from nupes_core import ExponentConfig, WeightConfig
from nupes_core.quantizer.weight import quantize_weight
from nupes_core.storage import resolve_format

GOAL = Goal(ours=("nupes", "default"), peers=("peer",), change=lambda bits: -0.2)

NOTES = """
## Reading the figures

KL is the steadier measure: the standard error of a perplexity increase is about perplexity · √(2 KL / tokens), 0.03 on
booklm at 4 bits, and near-equal settings scatter by 0.1 there (exponents fitted on eight times as many weights gave
+0.324), while the wanted gain over HQQ is 0.07: there the goal for perplexity is met by chance as much as by merit.

*booklm-wikitext* is booklm on another text, WikiText-2, which no setting was chosen by. The model knows books, not this
text (perplexity 566), and noise on its weights helps as often as it hurts: peers come out below the float model. Its KL
confirms the gains; its perplexity ranks nothing, at 2 bits too, where HQQ is ahead by it and 76 % behind by KL.

Tried on these models without a gain that holds on both, and left out:

- importance from the squared norm gains for q, k, v, gate and up, and from weights alone for o and down: −9 … +6 % of
  KL on stories260k, −6 … +4 % on booklm, no sign of its own;
- rescaling rows so that decoded weights keep their projection on the originals: −3 % of KL at 3 and 4 bits on
  stories260k, +19 % at 2 bits;
- 4-bit scales that span 2 instead of 3 octaves: −5 % of KL on booklm, +30 … +60 % on stories260k, where rows of
  different size share a base;
- two exponents instead of four with a finer scale: −9 … −4 % on stories260k, +2 … +6 % on booklm.

Groups of 10 to 14 with words of 5 to 7 bits lower the weight error further (4 and 3 bits up to 8 %, 2 bits up to 16 %),
but do not stay within the bits of the peers on these narrow rows. Seconds are wall time of one thread and include the
search for the exponent, which on small matrices costs more than the coding; the table of speeds is processor time on a
matrix of 2048 x 4096.
"""


def nupes(config: WeightConfig, importance: Callable[[str], torch.Tensor | None] = lambda _: None) -> Any:
    def method(layer: str, w: torch.Tensor) -> tuple[torch.Tensor, int]:
        q = quantize_weight(w, config, importance=importance(layer))
        return q.dequantize(), 8 * q.nbytes

    return method


def equal_bits(bits: int) -> WeightConfig:
    """Spend the half bit that peers pay for float16 scale and zero on small groups with exponents of their own."""
    return WeightConfig(bits=bits, group_size=16, scale_bits=7, exponent=ExponentConfig(scope="group"))


def ablations(bits: int) -> dict[str, WeightConfig]:
    full = equal_bits(bits)
    one = ExponentConfig(scope="layer")
    uniform = ExponentConfig(mode="fixed", value=1.0)
    other = "midrise" if resolve_format(64, 64, full).layout == "signed" else "signed"
    return {
        "one exponent per layer": replace(full, exponent=one),
        "one exponent per layer, 5-bit words": replace(full, exponent=one, scale_bits=5),
        "uniform grid (a = 1)": replace(full, exponent=uniform),
        f"{other} layout": replace(full, layout=other),
        "paper layout, one exponent per layer": replace(full, layout="paper", exponent=one),
        "group 32, 8-bit words": replace(full, group_size=32, scale_bits=8),
        "group 64, 8-bit words, exponent per row": replace(
            full, group_size=64, scale_bits=8, exponent=ExponentConfig(scope="row")
        ),
        "paper layout, group 64, one exponent": WeightConfig(bits=bits, layout="paper"),
        "group 64, uniform grid (a = 1)": WeightConfig(bits=bits, exponent=uniform),
    }


def norm_importance(bench: Bench) -> Callable[[str], torch.Tensor | None]:
    """Squared gain of the norm before a layer: data-free, E[x²] of its inputs if the residual stream is isotropic."""
    before = {"self_attn": "input_layernorm", "mlp": "post_attention_layernorm"}
    parameters = dict(bench.model.named_parameters())

    def importance(layer: str) -> torch.Tensor | None:
        block, part, name = layer.rsplit(".", 2)
        if name in ("o_proj", "down_proj"):
            return None
        return parameters[f"{block}.{before[part]}.weight"].detach().square()

    return importance


def run(bench: Bench, with_ablations: bool) -> Iterator[Row]:
    def peer(method: Method, _layer: str, w: torch.Tensor) -> tuple[torch.Tensor, int]:
        return method(w)

    for bits, methods in PEERS.items():
        for name, method in methods.items():
            yield bench.measure(bits, name, "peer", partial(peer, method))
        yield bench.measure(bits, "NUPES, default (group 64)", "default", nupes(WeightConfig(bits=bits)))
        yield bench.measure(bits, "NUPES, equal bits (group 16)", "nupes", nupes(equal_bits(bits)))
    for bits in (4, 3, 2) if with_ablations else ():
        for name, config in ablations(bits).items():
            yield bench.measure(bits, name, "ablation", nupes(config))
        weighted = nupes(equal_bits(bits), norm_importance(bench))
        yield bench.measure(bits, "importance from norm gains", "ablation", weighted)


def markdown(rows: list[Row], floats: dict[str, float], speed: dict[str, float]) -> str:
    parts = [
        "# Data-free quantization, weights only\n",
        "Peers at group 64. KL is the mean KL(float ‖ quantized) per token in nats; true bits count all side",
        "information. NUPES at equal bits: group 16, 7-bit words (log2 scale, sign, exponent choice).\n",
        "## Against the best peer of each width\n",
        verdict_table(verdicts(rows, GOAL)),
    ]
    for model, perplexity in floats.items():
        mine = [row for row in rows if row.model == model]
        parts += [
            f"\n## {model} (float perplexity {perplexity:.3f})\n",
            row_table([r for r in mine if r.kind != "ablation"]),
        ]
        removed = sorted((r for r in mine if r.kind in ("ablation", "nupes")), key=lambda r: -r.bits)
        if any(r.kind == "ablation" for r in removed):
            parts += ["\nWhat each part is worth (changes against *NUPES, equal bits*):\n", row_table(removed)]
    return "\n".join([*parts, "\n## Speed, one thread\n", speed_table(speed), NOTES])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="stories260k,booklm,booklm-wikitext")
    parser.add_argument("--ablations", default="stories260k", help="models on which parts are switched off")
    arguments = parser.parse_args()
    if "NUPES_ASSETS" not in os.environ:
        parser.error("set NUPES_ASSETS to the folder that holds stories260k and the texts")
    torch.set_num_threads(1)
    rows: list[Row] = []
    floats: dict[str, float] = {}
    for subject in subjects(Path(os.environ["NUPES_ASSETS"])):
        if subject.name in arguments.models.split(","):
            bench = Bench(subject)
            floats[subject.name] = bench.float.perplexity
            rows += run(bench, subject.name in arguments.ablations.split(","))
    speed = speeds()
    found = verdicts(rows, GOAL)
    data = {
        "machine": describe(),
        "float_perplexity": floats,
        "rows": [asdict(row) for row in rows],
        "verdicts": as_dicts(found),
        "million_parameters_per_second": speed,
    }
    write_results("datafree", data, markdown(rows, floats, speed))
    print(verdict_table(found), speed_table(speed), sep="\n\n")


if __name__ == "__main__":
    main()
