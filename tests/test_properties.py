"""Directions of properties and how well they are remembered, against plain arithmetic."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from mnemoscope.analyzer._property_plot import property_figure
from mnemoscope.analyzer.errors import PropertyError, ResultError
from mnemoscope.analyzer.lexicon import Lexicon, read_lexicon
from mnemoscope.analyzer.metrics import (
    jackknife,
    relative_memory,
    singular_values,
    subspace_cosine,
    whiten,
)
from mnemoscope.analyzer.properties import (
    default_inputs,
    direction,
    own_inputs,
    property_curves,
)
from mnemoscope.analyzer.property_specs import (
    Side,
    Spec,
    make_spec,
    read_arithmetic,
    read_properties,
    read_word_list,
)
from property_trees import CLASSES, SIZE, embeddings, property_tree, vocabulary

TIGHT = 1e-10
NUMBER = Spec("number", a=Side(classes=("NN",)), b=Side(classes=("NNS",)))


def words(*names):
    return Side(words=names)


def ids(*names):
    return [vocabulary().index(n) for n in names]


@pytest.fixture(scope="module")
def tree():
    return property_tree()


@pytest.fixture(scope="module")
def lexicon(tree):
    return read_lexicon(tree)


class TestMembers:
    def test_main_class(self, lexicon):
        """`run` is more often a verb; `even` is as often one as the other, so neither."""
        found = lexicon.belonging_to(["NN"])
        assert found.tolist() == ids(*(f"noun{i}" for i in range(30)))
        verbs = lexicon.belonging_to(["VB"])
        assert ids("run")[0] in verbs
        assert ids("even")[0] not in verbs

    def test_tied_classes_of_one_side(self, lexicon):
        """Whichever of the two it is, `even` is on this side."""
        assert ids("even")[0] in lexicon.belonging_to(["NN", "VB"])

    def test_every(self, lexicon):
        found = lexicon.members(["NN"], "every")
        assert sorted(found) == sorted(ids(*CLASSES["NN"]))

    def test_a_minor_class_is_no_part_of_a_larger_one(self):
        """Every type of NNS is more often NN here, and no position is both: they are rivals."""
        tree = property_tree(unions=("nouns",))
        rare = tree["member_group"].values == tree["group"].values.tolist().index("NNS")
        words = tree["member_token"].values[rare]
        often = tree["member_group"].values == tree["group"].values.tolist().index("NN")
        counts = tree["member_count"].values.copy()
        counts[rare] = 1
        extra = xr.Dataset(
            {
                "member_group": ("member", np.concatenate([tree["member_group"].values,
                    np.full(len(words), tree["member_group"].values[often][0])])),
                "member_token": ("member", np.concatenate([tree["member_token"].values, words])),
                "member_count": ("member", np.concatenate([counts, np.full(len(words), 5)])),
            }
        )  # fmt: skip
        root = tree.to_dataset().drop_vars([*extra]).assign(extra)
        nodes = {n: c.to_dataset(inherit=False) for n, c in tree.children.items()}
        found = read_lexicon(xr.DataTree.from_dict({"/": root, **nodes}))
        assert found.belonging_to(["NNS"]).size == 0

    def test_unions_are_no_rivals(self):
        overlapping = read_lexicon(property_tree(unions=("nouns",)))
        plain = read_lexicon(property_tree())
        for name in ("NN", "NNS", "VB"):
            assert overlapping.belonging_to([name]).tolist() == plain.belonging_to([name]).tolist()
        both = plain.belonging_to(["NN", "NNS"]).tolist()
        assert overlapping.belonging_to(["nouns"]).tolist() == both

    def test_the_unknown_token_is_no_type(self):
        tree = property_tree()
        tree.attrs["unknown_token"] = "noun3"
        found = read_lexicon(tree).belonging_to(["NN"])
        assert len(found) == 29
        assert ids("noun3")[0] not in found

    def test_without_counts(self):
        found = read_lexicon(property_tree(members=False))
        with pytest.raises(PropertyError, match="analyze again with --group-by, or name the words"):
            found.belonging_to(["NN"])


class TestDirection:
    def test_is_the_whitened_difference_of_the_means_over_types(self, lexicon):
        table = embeddings().astype(float)
        a = table[ids(*(f"noun{i}" for i in range(30)))].mean(0)
        b = table[ids(*(f"nouns{i}" for i in range(25)))].mean(0)
        expected = whiten(embeddings()).Z @ (a - b)
        found = direction(NUMBER, lexicon)
        assert abs(found.distance - np.linalg.norm(expected)) < 1e-9
        np.testing.assert_allclose(found.d, expected / np.linalg.norm(expected), atol=TIGHT)
        u = (a - b) / np.linalg.norm(a - b)
        assert abs(found.equation14 - np.linalg.norm(whiten(embeddings()).Z @ u)) < 1e-9

    def test_how_often_a_type_occurs_does_not_matter(self, lexicon):
        """The mean over positions would be another one: `run` and `even` weigh 3 and 2."""
        found = direction(Spec("n", a=Side(("NN",)), b=Side(("VB",)), members="every"), lexicon)
        a = lexicon.whitened[ids(*CLASSES["NN"])].mean(0)
        b = lexicon.whitened[ids(*CLASSES["VB"])].mean(0)
        np.testing.assert_allclose(found.d, (a - b) / np.linalg.norm(a - b), atol=TIGHT)
        assert "2 of these types are on both sides" in found.notes[-1]

    def test_arithmetic(self, lexicon):
        """queen = king − man + woman was planted."""
        spec = Spec("royal", terms=read_arithmetic("king - man + woman"))
        queen = lexicon.whitened[ids("queen")[0]]
        found = direction(spec, lexicon)
        np.testing.assert_allclose(found.d, queen / np.linalg.norm(queen), atol=1e-6)
        assert found.pool == "vocabulary"
        assert len(found.a) == 0

    def test_suffix(self, lexicon):
        found = direction(Spec("genitive", suffix="'s"), lexicon)
        assert found.a.tolist() == ids("cat's", "dog's")
        assert found.b.tolist() == ids("cat", "dog")

    def test_unknown_words_left_out(self, lexicon):
        spec = Spec("royal", a=words("king", "emperor"), b=words("man"))
        found = direction(spec, lexicon, skip_unknown=True)
        assert found.a.tolist() == ids("king")
        assert "1 unknown left out" in found.notes[0]

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            (Spec("x", a=Side(("JJ",)), b=Side(("NN",))), "no class 'JJ'; it has NN, NNS, VB"),
            (Spec("x", a=Side(("FW",)), b=Side(("NN",))), "No type belongs to FW: the class is e"),
            (Spec("x", a=Side(("UH",)), b=Side(("NN",))), "UH has one member, and one word is no"),
            (Spec("x", a=Side(("NN",)), b=Side(("NN",))), "both sides are the same types"),
            (Spec("x", a=words("king"), b=words("king")), "both sides are the same types"),
            (Spec("x", a=words("same1"), b=words("same2")), "the same mean embedding"),
            (Spec("x", a=words("kings"), b=words("man")), "no word 'kings' (near 'kings': 'king'"),
            (Spec("x", terms=((1.0, "king"), (-1.0, "king"))), "the same types"),
            (Spec("x", terms=((1.0, "king-man"), (1.0, "man"))), "put spaces around + and -"),
            (Spec("x", suffix="ing"), "holds 0 word(s) that end on 'ing'"),
        ],
    )
    def test_what_cannot_be_formed(self, lexicon, spec, said):
        with pytest.raises(PropertyError) as error:
            direction(spec, lexicon)
        assert said in str(error.value)

    def test_no_unknown_term_is_left_out_of_a_sum(self, lexicon):
        with pytest.raises(PropertyError, match="cannot be left out"):
            direction(Spec("x", terms=((1, "king"), (-1, "emperor"))), lexicon, skip_unknown=True)

    def test_tokens_with_signs_are_words(self, lexicon):
        found = direction(Spec("x", terms=read_arithmetic("e-mail + C++")), lexicon)
        assert sorted(found.tokens) == sorted(ids("e-mail", "C++"))


class TestSingular:
    """Embeddings that vary in some directions only."""

    def test_on_the_support(self):
        table = embeddings()
        table[:, 3] = 2.0
        found = read_lexicon(property_tree(table=table))
        assert found.D.shape == (SIZE, SIZE - 1)
        made = direction(NUMBER, found)
        assert made.outside == 0 or made.outside < 1e-6
        assert made.d.shape == (SIZE - 1,)

    def test_outside_the_support(self):
        """The words differ only where the vocabulary, to rounding, does not vary."""
        table = np.zeros((len(vocabulary()), SIZE), np.float32)
        table[:, :2] = embeddings()[:, :2] * 1000
        table[ids("king"), :] = table[ids("man"), :]
        table[ids("king")[0], 4] = 1e-3
        found = read_lexicon(property_tree(table=table))
        assert found.D.shape == (SIZE, 2)
        with pytest.raises(PropertyError, match=r"zero|lies outside the 2 of 6 directions"):
            direction(Spec("x", a=words("king"), b=words("man")), found)

    def test_partly_outside_is_said(self):
        table = np.zeros((len(vocabulary()), SIZE), np.float64)
        table[:, 0] = embeddings()[:, 0]
        found = read_lexicon(property_tree(table=table))
        moved = found.embeddings.copy()
        moved[ids("king")[0], 5] += 1.0  # as if the file's whitening were another's
        found = type(found)(**{**vars(found), "embeddings": moved})
        made = direction(Spec("x", a=words("king"), b=words("man")), found)
        assert made.outside > 0.1
        assert "counts for nothing" in made.notes[-1]

    def test_no_variation_at_all(self):
        with pytest.raises(ResultError, match="do not vary"):
            read_lexicon(property_tree(table=np.ones((len(vocabulary()), SIZE), np.float32)))


class TestShuffled:
    def test_deals_the_types_of_the_property(self, lexicon):
        found = direction(NUMBER, lexicon, samples=3)
        assert found.pool == "members"
        np.testing.assert_allclose(np.linalg.norm(found.shuffled, axis=1), 1.0)
        # A difference of means of the same types: it lies in their span about their mean.
        again = direction(NUMBER, lexicon, samples=3)
        np.testing.assert_array_equal(found.shuffled, again.shuffled)
        assert (direction(NUMBER, lexicon, samples=3, seed=1).shuffled != found.shuffled).any()

    def test_of_few_words_draws_from_the_vocabulary(self, lexicon):
        spec = Spec("gender", a=words("king", "man"), b=words("queen", "woman"))
        assert direction(spec, lexicon, samples=3).pool == "vocabulary"

    @pytest.mark.parametrize(("pairs", "pool"), [(10, "vocabulary"), (11, "pairs")])
    def test_pairs_are_exchanged_pair_by_pair(self, pairs, pool):
        """Stems differ along the first axis and pairs do not: dealt by pairs, nothing does."""
        stems = [f"stem{i}" for i in range(pairs)]
        table = np.random.default_rng(0).standard_normal((2 * pairs, 5))
        table[pairs:, 0] = table[:pairs, 0]
        found = Lexicon(table, (*stems, *(f"{s}'s" for s in stems)), (), None, None,
                        np.zeros((0, 0)), whiten(table).D)  # fmt: skip
        made = direction(Spec("genitive", suffix="'s"), found, samples=200)
        assert made.pool == pool
        np.testing.assert_allclose(np.linalg.norm(made.shuffled, axis=1), 1.0)
        first = np.abs(made.shuffled @ found.D[0])
        assert (first < TIGHT).all() == (pool == "pairs")
        # Which word of a pair is which changes from sample to sample.
        assert np.linalg.matrix_rank(made.shuffled) == (4 if pool == "pairs" else 5)

    def test_is_what_random_sets_show(self, lexicon):
        """The same control written out: permute, average, subtract."""
        found = direction(NUMBER, lexicon, samples=4000)
        rng = np.random.default_rng(9)
        table = lexicon.whitened[found.tokens]
        other = []
        for _ in range(4000):
            order = rng.permutation(len(table))
            d = table[order[:30]].mean(0) - table[order[30:]].mean(0)
            other.append(d / np.linalg.norm(d))
        # Components scatter alike: the error of a second moment is √(2/4000) of it at most.
        moments = [np.mean(np.square(x), axis=0) for x in (found.shuffled, np.array(other))]
        np.testing.assert_allclose(moments[0], moments[1], atol=4 * np.sqrt(2 / 4000))


@pytest.fixture(scope="module")
def curves(tree, lexicon):
    made = [
        (direction(NUMBER, lexicon), ("all",)),
        (direction(NUMBER, lexicon), ("NN", "NNS")),
        (direction(Spec("v", a=Side(("VB",)), b=Side(("NN",))), lexicon), ("VB",)),
    ]
    return property_curves(tree, made, lexicon.D, leading=(1, 5, 2))


class TestCurves:
    def test_order(self, curves):
        assert [(c.direction.name, c.inputs, c.state) for c in curves] == [
            (name, inputs, state)
            for name, inputs in (("number", ("all",)), ("number", ("NN", "NNS")), ("v", ("VB",)))
            for state in ("lstm0.h", "lstm0.c")
        ]

    def test_measures(self, tree, lexicon, curves):
        for c in (curves[1], curves[5]):
            mean = tree[c.state]["gradient"].sel(group=c.inputs[0]).values.astype(float) @ lexicon.D
            np.testing.assert_allclose(c.memory, relative_memory(mean, c.direction.d), atol=TIGHT)
            for j, n in enumerate((1, 5, 2)):
                expected = subspace_cosine(mean, c.direction.d, n)
                np.testing.assert_allclose(c.cosine[:, j], expected, atol=TIGHT)
            stored = tree[c.state]["singular_values"].sel(
                normalization="whitened", group=c.inputs[0]
            )
            np.testing.assert_allclose(c.sigma1, stored[:, 0], rtol=1e-6)
            share = stored.values[:, :5].sum(1) / stored.values.sum(1)
            np.testing.assert_allclose(c.share[:, 1], share, rtol=1e-6)

    def test_own_gradient_is_the_mean_over_both_classes(self, tree, lexicon, curves):
        c = curves[3]
        two = tree[c.state].sel(group=["NN", "NNS"])
        n = two["count"].values[..., None, None]
        mean = (two["gradient"].values.astype(float) * n).sum(0) / n.sum(0)
        np.testing.assert_allclose(
            c.memory, relative_memory(mean @ lexicon.D, c.direction.d), atol=TIGHT
        )
        np.testing.assert_array_equal(c.count, n.sum(0)[:, 0, 0])
        noise = (two["noise"].values.astype(float) * n).sum(0) / n.sum(0)
        np.testing.assert_allclose(c.noise_floor, singular_values(noise @ lexicon.D)[:, 0])

    def test_errors_are_the_jackknife_of_the_measures(self, tree, lexicon, curves):
        c = curves[0]
        node = tree[c.state].sel(group="all")
        n = node["block_count"].values
        sums = node["block_gradient"].values.astype(float) * n[..., None, None]
        for found, measure in (
            (c.memory_stderr, relative_memory),
            (c.cosine_stderr[:, 1], lambda g, d: subspace_cosine(g, d, 5)),
        ):
            expected = jackknife(sums, n, lambda g, f=measure: f(g @ lexicon.D, c.direction.d))
            np.testing.assert_allclose(found, expected, atol=1e-9)
        stored = tree[c.state]["singular_values_stderr"].values[1, 0, :, 0]
        np.testing.assert_array_equal(c.sigma1_stderr, stored)

    def test_noise_of_m(self, tree, lexicon, curves):
        c = curves[0]
        noise = tree[c.state]["noise"].sel(group="all").values.astype(float) @ lexicon.D
        expected = np.linalg.norm(noise @ c.direction.d, axis=-1) / c.sigma1
        np.testing.assert_allclose(c.memory_noise, expected)

    def test_bands(self, curves):
        for c in curves:
            for band in (c.memory_random, c.memory_shuffled, c.cosine_random, c.cosine_shuffled):
                assert (np.diff(band, axis=-1) >= 0).all()
                assert ((band >= 0) & (band <= 1)).all()
        assert curves[0].cosine_random.shape == (4, 3, 3)
        # The planted difference is far beyond what its types give when dealt out anew.
        assert curves[0].cosine_shuffled.shape == (4, 3, 3)

    def test_random_directions_fall_in_the_random_band(self, tree, lexicon, curves):
        """19 of 20, within five standard deviations of a count."""
        c = curves[0]
        mean = tree[c.state]["gradient"].sel(group="all").values[0].astype(float) @ lexicon.D
        drawn = np.random.default_rng(5).standard_normal((2000, SIZE))
        m = relative_memory(mean, drawn)
        inside = ((m >= c.memory_random[0, 0]) & (m <= c.memory_random[0, 2])).mean()
        assert abs(inside - 0.95) < 0.03  # 1,000 directions made the band

    def test_rows_are_plain(self, curves):
        row = curves[0].rows()[0]
        assert {type(v) for v in row.values()} == {int, float, bool}
        assert {"m", "m_random_low", "m_shuffled_high", "cos5", "share5"} <= set(row)

    def test_without_blocks(self, lexicon):
        bare = property_tree(block_gradient_limit=0)
        (h, _) = property_curves(bare, [(direction(NUMBER, lexicon), ("all",))], lexicon.D)
        assert np.isnan(h.memory_stderr).all()
        assert np.isfinite(h.memory).all()
        assert np.isfinite(h.sigma1_stderr).all()  # the file has those
        assert h.clear.any()

    def test_a_group_without_positions(self, tree, lexicon):
        empty = tree.copy(deep=True)
        for state in empty.children:
            for name in ("gradient", "noise", "noise_floor", "singular_values_stderr"):
                axis = empty[state][name].dims.index("group")
                values = np.moveaxis(empty[state][name].values, axis, 0)
                values[3] = np.nan
            empty[state]["count"].values[3] = 0
            empty[state]["block_count"].values[:, 3] = 0
            empty[state]["block_gradient"].values[:, 3] = np.nan
        (h, _) = property_curves(empty, [(direction(NUMBER, lexicon), ("VB",))], lexicon.D)
        assert np.isnan(h.memory).all()
        assert not h.clear.any()

    @pytest.mark.parametrize(("positions", "known"), [(100, True), (5000, False)])
    def test_a_class_in_one_half_only(self, tree, lexicon, positions, known):
        """It has no noise; the floor is then that of the others, if they are most of it all."""
        lame = tree.copy(deep=True)
        node = lame["lstm0.c"]
        row = [str(g) for g in lame["group"].values].index("NNS")
        node["noise"].values[row] = np.nan
        node["count"].values[row] = positions
        (c,) = property_curves(
            lame, [(direction(NUMBER, lexicon), ("NN", "NNS"))], lexicon.D, states=["lstm0.c"]
        )
        if known:
            expected = tree["lstm0.c"]["noise_floor"].sel(normalization="whitened", group="NN")
            np.testing.assert_allclose(c.noise_floor, expected, rtol=1e-5)
            assert np.isfinite(c.memory_noise).all()
        else:
            assert np.isnan(c.noise_floor).all()
            assert not c.clear.any()

    def test_inputs(self, tree, lexicon):
        assert default_inputs(tree) == ("all",)
        assert own_inputs(direction(NUMBER, lexicon)) == ("NN", "NNS")
        with pytest.raises(PropertyError, match="no gradient of its own"):
            own_inputs(direction(Spec("x", a=words("king"), b=words("man")), lexicon))

    @pytest.mark.parametrize(
        ("states", "inputs", "said"),
        [(["gru"], ("all",), "no state 'gru'"), (None, ("JJ",), "no group 'JJ'; it has all, NN")],
    )
    def test_what_is_not_there(self, tree, lexicon, states, inputs, said):
        with pytest.raises(ResultError, match=said):
            property_curves(tree, [(direction(NUMBER, lexicon), inputs)], lexicon.D, states=states)


class TestFigure:
    def test_panels_points_and_bands(self, curves):
        figure = property_figure(curves[:2])
        assert len(figure.axes) == 8  # two states; m, H₁, H₅ and H₂
        memory = figure.axes[0]
        assert memory.get_ylim() == (-0.02, 1.04)
        solid = next(x for x in memory.lines if x.get_marker() == "o")
        np.testing.assert_array_equal(
            solid.get_ydata(), np.where(curves[0].clear, curves[0].memory, np.nan)
        )

    @pytest.mark.parametrize("unknown", ["nothing", "errors", "all"])
    def test_what_is_not_known_does_not_warn(self, curves, unknown, tmp_path):
        names = {"nothing": (), "errors": ("memory_stderr", "cosine_stderr", "sigma1_stderr")}
        arrays = {n: v for n, v in vars(curves[0]).items() if isinstance(v, np.ndarray)}
        every = [n for n, v in arrays.items() if v.dtype.kind == "f"]
        gone = {n: np.full_like(getattr(curves[0], n), np.nan) for n in names.get(unknown, every)}
        property_figure([replace(curves[0], **gone)]).savefig(tmp_path / "f.png")

    def test_points_within_noise_are_hollow(self, curves):
        c = replace(curves[0], noise_floor=np.array([0.0, np.inf, 0.0, np.inf]))
        axes = property_figure([c]).axes[0]
        hollow = [x for x in axes.lines if x.get_markerfacecolor() == "none"]
        assert [x.get_xdata().tolist() for x in hollow] == [[1, 3]]
        solid = next(x for x in axes.lines if x.get_marker() == "o" and x not in hollow)
        assert np.isnan(solid.get_ydata()).tolist() == [False, True, False, True]


class TestLexicon:
    def test_embeddings_from_the_model(self):
        class Model:
            path = type("P", (), {"name": "m.onnx"})
            sha256 = hashlib.sha256(b"").hexdigest()
            vocabulary = type("V", (), {"tokens": tuple(vocabulary()), "unknown": None})
            embeddings = embeddings()

        tree = property_tree(tokens=False)
        del tree["embeddings"]
        with pytest.raises(ResultError, match=r"holds no embeddings.*--model FILE.onnx"):
            read_lexicon(tree)
        with pytest.raises(ResultError, match=r"made from another model than m.onnx"):
            read_lexicon(tree, Model())
        tree.attrs["model_sha256"] = Model.sha256
        assert read_lexicon(tree, Model()).tokens == tuple(vocabulary())

    @pytest.mark.parametrize(
        ("name", "value"), [("member_token", 10**6), ("member_group", -1), ("member_count", -5)]
    )
    def test_damaged_members(self, name, value):
        tree = property_tree()
        tree[name].values[0] = value
        with pytest.raises(ResultError, match="damaged"):
            read_lexicon(tree)

    def test_damaged_embeddings(self):
        tree = property_tree()
        tree["embeddings"].values[0, 0] = np.nan
        with pytest.raises(ResultError, match="NaN or infinite"):
            read_lexicon(tree)

    def test_words_without_names(self):
        found = read_lexicon(property_tree(tokens=False))
        with pytest.raises(PropertyError, match="names of the tokens are not known"):
            found.ids(["king"])


class TestSpecs:
    @pytest.mark.parametrize(
        ("text", "terms"),
        [
            ("king - man + woman", [(1, "king"), (-1, "man"), (1, "woman")]),
            ("- man + king", [(-1, "man"), (1, "king")]),
            ("king − man", [(1, "king"), (-1, "man")]),
            ("e-mail - C++", [(1, "e-mail"), (-1, "C++")]),
        ],
    )
    def test_arithmetic(self, text, terms):
        assert list(read_arithmetic(text)) == terms

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("king man", "'man' follows a word"),
            ("king - - man", "two signs follow each other"),
            ("king -", "a word is missing at the end"),
            ("king-man+woman", "Put spaces around the signs"),
            ("", "at least two words"),
        ],
    )
    def test_bad_arithmetic(self, text, said):
        with pytest.raises(PropertyError) as error:
            read_arithmetic(text)
        assert said in str(error.value)

    def test_word_lists(self, tmp_path):
        assert read_word_list("he, him,he") == ("he", "him")
        path = tmp_path / "w.txt"
        path.write_text("he him\nhis\n", encoding="utf-8")
        assert read_word_list(str(path)) == ("he", "him", "his")
        with pytest.raises(PropertyError, match="there is no file"):
            read_word_list(str(tmp_path / "none.txt"))
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(PropertyError, match="not UTF-8"):
            read_word_list(str(path))
        for empty in ("", " , "):
            with pytest.raises(PropertyError, match=r"empty|no word"):
                read_word_list(empty)

    def test_file_of_many(self, tmp_path):
        path = tmp_path / "p.toml"
        path.write_text(
            '[[property]]\nname = "number"\na = ["NN"]\nb = ["NNS"]\ngroup = "VB"\n'
            'members = "every"\n'
            '[[property]]\na_words = ["he"]\nb_words = ["she", "her"]\n'
            '[[property]]\ndirection = "king - man"\n'
            '[[property]]\nplus = ["+", "king"]\nminus = ["-"]\n'
            '[[property]]\nsuffix = "\'s"\n',
            encoding="utf-8",
        )
        specs = read_properties(path)
        assert [s.name for s in specs] == [
            "number", "he − she+her", "king − man", "+ + king − -", "words with and without 's",
        ]  # fmt: skip
        assert specs[0].classes == ("NN", "NNS")
        assert (specs[0].group, specs[0].members) == ("VB", "every")
        assert specs[3].terms == ((1, "+"), (1, "king"), (-1, "-"))

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "one or more [[property]] tables"),
            ("[[propperty]]\na = 1", "one or more [[property]] tables"),
            ("x = ", "is no TOML file"),
            ('[[property]]\na = ["NN"]', "it has a."),
            ('[[property]]\na = "NN"\nb = ["X"]', "a must be a list of texts, not 'NN'"),
            ('[[property]]\na = [1]\nb = ["X"]', "a must be a list of texts that are not empty"),
            ('[[property]]\na = []\nb = ["X"]', "a must be a list of texts that are not empty"),
            ('[[property]]\ncolour = "red"', "has no key 'colour'"),
            ('[[property]]\nplus = ["king"]', "at least two words"),
            ('[[property]]\na=["A"]\nb=["B"]\nmembers="some"', 'members must be "main" or "every"'),
            ('[[property]]\na=["A"]\nb=["B"]\n' * 2, "two properties 'A − B'"),
            ("property = [1]", "must be a table"),
            ("property = " + "[" * 3000, "is no TOML file"),
        ],
    )
    def test_bad_files(self, tmp_path, text, said):
        path = tmp_path / "p.toml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(PropertyError) as error:
            read_properties(path)
        assert said in str(error.value)

    def test_make_spec_needs_two_terms(self):
        with pytest.raises(PropertyError, match="at least two"):
            make_spec({"plus": ["king"]}, "here")
