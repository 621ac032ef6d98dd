"""Command line of the library: `python -m nupes_core quantize | evaluate | check`. Exit code 2 on a typed error."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nupes_core.commandline import add_quantize_options, calibration_source, quantization_config
from nupes_core.errors import EvaluationError, NupesError
from nupes_core.formats import FORMATS
from nupes_core.report import Progress

EXIT_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; results go to stdout, progress and errors to stderr."""
    arguments = _parser().parse_args(argv)
    # Read when torch is loaded. Spinning, the default, slows a machine with other work on it tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        result = arguments.run(arguments)
    except NupesError as error:
        _print_error(error, arguments.json)
        return EXIT_ERROR
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"error: this Python has no {error.name}. Use the one NUPES is installed in (source .venv/bin/activate), "
            "or install it into this one (pip install '.[core]').\n"
        )
        return EXIT_ERROR
    except KeyboardInterrupt:
        return 130
    print(json.dumps(result, indent=2) if arguments.json else _lines(result))  # noqa: T201 - the result
    return 0


def _quantize(arguments: argparse.Namespace) -> dict[str, Any]:
    config, data = quantization_config(arguments), calibration_source(arguments)
    from nupes_core.data.calibration import CalibrationFile
    from nupes_core.pipeline import quantize

    if config.needs_calibration:
        _quiet_transformers()
    report = quantize(
        arguments.src,
        arguments.dst,
        config,
        calibration=None if data is None else CalibrationFile(*data),
        progress=_progress(arguments),
        workdir=arguments.workdir,
        formats=arguments.format or ("nupes",),
    )
    return report.to_dict() if arguments.json else _for_people(report.to_dict(), arguments.dst)


def _for_people(report: dict[str, Any], dst: Path) -> dict[str, Any]:
    """Leave out what fills screens, and say what the report does not: where the files are."""
    extra = report.pop("extra")
    del report["layers"]
    formats = report.pop("formats")
    sizes = {f"bytes_{each['format']}": each["bytes_after"] for each in formats} if len(formats) > 1 else {}
    findings = {"findings": "; ".join(extra["findings"])} if extra["findings"] else {}
    return {**report, **sizes, **findings, "files": dst}


def _evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.text is None and arguments.baseline is None:
        raise EvaluationError(
            "nothing to evaluate on", hint="Give --text FILE, or --baseline DIR to measure fidelity to it."
        )
    from nupes_core.evaluation import evaluate, fidelity

    _quiet_transformers()
    common = {"context": arguments.context, "progress": _progress(arguments)}
    if arguments.text is None:
        tokens = arguments.max_tokens or 4096
        return fidelity(arguments.dir, arguments.baseline, tokens=tokens, seed=arguments.seed, **common).to_dict()
    return evaluate(
        arguments.dir, arguments.text, baseline=arguments.baseline, max_tokens=arguments.max_tokens, **common
    ).to_dict()


def _check(arguments: argparse.Namespace) -> dict[str, Any]:
    from nupes_core.check import verify_artifact
    from nupes_core.probe import read_probe

    _quiet_transformers()
    expected = None if arguments.expect is None else read_probe(arguments.expect)
    return verify_artifact(arguments.dir, source=arguments.source, expected=expected).to_dict()


def _probe(arguments: argparse.Namespace) -> dict[str, Any]:
    from nupes_core.probe import probe_folder

    _quiet_transformers()
    return probe_folder(arguments.dir).to_dict()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nupes_core", description="Quantize, evaluate and check models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_quantize(commands.add_parser("quantize", help="quantize a model folder"))
    _add_evaluate(commands.add_parser("evaluate", help="measure perplexity, and fidelity to the float model"))
    _add_check(commands.add_parser("check", help="check that an artifact is whole, loads and computes"))
    probe = commands.add_parser("probe", help="print outputs on fixed inputs, for `check --expect`")
    probe.add_argument("dir", type=Path)
    probe.set_defaults(run=_probe)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print JSON")
        command.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", type=Path, help="folder with config.json and safetensors files")
    parser.add_argument("dst", type=Path, help="new folder for the artifact")
    add_quantize_options(parser)
    parser.add_argument("--format", action="append", choices=sorted(FORMATS), help="default: nupes; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, help="keeps finished matrices, so that a second run resumes")
    parser.set_defaults(run=_quantize)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="model folder: native, dense or float")
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8; without it, text sampled from the baseline")
    parser.add_argument("--context", type=int, default=256, help="tokens a window feeds (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="use only the first N tokens")
    parser.add_argument("--baseline", type=Path, metavar="DIR", help="the float model, for KL and top-1 agreement")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled text")
    parser.set_defaults(run=_evaluate)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="artifact")
    parser.add_argument("--source", type=Path, metavar="DIR", help="the float model; measures each matrix again")
    parser.add_argument("--expect", type=Path, metavar="FILE", help="outputs written by `probe --json`")
    parser.set_defaults(run=_check)


def _progress(arguments: argparse.Namespace) -> Callable[[Progress], None] | None:
    """Return a line that is rewritten on a terminal, and one line each ten seconds elsewhere; rich is not needed."""
    if arguments.quiet:
        return None
    shown = [0.0]
    interval, end = (0.1, "") if sys.stderr.isatty() else (10.0, "\n")
    start = "\r\x1b[K" if sys.stderr.isatty() else ""

    def show(step: Progress) -> None:
        now = time.monotonic()
        if now - shown[0] >= interval or (step.current == step.total and not end):
            shown[0] = now
            share = f"{100 * step.current / max(step.total, 1):.0f} %"
            sys.stderr.write(f"{start}{step.phase} {share} of {step.total} {step.unit} {step.message}{end}")
            sys.stderr.flush()

    return show


def _quiet_transformers() -> None:
    logging: Any = importlib.import_module("transformers.utils.logging")
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _print_error(error: NupesError, as_json: bool) -> None:
    if as_json:
        content = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
        print(json.dumps(content, indent=2))  # noqa: T201 - the result
    hint = f" {error.hint}" if error.hint else ""
    sys.stderr.write(f"error [{error.code}]: {error.message}.{hint}\n")


def _lines(result: dict[str, Any]) -> str:
    width = max(map(len, result))
    return "\n".join(f"{key:{width}}  {_shown(value)}" for key, value in result.items() if value not in (None, {}))


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
