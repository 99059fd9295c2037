"""Run the commands on the files of one case, in guarded children, and judge what they did."""

from __future__ import annotations

import gc
import io
import json
import math
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
import psutil
from mnemoscope.analyzer import _limits, _memory

# Processor seconds of one command, all its processes together; a good model of this size takes 0.5.
# Not time that passes: on a busy machine a command may wait for long without being to blame.
SECONDS = 90
# Nor can a command wait for ever: one whose work takes no processor time for as long hangs.
IDLE = 60
ALLOWED = 0.5  # gigabytes that a command is told it may take
# Resident bytes of one command: what is allowed, and what can be filled between two looks.
MEMORY = 2**30
_CEILING = 8 * 2**30  # of what a command may reserve, used or not: keeps the machine alive
LIMIT = 1.0  # seconds of processor time for one announced piece of work; 60 outside of tests
DELAYS = 3

# An exception that nobody foresaw shows itself by its class, or by the C++ it came from.
_INTERNAL = re.compile(
    r"\b\w+(Error|Exception)\b(?<!Error: Error)|Traceback|std::|\.cc:\d+|0x[0-9a-f]{8}"
)
# As Python prints it: where it was raised, its class, its text.
_WARNING = re.compile(r"^\S+\.py:\d+: \w+Warning: .*", re.MULTILINE)
_LONGEST = 1000  # characters of a message


@dataclass
class Call:
    """One run of a command."""

    arguments: list[str]
    status: int | None = None  # None: killed, for the reason in `hang`
    hang: str = ""
    signal: int = 0
    seconds: float = 0.0  # of processor time
    memory: int = 0
    stdout: str = ""
    stderr: str = ""


@dataclass
class Outcome:
    """What became of a case: its calls, and what is wrong with them."""

    number: int
    mutator: str
    calls: list[Call] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    compared: bool = False  # two derivatives of one damaged model were held against each other

    @property
    def status(self) -> int | None:
        """The highest that any command gave."""
        return max((c.status for c in self.calls if c.status is not None), default=None)


def warm() -> None:
    """Import what the commands import, so that a child has it already.

    No session is made and no thread is started here: neither would survive the fork.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in (
        "h5netcdf.legacyapi", "h5py._hl.dims", "onnx.inliner", "onnx.reference.ops",
        "onnx.version_converter", "onnx_ad", "rich.table", "scipy.linalg", "scipy.special",
        "mnemoscope.analyzer._analyze", "mnemoscope.analyzer._describe",
        "mnemoscope.analyzer.result", "mnemoscope.analyzer.tables", "mnemoscope.cli.analyze",
        "mnemoscope.cli.inspect",
    ):  # fmt: skip
        import_module(name)
    gc.freeze()  # what is here already need not be looked through, and copied, in each child


def call(arguments: list[str], folder: Path) -> Call:
    """Run ``mnemoscope`` with these arguments in `folder`, in a child process."""
    done = Call(arguments)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _command(arguments, folder, out.fileno(), err.fileno())
        spent, working, progress = 0.0, -1.0, time.monotonic()
        ended = 0
        while not ended:
            time.sleep(0.002)
            ended, status, usage = os.wait4(child, os.WNOHANG)
            if ended or (now := time.monotonic()) - progress < 0.2:
                continue
            spent, work = _processor_seconds(child)
            if work != working:
                working, progress = work, now
            if spent > SECONDS:
                done.hang = f"still ran after {SECONDS} s of processor time"
            elif now - progress > IDLE:
                done.hang = f"did nothing for {IDLE} s, and did not end"
            if done.hang:
                os.killpg(child, signal.SIGKILL)
                os.wait4(child, 0)
                status, usage = None, None
                break
        done.seconds = spent
        if usage is not None:
            done.memory = usage.ru_maxrss * 1024
            done.seconds = usage.ru_utime + usage.ru_stime
        if status is not None and os.WIFSIGNALED(status):
            done.signal = os.WTERMSIG(status)
        elif status is not None:
            done.status = os.WEXITSTATUS(status)
        for stream, name in ((out, "stdout"), (err, "stderr")):
            stream.seek(0)
            setattr(done, name, stream.read(2**22).decode("utf-8", "backslashreplace"))
    return done


def _processor_seconds(child: int) -> tuple[float, float]:
    """What a command used so far, and the part of it that does its work: one process watches."""
    total, work = 0.0, 0.0
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(child)
        for process in (first, *first.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                work = times.user + times.system
                total += work
    return total, work


def _command(arguments: list[str], folder: Path, out: int, err: int) -> None:
    """What a child does: the command, and nothing after it."""
    try:
        os.setsid()
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (_CEILING, _CEILING))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        # pytest puts its own objects in their place, and they do not reach the parent.
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), "utf-8")
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), "utf-8",
                                      line_buffering=True)  # fmt: skip
        os.environ[_memory.VARIABLE] = str(ALLOWED)
        _limits.SECONDS = LIMIT
        sys.argv = ["mnemoscope", *arguments]
        from mnemoscope.cli.main import main

        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc(file=sys.stderr)
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        status = 99
    os._exit(status)


def judge(call: Call, allowed: tuple[int, ...] = (0, 2)) -> Iterator[str]:
    """What is wrong with how a command ended."""
    name = " ".join(call.arguments[:2])
    if call.signal:
        yield f"{name}: died of {signal.Signals(call.signal).name}"
        return
    if call.status is None:
        yield f"{name}: {call.hang}"
        return
    if call.memory > MEMORY:
        yield f"{name}: took {call.memory / 2**20:,.0f} MiB"
    if found := _WARNING.search(call.stderr):
        yield f"{name}: a warning that is not for users: {found[0][:200]}"
    if "Traceback (most recent call last)" in call.stderr:
        yield f"{name}: traceback: {call.stderr.strip().splitlines()[-1][:200]}"
    elif call.status not in allowed:
        yield f"{name}: status {call.status}: {call.stderr[-200:]!r}"
    elif call.status == 2:
        yield from (f"{name}: {problem}" for problem in _message(call.stderr))


def _message(text: str) -> Iterator[str]:
    lines = text.splitlines()
    said = [line for line in lines if line.startswith("Error: ")]
    if len(said) != 1 or lines[-1] is not said[0]:
        yield f"status 2 without one last line that says why: {text[-300:]!r}"
        return
    message = said[0].removeprefix("Error: ")
    if len(message.strip()) < 10:
        yield f"an empty message: {message!r}"
    if len(message) > _LONGEST:
        yield f"a message of {len(message)} characters"
    if not message.isprintable():
        yield f"a message that does not print: {message!r:.200}"
    if found := _INTERNAL.search(message):
        yield f"an internal exception shows: {found[0]!r} in {message[:300]!r}"


def strict_json(text: str) -> object:
    """Parse JSON; NaN and infinities, which JSON does not have, are errors."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def check_inspect(done: Call) -> Iterator[str]:
    """The output of ``inspect --json`` says what a model holds."""
    try:
        data = strict_json(done.stdout)
        sizes = [s["size"] for s in data["states"]]  # type: ignore[index, call-overload]
        assert sizes
        assert all(isinstance(s, int) and s >= 0 for s in sizes)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        yield f"inspect: output is not as documented: {error!r:.200}"


def gradients(path: Path) -> dict[str, np.ndarray]:
    """State → mean gradient ``[group, delay, unit, embedding]`` of a result."""
    import xarray as xr

    with xr.open_datatree(path, engine="h5netcdf") as tree:
        return {name: child["gradient"].values for name, child in tree.children.items()}


# Central differences in double: eps^(1/3) wide, so good to about eps^(2/3) = 4e-11 of the third
# derivative. Damaged weights can make that large; what this is for is a wrong derivative, which
# is wrong in the first digit.
AGREE = 1e-3
# The width of a difference follows the scale of its coordinate. One weight of 1e30 among others of
# 1 makes all others vanish in it, so such models are not compared.
COMPARABLE = 1e6


def comparable(path: Path) -> bool:
    """Whether differences can resolve the model: no weight is far above all the others."""
    import onnx
    from mnemoscope.analyzer import _passes
    from mnemoscope.analyzer.model import load_proto

    arrays = (onnx.numpy_helper.to_array(t) for t in _passes.weights(load_proto(path)))
    return all(np.abs(a.astype(np.float64)).max(initial=0) < COMPARABLE for a in arrays)


def check_methods(exact: Path, differences: Path) -> Iterator[str]:
    """Derivatives by rules and by differences of the same damaged model agree."""
    one, two = gradients(exact), gradients(differences)
    if one.keys() != two.keys():
        yield f"jvp and fd follow other states: {sorted(one)} and {sorted(two)}"
        return
    for name, g in one.items():
        if not np.isfinite(g).all():
            yield f"the gradient of {name} is not finite"
            continue
        scale = max(float(np.abs(g).max(initial=0)), float(np.abs(two[name]).max(initial=0)))
        worst = float(np.abs(g - two[name]).max(initial=0))
        if not worst <= AGREE * scale + 1e-6:
            yield f"jvp and fd differ by {worst:.2e} of {scale:.2e} in state {name}"


def run_case(number: int, mutator: str, write: Callable[[Path], list[list[str]]],
             folder: Path) -> Outcome:  # fmt: skip
    """Write the files of a case into `folder`, run its commands there, and judge them."""
    outcome = Outcome(number, mutator)
    commands = write(folder)
    before = {p.name for p in folder.iterdir()}
    results: dict[str, Path] = {}
    for arguments in commands:
        method = arguments[arguments.index("--method") + 1] if "--method" in arguments else ""
        if method == "fd" and "jvp" not in results:
            continue  # nothing to hold it against
        done = call(arguments, folder)
        outcome.calls.append(done)
        allowed = (0, 1, 2) if arguments[0] in ("check", "compare") else (0, 2)
        outcome.failures += judge(done, allowed)
        made = {p.name for p in folder.iterdir()} - before
        if "-o" in arguments and done.status == 0:
            output = arguments[arguments.index("-o") + 1]
            if output not in made:
                outcome.failures.append(f"{arguments[0]}: status 0, and {output} is not there")
            made.discard(output)
            before.add(output)
            if method and output in {p.name for p in folder.iterdir()}:
                results[method] = folder / output
        if done.status == 2 and "A template was written to" in done.stderr:
            made = {name for name in made if not name.endswith(".roles.json")}
        if made:
            outcome.failures.append(f"{arguments[0]}: left {sorted(made)} behind")
        if arguments[0] == "inspect" and done.status == 0:
            outcome.failures += check_inspect(done)
    if {"jvp", "fd"} <= results.keys() and comparable(folder / "m.onnx"):
        outcome.compared = True
        outcome.failures += check_methods(results["jvp"], results["fd"])
    return outcome


def run_all(
    numbers: list[int],
    make: Callable[[int], tuple[str, Callable[[Path], list[list[str]]]]],
    jobs: int,
    seen: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run cases, `jobs` at a time, each in a process of its own that forks its commands."""
    outcomes, running, waiting = [], {}, list(reversed(numbers))
    with tempfile.TemporaryDirectory(prefix="mnemoscope-fuzz-") as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                number = waiting.pop()
                running[_start(number, make, Path(folder) / str(number))] = number
            child, _ = os.waitpid(-1, 0)
            number = running.pop(child)
            answer = Path(folder) / f"{number}.json"
            outcome = _read(answer, number)
            outcomes.append(outcome)
            seen(outcome)
            answer.unlink(missing_ok=True)
    return sorted(outcomes, key=lambda o: o.number)


def _start(number: int, make: Callable, folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        folder.mkdir()
        mutator, write = make(number)
        outcome = run_case(number, mutator, write, folder)
        folder.with_suffix(".json").write_text(json.dumps(asdict(outcome)))
        import shutil

        shutil.rmtree(folder)
        status = 0
    except BaseException:
        import traceback

        text = traceback.format_exc()
        outcome = Outcome(number, "harness", failures=[f"the harness failed: {text[-600:]}"])
        folder.with_suffix(".json").write_text(json.dumps(asdict(outcome)))
    os._exit(status)


def _read(path: Path, number: int) -> Outcome:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return Outcome(number, "harness", failures=["the process of the case died"])
    calls = [Call(**c) for c in data.pop("calls")]
    return Outcome(**{**data, "calls": calls})


def table(outcomes: list[Outcome]) -> str:
    """Cases per mutator, how they ended, and the extremes."""
    groups: dict[str, list[Outcome]] = {}
    for o in outcomes:
        groups.setdefault(o.mutator, []).append(o)
    rows = [("mutator", "cases", "all 0", "some 2", "jvp=fd", "failed", "slowest", "largest")]
    for name in [*sorted(groups), ""]:
        some = groups[name] if name else outcomes
        calls = [c for o in some for c in o.calls]
        ok = sum(bool(o.calls) and all(c.status == 0 for c in o.calls) for o in some)
        rows.append((
            name or "all", str(len(some)), str(ok), str(sum(o.status == 2 for o in some)),
            str(sum(o.compared for o in some)), str(sum(bool(o.failures) for o in some)),
            f"{max((c.seconds for c in calls), default=math.nan):.1f} s",
            f"{max((c.memory for c in calls), default=0) / 2**20:.0f} MiB",
        ))  # fmt: skip
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w)
                  for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip
