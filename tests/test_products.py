"""Products along a stream, against differences of the whole model from its first word."""

from __future__ import annotations

import gc
import json
import threading
from dataclasses import replace

import models
import numpy as np
import onnx
import pytest
from mnemoscope.analyzer import Corpus, _gemm, _pipeline, _runtime, analyze, open_model
from mnemoscope.analyzer._products import Products
from mnemoscope.analyzer._shards import Carrier
from mnemoscope.analyzer._states import Stepper
from mnemoscope.analyzer.linearize import (
    _differences,
    _rules,
    build_step,
    difference_linearization,
    linearize,
)
from mnemoscope.analyzer.roles import ROLES_KEY
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

DELAYS = 4


def stream(length, seed=0, vocabulary=models.V):
    ids = np.random.default_rng(seed).integers(0, vocabulary, length)
    return Corpus(ids, "random", "", 1, 0)


@pytest.fixture
def model(tmp_path):
    """Open a model of `models.ALL`, or one given."""

    def make(name, **options):
        proto = models.ALL[name](**options) if isinstance(name, str) else name
        return open_model(models.save(proto, tmp_path / "m.onnx"))

    return make


def gradients(tree):
    return {n: np.asarray(c["gradient"][0], np.float64) for n, c in tree.children.items()}


def differences(proto, ids, delays, h=1e-6):
    """Mean gradients by moving the row of one word in the table of the float64 model.

    The words must differ, so that a row stands for one position. Independent of the code under
    test: the whole model runs in the reference evaluator of ONNX, from its first word.
    """
    roles = json.loads(next(p.value for p in proto.metadata_props if p.key == ROLES_KEY))
    gather = next(n for n in proto.graph.node if n.output[0] == "embedding")
    place = [t.name for t in proto.graph.initializer].index(gather.input[0])
    table = numpy_helper.to_array(proto.graph.initializer[place]).copy()
    shapes = {
        i.name: [d.dim_value or 1 for d in i.type.tensor_type.shape.dim] for i in proto.graph.input
    }
    kinds = {i.name: i.type.tensor_type.elem_type for i in proto.graph.input}
    tensors = {s["input"]: s["output"] for s in roles["states"]}

    def run(rows):
        changed = numpy_helper.from_array(rows, gather.input[0])
        proto.graph.initializer[place].CopyFrom(changed)
        made = ReferenceEvaluator(proto)
        now = {n: np.zeros(shapes[n], np.int64 if kinds[n] == 7 else np.float64) for n in tensors}
        seen = []
        for token in ids:
            outputs = made.run(list(tensors.values()), {"tokens": np.array([[token]]), **now})
            now = dict(zip(tensors, outputs, strict=True))
            parts = {}
            for s in roles["states"]:
                value = now[s["input"]]
                if s["layer_axis"] is not None:
                    value = value.take(s["layer_index"], s["layer_axis"])
                parts[s["name"]] = value.reshape(-1)
            seen.append(parts)
        return seen

    columns = []
    for position in range(len(ids)):
        for e in range(table.shape[1]):
            moved = [table.copy(), table.copy()]
            moved[0][ids[position], e] += h
            moved[1][ids[position], e] -= h
            up, down = (run(m) for m in moved)
            columns.append([{n: (u[n] - d[n]) / (2 * h) for n in u}
                            for u, d in zip(up, down, strict=True)])  # fmt: skip
    size = table.shape[1]
    return {
        s["name"]: np.stack(
            [
                np.mean(
                    [
                        np.stack(
                            [columns[p * size + e][p + tau][s["name"]] for e in range(size)], 1
                        )
                        for p in range(len(ids) - tau)
                    ],
                    axis=0,
                )
                for tau in range(delays + 1)
            ]
        )
        for s in roles["states"]
        if kinds[s["input"]] != 7
    }


@pytest.mark.parametrize("name", models.ALL)
def test_against_differences_of_the_whole_model(model, name):
    proto = models.ALL[name](dtype="float64")
    ids = np.random.default_rng(2).permutation(models.V)[:7]
    wanted = differences(models.ALL[name](dtype="float64"), ids, DELAYS)
    tree = analyze(model(proto), Corpus(ids, "", "", 1, 0), delays=DELAYS, precision="float64",
                   blocks=2)  # fmt: skip
    found = gradients(tree)
    assert found.keys() == wanted.keys()
    for state, truth in wanted.items():
        # Central differences at 1e-6 in double: truncation 1e-12, rounding 1e-10.
        np.testing.assert_allclose(found[state], truth, rtol=0, atol=1e-8)


@pytest.mark.parametrize("options", [{"opset": 13}, {"opset": 20}, {"dtype": "float16"}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["lstm", "gru", "slots", "counter"])
def test_variants_agree_with_their_own_differences(model, name, options):
    opened = model(name, **options)
    exact = gradients(analyze(opened, stream(30), delays=DELAYS))
    near = gradients(analyze(opened, stream(30), delays=DELAYS, method="fd"))
    for state, value in exact.items():
        error = np.linalg.norm(near[state] - value) / np.linalg.norm(value)
        assert error < 5e-3  # eps^(2/3) a step in float32, over at most 4 steps


def test_initialisers_among_the_inputs(model):
    plain = gradients(analyze(model("lstm"), stream(30), delays=DELAYS))
    old = models.with_inputs_listed(models.fused())
    found = gradients(analyze(model(old), stream(30), delays=DELAYS))
    for state, value in plain.items():
        np.testing.assert_array_equal(found[state], value)


def windows(opened, corpus, wanted, stretch=None, states=None, threads=2):
    """Run the products over a stretch; gives the windows, their parts put together."""
    step = build_step(opened)
    table = opened.embeddings
    linear, _ = linearize(step, None)
    assert linear.batch > 1
    products = Products(linear, DELAYS, wanted, table, threads=threads)
    low, high = stretch or (0, len(corpus))
    start = states or {c.name: c.initial() for c in step.components}
    found, lock = {}, threading.Lock()

    def visit(window):
        with lock:
            at = found.setdefault(window.time, {})
            for source, value in zip(window.inputs, window.jacobians, strict=True):
                at.setdefault(window.time - source, []).append((window.part, value.copy()))

    tokens = corpus.ids[low : high + DELAYS]
    follow = np.arange(len(tokens)) < high - low
    done = [*products.run(tokens, start, visit, low, follow)]
    assert done[-1] == len(found)
    windows = []
    for time in sorted(found):
        delays, rows, low = found[time], [], 0
        first = min(delays)
        assert sorted(delays) == list(range(first, first + len(delays)))
        for delay in sorted(delays):
            parts = sorted(delays[delay], key=lambda p: p[0].start)
            assert [p.start for p, _ in parts] == [p.start for p in products.parts]
            rows.append(np.concatenate([value for _, value in parts]))
        joined, whole = {}, np.stack(rows)
        for name in wanted:
            size = next(c.size for c in step.components if c.name == name)
            joined[name] = whole[:, :, low : low + size]
            low += size
        assert low == whole.shape[2]
        windows.append((time, first, joined))
    return windows


def test_window_shapes(model):
    opened, corpus = model("lstm"), stream(12)
    found = windows(opened, corpus, ["lstm0.h", "lstm1.c"], (0, 8))
    assert [w[0] for w in found] == list(range(12))
    for time, first, jacobians in found:
        assert first == max(0, time - 7)
        last = min(time, DELAYS)
        shape = (last - first + 1, models.E, models.H)
        assert {n: j.shape for n, j in jacobians.items()} == {"lstm0.h": shape, "lstm1.c": shape}


def test_a_stretch_equals_its_positions_of_the_full_run(model):
    opened, corpus = model("lstm"), stream(40)
    wanted = ["lstm0.h", "lstm1.c"]
    whole = {t: (first, j) for t, first, j in windows(opened, corpus, wanted)}
    step = build_step(opened)
    stepper = Stepper(step, opened.embeddings)
    for low, high in [(0, 1), (5, 9), (17, 30), (36, 40), (39, 40)]:
        start = Carrier(stepper, corpus.ids).at(low)
        part = windows(opened, corpus, wanted, (low, high), start)
        assert part[0][0] == low
        assert part[-1][0] == min(high + DELAYS, 40) - 1
        for t, first, jacobians in part:
            full_first, full = whole[t]
            assert full_first == 0
            for n, j in jacobians.items():
                # Row blocks are products of their own: bit for bit the same but for the number
                # of rows a matrix product takes at once.
                np.testing.assert_allclose(j, full[n][first : first + len(j)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["lstm", "gru", "slots"])
def test_inputs_that_are_not_followed_are_left_out(model, name):
    opened, corpus = model(name), stream(60)
    wanted = [c.name for c in build_step(opened).differentiable]
    whole = {t: j for t, _, j in windows(opened, corpus, wanted)}
    follow = np.random.default_rng(1).random(60) < 0.3
    follow[20:40] = False  # longer than the largest delay: nothing is carried for a while
    follow[50:] = False
    step = build_step(opened)
    linear, _ = linearize(step, None)
    products = Products(linear, DELAYS, wanted, opened.embeddings, threads=2)
    start = {c.name: c.initial() for c in step.components}
    seen, lock = [], threading.Lock()

    def visit(window):
        full = np.concatenate([whole[window.time][n] for n in wanted], -1)
        rows = full[window.time - window.inputs][:, window.part]
        np.testing.assert_allclose(window.jacobians, rows, rtol=0, atol=1e-6)
        with lock:
            seen.extend((window.time, int(i), window.part.start) for i in window.inputs)

    done = [*products.run(corpus.ids, start, visit, 0, follow)]
    last = np.flatnonzero(follow)[-1]
    assert done[-1] == min(60, last + DELAYS + 1)
    expected = {(t, i, part.start) for i in np.flatnonzero(follow) for part in products.parts
                for t in range(i, min(60, i + DELAYS + 1))}  # fmt: skip
    assert len(seen) == len(expected)
    assert set(seen) == expected


def test_a_subset_of_states_equals_the_full_run(model):
    opened, corpus = model("lstm"), stream(60)
    every = analyze(opened, corpus, delays=DELAYS)
    for names in (["lstm0.c"], ["lstm1.h"], ["lstm0.h", "lstm1.c"]):
        some = analyze(opened, corpus, delays=DELAYS, states=names)
        assert sorted(some.children) == sorted(names)
        for name in names:
            for variable in ("gradient", "noise", "singular_values", "block_gradient", "count"):
                np.testing.assert_allclose(
                    some[name][variable], every[name][variable], rtol=1e-5, atol=1e-7
                )


def test_states_that_the_wanted_ones_need_are_carried(model):
    linear, _ = linearize(build_step(model("lstm")))
    assert linear.carried(["lstm0.c"]) == ["lstm0.h", "lstm0.c"]
    assert set(linear.carried(["lstm1.c"])) == {"lstm0.h", "lstm0.c", "lstm1.h", "lstm1.c"}


@pytest.mark.parametrize("method", ["jvp", "fd"])
@pytest.mark.parametrize("name", models.ALL)
def test_positions_linearised_together_are_as_one_by_one(model, name, method):
    step = build_step(model(name))
    rng = np.random.default_rng(0)
    feeds = {
        n: (v + rng.standard_normal(v.shape)).astype(v.dtype)
        if np.issubdtype(v.dtype, np.floating)
        else v
        for n, v in step.example(5).items()
    }
    scales = {n: np.full(size, 0.1) for n, (_, size) in step.sources.items()}
    together, alone = (
        linearize(step, b)[0]
        if method == "jvp"
        else difference_linearization(step, scales, 1e-2, batch=b)
        for b in (5, 1)
    )
    assert (together.batch, alone.batch) == (5, 1)
    tensors = {k: j.tensor for k, j in together.jacobians.items() if j.tensor}
    whole = _runtime.evaluate(together.model, list(tensors.values()), feeds)
    names = [alone.jacobians[k].tensor for k in tensors]
    for i in range(5):
        ones = _runtime.evaluate(alone.model, names, {n: v[[i]] for n, v in feeds.items()})
        for key, tensor in tensors.items():
            value = whole[tensor]
            axis = value.ndim - 2
            value = value.take([i if value.shape[axis] > 1 else 0], axis)
            one = ones[alone.jacobians[key].tensor]
            np.testing.assert_allclose(value, one, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", ["lstm", "slots", "counter", "masked"])
def test_differences_in_slices_are_those_of_all_coordinates(name, precision, tmp_path, monkeypatch):
    """Of a large model not all copies fit at once; a slice may be of one coordinate."""
    opened = open_model(models.save(models.ALL[name](), tmp_path / "m.onnx"))
    step = build_step(opened, np.dtype(precision))
    scales = {n: np.full(size, 0.3) for n, (_, size) in step.sources.items()}
    found, whole = [], difference_linearization(step, scales, batch=3).working
    for room in (whole, whole // 3, 1):
        monkeypatch.setattr(_differences, "_AT_ONCE", room)
        linear = difference_linearization(step, scales, 1e-2, batch=3)
        tensors = [linear.jacobians[key].tensor for key in sorted(linear.jacobians)]
        found.append(_runtime.evaluate(linear.model, tensors, step.example(3, seed=5)))
        assert any(n.op_type == "Scan" for n in linear.model.graph.node) == (room < whole)
        assert linear.working <= room or room == 1
    for other in found[1:]:
        for tensor, value in found[0].items():
            np.testing.assert_allclose(other[tensor], value, rtol=0, atol=1e-4)


def test_streams_that_mix_are_linearised_one_by_one(model):
    """A core that subtracts the mean over the batch is right for one stream alone."""
    opened = model("gru")
    step = build_step(opened)
    assert linearize(step, None)[0].batch > 1
    mixed = onnx.ModelProto()
    mixed.CopyFrom(step.model)
    out = step.components[0].output
    for node in mixed.graph.node:
        node.output[:] = [f"{n}/own" if n == out else n for n in node.output]
    axes = numpy_helper.from_array(np.array([0]), "mix/axes")
    mixed.graph.initializer.append(axes)
    mixed.graph.node.append(
        onnx.helper.make_node("ReduceMean", [f"{out}/own", "mix/axes"], ["mix"])
    )
    mixed.graph.node.append(onnx.helper.make_node("Mul", [f"{out}/own", "mix"], [out]))
    assert linearize(replace(step, model=mixed), None)[0].batch == 1


@pytest.mark.parametrize("switch", ["counter", "tokens"])
def test_streams_that_mix_through_integers_are_found(model, switch):
    ids = np.random.default_rng(2).permutation(models.V)[:7]
    wanted = differences(models.first_stream(switch, dtype="float64"), ids, DELAYS)
    opened = model(models.first_stream(switch))
    assert linearize(build_step(opened), None)[0].batch == 1
    found = gradients(analyze(opened, Corpus(ids, "", "", 1, 0), delays=DELAYS, blocks=2))
    np.testing.assert_allclose(found["h"], wanted["h"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["all", "up", "slope", "shape", "h"])
def test_any_name_of_a_state_will_do(model, name):
    g = models.Graph()
    x = g.now()
    h = g.state(name, ["batch", models.H], kind="hidden", layer=0, batch_axis=0)
    total = g.op("Add", g.op("MatMul", x, g.weight(models.E, models.H)),
                 g.op("MatMul", h, g.weight(models.H, models.H)))  # fmt: skip
    g.op("Tanh", total, out=f"{name}_next")
    opened = model(g.finish(g.lone(f"{name}_next"), time=1))
    exact, near = (
        gradients(analyze(opened, stream(20), delays=2, method=m)) for m in ("jvp", "fd")
    )
    np.testing.assert_allclose(near[name], exact[name], rtol=0, atol=1e-3)


def test_the_limit_on_blas_outlasts_every_run(model):
    from threadpoolctl import threadpool_info

    def threads():
        return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}

    opened, before = model("lstm"), threads()
    linear, _ = linearize(build_step(opened), None)
    start = {c.name: c.initial() for c in build_step(opened).components}
    runs = [Products(linear, DELAYS, ["lstm0.h"], opened.embeddings) for _ in range(2)]
    first, second = (p.run(stream(80).ids, start, lambda window: None) for p in runs)
    next(first), next(second)
    assert threads() == {1}
    first.close()
    assert threads() == {1}
    second.close()
    assert threads() == before


@pytest.mark.parametrize(("text", "count"), [("150000 100000", 2), ("50000 100000", 1),
                                             ("max 100000", None), ("", None)])  # fmt: skip
def test_processors_of_a_control_group(tmp_path, monkeypatch, text, count):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(_pipeline, "_CONTROL", tmp_path / "nowhere")
    free = _pipeline.processors()
    assert free >= 1
    monkeypatch.setattr(_pipeline, "_CONTROL", tmp_path)
    assert _pipeline.processors() == min(free, count or free)


def test_an_error_in_a_thread_reaches_the_caller(model):
    opened, corpus = model("lstm"), stream(60)
    step = build_step(opened)
    linear, _ = linearize(step, None)
    for threads in (1, 2):
        products = Products(linear, DELAYS, ["lstm0.h"], opened.embeddings, threads=threads)
        start = {c.name: c.initial() for c in step.components}

        def visit(window):
            if window.time == 7:
                raise OverflowError("seven")

        with pytest.raises(OverflowError, match="seven"):
            list(products.run(corpus.ids, start, visit))
        assert not [t for t in threading.enumerate() if t.name.startswith("products")]
        # Given up half-way, it leaves no thread behind either.
        for _ in products.run(corpus.ids, start, lambda window: None):
            break
        gc.collect()
        assert not [t for t in threading.enumerate() if t.name.startswith("products")]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("library", ["blas", "numpy"])
def test_gemm_into_columns(dtype, library, monkeypatch):
    if library == "numpy":
        monkeypatch.setattr(_gemm, "_routine", lambda name: None)
    gemm = _gemm.gemm_of(np.dtype(dtype))
    assert (gemm is _gemm._with_numpy) == (library == "numpy")
    rng = np.random.default_rng(0)
    for m, k, n in ((1, 1, 1), (7, 5, 3), (40, 1, 6), (1, 9, 4)):
        a = rng.standard_normal((m, k + 2)).astype(dtype)[:, 1 : 1 + k]
        b = rng.standard_normal((k, n + 3)).astype(dtype)[:, :n]
        whole = rng.standard_normal((m, n + 4)).astype(dtype)
        before, out = whole.copy(), whole[:, 2 : 2 + n]
        gemm(a, b, out, True)
        bar = 1e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(out, before[:, 2 : 2 + n] + a @ b, rtol=bar, atol=bar)
        gemm(a, b, out, False)
        np.testing.assert_allclose(out, a @ b, rtol=bar, atol=bar)
        turned = np.ascontiguousarray(b.T)
        gemm(a, turned, out, True, transposed=True)
        np.testing.assert_allclose(out, 2 * (a @ b), rtol=bar, atol=bar)
        gemm(a, turned, out, False, transposed=True)
        np.testing.assert_allclose(out, a @ b, rtol=bar, atol=bar)
        np.testing.assert_array_equal(whole[:, :2], before[:, :2])
        np.testing.assert_array_equal(whole[:, 2 + n :], before[:, 2 + n :])


def test_threads_change_nothing_that_matters(model):
    opened, corpus = model("lstm"), stream(60)
    one, two = (gradients(analyze(opened, corpus, delays=DELAYS, threads=n)) for n in (1, 2))
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-5, atol=1e-8)


def test_dense_route_where_a_rule_is_missing(model, monkeypatch):
    opened, corpus = model("gru"), stream(40)
    exact = gradients(analyze(opened, corpus, delays=DELAYS))
    monkeypatch.delitem(_rules.RULES, "Tanh")
    said = []
    tree = analyze(opened, corpus, delays=DELAYS, report=said.append)
    assert tree.attrs["method"] == "jvp-dense"
    assert any("No block rule for Tanh" in line for line in said)
    for name, value in gradients(tree).items():
        np.testing.assert_allclose(value, exact[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["lstm", "counter", "slots", "masked"])
def test_dense_route_for_every_kind_of_state(model, monkeypatch, name):
    opened, corpus = model(name), stream(40)
    exact = gradients(analyze(opened, corpus, delays=DELAYS))
    monkeypatch.delitem(_rules.RULES, "MatMul")
    tree = analyze(opened, corpus, delays=DELAYS)
    assert tree.attrs["method"] == "jvp-dense"
    for state, value in gradients(tree).items():
        np.testing.assert_allclose(value, exact[state], rtol=1e-4, atol=1e-6)


def test_step_of_differences(model):
    opened, corpus = model("gru"), stream(40)
    exact = gradients(analyze(opened, corpus, delays=1))["gru0.h"]
    errors = []
    for step in (None, 1e-2, 0.5):
        tree = analyze(opened, corpus, delays=1, method="fd", step=step)
        assert tree.attrs.get("step") == step
        errors.append(np.linalg.norm(gradients(tree)["gru0.h"] - exact))
    assert errors[0] < errors[2]
    assert errors[1] < errors[2]


def test_double_precision_keeps_constant_factors():
    """ONNX Runtime would put them into products as numbers of single precision."""
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.DOUBLE
    x, w = np.random.default_rng(0).standard_normal((2, 3, 3))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["x", "k"], ["kx"]),
         onnx.helper.make_node("MatMul", ["kx", "w"], ["y"])],
        "g", [info("x", kind, [3, 3])], [info("y", kind, [3, 3])],
        [numpy_helper.from_array(np.array(0.1), "k"), numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8
    )
    (y,) = _runtime.run(_runtime.session(proto), ["y"], {"x": x})
    np.testing.assert_allclose(y, 0.1 * x @ w, rtol=0, atol=1e-15)


def test_one_hot_runs_in_double(model):
    """ONNX Runtime has no OneHot of doubles."""
    g = models.Graph()
    values = g.constant([0.0, 1.0], "float32")
    g.op("OneHot", "tokens", g.constant(models.V), values, out="embedding")
    x = g.op("Squeeze", "embedding", g.constant([1]))
    h = g.state("h", ["batch", models.H], kind="hidden", layer=0, batch_axis=0)
    total = g.op("Add", g.op("MatMul", x, g.weight(models.V, models.H)),
                 g.op("MatMul", h, g.weight(models.H, models.H)))  # fmt: skip
    g.op("Tanh", total, out="h_next")
    proto = g.finish(g.lone("h_next"), time=1)
    next(o for o in proto.graph.output if o.name == "embedding").type.tensor_type.shape.dim[
        2
    ].dim_value = models.V
    opened = model(proto)
    found = [gradients(analyze(opened, stream(20), delays=2, precision=p))["h"]
             for p in ("float32", "float64")]  # fmt: skip
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(opened.embeddings_in(np.dtype(np.float64)), np.eye(models.V))


def test_one_enormous_entry_does_not_blind_the_differences(model):
    proto = models.flat()
    gather = next(n for n in proto.graph.node if n.output[0] == "embedding")
    table = next(t for t in proto.graph.initializer if t.name == gather.input[0])
    values = numpy_helper.to_array(table).copy()
    values[3, 1] = 3e38
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    ids = np.array([i for i in stream(60).ids if i != 3])
    opened, corpus = model(proto), Corpus(ids, "", "", 1, 0)
    exact, near = (gradients(analyze(opened, corpus, delays=2, method=m))["h"]
                   for m in ("jvp", "fd"))  # fmt: skip
    np.testing.assert_allclose(near, exact, rtol=0, atol=0.05 * np.abs(exact).max())
