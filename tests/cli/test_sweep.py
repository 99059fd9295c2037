"""Many models over one corpus: what they are called, what is kept, and what fails."""

from __future__ import annotations

import json

import models
import numpy as np
import pytest
from mnemoscope.analyzer import MnemoscopeError, analyze, open_model, open_result, read_corpus
from mnemoscope.analyzer._sweep_plot import sweep_figure
from mnemoscope.analyzer.sweep import Sweep, entries_of, memories


def test_models_stand_in_the_order_of_their_steps():
    found = entries_of(["r/a-100.onnx", "r/a-20.onnx", "r/b-20.onnx"], "out")
    assert [(e.name, e.step, e.series) for e in found] == [
        ("a-20", 20, "a-N"), ("b-20", 20, "b-N"), ("a-100", 100, "a-N")
    ]  # fmt: skip
    assert found[0].result == "out/a-20.nc"


def test_names_without_a_step_are_in_natural_order():
    found = entries_of(["v10.onnx", "final.onnx", "v9.onnx"], "out")
    assert [(e.name, e.step, e.series) for e in found] == [
        ("final", None, ""), ("v9", None, ""), ("v10", None, "")
    ]  # fmt: skip


def test_files_of_one_name_are_told_apart_by_their_folders():
    found = entries_of(["/r/7/m.onnx", "/r/12/m.onnx"], "out")
    assert [(e.name, e.step) for e in found] == [("7-m", 7), ("12-m", 12)]


def test_a_pattern_finds_the_step():
    found = entries_of(["s3-int8.onnx", "s1-int8.onnx"], "out", r"s(\d+)")
    assert [(e.step, e.series) for e in found] == [(1, "sN-int8"), (3, "sN-int8")]


@pytest.mark.parametrize(
    ("files", "pattern", "said"),
    [
        (["a.onnx", "./a.onnx"], None, "named twice"),
        (["a.onnx"], "(", "no regular expression"),
        (["a.onnx"], r"\d+", "has no group"),
    ],
)
def test_what_cannot_be_named(files, pattern, said):
    with pytest.raises(MnemoscopeError, match=said):
        entries_of(files, "out", pattern)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (1, 20):
        models.save(models.fused(layers=1, seed=step), tmp_path / f"m{step}.onnx")
    (tmp_path / "bad7.onnx").write_bytes(b"no model")
    words = np.random.default_rng(0).choice(models.WORDS[:10], (40, 9))
    (tmp_path / "c.txt").write_text("\n".join(map(" ".join, words)))
    return tmp_path


CALL = ("sweep", "*.onnx", "c.txt", "-o", "out", "--delays", "6", "--provider", "cpu")


def test_a_bad_model_does_not_stop_the_others(run, folder):
    done = run(*CALL, "--json")
    assert done.exit_code == 2
    assert "1 of 3 models could not be analysed. bad7.onnx: bad7.onnx is not an" in done.stderr
    data = json.loads(done.stdout)
    assert [(m["name"], m["step"]) for m in data["models"]] == [
        ("m1", 1), ("bad7", 7), ("m20", 20)
    ]  # fmt: skip
    assert data["models"][1]["error"].startswith("bad7.onnx is not an ONNX model")
    model = open_model("m20.onnx")
    alone = analyze(model, read_corpus("c.txt", model.vocabulary), delays=6, provider="cpu")
    of_model = [r for r in data["rows"] if r["model"] == "m20" and r["state"] == "lstm0.c"]
    assert [r["delay"] for r in of_model] == [0, 5, 6]
    expected = alone["lstm0.c"]["singular_values"].values[1, 0, [0, 5, 6], 0]
    assert [r["sigma1"] for r in of_model] == pytest.approx(expected.tolist())
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["m1.nc", "m20.nc", "sweep.png"]


def test_what_is_done_is_kept(run, folder):
    (folder / "bad7.onnx").unlink()
    assert run(*CALL, "-q").exit_code == 0
    first = (folder / "out/m1.nc").stat().st_mtime_ns
    models.save(models.fused(layers=1, seed=5), folder / "m20.onnx")
    done = run(*CALL, "-q", "--json", "--threads", "1")
    assert [m["analysed_now"] for m in json.loads(done.stdout)["models"]] == [False, True]
    assert (folder / "out/m1.nc").stat().st_mtime_ns == first
    done = run(*CALL, "-q", "--json", "--seed", "3")
    assert [m["analysed_now"] for m in json.loads(done.stdout)["models"]] == [True, True]


def test_a_result_of_somebody_else_is_not_replaced(run, folder):
    (folder / "bad7.onnx").unlink()
    (folder / "out").mkdir()
    assert run("analyze", "m1.onnx", "c.txt", "-o", "out/m1.nc", "--delays", "2").exit_code == 0
    before = (folder / "out/m1.nc").read_bytes()
    done = run(*CALL, "-q")
    assert done.exit_code == 2
    assert "out/m1.nc is there and no part of a sweep; write to another folder." in done.stderr
    assert (folder / "out/m1.nc").read_bytes() == before


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("x*.onnx", "c.txt", "-o", "out"), "No file is called like x*.onnx"),
        (("m1.onnx", "none.txt", "-o", "out"), "There is no corpus file none.txt"),
        (("m1.onnx", "c.txt", "-o", "c.txt"), "The folder c.txt cannot be made"),
        (("m1.onnx", "c.txt", "-o", "out", "--at", "51"), "the largest delay is 50"),
        (("bad7.onnx", "c.txt", "-o", "out"), "1 of 1 models could not be analysed"),
    ],
)
def test_calls_that_cannot_be_done(run, folder, call, said):
    done = run("sweep", *call)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_workers_give_the_same(run, folder):
    pytest.importorskip("distributed", reason="the extra distributed is not installed")
    alone = run(*CALL, "-q", "--csv")
    done = run(*(a if a != "out" else "out2" for a in CALL), "-q", "--csv", "--workers", "2")
    assert done.stdout == alone.stdout
    assert done.stderr == alone.stderr


def test_the_figure_shows_every_state(folder):
    entries = entries_of(["m1.onnx", "m20.onnx"], str(folder))
    Sweep("c.txt", options={"delays": 6, "provider": "cpu"}).run(entries)
    figure = sweep_figure(memories(entries), [0, 6])
    assert [a.get_title() for a in figure.axes] == [
        "lstm0.h: memory", "lstm0.h: horizon", "lstm0.c: memory", "lstm0.c: horizon"
    ]  # fmt: skip
    line = figure.axes[2].lines[0]
    assert line.get_xdata().tolist() == [1, 20]
    tree = open_result(entries[1].result)["lstm0.c"]
    assert line.get_ydata()[1] == tree["singular_values"].values[1, 0, 0, 0]
