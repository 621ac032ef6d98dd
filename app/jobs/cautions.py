"""What to know before one holds the figures of several jobs against each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nupes_client.schemas.jobs import Job


def cautions(jobs: Sequence[Job]) -> list[str]:
    """Sentences, the gravest first; none where all figures can be compared."""
    measured = [job.result.metrics for job in jobs if job.result and job.result.metrics]
    unmeasured = len(jobs) - len(measured)
    found = {
        "The jobs are of different models: their sizes and figures do not compare.": _differ(
            job.config.model.id for job in jobs
        ),
        "Quality was measured on different texts: perplexities do not compare.": _differ(
            (metrics.text_origin, metrics.text_sha256) for metrics in measured
        ),
        "Quality was measured in different ways: protocol or context differ.": _differ(
            (metrics.protocol, metrics.context) for metrics in measured
        ),
        f"{unmeasured} of {len(jobs)} jobs have no measure of quality, and no dot in the chart of it.": unmeasured > 0,
    }
    return [sentence for sentence, holds in found.items() if holds]


def _differ(values: Iterable[object]) -> bool:
    return len(set(values)) > 1
