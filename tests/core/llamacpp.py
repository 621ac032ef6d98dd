"""llama.cpp itself, from the package `xllamacpp`, in a process of its own: what it cannot read ends the process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

LIMIT_S = 120.0


def next_tokens(model: Path, prompts: Sequence[list[int] | str]) -> torch.Tensor:
    """Return what llama.cpp expects after each prompt (tokens or a text): log-probabilities [prompts, vocabulary].

    Raises:
        subprocess.CalledProcessError: it cannot read the model.
    """
    asked = json.dumps(
        {"model": str(model), "prompts": [each if isinstance(each, str) else list(each) for each in prompts]}
    )
    command = [sys.executable, str(Path(__file__).resolve())]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    return torch.tensor(json.loads(done.stdout.splitlines()[-1]))


def _answer() -> None:
    import gguf
    import xllamacpp

    asked = json.load(sys.stdin)
    size = len(gguf.GGUFReader(asked["model"]).get_field("tokenizer.ggml.tokens").data)
    params = xllamacpp.CommonParams()
    params.model.path = asked["model"]
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 512, 1, 0
    params.cpuparams.n_threads = 1
    params.warmup = params.fit_params = False
    server = xllamacpp.Server(params)
    print(json.dumps([_expected(server, prompt, size) for prompt in asked["prompts"]]))


def _expected(server: Any, prompt: list[int] | str, size: int) -> list[float]:
    body = {"prompt": prompt, "max_tokens": 1, "logprobs": size, "temperature": 0.0, "cache_prompt": False}
    # The figures are of the model; which token is taken is no matter, but it must be text by itself.
    answer = server.handle_completions({**body, "logit_bias": [["a", 1000.0]]})
    [taken] = answer["choices"][0]["logprobs"]["content"]
    found = {each["id"]: each["logprob"] for each in taken["top_logprobs"]}
    return [found[token] for token in range(size)]


if __name__ == "__main__":
    _answer()
