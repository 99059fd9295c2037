"""Every way of writing a model is exported and compared with torch on whole sequences.

The comparison is this file's own: ONNX Runtime, one step at a time, against one call of the
torch module over all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from mnemoscope.analyzer.roles import IR_VERSION, OPSET, read_roles

torch = pytest.importorskip("torch")
from mnemoscope.exporters import pytorch  # noqa: E402 (torch may be missing)
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

# Torch says once which kernel it takes.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

V, E, H = 11, 5, 4


class Stateful(nn.Module):
    """forward(tokens, state=None) around one nn.LSTM, nn.GRU or nn.RNN."""

    def __init__(self, kind, embed=E, **options):
        super().__init__()
        self.embed = nn.Embedding(V, embed)
        self.drop = nn.Dropout(0.5)
        self.rnn = getattr(nn, kind)(embed, H, **options)
        self.out = nn.Linear(options.get("proj_size") or H, V)

    def forward(self, tokens, state=None):
        y, state = self.rnn(self.drop(self.embed(tokens)), state)
        return self.out(self.drop(y)), state


class Stateless(Stateful):
    def forward(self, tokens):
        return super().forward(tokens)[0]


class Sandwich(nn.Module):
    """LayerNorm between layers, the state a list of (h, c) per layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, E)
        self.layers = nn.ModuleList(
            [nn.LSTM(E, H, batch_first=True), nn.LSTM(H, H, batch_first=True)]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(H), nn.LayerNorm(H)])
        self.out = nn.Linear(H, V)

    def forward(self, tokens, state=None):
        x, new = self.embed(tokens), []
        for k, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x, after = layer(x, None if state is None else state[k])
            x = norm(x)
            new.append(after)
        return self.out(x), new


class Cells(nn.Module):
    """Three kinds of cells in a loop, their states made inside."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, E)
        self.a, self.b, self.c = nn.LSTMCell(E, H), nn.GRUCell(H, 3), nn.RNNCell(3, H)
        self.start = nn.Parameter(torch.randn(3))
        self.out = nn.Linear(H, V)

    def forward(self, tokens):
        n = tokens.shape[0]
        h = c = torch.zeros(n, H)
        g, r, logits = self.start.expand(n, -1), None, []
        for x in self.embed(tokens).unbind(1):
            h, c = self.a(x, (h, c))
            g = self.b(h, g)
            r = self.c(g, r)
            logits.append(self.out(r))
        return torch.stack(logits, 1)


class StackedCells(nn.Module):
    """Cells whose states travel in one stacked tensor, and time-major tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, E)
        self.cells = nn.ModuleList([nn.GRUCell(E, H), nn.GRUCell(H, H)])
        self.out = nn.Linear(H, V)

    def forward(self, tokens, state):
        logits = []
        for x in self.embed(tokens):
            hs = []
            for k, cell in enumerate(self.cells):
                x = cell(x, state[:, k])
                hs.append(x)
            state = torch.stack(hs, 1)
            logits.append(self.out(x))
        return torch.stack(logits), state


class WordLanguageModel(nn.Module):
    """The interface of the classic word-language-model script."""

    def __init__(self, kind, tie=False):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.encoder = nn.Embedding(V, H)
        self.rnn = getattr(nn, kind)(H, H, 2, dropout=0.5)
        self.decoder = nn.Linear(H, V)
        if tie:
            self.decoder.weight = self.encoder.weight
        self.kind = kind

    def forward(self, input, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        decoded = self.decoder(self.drop(output)).view(-1, V)
        return F.log_softmax(decoded, dim=1), hidden

    def init_hidden(self, bsz):
        weight = next(self.parameters())
        if self.kind == "LSTM":
            return (weight.new_zeros(2, bsz, H), weight.new_zeros(2, bsz, H))
        return weight.new_zeros(2, bsz, H)


class OneHot(nn.Module):
    """No embedding layer."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.rnn = nn.RNN(V, H, batch_first=True)
        self.out = nn.Linear(H, V)

    def forward(self, tokens, state=None):
        x = F.one_hot(tokens, V).float() if self.how == "one_hot" else torch.eye(V)[tokens]
        y, state = self.rnn(x, state)
        return self.out(y), state


class Custom(nn.Module):
    """A recurrence of its own; `cell` maps (x, state dict) to a new state dict."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, H)
        self.out = nn.Linear(H, V)

    def forward(self, tokens, state):
        logits = []
        for x in self.embed(tokens).unbind(1):
            y, state = self.cell(x, state)
            logits.append(self.out(y))
        return torch.stack(logits, 1), state


class Multiplicative(Custom):
    """An mLSTM-like cell, with a residual and a counter that is a plain int."""

    def __init__(self):
        super().__init__()
        self.mx, self.mh = nn.Linear(H, H, bias=False), nn.Linear(H, H, bias=False)
        self.gates = nn.Linear(2 * H, 4 * H)

    def initial_state(self, batch):
        return {"h": torch.zeros(batch, H), "c": torch.full((batch, H), 0.5), "count": 0}

    def cell(self, x, state):
        m = self.mx(x) * self.mh(state["h"])
        i, f, o, u = self.gates(torch.cat([x, m], -1)).chunk(4, -1)
        c = f.sigmoid() * state["c"] + i.sigmoid() * u.tanh()
        h = o.sigmoid() * c.tanh()
        # Another order of the keys than in initial_state.
        return h + x, {"count": state["count"] + 1, "c": c, "h": h}


class Slots(Custom):
    """Attention over memory slots; a counter per stream, a learned start."""

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.randn(3, H))
        self.query, self.write = nn.Linear(H, H), nn.Linear(2 * H, H)

    def forward(self, tokens, state=None):
        if state is None:
            n = tokens.shape[0]
            state = (self.start.tanh().expand(n, -1, -1), torch.zeros(n, dtype=torch.long))
        return super().forward(tokens, state)

    def cell(self, x, state):
        memory, count = state
        weights = torch.einsum("nd,nsd->ns", self.query(x), memory).softmax(-1)
        read = torch.einsum("ns,nsd->nd", weights, memory)
        new = self.write(torch.cat([x, read], -1)).tanh()
        memory = memory + weights[:, :, None] * (new[:, None] - memory)
        return read + x, (memory, count + 1)


class Transposed(Stateful):
    """Logits ``[batch, V, time]``, as losses over classes want them."""

    def forward(self, tokens, state=None):
        logits, state = super().forward(tokens, state)
        return logits.transpose(1, 2), state


class LastOnly(Stateful):
    """Logits of the last step only."""

    def forward(self, tokens):
        return super().forward(tokens)[0][:, -1]


class Twice(nn.Module):
    """The same lookup written twice is one embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, E)
        self.rnn = nn.RNN(E, E, batch_first=True)
        self.out = nn.Linear(E, V)

    def forward(self, tokens, state=None):
        y, state = self.rnn(self.embed(tokens), state)
        return self.out(y + self.embed(tokens)), state


class TwoTables(nn.Module):
    """Two tables added up: what the core reads is the sum, which has to be named."""

    def __init__(self):
        super().__init__()
        self.embed = Sum()
        self.rnn = nn.GRU(E, H, batch_first=True)
        self.out = nn.Linear(H, V)

    def forward(self, tokens, state=None):
        y, state = self.rnn(self.embed(tokens), state)
        return self.out(y), state


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Embedding(V, E), nn.Embedding(V, E)

    def forward(self, tokens):
        return self.one(tokens) + self.two(tokens)


def lstm(*layers):
    return [f"lstm{k}.{x}" for x in "hc" for k in layers]


def time_major(module, tokens):
    return module(tokens.t(), None)[0].transpose(0, 1)


def batch_first(module, tokens):
    result = module(tokens)
    return result[0] if isinstance(result, tuple) else result


def word_lm(module, tokens):
    n, t = tokens.shape
    return module(tokens.t(), module.init_hidden(n))[0].view(t, n, V).transpose(0, 1)


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    whole: Callable[[nn.Module, Any], Any]
    states: list[str]
    embedding: int = E
    normalized: bool = False
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("lstm", lambda: Stateful("LSTM", batch_first=True), batch_first, lstm(0)),
    Case("lstm2-time-major", lambda: Stateful("LSTM", num_layers=2), time_major, lstm(0, 1)),
    Case(
        "lstm-projected",
        lambda: Stateful("LSTM", proj_size=3, batch_first=True),
        batch_first,
        lstm(0),
    ),
    Case(
        "gru2-dropout",
        lambda: Stateful("GRU", num_layers=2, dropout=0.5, batch_first=True),
        batch_first,
        ["gru0.h", "gru1.h"],
    ),
    Case("rnn-tanh", lambda: Stateful("RNN", batch_first=True), batch_first, ["rnn0.h"]),
    Case(
        "rnn-relu-time-major",
        lambda: Stateful("RNN", nonlinearity="relu"),
        time_major,
        ["rnn0.h"],
    ),
    Case("promoted-lstm", lambda: Stateless("LSTM", batch_first=True), batch_first, lstm(0)),
    Case(
        "promoted-lstm-projected-time-major",
        lambda: Stateless("LSTM", proj_size=3),
        lambda m, t: m(t.t()).transpose(0, 1),
        lstm(0),
    ),
    Case("promoted-gru", lambda: Stateless("GRU", batch_first=True), batch_first, ["gru0.h"]),
    Case("promoted-cells", Cells, batch_first, ["lstm0.h", "lstm0.c", "gru1.h", "rnn2.h"]),
    Case(
        "stacked-cells-state-shapes",
        StackedCells,
        lambda m, t: m(t.t(), torch.zeros(t.shape[0], 2, H))[0].transpose(0, 1),
        ["gru0.h", "gru1.h"],
        options={"state_shapes": ["N", 2, H]},
    ),
    Case("layer-norm-list-of-tuples", Sandwich, batch_first, lstm(0)[:2] + lstm(1)[:2]),
    Case("word-lm-lstm", lambda: WordLanguageModel("LSTM"), word_lm, lstm(0, 1), H, True),
    Case(
        "word-lm-gru-tied",
        lambda: WordLanguageModel("GRU", tie=True),
        word_lm,
        ["gru0.h", "gru1.h"],
        H,
        True,
    ),
    Case("one-hot", lambda: OneHot("one_hot"), batch_first, ["rnn0.h"], V),
    Case("one-hot-eye", lambda: OneHot("eye"), batch_first, ["rnn0.h"], V),
    Case(
        "multiplicative-dict-int",
        Multiplicative,
        lambda m, t: m(t, m.initial_state(t.shape[0]))[0],
        ["m.h", "m.c", "count"],
        H,
        options={"state_names": ["m.h", "m.c", "count"]},
    ),
    Case("memory-slots", Slots, batch_first, ["state0", "state1"], H),
    Case(
        "logits-transposed",
        lambda: Transposed("GRU", batch_first=True),
        lambda m, t: m(t)[0].transpose(1, 2),
        ["gru0.h"],
    ),
    Case(
        "last-step-only",
        lambda: LastOnly("GRU", batch_first=True),
        lambda m, t: torch.stack([m(t[:, : k + 1]) for k in range(t.shape[1])], 1),
        ["gru0.h"],
    ),
    Case("embedded-twice", Twice, batch_first, ["rnn0.h"]),
    Case(
        "named-embedding",
        TwoTables,
        batch_first,
        ["gru0.h"],
        options={"embedding": "embed"},
    ),
    Case(
        "float64",
        lambda: Stateful("GRU", batch_first=True).double(),
        batch_first,
        ["gru0.h"],
    ),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export each case once; (module, path, report) by name."""
    folder = tmp_path_factory.mktemp("exported")
    done = {}

    def get(case):
        if case.name not in done:
            torch.manual_seed(1)
            module = case.build()
            path = folder / f"{case.name}.onnx"
            done[case.name] = (module, path, pytorch.export(module, path, **case.options))
        return done[case.name]

    return get


def run_in_steps(path, tokens):
    """Logits ``[batch, time, V]`` of the file, by this test's own loop from the stored start."""
    model = onnx.load(path)
    roles, _ = read_roles(model)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    n = len(tokens)
    types = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}
    feeds = {}
    for i in session.get_inputs():
        if i.name != roles.tokens:
            feeds[i.name] = np.zeros([n if x == "batch" else x for x in i.shape], types[i.type])
    for state in roles.states:
        if state.initial is None:
            continue
        tensor = feeds[state.input]
        where = [slice(None)] * tensor.ndim
        for k in range(n):
            where[state.batch_axis] = k
            if state.layer_axis is not None:
                where[state.layer_axis] = state.layer_index
            tensor[tuple(where)] = np.reshape(state.initial, tensor[tuple(where)].shape)
    logits = []
    for column in tokens.T:
        wanted = [roles.logits, *{s.output: None for s in roles.states}]
        got = dict(
            zip(wanted, session.run(wanted, {roles.tokens: column[:, None], **feeds}), strict=True)
        )
        feeds = {s.input: got[s.output] for s in roles.states}
        logits.append(got[roles.logits])
    return np.concatenate(logits, 1)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_file_agrees_with_torch_on_whole_sequences(case, exported):
    module, path, _ = exported(case)
    module.eval()
    tokens = np.random.default_rng(2).integers(0, V, (3, 9))
    with torch.no_grad():
        wanted = case.whole(module, torch.from_numpy(tokens)).numpy()
    got = run_in_steps(path, tokens)
    # Nine float32 steps of width 5: rounding stays near 1e-6 of the largest logit.
    tolerance = 1e-12 if wanted.dtype == np.float64 else 5e-6
    assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_file_keeps_the_contract(case, exported):
    _, path, report = exported(case)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == IR_VERSION
    assert {o.domain: o.version for o in model.opset_import}[""] == OPSET
    roles, _ = read_roles(model)
    assert sorted(s.name for s in roles.states) == sorted(case.states)
    assert roles.normalized is case.normalized
    shapes = {
        v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    }
    assert shapes[roles.tokens] == ["batch", 1]
    assert shapes[roles.embedding] == ["batch", 1, case.embedding]
    assert shapes[roles.logits] == ["batch", 1, V]
    for state in roles.states:
        assert shapes[state.input] == shapes[state.output]
        assert shapes[state.input][state.batch_axis] == "batch"
    assert report.states == roles.states
    assert report.parity.worst < report.parity.tolerance
    # Nothing of the exporting machine travels in the file.
    assert b"/site-packages/" not in path.read_bytes()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_embedding_cuts_the_tokens_off(case, exported):
    """Without the tokens, the extractor of the onnx package still finds all that outputs need."""
    _, path, _ = exported(case)
    model = onnx.load(path)
    roles, _ = read_roles(model)
    inputs = [roles.embedding, *{s.input: None for s in roles.states}]
    outputs = [roles.logits, *{s.output: None for s in roles.states}]
    core = onnx.utils.Extractor(model).extract_model(inputs, outputs)
    read = {i for node in core.graph.node for i in node.input}
    assert roles.tokens not in read
    session = ort.InferenceSession(core.SerializeToString(), providers=["CPUExecutionProvider"])
    assert {i.name for i in session.get_inputs()} <= set(inputs)


def by_name(name):
    return next(c for c in CASES if c.name == name)


def test_stacked_layers_are_told_apart(exported):
    _, _, report = exported(by_name("lstm2-time-major"))
    found = {
        s.name: (s.kind, s.layer, s.batch_axis, s.layer_axis, s.layer_index) for s in report.states
    }
    assert found == {
        "lstm0.h": ("hidden", 0, 1, 0, 0),
        "lstm1.h": ("hidden", 1, 1, 0, 1),
        "lstm0.c": ("cell", 0, 1, 0, 0),
        "lstm1.c": ("cell", 1, 1, 0, 1),
    }
    assert report.tokens == "[time, batch]"
    _, _, report = exported(by_name("stacked-cells-state-shapes"))
    assert [(s.layer_axis, s.layer_index, s.batch_axis) for s in report.states] == [
        (1, 0, 0),
        (1, 1, 0),
    ]


def test_initial_states_are_stored(exported):
    module, _, report = exported(by_name("promoted-cells"))
    gru = next(s for s in report.states if s.name == "gru1.h")
    np.testing.assert_allclose(gru.initial, module.start.detach().numpy())
    module, _, report = exported(by_name("memory-slots"))
    np.testing.assert_allclose(
        report.states[0].initial, module.start.detach().tanh().flatten().numpy()
    )
    assert "learned" in report.initial
    _, _, report = exported(by_name("multiplicative-dict-int"))
    assert next(s for s in report.states if s.name == "m.c").initial == (0.5,) * H


def test_integer_states_are_integers_in_the_file(exported):
    for name, state in (("multiplicative-dict-int", "count"), ("memory-slots", "state1")):
        _, path, report = exported(by_name(name))
        tensor = next(s for s in report.states if s.name == state).input
        value = next(i for i in onnx.load(path).graph.input if i.name == tensor)
        assert value.type.tensor_type.elem_type == onnx.TensorProto.INT64
        assert [d.dim_param for d in value.type.tensor_type.shape.dim] == ["batch"]


def test_embedding_is_the_row_of_the_table(exported):
    module, path, _ = exported(by_name("lstm2-time-major"))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {
        i.name: np.zeros([V if x == "batch" else x for x in i.shape], np.float32)
        for i in session.get_inputs()
        if i.name != "tokens"
    }
    (rows,) = session.run(["embedding"], {"tokens": np.arange(V)[:, None], **feeds})
    np.testing.assert_array_equal(rows[:, 0], module.embed.weight.detach().numpy())


def test_operators_are_primitive(exported):
    """A fused recurrent operator would hide the cell state."""
    for name in ("lstm2-time-major", "lstm-projected", "promoted-gru"):
        _, path, report = exported(by_name(name))
        kinds = {node.op_type for node in onnx.load(path).graph.node}
        assert not kinds & {"LSTM", "GRU", "RNN", "Scan", "Loop"}
        assert report.route == "torch.export"


def test_module_is_left_as_it_was(tmp_path):
    module = Stateful("GRU", batch_first=True)
    module.train()
    module.drop.eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    pytorch.export(module, tmp_path / "m.onnx")
    assert module.training
    assert module.rnn.training
    assert not module.drop.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not module.rnn._forward_hooks
    assert not module.rnn._forward_pre_hooks


def test_export_is_repeatable_and_says_where_it_comes_from(tmp_path, exported):
    module, path, _ = exported(by_name("rnn-tanh"))
    again = tmp_path / "again.onnx"
    pytorch.export(module, again)
    assert again.read_bytes() == path.read_bytes()
    source = read_roles(onnx.load(path))[0].source
    assert source["framework"] == "pytorch"
    assert source["framework_version"] == torch.__version__
    assert len(source["weights_sha256"]) == 64


def test_vocabulary_and_weights(tmp_path):
    torch.manual_seed(3)
    trained = Stateful("GRU", batch_first=True)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}},
        tmp_path / "w.pt",
    )
    words = ["<unk>", "<eos>", *(f"word{k}" for k in range(V - 2))]
    (tmp_path / "v.txt").write_text("\n".join(words) + "\n")
    path = tmp_path / "m.onnx"
    pytorch.export(
        Stateful("GRU", batch_first=True),
        path,
        weights=tmp_path / "w.pt",
        vocabulary=tmp_path / "v.txt",
    )
    _, vocabulary = read_roles(onnx.load(path))
    assert vocabulary.tokens == tuple(words)
    assert (vocabulary.level, vocabulary.unknown, vocabulary.end_of_line) == (
        "word",
        "<unk>",
        "<eos>",
    )
    tokens = np.random.default_rng(2).integers(0, V, (3, 6))
    with torch.no_grad():
        wanted = trained.eval()(torch.from_numpy(tokens))[0].numpy()
    np.testing.assert_allclose(run_in_steps(path, tokens), wanted, atol=1e-6)
