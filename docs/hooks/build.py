"""What mkdocs calls: pages that come from code and benchmarks, pictures, formulas as MathML."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))
sys.path.insert(0, str(Path(__file__).parent))

import figures  # noqa: E402
import generated  # noqa: E402

_FIGURE = re.compile(r"^\[\[figure:(\w+)\]\]$", re.MULTILINE)
_DISPLAYED, _INLINE = re.compile(r"\$\$(.+?)\$\$", re.DOTALL), re.compile(r"(?<![\\$])\$([^$\n]+)\$")
_FENCE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages that are not written here."""
    for path, content in _pages():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Put pictures in; formulas where the page says `math: true`, because elsewhere `$` belongs to the shell."""
    markdown = _FIGURE.sub(lambda match: figures.FIGURES[match[1]](), markdown)
    return _with_formulas(markdown) if page.meta.get("math") else markdown


def _pages() -> Iterator[tuple[str, str]]:
    for result in sorted((REPOSITORY / "benchmarks" / "results").glob("*.md")):
        yield f"measured/{result.name}", result.read_text("utf-8")
    yield "changelog.md", (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    yield "contributing.md", (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    yield "decisions/index.md", _decisions()
    makers: dict[str, Callable[[], str]] = generated.PAGES
    for name, make in makers.items():
        yield f"reference/{name}.md", make()


def _decisions() -> str:
    lines = ["# Decisions", "", "What was chosen where there was a choice, and why.", ""]
    for path in sorted((REPOSITORY / "docs" / "decisions").glob("[0-9]*.md")):
        title = path.read_text("utf-8").partition("\n")[0].lstrip("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def _with_formulas(markdown: str) -> str:
    parts = _FENCE.split(markdown)
    for index in range(0, len(parts), 2):
        text = _DISPLAYED.sub(lambda match: convert(match[1].strip(), display="block"), parts[index])
        parts[index] = _INLINE.sub(lambda match: convert(match[1]), text)
    return "".join(parts)
