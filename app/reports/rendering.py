"""From the report to text in a format. What comes from users and model files is escaped here, for every template."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from app.core.templates import strict_environment
from app.reports.figures import cases, figures, format_table, number, properties, worst
from nupes_client.schemas.reports import JobReport

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML document may hold, escaped or not; in HTML they are errors too."""

_MARKDOWN = {ord(sign): f"\\{sign}" for sign in "\\`*_[]|~#!$"} | {
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord("@"): "&#64;",  # names nobody whom a code forge would notify
}
_LINES = re.compile(r"[\s\x00-\x1f\x7f\u2028\u2029]+")


@dataclass(frozen=True)
class Kind:
    """A format: its media type, the ending of its file, and how it is made."""

    media_type: str
    suffix: str
    render: Callable[[JobReport], str]


def _printable(value: Any) -> Any:
    return _NOT_XML.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _markdown(value: Any) -> Markup:
    """One line of text that means itself: in a table a line break would end the row."""
    if isinstance(value, Markup):
        return value
    escaped = _LINES.sub(" ", _printable(str(value))).translate(_MARKDOWN)
    return Markup(escaped)  # noqa: S704  # nosec B704


def _environment(finalize: Callable[[Any], Any]) -> Environment:
    environment = strict_environment("app.reports", finalize=finalize, keep_trailing_newline=True)
    environment.filters["number"] = number
    return environment


_MARKUP = _environment(_printable)
_TEXT = _environment(_markdown)


def _render(environment: Environment, template: str) -> Callable[[JobReport], str]:
    def render(report: JobReport) -> str:
        job = report.job
        return environment.get_template(template).render(
            report=report,
            job=job,
            figures=figures(job.result),
            formats=format_table(job.result),
            properties=properties(job.result),
            cases=cases(job),
            worst=worst(report.layers),
        )

    return render


KINDS: dict[str, Kind] = {
    "json": Kind("application/json", "json", lambda report: report.model_dump_json()),
    "markdown": Kind("text/markdown", "md", _render(_TEXT, "report.md")),
    "html": Kind("text/html", "html", _render(_MARKUP, "report.html")),
    "junit": Kind("application/xml", "xml", _render(_MARKUP, "report.xml")),
}
