"""Which positions belong to which class, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mnemoscope.analyzer.corpus import Corpus, read_corpus
from mnemoscope.analyzer.errors import CorpusError, GroupError
from mnemoscope.analyzer.grouping import (
    MOST_GROUPS,
    group_positions,
    read_unions,
    those_followed,
)
from mnemoscope.analyzer.groups import Groups
from mnemoscope.analyzer.roles import Vocabulary

WORDS = Vocabulary(("a", "b", "all", "<unk>", "<eos>"), "word", "<unk>", "<eos>")
TREE = """\
1\tA\ta\tDET\tDT\tNumber=Sing\t0\troot\t_\t_
2\tb\tb\tNOUN\tNN\tNumber=Plur|Case=Nom\t1\tx\t_\t_
3\tZebra\tzebra\tNOUN\tNNS\tNumber=Sing\t1\tx\t_\t_
4\tall\tall\tADV\t_\t_\t1\tx\t_\t_

"""
TABLE = "a\tX|Y\nb\tY\nzebra\tall\nall\t_\n"


@pytest.fixture
def read(tmp_path):
    def call(text, name="c.conllu"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return read_corpus(tmp_path / name, WORDS)

    return call


def masks(groups):
    return {name: groups.mask(name).astype(int).tolist() for name in groups.names}


@pytest.mark.parametrize(
    ("by", "wanted"),
    [
        ("upos", {"ADV": [0, 0, 0, 1, 0], "DET": [1, 0, 0, 0, 0], "NOUN": [0, 1, 1, 0, 0]}),
        ("xpos", {"DT": [1, 0, 0, 0, 0], "NN": [0, 1, 0, 0, 0], "NNS": [0, 0, 1, 0, 0]}),
        ("lemma", {"a": [1, 0, 0, 0, 0], "lemma:all": [0, 0, 0, 1, 0], "b": [0, 1, 0, 0, 0],
                   "zebra": [0, 0, 1, 0, 0]}),
        ("feature:Number", {"Plur": [0, 1, 0, 0, 0], "Sing": [1, 0, 1, 0, 0]}),
        # The token that the model reads: unknown words are one, ends of lines too.
        ("word", {"<eos>": [0, 0, 0, 0, 1], "<unk>": [1, 0, 1, 0, 0], "word:all": [0, 0, 0, 1, 0],
                  "b": [0, 1, 0, 0, 0]}),
    ],
)  # fmt: skip
def test_columns(read, by, wanted):
    groups = group_positions(read(TREE), WORDS, by)
    assert groups.names[0] == "all"
    assert masks(groups) == {"all": [1] * 5, **wanted}


def test_a_label_called_all_and_overlapping_labels(read):
    said = []
    groups = group_positions(read(TABLE, "c.tsv"), WORDS, "label", report=said.append)
    assert masks(groups) == {"all": [1] * 5, "X": [1, 0, 0, 0, 0], "Y": [1, 1, 0, 0, 0],
                             "label:all": [0, 0, 1, 0, 0]}  # fmt: skip
    assert said == [
        "A class of the corpus is called all, as all positions are; it is shown as label:all."
    ]


def test_even_its_new_name_may_be_taken(read):
    groups = group_positions(read("a\tall\nb\tlabel:all\n", "c.tsv"), WORDS, "label")
    assert groups.names == ("all", "label:all'", "label:all")


class TestLexicon:
    def test_it_knows_the_words_as_they_were_written(self, read, tmp_path):
        path = tmp_path / "tags.tsv"
        path.write_text(
            "zebra\tanimal|striped\nb\tletter\n\nall\tall\n<eos>\tend\nx\ty\n<unk>\tno\n"
        )
        said = []
        corpus = read("b zebra Zebra all\nall\n", "c.txt")
        assert corpus.ids.tolist() == [1, 3, 3, 2, 4, 2, 4]
        groups = group_positions(corpus, WORDS, str(path), report=said.append)
        assert masks(groups) == {
            "all": [1] * 7,
            "tags:all": [0, 0, 0, 1, 0, 1, 0],
            "animal": [0, 1, 0, 0, 0, 0, 0],
            "end": [0, 0, 0, 0, 1, 0, 1],
            "letter": [1, 0, 0, 0, 0, 0, 0],
            "striped": [0, 1, 0, 0, 0, 0, 0],
        }
        assert said[0] == f"The lexicon {path} gives a class to 6 of 7 positions (85.7%)."

    def test_ids_where_the_model_has_no_vocabulary(self, tmp_path):
        path = tmp_path / "tags.tsv"
        path.write_text("3\todd\n")
        groups = group_positions(Corpus(np.array([3, 2, 3]), "c", "", 1, 0), None, str(path))
        assert masks(groups) == {"all": [1, 1, 1], "odd": [1, 0, 1]}
        assert group_positions(Corpus(np.array([3, 2, 3]), "c", "", 1, 0), None, "word").names == (
            "all", "2", "3",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("content", "error", "said"),
        [
            (b"a b\n", CorpusError, r"The lexicon .*tags\.tsv, line 1: expected a word, a tab"),
            (b"\xff\n", GroupError, r"nor a lexicon that can be read: The lexicon .* is not UTF-8"),
            (b"q\tx\n", GroupError, r"\(1 words\) has no class for any word.*capitals included"),
            (b"", GroupError, r"\(0 words\) has no class for any word"),
            (b"a\tx\0y\n", GroupError, r"The class 'x\\x00y' has a null character"),
        ],
    )
    def test_refusals(self, read, tmp_path, content, error, said):
        (tmp_path / "tags.tsv").write_bytes(content)
        with pytest.raises(error, match=said):
            group_positions(read("a b\n", "c.txt"), WORDS, str(tmp_path / "tags.tsv"))

    def test_neither_column_nor_file(self, read, tmp_path):
        for path in (tmp_path / "nowhere", tmp_path):
            with pytest.raises(GroupError, match=r"is neither a column \(upos, .*feature:NAME\)"):
                group_positions(read(TREE), WORDS, str(path))


class TestUnions:
    def test_they_replace_the_classes_and_may_overlap(self, read):
        unions = {"nouns": ["NN", "NNS", "NN"], "rest": ["DT"], "both": ["DT", "NN"]}
        groups = group_positions(read(TREE), WORDS, "xpos", unions=unions)
        assert masks(groups) == {"all": [1] * 5, "nouns": [0, 1, 1, 0, 0],
                                 "rest": [1, 0, 0, 0, 0], "both": [1, 1, 0, 0, 0]}  # fmt: skip

    def test_of_a_class_called_all(self, read):
        groups = group_positions(read(TABLE, "c.tsv"), WORDS, "label", unions={"u": ["all"]})
        assert masks(groups)["u"] == [0, 0, 1, 0, 0]

    def test_absent_classes_are_said(self, read):
        said = []
        group_positions(
            read(TREE), WORDS, "xpos", unions={"nouns": ["NN", "NNP", "NNPS"]}, report=said.append
        )
        assert said == ["Group nouns: no word of the corpus has the class NNP, NNPS."]

    def test_an_empty_union_is_refused(self, read):
        with pytest.raises(
            GroupError,
            match="group verbs would be empty: no word of the corpus has the class VB, VBD in "
            "xpos, which has DT, NN, NNS",
        ):
            group_positions(read(TREE), WORDS, "xpos", unions={"verbs": ["VB", "VBD"]})

    def test_named_words_of_a_large_vocabulary(self):
        names = Vocabulary(tuple(f"w{i}" for i in range(MOST_GROUPS + 1)))
        corpus = Corpus(np.arange(MOST_GROUPS + 1), "c", "", 1, 0)
        with pytest.raises(GroupError, match=r"word makes 501 classes; .*mnemoscope words"):
            group_positions(corpus, names, "word")
        groups = group_positions(corpus, names, "word", unions={"two": ["w3", "w5"]})
        assert groups.count().tolist() == [MOST_GROUPS + 1, 2]
        fewer = Corpus(np.arange(MOST_GROUPS), "c", "", 1, 0)
        assert len(group_positions(fewer, names, "word")) == MOST_GROUPS + 1

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "names no group; expected lines such as nouns"),
            (b"nouns = NN\n", r"is not valid TOML: .*line 1"),
            (b"x = " + b"[" * 5000, "is not valid TOML: it is nested too deeply"),
            (b"x = " + b"1" * 5000, "is not valid TOML"),
            (b'nouns = "NN"\n', "nouns is no list of classes"),
            (b"nouns = []\n", "nouns is an empty list"),
            (b'nouns = ["NN", 3]\n', "nouns holds something that is no text"),
            (b'[a]\nnouns = ["NN"]\n', "a is no list of classes"),
            (b'all = ["NN"]\n', "all is what all positions are called"),
            (b'" " = ["NN"]\n', "' ' is no name"),
            (b'"a\\u0000" = ["NN"]\n', r"is no name"),
            (b'x = ["a"]\nx = ["b"]\n', "is not valid TOML"),
            (b"\xff", "The groups .* is not UTF-8"),
        ],
    )
    def test_files_that_are_none(self, tmp_path, content, said):
        (tmp_path / "g.toml").write_bytes(content)
        with pytest.raises(GroupError, match=said):
            read_unions(tmp_path / "g.toml")

    def test_a_file(self, tmp_path):
        (tmp_path / "g.toml").write_text('# PTB\nnouns = ["NN", "NNS"]\n"to be" = ["VB"]\n')
        assert read_unions(tmp_path / "g.toml") == {"nouns": ["NN", "NNS"], "to be": ["VB"]}
        with pytest.raises(GroupError, match="There is no groups file"):
            read_unions(tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("text", "name", "by", "said"),
    [
        ("a b\n", "c.txt", "xpos", r"no column xpos; it has word\. A treebank \(\.conllu\) has"),
        (TREE, "c.conllu", "label",
         r"no column label; it has upos, xpos, lemma, word, feature:Case and 1 other features\.$"),
        (TREE, "c.conllu", "feature:number", "has the feature 'number'; there are Case, Number"),
        (TABLE, "c.tsv", "upos", r"no column upos; it has label, word\.$"),
        (TABLE, "c.tsv", "feature:Number", r"no column feature:Number; it has label, word\.$"),
        ("1\ta\t_\t_\t_\t_\t_\t_\t_\t_\n\n", "c.conllu", "upos", "no column upos; it has word"),
    ],
)  # fmt: skip
def test_absent_columns(read, text, name, by, said):
    with pytest.raises(GroupError, match=said):
        group_positions(read(text, name), WORDS, by)


def test_classes_without_a_followed_position():
    groups = Groups.from_labels([{"x"}, {"y"}, {"x"}, set()]).with_all()
    said = []
    assert those_followed(groups, np.array([1, 1, 0, 0], bool), said.append) is groups
    assert said == []
    found = those_followed(groups, np.array([0, 0, 1, 1], bool), said.append)
    assert masks(found) == {"all": [1, 1, 1, 1], "x": [1, 0, 1, 0]}
    assert said == [
        "The sample of 2 positions holds none of y; left out. Follow more --positions or all of "
        "them to have them."
    ]
    nothing = r"The sample of 1 positions holds none of x, y: no class is left\. Follow more"
    for empty in (groups, groups.unions({"x": ["x"], "y": ["y"]})):
        with pytest.raises(GroupError, match=nothing):
            those_followed(empty, np.array([0, 0, 0, 1], bool), said.append)


@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.sets(st.sampled_from("abcd")), min_size=4, max_size=4),
)
def test_types_are_labels_of_each_position(types, labels):
    each = [labels[t] for t in types]
    found = Groups.from_types(np.array(types, np.int64), labels)
    assert found.positions == len(types)
    assert found.names == tuple(sorted(set().union(*each)))
    for name in found.names:
        np.testing.assert_array_equal(found.mask(name), [name in these for these in each])
