"""Options and arguments that several commands share: one name, one help text."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Scope(StrEnum):
    """How many weights share an exponent."""

    GLOBAL = "global"
    LAYER = "layer"
    ROW = "row"
    GROUP = "group"


class Layout(StrEnum):
    """Where the levels of the grid lie."""

    AUTO = "auto"
    SIGNED = "signed"
    MIDRISE = "midrise"
    PAPER = "paper"


class Format(StrEnum):
    """What is written."""

    NUPES = "nupes"
    DENSE = "dense"


GATES = ("max_perplexity_increase_pct", "max_kl", "min_top1_agreement", "max_bytes", "min_coverage_pct")
"""The fields of `nupes_client.schemas.jobs.GatesSpec`, which help must not load."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job id (job_…).", show_default=False)]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder on this machine, a registered model (mdl_…), or a hub id (org/name, org/name@revision).",
        show_default=False,
    ),
]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at most.")]

Bits = Annotated[int, typer.Option("--bits", min=2, max=8, help="Bits per code.")]
GroupSize = Annotated[int, typer.Option("--group-size", min=-1, help="Weights that share a scale; -1: one per row.")]
ExponentScope = Annotated[Scope, typer.Option("--exponent-scope", help="Weights that share a searched exponent.")]
ScaleBits = Annotated[int, typer.Option("--scale-bits", min=4, max=12, help="Bits of a group's scale.")]
Exponent = Annotated[
    float | None, typer.Option("--exponent", help="A fixed exponent, 0.3 to 1.5, instead of a search.")
]
LayoutOption = Annotated[Layout, typer.Option("--layout", help="Where the levels of the grid lie.")]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="REGEX",
        help="Leave layers that match alone; repeatable, '' excludes nothing.",
        show_default="lm_head",
    ),
]
Embeddings = Annotated[bool, typer.Option("--embeddings", help="Quantize embedding tables too.")]
Formats = Annotated[
    list[Format] | None, typer.Option("--format", help="What to write; repeatable.", show_default="nupes")
]
EvalText = Annotated[
    Path | None,
    typer.Option(
        "--eval-text",
        metavar="FILE",
        help="A UTF-8 text to measure on; without one, the model writes its own.",
        exists=True,
        dir_okay=False,
    ),
]
EvalContext = Annotated[int, typer.Option("--eval-context", min=8, help="Tokens per window of the evaluation.")]
EvalTokens = Annotated[int, typer.Option("--eval-tokens", min=64, help="Tokens the evaluation looks at, at most.")]
NoEval = Annotated[bool, typer.Option("--no-eval", help="Measure nothing.")]
Gates = Annotated[
    list[str] | None,
    typer.Option("--gate", metavar="NAME=LIMIT", help="A limit to keep, one of the gates above; repeatable."),
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="A label of the job; repeatable.")
]
Name = Annotated[str | None, typer.Option("--name", help="A name of the job, for people.")]
Priority = Annotated[int, typer.Option("--priority", min=-10, max=10, help="Higher runs earlier.")]
JobTimeout = Annotated[int, typer.Option("--job-timeout", min=1, help="Running time the job may take, in seconds.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]

Wait = Annotated[bool, typer.Option("--wait", help="Stay until the job has ended; the exit code says how.")]
WaitTimeout = Annotated[
    float | None, typer.Option("--timeout", min=0, help="Stop waiting after this many seconds (exit code 5).")
]
Download = Annotated[
    Path | None,
    typer.Option("--download", metavar="DIR", help="Put the files into DIR/FORMAT/ (implies --wait).", file_okay=False),
]
Fetch = Annotated[
    Path | None, typer.Option("--download", metavar="DIR", help="Put the files into DIR/FORMAT/.", file_okay=False)
]
