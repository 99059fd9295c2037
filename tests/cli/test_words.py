"""`mnemoscope words`: from a model and from a file of words, in every form, and bad calls."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import xarray as xr
from click.testing import CliRunner
from mnemoscope.analyzer.words import open_words
from mnemoscope.cli.main import main

MODEL = str(Path(__file__).parents[2] / "samples/models/pydoc-lstm-untrained.onnx")
TEXT = "the function returns the list\nthe list of a function\n" * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("words")
    (path / "text.txt").write_text(TEXT)
    (path / "train.txt").write_text(TEXT + "the the a\n")
    call = [MODEL, str(path / "text.txt"), "-o", str(path / "w.nc"), "--delays", "3"]
    result = run(*call, "--frequencies", str(path / "train.txt"), "--state", "lstm0.c")
    assert result.exit_code == 0, result.output
    return path


def run(*arguments):
    return CliRunner().invoke(main, ["words", *arguments])


def test_table_of_a_run(folder):
    out = run(str(folder / "w.nc")).output
    assert "lstm0.c · 7 types · whitened · sorted by sigma1" in out
    assert "Rank correlation of frequency and σ₁ at delay 0" in out
    assert "function" in out


def test_marks_of_what_is_noise_and_of_what_has_no_floor(folder, tmp_path):
    """In the file, ``of`` is put below its floor, and ``list`` is left without one."""
    tree = open_words(folder / "w.nc")
    node = tree["lstm0.c"].to_dataset()
    names = [str(w) for w in tree["word"].values]
    floor = node["noise_floor"].copy()
    floor[:, names.index("of")] = 2 * node["sigma1"][:, names.index("of")]
    floor[:, names.index("list")] = float("nan")
    changed = {"/": tree.to_dataset(), "/lstm0.c": node.assign(noise_floor=floor)}
    xr.DataTree.from_dict(changed).to_netcdf(tmp_path / "w.nc")
    out = run(str(tmp_path / "w.nc")).output
    rows = [[c.strip() for c in x.split("│")[1:-1]] for x in out.splitlines() if x.startswith("│")]
    marks = {r[0]: r[5] for r in rows}
    assert marks["of"] == "*"
    assert marks["list"] == "?"
    assert marks["the"] == ""
    assert "* σ₁ is not above its noise floor" in out
    assert "? there are too few occurrences" in out
    assert "~" not in out


def test_forms(folder):
    data = json.loads(run(str(folder / "w.nc"), "--json", "--sort", "frequency").output)
    words = [row["word"] for row in data["words"]]
    assert words[0] == "the"
    assert {r["word"]: r["frequency"] for r in data["words"]}["the"] == 38
    assert {r["word"]: r["occurrences"] for r in data["words"]}["the"] == 36
    rows = list(csv.DictReader(io.StringIO(run(str(folder / "w.nc"), "--csv").output)))
    assert {r["word"] for r in rows} == set(words)
    values = [float(r["sigma1"]) for r in rows]
    assert values == sorted(values, reverse=True)


def test_chosen_words_and_figures(folder):
    path = folder / "f.png"
    result = run(str(folder / "w.nc"), "--figure", str(path))
    assert result.exit_code == 0, result.output
    assert path.read_bytes()[:4] == b"\x89PNG"
    chosen = run(str(folder / "w.nc"), "--word", "the", "--figure", str(folder / "c.svg"), "--csv")
    assert [r["word"] for r in csv.DictReader(io.StringIO(chosen.output))] == ["the"]
    assert (folder / "c.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (["w.nc", "text.txt", "x"], "MODEL and CORPUS, or one file"),
        (["text.txt"], "is no netCDF-4 file"),
        (["nosuch.nc"], "does not exist"),
        (["w.nc", "--delays", "3"], "--delays: only where MODEL and CORPUS"),
        (["w.nc", "-o", "x.nc"], "-o: only where MODEL and CORPUS"),
        (["w.nc", "--word", "zebra"], "No measures of 'zebra'"),
        (["w.nc", "--delay", "4"], "no delay 4"),
        (["w.nc", "--state", "x"], "no state 'x'; it has lstm0.c"),
        (["w.nc", "--figure", "f.txt"], "must end in"),
        ([MODEL, "text.txt"], "Give -o FILE"),
        ([MODEL, "text.txt", "-o", "n.nc", "--positions", "5"], "--positions is not for words"),
        ([MODEL, "text.txt", "-o", "n.nc", "--word", "zebra"], "vocabulary has no 'zebra'"),
        ([MODEL, "text.txt", "-o", "n.nc", "--word", "class"], "does not hold"),
        ([MODEL, "text.txt", "-o", "n.nc", "--min-count", "99"], "No type occurs 99 times"),
        ([MODEL, "text.txt", "-o", "text.txt"], "is also an input"),
        ([MODEL, "text.txt", "-o", "n.nc", "--figure", "f.png"], "choose with --state"),
        ([MODEL, "text.txt", "-o", "n.nc", "--delays", "3", "--delay", "4"], "the largest is 3"),
    ],
)
def test_bad_calls(folder, monkeypatch, call, said):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    result = run(*call)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert sorted(folder.iterdir()) == before


def test_a_result_is_no_file_of_words(folder):
    path = folder / "r.nc"
    analyzed = CliRunner().invoke(
        main, ["analyze", MODEL, str(folder / "text.txt"), "-o", str(path), "--delays", "1", "-q"]
    )
    assert analyzed.exit_code == 0, analyzed.output
    assert "no file of words" in run(str(path)).output
    shown = CliRunner().invoke(main, ["show", str(folder / "w.nc")])
    assert shown.exit_code == 2
    assert "not a mnemoscope result" in shown.output


def with_root(tree, change):
    nodes = {name: node.to_dataset(inherit=False) for name, node in tree.children.items()}
    return xr.DataTree.from_dict({"/": change(tree.to_dataset()), **nodes})


def without_states(tree):
    return xr.DataTree(tree.to_dataset())


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: without_states(tree),
        lambda tree: with_root(tree, lambda r: r.assign_coords(normalization=["none", "other"])),
        lambda tree: with_root(tree, lambda r: r.assign(frequency=("word", ["x"] * 7))),
    ],
)
def test_damaged_files_of_words(folder, tmp_path, damage):
    damage(open_words(folder / "w.nc")).to_netcdf(tmp_path / "bad.nc", engine="h5netcdf")
    result = run(str(tmp_path / "bad.nc"))
    assert result.exit_code == 2
    assert "says that it is a file of words, but" in result.output


def test_types_of_a_file_cannot_steer_a_terminal(folder, tmp_path):
    tree = open_words(folder / "w.nc")
    names = tree["word"].values.astype(object)
    names[0] = "a\x1b[2Jb"
    tree = with_root(tree, lambda r: r.assign_coords(word=names.astype(str)))
    tree.to_netcdf(tmp_path / "w.nc", engine="h5netcdf")
    out = run(str(tmp_path / "w.nc")).output
    assert "\x1b" not in out
    assert "a\\x1b[2Jb" in out
