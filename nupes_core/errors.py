"""Typed errors. Each carries the `code` of the service's closed error enum and quotes the offending value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class NupesError(Exception):
    """Base of all errors this package raises on purpose.

    `code` is stable and machine readable; `hint` says what to do next.
    """

    code = "internal"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidConfigError(NupesError, ValueError):
    """A quantization setting is outside what the method supports."""

    code = "invalid_config"


class UnsafeFileError(NupesError):
    """A file is broken, truncated or of a kind that could run code when loaded."""

    code = "unsafe_file"


class UnsupportedArchitectureError(NupesError):
    """The model would have to be built, and its `model_type` is not one that transformers knows."""

    code = "unsupported_architecture"


class NoQuantizableLayersError(NupesError):
    """Nothing in the checkpoint is a weight matrix that the selection leaves in."""

    code = "no_quantizable_layers"


class NumericsError(NupesError):
    """A weight or a result holds NaN or an infinity."""

    code = "numerics_nan"


@contextmanager
def naming(tensor: str) -> Iterator[None]:
    """Put the name of a tensor before the message of a `NumericsError` that arises within."""
    try:
        yield
    except NumericsError as error:
        raise NumericsError(f"{tensor}: {error.message}", hint=error.hint) from error


class EvaluationError(NupesError):
    """The model could not be evaluated (text too short, not decodable, no language-model head)."""

    code = "eval_failed"


class CalibrationError(NupesError):
    """Calibration data is missing, empty, too short or not decodable, or does not fit the model."""

    code = "calibration_failed"


class LoadCheckError(NupesError):
    """The written artifact does not load, or computes something else than the weights it was written from."""

    code = "load_check_failed"


class DiskFullError(NupesError, OSError):
    """The target file system has no room left; nothing half-written is left behind."""

    code = "disk_full"
