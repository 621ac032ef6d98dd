"""From options to the body of a job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nupes_client.cli.options import GATES
from nupes_client.errors import NupesError

if TYPE_CHECKING:
    from nupes_client.schemas.specs import JobCreate


OPTIONS: dict[tuple[str | int, ...], str] = {
    ("weights", "bits"): "--bits",
    ("weights", "group_size"): "--group-size",
    ("weights", "exponent"): "--exponent-scope",
    ("weights", "exponent", "value"): "--exponent",
    ("weights", "scale_bits"): "--scale-bits",
    ("layers", "exclude"): "--exclude",
    ("evaluation", "context"): "--eval-context",
    ("evaluation", "max_tokens"): "--eval-tokens",
    ("optimize",): "--optimize",
    ("optimize", "steps"): "--steps",
    ("optimize", "learning_rate"): "--learning-rate",
    ("optimize", "batch_size"): "--batch-size",
    ("calibration",): "--calibration",
    ("calibration", "dataset"): "--calibration-dataset",
    ("calibration", "dataset", "repo_id"): "--calibration-dataset",
    ("calibration", "dataset", "revision"): "--calibration-dataset",
    ("calibration", "column"): "--calibration-column",
    ("calibration", "dataset", "column"): "--calibration-column",
    ("calibration", "samples"): "--calibration-samples",
    ("calibration", "length"): "--calibration-length",
    ("activations",): "--activation-bits",
    ("activations", "grid"): "--activation-grid",
    ("activations", "scaling"): "--activation-scaling",
    ("activations", "range"): "--activation-range",
    ("gates",): "--gate",
    ("formats",): "--format",
    ("push_to_hub",): "--push-format",
    ("push_to_hub", "repo"): "--push",
    ("push_to_hub", "secret"): "--push-secret",
    ("push_to_hub", "revision"): "--push-revision",
    ("push_to_hub", "formats"): "--push-format",
    ("labels",): "--label",
    ("name",): "--name",
    ("timeout_s",): "--job-timeout",
    ("queue_timeout_s",): "--queue-timeout",
    ("seed",): "--seed",
}
"""The option that each field comes from."""

HINTS = {
    "metric `perplexity`": "give a text to measure on: --eval-text FILE",
    "metric `fidelity`": "leave --no-eval out",
    "found on data": "add --optimize data-driven, or leave the options of calibration data out",
    "need `calibration`": "--calibration FILE, --calibration-dataset REPO, or --calibration-samples N for a text that "
    "the model writes itself",
    "how a fixed scale is found": "add --activation-scaling static",
    "holds weights of": "give --bits that the format holds, or another --format: nupes holds 2 to 8 bits",
    "holds weights alone": "leave --activation-bits out, or give another --format: nupes holds activations too",
}
"""By a part of the message: what to do about it."""


class WishError(NupesError):
    """The options contradict each other or name something unknown."""


class OptionGroup(ABC):
    """Options that belong together."""

    @property
    def files(self) -> dict[str, Path]:
        """Files to send before the body can be made, by what they are for; none by default."""
        return {}

    @abstractmethod
    def body(self, uploads: Mapping[str, str]) -> dict[str, Any]:
        """Return fields of the body; `uploads` has the ids of what was sent, by what it is for.

        Raises:
            WishError: options of the group contradict each other.
        """


@dataclass(frozen=True)
class Wish:
    """What `quantize` and `plan` are asked for, next to the model."""

    groups: tuple[OptionGroup, ...]

    @property
    def files(self) -> dict[str, Path]:
        """Files to send, by what they are for."""
        return {purpose: path for group in self.groups for purpose, path in group.files.items()}

    def body(self, model_id: str, uploads: Mapping[str, str]) -> JobCreate:
        """Return the request; the schema is the judge of what goes together.

        Args:
            model_id: a registered model.
            uploads: the ids of `files` once they were sent.

        Raises:
            WishError: it does not.
        """
        from pydantic import ValidationError

        from nupes_client.schemas.specs import JobCreate

        fields = {name: value for group in self.groups for name, value in group.body(uploads).items()}
        try:
            return JobCreate.model_validate({"model": {"id": model_id}, **fields})
        except ValidationError as error:
            raise WishError(in_words(error.errors()), hint=_hint(str(error))) from error

    def check(self) -> None:
        """Refuse a wish that can not become a body before anything is sent.

        Raises:
            WishError: as `body`.
        """
        self.body("mdl_", dict.fromkeys(self.files, "upl_"))


def pairs(option: str, values: Sequence[str]) -> dict[str, str]:
    """Read `NAME=VALUE` options.

    Raises:
        WishError: one has no `=`, or a name comes twice.
    """
    result: dict[str, str] = {}
    for value in values:
        name, sign, content = value.partition("=")
        if not sign or not name:
            raise WishError(f"{option} {value!r} is not NAME=VALUE")
        if name in result:
            raise WishError(f"{option} {name} is given twice")
        result[name] = content
    return result


def in_words(errors: Sequence[Any]) -> str:
    """Say what pydantic found in the words of the command line: options instead of fields."""
    return "; ".join(_finding(item) for item in errors)


def _finding(item: Any) -> str:
    from nupes_client.schemas.words import in_plain_words

    place: tuple[str | int, ...] = item["loc"]
    if place[:1] == ("gates",) and item["type"] == "extra_forbidden":
        return f"--gate {place[1]}: there is no such gate, only {', '.join(GATES)}"
    message = in_plain_words(item)
    return f"{_option(place)}: {message}" if place else message


def _option(place: tuple[str | int, ...]) -> str:
    for length in range(len(place), 0, -1):
        if option := OPTIONS.get(place[:length]):
            rest = [str(part) for part in place[length:] if isinstance(part, str)]
            return " ".join([option, *rest])
    return ".".join(str(part) for part in place)


def _hint(message: str) -> str:
    return next((hint for word, hint in HINTS.items() if word in message), "nupes quantize --help")
