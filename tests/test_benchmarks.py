"""The benchmarks: that they compare, that the guard can fail, and that it holds here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the other ways are PyTorch's")
pytest.importorskip("onnxscript", reason="exporting from torch needs onnxscript")

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.timeout(600),
    # PyTorch calls it itself where forward mode is loaded.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]


@pytest.fixture(scope="module", autouse=True)
def _path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield


def small(name, tmp_path, **changes):
    from benchmarks.shapes import SHAPES, Job

    sizes = {"embedding": 6, "hidden": 10, "delays": 4, "positions": 4, "batch": 4, "fewer": {}}
    return Job(replace(SHAPES[name], **{**sizes, **changes}), tmp_path / f"{name}.onnx", 1)


@pytest.mark.parametrize("name", ["lstm", "gru", "awd"])
def test_peers_compute_the_same(name, tmp_path):
    """All but the compiled ones, whose compilers take a minute; `measure` compares them too.

    The three layers of the largest shape stand for the two of another.
    """
    from benchmarks.measuring import BARS, measure

    fewer = {"delays": 2, "positions": 2, "batch": 2} if name == "awd" else {}
    job = small(name, tmp_path, left_out={}, **fewer)
    found = measure(job, ["vmap(jacfwd)", "reverse", "onnx-ad", "fd", "jvp"], repeats=1)
    assert all(r.reason is None and r.times for r in found.rows)
    assert all(r.difference < BARS.get(r.name, 1e-5) for r in found.rows)


def test_jax_computes_the_same_or_says_how_to_get_it(tmp_path):
    from benchmarks.measuring import measure

    (row,) = measure(small("two-layer", tmp_path), ["jax"], repeats=1).rows
    try:
        import jax  # noqa: F401
    except ModuleNotFoundError:
        assert row.reason == "not available: pip install '.[bench]'"
    else:
        assert row.difference < 1e-5


def test_a_wrong_peer_is_not_timed(tmp_path, monkeypatch):
    from benchmarks import measuring
    from benchmarks.torch_peers import ForwardMode

    class Late(ForwardMode):
        """Every delay is one too long: the sums are right, their places are not."""

        def sums(self, start, stop):
            return {n: np.roll(s, 1, axis=0) for n, s in super().sums(start, stop).items()}

        def seconds(self, positions):
            raise AssertionError("timed")

    monkeypatch.setitem(measuring.PEERS, "onnx-ad", Late)
    with pytest.raises(measuring.Disagreement, match=r"^onnx-ad differs from the reference by"):
        measuring.measure(small("lstm", tmp_path), ["vmap(jacfwd)", "onnx-ad"], repeats=1)


def test_one_wrong_delay_shows():
    """A long delay's Jacobians are small beside the first ones', and must not hide there."""
    from benchmarks.measuring import difference

    rng = np.random.default_rng(0)
    right = rng.standard_normal((5, 4, 3)) * 10.0 ** -np.arange(0, 10, 2)[:, None, None]
    wrong = right.copy()
    wrong[-1] *= 1.01
    assert difference({"h": right}, {"h": right}) == 0
    assert difference({"h": wrong}, {"h": right}) == pytest.approx(0.01)
    wrong[0, 0, 0] = np.nan
    assert difference({"h": wrong}, {"h": right}) == np.inf
    assert difference({"h": right[:-1]}, {"h": right}) == np.inf
    assert difference({}, {"h": right}) == np.inf


def made_up(forward, onnx_ad, ours, alone):
    from benchmarks.measuring import Measured, Row

    rows = [Row("vmap(jacfwd)", times=forward), Row("onnx-ad", times=onnx_ad),
            Row("jvp", times=ours)]  # fmt: skip
    return Measured(rows, {"BLAS": alone, "ONNX Runtime": [2 * a for a in alone]}, 1)


def test_guard_lets_what_keeps_its_ratios_pass():
    from benchmarks.guard import GOALS, PRODUCTS, ratios, short

    # The machine slows down by half in the second repeat: every time does, no ratio.
    found = ratios(made_up([11, 22, 11], [5, 10, 5], [1, 2, 1], [0.9, 1.8, 0.9]))
    assert found == pytest.approx({"vmap(jacfwd)": 11, "onnx-ad": 5, PRODUCTS: 0.9})
    assert short(found, GOALS) == []


def test_guard_says_what_falls_short():
    from benchmarks.guard import GOALS, ratios, short

    found = ratios(made_up([11] * 3, [5] * 3, [2] * 3, [0.9] * 3))
    assert short(found, GOALS) == [
        "jvp is 5.50 times as fast as vmap(jacfwd), not 10",
        "jvp is 2.50 times as fast as onnx-ad, not 4.5",
        "jvp reaches 45% of the matrix-product rate, not 85%",
    ]
    assert short({}, GOALS)[0].startswith("jvp is nan times as fast")


@pytest.mark.parametrize(("value", "status"), [(100.0, 0), (1.0, 1)])
def test_guard_exit_status(value, status, monkeypatch, tmp_path, capsys):
    from benchmarks import __main__ as command
    from benchmarks import guard

    monkeypatch.setattr(guard, "run", lambda job, say: dict.fromkeys(guard.GOALS, value))
    monkeypatch.setattr(command, "Job", lambda *arguments: None)
    assert command.guarded(tmp_path, 1, "goals") == status
    assert ("not 10" in capsys.readouterr().err) == bool(status)


def test_bars_of_ci_leave_their_margin():
    from benchmarks.guard import CI, GOALS

    assert all(CI[name] <= goal / 2 for name, goal in GOALS.items())


def test_guard_holds_here():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--guard", "ci"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout


def test_command_writes_table_and_json(tmp_path):
    out = tmp_path / "o.json"
    command = [sys.executable, "-m", "benchmarks", "--shape", "tiny", "--positions", "64",
               "--delays", "3", "--repeats", "2", "--threads", "1", "--json", str(out),
               "--peer", "vmap(jacfwd)", "--peer", "jvp"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "LSTM 16/50, delays 0–3" in done.stdout
    assert "products alone, BLAS" in done.stdout
    (shape,) = json.loads(out.read_text(encoding="utf-8"))["shapes"]
    assert [len(p["seconds_per_position"]) for p in shape["peers"]] == [2, 2]
    assert all(p["peak_bytes"] > 0 for p in shape["peers"])
    # Three delays of 16 rows by the two dense blocks of an LSTM.
    assert shape["products_alone"]["flop"] == 2 * 3 * 16 * 50 * 100


def test_what_is_left_out_or_cannot_run_is_said(tmp_path, monkeypatch):
    from benchmarks import measuring, report
    from benchmarks.peer import Unavailable

    def missing(job):
        raise Unavailable("torch.compile failed: no C++ compiler")

    monkeypatch.setitem(measuring.PEERS, "compiled", missing)
    job = small("awd", tmp_path, left_out={"reverse": "minutes a position"})
    found = measuring.measure(job, ["compiled", "reverse"], repeats=1)
    assert report.notes(job.shape, found)[:2] == [
        "under torch.compile: not available: torch.compile failed: no C++ compiler",
        "autograd, batched rows: left out: minutes a position",
    ]


def test_exponent_of_a_power_law():
    from benchmarks.growth import exponent

    sizes = np.array([10, 20, 40, 80])
    assert exponent(sizes, 3 * sizes**1.5) == pytest.approx((1.5, 0), abs=1e-6)
    slope, error = exponent(sizes, sizes**2 * np.array([1.1, 0.9, 0.9, 1.1]))
    assert slope == pytest.approx(2)
    assert error > 0.01


def test_growth_times_every_value(tmp_path):
    from benchmarks.growth import BASE, Axis, times

    base = replace(BASE, embedding=6, hidden=10, delays=3, positions=8)
    found = times(Axis("groups", (1, 2), 0), tmp_path, 1, 2, base)
    assert {value: len(t) for value, t in found.items()} == {1: 2, 2: 2}


def test_pieces_are_timed_and_none_twice(tmp_path):
    from benchmarks import profile
    from benchmarks.ours import Ours
    from benchmarks.shapes import SHAPES, Job

    shape = SHAPES["tiny"].resized(128, 10)
    ours, clock = Ours(Job(shape, tmp_path / "m.onnx", 1), streams=1), profile.Clock()
    began = time.perf_counter()
    with profile.watched(clock):
        ours.until_summed(512)
    wall = time.perf_counter() - began
    assert all(seconds > 0 for seconds in clock.seconds.values())
    # One thread: pieces follow one another.
    assert sum(clock.seconds.values()) < wall


def test_a_piece_within_a_piece_counts_for_itself():
    from benchmarks import profile

    clock = profile.Clock()
    inner = clock.timed(lambda: time.sleep(0.02), lambda: profile.SUMMING)
    outer = clock.timed(lambda: [inner(), inner(), time.sleep(0.01)], lambda: profile.READING)
    began = time.perf_counter()
    outer()
    wall = time.perf_counter() - began
    assert clock.seconds[profile.SUMMING] >= 0.04
    assert clock.seconds[profile.READING] >= 0.01
    assert sum(clock.seconds.values()) <= wall


def test_streams_are_timed_for_every_size(tmp_path, monkeypatch, capsys):
    from benchmarks import streams

    monkeypatch.setattr(streams, "SIZES", ((4, 8), (8, 8)))
    out = tmp_path / "o.json"
    monkeypatch.setattr(sys, "argv", ["streams", "--positions", "2000", "--repeats", "1",
                                      "--threads", "1", "--json", str(out)])  # fmt: skip
    affinity = os.sched_getaffinity(0)
    try:
        assert streams.main() == 0
    finally:
        os.sched_setaffinity(0, affinity)
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [(r["embedding"], r["units"]) for r in rows] == [(4, 8), (8, 8)]
    assert all(r["one"] > 0 and r["many"] > 0 for r in rows)
    assert "16 streams" in capsys.readouterr().out
