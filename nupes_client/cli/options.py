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


class Optimize(StrEnum):
    """What codes are found on."""

    DATA_FREE = "data-free"
    DATA_DRIVEN = "data-driven"


class Device(StrEnum):
    """Classes of workers."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


class Grid(StrEnum):
    """Where the levels of activations lie."""

    UNIFORM = "uniform"
    POWER = "power"


class Scaling(StrEnum):
    """When the scale of activations is found."""

    DYNAMIC = "dynamic"
    STATIC = "static"


class Range(StrEnum):
    """How a fixed scale of activations is found."""

    MSE = "mse"
    PERCENTILE = "percentile"


class Format(StrEnum):
    """What is written."""

    NUPES = "nupes"
    DENSE = "dense"
    COMPRESSED_TENSORS = "compressed-tensors"
    GGUF = "gguf"
    ONNX = "onnx"


GATES = ("max_perplexity_increase_pct", "max_kl", "min_top1_agreement", "max_bytes", "min_coverage_pct")
"""The fields of `nupes_client.schemas.specs.GatesSpec`, which help must not load."""

_WEIGHTS, _LEARNING, _CALIBRATION = "Weights", "Learning on data", "Calibration data"
_ACTIVATIONS, _EVALUATION, _JOB = "Activations", "Evaluation", "Job"
_HUB = "Publishing to a hub"
"""Panels of the help."""

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

Bits = Annotated[int, typer.Option("--bits", min=2, max=8, help="Bits per code.", rich_help_panel=_WEIGHTS)]
GroupSize = Annotated[
    int,
    typer.Option("--group-size", min=-1, help="Weights that share a scale; -1: one per row.", rich_help_panel=_WEIGHTS),
]
ExponentScope = Annotated[
    Scope | None,
    typer.Option(
        "--exponent-scope",
        help="Weights that share a searched exponent.",
        show_default="layer",
        rich_help_panel=_WEIGHTS,
    ),
]
ScaleBits = Annotated[
    int, typer.Option("--scale-bits", min=4, max=12, help="Bits of a group's scale.", rich_help_panel=_WEIGHTS)
]
Exponent = Annotated[
    float | None,
    typer.Option("--exponent", help="A fixed exponent, 0.3 to 1.5, instead of a search.", rich_help_panel=_WEIGHTS),
]
LayoutOption = Annotated[
    Layout, typer.Option("--layout", help="Where the levels of the grid lie.", rich_help_panel=_WEIGHTS)
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="REGEX",
        help="Leave layers that match alone; repeatable, '' excludes nothing.",
        show_default="lm_head",
        rich_help_panel=_WEIGHTS,
    ),
]
Embeddings = Annotated[
    bool, typer.Option("--embeddings", help="Quantize embedding tables too.", rich_help_panel=_WEIGHTS)
]

OptimizeOption = Annotated[
    Optimize,
    typer.Option("--optimize", help="Codes from the weights alone, or learnt on data.", rich_help_panel=_LEARNING),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", min=0, max=10_000, help="Of training, each block.", show_default="64", rich_help_panel=_LEARNING
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--learning-rate", help="Of the codes, in code units.", show_default="0.015", rich_help_panel=_LEARNING
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, max=256, help="Samples in a step.", show_default="4", rich_help_panel=_LEARNING
    ),
]
NoErrorFeedback = Annotated[
    bool, typer.Option("--no-error-feedback", help="Round each weight by itself.", rich_help_panel=_LEARNING)
]
NoLearnCodes = Annotated[
    bool, typer.Option("--no-learn-codes", help="Keep the codes where they start.", rich_help_panel=_LEARNING)
]
NoLearnExponent = Annotated[
    bool, typer.Option("--no-learn-exponent", help="Keep the exponents found by search.", rich_help_panel=_LEARNING)
]
NoLearnScales = Annotated[
    bool, typer.Option("--no-learn-scales", help="Keep the scales found by search.", rich_help_panel=_LEARNING)
]
TweakNorms = Annotated[
    bool, typer.Option("--tweak-norms", help="Afterwards train the norms.", rich_help_panel=_LEARNING)
]

CalibrationFile = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Data to run the model on: text, JSONL, JSON, CSV, Parquet; without any, the model writes its own.",
        exists=True,
        dir_okay=False,
        rich_help_panel=_CALIBRATION,
    ),
]
CalibrationDataset = Annotated[
    str | None,
    typer.Option(
        "--calibration-dataset",
        metavar="REPO[@REV][:FILE]",
        help="The same from a data set of the hub.",
        rich_help_panel=_CALIBRATION,
    ),
]
CalibrationColumn = Annotated[
    str | None,
    typer.Option(
        "--calibration-column",
        help="Field of records that holds the text.",
        show_default="text",
        rich_help_panel=_CALIBRATION,
    ),
]
CalibrationSamples = Annotated[
    int | None,
    typer.Option(
        "--calibration-samples", min=1, max=4096, help="Sequences.", show_default="128", rich_help_panel=_CALIBRATION
    ),
]
CalibrationLength = Annotated[
    int | None,
    typer.Option(
        "--calibration-length",
        min=8,
        max=32_768,
        help="Tokens of a sequence.",
        show_default="256",
        rich_help_panel=_CALIBRATION,
    ),
]

ActivationBits = Annotated[
    int | None,
    typer.Option(
        "--activation-bits",
        min=2,
        max=8,
        help="Bits of the inputs of quantized layers.",
        show_default="they stay float",
        rich_help_panel=_ACTIVATIONS,
    ),
]
ActivationGrid = Annotated[
    Grid | None,
    typer.Option(
        "--activation-grid", help="Where their levels lie.", show_default="uniform", rich_help_panel=_ACTIVATIONS
    ),
]
ActivationScaling = Annotated[
    Scaling | None,
    typer.Option(
        "--activation-scaling",
        help="A scale for each token, or a fixed one, from data.",
        show_default="dynamic",
        rich_help_panel=_ACTIVATIONS,
    ),
]
ActivationRange = Annotated[
    Range | None,
    typer.Option(
        "--activation-range",
        help="How a fixed scale is found.",
        show_default="mse",
        rich_help_panel=_ACTIVATIONS,
    ),
]
NoSmooth = Annotated[
    bool,
    typer.Option(
        "--no-smooth", help="Leave outlier channels where they are, also with data.", rich_help_panel=_ACTIVATIONS
    ),
]

EvalText = Annotated[
    Path | None,
    typer.Option(
        "--eval-text",
        metavar="FILE",
        help="A UTF-8 text to measure on; without one, the model writes its own.",
        exists=True,
        dir_okay=False,
        rich_help_panel=_EVALUATION,
    ),
]
EvalContext = Annotated[
    int,
    typer.Option("--eval-context", min=8, help="Tokens per window of the evaluation.", rich_help_panel=_EVALUATION),
]
EvalTokens = Annotated[
    int,
    typer.Option("--eval-tokens", min=64, help="Tokens the evaluation looks at, at most.", rich_help_panel=_EVALUATION),
]
NoEval = Annotated[bool, typer.Option("--no-eval", help="Measure nothing.", rich_help_panel=_EVALUATION)]
Gates = Annotated[
    list[str] | None,
    typer.Option(
        "--gate",
        metavar="NAME=LIMIT",
        help="A limit to keep, one of those above, for the first --format; KL in nats, agreement 0 to 1; repeatable.",
        rich_help_panel=_EVALUATION,
    ),
]

Formats = Annotated[
    list[Format] | None,
    typer.Option(
        "--format", help="What to write; repeatable; gates judge the first.", show_default="nupes", rich_help_panel=_JOB
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE", help="A label of the job; repeatable.", rich_help_panel=_JOB),
]
Name = Annotated[str | None, typer.Option("--name", help="A name of the job, for people.", rich_help_panel=_JOB)]
Priority = Annotated[
    int, typer.Option("--priority", min=-10, max=10, help="Higher runs earlier.", rich_help_panel=_JOB)
]
DeviceOption = Annotated[
    Device | None, typer.Option("--device", help="Class of the worker; default: auto.", rich_help_panel=_JOB)
]
JobTimeout = Annotated[
    int,
    typer.Option("--job-timeout", min=1, help="Running time the job may take, in seconds.", rich_help_panel=_JOB),
]
QueueTimeout = Annotated[
    int | None,
    typer.Option(
        "--queue-timeout",
        min=1,
        help="Seconds the job may wait for its first worker.",
        show_default="604800",
        rich_help_panel=_JOB,
    ),
]
NoCache = Annotated[
    bool,
    typer.Option("--no-cache", help="Compute it also where an equal job has the result.", rich_help_panel=_JOB),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.", rich_help_panel=_JOB)]

Push = Annotated[
    str | None,
    typer.Option(
        "--push",
        metavar="NAMESPACE/NAME",
        help="Push the result, with a model card, into this repository of the hub.",
        rich_help_panel=_HUB,
    ),
]
PushSecret = Annotated[
    str | None,
    typer.Option(
        "--push-secret",
        metavar="NAME",
        help="The stored token that may write there: nupes secrets set NAME.",
        rich_help_panel=_HUB,
    ),
]
PushPublic = Annotated[
    bool, typer.Option("--push-public", help="Let everybody read the repository.", rich_help_panel=_HUB)
]
PushRevision = Annotated[
    str | None,
    typer.Option("--push-revision", metavar="BRANCH", help="The branch.", show_default="main", rich_help_panel=_HUB),
]
PushFormats = Annotated[
    list[Format] | None,
    typer.Option(
        "--push-format",
        help="Only these of what is written; repeatable, the first lies at the root.",
        show_default="all",
        rich_help_panel=_HUB,
    ),
]

LabelFilter = Annotated[
    list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Only with this label; repeatable.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until the job has ended; the exit code says how.")]
WaitTimeout = Annotated[
    float | None, typer.Option("--timeout", min=0, help="Stop waiting after this many seconds (exit code 5).")
]
Download = Annotated[
    Path | None,
    typer.Option("--download", metavar="DIR", help="Put the files into DIR/FORMAT/ (implies --wait).", file_okay=False),
]
JUnit = Annotated[
    Path | None,
    typer.Option(
        "--junit", metavar="FILE", help="Write a JUnit report, a case for each gate (implies --wait).", dir_okay=False
    ),
]
Fetch = Annotated[
    Path | None, typer.Option("--download", metavar="DIR", help="Put the files into DIR/FORMAT/.", file_okay=False)
]
