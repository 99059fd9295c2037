"""Treebanks and tables become words and their classes, or a clear refusal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mnemoscope.analyzer._tsv import read_classes
from mnemoscope.analyzer.corpus import read_corpus
from mnemoscope.analyzer.errors import CorpusError
from mnemoscope.analyzer.roles import Vocabulary

EWT = Path(__file__).parents[2] / "shared" / "data" / "ud-english-ewt" / "en_ewt-ud-dev.conllu"
WORDS = Vocabulary(
    ("I", "do", "n't", "know", "_", "them", "<unk>", "<eos>"), "word", "<unk>", "<eos>"
)
OPEN = Vocabulary(("I", "do", "<unk>"), "word", "<unk>")
CHARS = Vocabulary(("a", "b", " ", "\n", "?"), "char", "?", "\n")


def row(number, form, lemma="_", upos="_", xpos="_", feats="_"):
    return "\t".join((str(number), form, lemma, upos, xpos, feats, "0", "root", "_", "_"))


# Everything the format allows: comments, a multiword token, empty nodes before and after a word,
# a word that is an underscore, several values of a feature, a word with a space.
ODD = "\n".join(
    [
        "# newdoc",
        "# text = I don't",
        row("0.1", "nothing", "ghost", "X", "GHOST", "Number=Plur"),
        row(1, "I", "I", "PRON", "PRP", "Case=Nom|Number=Sing"),
        row("2-3", "don't", "_", "X", "RANGE"),
        row(2, "do", "do", "AUX", "VBP"),
        row("2.1", "ghost", "ghost", "X", "GHOST"),
        row("2.2", "ghost", "ghost", "X", "GHOST"),
        row(3, "n't", "not", "PART", "RB", "Polarity=Neg"),
        row(4, "zebra crossing", "zebra crossing", "NOUN", "NN", "Number=Sing"),
        "",
        "# sent_id = 2",
        row(1, "_", "_", "PUNCT", "_", "PronType=Int,Rel"),
        row(2, "#", "_", "SYM", "#"),
        "",
        "",
    ]
)


@pytest.fixture
def read(tmp_path):
    def call(content, vocabulary=WORDS, name="c.conllu", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_corpus(path, vocabulary, **options)

    return call


def classes(groups):
    """The names at each position."""
    return [
        {groups.names[g] for g in groups.group[a:b]}
        for a, b in zip(groups.start[:-1], groups.start[1:], strict=True)
    ]


class TestTreebank:
    @pytest.mark.parametrize(
        "change",
        [lambda s: s, lambda s: "\ufeff" + s, lambda s: s.replace("\n", "\r\n"),
         lambda s: s + "\n\n", lambda s: "\n" + s],
        ids=["as it is", "byte-order mark", "CRLF", "blank lines at the end", "and the start"],
    )  # fmt: skip
    def test_words_and_classes(self, read, change):
        corpus = read(change(ODD))
        assert corpus.ids.tolist() == [0, 1, 2, 6, 7, 4, 6, 7]
        assert (corpus.lines, corpus.unknown) == (2, 2)
        assert corpus.unknown_words == {3: "zebra crossing", 6: "#"}
        notes = corpus.annotations
        assert list(notes) == ["upos", "xpos", "lemma", "feature:Case", "feature:Number",
                               "feature:Polarity", "feature:PronType"]  # fmt: skip
        none = set()
        assert classes(notes["upos"]) == [
            {"PRON"}, {"AUX"}, {"PART"}, {"NOUN"}, none, {"PUNCT"}, {"SYM"}, none
        ]  # fmt: skip
        assert classes(notes["xpos"]) == [
            {"PRP"}, {"VBP"}, {"RB"}, {"NN"}, none, none, {"#"}, none
        ]  # fmt: skip
        assert classes(notes["lemma"]) == [
            {"I"}, {"do"}, {"not"}, {"zebra crossing"}, none, {"_"}, none, none
        ]  # fmt: skip
        assert classes(notes["feature:Number"]) == [{"Sing"}, none, none, {"Sing"}] + [none] * 4
        assert classes(notes["feature:PronType"]) == [none] * 5 + [{"Int", "Rel"}, none, none]

    def test_without_an_end_of_line_token(self, read):
        corpus = read(ODD, OPEN)
        assert corpus.ids.tolist() == [0, 1, 2, 2, 2, 2]
        assert corpus.annotations["upos"].positions == 6

    def test_columns_that_hold_nothing_are_not_there(self, read):
        assert list(read(row(1, "I") + "\n\n").annotations) == []

    def test_a_word_may_be_alone_in_a_multiword_token(self, read):
        text = "\n".join(
            [row("1-1", "I"), row(1, "I"), row("2-3", "x"), row(2, "do"), row(3, "do")]
        )
        assert read(text + "\n\n", OPEN).ids.tolist() == [0, 1, 1]

    def test_what_looks_like_an_end_of_line_is_none(self, read):
        # Only \n ends a line: other separators are characters of a word.
        corpus = read(row(1, "I\u2028x\x0c\x85") + "\n" + row(2, "do") + "\n\n")
        assert corpus.unknown_words == {0: "I\u2028x\x0c\x85"}
        assert len(corpus) == 3

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (b"", "is empty; expected a treebank in CoNLL-U"),
            (b" \n\n", "is empty; expected a treebank"),
            (b"# only a comment\n\n", "holds no word; expected a treebank"),
            (ODD.removesuffix("\n"), "line 14: the file ends inside a sentence; a blank line"),
            (ODD + "# more", "line 16: the file ends inside a sentence"),
            (ODD[: ODD.index("RANGE")], "line 5: expected 10 columns separated by tabs, found 5"),
            (row(1, "I").replace("\t", " ") + "\n\n",
             "line 1: expected 10 columns separated by tabs, found 1; its columns are separated by "
             "spaces"),
            (row(1, "I\tdo") + "\n\n", "line 1: expected 10 columns separated by tabs, found 11"),
            (row(1, "I") + "\n \n", "line 2: .*found 1: the line holds white space"),
            (row(1, "I") + "\n\t\n\n", "line 2: .*found 2: the line holds white space"),
            (row(1, "I", xpos="") + "\n\n", "line 1: the column XPOS is empty; nothing is written"),
            (row(1, "") + "\n\n", "line 1: the column FORM is empty"),
            (row("I", "I") + "\n\n", "line 1: the id 'I' is no word"),
            (row("¹", "I") + "\n\n", "line 1: the id '¹' is no word"),
            (row("-1", "I") + "\n\n", "line 1: the id '-1' is no word"),
            (row("9" * 5000, "I") + "\n\n", "line 1: the id '99999999"),
            (row(0, "I") + "\n\n", "line 1: the id 0 is out of order; expected 1"),
            (row(2, "I") + "\n\n", "line 1: the id 2 is out of order; expected 1"),
            (row(1, "I") + "\n" + row(3, "I") + "\n\n", "line 2: the id 3 is out of order; .* 2"),
            (row(1, "I") + "\n" + row(1, "I") + "\n\n", "line 2: the id 1 is out of order; .* 2"),
            (row(1, "I") + "\n" + row("2.1", "x") + "\n\n", "the id 2.1 is out of .* expected 1.1"),
            (row("1.1", "I") + "\n\n", "line 1: the id 1.1 is out of order; expected 0.1"),
            (row("2-3", "I") + "\n\n", "line 1: the id 2-3 is out of order; expected 1-2"),
            (row("1-0", "I") + "\n\n", "line 1: the multiword token 1-0 is empty or overlaps"),
            ("\n".join([row("1-2", "x"), row(1, "I"), row("2-3", "y")]) + "\n\n",
             "line 3: the multiword token 2-3 is empty or overlaps"),
            (row("1-2", "x") + "\n" + row(1, "I") + "\n\n",
             "line 3: the sentence ends at word 1, but a multiword token announced words up to 2"),
            (row("0.1", "x") + "\n\n", "line 2: the sentence holds no word"),
            (row(1, "I") + "\n# late\n\n", "line 2: a comment inside a sentence"),
            (row(1, "I", feats="Number") + "\n\n", "line 1: the features 'Number' are not of"),
            (row(1, "I", feats="A=B||C=D") + "\n\n", "line 1: the features"),
            (row(1, "I", feats="=B") + "\n\n", "line 1: the features"),
            (row(1, "I", feats="A=B,") + "\n\n", "line 1: the features"),
            (row(1, "I").encode() + b"\n" + row(2, "caf").encode() + b"\xe9\n\n",
             r"not UTF-8 text: byte \d+ \(line 2\)"),
            (row(1, "zebra") + "\n\n", "Not one token of the corpus"),
            ("a plain sentence of text\n", "line 1: expected 10 columns .* found 1."),
        ],
    )  # fmt: skip
    def test_refusals_name_the_line(self, read, text, said):
        with pytest.raises(CorpusError, match=said):
            read(text)

    def test_characters_are_refused(self, read):
        with pytest.raises(
            CorpusError, match=r"holds words; it cannot be read at level char\..*tsv"
        ):
            read(ODD, CHARS)

    def test_ids_are_needed_without_a_vocabulary(self, read):
        with pytest.raises(CorpusError, match="must hold token ids; found 'I'"):
            read(ODD, None)
        assert read(row(1, "3", upos="X") + "\n\n", None).ids.tolist() == [3]

    def test_many_features_take_little_memory(self, read):
        # Each names a feature of its own: as groups at once they would take their number squared.
        n = 4000
        lines = [row(i + 1, "I", feats=f"F{i}=x") for i in range(n)]
        corpus = read("\n".join(lines) + "\n\n")
        assert len(corpus.annotations) == n
        assert corpus.annotations["feature:F7"].count().tolist() == [1]


@given(st.data())
def test_damaged_treebanks_are_read_or_refused(tmp_path_factory, data):
    content = bytearray(ODD.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(
            st.sampled_from([b"", b"\t", b"\n", b" ", b"\r", b"|", b"=", b"\xe9", b"9"])
        )
        content[at : at + data.draw(st.integers(0, 3))] = new
    path = tmp_path_factory.mktemp("c") / "c.conllu"
    path.write_bytes(content)
    try:
        corpus = read_corpus(path, WORDS)
    except CorpusError:
        return
    for groups in corpus.annotations.values():
        assert groups.positions == len(corpus)
        assert groups.count().all()


class TestTable:
    def test_words_and_classes(self, read):
        corpus = read("I\tA|B\ndo\t_\n#\tC\n\n\n\nn't\tA\n", name="c.TSV")
        assert corpus.ids.tolist() == [0, 1, 6, 7, 2, 7]
        assert corpus.lines == 2
        assert classes(corpus.annotations["label"]) == [
            {"A", "B"},
            set(),
            {"C"},
            set(),
            {"A"},
            set(),
        ]

    def test_characters(self, read):
        corpus = read("a\tV\n \tS\nb\tC\n", CHARS, name="c.tsv")
        assert corpus.ids.tolist() == [0, 2, 1, 3]
        assert classes(corpus.annotations["label"]) == [{"V"}, {"S"}, {"C"}, set()]

    def test_ids_without_a_vocabulary(self, read):
        corpus = read("3\tA\n0\tB\n", None, name="c.tsv")
        assert corpus.ids.tolist() == [3, 0]

    @pytest.mark.parametrize("text", ["I\tA", "I\tA\n", "\nI\tA\n\n", "I\tA\r\n\r\n"])
    def test_the_last_sentence_needs_no_blank_line(self, read, text):
        assert read(text, name="c.tsv").ids.tolist() == [0, 7]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "is empty; expected a word, a tab and its class on each line"),
            ("I\tA\nI do\n", r"line 2: expected a word, a tab and its classes.*; found 1 columns"),
            ("I\tA\tB\n", "line 1: .*; found 3 columns"),
            ("I\tA\n\tB\n", "line 2: .*; there is no word before the tab"),
            ("I\t\n", "line 1: .*; a class is empty"),
            ("I\tA||B\n", "line 1: .*; a class is empty"),
            ("I\tA\n \n", "line 2: .*; found 1 columns"),
            (b"I\tA\n\xff\tB\n", r"not UTF-8 text: byte 4 \(line 2\)"),
        ],
    )
    def test_refusals_name_the_line(self, read, text, said):
        with pytest.raises(CorpusError, match=said):
            read(text, name="c.tsv")

    LABEL = st.text(st.characters(exclude_characters="\t\n\r|\0", codec="utf-8"), min_size=1)

    @given(st.lists(st.tuples(LABEL, st.sets(LABEL.filter(lambda s: s != "_")))))
    def test_round_trip(self, tmp_path_factory, rows):
        path = tmp_path_factory.mktemp("c") / "c.tsv"
        rows = [("I", {"x"}), *rows]
        # The first word is another's: a byte-order mark at the start would be no part of it.
        text = "\n".join(f"{w}\t{'|'.join(sorted(labels)) or '_'}" for w, labels in rows)
        path.write_text(text, encoding="utf-8", newline="")
        corpus = read_corpus(path, WORDS)
        found = classes(corpus.annotations["label"])
        assert found == [labels for _, labels in rows] + [set()]
        written = [corpus.unknown_words.get(i) or WORDS.tokens[k] for i, k in enumerate(corpus.ids)]
        assert written[:-1] == [w for w, _ in rows]


def test_text_has_no_classes_and_keeps_its_unknown_words(read):
    corpus = read("I know zebras\n", name="c.txt")
    assert dict(corpus.annotations) == {}
    assert corpus.unknown_words == {2: "zebras"}


def test_standard_input_is_text(monkeypatch):
    import io
    import types

    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(b"I do\n")))
    assert read_corpus("-", WORDS).ids.tolist() == [0, 1, 7]


def test_a_lexicon_joins_the_lines_of_a_word():
    found = read_classes(["walk\tNN|VB", "", "walk\tX", "the\t_"], "lexicon")
    assert found == {"walk": {"NN", "VB", "X"}, "the": set()}
    with pytest.raises(CorpusError, match=r"The lexicon l\.tsv, line 2: expected"):
        read_classes(["a\tb", "c"], "l.tsv")


@pytest.fixture(scope="module")
def corpus():
    return read_corpus(EWT, Vocabulary(("the", "<unk>", "<eos>"), "word", "<unk>", "<eos>"))


@pytest.mark.skipif(not EWT.exists(), reason="the English EWT treebank is not at ../shared/data")
class TestEnglishWebTreebank:
    """Against the counts of the treebank's own statistics, and a count by splitting lines."""

    def test_numbers(self, corpus):
        assert corpus.lines == 2001
        assert len(corpus) == 25147 + 2001
        notes = corpus.annotations
        assert (len(notes["xpos"]), len(notes["upos"])) == (49, 17)
        assert notes["upos"].count().sum() == 25147
        assert len(set(corpus.unknown_words.values()) | {"the"}) == 5494

    @pytest.mark.parametrize(
        ("column", "field"), [("upos", 3), ("xpos", 4), ("lemma", 2), ("feature:Number", 5)]
    )
    def test_counts(self, corpus, column, field):
        counts = Counter()
        for line in EWT.read_text(encoding="utf-8").splitlines():
            cells = line.split("\t")
            if cells[0].isdigit():
                content = cells[field]
                if column.startswith("feature"):
                    content = dict(f.split("=") for f in content.split("|") if "=" in f)
                    content = content.get("Number", "_")
                # The treebank has an underscore as a word, whose lemma is no gap.
                if content != "_" or (column == "lemma" and cells[1] == "_"):
                    counts[content] += 1
        groups = corpus.annotations[column]
        assert dict(zip(groups.names, groups.count().tolist(), strict=True)) == counts
        np.testing.assert_array_equal(groups.mask("Sing" if ":" in column else groups.names[0])
                                      [corpus.ids == 2], False)  # fmt: skip
