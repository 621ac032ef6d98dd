"""What to quantize and how: frozen, versioned, torch-free configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

from nupes_core.errors import InvalidConfigError
from nupes_core.gguf.blocktypes import LAYOUTS as GGML_LAYOUTS
from nupes_core.gguf.blocktypes import SUPERBLOCKS
from nupes_core.patterns import check_pattern

Layout = Literal["auto", "signed", "midrise", "paper"]
GgmlLayout = Literal["IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
ExponentMode = Literal["search", "fixed"]
ExponentScope = Literal["global", "layer", "row", "group"]
Optimize = Literal["data_free", "data_driven"]
ActivationGrid = Literal["uniform", "power"]
ActivationScaling = Literal["dynamic", "static"]
ActivationRange = Literal["mse", "percentile"]

T = TypeVar("T")

CONFIG_VERSION = 1
MIN_BITS, MAX_BITS = 2, 8
MIN_SCALE_BITS, MAX_SCALE_BITS = 4, 12
PER_CHANNEL = -1
"""`group_size` that makes one group of each output row."""


@dataclass(frozen=True)
class ExponentConfig:
    """The power exponent `a` (method §1–2).

    Attributes:
        mode: `search` fits `a` to the weights; `fixed` uses `value`.
        scope: how many weights share one exponent. `group` stores 2 bits a group that choose among 4 candidates.
        value: the exponent when `mode` is `fixed`, in [0.3, 1.5].
    """

    mode: ExponentMode = "search"
    scope: ExponentScope = "layer"
    value: float | None = None

    def __post_init__(self) -> None:
        _one_of("exponent.mode", self.mode, get_args(ExponentMode))
        _one_of("exponent.scope", self.scope, get_args(ExponentScope))
        if self.mode == "fixed" and (self.value is None or not 0.3 <= self.value <= 1.5):
            raise InvalidConfigError(
                f"exponent.value is {self.value!r}; a fixed exponent must lie in [0.3, 1.5]",
                hint="Give a value such as 0.8, or use mode 'search'.",
            )


@dataclass(frozen=True)
class WeightConfig:
    """How one weight matrix is coded.

    Attributes:
        bits: code width, 2 to 8.
        group_size: consecutive weights of a row that share a scale; `-1` is one group per row. Need not divide the row.
        exponent: how the power exponent is found.
        layout: code-to-level layout; `auto` takes `signed` for 3 bits and more, `midrise` for 2, by measured error.
            Format `gguf` sets those of llama.cpp's types, which it alone holds.
        scale_bits: side information of a group, 4 to 12 bits (6 for scope `group`): log2 scale, its sign (signed
            layout) and the exponent choice (scope `group`). A weight takes `bits + scale_bits / group_size`, plus 1/64
            at most.
    """

    bits: int = 4
    group_size: int = 64
    exponent: ExponentConfig = field(default_factory=ExponentConfig)
    layout: Layout | GgmlLayout = "auto"
    scale_bits: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not MIN_BITS <= self.bits <= MAX_BITS:
            raise InvalidConfigError(
                f"bits is {self.bits!r}; NUPES codes weights with {MIN_BITS} to {MAX_BITS} bits",
                hint="Choose 4 for a first try, 3 or 2 where size matters more than quality.",
            )
        if not isinstance(self.group_size, int) or (self.group_size < 1 and self.group_size != PER_CHANNEL):
            raise InvalidConfigError(
                f"group_size is {self.group_size!r}; it must be a positive integer or -1 (one group per row)",
                hint="64 is a good default; smaller groups cost bits and gain quality.",
            )
        fewest = MIN_SCALE_BITS + 2 * (self.exponent.scope == "group")
        if not isinstance(self.scale_bits, int) or not fewest <= self.scale_bits <= MAX_SCALE_BITS:
            raise InvalidConfigError(
                f"scale_bits is {self.scale_bits!r}; a group stores {fewest} to {MAX_SCALE_BITS} bits",
                hint="8 is a good default; 6 or 7 pay with small groups.",
            )
        _one_of("layout", self.layout, (*get_args(Layout), *get_args(GgmlLayout)))
        kind = GGML_LAYOUTS.get(self.layout)
        if kind and (self.bits, self.group_size) != (kind.bits, kind.group_size):
            raise InvalidConfigError(
                f"layout {kind.name} has {kind.bits} bits and groups of {kind.group_size}, "
                f"not {self.bits} and {self.group_size}",
                hint="Ask for the format gguf, which chooses the layout.",
            )

    @property
    def learnt(self) -> WeightConfig:
        """What codes are learnt with: of super-blocks the uniform grid, whose codes they take over."""
        return replace(self, layout="signed") if self.layout in SUPERBLOCKS else self


@dataclass(frozen=True)
class LayerOverride:
    """Other settings for the layers whose name `match` (a regular expression) is found in. The last hit wins.

    Attributes:
        bits, group_size: replace those of the job; None keeps them.
        skip: leave the layer in its original dtype.
    """

    match: str
    bits: int | None = None
    group_size: int | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        check_pattern("layers.overrides.match", self.match)


@dataclass(frozen=True)
class LayerSelection:
    """Which layers are quantized.

    Attributes:
        exclude: module names, or regular expressions found in them, left in their original dtype.
        overrides: see `LayerOverride`.
        embeddings: also quantize embedding tables (left alone by default).
    """

    exclude: tuple[str, ...] = ("lm_head",)
    overrides: tuple[LayerOverride, ...] = ()
    embeddings: bool = False

    def __post_init__(self) -> None:
        for pattern in self.exclude:
            check_pattern("layers.exclude", pattern)


@dataclass(frozen=True)
class TrainingConfig:
    """The stages of data-driven NUPES (method §3). Each can be switched off; each keeps its best, its start included.

    Attributes:
        error_feedback: column-wise error feedback, rounding to the nearest level of the power table, and coordinate
            descent from there.
        learn_codes: learn the codes over the entire quantized space.
        learn_exponent, learn_scales: learn them in the same training.
        tweak_norms: afterwards train the parameters of norms.
        steps: optimizer steps for each block.
        learning_rate: of the codes, in code units.
        batch_size: calibration samples in a step.
    """

    error_feedback: bool = True
    learn_codes: bool = True
    learn_exponent: bool = True
    learn_scales: bool = True
    tweak_norms: bool = False
    steps: int = 64
    learning_rate: float = 1.5e-2
    batch_size: int = 4

    def __post_init__(self) -> None:
        _at_least("training.steps", self.steps, 0)
        _at_least("training.batch_size", self.batch_size, 1)
        if not 0 < self.learning_rate <= 1:
            raise InvalidConfigError(
                f"training.learning_rate is {self.learning_rate!r}; it is in code units and lies in (0, 1]",
                hint="0.015 is a good default.",
            )


@dataclass(frozen=True)
class CalibrationConfig:
    """How much calibration data is used.

    Attributes:
        samples: sequences (or images) at most.
        length: tokens of a sequence.
    """

    samples: int = 128
    length: int = 256

    def __post_init__(self) -> None:
        _at_least("calibration.samples", self.samples, 1)
        _at_least("calibration.length", self.length, 8)


@dataclass(frozen=True)
class ActivationConfig:
    """How the inputs of quantized layers are coded (method §4).

    Attributes:
        bits: code width, 2 to 8.
        grid: `uniform`, or `power` with an exponent for each layer.
        scaling: `dynamic` finds the scale of each token (each sample of a convolution) while the model runs; `static`
            fixes it on calibration data.
        range: how a static scale is found: least squared error, or a high percentile.
        smooth: move outlier channels of activations into the weights where that lowers the error; needs data.
    """

    bits: int = 8
    grid: ActivationGrid = "uniform"
    scaling: ActivationScaling = "dynamic"
    range: ActivationRange = "mse"
    smooth: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not MIN_BITS <= self.bits <= MAX_BITS:
            raise InvalidConfigError(
                f"activations.bits is {self.bits!r}; activations are coded with {MIN_BITS} to {MAX_BITS} bits",
                hint="8 costs next to nothing; 4 wants data-driven weights.",
            )
        _one_of("activations.grid", self.grid, get_args(ActivationGrid))
        _one_of("activations.scaling", self.scaling, get_args(ActivationScaling))
        _one_of("activations.range", self.range, get_args(ActivationRange))


@dataclass(frozen=True)
class QuantizationConfig:
    """Everything that decides the bytes of an artifact, next to the input and the code version."""

    weights: WeightConfig = field(default_factory=WeightConfig)
    layers: LayerSelection = field(default_factory=LayerSelection)
    optimize: Optimize = "data_free"
    training: TrainingConfig = field(default_factory=TrainingConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    activations: ActivationConfig | None = None
    seed: int = 0
    version: int = CONFIG_VERSION

    def __post_init__(self) -> None:
        _one_of("optimize", self.optimize, get_args(Optimize))
        if self.version != CONFIG_VERSION:
            raise InvalidConfigError(
                f"config version is {self.version!r}; this release reads version {CONFIG_VERSION}",
                hint="Write the configuration again with this release.",
            )

    @property
    def needs_calibration(self) -> bool:
        """Whether the model has to be run on data."""
        static = self.activations is not None and self.activations.scaling == "static"
        return static or self.optimize == "data_driven"

    @property
    def splits(self) -> bool:
        """Whether the files of a checkpoint can be quantized one without the others."""
        shared = self.weights.exponent.mode == "search" and self.weights.exponent.scope == "global"
        return not (self.needs_calibration or shared)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict that `from_dict` turns back into an equal configuration."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QuantizationConfig:
        """Build from `to_dict` output.

        Raises:
            InvalidConfigError: unknown key, or a value out of range.
        """
        data = dict(data)
        weights = dict(data.pop("weights", {}))
        exponent = _build(ExponentConfig, weights.pop("exponent", {}))
        layers = dict(data.pop("layers", {}))
        overrides = tuple(_build(LayerOverride, item) for item in layers.pop("overrides", ()))
        exclude = tuple(layers.pop("exclude", LayerSelection.exclude))
        activations = data.pop("activations", None)
        training, calibration = data.pop("training", {}), data.pop("calibration", {})
        return _build(
            cls,
            data,
            weights=_build(WeightConfig, weights, exponent=exponent),
            layers=_build(LayerSelection, layers, overrides=overrides, exclude=exclude),
            training=_build(TrainingConfig, training),
            calibration=_build(CalibrationConfig, calibration),
            activations=None if activations is None else _build(ActivationConfig, activations),
        )


def _build(cls: type[T], data: dict[str, Any], **parts: Any) -> T:
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known)
    if unknown:
        raise InvalidConfigError(f"unknown key {unknown[0]!r} in {cls.__name__}", hint=f"Known keys: {sorted(known)}.")
    return cls(**data, **parts)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidConfigError(f"{name} is {value!r}", hint=f"Allowed: {', '.join(allowed)}.")


def _at_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise InvalidConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}")
