"""The command, killed and interrupted at any time, and what it refuses."""

from __future__ import annotations

import errno
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import models
import psutil
import pytest
from mnemoscope.analyzer import open_result
from mnemoscope.analyzer._checkpoint import Checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and locks of POSIX")

# The command itself, with small shards and staging sums, each shard after a pause. Nothing that
# imports ONNX Runtime may be imported before the command forks.
START = """
import sys, time
from mnemoscope.analyzer import _checkpoint
from mnemoscope.cli.main import main

pause = float(sys.argv.pop(1))
enter, later = _checkpoint.Checkpoint.__enter__, _checkpoint.later

def small(self):
    from mnemoscope.analyzer import _shards, sums
    _shards._LEAST = _shards._MOST = 40
    sums._FLUSH = 16
    return enter(self)

def slow(*arguments):
    time.sleep(pause)
    return later(*arguments)

_checkpoint.Checkpoint.__enter__, _checkpoint.later = small, slow
main()
"""
KILLS = 12  # of each of two runs


def text(path, seed=0, lines=400):
    rng = random.Random(seed)
    words = [[f"w{rng.randrange(models.V - 2)}" for _ in range(9)] for _ in range(lines)]
    path.write_text("".join(" ".join(line) + "\n" for line in words))
    return path


@pytest.fixture
def folder(tmp_path):
    models.save(models.MODELS["lstm"](), tmp_path / "m.onnx")
    text(tmp_path / "c.txt")
    return tmp_path


# One stream, so that there are many steps to end after.
COMMAND = ("analyze", "m.onnx", "c.txt", "--delays", "4", "--streams", "1")


def start(folder, *arguments, pause=0.0, command=COMMAND):
    # In a session of its own, so that all of it can be killed at once.
    return subprocess.Popen(
        [sys.executable, "-c", START, str(pause), *command, *arguments],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def wait_for(process, marker):
    """Read what a process says until it says `marker`; gives the lines."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if marker in line:
            return lines
    raise AssertionError("".join(lines))


def wait_for_another(path, process):
    """Wait until a checkpoint is written that was not there."""

    def there():
        try:
            return path.stat().st_ino, path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    before = there()
    while there() in (None, before):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)


def arrays(path):
    """Every variable of a result, as bytes."""
    return {
        f"{node.path}/{name}": v.to_numpy().tolist() if v.dtype.kind == "O" else v.values.tobytes()
        for node in open_result(path).subtree
        for name, v in node.to_dataset(inherit=False).variables.items()
    }  # fmt: skip


def killed_and_resumed(folder, output, seed, *options):
    """Kill a run again and again, and let it end at last; gives how often it was killed."""
    rng = random.Random(seed)
    kills = written = 0
    path = folder / f"{output}.checkpoint"
    call = ("-o", output, "--resume", "--checkpoint-every", "0.0001", *options)
    while kills < KILLS:
        process = start(folder, *call, pause=0.05)
        if kills % 4 == 3:  # whenever it may be, most likely before the work
            time.sleep(rng.uniform(0, 2))
        else:
            wait_for_another(path, process)
            time.sleep(rng.uniform(0, 0.15))
        whom = kills % 3
        family = psutil.Process(process.pid).children()
        if whom == 0 and family:
            family[0].kill()
        elif whom == 1:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=240)  # until no process of it is left
        assert process.returncode != 0
        kills += 1
        written += path.exists()
    process = start(folder, *call)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said
    assert "Going on from the checkpoint: " in said
    assert written > KILLS / 2
    return kills


@pytest.mark.timeout(900)  # a minute on an idle machine, but 27 starts of the command
def test_a_run_that_is_killed_again_and_again(folder):
    """Twice: in single precision with classes and staging sums, and in double precision."""
    (folder / "groups.tsv").write_text("".join(f"w{i}\tc{i % 3}\n" for i in range(models.V - 2)))
    runs = {
        "single.nc": ("--group-by", "groups.tsv", "--threads", "2"),
        "double.nc": ("--precision", "float64", "--positions", "3000", "--threads", "1"),
    }
    for name, options in runs.items():
        process = start(folder, "-o", f"whole-{name}", "--checkpoint-every", "0", *options)
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 0, said
    with ThreadPoolExecutor() as pool:
        kills = pool.map(
            lambda run: killed_and_resumed(folder, run[0], run[0], *run[1]), runs.items()
        )
    assert sum(kills) >= 20
    for name in runs:
        whole = arrays(folder / f"whole-{name}")
        assert len(whole) > 40
        assert arrays(folder / name) == whole
    expected = {"m.onnx", "c.txt", "groups.tsv", *runs, *(f"whole-{name}" for name in runs)}
    assert {p.name for p in folder.iterdir()} == expected


def interrupt(process, whom):
    """As `kill -INT` of one of the two processes, and as a terminal does."""
    child = psutil.Process(process.pid).children()[0].pid
    if whom in ("parent", "terminal"):
        os.kill(process.pid, signal.SIGINT)
    if whom in ("child", "terminal"):
        os.kill(child, signal.SIGINT)


@pytest.mark.parametrize("whom", ["parent", "child", "terminal"])
def test_an_interruption_finishes_the_step(folder, whom):
    # A step that takes longer than the parent waits before it hands an interruption on.
    process = start(folder, "-o", "r n.nc", pause=1.2)
    wait_for(process, "Memory: ")
    time.sleep(0.3)
    interrupt(process, whom)
    said = process.communicate(timeout=240)[1]
    path = folder / "r n.nc.checkpoint"
    assert process.returncode == 130
    assert said.startswith("Finishing the step at hand; press Ctrl-C again to stop at once.\n")
    assert said.count("Finishing") == 1
    assert said.endswith("Interrupted.\n")
    assert path.exists()
    assert not (folder / "r n.nc").exists()
    line = re.search(f"The run is kept in {re.escape(str(path))}. Go on with it:\n  (.*)\n", said)
    again = shlex.split(line[1])
    at = again.index("analyze")
    assert again[at:] == [*COMMAND, *shlex.split("-o 'r n.nc' --resume")]
    process = start(folder, command=again[at:])
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said
    assert "Going on from the checkpoint: " in said
    assert sorted(p.name for p in folder.iterdir()) == ["c.txt", "m.onnx", "r n.nc"]


@pytest.mark.parametrize("whom", ["parent", "terminal"])
def test_a_second_interruption_stops_at_once(folder, whom):
    process = start(folder, "-o", "r.nc", pause=30)
    wait_for(process, "Memory: ")
    time.sleep(0.3)
    interrupt(process, whom)
    wait_for(process, "Finishing")
    time.sleep(0.7)
    began = time.monotonic()
    interrupt(process, whom)
    said = process.communicate(timeout=240)[1]
    assert time.monotonic() - began < 20
    assert process.returncode == 130
    assert said == (
        "No checkpoint was written yet: the run starts at its beginning next time.\nInterrupted.\n"
    )
    assert not list(folder.glob("*r.nc*"))


def test_the_command_to_go_on(monkeypatch, run):
    import click
    from mnemoscope.cli._keeping import _again

    with click.Context(click.Command("x"), info_name="mnemoscope"):
        for given, expected in (
            (["analyze", "m", "a b.txt"], "mnemoscope analyze m 'a b.txt' --resume"),
            (["analyze", "--resume", "m"], "mnemoscope analyze --resume m"),
            (["analyze", "-q", "--", "-m"], "mnemoscope analyze -q --resume -- -m"),
        ):
            monkeypatch.setattr(sys, "argv", ["mnemoscope", *given])
            assert _again() == expected


@pytest.fixture
def analyze(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda *more: run("analyze", "m.onnx", "c.txt", "-o", "r.nc", "--delays", "4", *more)


def test_the_checkpoint_is_removed_and_resume_may_always_be_given(analyze, folder):
    done = analyze("--resume", "--checkpoint-every", "0.0001")
    assert done.exit_code == 0
    assert f"There is no checkpoint {folder / 'r.nc.checkpoint'}: the run starts at its" in (
        done.stderr
    )
    assert sorted(p.name for p in folder.iterdir()) == ["c.txt", "m.onnx", "r.nc"]
    assert analyze("--resume", "--quiet").output == ""


def test_what_a_killed_run_left_is_not_overwritten(analyze, folder):
    path = folder / "r.nc.checkpoint"
    path.write_bytes(b"kept")
    (folder / "r.nc").write_bytes(b"older")
    done = analyze()
    assert done.exit_code == 2
    assert "Add --resume" in done.stderr
    done = analyze("--resume")
    assert done.exit_code == 2
    assert "is damaged, or no checkpoint" in done.stderr
    assert (path.read_bytes(), (folder / "r.nc").read_bytes()) == (b"kept", b"older")


def test_two_runs_to_one_output(folder, analyze):
    process = start(folder, "-o", "r.nc", pause=30)
    wait_for(process, "Memory: ")
    done = analyze()
    assert done.exit_code == 2
    assert "Another run writes to the same output" in done.stderr
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=240)
    assert analyze().exit_code == 0  # the lock went with the process


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "x"])
def test_seconds_that_are_none(analyze, value):
    done = analyze("--checkpoint-every", value)
    assert done.exit_code == 2
    assert "--checkpoint-every" in done.stderr


def test_a_result_that_cannot_be_saved_keeps_the_checkpoint(analyze, folder, monkeypatch):
    from mnemoscope.analyzer import result

    def full(path, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(result.os, "replace", full)
        patch.setattr(Checkpoint, "due", True)
        patch.setattr(Checkpoint, "write", lambda self, *_: self.path.write_bytes(b"kept"))
        done = analyze()
    assert done.exit_code == 2
    assert "No space left on device" in done.stderr
    assert "Go on with it:" in done.stderr
    assert (folder / "r.nc.checkpoint").exists()
    assert not (folder / "r.nc").exists()
