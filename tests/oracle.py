"""Language models with hand-written steps, and the mean gradients that torch.func gives them.

Nothing here uses the code under test: each model's step is written out from its weights, in
float64 and without fused operators, and the Jacobian of the state with respect to one word is
taken through all the steps that follow that word.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.func import jacfwd, vmap
from torch.nn import functional

E, H, V, P = 6, 8, 11, 5


class Language(nn.Module):
    """Embedding, a recurrent core that tests choose, output."""

    def __init__(self, core: nn.Module, width: int, *, layers: int = 1, tied: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(V, E)
        self.core = core
        self.output = nn.Linear(width, V)
        if tied:
            self.output.weight = self.embedding.weight

    def forward(self, tokens, state=None):
        y, state = self.core(self.embedding(tokens), state)
        return self.output(y), state


class OneHot(nn.Module):
    """No embedding layer: the one-hot vector is what the core reads."""

    def __init__(self):
        super().__init__()
        self.core = nn.LSTM(V, H, batch_first=True)
        self.output = nn.Linear(H, V)

    def forward(self, tokens, state=None):
        y, state = self.core(functional.one_hot(tokens, V).float(), state)
        return self.output(y), state


class Normed(nn.Module):
    """Two LSTM cells with LayerNorm on the gates and between the layers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, E)
        self.cells = nn.ModuleList([nn.LSTMCell(E, H), nn.LSTMCell(H, H)])
        self.norms = nn.ModuleList([nn.LayerNorm(H), nn.LayerNorm(H)])
        self.output = nn.Linear(H, V)

    def forward(self, tokens, state=None):
        x = self.embedding(tokens)
        if state is None:
            zero = x.new_zeros(x.shape[0], H)
            state = [(zero, zero), (zero, zero)]
        outputs = []
        for t in range(x.shape[1]):
            y, new = x[:, t], []
            for cell, norm, (h, c) in zip(self.cells, self.norms, state, strict=True):
                h, c = cell(y, (h, c))
                y = norm(h)
                new.append((h, c))
            state = new
            outputs.append(y)
        return self.output(torch.stack(outputs, 1)), state


class Multiplicative(nn.Module):
    """A cell of our own: a multiplicative intermediate state, a residual, a softmax gate."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, E)
        self.wm, self.um = nn.Linear(E, H), nn.Linear(H, H)
        self.wg, self.ug = nn.Linear(E, H), nn.Linear(H, H)
        self.wv = nn.Linear(E, H)
        self.output = nn.Linear(H, V)

    def step(self, x, h):
        m = self.wm(x) * self.um(h)
        gate = torch.softmax(self.wg(x) + self.ug(m), -1) * 4
        new = functional.gelu(self.wv(x) + m)
        return h + gate * (torch.tanh(new) - h) / 2

    def forward(self, tokens, state=None):
        x = self.embedding(tokens)
        h = x.new_zeros(x.shape[0], H) if state is None else state
        outputs = []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            outputs.append(h)
        return self.output(torch.stack(outputs, 1)), h


def _lstm(w, x, h, c, layer=0, projected=False):
    """One torch.nn.LSTM layer, gates i, f, g, o."""
    k = f"_l{layer}"
    gates = (x @ w["core.weight_ih" + k].T + w["core.bias_ih" + k]
             + h @ w["core.weight_hh" + k].T + w["core.bias_hh" + k])  # fmt: skip
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h @ w["core.weight_hr" + k].T if projected else h), c


def _one_lstm(w, x, s):
    h, c = _lstm(w, x, s["lstm0.h"], s["lstm0.c"])
    return {"lstm0.h": h, "lstm0.c": c}


def _projected(w, x, s):
    h, c = _lstm(w, x, s["lstm0.h"], s["lstm0.c"], projected=True)
    return {"lstm0.h": h, "lstm0.c": c}


def _two_lstms(w, x, s):
    h0, c0 = _lstm(w, x, s["lstm0.h"], s["lstm0.c"])
    h1, c1 = _lstm(w, h0, s["lstm1.h"], s["lstm1.c"], layer=1)
    return {"lstm0.h": h0, "lstm0.c": c0, "lstm1.h": h1, "lstm1.c": c1}


def _gru(w, x, s):
    h = s["gru0.h"]
    xr, xz, xn = (x @ w["core.weight_ih_l0"].T + w["core.bias_ih_l0"]).chunk(3, -1)
    hr, hz, hn = (h @ w["core.weight_hh_l0"].T + w["core.bias_hh_l0"]).chunk(3, -1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    return {"gru0.h": (1 - z) * (xn + r * hn).tanh() + z * h}


def _rnn(w, x, s):
    total = (x @ w["core.weight_ih_l0"].T + w["core.bias_ih_l0"]
             + s["rnn0.h"] @ w["core.weight_hh_l0"].T + w["core.bias_hh_l0"])  # fmt: skip
    return {"rnn0.h": total.tanh()}


def _normed(w, x, s):
    new, y = {}, x
    for k in range(2):
        h, c = s[f"lstm{k}.h"], s[f"lstm{k}.c"]
        gates = (y @ w[f"cells.{k}.weight_ih"].T + w[f"cells.{k}.bias_ih"]
                 + h @ w[f"cells.{k}.weight_hh"].T + w[f"cells.{k}.bias_hh"])  # fmt: skip
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        new[f"lstm{k}.h"], new[f"lstm{k}.c"] = h, c
        centred = h - h.mean(-1, keepdim=True)
        y = centred / ((centred**2).mean(-1, keepdim=True) + 1e-5).sqrt()
        y = y * w[f"norms.{k}.weight"] + w[f"norms.{k}.bias"]
    return new


def _multiplicative(w, x, s):
    def linear(name, v):
        return v @ w[name + ".weight"].T + w[name + ".bias"]

    h = s["state0"]
    m = linear("wm", x) * linear("um", h)
    gate = (linear("wg", x) + linear("ug", m)).exp()
    gate = gate / gate.sum(-1, keepdim=True) * 4
    new = linear("wv", x) + m
    # The exported file holds the constant of GELU in float32, as it holds the weights.
    root = torch.tensor(2**0.5, dtype=torch.float32).double()
    new = new * 0.5 * (1 + torch.erf(new / root))
    return {"state0": h + gate * (new.tanh() - h) / 2}


@dataclass(frozen=True)
class Case:
    """A model, its hand-written step, and the sizes of its states."""

    name: str
    make: object
    step: object
    sizes: dict[str, int]
    one_hot: bool = False
    scale: float = 1.0
    weights: dict = field(default_factory=dict)


CASES = [
    Case("lstm", lambda: Language(nn.LSTM(E, H, batch_first=True), H), _one_lstm,
         {"lstm0.h": H, "lstm0.c": H}),
    Case("lstm-two-layers", lambda: Language(nn.LSTM(E, H, 2, batch_first=True), H), _two_lstms,
         {"lstm0.h": H, "lstm0.c": H, "lstm1.h": H, "lstm1.c": H}),
    Case("gru", lambda: Language(nn.GRU(E, H, batch_first=True), H), _gru, {"gru0.h": H}),
    Case("rnn", lambda: Language(nn.RNN(E, H, batch_first=True), H), _rnn, {"rnn0.h": H}),
    Case("lstm-projected", lambda: Language(nn.LSTM(E, H, batch_first=True, proj_size=P), P),
         _projected, {"lstm0.h": P, "lstm0.c": H}),
    Case("lstm-tied", lambda: Language(nn.LSTM(E, E, batch_first=True), E, tied=True), _one_lstm,
         {"lstm0.h": E, "lstm0.c": E}),
    Case("lstm-layernorm", Normed, _normed,
         {"lstm0.h": H, "lstm0.c": H, "lstm1.h": H, "lstm1.c": H}),
    Case("one-hot", OneHot, _one_lstm, {"lstm0.h": H, "lstm0.c": H}, one_hot=True),
    Case("custom", Multiplicative, _multiplicative, {"state0": H}),
]  # fmt: skip


def build(case: Case, seed: int = 0) -> nn.Module:
    """The model with seeded weights, large enough that memory does not vanish."""
    torch.manual_seed(seed)
    module = case.make().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.3)
    return module


def mean_gradients(case: Case, module: nn.Module, ids: torch.Tensor, delays: int):
    """State → ``[delay, unit, embedding]``: the mean over all positions of ∂s_{t} / ∂x_{t-τ}."""
    n = len(ids)
    delay = torch.arange(delays + 1)
    inside = (torch.arange(n)[:, None] + delay[None] < n).double()
    return {
        k: ((j * inside[:, :, None, None]).sum(0) / (n - delay)[:, None, None]).numpy()
        for k, j in gradients(case, module, ids, delays).items()
    }


def gradients(case: Case, module: nn.Module, ids: torch.Tensor, delays: int):
    """State → ``[position, delay, unit, embedding]``: ∂s_{i+τ} / ∂x_i for every input position i.

    All in float64, by forward mode through the steps that follow each word. What would lie past
    the end of the text follows words that are not there, and means nothing.
    """
    w = {k: v.double() for k, v in module.state_dict().items()}
    table = torch.eye(V, dtype=torch.float64) if case.one_hot else w["embedding.weight"]
    xs = table[ids]
    n = len(ids)
    now = {k: torch.zeros(size, dtype=torch.float64) for k, size in case.sizes.items()}
    before = []
    for x in xs:
        before.append(now)
        now = case.step(w, x, now)
    starts = {k: torch.stack([b[k] for b in before]) for k in case.sizes}
    padded = torch.cat([xs, xs.new_zeros(delays, xs.shape[1])])
    following = torch.stack([padded[s + 1 : s + 1 + delays] for s in range(n)])

    def follow(x, rest, start):
        state = case.step(w, x, start)
        seen = [state]
        for y in rest:
            state = case.step(w, y, state)
            seen.append(state)
        return {k: torch.stack([s[k] for s in seen]) for k in case.sizes}

    return vmap(jacfwd(follow))(xs, following, starts)


__all__ = ["CASES", "Case", "build", "gradients", "mean_gradients"]
