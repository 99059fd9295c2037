"""Verdicts as a JUnit XML report, the form that continuous-integration servers read."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from mnemoscope.analyzer._files import replacing

if TYPE_CHECKING:
    from mnemoscope.analyzer.budget import Verdict

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def discard_junit(path: str) -> None:
    """Delete an earlier report, so that none is taken for that of a check which could not be made.

    Only what begins as XML is deleted: whatever the budget turns out to name stays.
    """
    with suppress(OSError):
        with open(path, "rb") as file:
            xml = file.read(5) == b"<?xml"
        if xml:
            os.unlink(path)


def write_junit(
    path: str, verdicts: Sequence[Verdict], budget: str, failing: set[str], seconds: float
) -> None:
    """Write one test case per verdict.

    What fails the check is a failure of type ``failed`` or ``undecided``; what else is undecided
    counts as skipped.

    Args:
        path: Where.
        verdicts: What to write.
        budget: Name of the suite.
        failing: The statuses that fail the check.
        seconds: How long it took.
    """
    failures = sum(v.status in failing for v in verdicts)
    skipped = sum(v.status == "undecided" for v in verdicts if v.status not in failing)
    counts = {
        "tests": str(len(verdicts)),
        "failures": str(failures),
        "errors": "0",
        "skipped": str(skipped),
        "time": f"{seconds:.3f}",
    }
    root = ET.Element("testsuites", {"name": "mnemoscope check", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": _legal(budget), **counts})
    for v in verdicts:
        case = ET.SubElement(
            suite,
            "testcase",
            {"name": _legal(v.name), "classname": f"{v.rule.kind}.{v.rule.number}", "time": "0"},
        )
        if v.status in failing:
            found = ET.SubElement(case, "failure", {"message": _legal(v.message), "type": v.status})
            found.text = _legal(f"{v.rule.where}: {v.what}\n{v.message}")
        elif v.status == "undecided":
            ET.SubElement(case, "skipped", {"message": _legal(v.message)})
        else:
            ET.SubElement(case, "system-out").text = _legal(v.found)
    ET.indent(root)
    with replacing(path) as temporary:
        ET.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def _legal(text: str) -> str:
    """Put a question mark for what XML cannot hold: control characters, lone surrogates."""
    return _ILLEGAL.sub("?", text)
