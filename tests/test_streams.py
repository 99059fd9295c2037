"""Many streams side by side: the sums of one stream, wherever they are added."""

from __future__ import annotations

import ctypes
import json

import models
import numpy as np
import pytest
from mnemoscope.analyzer import Corpus, _engines, _memory, _runtime, analyze, open_model, sums
from mnemoscope.analyzer._products import Products
from mnemoscope.analyzer._shards import Carrier, Shard, shards
from mnemoscope.analyzer._states import Stepper
from mnemoscope.analyzer._stream_count import (
    _ON_CPU,
    StreamNeed,
    at_small_steps,
    evened,
    fitting,
    length_of,
)
from mnemoscope.analyzer._streams import Streams, _Schedule
from mnemoscope.analyzer.errors import MnemoscopeError, ModelError, ResourceError
from mnemoscope.analyzer.groups import Groups
from mnemoscope.analyzer.linearize import build_step, linearize
from mnemoscope.analyzer.sums import Accumulator, places, plan

DELAYS, LENGTH = 4, 90
CUDA = pytest.mark.skipif(_runtime.cuda_problem() is not None, reason=str(_runtime.cuda_problem()))
PROVIDERS = [_runtime.CPU, pytest.param(_runtime.CUDA, marks=CUDA)]


@pytest.fixture
def model(tmp_path):
    """Open a model of `models.ALL`, or one given."""

    def make(name):
        proto = models.ALL[name]() if isinstance(name, str) else name
        return open_model(models.save(proto, tmp_path / "m.onnx"))

    return make


def stream(length=LENGTH, seed=0):
    ids = np.random.default_rng(seed).integers(0, models.V, length)
    return Corpus(ids, "random", "", 1, 0)


def overlapping(length=LENGTH):
    """Everything, some, others of which some are in both, and positions that are in none."""
    rng = np.random.default_rng(3)
    some, more = rng.random(length) < 0.4, rng.random(length) < 0.5
    masks = {"some": some, "more": more, "most": rng.random(length) < 0.9}
    return Groups.from_masks(masks)


class Case:
    """A model, a plan and its shards, followed by either engine."""

    def __init__(self, opened, dtype=np.float64, delays=DELAYS, most=13, positions=None,
                 groups=None):  # fmt: skip
        self.step, self.delays, self.dtype = build_step(opened, dtype), delays, np.dtype(dtype)
        self.ids, self.table = stream().ids, opened.embeddings_in(np.dtype(dtype))
        self.layout = plan(LENGTH, delays, blocks=3, seed=0, positions=positions)
        self.groups = groups or Groups.everything(LENGTH)
        self.shards = shards(self.layout, delays, LENGTH, most)
        self.sizes = {c.name: c.size for c in self.step.differentiable}

    def accumulator(self, parts=None):
        return Accumulator(self.layout, self.delays, self.sizes, self.step.embedding_size,
                           self.dtype, self.groups, parts)  # fmt: skip

    def carrier(self):
        return Carrier(Stepper(self.step, self.table), self.ids)

    def alone(self):
        """The sums by the engine for one stream."""
        linear, _ = linearize(self.step, None)
        products = Products(linear, self.delays, list(self.sizes), self.table, threads=1)
        found, carrier = self.accumulator(products.parts), self.carrier()
        for s in self.shards:
            visit = lambda w: found.add(w.time, w.inputs, w.jacobians, w.part)  # noqa: E731
            list(products.run(self.ids[s.begin : s.read], carrier.at(s.begin), visit, s.begin,
                              s.follow))  # fmt: skip
        return found.result()

    def together(self, count, **options):
        """The sums by streams."""
        linear, _ = linearize(self.step, count)
        assert linear.batch == count
        options = {"threads": 1, **options}
        products = Streams(linear, self.delays, list(self.sizes), self.table, **options)
        found, carrier = self.accumulator(products.parts), self.carrier()
        for low in range(0, len(self.shards), count):
            some = self.shards[low : low + count]
            starts = [carrier.at(s.begin) for s in some]
            done = list(products.run(self.ids, some, starts, found))
            assert done[-1] == sum(s.steps for s in some)
            assert (np.diff([0, *done]) > 0).all()
        return found.result()


def same(found, wanted, bar):
    """Whether sums agree, to `bar` of the largest entry; counts exactly."""
    for state, truth in wanted.items():
        np.testing.assert_array_equal(found[state].block_count, truth.block_count)
        np.testing.assert_array_equal(found[state].half_count, truth.half_count)
        for name in ("block_sum", "half_sum"):
            a, b = getattr(found[state], name), getattr(truth, name)
            np.testing.assert_allclose(a, b, rtol=0, atol=bar * np.abs(truth.block_sum).max())


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", models.ALL)
def test_sums_are_those_of_one_stream(model, name, provider):
    # Shards of 12 and 13 inputs; the last has no room to fade, and its round is not full.
    case = Case(model(name))
    wanted = case.alone()
    for count in (1, 2, 5):
        same(case.together(count, provider=provider, verify=count == 2), wanted, 1e-12)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("options", [{"summing": True}, {"summing": False}], ids=str)
@pytest.mark.parametrize(
    "case",
    [{"positions": 31}, {"delays": 0}, {"delays": 1}, {"most": 3}, {"groups": overlapping()}],
    ids=lambda case: next(iter(case)),
)
def test_samples_groups_and_delays(model, case, options, provider):
    case = Case(model("lstm"), **case)
    same(case.together(3, provider=provider, **options), case.alone(), 1e-12)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_single_precision_moves_to_the_totals_in_time(model, monkeypatch, provider):
    case = Case(model("slots"), np.float32)
    monkeypatch.setattr(sums, "_FLUSH", 5)
    moved, add_sum = [], Accumulator.add_sum

    def counting(self, block, group, values, counts):
        moved.append(counts.max())
        add_sum(self, block, group, values, counts)

    monkeypatch.setattr(Accumulator, "add_sum", counting)
    # Of 90 positions; each Jacobian is a few roundings from the truth.
    same(case.together(3, provider=provider), Case(model("slots")).alone(), 1e-6)
    assert max(moved) <= 5 * 3


@pytest.mark.parametrize("name", models.ALL)
def test_the_whole_job(model, name):
    opened = model(name)
    options = {"delays": DELAYS, "blocks": 3, "threads": 1}
    one = analyze(opened, stream(), precision="float64", streams=1, **options)
    many = analyze(opened, stream(), precision="float64", streams=4, **options)
    near = analyze(opened, stream(), streams=4, **options)
    assert (one.attrs["streams"], many.attrs["streams"]) == (1, 4)
    for state, truth in one.children.items():
        np.testing.assert_array_equal(many[state]["count"], truth["count"])
        for variable in ("gradient", "noise", "block_gradient"):
            wanted = truth[variable].values
            size = np.nanmax(np.abs(wanted))
            for found, bar in ((many, 1e-12), (near, 1e-5)):
                np.testing.assert_allclose(found[state][variable], wanted, rtol=0, atol=bar * size)


@pytest.mark.parametrize("options", [{"positions": 40}, {"groups": overlapping()},
                                     {"method": "fd"}], ids=lambda o: next(iter(o)))  # fmt: skip
def test_the_whole_job_with(model, options):
    opened, said = model("gru"), []
    options |= {"delays": DELAYS, "blocks": 3, "precision": "float64", "threads": 1}
    found = [
        analyze(opened, stream(), streams=n, report=said.append, **options)["gru1.h"]
        for n in (1, 3)
    ]
    assert "Streams side by side: 3." in said
    for variable in ("gradient", "noise"):
        np.testing.assert_allclose(found[1][variable], found[0][variable], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found[1]["count"], found[0]["count"])


def test_more_groups_than_are_summed_side_by_side(model, monkeypatch):
    groups = Groups.from_labels([[f"w{i % 7}"] for i in range(LENGTH)])
    options = {"delays": 2, "blocks": 3, "precision": "float64", "groups": groups, "threads": 1}
    one = analyze(model("flat"), stream(), streams=1, **options)["h"]
    monkeypatch.setattr("mnemoscope.analyzer._stream_count.MOST_KEYS", 5)
    monkeypatch.setattr(Accumulator, "add_sum", None)
    many = analyze(model("flat"), stream(), streams=3, **options)["h"]
    np.testing.assert_allclose(many["gradient"], one["gradient"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("switch", ["counter", "tokens"])
def test_streams_that_mix_are_followed_alone(model, switch):
    opened, said = model(models.first_stream(switch)), []
    options = {"delays": 2, "blocks": 2}
    many = analyze(opened, stream(30), streams=4, report=said.append, **options)
    assert any(line.startswith("One stream: side by side they would") for line in said)
    assert many.attrs["streams"] == 1
    one = analyze(opened, stream(30), streams=1, **options)
    np.testing.assert_array_equal(many["h"]["gradient"], one["h"]["gradient"])


def test_an_ended_stream_repeats_its_last_step(model):
    case = Case(model("flat"))
    some = case.shards[:2]
    short = Shard(85, LENGTH, LENGTH, np.ones(5, bool))  # ends with the corpus
    got = _Schedule.of(case.ids, [some[0], short], 3, DELAYS, case.accumulator())
    last = short.steps - 1
    assert got.steps == some[0].steps > short.steps
    assert (got.ids[last:, 1] == case.ids[short.read - 1]).all()
    np.testing.assert_array_equal(got.move[:, 1], np.arange(got.steps) < last)
    carried = (np.arange(got.steps) <= last) & (np.arange(got.steps) > 0)
    np.testing.assert_array_equal(got.carry[:, 1], carried)
    assert not got.follow[last + 1 :, 1].any()
    for flags in (got.follow, got.carry, got.move):  # of a stream without a shard
        assert not flags[:, 2].any()


def test_places_are_where_inputs_count():
    layout, groups = plan(LENGTH, DELAYS, blocks=3, positions=40), overlapping()
    inputs = np.flatnonzero(layout.block >= -1)
    entry, found = places(layout, groups, inputs)
    wanted = [
        (i, block, int(g))
        for i in inputs.tolist()
        for g in groups.at(i)
        for block in [int(layout.block[i]), *([-1] if layout.half[i] == 0 else [])]
        if layout.block[i] >= 0
    ]
    got = np.column_stack([inputs[entry], found]).tolist()
    assert sorted(map(tuple, got)) == sorted(wanted)


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ("Failed to allocate memory for requested buffer", ResourceError, "2 streams do not fit"),
        ("Non-zero status code", ModelError, "does not run at the positions 0, 12: Non-zero"),
    ],
)
def test_a_step_that_fails(model, said, kind, message):
    case = Case(model("flat"))
    linear, _ = linearize(case.step, 2)
    products = Streams(linear, DELAYS, ["h"], case.table, threads=1)

    class Failing:
        io_binding = products._session.io_binding

        def run_with_iobinding(self, binding):
            raise RuntimeError(said)

    products._session = Failing()
    some, start = case.shards[:2], case.carrier().at(0)
    assert [s.begin for s in some] == [0, 12]
    with pytest.raises(kind, match=message):
        list(products.run(case.ids, some, [start, start], case.accumulator()))


class TestPlacement:
    @pytest.fixture
    def trace(self, tmp_path):
        def write(*ran):
            events = [{"cat": "Session", "name": "model_run"}]
            events += [{"cat": "Node", "args": {"op_name": op, "provider": p}} for op, p in ran]
            folder = tmp_path / "profile"
            folder.mkdir()
            (folder / "p.json").write_text(json.dumps(events))
            return str(folder / "p.json")

        return write

    def test_what_ran_is_counted(self, trace, tmp_path):
        path = trace(("MatMul", _runtime.CUDA), ("Add", _runtime.CUDA), ("Add", _runtime.CUDA))
        assert _runtime.require_placement(path, _runtime.CUDA) == {"MatMul": 1, "Add": 2}
        assert list(tmp_path.iterdir()) == []

    def test_a_node_elsewhere_is_refused(self, trace):
        path = trace(("MatMul", _runtime.CUDA), ("Gather", _runtime.CPU))
        with pytest.raises(ResourceError, match="ran Gather on CPUExecutionProvider"):
            _runtime.require_placement(path, _runtime.CUDA)

    def test_a_trace_of_nothing_proves_nothing(self, trace):
        with pytest.raises(ResourceError, match="ran no node at all"):
            _runtime.require_placement(trace(), _runtime.CUDA)

    def test_of_a_real_run(self, model, monkeypatch):
        case = Case(model("lstm"))
        seen, require = [], _runtime.require_placement

        def spy(path, provider):
            seen.append(require(path, provider))

        monkeypatch.setattr(_runtime, "require_placement", spy)
        case.together(2, verify=True)
        (ran,) = seen  # once, however many steps
        assert ran["MatMul"] >= 4
        # The same trace, as if a GPU had been asked for.
        monkeypatch.setattr(_runtime, "require_placement", lambda p, _: require(p, _runtime.CUDA))
        with pytest.raises(ResourceError, match="Every node was to run on CUDAExecutionProvider"):
            case.together(2, verify=True)


class TestCount:
    def need(self, opened, keys=3):
        linear, _ = linearize(build_step(opened), None)
        return StreamNeed(linear, carried=16, wanted=16, delays=5, keys=keys, steps=100)

    def test_a_gpu_takes_what_fits(self, model):
        need = self.need(model("lstm"))
        assert fitting(need, 10**6, 2**40) == 512  # so small that it takes all that are allowed
        assert fitting(need, 10**6, need.bytes(64)) == 64
        assert fitting(need, 10**6, 0) == 1
        assert fitting(need, 4 * 5 * 16, 2**40) == 16  # long enough
        assert need.bytes(8) > 8 * 6 * 5 * models.E * 16 * 4

    def test_a_processor_takes_several_for_small_steps_only(self, model, monkeypatch):
        linear = self.need(model("lstm")).linear
        assert at_small_steps(linear, 5, 10**6, 1) == _ON_CPU
        assert at_small_steps(linear, 5, 10**6, 50) == 0
        assert at_small_steps(linear, 5, 50, 1) == 0
        assert at_small_steps(linear, 10**9, 10**18, 1) == 0

    @pytest.mark.parametrize(
        ("shards", "streams", "count"), [(20, 16, 10), (16, 16, 16), (3, 16, 3), (33, 16, 11)]
    )
    def test_rounds_are_even(self, shards, streams, count):
        assert evened(shards, streams) == count

    @pytest.mark.parametrize(("most", "streams"), [(8192, 4), (13, 4), (5, 1)])
    def test_shards_fill_the_streams(self, most, streams):
        layout = plan(1000, 4, blocks=3)
        cut = shards(layout, 4, 1000, length_of(layout, most, streams))
        rounds = -(-1000 // (most * streams))
        assert streams * (rounds - 1) < len(cut) <= streams * rounds
        assert max(s.end - s.begin for s in cut) <= most

    def test_a_number_that_is_none(self, model):
        with pytest.raises(MnemoscopeError, match="streams must be 1 or more, not 0"):
            analyze(model("flat"), stream(30), delays=2, streams=0)


class TestCard:
    class Driver:
        """The calls of NVIDIA's driver, in order."""

        def __init__(self, failing=None):
            self.called, self.failing = [], failing

        def __getattr__(self, name):
            def call(*arguments):
                self.called.append(name)
                if name == "cuMemGetInfo_v2":
                    for argument, value in zip(arguments, (7 * 2**30, 80 * 2**30), strict=True):
                        ctypes.cast(argument, ctypes.POINTER(ctypes.c_size_t))[0] = value
                return 999 if name == self.failing else 0

            return call

    def test_free_memory(self):
        driver = self.Driver()
        assert _memory.of_card(lambda name: driver) == 7 * 2**30
        assert driver.called[0] == "cuInit"
        # What is taken is given back.
        assert driver.called[-2:] == ["cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"]

    def test_a_driver_that_fails(self):
        with pytest.raises(ResourceError, match=r"cuInit gives status 999\. Say how many streams"):
            _memory.of_card(lambda name: self.Driver("cuInit"))

    def test_no_driver(self):
        with pytest.raises(ResourceError, match="cannot be found out: no such library"):
            _memory.of_card(lambda name: (_ for _ in ()).throw(OSError("no such library")))


def test_what_tf32_moves_is_measured(model, monkeypatch):
    options = {"delays": DELAYS, "blocks": 3, "streams": 3, "tf32": True, "threads": 1}
    assert "tf32_error" not in analyze(model("gru"), stream(), **options | {"tf32": False}).attrs
    assert analyze(model("gru"), stream(), **options).attrs["tf32_error"] == 0  # on a CPU

    class Rounding(Streams):
        """As TF32 does it, to ten bits: of the embeddings alone."""

        def __init__(self, linear, delays, wanted, table, *, tf32, **more):
            rounded = (table.view(np.int32) & ~0x1FFF).view(np.float32) if tf32 else table
            super().__init__(linear, delays, wanted, rounded, tf32=tf32, **more)

    monkeypatch.setattr(_engines, "Streams", Rounding)
    said = []
    tree = analyze(model("gru"), stream(), report=said.append, **options)
    assert 1e-5 < tree.attrs["tf32_error"] < 1e-1
    assert any(line.startswith("TF32 moves the mean of ") for line in said)


@CUDA
@pytest.mark.parametrize("name", models.ALL)
def test_on_a_gpu(model, name):
    """Nothing is verified by hand here: a node off the GPU ends the run."""
    options = {"delays": DELAYS, "blocks": 3}
    host = analyze(model(name), stream(), provider="cpu", streams=1, **options)
    card = analyze(model(name), stream(), provider="cuda", **options)
    assert card.attrs["provider"] == _runtime.CUDA
    for state, truth in host.children.items():
        size = np.nanmax(np.abs(truth["gradient"].values))
        np.testing.assert_allclose(card[state]["gradient"], truth["gradient"], rtol=0,
                                   atol=1e-5 * size)  # fmt: skip
        np.testing.assert_array_equal(card[state]["count"], truth["count"])
