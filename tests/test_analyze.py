"""The main job as a whole: what is followed, what is the same again, and what it holds."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import warnings
from collections import Counter, namedtuple

import models
import numpy as np
import pytest
from mnemoscope.analyzer import (
    Corpus,
    _memory,
    analyze,
    open_model,
    open_result,
    save_result,
    sums,
)
from mnemoscope.analyzer.errors import MnemoscopeError, ModelError, ResourceError
from mnemoscope.analyzer.groups import Groups

VARIABLES = ("gradient", "noise", "count", "singular_values", "singular_values_stderr",
             "noise_floor", "selectivity", "block_gradient", "block_count")  # fmt: skip


def stream(length, seed=0, vocabulary=models.V):
    ids = np.random.default_rng(seed).integers(0, vocabulary, length)
    return Corpus(ids, "random", "", 1, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_model(models.save(models.fused(layers=1), tmp_path_factory.mktemp("m") / "m.onnx"))


@pytest.mark.parametrize("options", [{}, {"positions": 60}, {"method": "fd"}], ids=str)
def test_the_same_call_gives_the_same_numbers(model, options):
    corpus = stream(300)
    one, two = (analyze(model, corpus, delays=6, seed=5, **options) for _ in range(2))
    for name, child in one.children.items():
        for variable in VARIABLES:
            np.testing.assert_array_equal(two[name][variable], child[variable])


def test_the_seed_changes_the_halves_and_not_the_mean(model):
    one, two = (analyze(model, stream(300), delays=3, seed=s)["lstm0.h"] for s in (0, 1))
    # The same Jacobians, added in another order.
    np.testing.assert_allclose(one["gradient"], two["gradient"], rtol=0, atol=1e-6)
    assert (one["noise"].values != two["noise"].values).any()


def test_all_positions_count(model):
    tree = analyze(model, stream(100), delays=7)
    np.testing.assert_array_equal(tree["lstm0.c"]["count"][0], 100 - np.arange(8))


@pytest.mark.parametrize("positions", [100, 101, 10**9])
def test_a_sample_as_large_as_the_corpus_is_the_corpus(model, positions):
    said = []
    tree = analyze(model, stream(100), delays=3, positions=positions, report=said.append)
    whole = analyze(model, stream(100), delays=3)
    assert "The corpus has 100 positions, so all of them are followed." in said
    for variable in VARIABLES:
        np.testing.assert_array_equal(tree["lstm0.h"][variable], whole["lstm0.h"][variable])


def test_a_sample_is_the_mean_over_its_positions(model):
    # As groups of the full run: which positions a sample took, the plan says.
    from mnemoscope.analyzer.sums import plan

    corpus, delays = stream(400), 5
    layout = plan(400, delays, blocks=10, positions=80, seed=2)
    tree = analyze(model, corpus, delays=delays, positions=80, seed=2)
    whole = analyze(
        model, corpus, delays=delays, groups=Groups.from_masks({"sample": layout.block >= 0})
    )
    for name, child in tree.children.items():
        np.testing.assert_array_equal(child["count"], whole[name]["count"])
        np.testing.assert_allclose(child["gradient"], whole[name]["gradient"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("length", "delays", "positions", "blocks"),
    [(1, 0, None, None), (2, 0, None, None), (2, 1, None, 2), (3, 2, None, 7), (5, 4, 2, 2),
     (50, 3, 1, None), (50, 0, 1, 2), (50, 49, 3, 50), (50, 10, 49, 3)],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_small_numbers_of_positions(model, tmp_path, length, delays, positions, blocks, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = analyze(model, stream(length), delays=delays, positions=positions, blocks=blocks,
                       seed=seed)  # fmt: skip
    save_result(tree, tmp_path / "r.nc")
    found = open_result(tmp_path / "r.nc")["lstm0.h"]
    count = found["count"].values[0]
    assert count[0] == min(positions or length, length)
    # What no position shows is not a number, and what any shows is one.
    np.testing.assert_array_equal(np.isfinite(found["gradient"]).all(("unit", "embedding"))[0],
                                  count > 0)  # fmt: skip


def test_groups(model):
    rng = np.random.default_rng(0)
    corpus, mask = stream(200), rng.random(200) < 0.3
    groups = {"all": np.ones(200, bool), "some": mask, "others": ~mask}
    node = analyze(model, corpus, delays=4, groups=Groups.from_masks(groups))["lstm0.h"]
    total = (node["gradient"] * node["count"]).transpose("group", ...)
    np.testing.assert_allclose(total[0], total[1] + total[2], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(node["count"][0], node["count"][1] + node["count"][2])
    for tau in range(5):
        assert int(node["count"][1, tau]) == mask[: 200 - tau].sum()


def test_sums_in_a_file_are_the_same(model, tmp_path, monkeypatch):
    labels = [[f"w{i % 7}"] for i in range(200)]
    options = {"delays": 4, "groups": Groups.from_labels(labels).with_all()}
    near, said = analyze(model, stream(200), **options), []
    monkeypatch.setattr(sums, "_IN_MEMORY", 0)
    monkeypatch.setattr(sums, "_RELEASE", 3)
    monkeypatch.setattr(sums, "_RELEASE_DIRECT", 3)
    monkeypatch.setattr(_memory, "holds", lambda folder: False)
    far = analyze(model, stream(200), scratch=tmp_path, report=said.append, **options)
    assert any("in a temporary file" in line for line in said)
    assert not list(tmp_path.iterdir())
    for state in near.children:
        for name, value in near[state].data_vars.items():
            np.testing.assert_array_equal(far[state][name].values, value.values)


def test_a_file_in_memory_saves_none(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sums, "_IN_MEMORY", 0)
    monkeypatch.setattr(_memory, "holds", lambda folder: folder == tmp_path)
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    said = []
    analyze(model, stream(200), delays=4, scratch=tmp_path, report=said.append)
    (line,) = [x for x in said if x.startswith("Memory")]
    assert line.endswith(" allowed.")
    with pytest.raises(ResourceError, match=r"folder that is not in memory \(tmpfs\), or raise"):
        analyze(model, stream(200), delays=4, scratch=tmp_path, memory=10_000)


@pytest.mark.parametrize(
    ("folder", "kind", "found"),
    [("a", "tmpfs", True), ("a/b", "ramfs", True), ("ab", "tmpfs", False), ("a", "ext4", False),
     ("a/disk", "tmpfs", False)],
)  # fmt: skip
def test_folders_that_lie_in_memory(tmp_path, monkeypatch, folder, kind, found):
    """The nearest mount decides, and of two at one place the later, which hides the other."""
    root, part = tmp_path.resolve(), namedtuple("part", ["mountpoint", "fstype"])
    mounts = [part("/", "ext4"), part(f"{root}/a", "xfs"), part(f"{root}/a", kind),
              part(f"{root}/a/disk", "ext4")]  # fmt: skip
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts if all else [])
    assert _memory.holds(tmp_path / folder) is found


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="Linux mounts a tmpfs there")
def test_a_real_one():
    assert _memory.holds("/dev/shm")


def test_a_full_disk_is_said_before_the_run(model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sums, "_IN_MEMORY", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(_memory, "holds", lambda folder: False)
    with pytest.raises(ResourceError, match=r"cannot be had: No space left on device\. Write the"):
        analyze(model, stream(200), delays=4, scratch=tmp_path)


def test_vocabulary_and_members_are_kept(model, tmp_path):
    corpus = stream(200)
    labels = [["odd"] if i % 2 else ["even", "first"][: 1 + (i < 10)] for i in range(200)]
    groups = Groups.from_labels(labels).with_all()
    save_result(analyze(model, corpus, delays=2, groups=groups), tmp_path / "r.nc")
    tree = open_result(tmp_path / "r.nc")
    np.testing.assert_array_equal(tree["embeddings"], model.embeddings)
    if model.vocabulary:
        assert tree["token"].values.tolist() == list(model.vocabulary.tokens)
    for g, name in enumerate(groups.names):
        here = tree["member_group"].values == g
        found = dict(zip(tree["member_token"].values[here].tolist(),
                         tree["member_count"].values[here].tolist(), strict=True))  # fmt: skip
        assert found == dict(Counter(corpus.ids[groups.mask(name)].tolist()))


def test_progress_ends_at_its_total(model):
    seen = []
    analyze(model, stream(60), delays=5, progress=lambda done, total: seen.append((done, total)))
    assert [total for _, total in seen] == [60] * len(seen)
    assert (np.diff([0, *(done for done, _ in seen)]) > 0).all()
    assert seen[-1] == (60, 60)
    seen.clear()
    analyze(model, stream(200), delays=5, positions=30,
            progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    done, total = zip(*seen, strict=True)
    assert (np.diff([0, *done]) > 0).all()
    assert done[-1] == total[0]


def test_attributes(model):
    tree = analyze(model, stream(100), delays=3, precision="float64", seed=4, provider="cpu")
    wanted = {"model": "m.onnx", "method": "jvp", "precision": "float64", "seed": 4, "blocks": 10,
              "positions": 100, "provider": "CPUExecutionProvider", "tf32": 0}  # fmt: skip
    assert {k: tree.attrs[k] for k in wanted} == wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"delays": -1}, "must be 0 or more, not -1"),
        ({"delays": 100}, "too few for a delay of 100: it needs at least 101"),
        ({"positions": 0}, "must be 1 or more, not 0"),
        ({"blocks": 1}, "at least 2 blocks, not 1"),
        ({"states": ["x"]}, "no differentiable state 'x'; it has lstm0.h, lstm0.c"),
        ({"step": 0.1}, "belongs to --method fd"),
        ({"step": 0.0, "method": "fd"}, "must be a finite number above 0"),
        ({"step": float("nan"), "method": "fd"}, "must be a finite number above 0"),
        ({"memory": 1000, "delays": 1}, "This run would need about"),
        ({"threads": 0}, "threads must be 1 or more, not 0"),
        ({"threads": -1}, "threads must be 1 or more, not -1"),
    ],
)
def test_refusals(model, options, said):
    with pytest.raises(MnemoscopeError, match=said):
        analyze(model, stream(100), **{"delays": 3, **options})


def test_a_fixed_batch(tmp_path):
    proto = models.flat()
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 1
    opened = open_model(models.save(proto, tmp_path / "m.onnx"))
    assert list(analyze(opened, stream(30), delays=3).children) == ["h"]
    with pytest.raises(ModelError, match="batch size is fixed to 1; finite differences run"):
        analyze(opened, stream(30), delays=3, method="fd")


class TestMemory:
    @pytest.mark.parametrize(
        ("size", "shown"),
        [
            (0, "0 KiB"),
            (1025, "2 KiB"),
            (5 * 2**20, "5 MiB"),
            (3 * 2**29, "1.5 GiB"),
            (2**41, "2.0 TiB"),
        ],
    )
    def test_shown(self, size, shown):
        assert _memory.shown(size) == shown

    def test_a_control_group_counts(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_memory, "_CONTROL", tmp_path)
        assert _memory.available() > 2**20  # none: the machine's
        (tmp_path / "memory.current").write_text("1000\n")
        (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\n")
        (tmp_path / "memory.max").write_text("max\n")
        assert _memory.available() > 2**20
        (tmp_path / "memory.max").write_text("5000\n")
        assert _memory.available() == 4300
        assert _memory.allowed() == 3440
        assert _memory.allowed(7) == 7

    def test_refused_before_the_work(self, model, monkeypatch):
        monkeypatch.setattr("mnemoscope.analyzer._engines.linearize", None)
        with pytest.raises(ResourceError, match=r"need about .* KiB of memory, and 1 KiB may be"):
            analyze(model, stream(100), delays=50, memory=1000)

    @pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
    # A model and a corpus whose run takes enough to be told from the libraries.
    @pytest.mark.parametrize(
        ("v", "e", "h", "layers", "delays", "options"),
        [
            (500, 48, 192, 1, 50, "{}"),  # products and sums
            (25_000, 200, 32, 1, 3, "{}"),  # the vocabulary
            (100, 32, 384, 1, 3, "{'method': 'fd'}"),  # copies of the step
            (100, 64, 512, 1, 0, "{}"),  # derivatives
            (100, 48, 192, 1, 15, "{'streams': 4}"),  # products and sums side by side
            (100, 48, 96, 3, 30, "{}"),  # through relays
            (100, 32, 96, 3, 12, "{'streams': 4}"),
        ],
    )
    def test_a_run_stays_below_its_estimate(self, tmp_path, v, e, h, layers, delays, options):
        code = f"""
import re
import numpy as np, models
from pathlib import Path
from mnemoscope.analyzer import Corpus, analyze, open_model
def peak():
    # Not ru_maxrss, which a child inherits from the process that started it.
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
def run(v, e, h, layers, delays, length, **options):
    models.E, models.H = e, h
    proto = models.fused(layers=layers, vocabulary=v)
    path = models.save(proto, Path({str(tmp_path)!r}) / "m.onnx")
    ids = np.random.default_rng(0).integers(0, v, length)
    said = []
    opened = open_model(path)
    analyze(opened, Corpus(ids, "", "", 1, 0), delays=delays, report=said.append, **options)
    return next(line for line in said if line.startswith("Memory"))
run(12, 3, 4, layers=1, delays=3, length=30)  # the libraries, once
before = peak()
print(run({v}, {e}, {h}, {layers}, {delays}, 90, **{options}), (peak() - before) / 2**20)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              cwd=models.__file__.rpartition("/")[0], check=True)  # fmt: skip
        estimate, unit, taken = re.match(
            r"Memory: about ([\d.]+) (\w+) of .* allowed\. ([\d.]+)", done.stdout
        ).groups()
        estimate = float(estimate) * {"MiB": 1, "GiB": 1024}[unit]
        assert 40 < float(taken) < estimate + 15  # arenas of the allocators
        assert estimate < 5 * float(taken)


@pytest.mark.parametrize("name", ["", " ", "x\n::error::y", "a\x1b[31m"])
def test_groups_that_a_result_could_not_be_read_with_are_refused(model, name):
    groups = Groups.from_masks({name: np.ones(100, bool)})
    with pytest.raises(MnemoscopeError, match="cannot hold a group named"):
        analyze(model, stream(100), delays=2, groups=groups)
