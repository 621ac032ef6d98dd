"""Gates: limits a result must keep. Each gate names what it measures and on which side of the limit it passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nupes_client.schemas.jobs import GateResult, JobResult
from nupes_client.schemas.specs import GatesSpec

Verdict = Literal["passed", "failed"]


@dataclass(frozen=True)
class _Gate:
    measure: Callable[[JobResult], float | None]
    is_minimum: bool = False


def _perplexity_increase_pct(result: JobResult) -> float | None:
    if result.metrics is None:
        return None
    before, after = result.metrics.baseline.perplexity, result.metrics.quantized.perplexity
    return 100 * (after / before - 1) if before and after is not None else None


def _kl(result: JobResult) -> float | None:
    return result.metrics.quantized.kl if result.metrics else None


def _top1_agreement(result: JobResult) -> float | None:
    return result.metrics.quantized.top1_agreement if result.metrics else None


_GATES: dict[str, _Gate] = {
    "max_perplexity_increase_pct": _Gate(_perplexity_increase_pct),
    "max_kl": _Gate(_kl),
    "min_top1_agreement": _Gate(_top1_agreement, is_minimum=True),
    "max_bytes": _Gate(lambda result: result.bytes_after),
    "min_coverage_pct": _Gate(lambda result: result.coverage_pct, is_minimum=True),
}


def evaluate_gates(gates: GatesSpec | None, result: JobResult) -> tuple[list[GateResult], Verdict | None]:
    """Hold the result against the gates that are set.

    Returns:
        One entry per gate set, in the order of `GatesSpec`; and the verdict: None when no gate is set, `passed` when
        all passed. A figure that was not measured, or is not finite, fails its gate.
    """
    limits = gates.model_dump(exclude_none=True) if gates else {}
    results = [_evaluate(name, float(limit), result) for name, limit in limits.items()]
    if not results:
        return [], None
    return results, "passed" if all(gate.passed for gate in results) else "failed"


def _evaluate(name: str, limit: float, result: JobResult) -> GateResult:
    gate = _GATES[name]
    measured = gate.measure(result)
    if measured is None or not math.isfinite(measured):
        return GateResult(gate=name, limit=limit, measured=None, passed=False)
    passed = measured >= limit if gate.is_minimum else measured <= limit
    return GateResult(gate=name, limit=limit, measured=measured, passed=passed)
