"""What came out of a job, as a table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nupes_client.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nupes_client.schemas.jobs import GateResult, Job, JobResult

COLUMNS = ("", "before", "after", "change")
Row = tuple[str, str, str, str]


def show(job: Job, folder: Path | None) -> None:
    """Print result, gates, verdict and the place of the files; append the same to a CI step summary if there is one."""
    rows = result_rows(job.result, job.config.formats[0]) if job.result else []
    if rows:
        output.print_table(COLUMNS, rows, numbers=COLUMNS[1:])
    lines = _lines(job, folder)
    for line in lines:
        output.print_line(line)
    if job.error is not None:
        output.complain(f"{job.error.code.value}: {job.error.message}", job.error.hint)
    _append_step_summary(job, rows, lines)


def result_rows(result: JobResult, format_: str = "nupes") -> list[Row]:
    """Figures before and after; sizes are those of the format that was asked for first."""
    kept = result.bytes_after / result.bytes_before if result.bytes_before else 1.0
    before_bits = 8 * result.bytes_before / result.params if result.params else None
    rows: list[Row] = [
        (
            "size" if format_ == "nupes" else f"size ({format_})",
            output.size(result.bytes_before),
            output.size(result.bytes_after),
            f"{kept - 1:+.1%}",
        ),
        ("bits per quantized weight", output.number(before_bits, 3), output.number(result.bits_per_weight), ""),
        ("parameters quantized", "", f"{result.coverage_pct:.1f}%", ""),
    ]
    metrics = result.metrics
    if metrics is None:
        return rows
    before, after = metrics.baseline.perplexity, metrics.quantized.perplexity
    if before and after:
        label = "perplexity" if metrics.text_origin == "user" else "perplexity (sampled text)"
        rows.append((label, output.number(before), output.number(after), f"{after / before - 1:+.2%}"))
    if metrics.quantized.kl is not None:
        rows.append(("KL per token (nats)", "0", output.number(metrics.quantized.kl), ""))
    if metrics.quantized.top1_agreement is not None:
        rows.append(("same top token", "100.0%", f"{metrics.quantized.top1_agreement:.1%}", ""))
    return rows


def _lines(job: Job, folder: Path | None) -> list[str]:
    lines = [_gate(gate) for gate in job.gates]
    verdict = f", gates {job.verdict}" if job.verdict else ""
    cached = ", answered from cache" if job.cache_hit else ""
    lines.append(f"job {job.id} {job.status.value}{verdict}{cached}")
    if folder is not None:
        lines.append(f"files in {folder}")
    elif job.result is not None:
        lines.append(f"files: nupes artifacts {job.id} --download DIR")
    return lines


def _gate(gate: GateResult) -> str:
    outcome = "ok" if gate.passed else "FAILED"
    return f"gate {gate.gate}: {output.number(gate.measured)} (limit {output.number(gate.limit)}) {outcome}"


def _append_step_summary(job: Job, rows: Sequence[Row], lines: Sequence[str]) -> None:
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    table = ["| | before | after | change |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    error = [f"- error {job.error.code.value}: {job.error.message}"] if job.error else []
    text = "\n".join(["### NUPES", "", *(table if rows else []), "", *(f"- {line}" for line in lines), *error, "", ""])
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(text)
