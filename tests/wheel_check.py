"""Run the installed wheel on a shipped model in an environment without torch.

Not a pytest module: ``make wheel`` runs it with the interpreter that has only the wheel.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path


def main(models: Path) -> None:
    for name in ("torch", "tensorflow", "keras"):
        assert importlib.util.find_spec(name) is None, f"{name} is installed here"
    command = Path(sys.executable).with_name("mnemoscope")
    model = models / "pydoc-lstm.onnx"

    def run(*arguments: str) -> None:
        subprocess.run([str(command), *arguments], check=True)

    run("--help")
    run("inspect", str(model))
    run("corpus", "pydoc", "-o", "corpus.txt")
    run("analyze", str(model), "corpus.txt", "-o", "r.nc", "--positions", "200")
    run("show", "r.nc", "--state", "lstm0.c", "--csv")
    run("plot", "r.nc", "-o", "r.svg")
    failed = subprocess.run(
        [str(command), "export", "torch", "x.py:model", "-o", "m.onnx"],
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 2, failed
    assert "Traceback" not in failed.stderr, failed.stderr
    assert Path("r.svg").stat().st_size > 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
