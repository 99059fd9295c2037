"""Curves picked from a result, and their figure."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from mnemoscope.analyzer.errors import ResultError
from mnemoscope.analyzer.plots import memory_figure
from mnemoscope.analyzer.result import build
from mnemoscope.analyzer.sums import Sums
from mnemoscope.analyzer.tables import Curve, curves


def curve(sigma1, floor, **changes) -> Curve:
    n = len(sigma1)
    columns = {
        "state": "lstm0.c",
        "group": "all",
        "normalization": "whitened",
        "delay": np.arange(n),
        "sigma1": np.array(sigma1, float),
        "sigma1_stderr": np.full(n, 0.01),
        "noise_floor": np.array(floor, float),
        "share1": np.full(n, 0.5),
        "share1_stderr": np.full(n, 0.01),
        "share5": np.full(n, 0.9),
        "share5_stderr": np.full(n, 0.01),
        "count": np.arange(100, 100 - n, -1),
    }
    return Curve(**{**columns, **changes})


FALLING = curve([1.0, 0.5, 0.11, 0.05], [0.1, 0.1, 0.1, 0.1])


class TestCurve:
    def test_marks_noise(self):
        assert FALLING.below.tolist() == [False, False, False, True]
        assert FALLING.clear.tolist() == [True, True, False, False]
        assert FALLING.first_below == 3
        assert curve([1.0], [0.1]).first_below is None

    def test_what_is_not_known_is_not_clear(self):
        nothing = curve([np.nan, 1.0], [np.nan, 0.1], sigma1_stderr=np.full(2, np.nan))
        assert nothing.below.tolist() == [True, False]
        assert nothing.clear.tolist() == [False, False]
        assert nothing.first_unclear == 0

    def test_rows_are_plain(self):
        row = FALLING.rows()[3]
        assert row["delay"] == 3
        assert row["below_noise"] is True
        assert {type(v) for v in row.values()} == {int, float, bool}


class TestCurves:
    @pytest.fixture
    def tree(self):
        rng = np.random.default_rng(0)
        block = rng.standard_normal((4, 2, 3, 5, 4))
        sums = Sums(block, np.full((4, 2, 3), 2), block[:2].sum(0), np.full((2, 3), 4))
        return build(
            {"a": sums, "b": sums},
            groups=["all", "noun"],
            embeddings=rng.standard_normal((9, 4)),
            state_info={},
            attributes={},
        )

    def test_picks(self, tree):
        assert [(c.state, c.group, c.normalization) for c in curves(tree)] == [
            ("a", "all", "whitened"),
            ("b", "all", "whitened"),
        ]
        (one,) = curves(tree, states=["b"], normalization="none", group="noun")
        expected = tree["b"]["singular_values"].sel(normalization="none", group="noun")[:, 0]
        np.testing.assert_array_equal(one.sigma1, expected)

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ({"states": ["c"]}, "no state 'c'; it has a, b"),
            ({"group": "verb"}, "no group 'verb'; it has all, noun"),
            ({"normalization": "z"}, "no normalization 'z'; it has none, whitened"),
        ],
    )
    def test_says_what_there_is(self, tree, asked, said):
        with pytest.raises(ResultError, match=said):
            curves(tree, **asked)


class TestFigure:
    def test_curves_that_coincide_show_their_markers_in_turn(self):
        long = curve(np.linspace(2, 1, 12), np.full(12, 0.1))
        for axes in memory_figure([("a", long), ("b", long), ("c", long)]).axes:
            marked = [x for x in axes.lines if x.get_marker() in ("o", "s", "^")]
            marks = [m for m in (x.get_markevery() for x in marked) if m is not None]
            assert [set(m) for m in marks] == [set(range(i, 12, 3)) for i in range(3)]

    def test_a_point_without_a_line_keeps_its_marker(self):
        alone = curve([1.0, 0.05, 0.05, 1.0, 1.0, 0.05], np.full(6, 0.1))
        memory, _ = memory_figure([("a", FALLING), ("b", alone)]).axes
        (marks,) = (x.get_markevery() for x in memory.lines
                    if x.get_marker() == "s" and x.get_linestyle() != "None")  # fmt: skip
        assert 0 in marks

    def test_draws_band_floor_and_hollow_points(self):
        memory, share = memory_figure([("one", FALLING)]).axes
        assert memory.get_yscale() == "log"
        assert "standard deviation of the embedding" in memory.get_ylabel()
        solid, floor, hollow = memory.lines
        assert np.isnan(solid.get_ydata()).tolist() == [False, False, True, True]
        np.testing.assert_array_equal(floor.get_ydata(), FALLING.noise_floor)
        assert floor.get_linestyle() != "-"
        assert hollow.get_markerfacecolor() == "none"
        np.testing.assert_array_equal(hollow.get_xdata(), [2, 3])
        assert floor.get_color() == solid.get_color()
        assert [c for c in memory.collections if isinstance(c, PolyCollection)]
        assert share.get_ylim()[0] == 0

    def test_many_curves_differ_in_colour_marker_and_line(self):
        figure = memory_figure([(f"m{i}", FALLING) for i in range(7)])
        handles = figure.legends[0].legend_handles
        assert [t.get_text() for t in figure.legends[0].get_texts()] == [f"m{i}" for i in range(7)]
        assert len({h.get_color() for h in handles}) == 7
        assert len({h.get_marker() for h in handles}) == 7

    @pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
    def test_saves_every_format_without_pyplot(self, tmp_path, suffix):
        path = tmp_path / f"f.{suffix}"
        memory_figure([("a_b $x$ {", FALLING)], title="A $\\title$").savefig(path)
        assert path.stat().st_size > 1000

    @pytest.mark.parametrize(
        "strange",
        [
            curve([np.nan] * 3, [np.nan] * 3),
            curve([0.0, 0.0], [0.0, 0.0]),
            curve([1.0], [0.5]),
            curve([1.0, 0.5], [np.nan, np.nan], sigma1_stderr=np.full(2, np.nan)),
            curve([1e-100, 1e100], [1e-101, 1e-100]),
        ],
    )
    def test_strange_curves_do_not_warn(self, tmp_path, strange):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            memory_figure([("x", strange)]).savefig(tmp_path / "f.png")


def test_pyplot_is_not_touched():
    code = "import sys, mnemoscope.analyzer.plots; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
