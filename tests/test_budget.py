"""Verdicts by simulation: planted gradients whose true measures are known, many seeds."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from mnemoscope.analyzer import _verdicts, check, compare, read_budget
from mnemoscope.analyzer._draft import _below
from mnemoscope.analyzer._judges import _percent
from mnemoscope.analyzer.budget import ANALYSIS, RULES, draft
from mnemoscope.analyzer.comparison import recorded_options
from mnemoscope.analyzer.errors import BudgetError, ResultError
from mnemoscope.analyzer.result import build
from mnemoscope.analyzer.sums import Sums

H, E, BLOCKS, N = 12, 8, 10, 2000
NOMINAL = 0.0228  # chance of more than two standard errors, one side

BASIS = np.random.default_rng(0)
U = np.linalg.qr(BASIS.standard_normal((H, E)))[0]
V = np.linalg.qr(BASIS.standard_normal((E, E)))[0]
EMBEDDINGS = BASIS.standard_normal((30, E))


def planted(spectra: np.ndarray, noise: float, rng, positions: int = N, shared=None, **attributes):
    """A result whose true singular values are `spectra` [delay, order].

    Each entry of the mean scatters by `noise` at N positions; `shared` adds block sums that
    another result has too.
    """
    spectra = np.atleast_2d(spectra)
    true = np.einsum("ho,do,eo->dhe", U[:, : spectra.shape[1]], spectra, V[:, : spectra.shape[1]])
    each = positions // (2 * BLOCKS)
    # A sum over `each` positions, of which a mean over N scatters by `noise`.
    scatter = noise * np.sqrt(N * each) * rng.standard_normal((2, BLOCKS, 1, *true.shape))
    halves = each * true + scatter + (0 if shared is None else shared)
    counts = np.full((BLOCKS, 1, len(true)), 2 * each)
    sums = Sums(halves.sum(0), counts, halves[0].sum(0), counts.sum(0) // 2)
    return build(
        {"lstm0.c": sums},
        groups=["all"],
        embeddings=EMBEDDINGS,
        state_info={},
        attributes={
            "blocks": BLOCKS,
            "positions": positions,
            "corpus_positions": 100 * N,
            "corpus_sha256": "c",
            "stretches": BLOCKS,
            "seed": 0,
            **attributes,
        },
    )


@pytest.fixture
def budget(tmp_path):
    def make(text, head='normalization = "none"'):
        path = tmp_path / "b.toml"
        path.write_text(f"{head}\n{text}", encoding="utf-8")
        return read_budget(path)

    return make


def statuses(budget, trees, **options):
    return np.array([[v.status for v in check(t, budget, **options)] for t in trees])


def allowed(runs: int) -> float:
    """The nominal rate and three standard deviations of a rate from so many runs."""
    return NOMINAL + 3 * math.sqrt(NOMINAL * (1 - NOMINAL) / runs)


@cache
def many(strength: float, noise: float, runs: int, positions: int = N):
    """Results with one delay and the given true σ₁; the other directions are weaker."""
    spectrum = strength * np.linspace(1.0, 0.3, E)
    return [
        planted(spectrum, noise, np.random.default_rng(seed), positions) for seed in range(runs)
    ]


RUNS = 200


@pytest.mark.parametrize("noise", [0.003, 0.03, 0.1])
def test_at_the_bound_few_fail(budget, noise):
    trees = many(1.0, noise, RUNS)
    found = statuses(budget("[[sigma1]]\ndelay = 0\nat_least = 1.0\nat_most = 1.0"), trees)
    assert ((found == "failed").mean(axis=0) <= allowed(RUNS)).all()
    share = 1.0 / np.linspace(1.0, 0.3, E).sum()
    found = statuses(
        budget(f"[[selectivity]]\ndelay = 0\nat_least = {share}\nat_most = {share}"), trees
    )
    assert ((found == "failed").mean(axis=0) <= allowed(RUNS)).all()
    assert ((found == "passed").mean(axis=0) <= allowed(RUNS)).all()


def test_errors_that_are_not_counted_would_show(budget, monkeypatch):
    """The check of the check: with no errors, half of the runs fail at the bound."""
    monkeypatch.setattr(_verdicts, "critical", lambda *a, **k: 0.0)
    found = statuses(budget("[[sigma1]]\ndelay = 0\nat_least = 1.0"), many(1.0, 0.003, RUNS))
    assert (found == "failed").mean() > 0.3


def test_normal_quantiles_would_show(budget, monkeypatch):
    """With 4 blocks a standard error is so uncertain that 2 of them are passed too often."""
    assert _verdicts.critical(2.0, 10**6) == pytest.approx(2.0, abs=1e-4)
    assert _verdicts.critical(2.0, 10) == pytest.approx(2.32, abs=0.01)
    rng = np.random.default_rng(1)
    blocks = rng.standard_normal((20000, 4))
    t = blocks.mean(1) / (blocks.std(1, ddof=1) / 2)
    assert (t > _verdicts.critical(2.0, 4)).mean() == pytest.approx(NOMINAL, abs=0.004)
    assert (t > 2.0).mean() > 2 * NOMINAL


@pytest.mark.parametrize("noise", [0.003, 0.03])
def test_far_from_the_bound_it_is_decided(budget, noise):
    far = 10 * noise
    text = "[[sigma1]]\ndelay = 0\nat_least = {0}\n[[sigma1]]\ndelay = 0\nat_most = {1}"
    trees = many(1.0, noise, 100)
    assert (statuses(budget(text.format(1 - far, 1 + far)), trees) == "passed").all()
    assert (statuses(budget(text.format(1 + far, 1 - far)), trees) == "failed").all()


@pytest.mark.parametrize("gap", [0.5, 1.0, 2.0])
def test_the_positions_that_should_decide_do(budget, gap):
    """A true σ₁ of 1 and a bound a little below; what is undecided is measured again."""
    noise = 0.02
    asked = budget(f"[[sigma1]]\ndelay = 0\nat_least = {1 - gap * noise}")
    again, right = 0, 0
    for seed, tree in enumerate(many(1.0, noise, 200)):
        (verdict,) = check(tree, asked)
        if verdict.status != "undecided":
            continue
        assert N < verdict.positions <= _verdicts.MOST_FACTOR * N * 1.1
        more = planted(
            np.linspace(1.0, 0.3, E), noise, np.random.default_rng(10**6 + seed),
            verdict.positions // 20 * 20,
        )  # fmt: skip
        again += 1
        right += check(more, asked)[0].status == "passed"
    assert again > 50
    assert right / again > 0.5


def test_extrapolation_keeps_its_promise_over_all_gaps():
    """Truths anywhere around a bound: what is undecided is decided four times in five."""
    rng = np.random.default_rng(0)
    right = []
    for truth in rng.uniform(-6, 6, 4000):
        first = rng.normal(truth)
        judgement = _verdicts.at_least(_verdicts.Estimate(first, first, first, 1.0), 0.0, 2.0)
        if judgement.status != "undecided":
            continue
        stderr = 1 / math.sqrt(judgement.factor)
        second = rng.normal(truth, stderr)
        more = _verdicts.at_least(_verdicts.Estimate(second, second, second, stderr), 0.0, 2.0)
        right.append(more.status != "undecided")
    assert np.mean(right) == pytest.approx(_verdicts.CHANCE, abs=0.04)


def test_an_undecided_bound_at_the_very_value_says_so(budget):
    tree = many(1.0, 0.02, 1)[0].copy(deep=True)
    tree["lstm0.c"]["singular_values_stderr"][:] = 0.0
    value = float(tree["lstm0.c"]["singular_values"][0, 0, 0, 0])
    low = _verdicts.noise_free(value, float(tree["lstm0.c"]["noise_floor"][0, 0, 0]))
    (verdict,) = check(tree, budget(f"[[sigma1]]\ndelay = 0\nat_least = {(value + low) / 2!r}"))
    assert verdict.status == "undecided"
    assert verdict.positions is None
    assert "not even 1,000 times as many" in verdict.note


# --- horizons ---


def decaying(rate: float, delays: int = 12) -> np.ndarray:
    return np.exp(-rate * np.arange(delays))[:, None] * np.linspace(1.0, 0.3, E)


def test_fraction_at_the_bound(budget):
    asked = budget("[[horizon]]\nfraction = 0.5\nat_least = 1")
    spectra = np.array([1.0, 0.5])[:, None] * np.linspace(1, 0.3, E)
    trees = [planted(spectra, 0.01, np.random.default_rng(s)) for s in range(RUNS)]
    found = statuses(asked, trees)
    assert (found == "failed").mean() <= allowed(RUNS)
    assert (found == "passed").mean() <= allowed(RUNS)
    assert (found == "undecided").mean() > 0.9


def true_at_detection_limit(noise: float) -> float:
    """σ₁ whose measured mean stands 2 m above the floor, found from planted results."""
    errors = _verdicts.critical(2.0, BLOCKS)
    strengths = np.linspace(5, 40, 15) * noise
    above = []
    for strength in strengths:
        c = [t["lstm0.c"] for t in many(strength, noise, 30)]
        s1 = np.mean([x["singular_values"].values[0, 0, 0, 0] for x in c])
        se = np.mean([x["singular_values_stderr"].values[0, 0, 0, 0] for x in c])
        floor = np.mean([x["noise_floor"].values[0, 0, 0] for x in c])
        above.append(s1 - floor - 2 * errors * np.sqrt(2) * se)
    assert above[0] < 0 < above[-1]
    return float(np.interp(0.0, above, strengths))


def test_a_memory_at_the_detection_limit_hardly_ever_fails(budget):
    noise = 0.05
    trees = many(true_at_detection_limit(noise), noise, RUNS)
    found = statuses(budget("[[horizon]]\nat_least = 0"), trees)
    assert (found == "failed").mean() <= allowed(RUNS)
    assert 0.2 < (found == "passed").mean() < 0.8


def test_noise_hardly_ever_passes_and_mostly_fails(budget):
    asked = budget("[[horizon]]\nat_least = 4")
    nothing = np.zeros((12, E))
    nothing[:4] = np.linspace(1.0, 0.3, E)
    trees = [planted(nothing, 0.05, np.random.default_rng(s)) for s in range(100)]
    found = statuses(asked, trees)
    assert (found == "passed").mean() <= allowed(100)
    assert (found == "failed").mean() > 0.9


def test_a_clear_memory_passes_its_horizon(budget):
    trees = [planted(decaying(0.2), 0.005, np.random.default_rng(s)) for s in range(50)]
    found = statuses(
        budget("[[horizon]]\nat_least = 11\n[[horizon]]\nfraction = 0.3\nat_least = 4"), trees
    )
    assert (found == "passed").all()


def test_undecided_horizon_is_decided_by_the_positions_it_names(budget):
    noise = 0.05
    asked = budget("[[horizon]]\nat_least = 0")
    strength = 0.8 * true_at_detection_limit(noise)
    again = right = 0
    for seed, tree in enumerate(many(strength, noise, 150)):
        (verdict,) = check(tree, asked)
        if verdict.status == "undecided":
            more = planted(
                strength * np.linspace(1.0, 0.3, E), noise, np.random.default_rng(10**6 + seed),
                verdict.positions // 20 * 20,
            )  # fmt: skip
            again += 1
            right += check(more, asked)[0].status == "passed"
    assert again > 30
    assert right / again > 0.5


# --- baseline and parity ---


@pytest.mark.parametrize("lost", [0.0, 0.1])
def test_a_loss_at_the_bound_hardly_ever_fails(budget, lost):
    asked = budget(f"[[baseline]]\nsigma1_loss = {100 * lost}\nhorizon_loss = 0\ndelay = [0, 3]")
    found = np.concatenate(
        [
            statuses(
                asked,
                [planted((1 - lost) * decaying(0.5, 4), 0.01, np.random.default_rng(s))],
                baseline=planted(decaying(0.5, 4), 0.01, np.random.default_rng(10**6 + s)),
            )
            for s in range(100)
        ]
    )
    assert ((found == "failed").mean(axis=0)[1:] <= allowed(100)).all()
    if lost == 0:
        assert (found == "failed").mean(axis=0)[0] <= allowed(100)


def test_planted_memory_loss_fails(budget):
    asked = budget(
        "[[horizon]]\nfraction = 0.1\nat_least = 7\n"
        "[[sigma1]]\ndelay = 5\nat_least = 0.15\n"
        "[[baseline]]\nhorizon_loss = 20\nfraction = 0.1\n"
        "[[baseline]]\nhorizon_loss = 20\n"
        "[[baseline]]\nsigma1_loss = 10\ndelay = [3, 5]"
    )
    for seed in range(10):
        rng = np.random.default_rng(seed)
        before, same, worse = (planted(decaying(rate), 0.005, rng) for rate in (0.3, 0.3, 0.9))
        assert set(statuses(asked, [worse], baseline=before)[0]) == {"failed"}
        assert "failed" not in statuses(asked, [same], baseline=before)


def test_fewer_positions_than_the_baseline_had_are_no_loss(budget):
    asked = budget("[[baseline]]\nhorizon_loss = 0")
    for seed in range(30):
        rng = np.random.default_rng(seed)
        few, many_ = (planted(decaying(0.5), 0.02, rng, n) for n in (N, 20 * N))
        (verdict,) = check(few, asked, baseline=many_)
        assert verdict.status != "failed"
        if seed == 0:  # what the baseline's own check says of it is told too
            (its,) = check(many_, budget("[[horizon]]\nat_least = 0"))
            own = re.search(r"certainly (\d+)", its.found)[1]
            assert f"on as few positions as here, {own} on its own;" in verdict.what


def test_fewer_delays_and_fewer_positions_than_the_baseline(budget):
    few, many_ = (planted(decaying(0.5), 0.02, np.random.default_rng(0), n) for n in (N, 20 * N))
    (whole,) = check(few, budget("[[baseline]]\nhorizon_loss = 50"), baseline=many_)
    least = int(re.search(r"≥ (\d+)", whole.what)[1])
    (cut,) = check(
        few.isel(delay=slice(least + 1)), budget("[[baseline]]\nhorizon_loss = 50"), baseline=many_
    )
    assert cut.what == whole.what
    with pytest.raises(
        BudgetError, match=f"must reach {least}; it has the delays 0 to {least - 1}"
    ):
        check(few.isel(delay=slice(least)), budget("[[baseline]]\nhorizon_loss = 50"),
              baseline=many_)  # fmt: skip


@pytest.mark.parametrize(
    ("share", "stderr", "said"),
    [
        (0.12, 0.1, "+12 ± 10 %"),
        (0.1234, 0.0234, "+12.3 ± 2.3 %"),
        (-0.5, 3.21, "-50 ± 321 %"),
        (0.0, 0.0, "+0.0 ± 0.0 %"),
        (1e-5, 2e-6, "+0.00100 ± 0.00020 %"),
        (math.nan, math.nan, "+nan ± nan %"),
    ],
)
def test_plain_per_cent(share, stderr, said):
    assert _percent(share, stderr) == said


@pytest.mark.parametrize("own", [0.0005, 0.003])
def test_parity_at_the_bound(budget, own):
    """Two models that share their positions' scatter, and differ by 5 % in truth."""
    asked = budget("[[parity]]\ntolerance = 0.05")
    spectrum = np.linspace(1.0, 0.3, E)
    each = N // (2 * BLOCKS)
    found = []
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        shared = 0.05 * np.sqrt(N * each) * rng.standard_normal((2, BLOCKS, 1, 1, H, E))
        # scaled by 1.05: a difference of 5 % of the reference, scatter included
        a = planted(1.05 * spectrum, own, rng, shared=1.05 * shared)
        b = planted(spectrum, own, rng, shared=shared)
        found += [v.status for v in check(a, asked, reference=b)]
    assert np.mean(np.array(found) == "failed") <= allowed(RUNS)


def test_parity_far_from_the_bound(budget):
    rng = np.random.default_rng(0)
    a = planted(decaying(0.3), 0.01, rng)
    same, other = a.copy(), planted(1.3 * decaying(0.3), 0.001, rng)
    assert statuses(budget("[[parity]]\ntolerance = 1e-6"), [a], reference=same) == "passed"
    assert statuses(budget("[[parity]]\ntolerance = 0.1"), [a], reference=other) == "failed"
    assert (
        statuses(budget("[[parity]]\ntolerance = 0.9\ndelay = [0, 1]"), [a], reference=other)
        == "passed"
    )


def test_parity_without_block_means_is_undecided_unless_equal(budget):
    rng = np.random.default_rng(0)
    a, b = (planted(s * decaying(0.3), 0.001, rng) for s in (1.0, 1.3))
    for tree in (a, b):
        tree["lstm0.c"] = tree["lstm0.c"].to_dataset().drop_vars("block_gradient")
    asked = budget("[[parity]]\ntolerance = 0.1")
    (verdict,) = check(a, asked, reference=b)
    assert (verdict.status, verdict.positions) == ("undecided", None)
    assert statuses(asked, [a], reference=a) == "passed"


def test_parity_needs_the_same_positions(budget):
    rng = np.random.default_rng(0)
    a, b = (planted(decaying(0.3), 0.01, rng, n) for n in (N, 2 * N))
    asked = budget("[[parity]]\ntolerance = 0.1")
    with pytest.raises(BudgetError, match="same positions, and positions is 2000 here, 4000"):
        check(a, asked, reference=b)
    with pytest.raises(BudgetError, match="same positions, and delays is 11 here, 5 in"):
        check(a, asked, reference=planted(decaying(0.3, 6), 0.01, rng))
    b = a.copy()
    del a.attrs["corpus_sha256"]
    with pytest.raises(BudgetError, match="corpus_sha256 is not stated here, c in"):
        check(a, asked, reference=b)


WHOLE = {"corpus_positions": N, "stretches": 1}


@pytest.mark.parametrize("case", ["alike", "another seed", "fewer delays"])
def test_parity_of_a_whole_corpus_needs_neither_seed_nor_delays(budget, case):
    """The positions are the same, but seed and delays deal them to other halves.

    A remembers 4 % more than B at every position, so 2 % is exceeded whatever the halves are.
    """
    noise = 0.3 * np.random.default_rng(0).standard_normal((2, BLOCKS, 1, 12, H, E))
    noise *= N // (2 * BLOCKS)
    a = planted(1.04 * decaying(0.1), 0.0, np.random.default_rng(0), shared=1.04 * noise, **WHOLE)
    if case != "alike":
        noise = np.concatenate([noise[:, :5], noise[::-1, 5:]], axis=1)
    seed = 1 if case == "another seed" else 0
    b = planted(decaying(0.1), 0.0, np.random.default_rng(0), shared=noise, **WHOLE, seed=seed)
    if case == "fewer delays":
        b = b.isel(delay=slice(4))
    (verdict,) = check(a, budget("[[parity]]\ntolerance = 0.02"), reference=b)
    assert (verdict.status, verdict.measured) == ("failed", pytest.approx(0.04))


def test_parity_says_what_compare_says(budget):
    rng = np.random.default_rng(3)
    a, b = (planted(s * decaying(0.3), 0.01, rng, **WHOLE) for s in (1.0, 1.1))
    (state,) = compare(a, b, normalization="none", basis="same").states
    for delay in (0, 5):
        asked = budget(f"[[parity]]\ntolerance = 0.02\ndelay = {delay}")
        (verdict,) = check(a, asked, reference=b)
        found = state.gradient[delay], state.gradient_stderr[delay]
        assert (verdict.measured, verdict.stderr) == found


def test_parity_with_a_reference_of_nothing_fails(budget):
    rng = np.random.default_rng(0)
    a, b = planted(decaying(0.3), 0.001, rng), planted(decaying(0.3), 0.001, rng)
    for name in ("gradient", "block_gradient", "noise"):
        node = b["lstm0.c"][name]
        node[(slice(None),) * node.dims.index("delay") + (7,)] = 0.0
    asked = budget("[[parity]]\ntolerance = 100.0")
    (verdict,) = check(a, asked, reference=b)
    assert (verdict.status, verdict.measured) == ("failed", math.inf)
    assert verdict.message == "failed: the reference's are 0 at delay 7, these are not"
    assert statuses(asked, [b], reference=b) == "passed"


def grouped(names, first, second, **attributes):
    """A result of two groups, by name."""
    both = xr.concat([t["lstm0.c"].to_dataset() for t in (first, second)], "group")
    root = first.to_dataset(inherit=False)
    root = root.drop_vars("group").assign_coords(group=list(names))
    both = both.assign_coords(group=list(names)).transpose("block", ...)
    order = {n: first["lstm0.c"][n].dims for n in first["lstm0.c"].data_vars}
    both = both.assign({n: both[n].transpose(*dims) for n, dims in order.items()})
    return xr.DataTree.from_dict({"/": root, "/lstm0.c": both.drop_vars(list(root.coords))})


def test_a_bound_is_about_one_group_in_both_files(budget):
    """Groups in another order, or the first of one lacking in the other."""
    rng = np.random.default_rng(0)
    all_, x = planted(decaying(0.3), 0.001, rng), planted(1.4 * decaying(0.3), 0.001, rng)
    a, b = grouped(("all", "x"), all_, x), grouped(("x", "all"), x, all_)
    for kind, other in (
        ("[[parity]]\ntolerance = 1e-9", {"reference": b}),
        ("[[baseline]]\nsigma1_loss = 0\ndelay = 0", {"baseline": b}),
    ):
        for group in ("", '\ngroup = "x"'):
            (verdict,) = check(a, budget(kind + group), **other)
            if "parity" in kind:
                assert (verdict.status, verdict.measured) == ("passed", 0)
            else:
                assert verdict.measured == 1
    lacking = grouped(("x", "y"), x, all_)
    with pytest.raises(BudgetError, match='the reference has no group "all"; it has x, y'):
        check(a, budget("[[parity]]\ntolerance = 1"), reference=lacking)


def test_too_few_positions_are_undecided_and_nan_is_not_passed(budget):
    tree = many(1.0, 0.01, 1)[0].copy(deep=True)
    tree["lstm0.c"]["singular_values_stderr"][:] = np.nan
    asked = budget(
        "[[sigma1]]\ndelay = 0\nat_least = 0\nat_most = 9\n[[horizon]]\nat_least = 0\n"
        "[[horizon]]\nat_least = 0\nfraction = 0.5"
    )
    assert set(statuses(asked, [tree])[0]) == {"undecided"}
    tree = many(1.0, 0.01, 1)[0].copy(deep=True)
    for name in ("singular_values", "noise_floor", "selectivity"):
        tree["lstm0.c"][name][:] = np.nan
    assert set(statuses(asked, [tree])[0]) == {"undecided"}


def test_python_gets_the_numbers(budget):
    tree = many(1.0, 0.01, 1)[0]
    asked = budget("[[sigma1]]\nname = 'keeps a word'\ndelay = 0\nat_least = 0.5")
    (verdict,) = check(tree, asked)
    values = tree["lstm0.c"]["singular_values"].values
    assert verdict.measured == values[0, 0, 0, 0]
    assert verdict.stderr == tree["lstm0.c"]["singular_values_stderr"].values[0, 0, 0, 0]
    assert verdict.name == "lstm0.c: keeps a word: σ₁ at delay 0 ≥ 0.5"
    assert verdict.rule.where == "[[sigma1]] 1 (line 2)"


def test_a_draft_passes_and_another_sample_hardly_ever_fails(tmp_path):
    path = tmp_path / "d.toml"
    failed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        tree, again = (planted(decaying(0.4), 0.01, rng) for _ in range(2))
        path.write_text(draft(tree, source="r\x1b\n.nc"), encoding="utf-8")
        asked = read_budget(path)
        assert {v.status for v in check(tree, asked)} == {"passed"}
        kinds = {r.kind for r in asked.rules}
        assert kinds == {"horizon", "sigma1", "selectivity"}
        failed += "failed" in {v.status for v in check(again, asked)}
    assert failed <= 2


def test_a_draft_analyses_as_its_result_was(tmp_path):
    made = {
        "method": "fd", "step": 0.05, "blocks": 15, "precision": "float64", "tf32": True, "seed": 3,
    }  # fmt: skip
    tree = planted(decaying(0.4), 0.01, np.random.default_rng(0), **made)
    path = tmp_path / "d.toml"
    path.write_text(draft(tree), encoding="utf-8")
    assert read_budget(path).analysis == {**made, "positions": N, "delays": 11}
    assert set(recorded_options(tree)) == set(read_budget(path).analysis)
    tree.attrs["corpus_positions"] = N
    assert "positions" not in recorded_options(tree)
    path.write_text(draft(tree), encoding="utf-8")
    assert read_budget(path).analysis["positions"] == N


@pytest.mark.parametrize(("name", "value"), [("seed", "x"), ("blocks", 0), ("step", math.nan)])
def test_a_draft_of_a_result_with_damaged_options_is_refused(name, value):
    tree = planted(decaying(0.4), 0.01, np.random.default_rng(0), **{"method": "fd", name: value})
    with pytest.raises(ResultError, match=f"attribute {name} must be"):
        draft(tree)


@pytest.mark.parametrize(
    "value", [0.0, 5e-324, 1e-322, 1e-300, 1.2345, 0.3, 9.999, -1e-322, -1.2345, 123456.0, math.inf]
)
def test_rounding_downwards(value):
    rounded = _below(value)
    assert rounded <= value
    assert abs(value - rounded) <= abs(value) * 0.01 + 5e-324 if math.isfinite(value) else rounded
    assert len(f"{rounded:.17g}".replace("-", "").replace(".", "").strip("0")) > 0 or value == 0


def test_a_draft_of_nothing_but_noise_is_refused():
    with pytest.raises(BudgetError, match="nothing in the result stands clear"):
        draft(planted(np.zeros((1, E)), 0.01, np.random.default_rng(4)))


# --- the page that describes it ---


def test_the_page_names_every_key_and_its_budget_is_read(tmp_path):
    page = (Path(__file__).parent.parent / "docs/check.md").read_text(encoding="utf-8")
    schema = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    for kind, keys in RULES.items():
        assert f"[[{kind}]]" in schema
        assert all(f"`{key}`" in schema for key in keys), kind
    assert all(f"`{key}`" in schema for key in ("sigma", *ANALYSIS))
    example = max(re.findall(r"```toml\n(.*?)```", page, re.S), key=len)
    path = tmp_path / "b.toml"
    path.write_text(example, encoding="utf-8")
    budget = read_budget(path)
    assert {rule.kind for rule in budget.rules} == set(RULES)
    assert budget.largest_delay == 20
