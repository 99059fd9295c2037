"""The synthetic experiment: its steps on a tiny language, its numbers against plain numpy."""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from mnemoscope.analyzer.result import build
from mnemoscope.analyzer.sums import Sums

torch = pytest.importorskip("torch", reason="the sample trains with torch")
pytest.importorskip("onnxscript", reason="exporting from torch needs onnxscript")

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "synthetic"
FILES = {
    *("train.txt", "valid.txt", "valid.tsv", "test.txt", "test.tsv", "vocabulary.txt"),
    *("synthetic.json", "settings.json", "checkpoint.pt", "m.onnx", "training.json"),
    *("states.npz", "gradients.nc", "report.json", "report.md", "figure2.png", "figure3.png"),
}


@pytest.fixture(scope="module", autouse=True)
def importable():
    sys.path.insert(0, str(SAMPLE))
    yield
    sys.path.remove(str(SAMPLE))
    for name in ("run", "study", "model"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def finished(importable, tmp_path_factory):
    """A whole run at the tiny scale, by its command."""
    import run

    folder = tmp_path_factory.mktemp("synthetic") / "tiny"
    done = CliRunner().invoke(run.main, ["--scale", "tiny", "-o", str(folder)])
    assert done.exit_code == 0, done.output
    return folder, done.output


def test_the_command(finished):
    folder, said = finished
    assert {p.name for p in folder.iterdir()} == FILES
    assert (folder / "report.md").read_text(encoding="utf-8") in said
    for name in ("figure2.png", "figure3.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_something_was_learnt(finished):
    """An upper bound that knows the frequencies alone does not reach, nor one token of context."""
    folder, _ = finished
    report = json.loads((folder / "report.json").read_text())
    ids = [[*line.split(), "<eos>"] for line in (folder / "test.txt").read_text().splitlines()]
    flat = [t for line in ids for t in line]
    bigram = {}
    for a, b in pairwise(flat):
        bigram.setdefault(a, []).append(b)
    bits = -sum(
        math.log(after.count(b) / len(after)) for after in bigram.values() for b in after
    ) / (len(flat) - 1)
    for part in ("valid", "test"):
        assert report["least"]["attainable"] < report["perplexity"][part] < 0.9 * math.exp(bits)
    log = json.loads((folder / "training.json").read_text())
    assert log["epochs"][-1]["perplexity"] < log["epochs"][0]["perplexity"] / 1.5
    table = report["table"]
    assert table["cell state"]["token"] > 0.9
    assert table["counting subspace"]["token"] < table["ID subspace"]["token"] - 0.2
    assert table["ID subspace"]["count"] < table["counting subspace"]["count"] - 0.1


def test_shapes(finished):
    folder, _ = finished
    import run

    delays = run.SCALES["tiny"].delays + 1
    report = json.loads((folder / "report.json").read_text())
    assert set(report["memory"]) == {
        f"{group}, {part}" for group in ("all", "token-1") for part in ("counting", "ID")
    }
    for curve in report["memory"].values():
        for name in ("sum", "stderr", "floor"):
            assert len(curve[name]) == delays
            assert np.all(np.array(curve[name]) >= 0)
        assert curve["sum"][0] > 3 * curve["floor"][0]
    assert {len(v) for v in report["accuracy"].values()} == {delays}
    assert report["accuracy"]["cell state"][0] > 0.9
    assert "plane" not in report
    states = np.load(folder / "states.npz")
    words = (folder / "valid.txt").read_text().replace("\n", " <eos> ").split()
    assert states["cell"].shape == states["hidden"].shape == (len(words), 16)
    assert len(states["loss"]) == len(words) - 1
    assert report["perplexity"]["valid"] == pytest.approx(math.exp(states["loss"].mean()), rel=1e-4)


def test_what_is_done_is_skipped(finished):
    folder, _ = finished
    import run

    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    (folder / "figure3.png").unlink()
    said = []
    run.Run(folder, run.SCALES["tiny"], say=said.append).everything()
    skipped = [line for line in said if line.endswith("done before")]
    assert len(skipped) == 4
    after = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    changed = {name for name in FILES if before[name] != after[name]}
    assert changed == {"report.json", "report.md", "figure2.png", "figure3.png"}


def test_another_run_s_folder(finished):
    folder, _ = finished
    import run

    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    done = CliRunner().invoke(run.main, ["--scale", "small", "-o", str(folder)])
    assert done.exit_code == 2
    assert "holds a run with other settings" in done.output
    with pytest.raises(click.UsageError, match="other settings"):
        run.Run(folder, run.SCALES["tiny"], seed=1)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_the_scales_are_the_paper_s():
    import run

    full = run.SCALES["full"]
    assert (full.train, full.valid, full.test) == (16_000_000, 160_000, 160_000)
    assert (full.hidden, full.held_out) == (50, 10_000)
    small = run.SCALES["small"]
    assert small.language == full.language == run.Language()
    assert (small.hidden, small.batch, small.steps) == (full.hidden, full.batch, full.steps)


def test_broken_off_training_goes_on(tmp_path):
    import model

    ids = np.random.default_rng(0).integers(0, 5, 600).astype(np.int8)
    settings = {"tokens": 5, "hidden": 4, "batch": 4, "steps": 8}
    whole = model.train(ids, tmp_path / "a.pt", epochs=3, **settings)
    model.train(ids, tmp_path / "b.pt", epochs=1, **settings)
    seen = []
    resumed = model.train(
        ids, tmp_path / "b.pt", epochs=3, report=lambda epoch, loss: seen.append(epoch), **settings
    )
    assert seen == [2, 3]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert {p.name for p in tmp_path.iterdir()} == {"a.pt", "b.pt"}


def test_streams_lose_only_what_does_not_fill_them():
    import model

    ids = np.arange(23, dtype=np.int8)
    pieces = list(model.streams(ids, 3, 4))
    inputs = torch.cat([x for x, _ in pieces], 1)
    targets = torch.cat([y for _, y in pieces], 1)
    assert inputs.tolist() == [list(range(0, 7)), list(range(7, 14)), list(range(14, 21))]
    assert torch.equal(targets, inputs + 1)


# The numbers ---------------------------------------------------------------------------------


def test_recorded_states_and_losses_are_the_module_s(finished):
    """The file read by ONNX Runtime, held against PyTorch on the same weights."""
    folder, _ = finished
    import model
    import run

    experiment = run.Run(folder, run.SCALES["tiny"])
    ids = torch.from_numpy(experiment.ids("valid")).long()
    module = model.OneHotLSTM(5, 16)
    module.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["model"])
    with torch.no_grad():
        logits, (_, c) = module(ids[None])
        hidden = module.core(torch.nn.functional.one_hot(ids[None], 5).float())[0][0]
    held = np.load(folder / "states.npz")
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[1:], reduction="none")
    np.testing.assert_allclose(held["loss"], loss.numpy(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(held["hidden"], hidden.numpy(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(held["cell"][-1], c[0, 0].numpy(), rtol=0, atol=1e-3)
    assert np.array_equal(held["guess"], logits[0, :-1].argmax(-1).numpy())


def test_places_are_the_labels_counts(finished):
    folder, _ = finished
    import run
    import study

    experiment = run.Run(folder, run.SCALES["tiny"])
    place = study.cycle_places(experiment.ids("valid"), 4, 4)
    expected = []
    for row in (folder / "valid.tsv").read_text().removesuffix("\n").split("\n"):
        expected.append(int(row.rsplit("count-", 1)[1]) if row else -1)
    assert place.tolist() == expected


def test_memory_against_numpy():
    """Σσ of the parts, from hand-made sums, by numpy alone."""
    import study

    rng = np.random.default_rng(2)
    blocks, delays, units, size = 4, 3, 6, 5
    block_sum = rng.standard_normal((blocks, 2, delays, units, size))
    counts = np.full((blocks, 2, delays), 10)
    counts[0, 1, 2] = 0  # a block in which a group does not occur
    block_sum[0, 1, 2] = 0
    sums = Sums(block_sum, counts, block_sum[:2].sum(0), counts[:2].sum(0))
    embeddings = np.eye(size)
    tree = build(
        {"lstm0.c": sums}, groups=["all", "token-1"], embeddings=embeddings,
        state_info={}, attributes={}, precision="float64",
    )  # fmt: skip
    w = np.linalg.qr(rng.standard_normal((units, 2)))[0]
    oblique = (
        w @ np.linalg.inv(w.T @ np.diag(np.arange(1.0, 7)) @ w) @ w.T @ np.diag(np.arange(1.0, 7))
    )
    found = study.memory(tree, oblique)
    centre = np.eye(size) - 1 / size  # whitened one-hot vectors: centred, scaled by 1/√V
    for g, group in enumerate(("all", "token-1")):
        for part, onto in (("counting", oblique), ("ID", np.eye(units) - oblique)):

            def total(matrix, onto=onto):
                values = np.linalg.svd(onto @ matrix @ centre / math.sqrt(size), compute_uv=False)
                return values.sum()

            curve = found[f"{group}, {part}"]
            for d in range(delays):
                here, n = block_sum[:, g, d], counts[:, g, d]
                assert curve["sum"][d] == pytest.approx(total(here.sum(0) / n.sum()), rel=1e-10)
                halves = here[:2].sum(0) / n[:2].sum() - here[2:].sum(0) / n[2:].sum()
                assert curve["floor"][d] == pytest.approx(total(halves / 2), rel=1e-10)
                used = np.flatnonzero(n)
                left = [
                    total((here.sum(0) - here[b]) / (n.sum() - n[b])) for b in used
                ]  # blocks of one size
                error = math.sqrt((len(used) - 1) * np.var(left))
                assert curve["stderr"][d] == pytest.approx(error, rel=1e-8)


def test_delayed_accuracy_of_a_planted_memory():
    """A state that holds the new token for two steps, and then one that does not."""
    import study

    rng = np.random.default_rng(0)
    period, cycles = 4, 400
    ids = np.repeat(rng.integers(0, 5, cycles), period)
    place = np.tile(np.arange(period), cycles)
    states = 0.01 * rng.standard_normal((len(ids), 6))
    held = place <= 2
    states[held, ids[held]] += 1  # the token of this cycle, up to delay 2
    found = study.delayed_accuracy(states, ids, place, 1000, 8)
    assert found[:3] == pytest.approx(1)
    assert np.all(found[3:] < 0.35)


def test_the_study_of_planted_states(finished):
    """States that encode identity and count apart, mixed together: Table 1 must divide them."""
    import study

    rng = np.random.default_rng(1)
    folder, _ = finished
    import run

    experiment = run.Run(folder, run.SCALES["tiny"])
    ids = experiment.ids("valid")
    place = study.cycle_places(ids, 4, 4)
    states = 0.3 * rng.standard_normal((len(ids), 16))
    states[np.arange(len(ids)), ids] += 2
    angle = 2 * np.pi * (place + 1) / 5
    states[:, 8] += 3 * np.cos(angle)
    states[:, 9] += 3 * np.sin(angle)
    states[:, 4] -= 2 * (place < 0)  # the end of a line is told by its count alone
    states = states @ rng.standard_normal((16, 16))
    wrong = ids[1:].copy().astype(np.int64)
    chosen = np.flatnonzero(place[1:] == 1)[:7]
    wrong[chosen] = (wrong[chosen] + 1) % 4
    wrong[place[1:] == 0] = 4  # not to be known, so not counted
    recorded = {"cell": states, "hidden": states[:, ::-1], "guess": wrong,
                "loss": np.full(len(ids) - 1, 0.25), "test_loss": np.full(5, 0.5)}  # fmt: skip
    from mnemoscope.analyzer import open_result

    found = study.study(
        recorded, open_result(folder / "gradients.nc"), ids=ids, end=4, period=4, held_out=1000,
        least={"paper": 1.0, "known_length": 1.0, "attainable": 1.0},
    )  # fmt: skip
    assert found["perplexity"] == {"valid": pytest.approx(math.exp(0.25)),
                                   "test": pytest.approx(math.exp(0.5))}  # fmt: skip
    assert found["mistakes"] == found["mistakes_at_first_repetition"] == 7
    assert found["counting_dimensions"] == 2
    table, chance = found["table"], found["chance"]
    assert table["cell state"] == {k: pytest.approx(1, abs=0.01) for k in study.TASKS}
    assert table["hidden state"] == {k: pytest.approx(1, abs=0.01) for k in study.TASKS}
    assert table["counting subspace"]["count"] > 0.99
    assert table["counting subspace"]["token"] < chance["token"] + 0.1
    assert table["ID subspace"]["token"] > 0.99
    assert table["ID subspace"]["count"] < chance["count"] + 0.12
    assert "| counting subspace |" in study.markdown(found)


def test_an_unwritable_folder(tmp_path):
    import run

    (tmp_path / "file").write_text("mine")
    done = CliRunner().invoke(run.main, ["--scale", "tiny", "-o", str(tmp_path / "file")])
    assert done.exit_code == 2
    done = CliRunner().invoke(run.main, ["--scale", "tiny", "-o", str(tmp_path / "file" / "run")])
    assert done.exit_code == 2
    assert "cannot be written" in done.output
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_settings_that_are_damaged(tmp_path):
    import run

    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(click.UsageError, match="other settings"):
        run.Run(tmp_path, run.SCALES["tiny"])
    assert (tmp_path / "settings.json").read_text() == "{"
