"""The part of `nupes doctor` that looks at what a worker computes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

from app.settings import get_settings
from app.workers.memory import usable_memory
from nupes_client.findings import Finding
from worker.isolation import isolation

IMPORT_S = 120
_TELL = """
import json, torch, transformers
cards = [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())]
print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "gpus": cards}))
"""


def findings() -> Iterator[Finding]:
    """Yield libraries and devices, memory, and how runners are kept from the network."""
    yield _devices()
    yield Finding("memory", "ok", f"{usable_memory(get_settings()) / 1e9:.1f} GB for jobs")
    if isolation() == "namespace":
        yield Finding("isolation", "ok", "runners have a network namespace of their own")
    else:
        hint = "Allow unprivileged user namespaces, or run workers where nothing inside must be reached."
        yield Finding("isolation", "warning", "runners share the network of this machine", hint)


def _devices() -> Finding:
    """Ask a process of its own: importing torch takes seconds and memory, and may crash."""
    command = [sys.executable, "-c", _TELL]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=IMPORT_S)
        told = json.loads(found.stdout)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"ended with {error.returncode}"])[-1]
        return Finding("devices", "problem", f"torch can not be used: {last}", "pip install '.[core]' in the source.")
    except (subprocess.TimeoutExpired, ValueError) as error:
        return Finding("devices", "problem", f"torch can not be used: {error}", "pip install '.[core]' in the source.")
    devices = ", ".join(told["gpus"]) or "no GPU"
    detail = f"{os.cpu_count()} CPU cores, {devices}; torch {told['torch']}, transformers {told['transformers']}"
    return Finding("devices", "ok", detail)
