"""What every benchmark command asks and keeps alike."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from . import report


class Command:
    """A benchmark called from the command line.

    Args:
        parser: With its own options; those that all have are added.
        repeats: Default of ``--repeats``; None leaves the option out.

    Attributes:
        options: As parsed.
        threads: How many processors this process keeps to.
    """

    def __init__(self, parser: argparse.ArgumentParser, repeats: int | None = None) -> None:
        if repeats is not None:
            parser.add_argument("--repeats", type=int, default=repeats)
        parser.add_argument("--threads", type=int, help="default one for each processor")
        parser.add_argument("--json", type=Path, help="also write the numbers there")
        self.options = parser.parse_args()
        self.threads = bind(self.options.threads)
        self._machine = report.machine(self.threads)
        print(report.first_line(self._machine), file=sys.stderr)

    def keep(self, **numbers: Any) -> None:
        """Write the numbers where ``--json`` says, with those of the machine."""
        if self.options.json:
            text = json.dumps({"machine": self._machine, **numbers})
            self.options.json.write_text(text + "\n")


def bind(threads: int | None) -> int:
    """Keep this process and its children to so many processors: JAX takes no other hint."""
    if not hasattr(os, "sched_setaffinity"):
        return threads or os.cpu_count() or 1
    usable = sorted(os.sched_getaffinity(0))
    if threads:
        os.sched_setaffinity(0, usable[:threads])
    return threads or len(usable)
