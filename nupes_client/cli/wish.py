"""From options to the body of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nupes_client.cli.options import GATES
from nupes_client.errors import NupesError

if TYPE_CHECKING:
    from nupes_client.schemas.jobs import JobCreate


OPTIONS: dict[tuple[str | int, ...], str] = {
    ("weights", "bits"): "--bits",
    ("weights", "group_size"): "--group-size",
    ("weights", "exponent"): "--exponent-scope",
    ("weights", "exponent", "value"): "--exponent",
    ("weights", "scale_bits"): "--scale-bits",
    ("layers", "exclude"): "--exclude",
    ("evaluation", "context"): "--eval-context",
    ("evaluation", "max_tokens"): "--eval-tokens",
    ("gates",): "--gate",
    ("formats",): "--format",
    ("labels",): "--label",
    ("name",): "--name",
    ("timeout_s",): "--job-timeout",
    ("seed",): "--seed",
}
"""The option that each field comes from."""

HINTS = {
    "metric `perplexity`": "give a text to measure on: --eval-text FILE",
    "metric `fidelity`": "leave --no-eval out",
}
"""By a part of the message: what to do about it."""


class WishError(NupesError):
    """The options contradict each other or name something unknown."""


@dataclass(frozen=True)
class Wish:
    """What `quantize` and `plan` are asked for, next to the model."""

    bits: int
    group_size: int
    exponent_scope: str
    exponent: float | None
    scale_bits: int
    layout: str
    exclude: Sequence[str] | None
    embeddings: bool
    formats: Sequence[str] = ("nupes",)
    eval_text: Path | None = None
    eval_context: int = 256
    eval_tokens: int = 20_000
    no_eval: bool = False
    gates: Sequence[str] = ()
    labels: Sequence[str] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def body(self, model_id: str, text_upload_id: str | None) -> JobCreate:
        """Return the request; the schema is the judge of what goes together.

        Raises:
            WishError: it does not.
        """
        from pydantic import ValidationError

        from nupes_client.schemas.jobs import JobCreate

        try:
            return JobCreate.model_validate(
                {
                    "model": {"id": model_id},
                    "weights": self._weights(),
                    "layers": self._layers(),
                    "evaluation": self._evaluation(text_upload_id),
                    "gates": pairs("--gate", self.gates) or None,
                    "formats": list(self.formats),
                    "labels": pairs("--label", self.labels),
                    **self.extra,
                }
            )
        except ValidationError as error:
            raise WishError(in_words(error.errors()), hint=_hint(str(error))) from error

    def check(self) -> None:
        """Refuse a wish that can not become a body before anything is sent.

        Raises:
            WishError: as `body`.
        """
        self.body("mdl_", "upl_" if self.eval_text else None)

    def _weights(self) -> dict[str, Any]:
        mode = "search" if self.exponent is None else "fixed"
        exponent = {"mode": mode, "scope": self.exponent_scope, "value": self.exponent}
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "exponent": exponent,
            "layout": self.layout,
            "scale_bits": self.scale_bits,
        }

    def _layers(self) -> dict[str, Any]:
        chosen = {} if self.exclude is None else {"exclude": [pattern for pattern in self.exclude if pattern]}
        return {**chosen, "embeddings": self.embeddings}

    def _evaluation(self, text_upload_id: str | None) -> dict[str, Any] | None:
        if self.no_eval:
            return None
        window = {"context": self.eval_context, "max_tokens": self.eval_tokens}
        if text_upload_id is None:
            return {"metrics": ["fidelity"], **window}
        return {"metrics": ["fidelity", "perplexity"], "text": {"upload_id": text_upload_id}, **window}


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
    place: tuple[str | int, ...] = item["loc"]
    if place[:1] == ("gates",) and item["type"] == "extra_forbidden":
        return f"--gate {place[1]}: there is no such gate, only {', '.join(GATES)}"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{_option(place)}: {message}" if place else message


def _option(place: tuple[str | int, ...]) -> str:
    for length in range(len(place), 0, -1):
        if option := OPTIONS.get(place[:length]):
            rest = [str(part) for part in place[length:] if isinstance(part, str)]
            return " ".join([option, *rest])
    return ".".join(str(part) for part in place)


def _hint(message: str) -> str:
    return next((hint for word, hint in HINTS.items() if word in message), "nupes quantize --help")
