"""The parts that no framework takes part in: cut, interface, checks. On graphs written by hand."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from mnemoscope.analyzer.errors import ModelError, ResultError
from mnemoscope.analyzer.result import check_state_names
from mnemoscope.analyzer.roles import (
    RESERVED,
    Roles,
    State,
    Vocabulary,
    rename_states,
    require_state_names,
)
from mnemoscope.exporters._embedding import EmbeddingError, cut_at_embedding
from mnemoscope.exporters._memory_model import build_memory_model, require_writable, save
from mnemoscope.exporters._parity import initial_states, state_view
from mnemoscope.exporters._quiet import silenced
from mnemoscope.exporters.testing import ParityError, check_exporter
from onnx import numpy_helper

V, H = 5, 3
RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "table": RANDOM.normal(size=(V, H)).astype(np.float32),
    "columns": RANDOM.normal(size=(H, V)).astype(np.float32),
    "square": RANDOM.normal(size=(H, H)).astype(np.float32),
    "wide": RANDOM.normal(size=(V, H)).astype(np.float32),
    "out": RANDOM.normal(size=(H, V)).astype(np.float32),
    "eye": np.eye(V, dtype=np.float32),
    "range": np.arange(V),
    "depth": np.array(V),
    "off_on": np.array([0, 1], np.float32),
    "axis0": np.array([0]),
    "axis1": np.array([1]),
    "axis2": np.array([2]),
    "flat": np.array([-1, H]),
    "logits_shape": np.array([-1, 1, V]),
}


def step(lookup, read="x", matrix="square", more="") -> onnx.ModelProto:
    """h' = tanh(x·W + h·U), logits = h'·out, where `lookup` computes `read` ``[N, .]``."""
    text = f"""
    <ir_version: 8, opset_import: ["" : 18]>
    step (int64[N, 1] ids, float[N, {H}] h) => (float[N, 1, {V}] y, float[N, {H}] h2) {{
        {lookup}
        a = MatMul({read}, {matrix})
        b = MatMul(h, square)
        s = Add(a, b)
        h2 = Tanh(s)
        z = MatMul(h2, out)
        {more or "y = Reshape(z, logits_shape)"}
    }}"""
    model = onnx.parser.parse_model(text)
    used = {i for node in model.graph.node for i in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in WEIGHTS.items() if name in used
    )
    return model


LOOKUPS = {
    "gather": (step("e = Gather(table, ids) x = Squeeze(e, axis1)"), H),
    "gather-int32": (
        step("i = Cast<to: int = 6>(ids) e = Gather(table, i) x = Squeeze(e, axis1)"),
        H,
    ),
    "time-major": (
        step("t = Transpose<perm: ints = [1, 0]>(ids) e = Gather(table, t) x = Squeeze(e, axis0)"),
        H,
    ),
    "columns-first": (
        # [E, N, 1]: the batch axis behind the units, so that numbers have to move.
        step(
            "e = Gather<axis: int = 1>(columns, ids) s0 = Squeeze(e, axis2) "
            "x = Transpose<perm: ints = [1, 0]>(s0)"
        ),
        H,
    ),
    "one-hot": (
        step("o = OneHot(ids, depth, off_on) x = Squeeze(o, axis1)", matrix="wide"),
        V,
    ),
    "compared": (
        step("q = Equal(ids, range) x = Cast<to: int = 1>(q)", matrix="wide"),
        V,
    ),
    "eye": (step("e = Gather(eye, ids) x = Squeeze(e, axis1)", matrix="wide"), V),
    "extent-of-tokens": (
        # The core asks how many tokens there are; so does the lookup, by the same node.
        step(
            "n = Shape(ids) i = Reshape(ids, n) e = Gather(table, i) "
            "k = ConstantOfShape(n) k2 = Unsqueeze(k, axis2) g = Add(e, k2) x = Squeeze(g, axis1)"
        ),
        H,
    ),
    "twice": (
        step("e = Gather(table, ids) e2 = Gather(table, ids) g = Add(e, e2) x = Squeeze(g, axis1)"),
        H,
    ),
    "called-embedding": (
        step("embedding = Gather(table, ids) x = Squeeze(embedding, axis1)"),
        H,
    ),
}


def run(model, feeds, names):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, feeds)


@pytest.mark.parametrize("name", LOOKUPS)
def test_the_cut_keeps_the_function_and_separates_the_tokens(name):
    model, width = LOOKUPS[name]
    cut = cut_at_embedding(model, "ids")
    onnx.checker.check_model(cut, full_check=True)
    feeds = {
        "ids": RANDOM.integers(0, V, (4, 1)),
        "h": RANDOM.normal(size=(4, H)).astype(np.float32),
    }
    wanted = run(model, feeds, ["y", "h2"])
    y, h2, embedding = run(cut, feeds, ["y", "h2", "embedding"])
    np.testing.assert_allclose(y, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(h2, wanted[1], rtol=1e-6)
    assert embedding.shape == (4, 1, width)
    core = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(cut)).extract_model(
        ["embedding", "h"], ["y", "h2"]
    )
    feeds = {"embedding": embedding, "h": feeds["h"]}
    np.testing.assert_allclose(run(core, feeds, ["y"])[0], wanted[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "embedding", "message"),
    [
        (
            step("e = Gather(table, ids) f = Gather(eye, ids) x = Squeeze(e, axis1)"
                 "w = Squeeze(f, axis1)", more="z2 = Add(z, w) y = Reshape(z2, logits_shape)"),
            None,
            "become numbers at 2 places: 'e', 'f'.*option embedding",
        ),
        (step("x = Identity(h)"), None, "No embedding was found"),
        (step("e = Gather(table, ids) x = Squeeze(e, axis1)"), "b", "depend on the tokens"),
        (step("e = Gather(table, ids) x = Squeeze(e, axis1)"), "no", "'no'.*not computed"),
        (step("e = Gather(table, ids) x = Squeeze(e, axis1)"), "h2", "nothing else that changes"),
    ],
)  # fmt: skip
def test_refused_cuts(model, embedding, message):
    with pytest.raises(EmbeddingError, match=message):
        cut_at_embedding(model, "ids", embedding=embedding)


ROLES = Roles(
    "tokens",
    "embedding",
    (State("cell0.h", "h_in", "h_out", "hidden", 0, 0, initial=(0.5, 0.0, -0.5)),),
    "logits",
)


def memory_model(vocabulary=None) -> onnx.ModelProto:
    return build_memory_model(
        LOOKUPS["gather"][0],
        ROLES,
        vocabulary,
        inputs={"ids": "tokens", "h": "h_in"},
        outputs={"logits": "y", "h_out": "h2"},
    )


def reference(feeds):
    x = WEIGHTS["table"][feeds["tokens"][:, 0]]
    h = np.tanh(x @ WEIGHTS["square"] + feeds["h_in"] @ WEIGHTS["square"])
    return {"logits": (h @ WEIGHTS["out"])[:, None], "h_out": h}


def test_check_exporter_passes_a_good_file(tmp_path):
    path = tmp_path / "m.onnx"
    save(memory_model(Vocabulary(tuple("abcde"))), path)
    parity = check_exporter(path, reference, steps=3, batches=(1, 4))
    assert parity.worst < 1e-6
    assert set(parity.differences) == {"logits", "h_out"}


def test_check_exporter_finds_what_is_wrong(tmp_path):
    path = tmp_path / "m.onnx"
    save(memory_model(), path)

    def off(feeds):
        wanted = reference(feeds)
        return {**wanted, "logits": wanted["logits"] * 1.001}

    with pytest.raises(ParityError, match=r"in 'logits' at step \d of \d streams: by 0\.001\d* of"):
        check_exporter(path, off)
    with pytest.raises(ParityError, match=r"'logits' is float32 .* its source gives float64"):
        check_exporter(path, lambda f: {k: v.astype(float) for k, v in reference(f).items()})

    model = memory_model()
    tensor = next(t for t in model.graph.node if "tokens" in t.input)
    leak = onnx.helper.make_node("Gather", ["eye", "tokens"], ["leak"])
    for node in model.graph.node:
        if "logits" in node.output:
            node.output[0] = "clean"
    add = onnx.helper.make_node("Add", ["clean", "leak"], ["logits"])
    assert tensor is not None
    model.graph.initializer.append(numpy_helper.from_array(WEIGHTS["eye"], "eye"))
    model.graph.node.extend([leak, add])
    save(model, path)
    with pytest.raises(ModelError, match="not a cut point: the graph reads 'tokens' elsewhere"):
        check_exporter(path, reference)

    save(memory_model(Vocabulary(("a", "b"))), path)
    with pytest.raises(ModelError, match="has 2 tokens, the logits have 5"):
        check_exporter(path, reference)

    model = memory_model()
    model.opset_import[0].version = 21
    model.ir_version = 10
    save(model, path)
    with pytest.raises(ModelError, match="Expected opset 18"):
        check_exporter(path, reference)


def test_initial_states_follow_the_axes():
    model = memory_model()
    feeds = initial_states(model, ROLES, 2)
    np.testing.assert_array_equal(feeds["h_in"], [[0.5, 0, -0.5]] * 2)
    # Units first, then batch, then layer.
    value = onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [3, "batch", 2])
    model.graph.input.append(value)
    states = tuple(
        State(f"s{k}", "s", "s2", "other", k, 1, 2, k, (1.0 + k, 2.0, 3.0)) for k in range(2)
    )
    found = initial_states(model, Roles("tokens", "embedding", states, "logits"), 4)["s"]
    assert found.shape == (3, 4, 2)
    np.testing.assert_array_equal(found[:, 3, 0], [1, 2, 3])
    np.testing.assert_array_equal(found[:, 0, 1], [2, 2, 3])


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    import os

    target = require_writable(tmp_path / "m.onnx")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ModelError, match="No space left"):
        save(memory_model(), target)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_package_imports_no_framework():
    code = (
        "import sys, mnemoscope.exporters, mnemoscope.exporters.testing;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'tensorflow', 'keras')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_lookup_for_one_stream_alone_is_refused_in_words():
    """ONNX Runtime fails while the embedding's shape is looked for: no traceback comes of it."""
    model = step("e = Gather(table, ids) r = Reshape(e, one) x = Squeeze(r, axis0)")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, H]), "one"))
    with pytest.raises(EmbeddingError, match="cannot be computed for 2 and for 3 streams"):
        cut_at_embedding(model, "ids", embedding="r")


def test_an_embedding_without_numbers():
    model = step("e = Gather(table, ids) x = Squeeze(e, axis1)")
    table = next(t for t in model.graph.initializer if t.name == "table")
    table.CopyFrom(numpy_helper.from_array(np.zeros((V, 0), np.float32), "table"))
    with pytest.raises(EmbeddingError, match="holds no numbers"):
        cut_at_embedding(model, "ids", embedding="e")


@pytest.mark.parametrize(("batch_axis", "layer_axis"), [(0, 1), (1, 0), (2, 0), (0, 2), (1, 2)])
def test_a_view_of_a_state_is_batch_first(batch_axis, layer_axis):
    sizes = {batch_axis: 4, layer_axis: 3}
    tensor = RANDOM.normal(size=[sizes.get(a, 5) for a in range(3)])
    state = State("s", "a", "b", "other", 0, batch_axis, layer_axis, 2)
    view = state_view(tensor, state)
    unit_axis = 3 - batch_axis - layer_axis
    for n, u in np.ndindex(4, 5):
        place = [0, 0, 0]
        place[batch_axis], place[layer_axis], place[unit_axis] = n, 2, u
        assert view[n, u] == tensor[tuple(place)]
    view[...] = 0
    assert not np.take(tensor, 2, layer_axis).any()
    assert np.take(tensor, 1, layer_axis).all()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a"], "Expected 2 distinct state names"),
        (["a", "a"], "Expected 2 distinct state names"),
        (["a", ""], "is empty"),
        (["a", " "], "is empty"),
        (["a", "b/c"], "holds a /"),
        (["a", "b\n"], "does not print"),
        (["a", "delay"], "may be called delay"),
        (["a", ".."], "is empty"),
    ],
)
def test_names_that_no_state_may_have(names, said):
    with pytest.raises(ModelError, match=said):
        rename_states(TWO_STATES, names)


def test_states_under_other_names():
    assert rename_states(TWO_STATES, None) == TWO_STATES
    renamed = rename_states(TWO_STATES, ["lstm0.c", "gru1.h"])
    # The ending says the kind where nothing else does.
    assert [(s.name, s.kind) for s in renamed] == [("lstm0.c", "hidden"), ("gru1.h", "hidden")]
    with pytest.raises(ModelError, match="comes twice"):
        require_state_names(["a", "a"])


TWO_STATES = (
    State("x", "x_in", "x_out", "hidden", 0, 0),
    State("y", "y_in", "y_out", "other", 1, 0),
)


def test_reserved_names_are_those_that_a_result_file_refuses():
    for name in RESERVED - {"embedding"}:
        with pytest.raises(ResultError):
            check_state_names([name])


def test_loggers_are_as_before():
    logger = logging.getLogger("mnemoscope.test")
    logger.setLevel(logging.INFO)
    with silenced("mnemoscope.test"):
        assert logger.level == logging.CRITICAL
    assert logger.level == logging.INFO
