"""NUPES against the best peer of each model and width, and whether that is what was wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from measuring import Row, markdown_table

GOAL_WORDS = {True: "met", False: "MISSED", None: "by KL only"}


@dataclass(frozen=True)
class Goal:
    """What is compared and what is wanted.

    Attributes:
        ours: kinds of rows that may stand for NUPES, the best by KL does.
        peers: kinds of rows it is compared with.
        change: wanted change of KL and of perplexity increase at a width, such as -0.25.
        slack: bits per weight that NUPES may take beyond the peer.
    """

    ours: tuple[str, ...]
    peers: tuple[str, ...]
    change: Callable[[int], float]
    slack: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """The best NUPES row beside the best peers, KL and perplexity each with its own best."""

    model: str
    bits: int
    method: str
    true_bits: float
    peer_bits: float
    best_by_kl: str
    kl_change: float
    best_by_perplexity: str
    increase_change: float | None
    wanted: float
    goal_met: bool | None


def verdicts(rows: list[Row], goal: Goal) -> list[Verdict]:
    """Compare in each model and width that has rows of both sides; a goal is missed by more bits than allowed too."""
    cases = dict.fromkeys((row.model, row.bits) for row in rows)
    found = (_verdict([row for row in rows if (row.model, row.bits) == case], goal) for case in cases)
    return [verdict for verdict in found if verdict is not None]


def as_dicts(found: list[Verdict]) -> list[dict[str, Any]]:
    """Return verdicts as JSON-ready dicts."""
    return [asdict(verdict) for verdict in found]


def _verdict(rows: list[Row], goal: Goal) -> Verdict | None:
    peers = [row for row in rows if row.kind in goal.peers]
    candidates = [row for row in rows if row.kind in goal.ours]
    if not peers or not candidates:
        return None
    by_kl, by_increase = min(peers, key=lambda row: row.kl), min(peers, key=lambda row: row.increase)
    allowed = min(by_kl.true_bits, by_increase.true_bits)
    fitting = [row for row in candidates if row.true_bits <= allowed + goal.slack]
    ours = min(fitting, key=lambda row: row.kl) if fitting else min(candidates, key=lambda row: row.true_bits)
    kl_change = ours.kl / by_kl.kl - 1
    # a peer below the float model was lucky: no ratio says anything then
    increase_change = ours.increase / by_increase.increase - 1 if by_increase.increase > 0 else None
    wanted = goal.change(ours.bits)
    return Verdict(
        model=ours.model,
        bits=ours.bits,
        method=ours.method,
        true_bits=ours.true_bits,
        peer_bits=allowed,
        best_by_kl=by_kl.method,
        kl_change=kl_change,
        best_by_perplexity=by_increase.method,
        increase_change=increase_change,
        wanted=wanted,
        goal_met=None if increase_change is None else bool(fitting) and max(kl_change, increase_change) <= wanted,
    )


def _percent(change: float | None) -> str:
    return "below float" if change is None else f"{change:+.0%}"


def verdict_table(found: list[Verdict]) -> str:
    """Lay out one line for each verdict, in Markdown."""
    names = ("model", "bits", "ours", "true bits", "peer's", "KL against", "change", "increase against", "change")
    return markdown_table(
        (*names, "wanted", "goal"),
        [
            (
                v.model,
                str(v.bits),
                v.method,
                f"{v.true_bits:.3f}",
                f"{v.peer_bits:.3f}",
                v.best_by_kl,
                _percent(v.kl_change),
                v.best_by_perplexity,
                _percent(v.increase_change),
                _percent(v.wanted),
                GOAL_WORDS[v.goal_met],
            )
            for v in found
        ],
    )
