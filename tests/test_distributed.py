"""A run on several processes is the run on one, whatever becomes of the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import models
import numpy as np
import psutil
import pytest
from mnemoscope.analyzer import (
    Corpus,
    Groups,
    MnemoscopeError,
    _cluster,
    _engines,
    _identity,
    _shards,
    analyze,
    open_model,
)
from mnemoscope.analyzer._cluster import Cluster, _check_libraries, connected, result_of
from mnemoscope.analyzer._shards import Shard
from mnemoscope.analyzer.distributed import split
from mnemoscope.analyzer.errors import ModelError, ResourceError

distributed = pytest.importorskip("distributed", reason="the extra distributed is not installed")

SAMPLE = Path(__file__).parent.parent / "samples/models/pydoc-lstm.onnx"


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
        scheduler_kwargs={"allowed_failures": 2},
    ) as made:
        yield made


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(_shards, "_LEAST", 20)
    monkeypatch.setattr(_shards, "_MOST", 20)
    return open_model(models.save(models.MODELS["lstm"](), tmp_path / "m.onnx"))


def corpus(length):
    ids = np.random.default_rng(0).integers(0, models.V, length)
    return Corpus(ids, "random", "", 1, 0)


def classes(length):
    """Two that overlap, the second in a part of the corpus only."""
    at = np.arange(length)
    return Groups.from_masks({"some": at % 3 > 0, "early": at < length // 3})


def assert_same(found, expected, tolerance):
    """Every mean within `tolerance` of the largest entry of its matrix."""
    for state in expected.children:
        a, b = found[state], expected[state]
        np.testing.assert_array_equal(a["block_count"], b["block_count"])
        largest = np.abs(b["gradient"].values).max((-2, -1), keepdims=True)
        for name in ("gradient", "noise", "block_gradient"):
            scale = largest * (1 if name == "gradient" else 10)  # means over a tenth, a half
            # Where a block lacks a class there is no mean.
            np.testing.assert_array_equal(np.isnan(a[name]), np.isnan(b[name]))
            assert np.nanmax(np.abs((a[name] - b[name]).values / scale)) <= tolerance, name


# In double precision only the order of the additions differs. In single precision the sums of a
# shard are the same, and moved to double precision; but where no class has more than 256
# positions they stay in single, and 256 additions round by 2^-24 each.
CASES = [
    ("float64", 400, {}, 1e-12),
    ("float64", 400, {"groups": classes(400)}, 1e-12),
    ("float64", 400, {"positions": 130, "groups": classes(400)}, 1e-12),
    ("float64", 400, {"method": "fd", "blocks": 3}, 1e-12),
    ("float32", 400, {}, 2.0**-22),
    ("float32", 200, {"groups": classes(200)}, 2.0**-16),
]


@pytest.mark.parametrize(("precision", "length", "options", "tolerance"), CASES)
def test_the_result_is_that_of_one_process(model, cluster, precision, length, options, tolerance):
    text, told = corpus(length), []
    one = analyze(model, text, delays=4, precision=precision, threads=1, **options)
    two = analyze(model, text, delays=4, precision=precision, threads=1, **options,
                  scheduler=cluster.scheduler_address,
                  progress=lambda done, total: told.append(done / total))  # fmt: skip
    assert_same(two, one, tolerance)
    assert told[-1] == 1
    assert len(told) >= 4
    assert two.attrs["scheduler"] == cluster.scheduler_address
    assert two.attrs["workers"] == 2
    assert "workers" not in one.attrs


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_of_this_machine(model, workers):
    one = analyze(model, corpus(200), delays=4, precision="float64")
    two = analyze(model, corpus(200), delays=4, precision="float64", workers=workers, threads=1)
    assert_same(two, one, 1e-12)
    assert (two.attrs["workers"], two.attrs["threads"]) == (workers, 1)
    assert "scheduler" not in two.attrs


def test_the_comparison_sees_a_lost_shard(model, cluster, monkeypatch):
    one = analyze(model, corpus(400), delays=4, precision="float64")
    lossy = _engines.Accumulator.merge

    def merge(self, part):
        part.block_sum[..., 0] *= 1 - 1e-10
        lossy(self, part)

    monkeypatch.setattr(_engines.Accumulator, "merge", merge)
    two = analyze(model, corpus(400), delays=4, precision="float64",
                  scheduler=cluster.scheduler_address)  # fmt: skip
    with pytest.raises(AssertionError):
        assert_same(two, one, 1e-12)


def test_a_lost_worker_is_made_up_for(model, cluster):
    text, killed = corpus(800), []
    one = analyze(model, text, delays=4, precision="float64")

    def kill(done, total):
        if not killed:
            assert done < total / 2
            with distributed.Client(cluster, set_as_default=False) as client:
                killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    two = analyze(model, text, delays=4, precision="float64", progress=kill,
                  scheduler=cluster.scheduler_address)  # fmt: skip
    assert killed
    assert_same(two, one, 1e-12)


def test_a_task_that_ends_every_worker_is_given_up(cluster):
    with connected(Cluster(cluster.scheduler_address, None)) as client:
        task = client.submit(os._exit, 1)
        with pytest.raises(ResourceError, match="Positions 1 to 9 ended 3 workers one after"):
            result_of(task, "positions 1 to 9")


def test_an_error_of_a_worker_is_the_users(cluster):
    with connected(Cluster(cluster.scheduler_address, None)) as client:
        task = client.submit(open_model, "nowhere.onnx")
        with pytest.raises(ModelError, match=r"^There is no model file nowhere.onnx.$"):
            result_of(task, "a task")


def test_what_nobody_does_any_more(cluster):
    with connected(Cluster(cluster.scheduler_address, None)) as client:
        task = client.submit(time.sleep, 1)
        task.cancel()
        with pytest.raises(ResourceError, match="scheduler went away during positions 1 to 9"):
            result_of(task, "positions 1 to 9")


def test_versions_must_be_the_same(model, cluster, monkeypatch):
    monkeypatch.setattr(_identity, "__version__", "9.9")
    with pytest.raises(ResourceError, match=r"mnemoscope is 9.9 here and .* Install the same"):
        analyze(model, corpus(60), delays=2, scheduler=cluster.scheduler_address)


def test_mnemoscope_must_be_there():
    class Client:
        def run_on_scheduler(self, ask):
            return ask()

        def run(self, ask, on_error):
            return {"tcp://w": ModuleNotFoundError("No module named 'mnemoscope'")}

    with pytest.raises(ResourceError, match=r"does not run on the worker tcp://w .No module named"):
        _check_libraries(Client())


def test_a_scheduler_that_is_not_there(model, monkeypatch):
    monkeypatch.setattr(_cluster, "_PATIENCE", 1.0)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(ResourceError, match=f"Expected a Dask scheduler at {address}"):
            analyze(model, corpus(60), delays=2, scheduler=address)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scheduler": "tcp://h:1", "workers": 2}, "give --scheduler or --workers, not both"),
        ({"workers": 0}, "must be 1 or more, not 0"),
    ],
)
def test_calls_that_make_no_sense(model, options, said):
    with pytest.raises(MnemoscopeError, match=said):
        analyze(model, corpus(60), delays=2, **options)


def test_without_the_extra(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MnemoscopeError, match=r"pip install 'mnemoscope\[distributed\]'"):
        analyze(model, corpus(60), delays=2, workers=1)


def test_tasks_are_neighbours_and_whole_shards():
    follow = np.ones(10, bool)
    shards = [Shard(i, i + 10, i + 10, follow) for i in range(0, 1000, 10)]
    for workers, longest in ((1, 6), (5, 5), (1000, 1)):
        tasks = split(shards, workers)
        assert [s for task in tasks for s in task] == shards
        assert max(map(len, tasks)) == longest


def processes(of):
    return [p for p in of.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is watched without fork")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_process_outlives_the_command(tmp_path, name):
    text = tmp_path / "c.txt"
    text.write_text("the a of to and in is\n" * 20000)
    call = [sys.executable, "-m", "mnemoscope.cli", "analyze", str(SAMPLE), str(text), "-o",
            str(tmp_path / "r.nc"), "--workers", "2"]  # fmt: skip
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as command:
        parent = psutil.Process(command.pid)
        until = time.monotonic() + 120
        # The watched child, its tracker of resources, two workers.
        while len(started := processes(parent)) < 4:
            assert time.monotonic() < until
            assert command.poll() is None, command.stderr.read()
            time.sleep(0.2)
        command.send_signal(getattr(signal, name))
        said = command.communicate(timeout=60)[1]
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive
    assert "Traceback" not in said
    assert command.returncode == {"SIGINT": 130}.get(name, -getattr(signal, name))
    assert not list(tmp_path.glob("*.nc"))
