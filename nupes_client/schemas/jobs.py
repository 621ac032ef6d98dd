"""A job once it is made: its state, its events and its result. What may be asked of one is in `specs`."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from nupes_client.schemas.base import Label, LabelValue, Request, Response, Timestamp
from nupes_client.schemas.problems import JobErrorCode
from nupes_client.schemas.specs import Device, JobSpec


class JobStatus(StrEnum):
    """Where a job stands. Terminal ones never change again."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended for good."""
        return self in TERMINAL_STATUSES


TERMINAL_STATUSES = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class JobPhase(StrEnum):
    """What a running job is doing."""

    FETCHING = "fetching"
    VALIDATING = "validating"
    PLANNING = "planning"
    CALIBRATING = "calibrating"
    QUANTIZING = "quantizing"
    EVALUATING = "evaluating"
    PACKAGING = "packaging"
    VERIFYING = "verifying"
    PUBLISHING = "publishing"
    PUSHING = "pushing"


class JobPatch(Request):
    """Body of `PATCH /v1/jobs/{id}`: what may change after a job was made. Fields left out stay as they are."""

    name: str | None = Field(None, min_length=1, max_length=200)
    labels: dict[Label, LabelValue] = Field({}, max_length=32, description="Replaces all labels.")
    priority: int = Field(0, ge=-10, le=10)


class ProgressInfo(Response):
    """How far the current phase is."""

    fraction: float = Field(ge=0, le=1, description="Of the whole job.")
    current: int
    total: int
    unit: str


class WaitingReason(StrEnum):
    """Why no live worker can take a queued job."""

    MEMORY = "memory"
    NO_WORKER = "no_worker"


class Waiting(Response):
    """What a queued job waits for, while no live worker can take it."""

    reason: WaitingReason
    device_class: str
    needed_bytes: int | None = Field(description="Planned peak memory of the job.")
    largest_bytes: int | None = Field(description="Memory of the largest live worker of the class.")


class JobError(Response):
    """Why a job failed and what to do about it."""

    code: JobErrorCode
    message: str
    phase: JobPhase | None = None
    retryable: bool = False
    hint: str | None = None


class Quality(Response):
    """Quality figures of one model (baseline or quantized); None where not measured."""

    perplexity: float | None = None
    kl: float | None = Field(None, description="Mean KL(float‖quantized) per token, nats.")
    top1_agreement: float | None = None
    tokens: int | None = None


class MetricsPair(Response):
    """The float baseline and the quantized model, measured in the same job on the same tokens."""

    protocol: str
    context: int
    text_sha256: str | None = None
    text_origin: Literal["user", "sampled"]
    baseline: Quality
    quantized: Quality

    @property
    def perplexity_name(self) -> str:
        """What its perplexity is called: one of a text that the model wrote itself is lower than any other."""
        return "perplexity" if self.text_origin == "user" else "perplexity (sampled text)"


class FormatResult(Response):
    """What one format of a job holds, and how good it is."""

    format: str
    bytes_after: int = Field(description="Of its weight files.")
    bits_per_weight: float = Field(description="Bits that it stores of a quantized weight, side information included.")
    coverage_pct: float = Field(description="Share of the parameters that are quantized in it.")
    metrics: MetricsPair | None = None


class JobResult(Response):
    """What came out; figures are those of the format that was asked for first, `formats` has those of each."""

    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    coverage_pct: float
    quantized_params: int
    params: int
    quantize_seconds: float
    metrics: MetricsPair | None = None
    formats: list[FormatResult] = Field([], description="In the order asked for; empty in results of older releases.")


class GateResult(Response):
    """One gate and what was measured for it."""

    gate: str
    limit: float
    measured: float | None
    passed: bool


class Pushed(Response):
    """Where on the hub the result is."""

    repo: str
    revision: str = Field(description="The branch.")
    url: str
    commit: str = Field(description="That holds exactly these files, 40 hex digits.")
    commit_url: str
    formats: list[str] = Field(description="The first lies at the root, others in folders of their names.")
    files: int


class JobLinks(Response):
    """Where to go from a job."""

    self: str
    events: str
    stream: str
    layers: str
    logs: str
    metrics: str
    report: str
    artifacts: str
    cancel: str


class Job(Response):
    """A job as the service sees it."""

    id: str
    name: str | None
    status: JobStatus
    is_terminal: bool
    phase: JobPhase | None
    progress: ProgressInfo
    eta_seconds: float | None
    attempt: int
    max_attempts: int
    version: int = Field(description="Grows with every change; the ETag.")
    config: JobSpec = Field(description="Fully resolved: sending it again gives the same bytes.")
    labels: dict[str, str]
    priority: int
    timeout_s: int
    device: Device
    device_class: str = Field(description="The queue it is in.")
    memory_bytes: int | None = Field(description="Planned peak: only workers with as much memory take it.")
    waiting: Waiting | None = Field(description="Set while it is queued and no live worker can take it.")
    queue_timeout_s: int
    cache: bool
    retry_of: str | None = Field(description="The job whose wish this one repeats; it may be deleted by now.")
    result: JobResult | None
    verdict: Literal["passed", "failed"] | None
    gates: list[GateResult]
    error: JobError | None
    worker: str | None
    cache_hit: bool
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    artifacts_expired_at: Timestamp | None = Field(None, description="When the files of the result were deleted.")
    pushed: Pushed | None = Field(None, description="Where on the hub the result is, once it is there.")
    links: JobLinks


class ShardStatus(StrEnum):
    """Where the work on one file of a checkpoint stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Shard(Response):
    """The work on one file of a sharded checkpoint, which any worker may do."""

    position: int
    name: str
    status: ShardStatus
    params: int
    params_done: int
    memory_bytes: int = Field(description="Planned peak.")
    attempt: int
    worker: str | None
    error: JobError | None
    started_at: Timestamp | None
    finished_at: Timestamp | None


class JobEvent(Response):
    """Something that happened to a job. `seq` counts from 1 without gaps."""

    seq: int
    type: str = Field(description="`status`, `phase`, `progress`, `log`, `changed`, `waiting`, `routed`, `published`.")
    data: dict[str, Any]
    created_at: Timestamp


class Layer(Response):
    """One weight of the model and what was done to it."""

    name: str
    shape: list[int]
    params: int
    bytes_before: int
    bytes_after: int
    bits: int | None
    group_size: int | None
    layout: str | None
    exponent: float | None
    mse: float | None
    sqnr_db: float | None
    cosine: float | None
    skipped_reason: str | None
    codes_moved: float | None = Field(None, description="Share of codes that training moved, 0 to 1.")
    activation_bits: int | None = Field(None, description="Of the layer's inputs.")
    histogram: list[int] | None = Field(
        None,
        description="With `include=histogram`: counts of weights over the scale of their group, in bins of equal width "
        "over [-1, 1], where the levels of the grid lie. Of a sample of rows where the layer is large.",
    )


class MetricPoint(Response):
    """One point of a curve."""

    step: int
    value: float | None = Field(description="None: not a finite number.")


class MetricSeries(Response):
    """One curve of a job, such as the loss of a block while its codes are learnt."""

    name: str = Field(description="For example `loss/model.layers.0`.")
    count: int = Field(description="Points that were measured.")
    points: list[MetricPoint] = Field(description="At most `max_points` of them, by step.")


class JobMetrics(Response):
    """The curves of a job, by name."""

    data: list[MetricSeries]
