"""What is tried on the machine, taken where it is clearly faster, and kept."""

from __future__ import annotations

import json

import models
import numpy as np
import pytest
from mnemoscope.analyzer import Corpus, _calibration, analyze, open_model
from mnemoscope.analyzer._calibration import FOLDER, Calibration, Choice, Trial
from mnemoscope.analyzer._engines import Engines
from mnemoscope.analyzer._run import Run
from mnemoscope.analyzer.groups import Groups
from mnemoscope.analyzer.sums import plan

LENGTH, DELAYS = 2000, 4
USUAL = Choice(False, 0, 2, 32)
LONG = {"work": 1e9, "positions": 10**6, "delays": 51, "key": {"model": "a"}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path):
    return open_model(models.save(models.fused(layers=1), tmp_path / "m.onnx"))


class Timed(Trial):
    """A trial whose times are made up."""

    def __init__(self, times, threads=(2, 1), chunks=(32, 8), streams=(0, 16)):
        super().__init__(None, list(threads), list(chunks), list(streams))
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "tried", [])

    def seconds(self, choice, delays):
        self.tried.append(choice)
        return self.times(choice)


def corpus(length=LENGTH):
    return Corpus(np.random.default_rng(0).integers(0, models.V, length), "random", "", 1, 0)


def test_what_is_clearly_faster_is_taken():
    said = []
    trial = Timed(lambda c: 1e-3 * (2 if c.threads == 2 else 1) * (0.5 if c.chunk == 8 else 1))
    found = Calibration(said.append).best(trial, USUAL, **LONG)
    assert found == Choice(False, 0, 1, 8)
    assert trial.tried[0] == USUAL
    assert len(trial.tried) == trial.number == 4
    (line,) = said
    assert "1 thread, 8 positions a call" in line
    assert "0.5 ms a position instead of 2" in line


def test_a_little_faster_is_not_enough():
    trial = Timed(lambda c: 1e-3 if c == USUAL else 0.95e-3)
    assert Calibration(print).best(trial, USUAL, **LONG) == USUAL


def test_streams_are_tried_with_all_threads():
    def times(choice):
        return 0.1 if choice.streams and choice.threads == 2 else 1.0 / (3 - choice.threads)

    found = Calibration(print).best(Timed(times), USUAL, **LONG)
    assert found == Choice(False, 16, 2, 32)


def test_what_was_found_is_kept(folder):
    said = []
    first = Timed(lambda c: c.chunk)
    found = Calibration(said.append).best(first, USUAL, **LONG)
    again = Timed(lambda c: 1 / c.chunk)
    assert Calibration(said.append).best(again, USUAL, **LONG) == found
    assert not again.tried
    assert "as found before" in said[-1]
    other = Timed(lambda c: 1.0)
    Calibration(said.append).best(other, USUAL, **{**LONG, "key": {"model": "b"}})
    assert other.tried
    assert len(json.loads((folder / "calibration.json").read_text())) == 2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"x": 1}', "\xff\xfe", "[" * 100_000, "9" * (2**20 + 1)],
    ids=["empty", "list", "broken", "foreign", "bytes", "deep", "huge"],
)
def test_a_damaged_file_is_made_again(folder, text):
    folder.mkdir()
    (folder / "calibration.json").write_bytes(text.encode("latin-1"))
    assert Calibration(print).best(Timed(lambda c: 1.0), USUAL, **LONG) == USUAL
    assert json.loads((folder / "calibration.json").read_text())


@pytest.mark.parametrize(
    "entry",
    [None, 3, {}, {"threads": 1, "chunk": 8}, {"threads": 10**9, "chunk": 8, "streams": 0},
     {"threads": True, "chunk": 8, "streams": 0}, {"threads": "1", "chunk": 8, "streams": 0}],
    ids=str,
)  # fmt: skip
def test_an_entry_that_is_no_choice_is_not_used(folder, entry):
    Calibration(print).best(Timed(lambda c: 1.0), USUAL, **LONG)
    path = folder / "calibration.json"
    (name,) = json.loads(path.read_text())
    path.write_text(json.dumps({name: entry}))
    trial = Timed(lambda c: 1.0)
    assert Calibration(print).best(trial, USUAL, **LONG) == USUAL
    assert trial.tried


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER, str(tmp_path / "file"))
    said = []
    # Not used either: the next run could find something else, and round otherwise.
    assert Calibration(said.append).best(Timed(lambda c: c.threads), USUAL, **LONG) is None
    assert "cannot be kept" in said[-1]
    assert FOLDER in said[-1]


def test_a_short_run_is_not_delayed(folder):
    trial = Timed(lambda c: 1.0)
    assert Calibration(print).best(trial, USUAL, **{**LONG, "positions": 1000}) is None
    assert not trial.tried
    assert not folder.exists()


def test_nothing_is_tried_where_there_is_no_choice():
    trial = Timed(lambda c: 1.0, [2], [32], [0])
    assert Calibration(print).best(trial, USUAL, **LONG) is None
    assert not trial.tried


def test_a_corpus_that_is_too_short_to_tell():
    assert Calibration(print).best(Timed(lambda c: None), USUAL, **LONG) is None


def run_of(model, monkeypatch, length=LENGTH, **options):
    monkeypatch.setattr(_calibration, "_SHARE", 1e9)
    monkeypatch.setattr(_calibration, "_SECONDS", 1e-3)
    run = Run(model, corpus(length), delays=DELAYS, **options)
    layout = plan(length, DELAYS, blocks=2)
    return run, layout, Groups.everything(length)


def test_every_choice_gives_the_same_sums(model, monkeypatch):
    """What is tried is what would be chosen, and all of it is the same job."""
    run, layout, groups = run_of(model, monkeypatch, calibrate=False)
    truth = run.sums(layout, groups)
    seen = []
    usual = Engines._tried

    def tried(self, layout, groups, choice, length):
        seen.append(choice)
        return usual(self, layout, groups, choice, length)

    monkeypatch.setattr(Engines, "_tried", tried)
    # Everything that is tried is taken at once.
    monkeypatch.setattr(_calibration, "_CLEARLY", 1e9)
    run, layout, groups = run_of(model, monkeypatch)
    found = run.sums(layout, groups)
    assert len(seen) > 3
    assert {c.streams for c in seen} >= {0, 8, 16}
    assert run.attributes["threads"] == run.engines.choice(layout, groups).threads
    for choice in {*seen}:
        options = {"threads": choice.threads, "streams": choice.streams or 1, "chunk": choice.chunk}
        run, layout, groups = run_of(model, monkeypatch, **options)
        made = run.engines.choice(layout, groups)
        assert (made.threads, made.streams) == (choice.threads, choice.streams)
        assert choice.streams or made.chunk == choice.chunk
        found = run.sums(layout, groups)
        for state, of_state in truth.items():
            np.testing.assert_allclose(
                found[state].block_sum, of_state.block_sum, rtol=0,
                atol=1e-5 * np.abs(of_state.block_sum).max(),
            )  # fmt: skip


def test_what_is_asked_for_is_not_tried(model, monkeypatch):
    def never(*arguments):
        raise AssertionError

    monkeypatch.setattr(Engines, "_tried", never)
    run, layout, groups = run_of(model, monkeypatch, threads=1, streams=1, chunk=4)
    assert run.engines.choice(layout, groups) == Choice(False, 0, 1, 4)
    run, layout, groups = run_of(model, monkeypatch, calibrate=False)
    run.engines.choice(layout, groups)


def test_the_same_bits_from_what_was_kept(model, monkeypatch):
    monkeypatch.setattr(_calibration, "_SHARE", 1e9)
    monkeypatch.setattr(_calibration, "_SECONDS", 1e-3)
    first, second = (analyze(model, corpus(), delays=DELAYS, positions=None) for _ in range(2))
    for name in ("threads", "streams"):
        assert first.attrs[name] == second.attrs[name]
    for state in first.children:
        np.testing.assert_array_equal(first[state]["gradient"], second[state]["gradient"])


def test_a_chunk_of_streams_that_would_mix(tmp_path):
    mixing = open_model(models.save(models.first_stream("Where"), tmp_path / "m.onnx"))
    said = []
    run = Run(mixing, corpus(60), delays=DELAYS, chunk=8, report=said.append)
    assert run.engines.linearization().batch == 1
    assert any("One position a call" in line for line in said)
