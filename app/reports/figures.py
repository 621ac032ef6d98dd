"""What reports show of a job: figures before and after, and one test case for each gate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nupes_client.schemas.jobs import GateResult, Job, JobResult, JobStatus, Layer, Quality

WORST = 20
"""Layers that a short report names: those with the lowest signal-to-noise ratio."""

Figure = tuple[str, str, str]

_QUALITIES = (("perplexity", "perplexity"), ("KL per token, nats", "kl"), ("same top token", "top1_agreement"))
"""What a figure of quality is called, and its field in `Quality`."""


@dataclass(frozen=True)
class Case:
    """A test case: what it is called, what was found, and what was wrong if something was."""

    name: str
    found: str
    failure: str | None = None
    error: str | None = None


def number(value: float | None, digits: int = 6) -> str:
    """A figure with so many significant digits; a dash for none."""
    if value is None:
        return "–"
    is_count = isinstance(value, int) or (value.is_integer() and abs(value) >= 10**digits)
    return f"{int(value):,}" if is_count else f"{value:.{digits}g}"


def figures(result: JobResult | None) -> list[Figure]:
    """Rows of (what, before, after)."""
    return [] if result is None else [*_sizes(result), *_quality(result)]


def _sizes(result: JobResult) -> Iterator[Figure]:
    yield "bytes", number(result.bytes_before), number(result.bytes_after)
    yield "bits per quantized weight", "", number(result.bits_per_weight)
    yield (
        "parameters quantized",
        number(result.params),
        f"{number(result.quantized_params)} ({result.coverage_pct:.2f}%)",
    )


def _quality(result: JobResult) -> Iterator[Figure]:
    if result.metrics is None:
        return
    before, after = result.metrics.baseline, result.metrics.quantized
    for label, name in _QUALITIES:
        if getattr(after, name) is not None:
            shown = result.metrics.perplexity_name if name == "perplexity" else label
            yield shown, number(getattr(before, name)), number(getattr(after, name))


def format_table(result: JobResult | None) -> list[list[str]]:
    """Size and quality of each format: the heads, then a row for each. Empty where `figures` says it all."""
    if result is None or len(result.formats) <= 1:
        return []
    measured = [each.metrics.quantized if each.metrics else None for each in result.formats]
    qualities = [(label, name) for label, name in _QUALITIES if any(_has(each, name) for each in measured)]
    heads = ["format", "bytes", "bits per quantized weight", "parameters quantized", *(label for label, _ in qualities)]
    rows = [
        [
            each.format,
            number(each.bytes_after),
            number(each.bits_per_weight),
            f"{each.coverage_pct:.2f}%",
            *(number(getattr(quality, name, None)) for _, name in qualities),
        ]
        for each, quality in zip(result.formats, measured, strict=True)
    ]
    return [heads, *rows]


def properties(result: JobResult | None) -> list[tuple[str, float]]:
    """Figures for machines, by the API's names of them; those of a format behind its name."""
    return [] if result is None else list(_properties(result))


def _properties(result: JobResult) -> Iterator[tuple[str, float]]:
    for name in ("bytes_before", "params", "quantized_params"):
        yield name, getattr(result, name)
    pair = next((each.metrics for each in result.formats if each.metrics), result.metrics)
    if pair is not None:
        yield from _measured("baseline", pair.baseline)
    for each in result.formats:
        for name in ("bytes_after", "bits_per_weight", "coverage_pct"):
            yield f"{each.format}.{name}", getattr(each, name)
        if each.metrics is not None:
            yield from _measured(each.format, each.metrics.quantized)


def _measured(prefix: str, quality: Quality) -> Iterator[tuple[str, float]]:
    for _, name in _QUALITIES:
        if _has(quality, name):
            yield f"{prefix}.{name}", getattr(quality, name)


def _has(quality: Quality | None, name: str) -> bool:
    return getattr(quality, name, None) is not None


def cases(job: Job) -> list[Case]:
    """One test case for each gate; and one for the job itself where it did not succeed, or has no gates."""
    error = _why(job)
    judged = [_gate_case(gate, job) for gate in job.gates]
    if error is None:
        return judged or [Case("job", job.status)]
    limits = job.config.gates.model_dump(exclude_none=True) if job.config.gates else {}
    # A job that failed after its gates were judged had only its push left.
    unjudged = [] if judged else [Case(_case_name(gate, job), "", error="not measured") for gate in limits]
    return [Case("job", job.status, error=error), *judged, *unjudged]


def worst(layers: Sequence[Layer]) -> list[Layer]:
    """The layers that lost most, the worst first."""
    measured = [layer for layer in layers if layer.sqnr_db is not None]
    return sorted(measured, key=lambda layer: layer.sqnr_db or 0.0)[:WORST]


def _why(job: Job) -> str | None:
    if job.status is JobStatus.SUCCEEDED:
        return None
    return f"{job.error.code}: {job.error.message}" if job.error else f"the job was {job.status}"


def _gate_case(gate: GateResult, job: Job) -> Case:
    found = f"measured {number(gate.measured)}, limit {number(gate.limit)}"
    return Case(_case_name(gate.gate, job), found, failure=None if gate.passed else found)


def _case_name(gate: str, job: Job) -> str:
    """Gates judge the format that was asked for first, which a pipeline that asks for several should see."""
    return f"{gate} ({job.config.formats[0]})"
