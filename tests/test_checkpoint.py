"""A run that is ended and goes on is the run that nothing ended."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import zipfile

import models
import numpy as np
import pytest
from mnemoscope.analyzer import Corpus, Groups, _checkpoint, _shards, analyze, open_model, sums
from mnemoscope.analyzer._checkpoint import Checkpoint
from mnemoscope.analyzer._engines import Engines
from mnemoscope.analyzer._run import Run
from mnemoscope.analyzer.errors import CheckpointError, MnemoscopeError
from mnemoscope.analyzer.words import analyze_words

LENGTH = 90
IDS = np.random.default_rng(0).integers(0, models.V, LENGTH)
CORPUS = Corpus(IDS, "random", "", 1, 0)
CLASSES = Groups.from_numbers(["even", "odd"], IDS % 2).with_all()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Shards of a few positions, and staging sums that move to the totals in their midst."""
    monkeypatch.setattr(_shards, "_LEAST", 13)
    monkeypatch.setattr(_shards, "_MOST", 13)
    monkeypatch.setattr(sums, "_FLUSH", 5)
    monkeypatch.setattr(_checkpoint, "_PIECE", 300)
    monkeypatch.setattr(_checkpoint, "_PATIENCE", 0.1)


@pytest.fixture
def measure(tmp_path):
    """Analyse a model made by hand, with a checkpoint or without."""

    def call(model="lstm", **options):
        path = tmp_path / f"{model}.onnx"
        if not path.exists():
            models.save(models.MODELS[model](), path)
        options = {"delays": 4, "blocks": 3, "threads": 1, "provider": "cpu", **options}
        return analyze(open_model(path), CORPUS, **options)

    return call


def arrays(tree):
    """Every variable's bytes, with its dtype and shape."""
    return {
        f"{node.path}/{name}": (str(v.dtype), v.shape, v.to_numpy().tolist()
                                if v.dtype.kind in "OU" else v.to_numpy().tobytes())
        for node in tree.subtree
        for name, v in node.to_dataset(inherit=False).variables.items()
    }  # fmt: skip


class Stop:
    """Ends a run once it has followed so many steps."""

    def __init__(self, steps):
        self.steps, self.done = steps, 0

    def progress(self, done, total):
        self.done = done

    def context(self):
        return contextlib.nullcontext(lambda: self.done >= self.steps)


CASES = {
    "float32": {},
    "float64": {"precision": "float64"},
    "classes": {"groups": CLASSES},
    "in a temporary file": {"groups": CLASSES, "filed": True},
    "sample": {"positions": 40, "seed": 3},
    "one state": {"states": ["lstm1.c"]},
    "differences": {"method": "fd"},
    "two threads": {"threads": 2, "groups": CLASSES},
    "counter": {"model": "counter"},
    "tokens": {"model": "masked"},
    "streams": {"streams": 3},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_a_run_ended_after_every_shard_is_the_run(measure, tmp_path, monkeypatch, options):
    options = dict(options)
    if options.pop("filed", False):
        monkeypatch.setattr(sums, "_IN_MEMORY", 0)
    whole = arrays(measure(**options))
    path, steps, stops, found = tmp_path / "r.checkpoint", 1, 0, None
    while found is None:
        stop = Stop(steps)
        with Checkpoint(path, every=0, resume=True, stopping=stop.context) as checkpoint:
            try:
                found = measure(**options, checkpoint=checkpoint, progress=stop.progress)
            except KeyboardInterrupt:
                steps, stops = stop.done + 1, stops + 1
    assert stops >= 3  # of a sample; of all positions, 6
    assert arrays(found) == whole


@pytest.mark.parametrize("shard", range(1, 8))
def test_a_run_may_be_ended_once_after_any_shard(measure, tmp_path, shard):
    whole = arrays(measure(groups=CLASSES))
    path, stop = tmp_path / "r.checkpoint", Stop(shard * 13)
    with (
        pytest.raises(KeyboardInterrupt),
        Checkpoint(path, every=0, stopping=stop.context) as checkpoint,
    ):
        measure(groups=CLASSES, checkpoint=checkpoint, progress=stop.progress)
    found = measure(groups=CLASSES, checkpoint=path, resume=True)
    assert arrays(found) == whole


@pytest.fixture
def ended(measure, tmp_path):
    """The checkpoint of a run that was ended in its midst."""
    path, stop = tmp_path / "r.checkpoint", Stop(30)
    with (
        contextlib.suppress(KeyboardInterrupt),
        Checkpoint(path, every=0, stopping=stop.context) as checkpoint,
    ):
        measure(checkpoint=checkpoint, progress=stop.progress)
    assert path.exists()
    return path


def test_words_go_on_within_and_between_passes(measure, tmp_path, monkeypatch):
    """Passes are those of the run that was ended, even if less memory is free now."""
    measure()  # makes the model
    model, path = open_model(tmp_path / "lstm.onnx"), tmp_path / "w.checkpoint"
    options = {"delays": 4, "threads": 1, "provider": "cpu", "max_count": 6, "seed": 2}
    monkeypatch.setattr(Run, "most_groups", lambda self, members, working: 5)
    whole = analyze_words(model, CORPUS, **options)
    assert whole.attrs["passes"] == 3
    steps, stops, found = 1, 0, None
    while found is None:
        stop = Stop(steps)
        with Checkpoint(path, every=0, resume=True, stopping=stop.context) as checkpoint:
            try:
                found = analyze_words(
                    model, CORPUS, **options, checkpoint=checkpoint, progress=stop.progress
                )
            except KeyboardInterrupt:
                steps, stops = stop.done + 1, stops + 1
                monkeypatch.setattr(Run, "most_groups", lambda self, members, working: 2)
                for other in ({"seed": 3}, {"max_count": 5}, {"delays": 3}) if stops == 1 else ():
                    with pytest.raises(CheckpointError, match="of another run"):
                        analyze_words(model, CORPUS, **{**options, **other}, checkpoint=checkpoint)
    assert stops > 6
    assert arrays(found) == arrays(whole)


def test_what_is_missing_shows(measure, ended, monkeypatch):
    """The comparison of bytes sees a state, or a half's sum, that was not restored."""
    whole = arrays(measure())
    restore = Checkpoint.restore
    for lost in ("state0", "half_sum"):

        def without(self, key, totals, release, lost=lost):
            values = restore(self, key, totals, release)
            for held in (values, totals):
                if lost in held:
                    held[lost][...] = 0
            return values

        monkeypatch.setattr(Checkpoint, "restore", without)
        assert arrays(measure(checkpoint=ended, resume=True)) != whole


def test_the_file_stays_and_holds_the_time(measure, ended):
    said = []
    with Checkpoint(ended, resume=True) as checkpoint:
        tree = measure(checkpoint=checkpoint, report=said.append)
        before = checkpoint.seconds_before
        assert 0 < before < tree.attrs["wall_seconds"]
        assert any(line.startswith("Going on from the checkpoint: ") for line in said)
        checkpoint.remove()
    assert not ended.exists()
    assert not list(ended.parent.glob("*.lock"))


def test_numpy_reads_it(ended):
    with np.load(ended, allow_pickle=False) as file:
        assert "block_sum" in "".join(file.files)
        assert int(file["values/shards"]) == 2


def test_it_is_written_as_often_as_asked(measure, tmp_path, monkeypatch):
    written, write = [], Checkpoint.write

    def count(self, *arguments):
        written.append(1)
        return write(self, *arguments)

    monkeypatch.setattr(Checkpoint, "write", count)
    path = tmp_path / "r.checkpoint"
    for every, expected in ((0, 0), (1e-9, 7), (3600, 0), (None, 0)):
        written.clear()
        measure(checkpoint=path, checkpoint_every=every)
        assert len(written) == expected
        assert path.exists() == bool(expected)
        path.unlink(missing_ok=True)


def test_without_resume_nothing_is_overwritten(measure, ended):
    held = ended.read_bytes()
    with pytest.raises(CheckpointError, match=r"Add --resume .* or delete the file to start again"):
        measure(checkpoint=ended, checkpoint_every=1e-9)
    assert ended.read_bytes() == held
    assert not list(ended.parent.glob("*.lock"))


def test_resume_without_a_checkpoint_begins(measure, tmp_path):
    found = measure(checkpoint=tmp_path / "r.checkpoint", resume=True)
    assert arrays(found) == arrays(measure())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"delays": 5}, r"delays \(this run: 5, the checkpoint: 4\)"),
        ({"states": ["lstm0.c"]}, "states"),
        ({"method": "fd"}, r"method \(this run: fd, the checkpoint: jvp\)"),
        ({"precision": "float64"}, "precision"),
        ({"positions": 40}, "positions"),
        ({"seed": 1}, r"sample and halves \(--seed\)"),
        ({"blocks": 4}, "blocks"),
        ({"threads": 2}, "threads"),
        ({"groups": CLASSES}, "groups"),
        ({"model": "lstm-one-layer"}, "model"),
        ({"tf32": True}, "tf32"),
    ],
    ids=str,
)
def test_another_run_is_refused(measure, ended, options, named):
    held = ended.read_bytes()
    with pytest.raises(CheckpointError, match=f"of another run; they differ in .*{named}") as info:
        measure(**options, checkpoint=ended, resume=True)
    assert str(info.value).endswith("or delete the file to start again.")
    assert ended.read_bytes() == held


def test_words_go_on_with_the_streams_of_each_pass(measure, tmp_path, monkeypatch):
    """The first pass has streams side by side, the second none, since it follows few inputs."""
    monkeypatch.setattr(_shards, "_MOST", 8192)
    measure()  # makes the model
    model, path = open_model(tmp_path / "lstm.onnx"), tmp_path / "w.checkpoint"
    rng = np.random.default_rng(0)
    corpus = Corpus(
        np.concatenate([rng.integers(0, 2, 1500), rng.integers(2, models.V, 1000)]), "", "", 1, 0
    )
    monkeypatch.setattr(Run, "most_groups", lambda self, members, working: 2)
    made, choice = [], Engines.choice
    monkeypatch.setattr(
        Engines, "choice", lambda *of, **more: made.append(choice(*of, **more)) or made[-1]
    )
    options = {"min_count": 1, "delays": 4, "threads": 1, "provider": "cpu"}
    whole = analyze_words(model, corpus, **options)
    assert made[0].streams > 1
    assert made[-1].streams == 0
    stop = Stop(1)
    with (
        pytest.raises(KeyboardInterrupt),
        Checkpoint(path, every=0, stopping=stop.context) as checkpoint,
    ):
        analyze_words(model, corpus, **options, checkpoint=checkpoint, progress=stop.progress)
    found = analyze_words(model, corpus, **options, checkpoint=path, resume=True)
    assert arrays(found) == arrays(whole)


@pytest.mark.parametrize(
    "chosen",
    [
        {"threads": 2, "chunk": 3},
        {"threads": 1, "streams": 2},
        {"threads": 1, "positions": 60, "streams": 6},
    ],
    ids=str,
)
def test_what_a_run_chose_is_taken_from_its_checkpoint(measure, tmp_path, chosen):
    """As calibration chooses, which may be gone or say something else by now."""
    path, stop = tmp_path / "r.checkpoint", Stop(30)
    whole = measure(**chosen)
    with (
        pytest.raises(KeyboardInterrupt),
        Checkpoint(path, every=0, stopping=stop.context) as checkpoint,
    ):
        measure(**chosen, checkpoint=checkpoint, progress=stop.progress)
    asked = {name: value for name, value in chosen.items() if name == "positions"}
    found = measure(**asked, threads=None, checkpoint=path, resume=True)
    for name in ("threads", "streams", "chunk"):
        assert found.attrs.get(name) == whole.attrs.get(name)
    assert arrays(found) == arrays(whole)


def test_choices_that_no_run_makes_do_no_harm(measure, ended, monkeypatch):
    """A checkpoint is data that anybody may have written."""
    for name, value in {"chunk": 10**12, "streams": 10**12}.items():
        monkeypatch.setattr(Checkpoint, "choices", lambda self, of={name: value}: of)
        if name == "chunk":
            with pytest.raises(CheckpointError, match=rf"differ in chunk \(this run: {LENGTH},"):
                measure(checkpoint=ended, resume=True)
        else:  # more than there are shards: as if it said nothing
            assert arrays(measure(checkpoint=ended, resume=True)) == arrays(measure())
    monkeypatch.setattr(Checkpoint, "choices", lambda self: {"threads": 10**9})
    with pytest.raises(MnemoscopeError, match="threads must be 1,024 or less"):
        measure(threads=None, checkpoint=ended, resume=True)


@pytest.mark.parametrize("value", [0, -1, 2.5, "2", True, [2], None])
def test_choices_are_whole_numbers(ended, value):
    with zipfile.ZipFile(ended) as file:
        held = {name: file.read(name) for name in file.namelist()}
    key = json.loads(str(np.load(io.BytesIO(held["key.npy"]))))
    assert key["threads"] == 1
    key["threads"] = value
    text = io.BytesIO()
    np.save(text, np.array(json.dumps(key)))
    with zipfile.ZipFile(ended, "w") as file:
        for name, data in {**held, "key.npy": text.getvalue()}.items():
            file.writestr(name, data)
    with Checkpoint(ended, resume=True) as checkpoint:
        assert "threads" not in checkpoint.choices()
        assert checkpoint.choices()["streams"] == 1


def test_other_steps_of_differences_are_refused(measure, tmp_path):
    path = tmp_path / "r.checkpoint"
    measure(method="fd", checkpoint=path, checkpoint_every=1e-9)
    with pytest.raises(CheckpointError, match=r"step \(this run: 0.5, the checkpoint: null\)"):
        measure(method="fd", step=0.5, checkpoint=path, resume=True)


def test_another_corpus_is_refused(measure, ended, monkeypatch):
    monkeypatch.setitem(globals(), "CORPUS", Corpus(IDS[::-1].copy(), "random", "", 1, 0))
    with pytest.raises(CheckpointError, match=r"corpus \(this run: [0-9a-f]{12}…"):
        measure(checkpoint=ended, resume=True)


def test_another_library_is_refused(measure, ended, monkeypatch):
    from mnemoscope.analyzer import _run

    monkeypatch.setattr(_run, "versions", lambda: {"numpy": "0.1"})
    with pytest.raises(CheckpointError, match=r"numpy \(this run: 0.1, the checkpoint: "):
        measure(checkpoint=ended, resume=True)


def test_another_format_is_refused(measure, ended, monkeypatch):
    monkeypatch.setattr(_checkpoint, "_VERSION", 2)
    with pytest.raises(CheckpointError, match="has the format mnemoscope checkpoint 1"):
        measure(checkpoint=ended, resume=True)


def test_a_damaged_file_is_refused_or_harmless(measure, ended):
    whole, held = arrays(measure()), ended.read_bytes()
    rng = np.random.default_rng(0)
    kinds, said = {"refused": 0, "harmless": 0}, []
    for i in range(40):
        damaged = bytearray(held)
        if i < 10:
            del damaged[int(len(held) * i / 10) :]
        else:
            at = int(rng.integers(len(held)))
            damaged[at] ^= int(rng.integers(1, 256))
        ended.write_bytes(damaged)
        try:
            found = measure(checkpoint=ended, resume=True, checkpoint_every=0)
        except CheckpointError as error:
            kinds["refused"] += 1
            said.append(str(error))
            assert ended.read_bytes() == damaged
        else:  # a time stamp in the archive, say
            kinds["harmless"] += 1
            assert arrays(found) == whole
    assert kinds["refused"] >= 25
    assert all("is damaged, or no checkpoint" in s or "cannot be read" in s for s in said)


def test_no_archive_of_ours(measure, tmp_path):
    path = tmp_path / "r.checkpoint"
    np.savez(path.with_suffix(".npz"), a=1)
    path.with_suffix(".npz").rename(path)
    with pytest.raises(CheckpointError, match="is damaged, or no checkpoint"):
        measure(checkpoint=path, resume=True)


def test_two_runs_to_one_output(measure, ended, tmp_path):
    (tmp_path / "link").symlink_to(ended)
    with (
        Checkpoint(ended, resume=True),
        pytest.raises(CheckpointError, match="Another run writes to the same output"),
    ):
        measure(checkpoint=tmp_path / "link", resume=True)
    measure(checkpoint=ended, resume=True)


def test_a_folder_that_is_not_there(measure, tmp_path):
    with pytest.raises(CheckpointError, match=r"No checkpoint can be kept at .*No such file"):
        measure(checkpoint=tmp_path / "absent" / "r.checkpoint")


@pytest.mark.parametrize("every", [-1.0, float("nan"), float("inf")])
def test_seconds_that_are_none(measure, tmp_path, every):
    with pytest.raises(CheckpointError, match="must be a number from 0 on"):
        measure(checkpoint=tmp_path / "r.checkpoint", checkpoint_every=every)


def test_room_is_known_beforehand(measure, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    path = tmp_path / "r.checkpoint"
    with pytest.raises(CheckpointError, match=r"has room for 5 KiB.*--checkpoint-every 0"):
        measure(checkpoint=path)
    measure(checkpoint=path, checkpoint_every=0)


@pytest.mark.parametrize("at", [0, 3, 40])
def test_a_disk_that_fills_does_not_end_the_run(measure, tmp_path, monkeypatch, at):
    """The run goes on, keeps the last checkpoint, and writes again when there is room."""
    put, count, said, held = _checkpoint._put, [0], [], []
    path = tmp_path / "r.checkpoint"

    def full(file, name, array):
        count[0] += name == _checkpoint._KEY
        pieces[0] = 0 if name == _checkpoint._KEY else pieces[0] + 1
        if count[0] in (3, 4) and pieces[0] == at:
            held.append(path.read_bytes())
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(file, name, array)

    pieces = [0]
    monkeypatch.setattr(_checkpoint, "_put", full)
    with Checkpoint(path, every=1e-9, report=said.append) as checkpoint:
        found = measure(checkpoint=checkpoint)
    assert count[0] == 7
    assert held[0] == held[1]
    assert len(said) == 2
    assert "No space left on device; the last one stays. The run goes on" in said[0]
    assert said[1].endswith("again.")
    assert arrays(found) == arrays(measure())
    assert arrays(measure(checkpoint=path, resume=True)) == arrays(found)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".checkpoint", ".onnx"]


def test_a_disk_that_is_full(measure, tmp_path, monkeypatch):
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = shutil.which("mount") and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder],
        capture_output=True, check=False,
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("only root may mount a small file system")
    try:
        said = []
        with pytest.raises(CheckpointError, match="has room for 16 KiB"):
            measure(groups=CLASSES, checkpoint=folder / "r.checkpoint")
        # The rest of the system may fill it later on.
        monkeypatch.setattr(Checkpoint, "require_room", lambda self, size: None)
        with Checkpoint(folder / "r.checkpoint", every=1e-9, report=said.append) as checkpoint:
            found = measure(groups=CLASSES, checkpoint=checkpoint)
        assert len(said) == 1
        assert "No space left on device; none is there yet" in said[0]
        assert arrays(found) == arrays(measure(groups=CLASSES))
        assert not list(folder.iterdir())
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_folder_that_cannot_be_written(measure, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match=r"No checkpoint can be kept at .*Permission denied"):
        measure(checkpoint=folder / "r.checkpoint")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_as_many_threads_give_the_same_bits(measure, threads):
    runs = [arrays(measure(threads=threads, groups=CLASSES, states=["lstm1.c"])) for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]


def test_other_numbers_of_threads_round_otherwise_at_most(measure):
    one, two = (measure(threads=n, precision="float64")["lstm1.c"] for n in (1, 2))
    np.testing.assert_allclose(one["gradient"], two["gradient"], rtol=0, atol=1e-14)
    np.testing.assert_array_equal(one["count"], two["count"])
