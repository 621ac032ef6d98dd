"""The same wish for a shell, for curl and for a pipeline."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nupes_client.schemas.specs import JobCreate
from nupes_core import __version__

Words = Iterator[str]


@dataclass(frozen=True)
class Commands:
    """A wish in three languages. Uploads are named by file, because a command line sends files."""

    curl: str
    cli: str
    action: str


def commands(wish: JobCreate, url: str) -> Commands:
    """Write down how to ask for the same elsewhere; `url` is where the service is."""
    body = wish.model_dump(mode="json", exclude_defaults=True)
    return Commands(_curl(body, url), _cli(wish), _action(wish))


def options(wish: JobCreate) -> list[str]:
    """The options of `nupes quantize` that make this wish."""
    given = wish.model_dump(mode="json", exclude_defaults=True)
    return [word for name, write in _OPTIONS.items() if name in given for word in write(given[name])]


def _curl(body: Mapping[str, Any], url: str) -> str:
    content = json.dumps(body, ensure_ascii=False)
    return (
        f"curl -sS {shlex.quote(url + '/v1/jobs')} \\\n"
        '  -H "Authorization: Bearer $NUPES_API_KEY" -H "Content-Type: application/json" \\\n'
        f"  -d {shlex.quote(content)}"
    )


def _cli(wish: JobCreate) -> str:
    note = "# settings for single layers have no option; send those with curl\n" if wish.layers.overrides else ""
    return note + shlex.join(["nupes", "quantize", wish.model.id, *options(wish), "--wait"])


def _action(wish: JobCreate) -> str:
    """A step for GitHub Actions, with the action of this repository, which splits options as a shell does."""
    lines = [
        f"- uses: OWNER/nupes@v{__version__}  # where this repository is hosted",
        "  with:",
        "    url: ${{ vars.NUPES_URL }}",
        "    api-key: ${{ secrets.NUPES_API_KEY }}",
        f"    model: {json.dumps(wish.model.id)}",
        f'    bits: "{wish.weights.bits}"',
    ]
    further = [option for option in _joined(options(wish)) if not option.startswith("--bits=")]
    if further:
        lines += ["    options: |", *(f"      {shlex.quote(option)}" for option in further)]
    return "\n".join(lines)


def _joined(words: list[str]) -> Iterator[str]:
    """Options as one word each, `--name=value`."""
    index = 0
    while index < len(words):
        has_value = index + 1 < len(words) and not words[index + 1].startswith("--")
        yield f"{words[index]}={words[index + 1]}" if has_value else words[index]
        index += 1 + has_value


def _plain(names: Mapping[str, str]) -> Callable[[Mapping[str, Any]], Words]:
    """Options that take the value of a field as it is, by field."""

    def write(given: Mapping[str, Any]) -> Words:
        for field, option in names.items():
            if given.get(field) is not None:
                yield from (option, _word(given[field]))

    return write


def _word(value: Any) -> str:
    return str(value).replace("data_driven", "data-driven")


def _switches(names: Mapping[str, tuple[str, bool]], rest: Mapping[str, str]) -> Callable[[Mapping[str, Any]], Words]:
    def write(given: Mapping[str, Any]) -> Words:
        yield from _plain(rest)(given)
        yield from (option for field, (option, on) in names.items() if given.get(field) is on)

    return write


_weight_numbers = _plain(
    {"bits": "--bits", "group_size": "--group-size", "layout": "--layout", "scale_bits": "--scale-bits"}
)


def _weights(given: Mapping[str, Any]) -> Words:
    yield from _weight_numbers(given)
    yield from _plain({"value": "--exponent", "scope": "--exponent-scope"})(given.get("exponent", {}))


def _layers(given: Mapping[str, Any]) -> Words:
    for pattern in given.get("exclude", ()) or ([""] if "exclude" in given else ()):
        yield from ("--exclude", pattern)
    if given.get("embeddings"):
        yield "--embeddings"


def _calibration(given: Mapping[str, Any] | None) -> Words:
    given = given or {}
    if text := given.get("text"):
        yield from ("--calibration", f"{text['upload_id']}.txt")
    if dataset := given.get("dataset"):
        yield from ("--calibration-dataset", _dataset(dataset))
    column = given.get("column") or (dataset or {}).get("column")
    yield from _plain({"samples": "--calibration-samples", "length": "--calibration-length"})(given)
    if column:
        yield from ("--calibration-column", column)


def _dataset(given: Mapping[str, Any]) -> str:
    revision = f"@{given['revision']}" if "revision" in given else ""
    file = f":{given['file']}" if given.get("file") else ""
    return f"{given['repo_id']}{revision}{file}"


def _evaluation(given: Mapping[str, Any] | None) -> Words:
    if given is None:
        yield "--no-eval"
        return
    if text := given.get("text"):
        yield from ("--eval-text", f"{text['upload_id']}.txt")
    yield from _plain({"context": "--eval-context", "max_tokens": "--eval-tokens"})(given)


def _pairs(option: str) -> Callable[[Mapping[str, Any] | None], Words]:
    def write(given: Mapping[str, Any] | None) -> Words:
        for name, value in (given or {}).items():
            if value is not None:
                yield from (option, f"{name}={value}")

    return write


def _each(option: str) -> Callable[[list[str]], Words]:
    return lambda given: (word for value in given for word in (option, value))


def _one(option: str) -> Callable[[Any], Words]:
    return lambda given: iter(() if given is None else (option, str(given)))


_ACTIVATION_OPTIONS = {
    "bits": "--activation-bits",
    "grid": "--activation-grid",
    "scaling": "--activation-scaling",
    "range": "--activation-range",
}
_OPTIMIZE_SWITCHES = {
    "error_feedback": ("--no-error-feedback", False),
    "learn_codes": ("--no-learn-codes", False),
    "learn_exponent": ("--no-learn-exponent", False),
    "learn_scales": ("--no-learn-scales", False),
    "tweak_norms": ("--tweak-norms", True),
}
_OPTIMIZE_OPTIONS = {
    "mode": "--optimize",
    "steps": "--steps",
    "learning_rate": "--learning-rate",
    "batch_size": "--batch-size",
}


def _activations(given: Mapping[str, Any] | None) -> Words:
    if given is not None:
        yield from _switches({"smooth": ("--no-smooth", False)}, _ACTIVATION_OPTIONS)({"bits": 8, **given})


def _push(given: Mapping[str, Any] | None) -> Words:
    given = given or {}
    yield from _switches({"private": ("--push-public", False)}, _PUSH_OPTIONS)(given)
    yield from _each("--push-format")(given.get("formats", []))


_PUSH_OPTIONS = {"repo": "--push", "secret": "--push-secret", "revision": "--push-revision"}  # nosec B105

_OPTIONS: dict[str, Callable[[Any], Words]] = {
    "weights": _weights,
    "layers": _layers,
    "optimize": _switches(_OPTIMIZE_SWITCHES, _OPTIMIZE_OPTIONS),
    "activations": _activations,
    "calibration": _calibration,
    "evaluation": _evaluation,
    "gates": _pairs("--gate"),
    "formats": _each("--format"),
    "push_to_hub": _push,
    "labels": _pairs("--label"),
    "name": _one("--name"),
    "priority": _one("--priority"),
    "device": _one("--device"),
    "timeout_s": _one("--job-timeout"),
    "queue_timeout_s": _one("--queue-timeout"),
    "cache": lambda given: iter(() if given else ("--no-cache",)),
    "seed": _one("--seed"),
}
"""How each field of the wish that is not as by default becomes options."""
