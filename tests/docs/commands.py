"""Commands of the pages, as a reader would type them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "nupes_core" / "README.md"]
    + [path for path in (REPOSITORY / "docs").rglob("*.md") if "decisions" not in path.parts]
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SHELL = frozenset({"", "bash", "sh", "shell"})


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str
    text: str

    @property
    def program(self) -> str:
        """What it starts, variables before it left out."""
        words = [word for word in self.text.split() if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        return words[0] if words else ""


def commands() -> Iterator[Command]:
    """Yield the commands of all shell blocks; comments are left out, lines that go on are one command."""
    for page in PAGES:
        for language, block in _FENCE.findall(page.read_text("utf-8")):
            if language in _SHELL:
                joined = re.sub(r"\\\n\s*", "", block)
                for line in joined.splitlines():
                    text = re.sub(r"(^|\s)#\s.*$", "", line).strip()
                    if text:
                        yield Command(str(page.relative_to(REPOSITORY)), text)
