"""What cannot be exported is refused with a message that helps, and leaves no file."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import onnx
import pytest
from mnemoscope.analyzer.errors import MnemoscopeError, ModelError
from onnx import numpy_helper

torch = pytest.importorskip("torch")
from mnemoscope.exporters import pytorch  # noqa: E402 (torch may be missing)
from mnemoscope.exporters._torch_trace import routes  # noqa: E402
from mnemoscope.exporters.testing import ParityError  # noqa: E402
from torch import nn  # noqa: E402

V, H = 11, 4


class Base(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embed = nn.Embedding(V, H)
        self.rnn = nn.GRU(H, H, batch_first=True, **options)
        self.out = nn.Linear(H * (2 if options.get("bidirectional") else 1), V)

    def forward(self, tokens, state=None):
        y, state = self.rnn(self.embed(tokens), state)
        return self.out(y), state


class NoRecurrence(Base):
    def forward(self, tokens):
        return self.out(self.embed(tokens).cumsum(1))


class HiddenMemory(Base):
    """Carries something besides its state: the mean of the words so far."""

    def forward(self, tokens, state=None):
        y, state = self.rnn(self.embed(tokens).cumsum(1), state)
        return self.out(y), state


class LooksAhead(Base):
    def forward(self, tokens):
        y, _ = self.rnn(self.embed(tokens).flip(1))
        return self.out(y.flip(1))


class MixesStreams(Base):
    def forward(self, tokens, state=None):
        x = self.embed(tokens)
        y, state = self.rnn(x - x.mean(0, keepdim=True), state)
        return self.out(y), state


class Growing(Base):
    """A cache of everything read."""

    def forward(self, tokens, state):
        x = torch.cat([state, self.embed(tokens)], 1)
        return self.out(x[:, -tokens.shape[1] :]), x

    def initial_state(self, batch):
        return torch.zeros(batch, 0, H)


class NeedsState(Base):
    def forward(self, tokens, state):
        y, state = self.rnn(self.embed(tokens), state[0])
        return self.out(y), (state,)


class RandomStart(NeedsState):
    def init_hidden(self, batch):
        return (torch.randn(1, batch, H),)


class BadMethod(NeedsState):
    def init_hidden(self):
        return (torch.zeros(1, 20, H),)


class ThreeInputs(Base):
    def forward(self, tokens, h, c):
        return super().forward(tokens, h)


class Probabilities(Base):
    def forward(self, tokens, state=None):
        logits, state = super().forward(tokens, state)
        return logits.softmax(-1), state


class Dictionary(Base):
    def forward(self, tokens):
        return {"logits": super().forward(tokens)[0]}


class StartFromTokens(Base):
    """An initial state that depends on the first word."""

    def forward(self, tokens):
        y, _ = self.rnn(self.embed(tokens), self.embed(tokens[:, 0])[None])
        return self.out(y)


class FewRows(Base):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(3, H)


class TwoTables(Base):
    def __init__(self):
        super().__init__()
        self.other = nn.Embedding(V, H)

    def forward(self, tokens, state=None):
        y, state = self.rnn(self.embed(tokens) + self.other(tokens), state)
        return self.out(y), state


class Skips(Base):
    """The logits read the words by another table than the recurrent core."""

    def __init__(self):
        super().__init__()
        self.skip = nn.Embedding(V, V)

    def forward(self, tokens, state=None):
        y, state = self.rnn(self.embed(tokens), state)
        return self.out(y) + self.skip(tokens), state


REFUSED = [
    (lambda: Base(bidirectional=True), {}, "'rnn' is bidirectional: its state .* later words"),
    (NoRecurrence, {}, r"no nn\.LSTM, nn\.GRU.*write the model as forward\(tokens, state\)"),
    (HiddenMemory, {}, "over 3 tokens differs from 3 runs over one token"),
    (LooksAhead, {}, "over 3 tokens differs from 3 runs over one token"),
    (MixesStreams, {}, "streams must not mix"),
    (Growing, {}, "changes from .* to .* in one step"),
    (NeedsState, {}, r"needs the state 'state'.*init_hidden\(batch\).*state_shapes"),
    (RandomStart, {}, "returns a random state"),
    (BadMethod, {}, r"init_hidden\(batch\) fails for 5 streams"),
    (ThreeInputs, {}, r"found forward\(tokens, h, c\)"),
    (Probabilities, {}, "returns probabilities"),
    (Dictionary, {}, "logits as a tensor, found a dict"),
    (StartFromTokens, {}, "depends on the tokens"),
    (FewRows, {}, "rows cover as many tokens"),
    (Base, {"vocabulary": ["a", "b"]}, "has 2 tokens, the model's logits have 11"),
    (Base, {"vocabulary": ["a"] * V}, "holds 'a' twice"),
    (Base, {"vocabulary": "missing.txt"}, "Cannot read the vocabulary 'missing.txt'"),
    (Base, {"vocabulary_size": 12}, "11 entries per token, not 12"),
    (Base, {"state_names": ["a", "b"]}, r"Expected 1 distinct state names.*gru0\.h"),
    (Base, {"state_names": ["a/b"]}, "holds a /"),
    (Base, {"weights": "missing.pt"}, "no weights file 'missing.pt'"),
    (Base, {"state_shapes": [[1, 2, 4]]}, 'write "N" for it'),
    (Base, {"state_shapes": "1x4"}, "nested lists"),
    (Base, {"batch_first": False}, "differs from 3 runs|must not mix"),
]


@pytest.mark.parametrize(("build", "options", "message"), REFUSED)
def test_refused_before_anything_is_traced(tmp_path, build, options, message):
    torch.manual_seed(0)
    with pytest.raises(MnemoscopeError, match=message):
        pytorch.export(build(), tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (TwoTables, {}, "become numbers at 2 places.*option embedding"),
        (Skips, {}, "become numbers at 2 places"),
        (Skips, {"embedding": "embed"}, "not only through the embedding"),
        (Base, {"embedding": "rnn"}, "ran 1 times|returns one tensor"),
        (Base, {"embedding": "nowhere"}, "'nowhere', asked for as the embedding, is not computed"),
    ],
)
def test_refused_embeddings(tmp_path, build, options, message):
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=message):
        pytorch.export(build(), tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_weights_that_are_not_finite(tmp_path, value):
    module = Base()
    with torch.no_grad():
        module.out.bias[2] = value
    with pytest.raises(ModelError, match=r"'out\.bias' holds 1 values that are NaN or infinite"):
        pytorch.export(module, tmp_path / "m.onnx")
    torch.save(module.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"'out\.bias' in .* is NaN or infinite"):
        pytorch.export(Base(), tmp_path / "m.onnx", weights=tmp_path / "w.pt")
    assert not (tmp_path / "m.onnx").exists()


def test_refuses_places_that_cannot_be_written(tmp_path):
    with pytest.raises(ModelError, match="there is no folder"):
        pytorch.export(Base(), tmp_path / "nowhere" / "m.onnx")
    with pytest.raises(ModelError, match="found the folder"):
        pytorch.export(Base(), tmp_path)
    with pytest.raises(ModelError, match=r"Expected a torch\.nn\.Module, found a dict"):
        pytorch.export({}, tmp_path / "m.onnx")


@pytest.fixture(scope="module")
def traced():
    """A module and its traced step graph, made once: tracing takes seconds."""
    torch.manual_seed(0)
    module, graphs = Base(), []

    def keep(step, leaves):
        (way, trace), *_ = routes(step, leaves)
        graphs.append(trace())
        yield way, lambda: graphs[0]

    patch = pytest.MonkeyPatch()
    patch.setattr(pytorch, "routes", keep)
    with tempfile.TemporaryDirectory() as folder:
        pytorch.export(module, os.path.join(folder, "m.onnx"))
    patch.undo()
    return module, graphs[0]


@pytest.mark.parametrize("weight", ["embed.weight", "out.bias", "rnn.bias_hh"])
def test_a_planted_wrong_export_is_refused(tmp_path, monkeypatch, traced, weight):
    module, graph = traced
    wrong = onnx.ModelProto()
    wrong.CopyFrom(graph)
    tensor = next(t for t in wrong.graph.initializer if weight in t.name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[1] += 0.01 * np.abs(array).max()
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    monkeypatch.setattr(pytorch, "routes", lambda step, leaves: [("planted", lambda: wrong)])
    path = tmp_path / "m.onnx"
    path.write_bytes(b"what was there before")
    with pytest.raises(
        ParityError, match=r"differs from its source in '.*A tolerance of"
    ) as caught:
        pytorch.export(module, path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == b"what was there before"
    needed = float(str(caught.value).split("A tolerance of ")[1].split(" ")[0])
    assert 1e-5 < needed < 1
    pytorch.export(module, path, tolerance=1.0)
    onnx.checker.check_model(onnx.load(path))


def test_a_wrong_route_falls_back_to_the_next(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("planted")

    def first_fails(step, leaves):
        ways = list(routes(step, leaves))
        yield ways[0][0], fail
        yield from ways[1:]

    monkeypatch.setattr(pytorch, "routes", first_fails)
    assert pytorch.export(Base(), tmp_path / "m.onnx").route == "torch.onnx"

    def only_script(step, leaves):
        ways = list(routes(step, leaves))
        yield from ((name, fail) for name, _ in ways[:2])
        yield ways[2]

    monkeypatch.setattr(pytorch, "routes", only_script)
    assert pytorch.export(Base(), tmp_path / "m.onnx").route == "TorchScript"

    def none(step, leaves):
        yield from ((name, fail) for name, _ in routes(step, leaves))

    monkeypatch.setattr(pytorch, "routes", none)
    with pytest.raises(ModelError, match=r"tried torch\.export, torch\.onnx, TorchScript.*planted"):
        pytorch.export(Base(), tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx").exists()
