"""The training script of samples/, from its parts to whole runs, and the shipped models."""

import json
import math
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from mnemoscope.analyzer import open_model
from mnemoscope.analyzer.pydoc_corpus import lines
from mnemoscope.analyzer.roles import OPSET, read_roles

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
SHIPPED = ("pydoc-lstm.onnx", "pydoc-lstm-untrained.onnx")


@pytest.fixture(scope="module")
def word_lm():
    pytest.importorskip("torch", reason="the training script needs torch")
    pytest.importorskip("safetensors", reason="the training script needs safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SAMPLES)
        import word_lm

        # One thread: the models are too small to share, and sums keep their order.
        threads = word_lm.torch.get_num_threads()
        word_lm.torch.set_num_threads(1)
        yield word_lm
        word_lm.torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def torch(word_lm):
    return word_lm.torch


@pytest.fixture
def ids(torch):
    return torch.randint(0, 30, (501,), generator=torch.Generator().manual_seed(3)).int()


# The model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("layers", [1, 2])
def test_initialisation(word_lm, torch, cell, layers):
    torch.manual_seed(1)
    model = word_lm.WordLM(300, cell=cell, hidden=128, layers=layers)
    for name, parameter in model.named_parameters():
        assert parameter.abs().max() <= 0.05, name
        # A uniform distribution of half-width a has the deviation a/√3; 128 draws tell it to 10 %.
        assert parameter.std().item() == pytest.approx(0.05 / math.sqrt(3), rel=0.2), name
    assert type(model.rnn).__name__ == cell
    assert model.rnn.num_layers == layers


def test_shapes(word_lm, torch):
    model = word_lm.WordLM(30, hidden=16)
    logits, (h, c) = model(torch.zeros(2, 5, dtype=torch.int64))
    assert logits.shape == (2, 5, 30)
    assert h.shape == c.shape == (1, 2, 16)
    assert model.embedding.weight.shape == (30, 64)


def test_dropout_is_on_the_output_only(word_lm, torch, ids):
    model = word_lm.WordLM(30, hidden=64, layers=2).train()
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        runs.append(model.read(ids[None, :50]))
    (first, states), (second, others) = runs
    assert not torch.equal(first, second)
    # Whatever is dropped, the states agree: neither the input nor what passes between the
    # layers is touched.
    assert all(map(torch.equal, states, others))
    assert (first == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    model.eval()
    assert torch.equal(model.read(ids[None, :50])[0], model.read(ids[None, :50])[0])


# Text ----------------------------------------------------------------------------------------


def test_vocabulary(word_lm):
    text = [["b", "a", "b"], ["c", "a"], []]
    build = word_lm.build_vocabulary
    assert build(text) == ["<eos>", "b", "a", "c", "<unk>"]
    assert build(text, 4) == ["<eos>", "b", "a", "<unk>"]
    assert build(text, 3) == ["<eos>", "<unk>", "b"]
    # An <unk> in the text is the unknown token, not a word that is lost.
    assert build([["<unk>", "a"], ["<unk>", "a"], ["b"]], 3) == ["<unk>", "<eos>", "a"]


def test_encode(word_lm):
    ids = word_lm.encode([["a", "x"], [], ["<unk>"]], ["a", "<unk>", "<eos>"])
    assert ids.tolist() == [0, 1, 2, 2, 1, 2]


def test_lines_end_at_newlines_only(word_lm, tmp_path):
    (tmp_path / "t.txt").write_text("a b\x0cc\n\n d \n", encoding="utf-8")
    assert word_lm.read_lines(tmp_path / "t.txt") == [["a", "b", "c"], [], ["d"]]


def test_batches(word_lm, torch):
    ids = torch.arange(24)
    inputs, targets = zip(*word_lm.batches(ids, batch=2, steps=4), strict=True)
    assert [part.shape for part in inputs] == [(2, 4), (2, 4), (2, 3)]
    # Each stream is a contiguous part of the text, and the target is the next token.
    assert torch.cat(inputs, 1).tolist() == [list(range(11)), list(range(11, 22))]
    assert torch.equal(torch.cat(targets, 1), torch.cat(inputs, 1) + 1)


# Training ------------------------------------------------------------------------------------


def test_learning_rate(word_lm):
    rates = [word_lm.learning_rate(epoch) for epoch in range(1, 10)]
    assert rates == [1.0] * 6 + [0.8, 0.8**2, 0.8**3]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("some", [1, 3, 1000])
def test_loss_is_summed_over_steps_and_averaged_over_the_batch(
    word_lm, torch, ids, monkeypatch, some
):
    monkeypatch.setattr(word_lm, "steps_at_once", lambda batch, vocabulary_size: some)
    model = word_lm.WordLM(30, hidden=16, dropout=0.0).double()
    tokens, targets = next(word_lm.batches(ids, 4, 10))
    total, state = word_lm.backward(model, tokens, targets, None)
    found = gradients(model)

    model.zero_grad()
    chance = model(tokens)[0].log_softmax(-1).gather(2, targets[..., None])
    (-chance.sum() / 4).backward()
    assert total.item() == pytest.approx(-chance.sum().item(), rel=1e-12)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)
    assert not any(part.requires_grad for part in state)


@pytest.mark.parametrize(("clip", "length"), [(1e-3, 1e-3), (1e9, None)])
def test_an_update_is_the_clipped_gradient_times_the_rate(word_lm, torch, ids, clip, length):
    model = word_lm.WordLM(30, hidden=16, dropout=0.0).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    word_lm.backward(model, *next(word_lm.batches(ids[:41], 4, 10)), None)
    gradient = gradients(model)
    norm = math.sqrt(sum((g**2).sum().item() for g in gradient.values()))
    assert norm > 1e-2  # or there is nothing to clip
    factor = 1 if length is None else length / norm

    word_lm.train_epoch(model, ids[:41], 0.5, batch=4, steps=10, clip=clip)
    for name, parameter in model.named_parameters():
        step = before[name] - parameter.detach()
        # clip_grad_norm_ divides by the norm plus 1e-6.
        torch.testing.assert_close(step, 0.5 * factor * gradient[name], rtol=1e-3, atol=1e-12)


def test_state_is_carried_from_batch_to_batch(word_lm, torch, ids):
    # At a rate of 0 nothing changes but the state: pieces must cost what the whole costs.
    model = word_lm.WordLM(30, hidden=16, dropout=0.0)
    model.rnn.weight_hh_l0.data *= 20
    losses = [word_lm.train_epoch(model, ids, 0.0, batch=2, steps=n) for n in (7, 1000)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_evaluate_reads_one_stream(word_lm, torch, ids, monkeypatch):
    monkeypatch.setattr(word_lm, "steps_at_once", lambda batch, vocabulary_size: 13)
    model = word_lm.WordLM(30, hidden=16)
    found = word_lm.evaluate(model, ids)
    logits, _ = model(ids[None, :-1])
    loss = torch.nn.functional.cross_entropy(logits[0], ids[1:].long()).item()
    assert found == pytest.approx(math.exp(loss), rel=1e-5)


def test_a_planted_regularity_is_learnt(word_lm, torch):
    torch.manual_seed(1)
    ids = torch.arange(8).repeat(250).int()
    model = word_lm.WordLM(8, embedding=16, hidden=32)
    before = word_lm.evaluate(model, ids)
    for _ in range(3):
        word_lm.train_epoch(model, ids, 1.0, batch=4, steps=20)
    assert before == pytest.approx(8, rel=0.05)
    assert word_lm.unigram_perplexity(ids, ids, 8) == pytest.approx(8, rel=1e-3)
    assert word_lm.evaluate(model, ids) < 1.1


# Runs ----------------------------------------------------------------------------------------

SMALL = ["--embedding", "8", "--hidden", "12", "--batch", "4", "--steps", "10"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["the", "cat", "saw", "a", "dog", "that", "saw", "the", "bird", "and", "ran"]
    rng = np.random.default_rng(1)
    rows = [" ".join(rng.permutation(words)[: rng.integers(3, 9)]) for _ in range(100)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def call(word_lm, *arguments):
    return CliRunner().invoke(word_lm.main, [str(a) for a in arguments])


def train(word_lm, text, output, *more):
    return call(word_lm, "train", text, "-o", output, *SMALL, "--no-export", *more)


@pytest.fixture(scope="module")
def run(word_lm, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "two"
    result = train(word_lm, text, folder, "--epochs", 2, "--log-every", 10)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_run(word_lm, run):
    folder, output = run
    config, vocabulary = word_lm.read_run(folder)
    assert config["seed"] == 1
    assert config["model"] == {
        "vocabulary_size": len(vocabulary),
        "cell": "LSTM",
        "embedding": 8,
        "hidden": 12,
        "layers": 1,
        "dropout": 0.5,
    }
    assert [e["epoch"] for e in config["epochs"]] == [1, 2]
    assert config["epochs"][1]["valid_perplexity"] < config["epochs"][0]["valid_perplexity"]
    assert config["perplexity"].keys() == {"valid", "test"}
    assert config["perplexity"]["valid"] == config["epochs"][1]["valid_perplexity"]
    assert config["data"].keys() == {"train", "valid", "test"}
    assert sorted(vocabulary) == sorted({*vocabulary})
    assert {"<eos>", "<unk>", "cat"} <= set(vocabulary)
    assert sorted(p.name for p in folder.iterdir()) == [
        "best.safetensors",
        "config.json",
        "last.safetensors",
        "vocabulary.txt",
    ]
    assert re.search(r"epoch 1  \d+ of \d+ tokens  [\d,]+/s  perplexity [\d.]+\n", output)
    assert re.search(r"best epoch 2: perplexity valid [\d.]+, test [\d.]+\n", output)


def test_the_best_epoch_is_kept(word_lm, text, tmp_path):
    result = train(word_lm, text, tmp_path / "r", "--epochs", 2)
    assert result.exit_code == 0, result.output
    best = (tmp_path / "r" / "best.safetensors").read_bytes()
    config, _ = word_lm.read_run(tmp_path / "r")
    config["epochs"][1]["valid_perplexity"] = 1.5  # none will be better
    word_lm.write_text(tmp_path / "r" / "config.json", json.dumps(config))
    result = train(word_lm, text, tmp_path / "r", "--epochs", 3, "--resume")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "r" / "best.safetensors").read_bytes() == best
    assert word_lm.read_run(tmp_path / "r")[0]["best_epoch"] == 2
    assert word_lm.saved_epoch(tmp_path / "r" / "last.safetensors") == 3


def test_a_resumed_run_equals_an_unbroken_one(word_lm, torch, text, run, tmp_path):
    folder, _ = run
    assert train(word_lm, text, tmp_path / "r", "--epochs", 1).exit_code == 0
    result = train(word_lm, text, tmp_path / "r", "--epochs", 2, "--resume")
    assert result.exit_code == 0, result.output
    for name in ("best", "last"):
        one = word_lm.load_file(folder / f"{name}.safetensors")
        two = word_lm.load_file(tmp_path / "r" / f"{name}.safetensors")
        assert all(torch.equal(one[key], two[key]) for key in one)
    one, two = (
        [e["valid_perplexity"] for e in word_lm.read_run(f)[0]["epochs"]]
        for f in (folder, tmp_path / "r")
    )
    assert one == two


@pytest.mark.parametrize("cell", ["GRU", "RNN"])
def test_other_cells(word_lm, text, tmp_path, cell):
    more = ["--cell", cell, "--epochs", 1, "--vocabulary-size", 9]
    result = train(word_lm, text, tmp_path / "r", *more)
    assert result.exit_code == 0, result.output
    config, vocabulary = word_lm.read_run(tmp_path / "r")
    assert config["model"]["cell"] == cell
    assert len(vocabulary) == 9
    assert config["data"]["train"]["unknown"] > 0


def test_given_validation_text_leaves_the_training_text_whole(word_lm, text, tmp_path):
    other = tmp_path / "valid.txt"
    other.write_text("the cat saw a zebra\n", encoding="utf-8")
    result = train(word_lm, text, tmp_path / "r", "--valid", other, "--epochs", 1)
    assert result.exit_code == 0, result.output
    config, _ = word_lm.read_run(tmp_path / "r")
    words = len(text.read_text(encoding="utf-8").split())
    assert config["data"]["train"]["tokens"] == words + 100
    assert config["data"]["valid"] | {"sha256": 0, "unigram_perplexity": 0} == {
        "tokens": 6,
        "unknown": 1,
        "sha256": 0,
        "unigram_perplexity": 0,
    }
    assert config["perplexity"].keys() == {"valid"}
    assert "The valid text has words that text.txt lacks" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"holds a run already; --resume goes on with it"),
        (("--resume", "--hidden", "13"), r"was trained with another model .* another --output"),
        (("--resume", "--seed", "2"), r"was trained with another seed"),
        (("--resume", "--clip", "2"), r"was trained with another training"),
    ],
)
def test_a_run_is_not_overwritten(word_lm, text, run, arguments, message):
    folder, _ = run
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    result = train(word_lm, text, folder, *arguments)
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.output.split()))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no word"),
        (b"\n\n", "holds no word"),
        (b"caf\xe9 au lait\n", "must be UTF-8"),
        (b"one line only\n", "too short to hold lines out"),
        (b"a\nb\nc\n", "has 2 tokens and needs"),
    ],
)
def test_unusable_text(word_lm, tmp_path, content, message):
    (tmp_path / "t.txt").write_bytes(content)
    result = train(word_lm, tmp_path / "t.txt", tmp_path / "r")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "r").exists()


def test_a_diverging_run_says_so(word_lm, text, tmp_path):
    result = train(word_lm, text, tmp_path / "r", "--learning-rate", "1e38", "--clip", "1e38")
    assert result.exit_code == 1
    assert "The loss is no longer finite" in result.output
    assert "Traceback" not in result.output


def test_export(word_lm, torch, run, tmp_path):
    pytest.importorskip("onnxscript", reason="exporting from torch needs onnxscript")
    folder, _ = run
    config, vocabulary = word_lm.read_run(folder)
    tokens = torch.randint(0, len(vocabulary), (2, 7), generator=torch.Generator().manual_seed(1))
    for options, weights in (((), "best"), (("--untrained",), None)):
        path = tmp_path / f"{weights}.onnx"
        result = call(word_lm, "export", folder, "-o", path, *options)
        assert result.exit_code == 0, result.output
        model = word_lm.initial_model(config).eval()
        if weights:
            model.load_state_dict(word_lm.load_file(folder / f"{weights}.safetensors"))
        expected = model(tokens)[0].detach().numpy()
        np.testing.assert_allclose(logits(path, tokens.numpy()), expected, rtol=0, atol=1e-5)
        roles, words = read_roles(onnx.load(path))
        assert list(words.tokens) == vocabulary
        assert (words.unknown, words.end_of_line) == ("<unk>", "<eos>")
        assert [state.name for state in roles.states] == ["lstm0.h", "lstm0.c"]


def test_training_exports_at_its_end(word_lm, text, tmp_path):
    pytest.importorskip("onnxscript", reason="exporting from torch needs onnxscript")
    result = call(word_lm, "train", text, "-o", tmp_path / "r", *SMALL, "--epochs", 1)
    assert result.exit_code == 0, result.output
    onnx.checker.check_model(onnx.load(tmp_path / "r" / "model.onnx"))


def test_every_epoch_can_be_kept(word_lm, torch, text, tmp_path):
    pytest.importorskip("onnxscript", reason="exporting from torch needs onnxscript")
    folder = tmp_path / "r"
    for epochs, more in ((1, ()), (2, ("--resume",))):
        call_ = ("train", text, "-o", folder, *SMALL, "--epochs", epochs, "--keep-epochs", *more)
        result = call(word_lm, *call_)
        assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (folder / "epochs").iterdir()) == [
        "000.onnx", "001.onnx", "002.onnx"
    ]  # fmt: skip
    last = word_lm.load_file(folder / "last.safetensors")["embedding.weight"].numpy()
    found = open_model(folder / "epochs" / "002.onnx").embeddings
    np.testing.assert_array_equal(found, last)
    assert not np.array_equal(open_model(folder / "epochs" / "000.onnx").embeddings, last)
    result = call(word_lm, *call_, "--no-export")
    assert result.exit_code == 2
    assert "--keep-epochs exports every epoch" in " ".join(result.output.split())


def test_export_of_what_is_no_run(word_lm, tmp_path):
    result = call(word_lm, "export", tmp_path, "-o", tmp_path / "m.onnx")
    assert result.exit_code == 2
    assert "is not the folder of a run" in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []


# The shipped models --------------------------------------------------------------------------


def logits(path, tokens):
    """Logits ``[batch, time, V]`` by ONNX Runtime, step by step from a state of zeros."""
    roles, _ = read_roles(onnx.load(path))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in session.get_inputs()}
    state = {
        s.input: np.zeros([d if isinstance(d, int) else len(tokens) for d in shapes[s.input]], "f4")
        for s in roles.states
    }
    outputs = [roles.logits, *(s.output for s in roles.states)]
    found = []
    for column in tokens.T:
        step, *values = session.run(outputs, {roles.tokens: column[:, None], **state})
        found.append(step)
        state = {s.input: value for s, value in zip(roles.states, values, strict=True)}
    return np.concatenate(found, axis=1)


def test_shipped_models_are_small():
    assert sum((SAMPLES / "models" / name).stat().st_size for name in SHIPPED) < 3_000_000


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_model_keeps_the_contract(name):
    model = onnx.load(SAMPLES / "models" / name)
    onnx.checker.check_model(model, full_check=True)
    assert {o.domain: o.version for o in model.opset_import}[""] == OPSET
    roles, vocabulary = read_roles(model)
    assert [state.name for state in roles.states] == ["lstm0.h", "lstm0.c"]
    assert roles.source["framework"] == "pytorch"
    assert len(vocabulary.tokens) == 1200
    assert (vocabulary.unknown, vocabulary.end_of_line) == ("<unk>", "<eos>")
    assert not re.search(rb"/(home|root|tmp|work|Users)/", model.SerializeToString())


def test_shipped_models_differ_by_what_was_learnt():
    config = json.loads((SAMPLES / "models" / "pydoc-lstm.json").read_text(encoding="utf-8"))
    assert config["perplexity"]["valid"] < config["data"]["valid"]["unigram_perplexity"] / 3
    # The running Python's text may not be the one trained on; much of it is.
    _, vocabulary = read_roles(onnx.load(SAMPLES / "models" / SHIPPED[0]))
    number = {token: i for i, token in enumerate(vocabulary.tokens)}
    text = [t for line in list(lines())[:300] for t in (*line.split(), "<eos>")]
    ids = np.array([[number.get(t, number["<unk>"]) for t in text]])
    found = []
    for name in SHIPPED:
        scores = logits(SAMPLES / "models" / name, ids[:, :-1])[0].astype(np.float64)
        right = scores[np.arange(len(scores)), ids[0, 1:]]
        found.append(np.exp(np.mean(np.log(np.exp(scores).sum(1)) - right)))
    trained, untrained = found
    assert trained < 70
    assert untrained == pytest.approx(1200, rel=0.01)


def test_held_out_stretches(word_lm):
    pytest.importorskip("onnxscript", reason="make_models imports the exporter's module")
    import make_models

    parts = make_models.split([str(i) for i in range(400)])
    assert parts["valid"] == [str(i) for i in (*range(80, 100), *range(280, 300))]
    assert parts["test"] == [str(i) for i in (*range(180, 200), *range(380, 400))]
    assert len(parts["train"]) == 320


def test_make_models(word_lm, tmp_path):
    pytest.importorskip("onnxscript", reason="exporting from torch needs onnxscript")
    import make_models

    settings = "--vocabulary-size 100 --embedding 4 --hidden 4 --batch 100 --epochs 1"
    result = CliRunner().invoke(
        make_models.main, ["-o", str(tmp_path / "models"), "--settings", settings]
    )
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "models").iterdir()} == {*SHIPPED, "pydoc-lstm.json"}
