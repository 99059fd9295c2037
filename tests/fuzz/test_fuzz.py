"""A sample of the cases of `make fuzz`, and the judge judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .harness import MEMORY, Call, check_inspect, check_methods, judge

ROOT = Path(__file__).parents[2]
GOOD = Call(["inspect", "m.onnx"], status=2, stderr="Error: m.onnx is empty; expected a model.\n")


@pytest.mark.skipif(sys.platform != "linux", reason="limits are kept with Linux's own means")
def test_sample(tmp_path):
    # A process of its own: the harness forks, which no process with sessions may do.
    call = [sys.executable, "-m", "tests.fuzz", "--sample", "60", "--json", tmp_path / "out.json"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    outcomes = json.loads((tmp_path / "out.json").read_text())
    statuses = [c["status"] for o in outcomes for c in o["calls"]]
    assert len(outcomes) == 60
    assert min(statuses.count(0), statuses.count(2)) >= 10  # else the damage is too weak, or blunt
    assert sum(o["compared"] for o in outcomes) >= 3


def test_a_case_is_the_same_every_time(tmp_path):
    from .cases import MODELS, case

    for number in (0, 17, MODELS - 1, MODELS, MODELS + 300):
        written = []
        for folder in (tmp_path / f"{number}a", tmp_path / f"{number}b"):
            folder.mkdir()
            name, write = case(number)
            calls = write(folder)
            written.append((name, calls, {p.name: p.read_bytes() for p in folder.iterdir()
                                          if not p.is_symlink()}))  # fmt: skip
        assert written[0] == written[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"status": 0, "stderr": ""}, None),
        ({"status": None, "signal": 11}, "died of SIGSEGV"),
        ({"status": None, "hang": "still ran after 90 s"}, "still ran after"),
        ({"status": 1}, "status 1"),
        ({"status": 139}, "status 139"),
        ({"memory": MEMORY + 1}, "took 1,024 MiB"),
        ({"stderr": "Traceback (most recent call last):\n  x\nKeyError: 1\n"}, "traceback: Key"),
        ({"status": 0, "stderr": "Traceback (most recent call last):\nx\n"}, "traceback"),
        ({"stderr": ""}, "status 2 without"),
        ({"status": 0, "stderr": "/a/b.py:12: UserWarning: Ignoring\n  x()\n"}, "a warning that"),
        ({"stderr": "Error: \n"}, "an empty message"),
        ({"stderr": "Error: one thing is wrong\nError: and another\n"}, "status 2 without"),
        ({"stderr": "Error: one thing is wrong\nmore\n"}, "status 2 without"),
        ({"stderr": "Error: the model broke: KeyError: 'x'\n"}, "an internal exception shows"),
        ({"stderr": "Error: ort says std::bad_alloc, sorry\n"}, "an internal exception shows"),
        ({"stderr": f"Error: {'x' * 1200}\n"}, "a message of 1200 characters"),
        ({"stderr": "Error: red \x1b[31m is not for terminals\n"}, "does not print"),
    ],
)
def test_judge(change, said):
    found = list(judge(Call(**{**vars(GOOD), **change})))
    assert found == [] if said is None else any(said in f for f in found), found


EXPORTS = """
import sys
from pathlib import Path
from tests.fuzz import cases, harness
harness.warm()
for number in map(int, sys.argv[2:]):
    folder = Path(sys.argv[1]) / str(number)
    folder.mkdir()
    (arguments,) = [c for c in cases.case(number)[1](folder) if c[:2] == ["export", "onnx"]]
    done = harness.call(arguments, folder)
    said = [*harness.judge(done)]
    print(number, done.status, said or "as it should be")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits are kept with Linux's own means")
def test_exports_that_were_endless_or_ended_in_a_traceback(tmp_path):
    numbers = ["36", "253", "268", "592", "344", "560"]
    done = subprocess.run([sys.executable, "-c", EXPORTS, tmp_path, *numbers], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.stdout.splitlines() == [f"{n} 2 as it should be" for n in numbers], done.stderr


HANGS = """
import sys, time
from pathlib import Path
from mnemoscope import analyzer
from tests.fuzz import harness
harness.warm()
harness.SECONDS, harness.IDLE = 3, 2
def bad(path):
    end = time.process_time() + {busy}
    while time.process_time() < end:
        pass
    time.sleep({asleep})
    raise SystemExit(0)
analyzer.open_model = bad
print("said:", harness.call(["inspect", "m.onnx"], Path(sys.argv[1])).hang)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits are kept with Linux's own means")
@pytest.mark.parametrize(
    ("busy", "asleep", "said"),
    [
        (30, 0, "still ran after 3 s of processor time"),
        (0, 30, "did nothing for 2 s, and did not end"),
        (0.1, 0.5, ""),
    ],
)
def test_planted_hangs(tmp_path, busy, asleep, said):
    code = HANGS.format(busy=busy, asleep=asleep)
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True,
                          text=True, timeout=100)  # fmt: skip
    assert done.stdout == f"said: {said}\n", done.stderr[-2000:]


@pytest.mark.parametrize("text", ["", "[]", '{"states": []}', '{"states": [{"size": NaN}]}',
                                  '{"states": [{"size": -1}]}'])  # fmt: skip
def test_inspect_that_says_nothing(text):
    assert list(check_inspect(Call(["inspect"], status=0, stdout=text)))


@pytest.mark.parametrize(("change", "said"), [(1.0, None), (1.01, "differ by"), (0.0, "differ by"),
                                              (np.nan, "differ by")])  # fmt: skip
def test_methods_that_differ(monkeypatch, change, said):
    g = np.random.default_rng(0).standard_normal((1, 4, 3, 2))
    both = {Path("a"): {"h": g}, Path("b"): {"h": g * change}}
    monkeypatch.setattr(sys.modules[judge.__module__], "gradients", both.get)
    found = list(check_methods(Path("a"), Path("b")))
    assert found == [] if said is None else said in found[0]
