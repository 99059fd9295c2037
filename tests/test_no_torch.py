"""The analyzer and the commands run where no framework is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import models
import pytest

SAMPLES = sorted((Path(__file__).parent.parent / "samples" / "models").glob("*.onnx"))

REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "tensorflow", "keras", "jax"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""

CHECK = """
bad = [m for m in sys.modules if m.split(".")[0] in
       ("torch", "tensorflow", "keras", "jax", "analyzer", "cli", "exporters")]
assert not bad, bad
"""


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", REFUSE + code + CHECK, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_samples_are_there():
    assert len(SAMPLES) >= 2


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.stem)
def test_samples_are_analyzed(path):
    code = """
import numpy as np
from mnemoscope.analyzer import Corpus, analyze, describe, open_model
model = open_model(sys.argv[1])
ids = np.random.default_rng(0).integers(0, model.vocabulary_size, 40)
tree = analyze(model, Corpus(ids, "random", "", 1, 0), delays=5)
print(sorted(tree.children), int(tree["lstm0.c"]["count"][0, 5]))
"""
    assert run(code, path) == "['lstm0.c', 'lstm0.h'] 35\n"


def test_every_public_name_and_every_command():
    code = """
import click
import mnemoscope.analyzer as analyzer
from mnemoscope.cli.main import main
for name in analyzer.__all__:
    getattr(analyzer, name)
def load(group):
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            if isinstance(command, click.Group):
                load(command)
load(main)
"""
    run(code)


def test_the_command_from_model_to_table(tmp_path):
    model = models.save(models.fused(layers=1), tmp_path / "m.onnx")
    (tmp_path / "c.txt").write_text("w1 w2 w3 w4\nw5 w1\n" * 5)
    code = """
from mnemoscope.cli.main import main
model, corpus, result = sys.argv[1:]
main(["analyze", model, corpus, "-o", result, "--delays", "3", "-q"], standalone_mode=False)
main(["inspect", model], standalone_mode=False)
main(["show", result], standalone_mode=False)
"""
    said = run(code, model, tmp_path / "c.txt", tmp_path / "r.nc")
    assert "lstm0.c" in said


def test_this_process_has_no_second_copy():
    assert not {"analyzer", "cli", "exporters"} & set(sys.modules)
