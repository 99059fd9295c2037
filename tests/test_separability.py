"""Telling classes of types apart, and knowing when one cannot."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.analyzer import separability as probe
from mnemoscope.analyzer import separability_sets as shipped
from mnemoscope.analyzer.errors import PropertyError
from mnemoscope.analyzer.lexicon import Lexicon, read_lexicon
from mnemoscope.analyzer.property_specs import Side
from mnemoscope.analyzer.separability import _MOST, FEWEST, _sample, separability
from property_trees import property_tree
from scipy.sparse import csr_array


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch, request):
    """Search one strength in place of four, but in the tests that say otherwise."""
    if not request.node.name.startswith("test_whole_search"):
        monkeypatch.setattr(probe, "_STRENGTHS", (0.1,))


def data(sizes, distance, dimensions=4, seed=0):
    """Gaussian classes whose means lie `distance` apart along one direction."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.standard_normal((len(y), dimensions))
    x[:, 0] += distance * y
    order = rng.permutation(len(y))
    x, y = x[order], y[order]
    return {f"c{i}": np.flatnonzero(y == i) for i in range(len(sizes))}, x


class TestAccuracy:
    def test_separated_classes(self):
        classes, x = data([60, 40], 8.0)
        found = separability("far", classes, x, permutations=3)
        assert found.accuracy > 0.98
        assert found.separable
        assert found.stderr > 0
        assert found.majority == 0.6
        assert found.tested == found.types == 100
        assert abs(found.shuffled - 0.55) < 0.2
        assert dict(found.sizes) == {"c0": 60, "c1": 40}

    def test_whole_search(self):
        """One informative direction of fifty: a search finds a strong penalty, or an L1."""
        classes, x = data([30, 30], 4.0, dimensions=50)
        found = separability("search", classes, x, permutations=2)
        assert found.separable
        assert found.chosen.split(",")[0] in ("L1", "L2")
        assert 0.5 < found.validation <= 1

    def test_near_the_best_that_any_classifier_could_do(self):
        """Two Gaussians 2 apart, halved at the middle: Φ(1) = 0.841 of them are told apart."""
        classes, x = data([400, 400], 2.0, dimensions=3)
        found = separability("near", classes, x, permutations=2)
        assert abs(found.accuracy - 0.841) < 4 * found.stderr
        n = found.tested
        p = (found.accuracy * n + 1) / (n + 2)
        assert found.stderr == pytest.approx(np.sqrt(p * (1 - p) / n))

    def test_no_difference_is_not_separable(self):
        classes, x = data([80, 80], 0.0)
        found = separability("same", classes, x, permutations=3)
        assert not found.separable
        assert abs(found.accuracy - 0.5) < 0.15

    def test_naming_the_larger_class_is_not_separating(self):
        """90 % right, and no better than a classifier that has seen nothing."""
        classes, x = data([180, 20], 0.0)
        found = separability("skewed", classes, x, permutations=2)
        assert found.accuracy > 0.8
        assert not found.separable

    def test_a_leak_would_be_seen_by_the_control(self, monkeypatch):
        """Were the procedure to test on what it was trained on, permuted labels would fit too."""
        from sklearn.model_selection import StratifiedKFold

        def leaking(self, x, y, groups=None):
            everything = np.arange(len(y))
            for _ in range(self.n_splits):
                yield everything, everything

        monkeypatch.setattr(StratifiedKFold, "split", leaking)
        monkeypatch.setattr(probe, "_STRENGTHS", (100.0,))
        classes, x = data([15, 15], 0.0, dimensions=25)
        found = separability("leak", classes, x, permutations=2)
        assert found.accuracy > 0.9
        assert found.shuffled > 0.9
        assert not found.separable

    def test_several_classes(self):
        classes, x = data([40, 40, 40], 6.0)
        found = separability("three", classes, x, permutations=2)
        assert found.accuracy > 0.95
        assert found.majority == pytest.approx(1 / 3)

    def test_same_seed_same_numbers(self):
        classes, x = data([30, 30], 1.0)
        one, two = (separability("s", classes, x, permutations=2, seed=3).row() for _ in range(2))
        assert one == two


class TestPairs:
    """A stem and the same with a suffix."""

    @staticmethod
    def pairs(shift, number=30, dimensions=60):
        rng = np.random.default_rng(0)
        stems = rng.standard_normal((number, dimensions))
        with_suffix = stems + 0.05 * rng.standard_normal(stems.shape)
        with_suffix[:, 0] += shift
        order = np.arange(number)
        return {"with": order, "without": order + number}, np.concatenate([with_suffix, stems])

    def test_what_is_learned_of_a_stem_does_not_mislead(self, monkeypatch):
        monkeypatch.setattr(probe, "_STRENGTHS", (100.0,))
        classes, x = self.pairs(0.0)
        apart = separability("suffix", classes, x, permutations=2)
        assert apart.accuracy < 0.35  # the other word of the pair was trained on, as the other
        found = separability("suffix", classes, x, paired=True, permutations=2)
        assert abs(found.accuracy - 0.5) < 0.1
        assert abs(found.shuffled - 0.5) < 0.15
        assert not found.separable

    def test_a_suffix_that_shows(self):
        found = separability("suffix", *self.pairs(6.0), paired=True, permutations=2)
        assert found.separable
        assert abs(found.shuffled - 0.5) < 0.15

    def test_no_pair_is_cut(self, monkeypatch):
        """Not by the folds, not by the caps."""
        from sklearn.linear_model import LogisticRegression

        classes, x = self.pairs(1.0, number=40, dimensions=3)
        seen, fit = [], LogisticRegression.fit

        def watch(self, rows, labels, *rest):
            seen.append((rows, labels))
            return fit(self, rows, labels, *rest)

        monkeypatch.setattr(LogisticRegression, "fit", watch)
        monkeypatch.setattr(probe, "_MOST", 60)
        found = separability("suffix", classes, x, paired=True, permutations=2)
        assert found.types == 60
        assert dict(found.sizes) == {"with": 30, "without": 30}
        place = {tuple(row): i for i, row in enumerate(x)}
        for rows, labels in seen:
            pair = np.array([place[tuple(row)] % 40 for row in rows])
            assert (np.bincount(pair)[np.unique(pair)] == 2).all()
            assert (np.bincount(pair, labels)[np.unique(pair)] == 1).all()

    def test_families(self):
        """c, cs and css are one."""
        found = probe._pairs({"a": np.array([1, 2, 5]), "b": np.array([0, 1, 4])}, 6)
        assert [len(np.flatnonzero(found == found[i])) for i in range(6)] == [3, 3, 3, 1, 2, 2]


class TestCaps:
    def test_many_types_hold_out_one_part(self):
        classes, x = data([700, 500], 8.0, dimensions=2)
        found = separability("many", classes, x, permutations=2)
        assert found.tested == 240

    def test_sample_keeps_proportions_and_small_classes(self):
        y = np.repeat([0, 1, 2], [20000, 9996, 6])
        kept = y[_sample(y, _MOST, np.random.default_rng(0))]
        counts = np.bincount(kept)
        assert counts.sum() <= _MOST + 2 * FEWEST
        assert abs(counts[0] / counts[1] - 2) < 0.01
        assert counts[2] == FEWEST


class TestDegenerate:
    def test_identical_embeddings(self):
        classes, _ = data([20, 10], 0.0)
        found = separability("same", classes, np.ones((30, 3)), permutations=2)
        assert found.accuracy == found.majority == pytest.approx(2 / 3)
        assert not found.separable

    @pytest.mark.parametrize(
        ("classes", "said"),
        [
            ({"a": np.arange(20)}, "found a 20"),
            ({"a": np.arange(20), "b": np.array([20])}, "found a 20, b 1"),
            ({"a": np.arange(20), "b": np.arange(20)}, "found a 0, b 0"),
            ({}, "found no class"),
        ],
    )
    def test_too_few(self, classes, said):
        with pytest.raises(PropertyError, match=f"2 classes with at least 5 types.*{said}"):
            separability("x", classes, np.ones((30, 3)))

    def test_all_classes_wanted(self):
        classes, x = data([30, 30, 3], 5.0)
        with pytest.raises(PropertyError, match=r"x: 3 classes .* found c0 30, c1 30, c2 3"):
            separability("x", classes, x, whole=True)

    def test_small_classes_and_shared_types_are_left_out(self):
        classes, x = data([30, 30, 3], 5.0)
        classes["c1"] = np.append(classes["c1"], classes["c0"][:2])
        found = separability("x", classes, x, permutations=2)
        assert dict(found.left_out) == {"c2": 3}
        assert found.ambiguous == 2
        assert dict(found.sizes) == {"c0": 28, "c1": 30}


def lexicon(groups, table=None):
    """A type for each class and number, all in one class."""
    counts = np.zeros((len(groups), 3 * len(groups)), np.int64)
    for i in range(len(groups)):
        counts[i, 3 * i : 3 * i + 3] = 1
    n = counts.shape[1]
    return Lexicon(
        embeddings=np.random.default_rng(0).standard_normal((n, 2)),
        tokens=tuple(f"t{i}" for i in range(n)),
        groups=tuple(groups),
        counts=csr_array(counts),
        occurrences=counts.sum(0),
        shared=np.diag(counts.sum(1)),
        D=np.eye(2),
    )


PENN_TAGS = str.split(
    "CC CD DT EX FW IN JJ JJR JJS LS MD NN NNS NNP NNPS PDT POS PRP PRP$ RB RBR RBS RP SYM TO UH "
    "VB VBD VBG VBN VBP VBZ WDT WP WP$ WRB"
)
UPOS_TAGS = str.split(
    "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X"
)


class TestSets:
    def test_penn_is_table_3(self):
        """20 rows, in the order of the table, with as many classes as it says."""
        penn = lexicon(PENN_TAGS)
        assert shipped.recognise(penn) is shipped.PENN
        found = [shipped.classes_of(s, penn) for s in shipped.PENN if s.suffix is None]
        assert [len(c) for c in found] == [36, 4, 6, 3, 3, 5, 4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
        assert [len(v) for v in found[5].values()] == [12, 18, 9, 9, 12]
        assert len(shipped.PENN) == 20
        assert all(len(v) for classes in found for v in classes.values())

    def test_upos(self):
        upos = lexicon(UPOS_TAGS)
        assert shipped.recognise(upos) is shipped.UPOS
        for one in shipped.UPOS:
            if one.suffix is None:
                assert all(len(v) for v in shipped.classes_of(one, upos).values())

    def test_a_tag_that_the_corpus_lacks(self):
        found = shipped.classes_of(shipped.PENN[1], lexicon(["NN", "NNS", "VB"]))
        assert [len(v) for v in found.values()] == [3, 3, 0, 0]

    def test_other_classes(self):
        with pytest.raises(PropertyError, match=r"neither Penn tags nor.*--sets FILE.toml"):
            shipped.recognise(lexicon(["Sing", "Plur"]))
        with pytest.raises(PropertyError, match="analyze again with --group-by xpos"):
            shipped.recognise(read_lexicon(property_tree(members=False)))

    def test_file(self, tmp_path):
        path = tmp_path / "s.toml"
        path.write_text(
            '[[set]]\nname = "number"\nclasses = ["NN", "NNS"]\n'
            '[[set]]\nname = "N-V"\n[set.classes]\nN = ["NN", "NNS"]\nV = ["VB"]\n'
            '[[set]]\nclasses.a = {words = ["t0"]}\nclasses.b = ["VB"]\n'
            '[[set]]\nsuffix = "\'s"\n',
            encoding="utf-8",
        )
        sets = shipped.read_sets(path, lexicon(["NN", "NNS", "VB"]))
        assert [s.name for s in sets][:2] == ["number", "N-V"]
        assert sets[1].sides == {"N": Side(("NN", "NNS")), "V": Side(("VB",))}
        assert sets[2].sides == {"a": Side(words=("t0",)), "b": Side(("VB",))}
        assert sets[3].suffix == "'s"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", r"one or more \[\[set\]\]"),
            ("[[set]]\nname = 'x'", "either classes or a suffix"),
            ("[[set]]\nclasses = ['NN']\nsuffix = 's'", "either classes or a suffix"),
            ("[[set]]\nclasses = ['NN']", "two or more classes"),
            ("[[set]]\nclasses = ['NN', 'JJ']", "no class 'JJ'"),
            ("[[set]]\nclasses = {a = 1, b = ['NN']}", "class 'a' must be a list"),
            ("[[set]]\nclasses = ['NN', 3]", "class '3' must be a list|no class"),
            ("[[set]]\nclasses = 3", "classes must be a list"),
            ("[[set]]\ncolour = 3\nclasses = ['NN', 'VB']", "no key 'colour'"),
            ("set = [3]", "must be a table"),
        ],
    )
    def test_bad_files(self, tmp_path, text, said):
        path = tmp_path / "s.toml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(PropertyError, match=said):
            shipped.read_sets(path, lexicon(["NN", "NNS", "VB"]))
