"""Help, import cost, exit statuses and the one place that turns errors into messages."""

from __future__ import annotations

import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner
from mnemoscope.analyzer import __version__
from mnemoscope.analyzer.errors import MnemoscopeError
from mnemoscope.cli._lazy import LazyGroup
from mnemoscope.cli.main import main

HEAVY = "onnx onnxruntime xarray matplotlib numpy scipy torch rich h5netcdf pandas"


def commands(group=main, path=()):
    yield path
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            if isinstance(command, click.Group):
                yield from commands(command, (*path, name))
            else:
                yield (*path, name)


COMMANDS = list(commands())


def test_all_commands_are_there():
    assert {" ".join(c) for c in COMMANDS} >= {
        "",
        "export",
        "export torch",
        "export keras",
        "export tf1-checkpoint",
        "export onnx",
        "compare",
        "check",
        "inspect",
        "analyze",
        "show",
        "plot",
        "corpus",
        "corpus pydoc",
        "corpus synthetic",
    }


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example_of_this_command(run, command):
    done = run(*command, "--help")
    assert done.exit_code == 0
    example = done.stdout.split("Example:")[1]
    assert " ".join(["mnemoscope", *command]).strip() in example


def test_first_help_lines_are_not_cut_off(run):
    for command in [(), ("export",), ("corpus",)]:
        listed = run(*command, "--help").stdout.split("Commands:")[1].split("Example:")[0]
        assert "..." not in listed


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys; from mnemoscope.cli.main import main; "
        f"main({[*command, '--help']!r}, standalone_mode=False); "
        f"print([m for m in {HEAVY.split()!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_help_is_fast():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "mnemoscope.cli.main", "--help"],
            capture_output=True,
            check=True,
        )
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2  # 0.1 s on an idle machine; a heavy import costs that many times over


def test_version(run):
    assert run("--version").stdout == f"mnemoscope, version {__version__}\n"


@pytest.mark.parametrize("call", [["nonsense"], ["show"], ["analyze", "--delays", "-1"]])
def test_a_wrong_call_is_status_2(run, call):
    done = run(*call)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Error:" in done.stderr


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (MnemoscopeError("Expected a, found b; do c."), 2, "Error: Expected a, found b; do c.\n"),
        (OSError(28, "No space left on device", "r.nc"), 2, "r.nc: No space left on device.\n"),
        (MemoryError("8 GiB"), 2, "Error: The machine's memory is used up (8 GiB)."),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (BrokenPipeError(), 141, ""),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else "",
)
def test_errors_become_messages(error, status, said):
    @click.command()
    def fail():
        raise error

    group = type(main)(name="root", commands={"fail": fail})
    assert isinstance(group, LazyGroup)
    done = CliRunner().invoke(group, ["fail"])
    assert done.exit_code == status
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert done.stdout == ""


def test_a_bug_is_not_hidden():
    @click.command()
    def fail():
        raise ZeroDivisionError

    done = CliRunner().invoke(type(main)(name="root", commands={"fail": fail}), ["fail"])
    assert isinstance(done.exception, ZeroDivisionError)


def test_a_bug_is_no_failed_check():
    code = (
        "import click; from mnemoscope.cli.main import main\n"
        "@click.command()\ndef fail():\n    raise ZeroDivisionError\n"
        "type(main)(name='root', commands={'fail': fail})(['fail'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "ZeroDivisionError" in done.stderr


def test_a_closed_pipe_is_quiet():
    code = "from mnemoscope.cli.main import main; main(['corpus', 'pydoc'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert said == b""
    assert process.returncode == 141


def test_narrow_encodings_do_not_stop_a_table(result_file):
    code = f"from mnemoscope.cli.main import main; main(['show', {result_file!r}])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert b"delay" in done.stdout
