"""What every result carries: the commit and the machine it was measured on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
PACKAGES = (
    "torch",
    "transformers",
    "numba",
    "numpy",
    "hqq",
    "bitsandbytes",
    "optimum-quanto",
    "llmcompressor",
    "compressed-tensors",
    "onnx",
    "onnxruntime",
    "gguf",
    "xllamacpp",
    "auto-round",
    "fastapi",
    "celery",
)


def describe() -> dict[str, Any]:
    """Return commit, processor, cores, memory (GiB), Python and package versions."""
    return {
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def write_results(name: str, data: dict[str, Any], markdown: str) -> None:
    """Write `results/NAME.json` and `results/NAME.md`, the machine and commit below the table."""
    RESULTS.mkdir(exist_ok=True)
    machine = data.get("machine") or describe()
    (RESULTS / f"{name}.json").write_text(json.dumps({**data, "machine": machine}, indent=1) + "\n")
    versions = ", ".join(f"{package} {found}" for package, found in machine["packages"].items())
    footer = (
        f"Commit {machine['commit']}, {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"Python {machine['python']}, {versions}.\n"
    )
    (RESULTS / f"{name}.md").write_text(f"{markdown.rstrip()}\n\n{footer}")


def markdown_table(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Lay out a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, ("---",) * len(names), *rows))


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", ":!benchmarks/results")
    return git("rev-parse", "--short", "HEAD") + (" with local changes" if changed else "")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
