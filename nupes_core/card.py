"""The model card, `README.md`, of an artifact or of a repository on a hub, made from manifests alone. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nupes_core.formats import get_format
from nupes_core.recipe import AS_ASKED

CARD_NAME = "README.md"
MANIFEST_NAME = "manifest.json"
SUMS_NAME = "SHA256SUMS"

_SAFE_YAML = re.compile(r"[A-Za-z0-9][\w./-]*")
_TASKS = {
    "ForCausalLM": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
}
"""What a class of transformers does, by the end of its name, in the words of hubs."""

_LIBRARIES = {"nupes": "nupes", "gguf": "gguf", "onnx": "onnx"}
"""By format; the others load with transformers alone."""

_FIGURES: Mapping[str, str] = {
    "perplexity": "Perplexity",
    "kl": "KL(float‖quantized) per token, nats",
    "top1_agreement": "Same top token",
    "tokens": "Tokens it was measured on",
}
"""Names of measured figures; others stand as they are called."""

_NOT_SAID = frozenset({"version", "layers", "calibration", "training"})
"""Parts of a configuration that a card leaves to the manifest, or shows only where they were used."""

Manifests = Mapping[str, Mapping[str, Any]]


def architectures_of(folder: Path) -> Sequence[str]:
    """Return `architectures` of the `config.json` in a folder; none where there is no such thing."""
    try:
        found = json.loads((folder / "config.json").read_bytes()).get("architectures")
    except (OSError, ValueError, AttributeError):
        return ()
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else ()


def artifact_card(manifest: Mapping[str, Any], architectures: Sequence[str]) -> str:
    """Return the card of a folder with one format.

    Args:
        manifest: of the artifact.
        architectures: classes of transformers that the model is for; see `architectures_of`.
    """
    name = str(manifest["format"])
    return _card({name: manifest}, architectures, lambda _: get_format(name).snippet.format(path="path/to/this/folder"))


def hub_card(manifests: Manifests, architectures: Sequence[str], repo: str, revision: str) -> str:
    """Return the card of a repository that has its first format at the root and others in folders of their names.

    Args:
        manifests: by format, in that order.
        architectures: classes of transformers that the model is for; see `architectures_of`.
        repo: `namespace/name`.
        revision: the branch.
    """
    first, *others = manifests

    def load(name: str) -> str:
        unwanted = ", ".join(f'"{other}/*"' for other in others)
        root = f", ignore_patterns=[{unwanted}]" if others else ""
        which, inside = (root, "") if name == first else (f', allow_patterns="{name}/*"', f' + "/{name}"')
        branch = "" if revision == "main" else f', revision="{revision}"'
        fetch = f'folder = snapshot_download("{repo}"{branch}{which}, local_dir="{repo.split("/")[-1]}"){inside}'
        return f"from huggingface_hub import snapshot_download\n{fetch}\n{_snippet(name, 'folder')}"

    return _card(manifests, architectures, load)


def _card(manifests: Manifests, architectures: Sequence[str], load: Callable[[str], str]) -> str:
    manifest = next(iter(manifests.values()))
    weights = manifest["config"]["weights"]
    group = "one group per row" if weights["group_size"] == -1 else f"groups of {weights['group_size']}"
    heads = {name: f"### {name}\n\n" if len(manifests) > 1 else "" for name in manifests}
    loading = "\n".join(f"{heads[name]}```python\n{load(name)}\n```\n" for name in manifests)
    return (
        f"---\n{_front_matter(manifests, architectures)}---\n\n# {weights['bits']}-bit NUPES\n\n"
        f"Weights in {weights['bits']} bits, {group}, {_method_words(manifest['config'])} (arXiv 2308.05600).\n"
        f"{''.join(map(_code_words, manifests))}"
        f"{''.join(dict.fromkeys(map(_activation_words, manifests.values())))}\n"
        f"## Load\n\n{loading}\n"
        f"## Size and quality\n\n{_figures(manifests)}\n{_protocol_words(manifest['metrics'] or {})}\n"
        f"## Settings\n\n{_settings(manifest['config'])}\n"
        f"`{MANIFEST_NAME}` has versions and the figures of each layer. Check the files with\n"
        f"`sha256sum -c {SUMS_NAME}`.\n"
    )


def _snippet(name: str, folder: str) -> str:
    """Return Python that loads a format; `folder` is a variable."""
    return get_format(name).snippet.replace('"{path}"', folder).replace('"{path}/', f'{folder} + "/')


def _front_matter(manifests: Manifests, architectures: Sequence[str]) -> str:
    manifest = next(iter(manifests.values()))
    source, config, totals = manifest["source"], manifest["config"], manifest["totals"]
    weights = config["weights"]
    lines = ["tags:", "- nupes", "- quantized", f"- {weights['bits']}-bit", *(f"- {name}" for name in manifests)]
    for key, line in (("license", "license"), ("repo_id", "base_model")):
        value = source.get(key)
        if isinstance(value, str) and _SAFE_YAML.fullmatch(value):
            lines.append(f"{line}: {value}")
            lines += ["base_model_relation: quantized"] if key == "repo_id" else []
    lines.append(f"library_name: {_LIBRARIES.get(next(iter(manifests)), 'transformers')}")
    tasks = [task for name in architectures for end, task in _TASKS.items() if name.endswith(end)]
    lines += [f"pipeline_tag: {task}" for task in tasks[:1]]
    lines += [
        "quantization:",
        "  method: nupes",
        f"  bits: {weights['bits']}",
        f"  group_size: {weights['group_size']}",
    ]
    lines += [f"  bits_per_weight: {totals['bits_per_weight']:.4g}"]
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


def _figures(manifests: Manifests) -> str:
    """A column for the original and one for each format."""
    totals = {name: manifest["totals"] for name, manifest in manifests.items()}
    first = next(iter(totals.values()))
    before = first["bytes_before"]
    rows: list[tuple[str, ...]] = [
        ("Weight files, bytes", f"{before:,}", *(f"{each['bytes_after']:,}" for each in totals.values())),
        ("Of the original", "", *(f"{each['bytes_after'] / before:.1%}" for each in totals.values())),
        (
            "Bits per quantized weight, side information counted",
            "",
            *(f"{each['bits_per_weight']:.3f}" for each in totals.values()),
        ),
        ("Parameters", f"{first['params']:,}", *("" for _ in totals)),
        ("Quantized of them", "", *(f"{each['coverage_pct']:.1f}%" for each in totals.values())),
        *_measured([manifest["metrics"] or {} for manifest in manifests.values()]),
    ]
    return _table(("", "original", *manifests), rows)


def _measured(metrics: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Rows of what was measured of the original and of each format, then of figures that stand alone."""
    baseline = next(filter(None, (_part(each, "baseline") for each in metrics)), _part({}, ""))
    quantized = [_part(each, "quantized") for each in metrics]
    for name in dict.fromkeys(name for each in [baseline, *quantized] for name in each):
        yield from _row(name, [baseline.get(name), *(each.get(name) for each in quantized)])
    for name in dict.fromkeys(name for each in metrics for name in each if name != "context"):
        yield from _row(name, [None, *(each.get(name) for each in metrics)])


def _part(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = metrics.get(name)
    return part if isinstance(part, Mapping) else {}


def _row(name: str, values: Sequence[Any]) -> Iterator[tuple[str, ...]]:
    texts = [f"{value:.6g}" if _is_number(value) else "" for value in values]
    if any(texts):
        yield (_FIGURES.get(name, name.replace("_", " ")), *texts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _protocol_words(metrics: Mapping[str, Any]) -> str:
    """Say how it was measured, as far as the manifest knows."""
    if not metrics:
        return "Its quality was not measured.\n"
    text, context = metrics.get("text_sha256"), metrics.get("context")
    origin = "a text that the original model wrote" if metrics.get("text_origin") == "sampled" else "a text of the user"
    words = [
        f"Measured by protocol {_one_line(metrics.get('protocol', ''))}, original and quantized on the same tokens of"
    ]
    words.append(f"{origin}{f' (SHA-256 {_one_line(text)})' if text else ''}")
    words.append(f"in windows of {context} tokens." if _is_number(context) else "as well.")
    return " ".join(words) + "\n"


def _settings(config: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in config.items() if name not in _NOT_SAID}
    if config["optimize"] != "data_free":
        shown |= {"training": config["training"], "calibration": config["calibration"]}
    return _table(("setting", "value"), list(_flat(shown)))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None and not isinstance(value, list | tuple):
            yield f"`{prefix}{name}`", _one_line(value if isinstance(value, str) else json.dumps(value))


def _one_line(value: object) -> str:
    """Text that cannot end a cell or begin markup."""
    return re.sub(r"[^\w .,:;+/()=-]", " ", str(value))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *("---:" for _ in head[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ruler, *rows))


def _method_words(config: Mapping[str, Any]) -> str:
    """Say what was found with data, and what without."""
    training, exponent = config["training"], config["weights"]["exponent"]
    uniform = exponent["mode"] == "fixed" and exponent["value"] == 1
    if config["optimize"] == "data_free":
        return "on the uniform grid, scales found without data" if uniform else "by a power exponent found without data"
    stages = {
        "codes": training["learn_codes"] or training["error_feedback"],
        "scales": training["learn_scales"],
        "exponents": training["learn_exponent"] and exponent["mode"] == "search" and exponent["scope"] != "global",
    }
    *others, last = [name for name, on in stages.items() if on] or ["grids"]
    learnt = f"{', '.join(others)} and {last}" if others else last
    grids = "on the uniform grid" if uniform else "by power exponents"
    return f"{grids}; {learnt} were learnt on calibration data"


def _code_words(name: str) -> str:
    """Say where a format holds other codes than those the settings ask for."""
    if get_format(name).recipe is AS_ASKED:
        return ""
    return f"The format {name} cannot hold the power grid: its weights have codes of its own, found for it.\n"


def _activation_words(manifest: Mapping[str, Any]) -> str:
    """Say how inputs are coded, and where an artifact cannot say so itself."""
    activations = manifest["config"].get("activations")
    if activations is None:
        return ""
    if manifest["format"] == "dense":
        return "This format holds weights alone: inputs of layers stay float here.\n"
    return (
        f"Inputs of linear layers in {activations['bits']} bits, {activations['grid']} grid, "
        f"{activations['scaling']} scales, applied by this library while the model runs.\n"
    )
