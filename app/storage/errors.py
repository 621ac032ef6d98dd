"""What can go wrong with stored bytes."""

from __future__ import annotations


class StorageError(Exception):
    """The store does not answer, or answers with nonsense; trying again later may help."""


class BlobNotFoundError(StorageError):
    """No blob with this checksum."""

    def __init__(self, sha256: str) -> None:
        super().__init__(f"no content with sha256 {sha256} is stored")


class ChecksumMismatchError(StorageError):
    """The bytes are not the ones that were promised."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(f"expected content with sha256 {expected}, got {actual}")
        self.expected = expected
        self.actual = actual


class PartialBusyError(StorageError):
    """Somebody else is writing to the same partial file."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is being written to by another request")


class DiskFullError(StorageError, OSError):
    """No room left; nothing half-written stays behind."""
