"""Opening a model: its embeddings, sizes, weights and the data that lies beside it."""

from __future__ import annotations

import models
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mnemoscope.analyzer import open_model
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.linearize import build_step
from mnemoscope.analyzer.roles import Roles, State, Vocabulary, read_roles, write_roles
from onnx import numpy_helper


@pytest.fixture
def opened(tmp_path):
    return lambda proto: open_model(models.save(proto, tmp_path / "m.onnx"))


def table(proto):
    return numpy_helper.to_array(proto.graph.initializer[0])


@pytest.mark.parametrize("make", models.MODELS.values(), ids=models.MODELS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_embeddings_are_the_table(opened, make, dtype):
    proto = make(dtype=dtype)
    model = opened(proto)
    np.testing.assert_array_equal(model.embeddings, table(proto))
    assert model.embeddings.dtype == dtype
    assert model.vocabulary_size == models.V


def test_embeddings_of_a_large_vocabulary_come_in_chunks(opened, monkeypatch):
    monkeypatch.setattr("mnemoscope.analyzer.model._CHUNK", 7)
    proto = models.flat(vocabulary=40)
    np.testing.assert_array_equal(opened(proto).embeddings, table(proto))


def test_embeddings_of_a_fixed_batch(opened):
    proto = models.flat()
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 5
    np.testing.assert_array_equal(opened(proto).embeddings, table(proto))


def test_a_claimed_size_does_not_fill_the_memory(opened):
    proto = models.flat()
    del proto.metadata_props[1]
    for info in proto.graph.output:
        if info.name == "logits":
            info.type.tensor_type.shape.dim[2].dim_value = 2**50
    model = opened(proto)
    assert model.vocabulary_size == 2**50
    with pytest.raises(ModelError, match="does not run"):
        _ = model.embeddings


def test_size_of_the_vocabulary_without_one(opened):
    proto = models.flat()
    del proto.metadata_props[1]
    assert opened(proto).vocabulary_size == models.V
    for info in proto.graph.output:
        if info.name == "logits":
            info.type.tensor_type.shape.dim[2].dim_param = "V"
    with pytest.raises(ModelError, match="size of the vocabulary is unknown"):
        opened(proto)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("lstm", {"lstm0.h": (4,), "lstm1.h": (4,), "lstm0.c": (4,), "lstm1.c": (4,)}),
        ("slots", {"m": (3, 4)}),
        ("counter", {"n": (1,), "h": (4,)}),
    ],
)
def test_shapes_of_states(opened, name, shapes):
    model = opened(models.MODELS[name]())
    assert {s.name: model.state_shape(s)[0] for s in model.roles.states} == shapes


@pytest.mark.parametrize("name", models.MODELS)
def test_a_step_keeps_the_order_of_the_roles(opened, name):
    model = opened(models.MODELS[name]())
    step = build_step(model)
    assert [c.name for c in step.components] == [s.name for s in model.roles.states]
    assert (step.tokens is not None) == (name == "masked")


def test_initial_states(opened):
    proto = models.counter()
    roles, vocabulary = read_roles(proto)
    first, second = roles.states
    given = [
        State(**{**vars(first), "initial": (3.0,)}),
        State(**{**vars(second), "initial": (0.1, 0.2, 0.3, 0.4)}),
    ]
    write_roles(proto, Roles(**{**vars(roles), "states": tuple(given)}), vocabulary)
    n, h = (c.initial() for c in build_step(opened(proto)).components)
    np.testing.assert_array_equal(n, np.array([[3]]))
    assert n.dtype == np.int64
    np.testing.assert_array_equal(h, np.array([[0.1, 0.2, 0.3, 0.4]], np.float32))


@pytest.mark.parametrize("value", [0.5, 1e30, -1e30])
def test_an_initial_value_that_the_type_cannot_hold(opened, value):
    proto = models.counter()
    roles, vocabulary = read_roles(proto)
    states = (State(**{**vars(roles.states[0]), "initial": (value,)}), roles.states[1])
    write_roles(proto, Roles(**{**vars(roles), "states": states}), vocabulary)
    with pytest.raises(ModelError, match=r"initial value of state n holds .*, which int64 cannot"):
        build_step(opened(proto))


def test_an_infinite_mask_is_no_broken_weight(opened):
    g = models.Graph()
    x = g.now()
    h = g.state("h", ["batch", 3], kind="hidden", layer=0, batch_axis=0)
    capped = g.op("Clip", g.op("Add", h, x), "", g.constant(np.inf, "float32"))
    g.op("Identity", capped, out="h_next")
    opened(g.finish(g.lone(x), 3, time=1))


def test_external_data(tmp_path):
    proto = models.flat()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.bin",
              size_threshold=0)  # fmt: skip
    assert (tmp_path / "m.bin").stat().st_size > 0
    model = open_model(path)
    np.testing.assert_array_equal(model.embeddings, table(models.flat()))
    assert all(not t.external_data for t in model.proto.graph.initializer)


NAME = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1).filter(
    str.isprintable
)
STATE = st.builds(
    State,
    name=st.just("h"),
    input=st.just("h"),
    output=st.just("h_next"),
    kind=st.sampled_from(["cell", "hidden", "other"]),
    layer=st.integers(0, 2**31 - 1),
    batch_axis=st.integers(0, 9),
    initial=st.none() | st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
)


@given(state=STATE, name=NAME, normalized=st.booleans(), source=st.dictionaries(NAME, NAME),
       words=st.lists(NAME, min_size=1, unique=True))  # fmt: skip
def test_roles_survive_the_file(state, name, normalized, source, words):
    proto = onnx.ModelProto()
    for side, names in (("input", ("tokens", "h")), ("output", ("e", "l", "h_next"))):
        getattr(proto.graph, side).extend(onnx.ValueInfoProto(name=n) for n in names)
    state = State(**{**vars(state), "name": name})
    roles = Roles("tokens", "e", (state,), "l", normalized, source)
    vocabulary = Vocabulary(tuple(words), "char", words[0], words[-1])
    write_roles(proto, roles, vocabulary)
    assert read_roles(onnx.ModelProto.FromString(proto.SerializeToString())) == (roles, vocabulary)


def test_sparse_weights_are_read(tmp_path):
    from fuzz.bases import constants

    dense = open_model(models.save(models.flat(), tmp_path / "dense.onnx"))
    sparse = open_model(models.save(constants(), tmp_path / "sparse.onnx"))
    assert not sparse.proto.graph.sparse_initializer
    np.testing.assert_array_equal(sparse.embeddings, dense.embeddings)
    first, second = (next(onnx.numpy_helper.to_array(t) for t in m.proto.graph.initializer
                          if t.name == "weight2") for m in (dense, sparse))  # fmt: skip
    np.testing.assert_array_equal(first, second)


def test_a_gigantic_sparse_weight(tmp_path):
    from fuzz.bases import constants

    model = constants()
    model.graph.sparse_initializer[0].dims[0] = 2**40
    with pytest.raises(ModelError, match="with its zeros it would take 2 GiB or more"):
        open_model(models.save(model, tmp_path / "m.onnx"))


def test_more_data_than_the_shape_says(tmp_path):
    model = models.flat()
    model.graph.initializer[2].raw_data += bytes(16)
    with pytest.raises(ModelError, match="'weight2' does not fit its type and shape"):
        open_model(models.save(model, tmp_path / "m.onnx"))


def test_names_that_are_no_text(tmp_path):
    path = models.save(models.flat(), tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes().replace(b"weight2", b"w\xff\xfeght2"))
    with pytest.raises(ModelError, match="a name or text in it is not UTF-8"):
        open_model(path)


def test_differences_where_a_subgraph_reads_a_weight(tmp_path):
    from fuzz.bases import scan
    from mnemoscope.analyzer.linearize import build_step, difference_linearization

    step = build_step(open_model(models.save(scan(), tmp_path / "m.onnx")))
    scales = {name: np.ones(size) for name, (_, size) in step.sources.items()}
    onnx.checker.check_model(difference_linearization(step, scales).model)
