"""What a job is asked for on the command line, in groups, and the part of the body that each becomes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nupes_client.cli import options as o
from nupes_client.cli.wish import OptionGroup, WishError, pairs

_DATASET = re.compile(r"(?P<repo_id>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^\s:@]+))?(?::(?P<file>\S.*))?")


@dataclass(frozen=True)
class WeightOptions(OptionGroup):
    """How weights are coded, and which."""

    bits: o.Bits = 4
    group_size: o.GroupSize = 64
    exponent_scope: o.ExponentScope = None
    exponent: o.Exponent = None
    scale_bits: o.ScaleBits = 8
    layout: o.LayoutOption = o.Layout.AUTO
    exclude: o.Exclude = None
    embeddings: o.Embeddings = False

    def body(self, uploads: Mapping[str, str]) -> dict[str, Any]:
        """Return `weights` and `layers`."""
        chosen = {} if self.exclude is None else {"exclude": [pattern for pattern in self.exclude if pattern]}
        weights = {
            "bits": self.bits,
            "group_size": self.group_size,
            "exponent": self._exponent(),
            "layout": self.layout.value,
            "scale_bits": self.scale_bits,
        }
        return {"weights": weights, "layers": {**chosen, "embeddings": self.embeddings}}

    def _exponent(self) -> dict[str, Any]:
        if self.exponent is None:
            return {"mode": "search", **_given(scope=self.exponent_scope)}
        if self.exponent_scope is not None:
            raise WishError(
                f"--exponent {self.exponent:g} fixes one exponent for all weights; --exponent-scope says how many of "
                "them share one that is searched",
                hint="Leave one of the two out.",
            )
        return {"mode": "fixed", "value": self.exponent}


@dataclass(frozen=True)
class LearningOptions(OptionGroup):
    """How codes are found."""

    optimize: o.OptimizeOption = o.Optimize.DATA_FREE
    no_error_feedback: o.NoErrorFeedback = False
    no_learn_codes: o.NoLearnCodes = False
    no_learn_exponent: o.NoLearnExponent = False
    no_learn_scales: o.NoLearnScales = False
    tweak_norms: o.TweakNorms = False
    steps: o.Steps = None
    learning_rate: o.LearningRate = None
    batch_size: o.BatchSize = None

    def body(self, uploads: Mapping[str, str]) -> dict[str, Any]:
        """Return `optimize`.

        Raises:
            WishError: a stage of learning is chosen where nothing is learnt.
        """
        chosen = _chosen(self)
        if self.optimize is o.Optimize.DATA_FREE and chosen:
            raise WishError(f"{chosen[0]} says how codes are learnt", hint="Add --optimize data-driven.")
        switches = {
            "error_feedback": not self.no_error_feedback,
            "learn_codes": not self.no_learn_codes,
            "learn_exponent": not self.no_learn_exponent,
            "learn_scales": not self.no_learn_scales,
            "tweak_norms": self.tweak_norms,
        }
        numbers = _given(steps=self.steps, learning_rate=self.learning_rate, batch_size=self.batch_size)
        return {"optimize": {"mode": self.optimize.value.replace("-", "_"), **switches, **numbers}}


@dataclass(frozen=True)
class CalibrationOptions(OptionGroup):
    """Data that the model is run on."""

    calibration: o.CalibrationFile = None
    calibration_dataset: o.CalibrationDataset = None
    calibration_column: o.CalibrationColumn = None
    calibration_samples: o.CalibrationSamples = None
    calibration_length: o.CalibrationLength = None

    @property
    def files(self) -> dict[str, Path]:
        """The file to send, if one is given."""
        return {"calibration": self.calibration} if self.calibration else {}

    def body(self, uploads: Mapping[str, str]) -> dict[str, Any]:
        """Return `calibration`; null where nothing is said about data.

        Raises:
            WishError: a file and a data set, a column of neither, or a data set that is none.
        """
        sizes = _given(samples=self.calibration_samples, length=self.calibration_length)
        column = _given(column=self.calibration_column)
        if self.calibration and self.calibration_dataset:
            raise WishError("--calibration and --calibration-dataset are two sources", hint="Give one of them.")
        if self.calibration_dataset:
            return {"calibration": {"dataset": {**_dataset(self.calibration_dataset), **column}, **sizes}}
        if self.calibration:
            return {"calibration": {"text": {"upload_id": uploads["calibration"]}, **column, **sizes}}
        if column:
            raise WishError(
                "--calibration-column names a field of calibration data, and none is given",
                hint="Add --calibration FILE or --calibration-dataset REPO.",
            )
        return {"calibration": sizes or None}


@dataclass(frozen=True)
class ActivationOptions(OptionGroup):
    """How inputs of layers are coded."""

    activation_bits: o.ActivationBits = None
    activation_grid: o.ActivationGrid = None
    activation_scaling: o.ActivationScaling = None
    activation_range: o.ActivationRange = None
    no_smooth: o.NoSmooth = False

    def body(self, uploads: Mapping[str, str]) -> dict[str, Any]:
        """Return `activations`; null without --activation-bits.

        Raises:
            WishError: something is said about activations that stay float.
        """
        if self.activation_bits is None:
            if chosen := _chosen(self):
                raise WishError(f"{chosen[0]} is about activations, which stay float", hint="Add --activation-bits 8.")
            return {"activations": None}
        how = _given(grid=self.activation_grid, scaling=self.activation_scaling, range=self.activation_range)
        return {"activations": {"bits": self.activation_bits, **how, "smooth": not self.no_smooth}}


@dataclass(frozen=True)
class EvaluationOptions(OptionGroup):
    """What is measured, and what it has to keep."""

    eval_text: o.EvalText = None
    eval_context: o.EvalContext = 256
    eval_tokens: o.EvalTokens = 20_000
    no_eval: o.NoEval = False
    gate: o.Gates = None

    @property
    def files(self) -> dict[str, Path]:
        """The text to send, if one is given."""
        return {"evaluation": self.eval_text} if self.eval_text else {}

    def body(self, uploads: Mapping[str, str]) -> dict[str, Any]:
        """Return `evaluation` and `gates`."""
        return {"evaluation": self._evaluation(uploads), "gates": pairs("--gate", self.gate or ()) or None}

    def _evaluation(self, uploads: Mapping[str, str]) -> dict[str, Any] | None:
        if self.no_eval:
            return None
        window = {"context": self.eval_context, "max_tokens": self.eval_tokens}
        if self.eval_text is None:
            return {"metrics": ["fidelity"], **window}
        return {"metrics": ["fidelity", "perplexity"], "text": {"upload_id": uploads["evaluation"]}, **window}


@dataclass(frozen=True)
class PushOptions(OptionGroup):
    """Where on a hub the result goes."""

    push: o.Push = None
    push_secret: o.PushSecret = None
    push_public: o.PushPublic = False
    push_revision: o.PushRevision = None
    push_format: o.PushFormats = None

    def body(self, uploads: Mapping[str, str]) -> dict[str, Any]:
        """Return `push_to_hub`, if there is one.

        Raises:
            WishError: only one of repository and token is named.
        """
        if self.push is None:
            if chosen := _chosen(self):
                raise WishError(f"{chosen[0]} says how a result is pushed", hint="Add --push NAMESPACE/NAME.")
            return {}
        if self.push_secret is None:
            raise WishError("--push needs a stored token", hint="nupes secrets set NAME, then add --push-secret NAME.")
        formats = {"formats": [each.value for each in self.push_format]} if self.push_format else {}
        wish = {"repo": self.push, "secret": self.push_secret, "private": not self.push_public, **formats}
        return {"push_to_hub": wish | _given(revision=self.push_revision)}


@dataclass(frozen=True)
class JobOptions(OptionGroup):
    """What is written, and how the job is run and found."""

    format_: o.Formats = None
    label: o.Labels = None
    name: o.Name = None
    priority: o.Priority = 0
    job_timeout: o.JobTimeout = 3600
    queue_timeout: o.QueueTimeout = None
    no_cache: o.NoCache = False
    device: o.DeviceOption = None
    seed: o.Seed = 0

    def body(self, uploads: Mapping[str, str]) -> dict[str, Any]:
        """Return formats, labels and the rest."""
        return {
            "formats": [item.value for item in self.format_ or [o.Format.NUPES]],
            "labels": pairs("--label", self.label or ()),
            "name": self.name,
            "priority": self.priority,
            "timeout_s": self.job_timeout,
            "cache": not self.no_cache,
            **_given(queue_timeout_s=self.queue_timeout),
            "seed": self.seed,
            **_given(device=self.device),
        }


def _given(**values: Any) -> dict[str, Any]:
    """Leave out what was not said, so that the defaults of the service hold."""
    return {name: getattr(value, "value", value) for name, value in values.items() if value is not None}


def _chosen(group: OptionGroup) -> list[str]:
    """Return the options of a group that were set to something else than their default."""
    return [
        "--" + field.name.replace("_", "-")
        for field in fields(group)  # type: ignore[arg-type]
        if getattr(group, field.name) is not field.default
    ]


def _dataset(argument: str) -> dict[str, Any]:
    match = _DATASET.fullmatch(argument)
    if match is None:
        raise WishError(
            f"--calibration-dataset {argument!r} is not REPO, REPO@REVISION or REPO@REVISION:FILE",
            hint="For example org/name@main:train.jsonl.",
        )
    return _given(**match.groupdict())
