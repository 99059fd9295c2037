from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from mnemoscope.analyzer.result import build, save_result
from mnemoscope.analyzer.sums import Sums
from mnemoscope.cli.main import main

DELAYS, UNITS, SIZE, BLOCKS, EACH = 6, 7, 4, 5, 40


def planted(seed: int, rate: float = 2.0) -> Sums:
    """Block sums whose common part decays below their noise at a delay of about 3."""
    rng = np.random.default_rng(seed)
    common = np.exp(-rate * np.arange(DELAYS))[:, None, None] * rng.standard_normal((UNITS, SIZE))
    noise = np.sqrt(EACH) * rng.standard_normal((2, BLOCKS, 1, DELAYS, UNITS, SIZE)) * 0.1
    halves = EACH / 2 * common + noise / np.sqrt(2)
    counts = np.full((BLOCKS, 1, DELAYS), EACH)
    return Sums(halves.sum(0), counts, halves[0].sum(0), counts.sum(0) // 2)


def make_tree(states=("lstm0.h", "lstm0.c"), **options):
    rng = np.random.default_rng(5)
    return build(
        {name: planted(i) for i, name in enumerate(states)},
        groups=["all"],
        embeddings=rng.standard_normal((30, SIZE)),
        state_info={name: {"kind": "cell", "layer": 0} for name in states},
        attributes={
            "model": "m.onnx",
            "corpus": "c.txt",
            "corpus_sha256": "c",
            "corpus_positions": BLOCKS * EACH,
            "positions": BLOCKS * EACH,
            "stretches": 1,
            "blocks": BLOCKS,
            "method": "jvp",
            "tf32": False,
        },
        **options,
    )


@pytest.fixture
def tree():
    return make_tree()


@pytest.fixture
def result_file(tree, tmp_path):
    path = tmp_path / "r.nc"
    save_result(tree, path)
    return str(path)


@pytest.fixture
def run():
    """Run the command in this process; gives exit_code, stdout and stderr."""

    def call(*arguments, **options):
        result = CliRunner().invoke(main, [str(a) for a in arguments], **options)
        assert "Traceback" not in result.output
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call
