"""What no ``except`` can catch: crashes, endless work and floods of memory in native code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import models
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is watched without fork")

START = """
import os, signal, sys, time
from mnemoscope import analyzer
from mnemoscope.analyzer import _limits
from mnemoscope.cli.main import main

def bad(path):
    with _limits.limited("opening the model"):
        {body}

_limits.SECONDS = {seconds}
analyzer.open_model = bad
sys.argv = ["mnemoscope", "inspect", "m.onnx"]
main()
"""


@pytest.fixture
def start(tmp_path):
    """Start ``inspect`` with other code in place of what reads the model."""
    models.save(models.flat(), tmp_path / "m.onnx")

    def call(body, seconds=0.3, **environment):
        return subprocess.Popen(
            [sys.executable, "-c", START.format(body=body, seconds=seconds)],
            cwd=tmp_path, env={**os.environ, **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return call


@pytest.fixture
def ended(start):
    """As `start`; gives status and message."""

    def call(body, **options):
        process = start(body, **options)
        out, err = process.communicate(timeout=60)
        assert out == ""
        return process.returncode, err

    return call


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGFPE", "SIGBUS", "SIGILL"])
def test_a_crash_becomes_a_message(ended, name):
    status, said = ended(f"os.kill(os.getpid(), signal.{name})")
    assert status == 2
    assert said.startswith("Error: ONNX Runtime, or another library that reads the model, crashed")
    assert f"({name})" in said
    assert said.rstrip().endswith("or export the model again.")


def test_a_process_killed_from_outside(ended):
    status, said = ended("os.kill(os.getpid(), signal.SIGKILL)")
    assert (status, said.startswith("Error: The command was killed from outside")) == (2, True)


def test_endless_work_is_ended(ended):
    status, said = ended("while True: pass")
    assert status == 2
    assert "because opening the model took more than 0 s of processor time" in said


def test_time_that_passes_is_not_work(ended):
    status, said = ended("time.sleep(1.5); raise SystemExit(0)")
    assert (status, said) == (0, "")


def test_a_flood_of_memory_is_ended(ended):
    # Filling memory takes processor time too, which is not what is tested.
    status, said = ended(
        "x = [bytes([1]) * 10**8 for _ in range(200)]", seconds=30, MNEMOSCOPE_MEMORY="0.5"
    )
    assert status == 2
    assert said.startswith("Error: The command was ended because it took ")
    assert "and 476 MiB may be used" in said


@pytest.mark.parametrize("value", ["x", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number(ended, value):
    status, said = ended("time.sleep(30)", MNEMOSCOPE_MEMORY=value)
    assert status == 2
    assert "MNEMOSCOPE_MEMORY must be a number of gigabytes above 0" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("status", [0, 1, 2, 130, 141])
def test_the_status_passes_through(ended, status):
    assert ended(f"raise SystemExit({status})") == (status, "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_reaches_the_command(start, name):
    process = start("print('here', file=sys.stderr, flush=True); time.sleep(60)")
    assert process.stderr.readline() == "here\n"
    began = time.monotonic()
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    expected = {"SIGINT": (130, "Interrupted.\n"), "SIGTERM": (-signal.SIGTERM, "")}
    assert (process.returncode, said) == expected[name]


def test_the_command_ends_with_who_watches_it(start):
    process = start("print('here', file=sys.stderr, flush=True); time.sleep(60)")
    assert process.stderr.readline() == "here\n"
    process.kill()
    began = time.monotonic()
    process.communicate(timeout=30)  # until nobody holds the streams any more
    assert time.monotonic() - began < 10


WRITING = (
    "from mnemoscope.analyzer._files import replacing\n"
    "        with replacing('r.nc') as temporary:\n"
    "            temporary.write_text('half')\n"
    "            print('here', file=sys.stderr, flush=True)\n"
    "            {then}"
)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interruption_leaves_no_unfinished_file(start, tmp_path, name):
    process = start(WRITING.format(then="time.sleep(60)"))
    assert process.stderr.readline() == "here\n"
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=30)
    expected = {"SIGINT": 130}.get(name, -getattr(signal, name))
    assert process.returncode == expected
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    "then",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "x = [bytes([1]) * 10**8 for _ in range(200)]",
        "while True: pass",
    ],
    ids=["killed", "crashed", "flood", "endless"],
)
def test_a_file_of_a_command_that_was_ended_is_removed(start, tmp_path, then):
    process = start(WRITING.format(then=then), MNEMOSCOPE_MEMORY="0.5")
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_is_removed_when_the_watcher_is_killed(start, tmp_path):
    process = start(WRITING.format(then="time.sleep(60)"))
    assert process.stderr.readline() == "here\n"
    process.kill()
    process.communicate(timeout=30)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_command_that_hears_nothing_is_ended_all_the_same(start, tmp_path):
    """As native code does not: no handler of Python runs before it returns."""
    deaf = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); time.sleep(60)"
    process = start(WRITING.format(then=deaf))
    assert process.stderr.readline() == "here\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    process.communicate(timeout=50)
    assert time.monotonic() - began < 30
    assert process.returncode == -signal.SIGTERM
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
