"""What the documents say is what the code does."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import spec_cases

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "samples/README.md",
    ROOT / "samples/ci/README.md",
]


def test_command_reference_is_current():
    generated = runpy.run_path(str(ROOT / "docs/generate.py"))["page"]()
    assert (ROOT / "docs/commands.md").read_text(encoding="utf-8") == generated, "run make docs"


def test_operator_table_is_current():
    last = (ROOT / "docs/operators.md").read_text(encoding="utf-8").strip().splitlines()[-1]
    run = sum(spec_cases.reason_left_out(c) is None for c in spec_cases.cases())
    assert last.startswith(f"{run} of {run} node tests agree"), "run make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_readme_commands_run(tmp_path):
    """The commands of the README's head, on fewer positions, and its Python example."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [x.strip() for x in text.splitlines() if x.startswith("    mnemoscope ")][:3]
    assert len(lines) == 3
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    for line in lines:
        words = shlex.split(line.replace("--positions 3000", "--positions 150"))
        command = [sys.executable, "-m", "mnemoscope.cli", *words[1:]]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", text, re.S) if "open_model" in c]
    code = code.replace("positions=500", "positions=100")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "r.nc").exists()
