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
FORMAT_COLUMNS = ("format", "size", "bits per weight", "quantized", "perplexity", "KL")
Row = tuple[str, str, str, str]


def show(job: Job, folder: Path | None) -> None:
    """Print result, gates, verdict and the place of the files."""
    for columns, rows in _tables(job):
        output.print_table(columns, rows, numbers=columns[1:])
    for line in _lines(job, folder):
        output.print_line(line)
    if job.error is not None:
        output.complain(f"{job.error.code.value}: {job.error.message}", job.error.hint)


def append_step_summary(job: Job, folder: Path | None) -> None:
    """Append the same to the summary of a CI step, where there is one."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    tables = [line for columns, rows in _tables(job) for line in _markdown(columns, rows)]
    error = [f"- error {job.error.code.value}: {job.error.message}"] if job.error else []
    lines = [f"- {line}" for line in _lines(job, folder)]
    text = "\n".join(["### NUPES", "", *tables, *lines, *error, "", ""])
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(text)


def _tables(job: Job) -> list[tuple[Sequence[str], Sequence[Sequence[str]]]]:
    if job.result is None:
        return []
    tables: list[tuple[Sequence[str], Sequence[Sequence[str]]]] = [
        (COLUMNS, result_rows(job.result, job.config.formats[0])),
        (FORMAT_COLUMNS, format_rows(job.result)),
    ]
    return [(columns, rows) for columns, rows in tables if rows]


def format_rows(result: JobResult) -> list[tuple[str, ...]]:
    """Size and quality of each format, where there are several."""
    if len(result.formats) < 2:
        return []
    rows: list[tuple[str, ...]] = []
    for each in result.formats:
        measured = each.metrics.quantized if each.metrics else None
        figures = (measured.perplexity, measured.kl) if measured else (None, None)
        sizes = (output.size(each.bytes_after), output.number(each.bits_per_weight), f"{each.coverage_pct:.1f}%")
        rows.append((each.format, *sizes, *map(output.number, figures)))
    return rows


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
        rows.append(
            (metrics.perplexity_name, output.number(before), output.number(after), f"{after / before - 1:+.2%}")
        )
    if metrics.quantized.kl is not None:
        rows.append(("KL per token (nats)", "0", output.number(metrics.quantized.kl), ""))
    if metrics.quantized.top1_agreement is not None:
        rows.append(("same top token", "100.0%", f"{metrics.quantized.top1_agreement:.1%}", ""))
    return rows


def _lines(job: Job, folder: Path | None) -> list[str]:
    lines = [_gate(gate, job.config.formats[0]) for gate in job.gates]
    verdict = f", gates {job.verdict}" if job.verdict else ""
    cached = ", answered from cache" if job.cache_hit else ""
    lines.append(f"job {job.id} {job.status.value}{verdict}{cached}")
    if job.pushed is not None:
        lines.append(f"on the hub: {job.pushed.commit_url}")
    if folder is not None:
        lines.append(f"files in {folder}")
    elif job.result is not None:
        lines.append(f"files: nupes artifacts {job.id} --download DIR")
    return lines


def _gate(gate: GateResult, format_: str) -> str:
    outcome = "ok" if gate.passed else "FAILED"
    return f"gate {gate.gate} ({format_}): {output.number(gate.measured)} (limit {output.number(gate.limit)}) {outcome}"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; none without rows."""
    if not rows:
        return []
    return [f"| {' | '.join(each)} |" for each in (columns, ["---"] * len(columns), *rows)] + [""]
