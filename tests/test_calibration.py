"""What is tried on the machine, taken where it is clearly faster, and kept."""

from __future__ import annotations

import json
import os
import time

import models
import numpy as np
import pytest
from filelock import FileLock
from mnemoscope.analyzer import Corpus, _calibration, _engines, analyze, open_model
from mnemoscope.analyzer._calibration import FOLDER, Calibration, Candidates, Choice, worth_it
from mnemoscope.analyzer._engines import Engines
from mnemoscope.analyzer._run import Run
from mnemoscope.analyzer.errors import MnemoscopeError, ResourceError
from mnemoscope.analyzer.groups import Groups
from mnemoscope.analyzer.sums import plan

LENGTH, DELAYS = 2000, 4
USUAL = Choice(False, 0, 2, 32)
ALL = Candidates([0, 16], [2, 1], [32, 8])
KEY = {"model": "a"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path):
    return open_model(models.save(models.fused(layers=1), tmp_path / "m.onnx"))


class Search:
    """A calibration whose times are made up."""

    def __init__(self, times, fits=lambda choice: True):
        self.tried, self.said = [], []
        self._times = times
        self.calibration = Calibration(self._trial, fits, self.said.append)

    def _trial(self, choice):
        self.tried.append(choice)
        return self._times(choice)

    def best(self, candidates=ALL, key=None):
        return self.calibration.best(USUAL, candidates, key or KEY)


def corpus(length=LENGTH):
    return Corpus(np.random.default_rng(0).integers(0, models.V, length), "random", "", 1, 0)


def test_what_is_clearly_faster_is_taken():
    search = Search(
        lambda c: 1e-3 * (1 + c.streams) * (2 if c.threads == 2 else 1) / (33 - c.chunk)
    )
    assert search.best() == Choice(False, 0, 1, 8)
    assert search.tried[:4] == [USUAL, *(Choice(False, *c) for c in
                                         ((16, 2, 32), (0, 1, 32), (0, 1, 8)))]  # fmt: skip
    # Both once more.
    assert search.tried[4:] == [USUAL, Choice(False, 0, 1, 8)]
    assert "1 thread, 8 positions a call" in search.said[-1]
    assert "0.04 ms a position instead of 2" in search.said[-1]


def test_a_little_faster_is_not_enough():
    assert Search(lambda c: 1e-3 if c == USUAL else 0.95e-3).best() == USUAL


def test_a_cold_start_does_not_decide():
    """What is tried first takes twice as long, the first time."""
    seen = []

    def times(choice):
        seen.append(choice)
        return 2e-3 if len(seen) == 1 else 1e-3

    search = Search(times)
    assert search.best() == USUAL
    assert search.tried.count(USUAL) == 2


def test_streams_leave_no_chunks_to_try():
    search = Search(lambda c: 1.0 - c.streams / 20)
    assert search.best() == Choice(False, 16, 2, 32)
    assert not any(c.chunk == 8 for c in search.tried)


def test_what_does_not_fit_is_not_tried(folder):
    search = Search(lambda c: 1 / (1 + c.streams), fits=lambda c: c.streams == 0)
    assert search.best() == USUAL
    assert not any(c.streams for c in search.tried)
    assert Search(lambda c: 1 / (1 + c.streams)).best() == USUAL  # kept


def test_what_was_kept_has_to_fit():
    assert Search(lambda c: 1 / (1 + c.streams)).best().streams == 16
    assert Search(lambda c: c.chunk, fits=lambda c: c.streams == 0).best().streams == 0


def test_a_trial_that_fails_is_none():
    assert Search(lambda c: None if c.streams else c.chunk).best() == Choice(False, 0, 2, 8)


def test_what_was_found_is_kept(folder):
    first = Search(lambda c: c.chunk)
    found = first.best()
    assert found == Choice(False, 0, 2, 8)
    again = Search(lambda c: 1 / c.chunk)
    assert again.best() == found
    assert not again.tried
    assert "as found before" in again.said[-1]
    other = Search(lambda c: 1.0)
    assert other.best(key={"model": "b"}) == USUAL
    assert other.tried
    assert len(json.loads((folder / "calibration.json").read_text())) == 2


def test_the_oldest_are_dropped(folder, monkeypatch):
    monkeypatch.setattr(_calibration, "_ENTRIES", 2)
    for name in "abc":
        Search(lambda c: 1.0).best(key={"model": name})
    names = list(json.loads((folder / "calibration.json").read_text()))
    Search(lambda c: 1.0).best(key={"model": "d"})
    assert next(iter(json.loads((folder / "calibration.json").read_text()))) == names[1]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"x": 1}', "\xff\xfe", "[" * 100_000, "9" * (2**20 + 1)],
    ids=["empty", "list", "broken", "foreign", "bytes", "deep", "huge"],
)
def test_a_damaged_file_is_made_again(folder, text):
    folder.mkdir()
    (folder / "calibration.json").write_bytes(text.encode("latin-1"))
    assert Search(lambda c: 1.0).best() == USUAL
    assert json.loads((folder / "calibration.json").read_text())


@pytest.mark.parametrize(
    "entry",
    [None, 3, {}, {"threads": 1, "chunk": 8}, {"threads": 10**9, "chunk": 8, "streams": 0},
     {"threads": True, "chunk": 8, "streams": 0}, {"threads": "1", "chunk": 8, "streams": 0}],
    ids=str,
)  # fmt: skip
def test_an_entry_that_is_no_choice_is_not_used(folder, entry):
    Search(lambda c: 1.0).best()
    path = folder / "calibration.json"
    (name,) = json.loads(path.read_text())
    path.write_text(json.dumps({name: entry}))
    search = Search(lambda c: 1.0)
    assert search.best() == USUAL
    assert search.tried


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER, str(tmp_path / "file"))
    # Nothing is tried: the next run could find something else, and round otherwise.
    search = Search(lambda c: c.threads)
    assert search.best() is None
    assert not search.tried
    assert "cannot be kept" in search.said[-1]
    assert FOLDER in search.said[-1]


def test_another_run_that_tries_is_waited_for(folder, monkeypatch):
    monkeypatch.setattr(_calibration, "_PATIENCE", 0.1)
    folder.mkdir()
    with FileLock(f"{folder / 'calibration.json'}.lock"):
        search = Search(lambda c: c.threads)
        assert search.best() is None
        assert not search.tried
    assert Search(lambda c: c.threads).best().threads == 1


def test_trials_take_a_small_part_of_a_run():
    # Of a position of an LSTM 64/256: 3.7 ms where 5e11 operations a second are 1.7.
    work = 0.86e9
    least = next(n for n in range(0, 10**6, 1000) if worth_it(work, n, 51, 4))
    trials = 6 * (0.75 + 3.7e-3 * 51 / 2)
    assert trials < 0.06 * least * 3.7e-3
    assert not worth_it(work, 2000, 51, 4)


def test_a_corpus_that_is_too_short_to_tell(folder):
    search = Search(lambda c: None)
    assert search.best() is None
    assert "too short" in search.said[-1]
    assert not (folder / "calibration.json").exists()


def run_of(model, monkeypatch, length=LENGTH, **options):
    monkeypatch.setattr(_calibration, "_SHARE", 1e9)
    monkeypatch.setattr(_engines, "SECONDS", 1e-3)
    run = Run(model, corpus(length), delays=DELAYS, **options)
    return run, plan(length, DELAYS, blocks=2), Groups.everything(length)


def near(found, truth):
    for state, of_state in truth.items():
        np.testing.assert_array_equal(found[state].block_count, of_state.block_count)
        np.testing.assert_allclose(found[state].block_sum, of_state.block_sum, rtol=0,
                                   atol=1e-5 * np.abs(of_state.block_sum).max())  # fmt: skip


def test_every_choice_gives_the_same_sums(model, monkeypatch):
    """What is tried is what can be asked for, and all of it is the same job."""
    run, layout, groups = run_of(model, monkeypatch, calibrate=False)
    truth = run.sums(layout, groups)
    seen, usual = [], Engines._job

    def job(self, choice, *rest):
        seen.append(choice)
        return usual(self, choice, *rest)

    monkeypatch.setattr(Engines, "_job", job)
    # Everything that is tried is taken at once.
    monkeypatch.setattr(_calibration, "_CLEARLY", 1e9)
    run, layout, groups = run_of(model, monkeypatch)
    near(run.sums(layout, groups), truth)
    chosen = run.engines.choice(layout, groups)
    assert chosen != seen[0]
    assert run.attributes["threads"] == chosen.threads
    assert run.attributes["streams"] == max(1, chosen.streams)
    assert len({c.streams for c in seen}) >= 3
    for choice in {*seen}:
        options = {"threads": choice.threads, "streams": choice.streams or 1, "chunk": choice.chunk}
        run, layout, groups = run_of(model, monkeypatch, **options)
        assert run.engines.choice(layout, groups) == choice
        near(run.sums(layout, groups), truth)


def test_what_is_asked_for_is_not_tried(model, monkeypatch):
    def never(*arguments):
        raise AssertionError

    monkeypatch.setattr(Engines, "_job", never)
    run, layout, groups = run_of(model, monkeypatch, threads=1, streams=1, chunk=4)
    assert run.engines.choice(layout, groups) == Choice(False, 0, 1, 4)
    run, layout, groups = run_of(model, monkeypatch, calibrate=False)
    run.engines.choice(layout, groups)


def test_an_ordinary_run_is_not_delayed(model, monkeypatch, folder):
    run = Run(model, corpus(), delays=DELAYS)
    run.engines.choice(plan(LENGTH, DELAYS, blocks=2), Groups.everything(LENGTH))
    assert not folder.exists()


def test_memory_bounds_what_is_chosen(model, monkeypatch):
    """Where more streams do not fit, the run goes on with those that do."""
    monkeypatch.setattr(_calibration, "_CLEARLY", 1e9)
    run, layout, groups = run_of(model, monkeypatch, calibrate=False)
    need = run._need(layout, groups, 0)
    usual = run.engines.choice(layout, groups)
    memory = run._whole(need, layout, groups, usual)
    run, layout, groups = run_of(model, monkeypatch, memory=memory)
    found = run.sums(layout, groups)
    assert run.engines.choice(layout, groups).streams <= usual.streams
    assert found


def test_the_same_bits_from_what_was_kept(model, monkeypatch):
    """The second run would choose otherwise."""
    monkeypatch.setattr(_calibration, "_SHARE", 1e9)
    found = []
    for sign in (1, -1):
        monkeypatch.setattr(
            Engines, "_seconds",
            lambda self, layout, groups, choice, sign=sign: 2.0 ** (sign * choice.streams),
        )  # fmt: skip
        found.append(analyze(model, corpus(), delays=DELAYS))
    first, second = found
    assert first.attrs["streams"] == 1
    for name in ("threads", "streams", "chunk"):
        assert first.attrs[name] == second.attrs[name]
    for state in first.children:
        np.testing.assert_array_equal(first[state]["gradient"], second[state]["gradient"])


@pytest.mark.parametrize("delays", [0, 1, 50])
def test_seconds_of_a_position(model, monkeypatch, delays):
    length = 20_000
    run = Run(model, corpus(length), delays=delays, calibrate=False)
    layout, groups = plan(length, delays, blocks=2), Groups.everything(length)
    began = time.perf_counter()
    one = run.engines._seconds(layout, groups, Choice(False, 0, 1, 32))
    assert 0 < one < 0.1
    assert time.perf_counter() - began < 20
    short = Run(model, corpus(delays + 5), delays=delays, calibrate=False)
    layout, groups = plan(delays + 5, delays, blocks=2), Groups.everything(delays + 5)
    assert short.engines._seconds(layout, groups, Choice(False, 0, 1, 4)) is None


def test_a_chunk_of_streams_that_would_mix(tmp_path):
    mixing = open_model(models.save(models.first_stream("Where"), tmp_path / "m.onnx"))
    said = []
    run = Run(mixing, corpus(60), delays=DELAYS, chunk=8, report=said.append)
    choice = run.engines.choice(plan(60, DELAYS, blocks=2), Groups.everything(60))
    assert choice.chunk == 1
    assert any("One position a call" in line for line in said)


def test_a_chunk_is_no_longer_than_the_corpus(model):
    run = Run(model, corpus(60), delays=DELAYS, chunk=10**9)
    assert run.engines.choice(plan(60, DELAYS, blocks=2), Groups.everything(60)).chunk == 60


def test_a_chunk_that_memory_does_not_hold(model, monkeypatch):
    run = Run(model, corpus(), delays=DELAYS, chunk=1000)
    monkeypatch.setattr(_engines._memory, "available", lambda: 1000)
    with pytest.raises(ResourceError, match="--chunk"):
        run.engines.choice(plan(LENGTH, DELAYS, blocks=2), Groups.everything(LENGTH))


def test_more_threads_than_a_system_starts(model):
    with pytest.raises(MnemoscopeError, match="1,024 or less"):
        Run(model, corpus(60), delays=DELAYS, threads=10**22)


def test_a_pipe_is_not_waited_for(folder):
    folder.mkdir()
    os.mkfifo(folder / "calibration.json")
    search = Search(lambda c: c.threads)
    assert search.best() is None
    assert "no ordinary file" in search.said[-1]
