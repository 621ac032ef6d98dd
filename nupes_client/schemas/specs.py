"""What a user asks of a job: the wish, field by field, and what does not go together in one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, field_validator, model_validator

from nupes_client.schemas.base import Label, LabelValue, Request
from nupes_client.schemas.models import RepoId
from nupes_client.schemas.secrets import SecretName


class ModelRef(Request):
    """The model to quantize."""

    id: str


class ExponentSpec(Request):
    """The power exponent of the grid: searched on the weights, or fixed."""

    mode: Literal["search", "fixed"] = "search"
    scope: Literal["global", "layer", "row", "group"] = Field(
        "layer", description="How many weights share an exponent."
    )
    value: float | None = Field(None, ge=0.3, le=1.5, description="The exponent when `mode` is `fixed`.")

    @model_validator(mode="after")
    def _value_belongs_to_fixed(self) -> Self:
        if (self.mode == "fixed") != (self.value is not None):
            raise ValueError("give `value` with mode `fixed`, and only then")
        return self


def _not_zero(group_size: int) -> int:
    if group_size == 0:
        raise ValueError("group_size must be a positive integer, or -1 for one group per row")
    return group_size


GroupSize = Annotated[int, Field(ge=-1, le=1 << 20), AfterValidator(_not_zero)]
SCALE_BITS_WITH_CHOICE = 6
"""Two of them choose among the four exponents of the row."""


class WeightSpec(Request):
    """How weights are coded."""

    bits: int = Field(4, ge=2, le=8, description="Bits per code.")
    group_size: GroupSize = Field(64, description="Weights that share a scale; -1: one group per row.")
    exponent: ExponentSpec = ExponentSpec()
    layout: Literal["auto", "signed", "midrise", "paper"] = "auto"
    scale_bits: int = Field(8, ge=4, le=12, description="Bits of a group's scale; 6 at least with exponents per group.")

    @model_validator(mode="after")
    def _exponent_choice_fits(self) -> Self:
        if self.exponent.scope == "group" and self.scale_bits < SCALE_BITS_WITH_CHOICE:
            raise ValueError(f"scale_bits must be {SCALE_BITS_WITH_CHOICE} or more with exponents per group")
        return self


class OptimizeSpec(Request):
    """How the codes are found.

    `data_free` looks at the weights alone. `data_driven` runs calibration data through the model, block by block, and
    learns the codes; its stages can be switched off one by one.
    """

    mode: Literal["data_free", "data_driven"] = "data_free"
    error_feedback: bool = Field(True, description="Column-wise error feedback on the power grid.")
    learn_codes: bool = Field(True, description="Learn the codes over the entire quantized space.")
    learn_exponent: bool = Field(True, description="Learn the exponent in the same training.")
    learn_scales: bool = Field(True, description="Learn the scales in the same training.")
    tweak_norms: bool = Field(False, description="Afterwards train the parameters of norms.")
    steps: int = Field(64, ge=0, le=10_000, description="Optimizer steps for each block.")
    learning_rate: float = Field(1.5e-2, gt=0, le=1, description="Of the codes, in code units.")
    batch_size: int = Field(4, ge=1, le=256, description="Calibration samples in a step.")

    @model_validator(mode="after")
    def _stages_belong_to_data_driven(self) -> Self:
        if self.mode == "data_free":
            for name, field in type(self).model_fields.items():
                if name != "mode" and getattr(self, name) != field.default:
                    raise ValueError(f"`{name}` says how codes are learnt: give it with mode `data_driven` only")
        return self


class ActivationSpec(Request):
    """How the inputs of quantized layers are coded."""

    bits: int = Field(8, ge=2, le=8)
    grid: Literal["uniform", "power"] = "uniform"
    scaling: Literal["dynamic", "static"] = Field(
        "dynamic", description="`dynamic`: a scale for each token while the model runs; `static`: from calibration."
    )
    range: Literal["mse", "percentile"] = Field("mse", description="How a static scale is found.")
    smooth: bool = Field(True, description="Move outlier channels into the weights where that pays; needs data.")

    @model_validator(mode="after")
    def _range_belongs_to_static(self) -> Self:
        if self.scaling == "dynamic" and self.range != "mse":
            raise ValueError("`range` says how a fixed scale is found: give it with scaling `static` only")
        return self


def _check_regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


class LayerOverrideSpec(Request):
    """Other settings for layers whose name the regular expression `match` hits."""

    match: str = Field(min_length=1, max_length=500)
    bits: int | None = Field(None, ge=2, le=8)
    group_size: GroupSize | None = None
    skip: bool = False

    _match_is_regex = field_validator("match")(_check_regex)


class LayersSpec(Request):
    """Which layers are quantized."""

    exclude: list[Annotated[str, StringConstraints(min_length=1, max_length=500)]] = Field(["lm_head"], max_length=200)
    overrides: list[LayerOverrideSpec] = Field([], max_length=200)
    embeddings: bool = Field(False, description="Quantize embedding tables too.")

    @field_validator("exclude")
    @classmethod
    def _exclude_are_regexes(cls, value: list[str]) -> list[str]:
        return [_check_regex(pattern) for pattern in value]


class TextRef(Request):
    """A text: a complete upload, UTF-8."""

    upload_id: str


class DatasetRef(Request):
    """A file of a hub data set: text, JSONL, JSON, CSV or Parquet."""

    repo_id: RepoId
    revision: str = Field(
        "main", min_length=1, max_length=200, description="Replaced by its commit when the job is made."
    )
    file: str | None = Field(None, max_length=500, description="Path in the repository; None: the only fitting one.")
    column: str = Field("text", min_length=1, max_length=200, description="Field that holds the text.")


class CalibrationSpec(Request):
    """Data that the model is run on. With neither `text` nor `dataset` a language model writes its own."""

    text: TextRef | None = Field(
        None, description="An upload: UTF-8 text, JSONL, JSON, CSV, Parquet; or safetensors of inputs of the model."
    )
    dataset: DatasetRef | None = None
    column: str = Field("text", min_length=1, max_length=200, description="Field of its records that holds the text.")
    samples: int = Field(128, ge=1, le=4096, description="Sequences used.")
    length: int = Field(256, ge=8, le=32_768, description="Tokens of a sequence.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.text is not None and self.dataset is not None:
            raise ValueError("give `text` or `dataset`, not both")
        if self.text is None and self.column != "text":
            raise ValueError("`column` belongs to `text`; a data set has its own")
        return self

    @property
    def is_sampled(self) -> bool:
        """Whether the model writes the text itself."""
        return self.text is None and self.dataset is None


class EvaluationSpec(Request):
    """How the loss of quality is measured (protocol `nupes-eval-1`).

    `fidelity` compares the distributions of the float and the quantized model; without a text it uses text sampled from
    the float model. `perplexity` needs a text.
    """

    metrics: list[Literal["fidelity", "perplexity"]] = Field(["fidelity"], min_length=1)
    text: TextRef | None = None
    context: int = Field(256, ge=8, le=131072, description="Tokens per window.")
    max_tokens: int = Field(20_000, ge=64, le=10_000_000, description="Tokens looked at, from the start.")

    @model_validator(mode="after")
    def _perplexity_has_a_text(self) -> Self:
        if "perplexity" in self.metrics and self.text is None:
            raise ValueError("the metric `perplexity` needs `text`: upload one and give its upload_id")
        return self


class GatesSpec(Request):
    """Limits the result must keep; the verdict says whether it does. The artifact is published either way.

    Of several formats they hold for the one that is asked for first.
    """

    max_perplexity_increase_pct: float | None = Field(None, ge=0)
    max_kl: float | None = Field(None, ge=0, description="Nats per token.")
    min_top1_agreement: float | None = Field(None, ge=0, le=1)
    max_bytes: int | None = Field(None, ge=1)
    min_coverage_pct: float | None = Field(None, ge=0, le=100, description="Share of parameters quantized.")


Format = Literal["nupes", "dense", "compressed-tensors", "gguf", "onnx"]

BITS_HELD: Mapping[Format, frozenset[int]] = {"compressed-tensors": frozenset({4, 8})}
"""Formats with codes of a few widths; the others take any width, `gguf` by the type that is nearest."""

WEIGHTS_ALONE: frozenset[Format] = frozenset({"compressed-tensors", "gguf", "onnx"})
"""Formats refused with activations. `dense` is written: the same weights, which compute on float inputs."""

_REPO_PART = r"(?!.*(?:--|\.\.))[A-Za-z0-9_][A-Za-z0-9_.-]{0,94}(?<![.-])(?<!\.git)"
_REPOSITORY = re.compile(rf"{_REPO_PART}/{_REPO_PART}")
_BRANCH = re.compile(r"(?!.*(?:\.\.|//|\.lock(?:/|$)))[A-Za-z0-9_](?:[A-Za-z0-9_./-]{0,198}[A-Za-z0-9_-])?")


def _check_repository(value: str) -> str:
    if not _REPOSITORY.fullmatch(value):
        raise ValueError("write it as namespace/name: letters, digits, `_`, `.` and `-`, as the hub allows them")
    return value


def _check_branch(value: str) -> str:
    if not _BRANCH.fullmatch(value):
        raise ValueError("must be the name of a branch: letters, digits, `_`, `.`, `-` and `/`")
    return value


def _named_once(value: list[Format]) -> list[Format]:
    if len(set(value)) != len(value):
        raise ValueError("a format is named twice")
    return value


def _bits_asked(weights: WeightSpec | None, layers: LayersSpec | None) -> frozenset[int]:
    """Return every width that is named. A part that is None was refused already."""
    overrides = layers.overrides if layers else []
    named = [weights.bits if weights else None, *(each.bits for each in overrides)]
    return frozenset(bits for bits in named if bits is not None)


def _not_held(name: Format, bits: frozenset[int], *, coded: bool) -> Iterator[str]:
    """Say what a format can not hold of weights in these widths, and of `coded` inputs."""
    held = BITS_HELD.get(name, bits)
    if not bits <= held:
        yield (
            f"{name} holds weights of {_listed(held, 'or')} bits, and this job asks for {_listed(bits - held, 'and')}: "
            "choose other bits, in `layers.overrides` too, or another format"
        )
    if coded and name in WEIGHTS_ALONE:
        yield f"{name} holds weights alone: leave `activations` out, or choose another format"


def _listed(numbers: frozenset[int], word: str) -> str:
    return f" {word} ".join(map(str, sorted(numbers)))


class PushSpec(Request):
    """A repository of the hub that gets the result, with a model card made from it.

    It is made when it is not there. One that holds files which no push put there is left alone.
    """

    repo: Annotated[str, AfterValidator(_check_repository)] = Field(description="`namespace/name`.")
    secret: SecretName = Field(description="Name of a stored hub token that may write there; see `/v1/secrets`.")
    private: bool = Field(True, description="True: never into a repository that everybody can read.")
    revision: Annotated[str, AfterValidator(_check_branch)] = Field(
        "main", description="A branch; made when it is not there."
    )
    formats: Annotated[list[Format], AfterValidator(_named_once)] = Field(
        [],
        max_length=8,
        description="Of the job's, the first at the root, others in folders of their names; empty: all.",
    )


class JobSpec(Request):
    """Everything that decides what a job does, next to the model.

    A data-driven job without `calibration` gets the default one: the model writes its own text.
    """

    model: ModelRef
    method: Literal["nupes"] = "nupes"
    weights: WeightSpec = WeightSpec()
    activations: ActivationSpec | None = None
    optimize: OptimizeSpec = OptimizeSpec()
    target: None = None
    layers: LayersSpec = LayersSpec()
    calibration: CalibrationSpec | None = Field(
        None, validate_default=True, description="Data that the model is run on; for jobs that need it."
    )
    evaluation: EvaluationSpec | None = EvaluationSpec()
    gates: GatesSpec | None = None
    formats: list[Format] = Field(
        ["nupes"],
        min_length=1,
        max_length=8,
        description="What is written. The first is the one whose figures the result and its gates name. Formats that "
        "cannot hold the power grid (`compressed-tensors`, `gguf`) are quantized and measured for themselves. "
        "`onnx` holds it, for encoders and convolution nets; `gguf` is for decoders.",
    )
    push_to_hub: PushSpec | None = None
    seed: int = Field(0, ge=0, lt=1 << 31)

    @field_validator("calibration")
    @classmethod
    def _calibration_is_what_the_job_needs(
        cls, value: CalibrationSpec | None, info: ValidationInfo
    ) -> CalibrationSpec | None:
        if not {"optimize", "activations"} <= info.data.keys():  # one of them is refused already
            return value
        optimize: OptimizeSpec = info.data["optimize"]
        activations: ActivationSpec | None = info.data["activations"]
        if optimize.mode == "data_driven":
            return value or CalibrationSpec()
        if value is None and activations is not None and activations.scaling == "static":
            raise ValueError(
                "activations with scaling `static` need `calibration`: a `text`, a `dataset`, or {} for a text that "
                "the model writes itself"
            )
        if value is not None and not (activations and (activations.smooth or activations.scaling == "static")):
            raise ValueError(
                "nothing in this job is found on data: ask for optimize mode `data_driven`, for activations that are "
                "`static` or `smooth`, or leave `calibration` out"
            )
        return value

    _formats_are_unique = field_validator("formats")(_named_once)

    @field_validator("formats")
    @classmethod
    def _formats_hold_what_is_asked(cls, value: list[Format], info: ValidationInfo) -> list[Format]:
        bits = _bits_asked(info.data.get("weights"), info.data.get("layers"))
        coded = info.data.get("activations") is not None
        complaints = [said for name in value for said in _not_held(name, bits, coded=coded)]
        if complaints:
            raise ValueError("; ".join(complaints))
        return value

    @field_validator("push_to_hub")
    @classmethod
    def _pushed_formats_are_written(cls, value: PushSpec | None, info: ValidationInfo) -> PushSpec | None:
        for each in value.formats if value else ():
            if each not in info.data.get("formats", (each,)):
                raise ValueError(f"the format `{each}` is to be pushed, but not among `formats` of the job")
        return value

    @model_validator(mode="after")
    def _gates_are_measured(self) -> Self:
        needed = {"max_perplexity_increase_pct": "perplexity", "max_kl": "fidelity", "min_top1_agreement": "fidelity"}
        measured = self.evaluation.metrics if self.evaluation else []
        for gate, metric in needed.items():
            if self.gates and getattr(self.gates, gate) is not None and metric not in measured:
                raise ValueError(f"gate {gate} needs the evaluation metric `{metric}`")
        return self


Device = Literal["auto", "cpu", "gpu"]
QUEUE_TIMEOUT_S = 7 * 86400
"""Waiting time allowed where nothing is said, in seconds: every job ends, also where no worker ever comes."""


class JobCreate(JobSpec):
    """Body of `POST /v1/jobs` and `POST /v1/plans`."""

    device: Device = Field(
        "auto",
        description="Class of the worker. `auto`: learning on data prefers gpu, all else cpu, among those that fit.",
    )

    name: str | None = Field(None, min_length=1, max_length=200)
    labels: dict[Label, LabelValue] = Field({}, max_length=32)
    priority: int = Field(0, ge=-10, le=10)
    timeout_s: int = Field(3600, ge=1, le=7 * 86400, description="Running time allowed, in seconds.")
    queue_timeout_s: int = Field(
        QUEUE_TIMEOUT_S,
        ge=1,
        le=30 * 86400,
        description="Waiting time allowed, in seconds: a job that no worker has taken by then fails with `timeout`.",
    )
    cache: bool = Field(
        True, description="Answer from the files of an equal job of yours where there is one; false: compute again."
    )
