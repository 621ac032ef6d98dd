"""llama.cpp itself, from the package `xllamacpp`, in a process of its own: what it cannot read ends the process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

LIMIT_S = 120.0


def next_tokens(model: Path, prompts: Sequence[list[int] | str]) -> torch.Tensor:
    """Return what llama.cpp expects after each prompt (tokens or a text): log-probabilities [prompts, vocabulary].

    Raises:
        subprocess.CalledProcessError: it cannot read the model.
    """
    return torch.tensor(_ask("expected", model, prompts))


def tokens(model: Path, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each text, special ones not looked for.

    Raises:
        subprocess.CalledProcessError: it cannot read the model.
    """
    found: list[list[int]] = _ask("tokens", model, texts)
    return found


def _ask(question: str, model: Path, inputs: Sequence[Any]) -> Any:
    asked = json.dumps({"question": question, "model": str(model), "inputs": inputs})
    command = [sys.executable, str(Path(__file__).resolve())]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    return json.loads(done.stdout.splitlines()[-1])


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
    answer = {"expected": _expected, "tokens": _tokens}[asked["question"]]
    print(json.dumps([answer(server, each, size) for each in asked["inputs"]]))


def _expected(server: Any, prompt: list[int] | str, size: int) -> list[float]:
    body = {"prompt": prompt, "max_tokens": 1, "logprobs": size, "temperature": 0.0, "cache_prompt": False}
    # The figures are of the model; which token is taken is no matter, but it must be text by itself.
    answer = server.handle_completions({**body, "logit_bias": [["a", 1000.0]]})
    [taken] = answer["choices"][0]["logprobs"]["content"]
    found = {each["id"]: each["logprob"] for each in taken["top_logprobs"]}
    return [found[token] for token in range(size)]


def _tokens(server: Any, text: str, _: int) -> Any:
    body = {"content": text, "add_special": False, "parse_special": False}
    return httpx.post(f"{server.listening_address}/tokenize", json=body, timeout=30).raise_for_status().json()["tokens"]


if __name__ == "__main__":
    _answer()
