"""The JUnit report of a job that nobody waited for to the end; those of ended jobs the service writes."""

from __future__ import annotations

from xml.etree import ElementTree as ET  # nosec B405  # only written

from nupes_client.schemas.jobs import Job


def unfinished(job: Job, why: str) -> bytes:
    """Return a report with one case, `job`, in error.

    Args:
        job: as it was seen last.
        why: what the pipeline should say.
    """
    counts = {"tests": "1", "failures": "0", "errors": "1"}
    root = ET.Element("testsuites", {"name": "nupes", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": job.name or job.id, **counts, "skipped": "0"})
    properties = ET.SubElement(suite, "properties")
    for name, value in (("job", job.id), ("model", job.config.model.id)):
        ET.SubElement(properties, "property", {"name": name, "value": value})
    case = ET.SubElement(suite, "testcase", {"classname": "nupes", "name": "job"})
    ET.SubElement(case, "error", {"type": f"job_{job.status}", "message": why})
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))
